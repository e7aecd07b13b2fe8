"""
Exercise 3: backpropagation, the four equations.

The cost of one image is C = |y - a^L|^2 / 2. How does it change with each weight and each bias?

    delta^L     = (a^L - y) * sigma'(z^L)                      BP1, the error of the output
    delta^l     = ((w^{l+1})^T delta^{l+1}) * sigma'(z^l)      BP2, from layer to layer, backwards
    dC/db^l_j   = delta^l_j                                    BP3
    dC/dw^l_jk  = a^{l-1}_k delta^l_j                          BP4

where sigma'(z) = sigma(z) (1 - sigma(z)), and * multiplies number by number. Go forward as in exercise 2 and keep the
activations of every layer; then go back. The gradients of the m images are summed:

    x             (n_1, m)             an image in each column
    y             (n_L, m)             1 for the digit that it is, else 0
    weights[i]    (n_{i+2}, n_{i+1})
    biases[i]     (n_{i+2}, 1)
    nabla_w[i]    shaped like weights[i]
    nabla_b[i]    shaped like biases[i]

Hint: the shapes leave only one way to multiply: (n_l, m) times (m, n_{l-1}) is the sum over the images of BP4.

The answer: `backprop` in mlp_mnist.py.
"""

import torch  # noqa: F401


def backprop(weights, biases, x, y):
    """The lists nabla_w and nabla_b."""
    raise NotImplementedError
