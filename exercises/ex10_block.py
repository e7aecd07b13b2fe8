"""
Exercise 10: a block.

Attention, then an MLP. Each reads the normalized vectors and adds what it finds to the vectors themselves:

    x -> x + Attention(LN_1(x))
    x -> x + MLP(LN_2(x))

    x                        (B, T, C)
    ln_1, attn, ln_2, mlp    given functions, each (B, T, C) -> (B, T, C)
    result                   (B, T, C)

Hint: the MLP reads what attention has changed already.

The answer: `Block.forward` in model.py.
"""


def block(x, ln_1, attn, ln_2, mlp):
    """The vectors (B, T, C) after the block."""
    raise NotImplementedError
