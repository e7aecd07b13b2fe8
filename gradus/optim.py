"""
From gradients to better weights: AdamW, Muon, and the learning rate at each step.

AdamW (Loshchilov & Hutter 2019): every weight moves by the mean of its recent gradients divided by their recent size:
about the learning rate each step, whatever the gradient's scale. Weight decay also pulls the matrices towards zero.

Muon (Jordan et al. 2024) does the same for whole matrices: the mean of a matrix's recent gradients, G = U S V^T, is
replaced by U V^T. Every direction of the matrix moves by the learning rate, not only the few that dominate the
gradient. It is used for the matrices of the blocks; embeddings and vectors stay with AdamW.
"""

import math
from inspect import unwrap

import torch

from gradus.errors import UserError, one_line, show

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)         # what weights and moments may be
SCHEDULES = ('cosine', 'linear')
OPTIMIZERS = ('adamw', 'muon')


class Eager:
    """
    The methods of torch.optim without their decorators, which exempt them from torch.compile. The first call of a
    decorated one imports all of torch.compile, 800 modules in about a second, and we never compile an optimizer.
    """
    add_param_group = unwrap(torch.optim.Optimizer.add_param_group)
    state_dict = unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = unwrap(torch.optim.Optimizer.load_state_dict)
    zero_grad = unwrap(torch.optim.Optimizer.zero_grad)


class AdamW(Eager, torch.optim.AdamW):
    """torch.optim.AdamW: the same bits, the same state."""
    step = torch.no_grad()(unwrap(torch.optim.AdamW.step))


class SGD(Eager, torch.optim.SGD):
    """torch.optim.SGD."""
    step = torch.no_grad()(unwrap(torch.optim.SGD.step))


def param_groups(model, weight_decay):
    """Two groups, in nanoGPT's order: matrices and embeddings decay, biases and norms do not."""
    params = [p for p in model.parameters() if p.requires_grad]                 # a tied matrix appears once
    groups = [
        dict(params=[p for p in params if p.dim() >= 2], weight_decay=weight_decay),
        dict(params=[p for p in params if p.dim() < 2], weight_decay=0.0),
    ]
    assert_owned_once(groups, model)
    return groups


def muon_groups(model, weight_decay):
    """
    The matrices of the blocks for Muon, with weight decay; everything else (embeddings, unembedding, biases, norms) for
    AdamW, without. c_attn holds three matrices, W_Q, W_K, W_V, on top of each other: `rows` is how many rows each has.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    blocks = {name: p for name, p in named if '.h.' in name and p.dim() == 2}
    rest = [p for name, p in named if name not in blocks]
    attention = [p for name, p in blocks.items() if name.endswith('c_attn.weight')]
    others = [p for name, p in blocks.items() if not name.endswith('c_attn.weight')]
    rows = model.transformer.h[0].attn.widths
    groups = [
        dict(params=rest, weight_decay=0.0),
        dict(params=attention, weight_decay=weight_decay, rows=rows, momentum=FIRST_MOMENTUM),
        dict(params=others, weight_decay=weight_decay, rows=None, momentum=FIRST_MOMENTUM),
    ]
    assert_owned_once(groups, model)
    return groups


def assert_owned_once(groups, model):
    """Every trainable parameter of the model is in exactly one group."""
    owned = sorted(id(p) for group in groups for p in group['params'])
    assert owned == sorted(id(p) for p in model.parameters() if p.requires_grad)


def build(model, optimizer, weight_decay, learning_rate, betas, dtype=torch.float32):
    """
    The optimizer of that name, one of OPTIMIZERS; fused AdamW (one pass over memory a step) where such a kernel exists.
    dtype is that of Muon's matmuls: 16 bits are precise enough, and faster where the hardware supports them.
    """
    fused = next(model.parameters()).device.type in ('cpu', 'cuda')
    if optimizer == 'adamw':
        return AdamW(param_groups(model, weight_decay), lr=learning_rate, betas=betas, fused=fused)
    return Muon(muon_groups(model, weight_decay), dtype, lr=learning_rate, betas=betas, fused=fused)


# Five steps with these take every singular value in 0.01 .. 1 to 0.7 .. 1.2: steep at zero, but not converging to 1.
QUINTIC = (3.4445, -4.7750, 2.0315)

# Muon's momentum rises from the first value to the last over the first steps: a young average should forget sooner.
FIRST_MOMENTUM = 0.85
LAST_MOMENTUM = 0.95
MOMENTUM_STEPS = 300


def orthogonalize(matrices, dtype=torch.float32, steps=5):
    """
    About U V^T for each matrix U S V^T of a stack (n, rows, cols): singular values become 0.7 to 1.2, small ones less.

    No decomposition, matmuls only: X <- a X + b (X X^T) X + c (X X^T)^2 X applies a s + b s^3 + c s^5 to all singular
    values s at once, and brings them towards 1. Newton-Schulz iteration, in `dtype`; coefficients: Jordan et al. 2024.
    """
    (a, b, c), tall = QUINTIC, matrices.size(1) > matrices.size(2)
    x = (matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp_min(1e-30)).to(dtype)   # singular values: at most 1
    x = x.mT if tall else x                                                     # (n, r, c), r <= c: smaller products
    for _ in range(steps):
        s = x @ x.mT                                                            # (n, r, r)
        x = torch.baddbmm(x, torch.baddbmm(s, s, s, beta=b, alpha=c), x, beta=a)  # (n, r, c)
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(AdamW):
    """
    Muon for the groups that have `rows`, AdamW for the others.

    M <- mu M + (1 - mu) G,  W <- (1 - lr wd) W - lr sqrt(max(1, rows / cols)) orthogonalize(mu M + (1 - mu) G)
    """

    def __init__(self, groups, dtype=torch.float32, **adamw):
        super().__init__(groups, **adamw)
        self.dtype = dtype
        self._step_supports_amp_scaling = False       # AdamW's fused kernel unscales gradients itself, Muon does not

    def __setstate__(self, state):
        torch.optim.Optimizer.__setstate__(self, state)   # AdamW's own expects a step count for every parameter

    def look_ahead(self, group, params):
        """
        Update the momentum of a group's matrices, apply weight decay, and return mu M + (1 - mu) G for each. All at
        once: on a GPU, one matrix at a time would cost more to launch than to compute.
        """
        for p in params:
            if not self.state[p]:
                self.state[p]['momentum_buffer'] = torch.zeros_like(p)
        grads = [p.grad for p in params]
        means = [self.state[p]['momentum_buffer'] for p in params]
        torch._foreach_lerp_(means, grads, 1 - group['momentum'])
        torch._foreach_mul_(params, 1 - group['lr'] * group['weight_decay'])
        return torch._foreach_lerp(grads, means, group['momentum'])             # Nesterov: look ahead

    @torch.no_grad()
    def step(self, closure=None):
        # Collect what is to be orthogonalized, by shape.
        by_shape = {}
        for group in self.param_groups:
            params = [p for p in group['params'] if 'rows' in group and p.grad is not None]
            updates = self.look_ahead(group, params) if params else []
            for p, update in zip(params, updates):
                p.grad = None                         # AdamW skips it
                rows = group['rows'] or len(p)
                for w, u in zip(p.split(rows), update.split(rows)):
                    by_shape.setdefault((w.shape, group['lr']), []).append((w, u))

        # Orthogonalize matrices of one shape as one stack.
        for ((rows, cols), lr), matrices in by_shape.items():
            weights, updates = zip(*matrices)
            updates = orthogonalize(torch.stack(updates), self.dtype)           # (n, rows, cols)
            torch._foreach_add_(weights, updates.unbind(), alpha=-lr * math.sqrt(max(1, rows / cols)))

        return super().step(closure)                  # AdamW for everything else


def set_step(optimizer, step, learning_rate):
    """Set what depends on the step: the learning rate of every group, and the momentum of Muon's."""
    progress = min(1, step / MOMENTUM_STEPS)
    for group in optimizer.param_groups:
        group['lr'] = learning_rate
        if 'rows' in group:
            group['momentum'] = FIRST_MOMENTUM + (LAST_MOMENTUM - FIRST_MOMENTUM) * progress


def load_state(optimizer, checkpoint, path, scaler=None):
    """
    Load the moments from a checkpoint's optimizer state, and the loss scaler's state; learning rate, betas and weight
    decay stay what the config says. Raises UserError, which names `path`, if they are not those of these parameters.
    """
    try:
        _load_moments(optimizer, checkpoint['optimizer'])
        if scaler is not None:
            _load_scaler(scaler, checkpoint.get('scaler'))
    except (LookupError, ValueError, TypeError, AttributeError, RuntimeError) as e:
        raise UserError(f'{path}: no optimizer state to resume from ({one_line(e)})') from e


def _load_moments(optimizer, found):
    # The groups must be the same.
    own = optimizer.state_dict()
    if not all(isinstance(group, dict) for group in found['param_groups']):
        raise ValueError(f"param_groups is {show(found['param_groups'])}, expected a list of dictionaries")
    n_found = [len(group['params']) for group in found['param_groups']]
    n_expected = [len(group['params']) for group in own['param_groups']]
    if n_found != n_expected:
        raise ValueError(f'optimizer state for {show(n_found)} tensors, expected {n_expected}')

    # What there is of each parameter: for all of them, or, before the first step, for none.
    state = {}
    n = 0
    for group in optimizer.param_groups:
        for param in group['params']:
            values = found['state'].get(n, {})
            if not isinstance(values, dict):
                raise ValueError(f'the state of tensor {n} is {show(values)}, expected a dictionary')
            if values:
                state[n] = {name: _moment(name, values[name], param) for name in _moment_names(optimizer, group)}
            n += 1
    if state and len(state) < n:
        raise ValueError(f'optimizer state for {len(state)} of {n} tensors')
    optimizer.load_state_dict(dict(state=state, param_groups=own['param_groups']))


def _moment_names(optimizer, group):
    """What the optimizer remembers of each parameter of the group."""
    if 'rows' in group:                               # Muon's
        return ('momentum_buffer',)
    if isinstance(optimizer, torch.optim.AdamW):
        return ('step', 'exp_avg', 'exp_avg_sq')
    return ()                                         # SGD


def _moment(name, value, param):
    """
    A copy of one value, in memory of its own: fused kernels trust shape and strides, whatever the memory behind them.
    Raises ValueError unless it is a number of steps, or a floating tensor of the parameter's shape.
    """
    if name == 'step':
        if isinstance(value, torch.Tensor) and value.numel() == 1:
            value = value.item()
        return torch.tensor(_number(name, value))
    if not isinstance(value, torch.Tensor):
        raise ValueError(f'{name} is {show(value)}, expected a tensor')
    ordinary = value.layout == torch.strided and value.device.type != 'meta' and value.dtype in FLOATS
    if not ordinary or value.shape != param.shape:
        raise ValueError(f'{name} of shape {tuple(value.shape)}, {value.dtype}, {value.layout}, for a tensor of shape '
                         f'{tuple(param.shape)}, {param.dtype}')
    if not value.isfinite().all():
        raise ValueError(f'{name} holds NaN or infinity')
    return value.detach().clone(memory_format=torch.contiguous_format)


def _number(name, value):
    """`value` as a float. Raises ValueError unless it is a finite number of 0 or more."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 2 ** 63:
        raise ValueError(f'{name} is {show(value)}, expected a number of 0 or more')
    return float(value)


def _load_scaler(scaler, found):
    own = scaler.state_dict()                         # empty if it is disabled
    if not own or not found:
        return
    scaler.load_state_dict({name: type(value)(_number(name, found[name])) for name, value in own.items()})


def learning_rate_at(step, learning_rate, min_lr, warmup_iters, lr_decay_iters, schedule='cosine', cooldown=0.4):
    """
    The learning rate of step 0, 1, 2, ...: linear warm-up over warmup_iters, then decay to min_lr at lr_decay_iters.

    cosine: half a cosine wave, as in nanoGPT and GPT-3.  linear: constant, then linear over the last `cooldown` (a
    fraction) of lr_decay_iters (Hagele et al. 2024: as good, and a run can be extended until it cools down).
    """
    if step < warmup_iters:
        return learning_rate * (step + 1) / (warmup_iters + 1)
    if step >= lr_decay_iters:
        return min_lr
    if schedule == 'cosine':
        progress = (step - warmup_iters) / (lr_decay_iters - warmup_iters)
        coeff = 0.5 * (1 + math.cos(math.pi * progress))
    else:
        cooldown_iters = min(cooldown * lr_decay_iters, lr_decay_iters - warmup_iters)
        coeff = min(1.0, (lr_decay_iters - step) / max(1, cooldown_iters))
    return min_lr + coeff * (learning_rate - min_lr)
