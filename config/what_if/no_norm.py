"""
What if there were no LayerNorm?

It learns, but slowly. The weights begin small, as GPT-2's do, so the numbers that leave a layer are small, and so are
the gradients; with a norm, each layer sees numbers of about 1, whatever the layers before it do.
"""

exec(open('config/what_if/base.py', encoding='utf-8').read())

out_dir = 'out-what-if-no-norm'
norm = 'none'
