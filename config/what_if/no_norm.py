"""
What if there were no LayerNorm?
"""

exec(open('config/what_if/base.py', encoding='utf-8').read())

out_dir = 'out-what-if-no-norm'
norm = 'none'
