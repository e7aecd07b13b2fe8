"""
10. A block, as in GPT-2: normalize first, then add.

The vectors of the tokens flow through the whole network. A block adds to them twice: what attention gathers from other
tokens, then what the feed-forward network makes of each token on its own. Both read a normalized copy:

    x -> x + Attention(LN_1(x))        x -> x + MLP(LN_2(x))

Shapes: x (B, T, C), and so is everything else. The four parts are given as functions, (B, T, C) -> (B, T, C).

Hint: the second line uses the x of the first. What is added to is the plain x, not its normalized copy.
Answer: model.py, `Block.forward`.
"""



def block(x, ln_1, attn, ln_2, mlp):
    """x (B, T, C); ln_1, attn, ln_2, mlp: functions (B, T, C) -> (B, T, C). Returns (B, T, C)."""
    raise NotImplementedError
