"""
Exercise 7: attention with one head.

Each of T tokens asks (its query), each of S tokens offers a key and a value. The answer is the mean of the values,
weighted by how well query and key match:

    Attention(Q, K, V) = softmax(Q K^T / sqrt(D)) V

    Q        (T, D)
    K        (S, D)
    V        (S, E)
    result   (T, E)

Hint: Q K^T is (T, S), one row for each query. So each row must sum to 1 after the softmax.

The answer: `attention_weights` in model.py. torch.softmax is allowed, scaled_dot_product_attention is not.
"""

import torch  # noqa: F401


def attention(Q, K, V):
    """The answers (T, E)."""
    raise NotImplementedError
