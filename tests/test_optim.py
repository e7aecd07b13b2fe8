"""Learning-rate schedules against plain formulas, parameter groups, optimizer steps, and restored state."""

import math

import pytest
import torch
from conftest import sha256_of

from gradus import optim
from gradus.errors import UserError
from model import GPT, GPTConfig

CURVE = dict(learning_rate=3e-3, min_lr=2e-4, warmup_iters=10, lr_decay_iters=110)


def curve(n=130, **changes):
    return [optim.learning_rate_at(step, **{**CURVE, **changes}) for step in range(n)]


def test_cosine_schedule_is_nanogpts():
    for step, lr in enumerate(curve()):
        if step < 10:
            expected = 3e-3 * (step + 1) / 11
        elif step <= 110:
            expected = 2e-4 + 0.5 * (1 + math.cos(math.pi * (step - 10) / 100)) * (3e-3 - 2e-4)
        else:
            expected = 2e-4
        assert lr == pytest.approx(expected, rel=1e-12)


def test_linear_schedule_is_a_trapezoid():
    lr = curve(schedule='linear', cooldown=0.3)
    assert lr[10:77] == [3e-3] * 67
    assert lr[110:] == [2e-4] * 20
    falls = [a - b for a, b in zip(lr[77:110], lr[78:111])]
    assert falls == pytest.approx([(3e-3 - 2e-4) / 33] * 33)


@pytest.mark.parametrize('schedule', optim.SCHEDULES)
@pytest.mark.parametrize('warmup, decay', [(0, 0), (10, 10), (20, 10), (0, 1), (1, 0), (0, 100), (100, 0), (9, 10)])
@pytest.mark.parametrize('cooldown', [0.0, 0.4, 1.0])
def test_edge_cases(schedule, warmup, decay, cooldown):
    """No division by zero; rates stay in (0, peak], rise during the warm-up and never afterwards."""
    lr = curve(schedule=schedule, warmup_iters=warmup, lr_decay_iters=decay, cooldown=cooldown)

    assert all(0 < x <= 3e-3 for x in lr)
    assert all(a < b for a, b in zip(lr[:warmup], lr[1:warmup]))
    assert all(a >= b for a, b in zip(lr[warmup:], lr[warmup + 1:]))


def small(**changes):
    torch.manual_seed(0)
    return GPT(GPTConfig(**{**dict(block_size=8, vocab_size=11, n_layer=1, n_head=2, n_embd=8), **changes}))


def random_gradient(p, seed):
    return torch.randn(p.shape, generator=torch.Generator().manual_seed(seed))


def take_a_step(model, optimizer):
    """One step on a loss, so that the optimizer has a state."""
    model(torch.zeros(1, 4, dtype=torch.long), torch.ones(1, 4, dtype=torch.long))[1].backward()
    optimizer.step()


def test_matrices_decay_and_vectors_do_not():
    model = small(qk_norm=True)
    decay, no_decay = optim.param_groups(model, 0.3)

    assert decay['weight_decay'] == 0.3
    assert no_decay['weight_decay'] == 0.0
    names = {id(p): n for n, p in model.named_parameters()}
    vectors = ('bias', 'ln_1.weight', 'ln_2.weight', 'ln_f.weight', 'norm.weight')
    assert all(names[id(p)].endswith(vectors) for p in no_decay['params'])
    owned = [id(p) for p in decay['params'] + no_decay['params']]
    assert len(owned) == len(set(owned)) == len(list(model.parameters()))


def test_adamw_follows_the_papers_formula():
    """Two steps with different learning rates, against the formula written out."""
    model = small()
    params = list(model.parameters())
    expected = [p.detach().double() for p in params]
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in expected]
    optimizer = optim.build(model, 'adamw', 0.1, 1e-2, (0.8, 0.9))

    for t, lr in enumerate((1e-2, 3e-3), start=1):
        for group in optimizer.param_groups:
            group['lr'] = lr
        for i, p in enumerate(params):
            p.grad = random_gradient(p, seed=t * 100 + i)
            g, (m, v) = p.grad.double(), moments[i]
            m.mul_(0.8).add_(0.2 * g)
            v.mul_(0.9).add_(0.1 * g * g)
            expected[i] *= 1 - lr * (0.1 if p.dim() >= 2 else 0.0)
            expected[i] -= lr * (m / (1 - 0.8 ** t)) / ((v / (1 - 0.9 ** t)).sqrt() + 1e-8)
        optimizer.step()

    assert all(torch.allclose(p.double(), e, atol=1e-6) for p, e in zip(params, expected))


def test_state_is_restored_without_the_old_settings():
    model = small()
    old = optim.build(model, 'adamw', 0.1, 1e-2, (0.8, 0.9))
    take_a_step(model, old)

    new = optim.build(model, 'adamw', 0.5, 1e-3, (0.9, 0.99))
    optim.load_state(new, dict(optimizer=old.state_dict()), 'c.pt')

    assert sha256_of(new.state_dict()['state']) == sha256_of(old.state_dict()['state'])
    assert new.param_groups[0]['weight_decay'] == 0.5
    assert new.param_groups[0]['betas'] == (0.9, 0.99)
    deeper = optim.build(small(n_layer=2), 'adamw', 0.1, 1e-2, (0.8, 0.9))
    with pytest.raises(UserError, match='^c.pt: .*expected'):
        optim.load_state(deeper, dict(optimizer=old.state_dict()), 'c.pt')


def take_steps(model, optimizer, first, last):
    """Steps number first, ..., last - 1 with fixed random gradients."""
    for step in range(first, last):
        for i, p in enumerate(model.parameters()):
            p.grad = random_gradient(p, seed=step * 100 + i)
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize('name, options', [
    ('AdamW', dict(fused=True)),
    ('AdamW', dict(fused=False)),
    ('SGD', dict(momentum=0.9)),
])
def test_our_optimizers_are_torchs(name, options):
    """The same weights and states, bit for bit, also after each has continued from the other's state."""
    kinds = getattr(optim, name), getattr(torch.optim, name)
    pairs = []
    for kind in kinds:
        model = small()
        pairs.append((model, kind(optim.param_groups(model, 0.1), lr=1e-2, **options)))
    for model, optimizer in pairs:
        take_steps(model, optimizer, 0, 3)
    states = [optimizer.state_dict() for _, optimizer in pairs]
    assert sha256_of(states[0]) == sha256_of(states[1])

    # Each from the other's state. Gradients are gone and graphs were not recorded.
    for (model, _), kind, state in zip(pairs, kinds, reversed(states)):
        assert all(p.grad is None and p.grad_fn is None for p in model.parameters())
        optimizer = kind(optim.param_groups(model, 0.1), lr=5e-2, **options)
        optimizer.load_state_dict(state)
        take_steps(model, optimizer, 3, 5)
    weights = [sha256_of(model.state_dict()) for model, _ in pairs]
    assert weights[0] == weights[1]
    assert weights[0] != sha256_of(small().state_dict())


# ---------------------------------------------------------------------------- Muon

@pytest.mark.parametrize('rows, cols', [(32, 32), (16, 48), (48, 16)])
def test_orthogonalize_keeps_directions_and_evens_out_their_lengths(rows, cols):
    """Against the singular value decomposition: U V^T, with singular values near 1 whatever they were before."""
    random = torch.Generator().manual_seed(1)
    u, _, vt = torch.linalg.svd(torch.randn(3, rows, cols, generator=random), full_matrices=False)
    size = torch.tensor([1e-4, 1.0, 1e4])[:, None, None]
    stack = size * u @ torch.diag(torch.linspace(1, 0.05, min(rows, cols))) @ vt

    out = optim.orthogonalize(stack)

    # Singular values near 1, and a small angle between the result and U V^T.
    values = torch.linalg.svdvals(out)
    assert out.shape == stack.shape
    assert 0.6 < values.min()
    assert values.max() < 1.25
    cosine = torch.einsum('nij,nij->n', out, u @ vt) / out.flatten(1).norm(dim=1) / min(rows, cols) ** 0.5
    assert (cosine > 0.97).all()

    # float16 gives nearly the same, even for entries below its smallest number, 6e-8.
    half = optim.orthogonalize(stack * 1e-6, torch.float16)
    assert half.dtype == torch.float32
    assert torch.allclose(half, out, atol=0.05)
    assert not torch.equal(half, out)

    # Zeros stay zeros, and a matrix does not depend on the others in the stack.
    assert not optim.orthogonalize(torch.zeros_like(stack)).any()
    alone = torch.cat([optim.orthogonalize(m[None]) for m in stack])
    assert torch.allclose(out, alone, atol=1e-5)

    # Negative control: the singular values were far apart before.
    assert torch.linalg.svdvals(stack[1]).min() < 0.1 * torch.linalg.svdvals(stack[1]).max()


def matrices(model):
    """The matrices that Muon should update, {name: tensor}."""
    return {n: p for n, p in model.named_parameters() if p.dim() == 2 and '.h.' in n}


def test_muon_matches_torchs_muon():
    """Five steps against torch.optim.Muon, which computes in bfloat16, with W_Q, W_K and W_V as separate matrices."""
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
            p.grad = random_gradient(p, seed=step * 100 + i)
            for part, grad in zip(theirs[name], p.grad.split([len(part) for part in theirs[name]])):
                part.grad = grad.clone()
        optim.set_step(optimizer, 0, 0.02)            # always step 0: torch's momentum does not warm up
        optimizer.step()
        other.step()

    for name, p in matrices(model).items():
        moved = p - before[name]
        expected = torch.cat(list(theirs[name])) - before[name]
        assert (moved - expected).norm() < 0.03 * expected.norm(), name


def after_one_step(model, start, optimizer):
    """The parameters after a step from `start` with fixed random gradients."""
    model.load_state_dict(start, strict=False)
    for i, p in enumerate(model.parameters()):
        p.grad = random_gradient(p, seed=i)
    optim.set_step(optimizer, 0, 1e-2)
    optimizer.step()
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def test_muon_takes_the_matrices_and_adamw_the_rest():
    model = small(qk_norm=True, bias=True)
    rest, attention, alone = optim.muon_groups(model, 0.3)
    assert {id(p) for p in attention['params'] + alone['params']} == {id(p) for p in matrices(model).values()}
    assert rest['weight_decay'] == 0.0
    assert attention['weight_decay'] == alone['weight_decay'] == 0.3

    # Both optimizers move the rest alike, and the matrices differently.
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    by_muon = optim.build(model, 'muon', 0.3, 1e-2, (0.8, 0.9))
    by_adamw = optim.build(model, 'adamw', 0.0, 1e-2, (0.8, 0.9))
    a, b = (after_one_step(model, start, optimizer) for optimizer in (by_muon, by_adamw))
    same = {n for n in start if torch.equal(a[n], b[n])}
    assert same == set(start) - set(matrices(model))

    # Negative control: a parameter in no group is noticed.
    with pytest.raises(AssertionError):
        optim.assert_owned_once([rest, alone], model)


def test_momentum_warms_up():
    optimizer = optim.build(small(), 'muon', 0.1, 0.02, (0.9, 0.95))
    seen = []
    for step in (0, 150, 300, 9999):
        optim.set_step(optimizer, step, 0.02)
        seen += [g['momentum'] for g in optimizer.param_groups if 'rows' in g][:1]
    assert seen == pytest.approx([0.85, 0.90, 0.95, 0.95])


def test_muons_state_only_fits_muon():
    model = small()
    old = optim.build(model, 'muon', 0.1, 0.02, (0.9, 0.95))
    take_a_step(model, old)

    new = optim.build(model, 'muon', 0.5, 0.01, (0.9, 0.99))
    optim.load_state(new, dict(optimizer=old.state_dict()), 'c.pt')

    assert sha256_of(new.state_dict()['state']) == sha256_of(old.state_dict()['state'])
    assert len(new.state_dict()['state']) == len(list(model.parameters()))
    assert new.param_groups[1]['weight_decay'] == 0.5
    other = optim.build(model, 'adamw', 0.1, 0.02, (0.9, 0.95))
    with pytest.raises(UserError, match='^c.pt: .*expected'):
        optim.load_state(other, dict(optimizer=old.state_dict()), 'c.pt')
