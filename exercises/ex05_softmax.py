"""
Exercise 5: softmax with temperature.

It turns any numbers (logits) into probabilities: positive, and they sum to 1.

    p_i = e^(x_i / T) / sum over n of e^(x_n / T)

    logits    (B, V)   for each of B texts, a number for each token of the vocabulary
    T                  the temperature, more than 0: low for the likely tokens, high for a flat distribution
    result    (B, V)   each row sums to 1

It must work for logits of 1000, too, whose exponential is infinite.

Hint: subtracting the same number from all logits of a row changes nothing.

The answer: `Sampler.distribution` in gradus/sampling.py. torch.softmax is not allowed here.
"""

import torch  # noqa: F401


def softmax(logits, T):
    """The probabilities (B, V)."""
    raise NotImplementedError
