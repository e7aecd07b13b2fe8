"""
Exercise 1: a neuron.

A neuron weighs its inputs, adds a bias, and squeezes the sum into the range from 0 to 1:

    a = sigma(w . x + b)        sigma(z) = 1 / (1 + e^(-z))

    x    (n,)   the inputs, such as 784 pixels
    w    (n,)   a weight for each input
    b    ()     the bias, one number
    a    ()     the activation, one number

Write sigma yourself, with torch.exp.

The answer: `MLP.forward` in model.py, which does this for many neurons and many images at once.
"""

import torch  # noqa: F401


def neuron(w, x, b):
    """The activation a of one neuron, a tensor of shape ()."""
    raise NotImplementedError
