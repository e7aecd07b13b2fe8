"""
What if we reversed the dot product, so that the least similar key gets the most weight?

Nothing happens. The matrix that makes queries learns the opposite signs, and the network is the same with other numbers
in it.
"""

exec(open('config/what_if/base.py', encoding='utf-8').read())

out_dir = 'out-what-if-reversed-dot'
score = 'reversed'
