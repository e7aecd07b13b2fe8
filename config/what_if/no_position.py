"""
What if nothing told a token where it is?
"""

exec(open('config/what_if/base.py', encoding='utf-8').read())

out_dir = 'out-what-if-no-position'
pos = 'none'
