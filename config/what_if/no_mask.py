"""
What if there were no mask?
"""

exec(open('config/what_if/base.py', encoding='utf-8').read())

out_dir = 'out-what-if-no-mask'
mask = 'none'
