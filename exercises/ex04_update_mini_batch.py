"""
Exercise 4: a step of stochastic gradient descent.

Move every weight and every bias a little against its gradient, which is the mean over the m images of the mini-batch:

    w^l -> w^l - eta / m * sum of dC/dw^l
    b^l -> b^l - eta / m * sum of dC/db^l

    weights[i]    (n_{i+2}, n_{i+1})
    biases[i]     (n_{i+2}, 1)
    x             (n_1, m)             the mini-batch, an image in each column
    y             (n_L, m)
    eta                                the learning rate, a number
    backprop                           the function of exercise 3, given: it returns the sums nabla_w, nabla_b

Return new lists; leave the old tensors as they are.

The answer: `update_mini_batch` in mlp_mnist.py, which changes them in place.
"""

import torch  # noqa: F401


def update_mini_batch(weights, biases, x, y, eta, backprop):
    """The lists of the new weights and the new biases."""
    raise NotImplementedError
