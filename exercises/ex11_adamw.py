"""
11. One step of AdamW.

Remember the mean of recent gradients g, and of their squares; step by the first divided by the root of the second.
Weight decay pulls w towards 0 on its own (decoupled): it never enters the gradient.

    m -> beta1 m + (1 - beta1) g          m_hat = m / (1 - beta1^t)
    v -> beta2 v + (1 - beta2) g^2        v_hat = v / (1 - beta2^t)
    w -> w - eta lambda w - eta m_hat / (sqrt(v_hat) + eps)

Shapes: w, g, m, v all have one shape, whatever it is. t counts the steps from 1; m and v are 0 before the first.

Hint: m_hat and v_hat undo the start at 0. Return m and v, not m_hat and v_hat. lambda w uses the w before the step.
Answer: gradus/optim.py, `build`, which takes torch.optim.AdamW.
"""



def adamw_step(w, g, m, v, t, eta, beta1, beta2, eps, weight_decay):
    """
    w: weights, g: their gradient, m, v: the two memories, all the same shape; t: number of this step, from 1;
    eta, beta1, beta2, eps, weight_decay (lambda): floats. Returns the new w, m, v.
    """
    raise NotImplementedError
