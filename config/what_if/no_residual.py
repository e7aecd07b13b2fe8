"""
What if a layer replaced its input instead of adding to it?

Nothing is learned but how frequent each letter is. Every layer would have to pass on all that the later ones need, and
with small random weights none does: after four layers, the input is gone, and so is the gradient on its way back.
"""

exec(open('config/what_if/base.py', encoding='utf-8').read())

out_dir = 'out-what-if-no-residual'
residual = False
