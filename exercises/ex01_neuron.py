"""
Exercise 1: a neuron.

A neuron multiplies each input by its weight, adds the products and a bias, and squeezes the sum into 0 to 1.

    a = sigma(w . x + b),    sigma(z) = 1 / (1 + e^-z)

    w  (n,)   one weight for each input
    x  (n,)   the inputs
    b  ()     one number
    a  ()     one number: what you return

Common mistake: `w * x` alone is n products. Their sum is missing.
The answer, for afterwards: `MLP.forward` in model.py, whose layers are many neurons side by side.
"""

import torch  # noqa: F401


def neuron(w, x, b):
    raise NotImplementedError
