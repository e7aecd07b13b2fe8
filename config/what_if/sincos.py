"""
What if positions were waves of sine and cosine, as in the first Transformer, instead of learned vectors?

Almost as good as learned vectors. Nothing has to be learned, and a position beyond those of the training has a vector,
too.
"""

exec(open('config/what_if/base.py', encoding='utf-8').read())

out_dir = 'out-what-if-sincos'
pos = 'sinusoidal'
