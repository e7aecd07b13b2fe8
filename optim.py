"""
From gradients to better weights: AdamW and the learning rate at each step.

AdamW (Loshchilov & Hutter 2019): every weight moves by the mean of its recent gradients divided by
their recent size, so by about the learning rate a step whatever the gradient's scale; weight decay
pulls the matrices towards zero besides.
"""

import math

import torch

SCHEDULES = ('cosine', 'linear')


def param_groups(model, weight_decay):
    """Two groups, in nanoGPT's order: matrices and embeddings decay, biases and norms do not."""
    params = [p for p in model.parameters() if p.requires_grad]                 # a tied matrix comes once
    groups = [dict(params=[p for p in params if p.dim() >= 2], weight_decay=weight_decay),
              dict(params=[p for p in params if p.dim() < 2], weight_decay=0.0)]
    assert sorted(id(p) for g in groups for p in g['params']) == sorted(id(p) for p in params)
    return groups


def adamw(model, weight_decay, learning_rate, betas):
    """torch's AdamW over `param_groups`; fused (one pass over memory a step) where there is such a kernel."""
    fused = next(model.parameters()).device.type in ('cpu', 'cuda')
    return torch.optim.AdamW(param_groups(model, weight_decay), lr=learning_rate, betas=betas, fused=fused)


def load_state(optimizer, state):
    """
    Take the moments out of a checkpoint's optimizer state, and nothing else: learning rate, betas and decay
    stay what the config says. Raises ValueError if the parameters are not the same ones.
    """
    own = optimizer.state_dict()
    found = [len(g['params']) for g in state['param_groups']]
    expected = [len(g['params']) for g in own['param_groups']]
    if found != expected:
        raise ValueError(f'optimizer state for {found} tensors, expected {expected}')
    for n, param in enumerate(p for g in optimizer.param_groups for p in g['params']):
        for name, value in state['state'].get(n, {}).items():
            if isinstance(value, torch.Tensor) and value.shape not in (param.shape, ()):
                raise ValueError(f'{name} of shape {tuple(value.shape)} for a tensor of shape {tuple(param.shape)}')
    optimizer.load_state_dict(dict(state=state['state'], param_groups=own['param_groups']))


def learning_rate_at(step, learning_rate, min_lr, warmup_iters, lr_decay_iters, schedule='cosine', cooldown=0.4):
    """
    The learning rate of step 0, 1, 2, ...: up linearly over warmup_iters, then down to min_lr at lr_decay_iters.

    cosine: half a cosine wave, as in nanoGPT and GPT-3.  linear: constant, then straight down over the last
    `cooldown` of lr_decay_iters (Hagele et al. 2024: as good, and any run can be extended before it cools).
    """
    if step < warmup_iters:
        return learning_rate * (step + 1) / (warmup_iters + 1)
    if step >= lr_decay_iters:
        return min_lr
    if schedule == 'cosine':
        done = (step - warmup_iters) / (lr_decay_iters - warmup_iters)
        share = 0.5 * (1 + math.cos(math.pi * done))
    else:
        share = min(1.0, (lr_decay_iters - step) / max(1, min(cooldown * lr_decay_iters, lr_decay_iters - warmup_iters)))
    return min_lr + share * (learning_rate - min_lr)
