"""
Exercise 6: sine and cosine for positions.

Make a vector of C numbers for each of n positions: sines in the even columns, cosines in the odd ones.

    PE(pos, 2i)   = sin(pos / 10000^{2i/C})
    PE(pos, 2i+1) = cos(pos / 10000^{2i/C})

    n   number of positions; pos is 0..n-1
    C   width of a vector, an even number; i is 0..C/2-1
    PE  (n, C)   what you return

Hint: pos as a column (n, 1) times the rates as a row (C/2,) gives all angles (n, C/2).
Common mistake: all sines first, then all cosines. Here they alternate.
The answer, for afterwards: `sinusoidal` in model.py.
"""

import torch  # noqa: F401


def positions(n, C):
    raise NotImplementedError
