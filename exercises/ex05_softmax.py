"""
Exercise 5: softmax with a temperature.

Turn the logits of each row into probabilities. A low temperature prefers the likely tokens, a high one evens them out.

    p_i = e^{x_i / T} / sum_n e^{x_n / T}

    x  (B, V)   logits: a row for each sequence, a column for each token of the vocabulary
    T  the temperature, a number above 0
    p  (B, V)   what you return; each row sums to 1

Hint: e^1000 is infinity. Subtract the largest logit of a row from the whole row first; p does not change.
The answer, for afterwards: `Sampler.distribution` in gradus/sampling.py.
"""

import torch  # noqa: F401


def softmax(x, T):
    raise NotImplementedError
