"""
What if we masked the other half of the matrix?

A token sees itself and what comes after it, so the answer, too: the loss is that of copying. When the model writes,
nothing comes after the last token, so all it has is that one character.
"""

exec(open('config/what_if/base.py', encoding='utf-8').read())

out_dir = 'out-what-if-mask-other-half'
mask = 'other_half'
