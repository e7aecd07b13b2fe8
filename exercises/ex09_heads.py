"""
Exercise 9: many heads.

Queries, keys and values of width C are cut into H heads of width D = C / H. Each head attends on its own, with the
causal mask; then their answers are put side by side again and mixed by one matrix:

    [Q K V]  = x W_QKV^T                                (B, T, 3 C)
    head_h   = Attention(Q_h, K_h, V_h)                 (B, T, D) each
    result   = [head_1, ..., head_H] W_O^T              (B, T, C)

    x        (B, T, C)   B texts of T tokens
    W_QKV    (3 C, C)    the first C rows make Q, the next ones K, the last ones V
    W_O      (C, C)
    H                    the number of heads

Hint: (B, T, C) -> view (B, T, H, D) -> transpose(1, 2) -> (B, H, T, D). A view as (B, H, T, D) at once would mix tokens
and heads. The way back is transpose(1, 2), then reshape.

The answer: `CausalSelfAttention.forward` in model.py. F.scaled_dot_product_attention(q, k, v, is_causal=True) is
allowed.
"""

import torch  # noqa: F401
from torch.nn import functional as F  # noqa: F401


def multi_head_attention(x, W_QKV, W_O, H):
    """What attention adds to each token: (B, T, C)."""
    raise NotImplementedError
