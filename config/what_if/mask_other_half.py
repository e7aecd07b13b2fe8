"""
What if we masked the other half of the matrix?
"""

exec(open('config/what_if/base.py', encoding='utf-8').read())

out_dir = 'out-what-if-mask-other-half'
mask = 'other_half'
