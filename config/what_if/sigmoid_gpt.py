"""
What if the neurons of the GPT were the sigmoid neurons that read digits?
"""

exec(open('config/what_if/base.py', encoding='utf-8').read())

out_dir = 'out-what-if-sigmoid-gpt'
mlp = 'sigmoid'
