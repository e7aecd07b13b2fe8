"""
Exercise 11: one step of AdamW.

Keep running means of the gradient g and of its square, correct them for having started at 0, and take a step whose
size is adapted to each weight. Weight decay shrinks the weight itself; it never enters g.

    m <- beta1 m + (1 - beta1) g               m^ = m / (1 - beta1^t)
    v <- beta2 v + (1 - beta2) g^2             v^ = v / (1 - beta2^t)
    w <- w - eta (m^ / (sqrt(v^) + eps) + lambda w)

    w, g, m, v  (n, k)   weights, gradient, and the two running means; all have the same shape
    t           the number of this step: 1, 2, 3, ...
    eta, beta1, beta2, eps, weight_decay   numbers; weight_decay is lambda

Return the new w, m and v (n, k), three tensors in this order.

Common mistake: to return m^ and v^. They are for this step only; the next one needs m and v.
The answer, for afterwards: torch.optim.AdamW does the step in this repo; `gradus/optim.py` sets it up.
"""

import torch  # noqa: F401


def adamw_step(w, g, m, v, t, eta, beta1, beta2, eps, weight_decay):
    raise NotImplementedError
