"""
Exercise 2: feedforward.

The activations of each layer are the inputs of the next one:

    a^1 = x
    z^l = w^l a^{l-1} + b^l        for l = 2, 3, ..., L
    a^l = sigma(z^l)

All m images go through together, each in a column of its own:

    x             (n_1, m)             m images of n_1 pixels
    weights[i]    (n_{i+2}, n_{i+1})   w^{i+2}: the list begins with w^2
    biases[i]     (n_{i+2}, 1)         b^{i+2}
    result        (n_L, m)             a^L

Hint: a bias (n, 1) is added to every column of (n, m) by itself: broadcasting. torch.sigmoid is allowed.

The answer: the first half of `backprop` in mlp_mnist.py.
"""

import torch  # noqa: F401


def feedforward(weights, biases, x):
    """The activations a^L (n_L, m) of the last layer."""
    raise NotImplementedError
