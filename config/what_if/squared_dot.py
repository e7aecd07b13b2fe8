"""
What if we squared the numbers of query and key before their dot product?

A square has no sign. A key can then only attract a query, never repel it, so a head learns later and ends up less
choosy.
"""

exec(open('config/what_if/base.py', encoding='utf-8').read())

out_dir = 'out-what-if-squared-dot'
score = 'squared'
