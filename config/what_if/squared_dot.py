"""
What if we squared the numbers of query and key before their dot product?

The signs are lost: a key that points the same way as the query and one that points the opposite way get the same score.
A head learns later, and ends up less choosy.
"""

exec(open('config/what_if/base.py', encoding='utf-8').read())

out_dir = 'out-what-if-squared-dot'
score = 'squared'
