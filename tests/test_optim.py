"""Learning-rate curves against straight formulas, parameter groups, and the state that comes back."""

import math

import pytest
import torch
from conftest import sha256_of

from gradus import optim
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
    optimizer = optim.build(model, 'adamw', 0.1, 1e-2, (0.8, 0.9))
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
    old = optim.build(model, 'adamw', 0.1, 1e-2, (0.8, 0.9))
    model(torch.zeros(1, 4, dtype=torch.long), torch.ones(1, 4, dtype=torch.long))[1].backward()
    old.step()
    new = optim.build(model, 'adamw', 0.5, 1e-3, (0.9, 0.99))
    optim.load_state(new, old.state_dict())
    assert sha256_of(new.state_dict()['state']) == sha256_of(old.state_dict()['state'])
    assert new.param_groups[0]['weight_decay'] == 0.5 and new.param_groups[0]['betas'] == (0.9, 0.99)
    with pytest.raises(ValueError, match='expected'):
        optim.load_state(optim.build(small(n_layer=2), 'adamw', 0.1, 1e-2, (0.8, 0.9)), old.state_dict())


# ---------------------------------------------------------------------------- Muon

@pytest.mark.parametrize('rows, cols', [(32, 32), (16, 48), (48, 16)])
def test_orthogonalize_keeps_directions_and_evens_out_their_lengths(rows, cols):
    """Against the singular value decomposition: U V^T, with singular values near 1 whatever they were."""
    random = torch.Generator().manual_seed(1)
    u, _, vt = torch.linalg.svd(torch.randn(3, rows, cols, generator=random), full_matrices=False)
    size = torch.tensor([1e-4, 1.0, 1e4])[:, None, None]
    stack = size * u @ torch.diag(torch.linspace(1, 0.05, min(rows, cols))) @ vt
    out = optim.orthogonalize(stack)
    values = torch.linalg.svdvals(out)
    assert out.shape == stack.shape and 0.6 < values.min() and values.max() < 1.25
    alignment = torch.einsum('nij,nij->n', out, u @ vt) / out.flatten(1).norm(dim=1) / min(rows, cols) ** 0.5
    assert (alignment > 0.97).all()                   # the cosine of the angle between it and U V^T
    half = optim.orthogonalize(stack * 1e-6, torch.float16)                      # whose smallest number is 6e-8
    assert half.dtype == torch.float32 and torch.allclose(half, out, atol=0.05) and not torch.equal(half, out)
    assert not optim.orthogonalize(torch.zeros_like(stack)).any()
    alone = torch.cat([optim.orthogonalize(m[None]) for m in stack])
    assert torch.allclose(out, alone, atol=1e-5)
    assert torch.linalg.svdvals(stack[1]).min() < 0.1 * torch.linalg.svdvals(stack[1]).max()   # negative control


def matrices(model):
    """The matrices that Muon should see, {name: tensor}."""
    return {n: p for n, p in model.named_parameters() if p.dim() == 2 and '.h.' in n}


def test_muon_is_torchs_muon():
    """Five steps against torch.optim.Muon, which computes in bfloat16, with each of W_Q, W_K, W_V a matrix of its own."""
    model = small(n_embd=16, n_kv_head=1, qk_norm=True, pos='rotary', mlp='swiglu')
    optimizer = optim.build(model, 'muon', 0.1, 0.02, (0.9, 0.95))
    theirs = {}
    for name, p in matrices(model).items():
        rows = model.transformer.h[0].attn.widths if 'c_attn' in name else (len(p),)
        theirs[name] = [torch.nn.Parameter(part.detach().clone()) for part in p.split(rows)]
    before = {name: p.detach().clone() for name, p in matrices(model).items()}
    other = torch.optim.Muon([p for ps in theirs.values() for p in ps], lr=0.02, weight_decay=0.1, momentum=0.85)
    for step in range(5):
        for i, (name, p) in enumerate(matrices(model).items()):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step * 100 + i))
            for part, grad in zip(theirs[name], p.grad.split([len(part) for part in theirs[name]])):
                part.grad = grad.clone()
        optim.set_step(optimizer, 0, 0.02)            # step 0: their momentum does not warm up
        optimizer.step()
        other.step()
    for name, p in matrices(model).items():
        moved, expected = p - before[name], torch.cat(list(theirs[name])) - before[name]
        assert (moved - expected).norm() < 0.03 * expected.norm(), name


def test_muon_takes_the_matrices_and_adamw_the_rest():
    model = small(qk_norm=True, bias=True)
    rest, attention, alone = optim.muon_groups(model, 0.3)
    assert {id(p) for p in attention['params'] + alone['params']} == {id(p) for p in matrices(model).values()}
    assert rest['weight_decay'] == 0.0 and attention['weight_decay'] == alone['weight_decay'] == 0.3
    by_muon, by_adamw = optim.build(model, 'muon', 0.3, 1e-2, (0.8, 0.9)), optim.build(model, 'adamw', 0.0, 1e-2, (0.8, 0.9))
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    results = []
    for optimizer in (by_muon, by_adamw):
        model.load_state_dict(start, strict=False)
        for i, p in enumerate(model.parameters()):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(i))
        optim.set_step(optimizer, 0, 1e-2)
        optimizer.step()
        results.append({n: p.detach().clone() for n, p in model.named_parameters()})
    same = {n for n in start if torch.equal(results[0][n], results[1][n])}
    assert same == set(start) - set(matrices(model))
    with pytest.raises(AssertionError):               # negative control: a parameter that nobody owns is noticed
        optim.owned_once([rest, alone], model)


def test_momentum_warms_up():
    optimizer = optim.build(small(), 'muon', 0.1, 0.02, (0.9, 0.95))
    seen = []
    for step in (0, 150, 300, 9999):
        optim.set_step(optimizer, step, 0.02)
        seen += [g['momentum'] for g in optimizer.param_groups if 'rows' in g][:1]
    assert seen == pytest.approx([0.85, 0.90, 0.95, 0.95])


def test_muons_state_fits_muon_only():
    model = small()
    old = optim.build(model, 'muon', 0.1, 0.02, (0.9, 0.95))
    model(torch.zeros(1, 4, dtype=torch.long), torch.ones(1, 4, dtype=torch.long))[1].backward()
    old.step()
    new = optim.build(model, 'muon', 0.5, 0.01, (0.9, 0.99))
    optim.load_state(new, old.state_dict())
    assert sha256_of(new.state_dict()['state']) == sha256_of(old.state_dict()['state'])
    assert len(new.state_dict()['state']) == len(list(model.parameters())) and new.param_groups[1]['weight_decay'] == 0.5
    with pytest.raises(ValueError, match='expected'):
        optim.load_state(optim.build(model, 'adamw', 0.1, 0.02, (0.9, 0.95)), old.state_dict())
