"""
Exercise 8: the causal mask.

A token must not see the tokens after it. Mask the scores, then turn each row into weights.

    softmax(S + M),    M_ij = 0 if j <= i, else -infinity

    S        (T, T)   Q K^T / sqrt(D): a row for each query i, a column for each key j
    M        (T, T)
    weights  (T, T)   what you return: 0 above the diagonal; each row sums to 1

Common mistake: to set the weights to 0 after the softmax. The rows then no longer sum to 1.
The answer, for afterwards: `attention_weights` in model.py.
"""

import torch  # noqa: F401


def masked_weights(S):
    raise NotImplementedError
