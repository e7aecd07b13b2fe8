"""
Exercise 11: a step of AdamW.

Gradient descent with a step size for each weight: the mean of the last gradients, divided by their typical size.

    m -> beta1 m + (1 - beta1) g                     mean of the gradients
    v -> beta2 v + (1 - beta2) g^2                   mean of their squares
    m^ = m / (1 - beta1^t)                           both begin at 0; this corrects for it
    v^ = v / (1 - beta2^t)
    w -> w - eta lambda w - eta m^ / (sqrt(v^) + eps)

    w, g, m, v    all of the same shape: weights, their gradient, the two means
    t             which step this is: 1, 2, 3, ...
    eta           learning rate; lambda_: weight decay, which is not part of the gradient (the W of AdamW)

Return new tensors; leave the old ones as they are.

The answer: torch.optim.AdamW; gradus/optim.py says which weights are decayed.
"""

import torch  # noqa: F401


def adamw_step(w, g, m, v, t, eta, beta1, beta2, eps, lambda_):
    """The new w, m and v."""
    raise NotImplementedError
