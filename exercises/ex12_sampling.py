"""
Exercise 12: draw the next token.

Divide the logits by the temperature, keep the k largest, turn them into probabilities, and draw a token with the given
random number u: the first one whose cumulative probability is greater than u (inverse CDF).

    p = softmax(x / T), 0 for all but the k largest;    id = the first i with p_0 + ... + p_i > u

    x   (V,)   logits
    T   the temperature; 0 means: take the most likely token
    k   how many tokens to keep, 1..V
    u   a random number, at least 0 and less than 1
    id  ()     a whole number from 0 to V-1: what you return, as an int or a tensor of one number

Hint: set the logits outside the top k to -infinity, and keep the order of the tokens. torch.topk, cumsum.
Common mistake: `>= u` instead of `> u` draws a token of probability 0 if u is 0.
The answer, for afterwards: `Sampler.distribution` and `Sampler.draw` in gradus/sampling.py.
"""

import torch  # noqa: F401


def draw(x, T, k, u):
    raise NotImplementedError
