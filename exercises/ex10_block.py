"""
Exercise 10: a block, as in GPT-2.

Attention, then an MLP. Each gets a normalized copy of x, and what it finds is added to x.

    x <- x + Attention(LN_1(x))
    x <- x + MLP(LN_2(x))

    x                       (B, T, C)
    ln_1, attn, ln_2, mlp   functions, (B, T, C) -> (B, T, C)
    the new x               (B, T, C)   what you return

Common mistake: to give the MLP the old x. It gets the one that attention has already changed.
The answer, for afterwards: `Block` in model.py.
"""

import torch  # noqa: F401


def block(x, ln_1, attn, ln_2, mlp):
    raise NotImplementedError
