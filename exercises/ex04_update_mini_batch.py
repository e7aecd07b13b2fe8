"""
Exercise 4: a step downhill.

Move every weight and bias against the mean gradient of the m images. Change the tensors in the lists in place.

    w^l -> w^l - eta / m  sum_x dC_x/dw^l
    b^l -> b^l - eta / m  sum_x dC_x/db^l

    weights  list of w^l (n_l, n_{l-1}), for l = 2..L
    biases   list of b^l (n_l, 1)
    x        (n_1, m)   an image in each column
    y        (n_L, m)   1 for the right digit, else 0
    eta      the learning rate, a number

Return nothing. `backprop(weights, biases, x, y)` gives you the sums over the images, nabla_w and nabla_b. If you have
solved exercise 3, import your own: from exercises.ex03_backprop import backprop.

Common mistake: `w = w - ...` makes a new tensor, and the one in the list stays as it was. `w -= ...` changes it.
The answer, for afterwards: `update_mini_batch` in mlp_mnist.py.
"""

from mlp_mnist import backprop  # noqa: F401


def update_mini_batch(weights, biases, x, y, eta):
    raise NotImplementedError
