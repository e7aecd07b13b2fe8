"""
What if there were no mask?

The answer leaks: the next token is among the inputs, and copying it is all that is learned. Where it cannot be seen, at
the end of a window, the model guesses, and its text is worthless.
"""

exec(open('config/what_if/base.py', encoding='utf-8').read())

out_dir = 'out-what-if-no-mask'
mask = 'none'
