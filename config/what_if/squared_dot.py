"""
What if we squared the numbers of query and key before their dot product?
"""

exec(open('config/what_if/base.py', encoding='utf-8').read())

out_dir = 'out-what-if-squared-dot'
score = 'squared'
