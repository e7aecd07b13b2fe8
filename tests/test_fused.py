"""The fused operations of training compute what model.py computes, forward and backward, and nothing needs them."""

import copy

import pytest
import torch
from test_kernel import KINDS, random_gpt

from gradus import fused, kernel
from model import GPT, CausalSelfAttention, FeedForward, GPTConfig


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
    for function in (fused.RMSNorm, fused.SplitHeads, fused.SwiGLU):
        def apply(*args, name=function.__name__, real=function.apply):
            names.append(name)
            return real(*args)
        monkeypatch.setattr(function, 'apply', apply)
    return names


@pytest.mark.parametrize('kind, expected', [
    ('gpt2', []),
    ('llama', ['RMSNorm', 'SplitHeads', 'RMSNorm', 'SwiGLU'] * 2 + ['RMSNorm']),
    ('qwen3', ['RMSNorm', 'SplitHeads', 'RMSNorm', 'SwiGLU'] * 2 + ['RMSNorm']),
])
@pytest.mark.parametrize('threads', [1, 3])
def test_loss_and_gradients_are_the_same(kind, expected, threads, compiled, calls):
    model = random_gpt(kind).train()
    fast = fused.use(copy.deepcopy(model))
    exact_loss, exact = step(copy.deepcopy(model).double())
    n_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        loss, grads = step(fast)
        assert calls == expected
        again, grads_again = step(fast)
    finally:
        torch.set_num_threads(n_threads)

    # As close to double precision as float32 can be expected to be, and the same bits each time.
    assert abs(loss - exact_loss) < 1e-5 * exact_loss
    assert largest_error(grads, exact) < 3e-5
    assert loss == again and all(map(torch.equal, grads, grads_again))

    # The comparison can fail: another batch.
    assert largest_error(step(fast, seed=1)[1], exact) > 0.1


@pytest.mark.parametrize('change', [dict(qk_norm=True, pos='learned'), dict(qk_norm=True, head_dim=2),
                                    dict(head_dim=34), dict(n_kv_head=2, head_dim=6, qk_norm=True, n_inner=1)])
def test_odd_sizes(change, compiled):
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


@pytest.mark.parametrize('threads', [1, 3])
def test_cores_share_large_tensors(threads, compiled):
    """Enough numbers in each operation that kernel.cpp starts the other cores."""
    torch.manual_seed(6)
    config = GPTConfig(block_size=128, vocab_size=11, n_layer=1, n_head=4, n_embd=64, **KINDS['qwen3'])
    model = GPT(config)
    x, y = torch.randint(11, (2, 33, config.block_size))
    assert x.numel() * config.n_embd > 5 * 50_000
    n_threads = torch.get_num_threads()

    def gradients(model):
        model(x, y)[1].backward()
        return [p.grad for p in model.parameters()]

    try:
        torch.set_num_threads(threads)
        grads = gradients(fused.use(copy.deepcopy(model)))
    finally:
        torch.set_num_threads(n_threads)
    assert largest_error(grads, gradients(model.double())) < 3e-5


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

    with torch.autocast('cpu', torch.bfloat16):
        step(fast)
    assert 'SplitHeads' not in calls and 'SwiGLU' not in calls


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
