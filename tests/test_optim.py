"""Learning-rate curves against straight formulas, parameter groups, and the state that comes back."""

import math

import pytest
import torch
from conftest import sha256_of

import optim
from model import GPT, GPTConfig

CURVE = dict(learning_rate=3e-3, min_lr=2e-4, warmup_iters=10, lr_decay_iters=110)


def curve(n=130, **changes):
    return [optim.learning_rate_at(step, **{**CURVE, **changes}) for step in range(n)]


def test_cosine_is_nanogpts():
    for step, lr in enumerate(curve()):
        if step < 10:
            expected = 3e-3 * (step + 1) / 11
        elif step <= 110:
            expected = 2e-4 + 0.5 * (1 + math.cos(math.pi * (step - 10) / 100)) * (3e-3 - 2e-4)
        else:
            expected = 2e-4
        assert lr == pytest.approx(expected, rel=1e-12)


def test_linear_is_a_trapezoid():
    lr = curve(schedule='linear', cooldown=0.3)
    assert lr[10:77] == [3e-3] * 67 and lr[110:] == [2e-4] * 20
    falls = [a - b for a, b in zip(lr[77:110], lr[78:111])]
    assert falls == pytest.approx([(3e-3 - 2e-4) / 33] * 33)


@pytest.mark.parametrize('schedule', optim.SCHEDULES)
@pytest.mark.parametrize('warmup, decay', [(0, 0), (10, 10), (20, 10), (0, 1), (1, 0), (0, 100), (100, 0), (9, 10)])
@pytest.mark.parametrize('cooldown', [0.0, 0.4, 1.0])
def test_edges_are_safe(schedule, warmup, decay, cooldown):
    """No division by zero, never outside [0, peak], never up again after the warm-up."""
    lr = curve(schedule=schedule, warmup_iters=warmup, lr_decay_iters=decay, cooldown=cooldown)
    assert all(0 < x <= 3e-3 for x in lr)
    assert all(a >= b for a, b in zip(lr[warmup:], lr[warmup + 1:])) and all(a < b for a, b in zip(lr[:warmup], lr[1:warmup]))


def small(**changes):
    torch.manual_seed(0)
    return GPT(GPTConfig(**{**dict(block_size=8, vocab_size=11, n_layer=1, n_head=2, n_embd=8), **changes}))


def test_matrices_decay_and_vectors_do_not():
    model = small(qk_norm=True)
    decay, no_decay = optim.param_groups(model, 0.3)
    names = {id(p): n for n, p in model.named_parameters()}
    assert decay['weight_decay'] == 0.3 and no_decay['weight_decay'] == 0.0
    assert all(n.endswith(('bias', 'ln_1.weight', 'ln_2.weight', 'ln_f.weight', 'norm.weight')) for n in (names[id(p)] for p in no_decay['params']))
    owned = [id(p) for p in decay['params'] + no_decay['params']]
    assert len(owned) == len(set(owned)) == len(list(model.parameters()))


def test_adamw_is_adamw():
    """Two steps, one learning rate apart, against the formula of the paper written out."""
    model = small()
    params = list(model.parameters())
    expected = [p.detach().double() for p in params]
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in expected]
    optimizer = optim.adamw(model, 0.1, 1e-2, (0.8, 0.9))
    for t, lr in enumerate((1e-2, 3e-3), start=1):
        for group in optimizer.param_groups:
            group['lr'] = lr
        for i, p in enumerate(params):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(t * 100 + i))
            g, (m, v) = p.grad.double(), moments[i]
            m.mul_(0.8).add_(0.2 * g)
            v.mul_(0.9).add_(0.1 * g * g)
            expected[i] *= 1 - lr * (0.1 if p.dim() >= 2 else 0.0)
            expected[i] -= lr * (m / (1 - 0.8 ** t)) / ((v / (1 - 0.9 ** t)).sqrt() + 1e-8)
        optimizer.step()
    assert all(torch.allclose(p.double(), e, atol=1e-6) for p, e in zip(params, expected))


def test_state_comes_back_without_the_old_settings():
    model = small()
    old = optim.adamw(model, 0.1, 1e-2, (0.8, 0.9))
    model(torch.zeros(1, 4, dtype=torch.long), torch.ones(1, 4, dtype=torch.long))[1].backward()
    old.step()
    new = optim.adamw(model, 0.5, 1e-3, (0.9, 0.99))
    optim.load_state(new, old.state_dict())
    assert sha256_of(new.state_dict()['state']) == sha256_of(old.state_dict()['state'])
    assert new.param_groups[0]['weight_decay'] == 0.5 and new.param_groups[0]['betas'] == (0.9, 0.99)
    with pytest.raises(ValueError, match='expected'):
        optim.load_state(optim.adamw(small(n_layer=2), 0.1, 1e-2, (0.8, 0.9)), old.state_dict())
