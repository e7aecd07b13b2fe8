"""
What if the neurons of the GPT were the sigmoid neurons that read digits?

It learns, but late. The slope of a sigmoid is 1/4 at most, and almost 0 on both sides, so little of the gradient comes
through, and its outputs are never negative.
"""

exec(open('config/what_if/base.py', encoding='utf-8').read())

out_dir = 'out-what-if-sigmoid-gpt'
mlp = 'sigmoid'
