"""
What if we did not divide the scores by sqrt(D)?

Scores are 5.7 times as large, and heads make up their minds sooner, which helps here. The division is there for wide
heads in deep networks: a softmax of large numbers is nearly 0 or 1, and its gradient vanishes.
"""

exec(open('config/what_if/base.py', encoding='utf-8').read())

out_dir = 'out-what-if-no-scale'
score = 'unscaled'
