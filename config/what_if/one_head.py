"""
What if there were one wide head instead of four?

At this size, one wide dot product is as good as four narrow ones, or better. Several heads pay in larger models, where
a token has more to ask than one question.
"""

exec(open('config/what_if/base.py', encoding='utf-8').read())

out_dir = 'out-what-if-one-head'
n_head = 1
