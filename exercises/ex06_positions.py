"""
Exercise 6: positions as sine and cosine.

    PE(pos, 2i)     = sin(pos / 10000^(2i / C))
    PE(pos, 2i + 1) = cos(pos / 10000^(2i / C))

    n                  positions, pos = 0, 1, ..., n - 1
    C                  width of a token's vector, even here
    result   (n, C)    row pos is the vector of position pos; its columns are sin, cos, sin, cos, ...

Hint: pos as a column (n, 1) and the C/2 frequencies as a row give all angles (n, C/2) in one product.

The answer: `sinusoidal` in model.py.
"""

import torch  # noqa: F401


def positions(n, C):
    """The table PE (n, C)."""
    raise NotImplementedError
