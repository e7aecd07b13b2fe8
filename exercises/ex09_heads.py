"""
Exercise 9: many heads.

Compute Q, K and V of all tokens, cut them into H heads of width D = C / H, let each head attend on its own, causally,
put the answers side by side, and mix them with W_O.

    Q = x W_Q,  K = x W_K,  V = x W_V
    head_h = softmax(Q_h K_h^T / sqrt(D) + M) V_h
    MultiHead(x) = [head_1, ..., head_H] W_O

    x                   (B, T, C)
    W_Q, W_K, W_V, W_O  (C, C)
    H                   number of heads; head h has columns h D to (h+1) D - 1 of Q, K and V
    Q_h, K_h, V_h       (B, T, D), or all heads at once (B, H, T, D)
    M                   (T, T)      the causal mask of exercise 8
    MultiHead(x)        (B, T, C)   what you return

Common mistake: `Q.view(B, H, T, D)` mixes tokens with one another. It is `Q.view(B, T, H, D).transpose(1, 2)`.
The answer, for afterwards: `CausalSelfAttention.forward` in model.py.
"""

import torch  # noqa: F401


def multi_head(x, W_Q, W_K, W_V, W_O, H):
    raise NotImplementedError
