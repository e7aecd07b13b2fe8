"""
What if nothing told a token where it is?

Through the mask, a token can tell how many tokens came before it, but hardly in which order. The first layers find out
some of it all the same, so the loss is worse, not hopeless.
"""

exec(open('config/what_if/base.py', encoding='utf-8').read())

out_dir = 'out-what-if-no-position'
pos = 'none'
