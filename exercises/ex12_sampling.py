"""
Exercise 12: draw the next token.

    logits     (V,)   one number for each token of the vocabulary
    T                 temperature; 0 means: the most likely token, without any chance
    top_k             only the k most likely tokens can be drawn
    u                 a random number, at least 0 and less than 1
    result            the id of the token, an int

Set the logits of all but the top_k tokens to minus infinity, turn the logits into probabilities with temperature T, and
take the first id whose cumulative probability p_0 + p_1 + ... + p_id is more than u. So a token with a probability of
0.3 is drawn by 30% of all u.

Hint: torch.topk, torch.softmax and torch.cumsum are allowed. Divide by T only if it is not 0.

The answer: `Sampler` in gradus/sampling.py.
"""

import torch  # noqa: F401


def draw(logits, T, top_k, u):
    """The id of the next token, an int."""
    raise NotImplementedError
