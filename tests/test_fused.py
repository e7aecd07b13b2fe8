"""The fused operations of training compute what model.py computes, forward and backward, and nothing needs them."""

import copy
from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch
from test_kernel import KINDS, random_gpt

from gradus import fused, kernel
from model import GPT, CausalSelfAttention, FeedForward, GPTConfig, attention_weights


def step(model, seed=0):
    """The loss of one batch, and the gradient of every weight."""
    generator = torch.Generator().manual_seed(seed)
    vocab_size, T = model.config.vocab_size, model.config.block_size
    x, y = torch.randint(vocab_size, (2, 3, T), generator=generator)
    model.zero_grad()
    _, loss = model(x, y)
    loss.backward()
    return loss.detach(), [p.grad for p in model.parameters()]


def largest_error(grads, exact):
    return max(((g - e).norm() / e.norm()).item() for g, e in zip(grads, exact))


@pytest.fixture
def calls(monkeypatch):
    """Which of the fused operations ran."""
    names = []
    for function in (fused.RMSNorm, fused.SplitHeads, fused.Attention, fused.Dropout, fused.SwiGLU):
        def apply(*args, name=function.__name__, real=function.apply):
            names.append(name)
            return real(*args)
        monkeypatch.setattr(function, 'apply', apply)
    return names


@pytest.mark.parametrize('kind, expected', [
    ('gpt2', ['Attention'] * 2),
    ('llama', ['RMSNorm', 'SplitHeads', 'Attention', 'RMSNorm', 'SwiGLU'] * 2 + ['RMSNorm']),
    ('qwen3', ['RMSNorm', 'SplitHeads', 'Attention', 'RMSNorm', 'SwiGLU'] * 2 + ['RMSNorm']),
])
@pytest.mark.parametrize('n_threads', [1, 3])
def test_loss_and_gradients_are_the_same(kind, expected, n_threads, compiled, calls, threads):
    model = random_gpt(kind).train()
    fast = fused.use(copy.deepcopy(model))
    exact_loss, exact = step(copy.deepcopy(model).double())
    threads(n_threads)
    loss, grads = step(fast)
    assert calls == expected
    again, grads_again = step(fast)

    # As close to double precision as float32 can be expected to be, and the same bits each time.
    assert abs(loss - exact_loss) < 1e-5 * exact_loss
    assert largest_error(grads, exact) < 3e-5
    assert loss == again and all(map(torch.equal, grads, grads_again))

    # The comparison can fail: another batch.
    assert largest_error(step(fast, seed=1)[1], exact) > 0.1


@pytest.mark.parametrize('change', [
    dict(pos='learned', qk_norm=True), dict(pos='learned', qk_norm=True, head_dim=10), dict(qk_norm=True, head_dim=2),
    dict(qk_norm=True, head_dim=16), dict(qk_norm=True, head_dim=32), dict(qk_norm=True, head_dim=64, n_kv_head=2),
    dict(head_dim=34), dict(n_kv_head=2, head_dim=6, qk_norm=True, n_inner=1)])
def test_other_sizes(change, compiled):
    torch.manual_seed(5)
    kind = {**KINDS['qwen3'], 'n_kv_head': 4, 'qk_norm': False, **change}
    model = GPT(GPTConfig(block_size=37, vocab_size=11, n_layer=1, n_head=4, n_embd=36, **kind))
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.4)

    loss, grads = step(fused.use(copy.deepcopy(model)))
    exact_loss, exact = step(model.double())

    assert abs(loss - exact_loss) < 1e-5 * exact_loss
    assert largest_error(grads, exact) < 3e-5


@pytest.mark.parametrize('n_threads', [1, 3])
def test_cores_share_large_tensors(n_threads, compiled, threads):
    """Enough numbers in each operation that kernel.cpp starts the other cores."""
    torch.manual_seed(6)
    config = GPTConfig(block_size=128, vocab_size=11, n_layer=1, n_head=4, n_embd=64, **KINDS['qwen3'])
    model = GPT(config)
    x, y = torch.randint(11, (2, 33, config.block_size))
    assert x.numel() * config.n_embd > 5 * 50_000

    def gradients(model):
        model(x, y)[1].backward()
        return [p.grad for p in model.parameters()]

    threads(n_threads)
    grads = gradients(fused.use(copy.deepcopy(model)))
    assert largest_error(grads, gradients(model.double())) < 3e-5


# ---------------------------------------------------------------------------- attention

def attention_and_gradients(attend, *qkv):
    """y, then the gradients of q, k and v, for a fixed gradient of y."""
    qkv = [x.detach().requires_grad_() for x in qkv]
    y = attend(*qkv)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    return y.detach(), *torch.autograd.grad(y, qkv, dy)


def torch_attention(q, k, v):
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


# Around the sizes of tiles (6 rows, 8 to 32 columns) and blocks (48 rows).
@pytest.mark.parametrize('T, D', [(1, 1), (5, 3), (6, 16), (7, 17), (16, 2), (42, 28), (47, 32), (48, 33), (49, 8),
                                  (54, 31), (96, 64), (97, 65), (250, 7), (333, 80)])
@pytest.mark.parametrize('B, H, G', [(1, 1, 1), (2, 4, 2), (3, 3, 1)])
def test_attention(T, D, B, H, G, compiled):
    torch.manual_seed(T + D)
    q, k, v = 2 * torch.randn(B, H, T, D), torch.randn(B, G, T, D), torch.randn(B, G, T, D)
    exact = attention_and_gradients(torch_attention, *(x.double() for x in (q, k, v)))
    for found, expected in zip(attention_and_gradients(fused.Attention.apply, q, k, v), exact):
        assert (found - expected).abs().max() <= 4e-6 * expected.abs().max().clamp(min=1e-3)


@pytest.mark.parametrize('H, G', [(4, 2), (1, 1)])
def test_attention_of_tensors_that_lie_anyhow(H, G, compiled):
    torch.manual_seed(7)
    heads = torch.randn(2, 50, H + 2 * G, 10)                                   # (B, T, H + 2G, D)
    side_by_side = heads.transpose(1, 2).split((H, G, G), dim=1)
    expected = attention_and_gradients(fused.Attention.apply, *(x.contiguous() for x in side_by_side))
    others = [
        side_by_side,
        [x.transpose(2, 3).contiguous().transpose(2, 3) for x in side_by_side],
        [x.repeat_interleave(2, dim=3)[..., ::2] for x in side_by_side],
    ]
    for qkv in others:
        assert not any(x.is_contiguous() for x in qkv)
        assert all(map(torch.equal, attention_and_gradients(fused.Attention.apply, *qkv), expected))

    # A batch whose sequences are the same one, in the same memory.
    same = [x[:1].expand(2, -1, -1, -1) for x in side_by_side]
    y = fused.Attention.apply(*same)
    assert torch.equal(y[0], expected[0][0]) and torch.equal(y[1], expected[0][0])


def test_attention_does_not_look_ahead(compiled):
    torch.manual_seed(8)
    q, k, v = torch.randn(3, 1, 2, 100, 12)
    y = fused.Attention.apply(q, k, v)
    for t in (0, 5, 6, 47, 48, 98):
        later = [x.clone() for x in (q, k, v)]
        for x in later:
            x[:, :, t + 1:] = torch.randn(99 - t, 12)
        changed = fused.Attention.apply(*later)
        assert torch.equal(changed[:, :, :t + 1], y[:, :, :t + 1])
        assert not torch.equal(changed[:, :, t + 1], y[:, :, t + 1])


def test_attention_to_one_of_many_scores(compiled):
    """Scores so far apart that all weights but one are zero: e^x must not overflow, nor become NaN."""
    torch.manual_seed(9)
    q, k, v = torch.randn(3, 2, 2, 70, 8)
    exact = attention_and_gradients(torch_attention, *(x.double() for x in (1000 * q, k, v)))
    for found, expected in zip(attention_and_gradients(fused.Attention.apply, 1000 * q, k, v), exact):
        assert found.isfinite().all()
        assert (found - expected).abs().max() < 2e-2 * expected.abs().max()


def test_dropout_of_attention_weights(compiled):
    """Values that are the unit vectors show each weight."""
    torch.manual_seed(10)
    B, H, G, T, p = 3, 4, 2, 100, 0.3
    q, k = 0.3 * torch.randn(B, H, T, T), 0.3 * torch.randn(B, G, T, T)
    v = torch.eye(T).expand(B, G, T, T)

    def attend(*qkv, seed=11, p=p):
        torch.manual_seed(seed)
        return fused.Attention.apply(*qkv, p)

    dropped = attend(q, k, v)
    assert torch.equal(attend(q, k, v), dropped)
    assert not torch.equal(attend(q, k, v, seed=12), dropped)

    # Each is dropped with probability p, independently of its neighbours and of the same place in other heads.
    weights = attention_weights(q, k)
    seen = weights > 0
    kept = dropped > 0
    torch.testing.assert_close(dropped, weights * kept / (1 - p), rtol=1e-5, atol=1e-7)

    def check(which, share):
        assert abs(which.float().mean() - share) < 5 * (share * (1 - share) / which.numel()) ** 0.5

    check(kept[seen], 1 - p)
    pairs = [
        (kept[..., 1:] & kept[..., :-1])[seen[..., 1:]],                        # one key and the next
        (kept[..., 1:, :] & kept[..., :-1, :])[seen[..., :-1, :]],              # one query and the next
        (kept[:, 0] & kept[:, 1])[seen[:, 0]],
        (kept[0] & kept[1])[seen[0]],
    ]
    for pair in pairs:
        check(pair, (1 - p) ** 2)

    # The gradients are those of weights dropped in just the same places.
    v = torch.randn(B, G, T, T)

    def by_hand(q, k, v):
        return attention_weights(q, k) * kept / (1 - p) @ v.repeat_interleave(H // G, dim=1)

    exact = attention_and_gradients(by_hand, q.double(), k.double(), v.double())
    for found, expected in zip(attention_and_gradients(attend, q, k, v), exact):
        assert (found - expected).abs().max() <= 4e-6 * expected.abs().max()


@pytest.mark.parametrize('change', [dict(score='unscaled'), dict(mask='none')])
def test_attention_that_the_kernel_cannot_compute(change, compiled, calls):
    step(fused.use(GPT(GPTConfig(block_size=20, vocab_size=11, n_layer=1, n_head=4, n_embd=36, **change))))
    assert 'Attention' not in calls


def test_attention_where_cores_would_have_nothing_to_do(compiled, calls, threads):
    model = fused.use(GPT(GPTConfig(block_size=20, vocab_size=11, n_layer=1, n_head=2, n_embd=36)))
    x = torch.zeros(1, 20, dtype=torch.long)
    threads(3)
    model(x)
    assert calls == []
    threads(2)
    model(x)
    assert calls == ['Attention']


def test_heads_that_share_keys_keep_all_cores_busy(compiled, calls, threads, monkeypatch):
    """Each core gets heads of its own, and the gradients are the same."""
    backward = Mock(wraps=kernel.load().attention_backward)
    monkeypatch.setattr(kernel.load(), 'attention_backward', backward)
    model = GPT(GPTConfig(block_size=20, vocab_size=11, n_layer=1, n_head=4, n_kv_head=2, n_embd=36))
    fast = fused.use(copy.deepcopy(model))
    exact = step(model.double())[1]                                             # B = 3 texts

    for n_threads, key_heads in ((6, 2), (7, 4), (12, 4)):
        threads(n_threads)
        assert largest_error(step(fast)[1], exact) < 3e-5
        assert backward.call_args.args[-4] == key_heads                         # G, as the kernel sees it
    assert calls == ['Attention'] * 3

    threads(13)
    assert largest_error(step(fast)[1], exact) < 3e-5
    assert calls == ['Attention'] * 3


# ---------------------------------------------------------------------------- the other operations

def test_swiglu_is_exact_at_any_size(compiled):
    gate = torch.cat((torch.linspace(-120, 120, 10_001), torch.tensor([0.0, -0.0, 1e-30, 3e4, -3e4])))
    gate.requires_grad_()
    up = torch.randn(gate.shape, requires_grad=True)
    dy = torch.randn(gate.shape)

    y = fused.SwiGLU.apply(gate, up)
    found = torch.autograd.grad(y, (gate, up), dy)

    gate, up, dy = gate.double(), up.double(), dy.double()
    expected = torch.nn.functional.silu(gate) * up
    torch.testing.assert_close(y.double(), expected, rtol=1e-6, atol=1e-30)
    for a, b in zip(found, torch.autograd.grad(expected, (gate, up), dy)):
        torch.testing.assert_close(a.double(), b, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize('n_threads', [1, 3])
def test_dropout(n_threads, compiled, threads):
    p = 0.2
    x = torch.randn(37, 1234, 5).requires_grad_()

    def drop(seed):
        torch.manual_seed(seed)
        return fused.Dropout.apply(x, p)

    threads(n_threads)
    y = drop(1)
    dx, = torch.autograd.grad(y, x, torch.ones_like(y))
    again, other = drop(1), drop(2)

    # The gradient shows the factors: 0 or 1 / (1 - p).
    kept = dx > 0
    torch.testing.assert_close(dx, kept / (1 - p), rtol=1e-6, atol=0)
    torch.testing.assert_close(y, x * dx, rtol=1e-6, atol=0)
    assert torch.equal(again, y) and not torch.equal(other, y)

    # Each number has the same chance, whatever its neighbours, and the next part, have.
    flat = kept.flatten()
    pairs = [flat[1:] & flat[:-1], flat[4096:] & flat[:-4096]]
    for found, expected in ((flat, 1 - p), *((pair, (1 - p) ** 2) for pair in pairs)):
        assert abs(found.float().mean() - expected) < 5 * (expected * (1 - expected) / len(found)) ** 0.5


def test_dropout_of_a_model(compiled, calls):
    """Everywhere where model.py has it, and only in training."""
    model = fused.use(GPT(GPTConfig(block_size=20, vocab_size=11, n_layer=1, n_head=4, n_embd=36, dropout=0.5)))
    x = torch.arange(10)[None]
    assert not torch.equal(model.train()(x)[0], model(x)[0])
    assert calls == ['Dropout', 'Attention', 'Dropout', 'Dropout'] * 2
    assert torch.equal(model.eval()(x)[0], model(x)[0])
    assert calls[8:] == ['Attention'] * 2


@pytest.mark.parametrize('bad', [float('nan'), float('inf'), -float('inf')])
def test_nobody_can_overlook_what_is_not_finite(bad, compiled):
    """train.py skips a step whose loss or gradient is not finite, so it must not become finite on its way."""
    for name in ('attn.c_attn.weight', 'mlp.c_gate.weight', 'mlp.c_fc.weight', 'ln_1.weight', 'attn.q_norm.weight'):
        model = fused.use(random_gpt('qwen3').train())
        with torch.no_grad():
            model.get_parameter(f'transformer.h.0.{name}').view(-1)[3] = bad
        loss, grads = step(model)
        assert not loss.isfinite() or not all(g.isfinite().all() for g in grads), name


def test_what_the_kernel_cannot_do_is_left_to_the_model(compiled, calls):
    model = random_gpt('qwen3')
    fast = fused.use(copy.deepcopy(model))
    expected = step(model.double())[1]
    assert all(map(torch.equal, step(copy.deepcopy(fast).double())[1], expected))
    assert calls == []

    other = GPT(replace(model.config, score='squared', dropout=0.1)).train()
    with torch.autocast('cpu', torch.bfloat16):
        assert all(g.isfinite().all() for g in step(fused.use(other))[1])
    assert not {'SplitHeads', 'Attention'} & set(calls)


@pytest.mark.parametrize('kind', ['gpt2', 'llama', 'qwen3'])
def test_in_16_bits_only_the_products_of_matrices_are_rounded(kind, compiled, calls):
    model = random_gpt(kind)
    fast = fused.use(copy.deepcopy(model))
    _, exact = step(copy.deepcopy(model).double())
    step(fast)
    expected = calls[:]
    with torch.autocast('cpu', torch.bfloat16):
        _, theirs = step(model)
        loss, grads = step(fast)
    assert calls == 2 * expected                      # all that run in float32
    assert loss.dtype == torch.float32 and all(g.dtype == torch.float32 for g in grads)
    assert 1e-3 < largest_error(grads, exact) < 2 * largest_error(theirs, exact) < 0.1

    # An RMSNorm hands on what a matrix reads, so that nothing is converted once for each matrix.
    with torch.autocast('cpu', torch.bfloat16):
        y = fast.transformer.ln_f(torch.ones(3, model.config.n_embd))
    assert y.dtype == (torch.float32 if kind == 'gpt2' else torch.bfloat16)


def special(*shape):
    """Random bfloat16 numbers of all sizes, and a few that are not finite."""
    x = torch.randn(shape) * 10.0 ** torch.randint(-9, 9, shape)
    for i, value in enumerate(('inf', '-inf', 'nan')):
        x.view(-1)[97 * i::400] = float(value)
    return x.bfloat16()


@pytest.mark.parametrize('operation', ['rms_norm', 'split_heads', 'swiglu', 'dropout'])
def test_in_16_bits_the_same_numbers_are_rounded(operation, compiled, threads):
    """Inputs of 16 bits, computed in float32, and the results rounded as PyTorch rounds: to the last bit."""
    torch.manual_seed(0)
    threads(2)                                        # as many parts of a sum, whatever the machine
    n, H, G, D = 50, 4, 2, 24
    weight, weights = torch.randn(n), (torch.randn(D), torch.randn(D))
    angles = torch.randn(2, n, D // 2)
    functions = {
        'rms_norm': lambda x, dtype: fused.RMSNorm.apply(x.float(), weight, 1e-6, dtype),
        'split_heads': lambda x, _: fused.SplitHeads.apply(x, *weights, *angles, H, 1e-6),
        'swiglu': lambda x, _: fused.SwiGLU.apply(*x.unbind()),
        'dropout': lambda x, _: fused.Dropout.apply(x, 0.3),
    }
    shapes = {'split_heads': (3, n, H + 2 * G, D), 'swiglu': (2, 300, n)}

    results = []
    x = special(*shapes.get(operation, (300, n)))
    grads = None
    for dtype in (torch.bfloat16, torch.float32):
        torch.manual_seed(1)
        own = x.to(dtype).requires_grad_()
        y = functions[operation](own, dtype)
        y = y if isinstance(y, tuple) else (y,)
        grads = grads or [special(*part.shape) for part in y]
        dx, = torch.autograd.grad(y, own, [g.to(part.dtype) for g, part in zip(grads, y)])
        assert dx.dtype == dtype
        results.append([*y, dx])
    for half, full in zip(*results):
        assert 0 < full.isnan().float().mean() < 0.9
        assert torch.allclose(half.bfloat16(), full.bfloat16(), rtol=0, atol=0, equal_nan=True)


def test_nan_stays_nan_whatever_its_bits(compiled):
    """Rounded up like a number, this NaN would become minus zero."""
    x = torch.full((1, 40), 0x7fffffff, dtype=torch.int32).view(torch.float32)
    assert fused.RMSNorm.apply(x, torch.ones(40), 1e-6, torch.bfloat16).isnan().all()


def test_dropout_in_16_bits(compiled, calls):
    model = fused.use(GPT(replace(random_gpt('qwen3').config, dropout=0.1)).train())
    step(model)
    expected = calls[:]
    with torch.autocast('cpu', torch.bfloat16):
        torch.manual_seed(1)
        loss, grads = step(model)
        torch.manual_seed(1)
        again, _ = step(model)
        other, _ = step(model)
    assert calls == 4 * expected
    assert loss == again != other and all(g.isfinite().all() for g in grads)


def test_without_a_compiler_the_bits_are_those_of_the_model(monkeypatch):
    monkeypatch.setattr(kernel, 'load', lambda: None)
    model = random_gpt('qwen3').train()
    loss, grads = step(fused.use(copy.deepcopy(model)))
    expected_loss, expected = step(model)
    assert loss == expected_loss and all(map(torch.equal, grads, expected))


def test_a_model_stays_what_it_is():
    model = random_gpt('qwen3')
    fast = fused.use(copy.deepcopy(model))
    assert list(fast.state_dict()) == list(model.state_dict())
    assert all(map(torch.equal, fast.state_dict().values(), model.state_dict().values()))
    assert isinstance(fast.transformer.h[0].attn, CausalSelfAttention)
    assert isinstance(fast.transformer.h[0].mlp, FeedForward)
    assert fused.use(fast) is fast and type(fast.transformer.ln_f) is fused.FusedRMSNorm
