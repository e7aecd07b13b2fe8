"""
What if we reversed the dot product, so that the least similar key gets the most weight?
"""

exec(open('config/what_if/base.py', encoding='utf-8').read())

out_dir = 'out-what-if-reversed-dot'
score = 'reversed'
