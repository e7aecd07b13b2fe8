"""
What if a layer replaced its input instead of adding to it?
"""

exec(open('config/what_if/base.py', encoding='utf-8').read())

out_dir = 'out-what-if-no-residual'
residual = False
