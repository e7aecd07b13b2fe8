"""
What if we did not divide the scores by sqrt(D)?
"""

exec(open('config/what_if/base.py', encoding='utf-8').read())

out_dir = 'out-what-if-no-scale'
score = 'unscaled'
