"""
12. Sampling: from logits to the next token.

Sharpen or flatten with the temperature tau, keep the k most likely ids, then draw with a random number u from [0, 1):

    z -> z / tau        z_j -> -inf unless among the k largest        p = softmax(z)
    the id is the first j with p_0 + p_1 + ... + p_j > u        (inverse CDF)

tau = 0 means the most likely id. k = 0 keeps all.

Shapes: logits (V,), p (V,), the cumulative sums (V,); the result is one id, 0 .. V-1.

Hint: torch.cumsum makes the sums. Sum in the order of the ids, not of the probabilities. It is > u, not >= u: with
u = 0, an id of probability 0 must not be drawn.
Answer: gradus/sampling.py, `keep_top_k` and `Sampler.draw`.
"""



def sample(logits, tau, k, u):
    """logits (V,); tau: temperature, a float >= 0; k: an int >= 0; u: a float, 0 <= u < 1. Returns the id, an int."""
    raise NotImplementedError
