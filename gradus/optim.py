"""
From gradients to better weights: AdamW, Muon, and the learning rate at each step.

AdamW (Loshchilov & Hutter 2019): every weight moves by the mean of its recent gradients divided by
their recent size, so by about the learning rate a step whatever the gradient's scale; weight decay
pulls the matrices towards zero besides.

Muon (Jordan et al. 2024) does the same for whole matrices: the mean of a matrix's recent gradients, G = U S V^T,
is replaced by U V^T. Every direction of the matrix moves by the learning rate, not only the few that most of the
gradient points to. That is for the matrices of the blocks; what looks words up (embeddings) and vectors stay with AdamW.
"""

import math

import torch

SCHEDULES = ('cosine', 'linear')
OPTIMIZERS = ('adamw', 'muon')


def param_groups(model, weight_decay):
    """Two groups, in nanoGPT's order: matrices and embeddings decay, biases and norms do not."""
    params = [p for p in model.parameters() if p.requires_grad]                 # a tied matrix comes once
    groups = [dict(params=[p for p in params if p.dim() >= 2], weight_decay=weight_decay),
              dict(params=[p for p in params if p.dim() < 2], weight_decay=0.0)]
    return owned_once(groups, model)


def muon_groups(model, weight_decay):
    """
    The matrices of the blocks for Muon, with weight decay; embeddings, unembedding, biases and norms for AdamW, without.
    c_attn holds three matrices, W_Q, W_K, W_V, one below the other: `rows` tells how many rows each has.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    blocks = [(name, p) for name, p in named if '.h.' in name and p.dim() == 2]
    attention = [p for name, p in blocks if name.endswith('c_attn.weight')]
    alone = [p for name, p in blocks if not name.endswith('c_attn.weight')]
    mine = {id(p) for _, p in blocks}
    groups = [dict(params=[p for _, p in named if id(p) not in mine], weight_decay=0.0),
              dict(params=attention, weight_decay=weight_decay, rows=model.transformer.h[0].attn.widths, momentum=MOMENTUM[0]),
              dict(params=alone, weight_decay=weight_decay, rows=None, momentum=MOMENTUM[0])]
    return owned_once(groups, model)


def owned_once(groups, model):
    """The groups, after a look that each of the model's parameters is in exactly one of them."""
    assert sorted(id(p) for g in groups for p in g['params']) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    return groups


def build(model, optimizer, weight_decay, learning_rate, betas, dtype=torch.float32):
    """
    The optimizer of that name, one of OPTIMIZERS; fused AdamW (one pass over memory a step) where there is such a kernel.
    dtype is that of Muon's matmuls: 16 bits are precise enough, and faster where there is hardware for them.
    """
    fused = next(model.parameters()).device.type in ('cpu', 'cuda')
    if optimizer == 'adamw':
        return torch.optim.AdamW(param_groups(model, weight_decay), lr=learning_rate, betas=betas, fused=fused)
    return Muon(muon_groups(model, weight_decay), dtype, lr=learning_rate, betas=betas, fused=fused)


# Five steps with these take every singular value from 0.01 .. 1 to 0.7 .. 1.2: steep at zero, at the price of not settling at 1.
QUINTIC = (3.4445, -4.7750, 2.0315)
MOMENTUM = (0.85, 0.95, 300)    # at first, at last, and the steps between them: young averages should forget sooner


def orthogonalize(matrices, dtype=torch.float32, steps=5):
    """
    U V^T of each matrix U S V^T of a stack (n, rows, cols), about: its singular values become 0.7 to 1.2, small ones less.

    No decomposition, matmuls only: X <- a X + b (X X^T) X + c (X X^T)^2 X applies a s + b s^3 + c s^5 to all singular
    values s at once, and brings them towards 1. Newton-Schulz iteration, in `dtype`; coefficients from Jordan et al. 2024.
    """
    (a, b, c), tall = QUINTIC, matrices.size(1) > matrices.size(2)
    x = (matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp_min(1e-30)).to(dtype)   # all singular values are at most 1
    x = x.mT if tall else x                                                     # (n, r, c) with r <= c: the smaller products
    for _ in range(steps):
        s = x @ x.mT                                                            # (n, r, r)
        x = torch.baddbmm(x, torch.baddbmm(s, s, s, beta=b, alpha=c), x, beta=a)  # (n, r, c)
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(torch.optim.AdamW):
    """
    Muon for the groups that have `rows`, AdamW for the others. Matrices of one shape are orthogonalized as one stack.

    M <- mu M + (1 - mu) G,  W <- (1 - lr wd) W - lr sqrt(max(1, rows / cols)) orthogonalize(mu M + (1 - mu) G)
    """

    def __init__(self, groups, dtype=torch.float32, **adamw):
        super().__init__(groups, **adamw)
        self.dtype = dtype
        self._step_supports_amp_scaling = False       # AdamW's fused kernel unscales by itself, Muon does not

    def __setstate__(self, state):
        torch.optim.Optimizer.__setstate__(self, state)   # AdamW's own expects a step count for every parameter

    @torch.no_grad()
    def step(self, closure=None):
        by_shape = {}
        for group in (g for g in self.param_groups if 'rows' in g):
            for p in (p for p in group['params'] if p.grad is not None):
                state = self.state[p]
                if not state:
                    state['momentum_buffer'] = torch.zeros_like(p)
                mean = state['momentum_buffer'].lerp_(p.grad, 1 - group['momentum'])
                update = p.grad.lerp(mean, group['momentum'])                   # Nesterov: a look ahead
                p.mul_(1 - group['lr'] * group['weight_decay'])
                p.grad = None                         # AdamW passes over it
                rows = group['rows'] or len(p)
                for w, u in zip(p.split(rows), update.split(rows)):
                    by_shape.setdefault(w.shape, []).append((w, u, group['lr']))
        for (rows, cols), matrices in by_shape.items():
            weights, updates, rates = zip(*matrices)
            updates = orthogonalize(torch.stack(updates), self.dtype)           # (n, rows, cols)
            for w, u, lr in zip(weights, updates, rates):
                w.add_(u, alpha=-lr * math.sqrt(max(1, rows / cols)))
        return super().step(closure)


def set_step(optimizer, step, learning_rate):
    """Give every group what it needs to know of step `step`: the learning rate, and Muon its momentum."""
    first, last, n = MOMENTUM
    for group in optimizer.param_groups:
        group['lr'] = learning_rate
        if 'rows' in group:
            group['momentum'] = first + (last - first) * min(1, step / n)


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
