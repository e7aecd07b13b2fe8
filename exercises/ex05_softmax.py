"""
5. Softmax with temperature.

Turn any V numbers (logits) into V probabilities. A low temperature tau sharpens them, a high one flattens them:

    p_j = e^{z_j / tau} / sum_k e^{z_k / tau}

Shapes: z (m, V), a distribution in each row; p (m, V). Each row sums to 1.

Hint: e^1000 is infinite in float32, and inf / inf is nan. Subtract the row's maximum first: the result is the same,
because numerator and denominator shrink by the same factor.
Answer: gradus/sampling.py, `Sampler.draw`, which calls torch's softmax.
"""



def softmax(z, tau):
    """z: logits (m, V); tau: temperature, a float > 0. Returns probabilities (m, V). Do not call torch.softmax."""
    raise NotImplementedError
