"""
What if there were one wide head instead of four?
"""

exec(open('config/what_if/base.py', encoding='utf-8').read())

out_dir = 'out-what-if-one-head'
n_head = 1
