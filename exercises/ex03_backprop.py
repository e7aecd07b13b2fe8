"""
Exercise 3: backpropagation.

Find the derivative of the cost with respect to every weight and bias, without autograd. The cost of one image is
C = |y - a^L|^2 / 2; add up the derivatives of all m images. All layers use the sigmoid, sigma'(z) = a (1 - a).

    BP1    delta^L = (a^L - y) * sigma'(z^L)                            (n_L, m)
    BP2    delta^l = ((w^{l+1})^T delta^{l+1}) * sigma'(z^l)            (n_l, m)
    BP3    dC/db^l_j = delta^l_j                                        (n_l, 1), after the sum over images
    BP4    dC/dw^l_jk = a^{l-1}_k delta^l_j                             (n_l, n_{l-1}), after the sum over images

    weights  list of w^l (n_l, n_{l-1}), for l = 2..L
    biases   list of b^l (n_l, 1)
    x        (n_1, m)   an image in each column
    y        (n_L, m)   1 for the right digit, else 0

Return two lists, nabla_w and nabla_b, in the order and shapes of weights and biases.

Hint: remember a^l of every layer on the way forward. `delta @ a.T` does BP4 and the sum over the images at once.
The answer, for afterwards: `backprop` in mlp_mnist.py.
"""

import torch  # noqa: F401


def backprop(weights, biases, x, y):
    raise NotImplementedError
