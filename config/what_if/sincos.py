"""
What if positions were waves of sine and cosine, as in the first Transformer, instead of learned vectors?
"""

exec(open('config/what_if/base.py', encoding='utf-8').read())

out_dir = 'out-what-if-sincos'
pos = 'sinusoidal'
