"""
Exercise 2: feedforward.

Send m images through all layers. The output of each layer is the input of the next one.

    a^1 = x,    z^l = w^l a^{l-1} + b^l,    a^l = sigma(z^l)    for l = 2..L

    weights  list of w^l (n_l, n_{l-1}), for l = 2..L
    biases   list of b^l (n_l, 1)
    x        (n_1, m)   an image in each column
    a^l      (n_l, m)
    a^L      (n_L, m)   what you return

Hint: in `w @ a + b`, the column b (n_l, 1) is added to every column of (n_l, m).
The answer, for afterwards: the feedforward part of `backprop` in mlp_mnist.py, and `MLP.forward` in model.py.
"""

import torch  # noqa: F401


def feedforward(weights, biases, x):
    raise NotImplementedError
