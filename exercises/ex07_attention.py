"""
Exercise 7: attention, one head, no mask.

Compare every query with every key, turn each row of the result into weights, and take the weighted mean of the values.

    Attention(Q, K, V) = softmax(Q K^T / sqrt(D)) V

    Q, K, V                    (T, D)   a row for each token
    Q K^T                      (T, T)   a row for each query, a column for each key
    softmax(Q K^T / sqrt(D))   (T, T)   each row sums to 1
    Attention(Q, K, V)         (T, D)   what you return

Hint: softmax runs along the keys, dim=-1. torch.softmax is allowed.
The answer, for afterwards: `attention_weights` in model.py, with mask='none', times V.
"""

import torch  # noqa: F401


def attention(Q, K, V):
    raise NotImplementedError
