"""
Exercise 8: the mask.

A token that is to be predicted must not be seen. So the scores of all later tokens become minus infinity, and after the
softmax their weights are 0:

    weights = softmax(scores + M)        M_ij = 0 if j <= i, else -infinity

    scores   (T, T)   row i: how well query i matches each key
    result   (T, T)   each row sums to 1, everything above the diagonal is 0

Hint: torch.ones(T, T).tril() is 1 on and below the diagonal; masked_fill needs it as a boolean tensor.

The answer: `attention_weights` in model.py.
"""

import torch  # noqa: F401


def masked_softmax(scores):
    """The attention weights (T, T)."""
    raise NotImplementedError
