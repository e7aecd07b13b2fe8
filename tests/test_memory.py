"""gradus/memory.py against what PyTorch keeps for backward, and what its allocator hands out during a real step."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import train
from benchmarks.step import Ours
from gradus import data, fused, memory, parallel, pretrained
from model import GPT, GPTConfig

QWEN3 = dict(pos='rotary', norm='rmsnorm', mlp='swiglu', qk_norm=True, tie_weights=False, bias=False)
LLAMA = dict(QWEN3, qk_norm=False)
SHAPES = {
    'GPT-2': {},
    'nanoGPT': dict(bias=False),
    'GPT-2, dropout': dict(dropout=0.1),
    'Llama': LLAMA,
    'Llama, dropout': dict(LLAMA, dropout=0.1),
    'Qwen3': QWEN3,
    'Qwen3, dropout': dict(QWEN3, dropout=0.1),
    'Qwen3, grouped heads': dict(QWEN3, n_kv_head=2),
    'Qwen3, wide heads': dict(QWEN3, n_kv_head=1, head_dim=32),
    'GPT-2, qk_norm': dict(qk_norm=True),
    'GPT-2, rotary, dropout': dict(pos='rotary', dropout=0.1),
    'relu': dict(mlp='relu'),
    'sigmoid': dict(mlp='sigmoid'),
    'sinusoidal': dict(pos='sinusoidal', mlp='gelu_tanh'),
    'no norm': dict(norm='none'),
    'no residual': dict(residual=False),
    'squared': dict(score='squared'),
    'no mask, dropout': dict(mask='none', dropout=0.1),
}


def config_of(name, **changes):
    sizes = dict(block_size=64, vocab_size=96, n_layer=2, n_head=4, n_embd=64)
    return GPTConfig(**{**sizes, **SHAPES[name], **changes})


def bytes_kept(config, batch_size, width=4, backend=None):
    """What autograd saves in a forward pass: each piece of memory once, without the weights and tables themselves."""
    model = GPT(config) if backend else fused.use(GPT(config))
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes(), tensor                 # alive: no other takes its place
        return tensor

    run = torch.compile(model, backend=backend) if backend else model
    ids = torch.randint(config.vocab_size, (batch_size, config.block_size))     # (B, T)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        with torch.autocast('cpu', torch.bfloat16, enabled=width == 2):
            run(ids, ids.clone())
    return sum(n_bytes for n_bytes, _ in kept.values())


def expected(config, batch_size, width=4, compiled=False, log_softmax=4):
    step = memory.step(config, batch_size, width=width, compiled=compiled)
    return step.activations + step.copies + log_softmax * batch_size * config.block_size * config.vocab_size


@pytest.mark.parametrize('width', [4, 2])
@pytest.mark.parametrize('name', SHAPES)
def test_activations(name, width):
    for T in (64, 192):
        config = config_of(name, block_size=T)
        assert expected(config, 2, width) == pytest.approx(bytes_kept(config, 2, width), rel=0.05)


def test_the_usual_ones_are_exact():
    for name in ('GPT-2', 'nanoGPT', 'Llama', 'Qwen3', 'GPT-2, dropout'):
        config = config_of(name)
        assert expected(config, 3) == pytest.approx(bytes_kept(config, 3), rel=1e-3)


@pytest.mark.parametrize('of, other', [('GPT-2', 'Qwen3'), ('Qwen3', 'GPT-2'), ('GPT-2', 'GPT-2, qk_norm'),
                                       ('GPT-2', 'relu'), ('Qwen3', 'Qwen3, grouped heads')])
def test_what_these_tests_would_find(of, other):
    """Negative control: another block's formula, or one layer or sequence more, is told apart."""
    kept = bytes_kept(config_of(of), 2)
    assert expected(config_of(other), 2) != pytest.approx(kept, rel=0.05)
    assert expected(config_of(of, n_layer=3), 2) != pytest.approx(kept, rel=0.1)
    assert expected(config_of(of), 3) != pytest.approx(kept, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['GPT-2', 'Qwen3', 'Qwen3, grouped heads'])
@pytest.mark.parametrize('width', [4, 2])
def test_activations_when_compiled(name, width):
    """torch.compile's choice of what to compute again; only code generation is left out."""
    torch._dynamo.reset()
    config = config_of(name)
    kept = bytes_kept(config, 2, width, backend='aot_eager_decomp_partition')
    assert expected(config, 2, width, compiled=True, log_softmax=width) == pytest.approx(kept, rel=0.05)
    assert expected(config, 3, width, compiled=True, log_softmax=width) != pytest.approx(kept, rel=0.1)
    if name != 'GPT-2' and width == 2:                # where it does compute again
        assert expected(config, 2, width) != pytest.approx(kept, rel=0.1)


# ---------------------------------------------------------------------------- whole steps

# Name: (settings, a kind of memory without which the peak would be another).
FEW = dict(block_size=16, batch_size=1)
STEPS = {
    'activations': ({}, 'activations'),
    'logits': (dict(vocab_size=3000), 'logits'),
    'a large vocabulary, few tokens': (dict(FEW, vocab_size=3000), 'embedding'),
    'micro-batches': (dict(FEW, vocab_size=3000, gradient_accumulation_steps=3), 'embedding'),
    'micro-batches, untied': (dict(gradient_accumulation_steps=3, tie_weights=False, n_embd=128), 'early'),
    'weights': (dict(FEW, n_embd=128), 'gradients'),
    'Muon': (dict(FEW, **QWEN3, optimizer='muon', n_embd=128), 'update'),
    'Muon, GPT-2': (dict(FEW, optimizer='muon', n_embd=128), 'update'),
    '16 bits': (dict(QWEN3, dtype='bfloat16', vocab_size=500), 'activations'),
    'dropout': (dict(dropout=0.1), 'activations'),
}


def settings_of(name):
    """(TrainConfig, vocabulary) of an entry of STEPS."""
    given = dict(STEPS[name][0])
    vocab_size = given.pop('vocab_size', 65)
    shape = dict(device='cpu', block_size=64, batch_size=4, gradient_accumulation_steps=1, n_layer=3, n_head=4,
                 n_embd=64)
    return train.TrainConfig(**{**shape, **given}), vocab_size


def allocated(cfg, vocab_size):
    """The most that PyTorch's allocator has handed out at one moment of two steps, and the optimizer's part."""
    worker = parallel.init('cpu', cfg.dtype)
    tokens = data.Tokens.from_ids(torch.randint(vocab_size, (5000,)).numpy(), vocab_size, cfg.block_size)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        side = Ours(cfg, worker, pretrained.config_of(cfg, vocab_size), tokens)
        for n in range(2):
            side.step(n)
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == '[memory]']
    changes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    state = [value for values in side.optimizer.state.values() for value in values.values()]
    return np.cumsum(changes).max(), sum(t.nbytes for t in state if isinstance(t, torch.Tensor) and t.dim())


@pytest.mark.parametrize('name', STEPS)
def test_a_step(name):
    cfg, vocab_size = settings_of(name)
    worker = parallel.init('cpu', cfg.dtype)
    step = memory.step_of_run(cfg, pretrained.config_of(cfg, vocab_size), worker)
    peak, state = allocated(cfg, vocab_size)
    assert step.optimizer == state
    assert step.peak == pytest.approx(peak, rel=0.05)

    # Negative control.
    assert replace(step, **{STEPS[name][1]: 0}).peak != pytest.approx(peak, rel=0.05)


def test_published_figures():
    """ZeRO (Rajbhandari et al. 2020): 16 bytes for each weight with Adam: 24 GB for GPT-2's 1.5 billion."""
    xl = GPTConfig(n_layer=48, n_head=25, n_embd=1600, vocab_size=50257)
    step = memory.step(xl, 1)
    assert step.weights == 4 * 1_557_611_200          # as Hugging Face counts gpt2-xl
    assert step.weights + step.gradients + step.optimizer == pytest.approx(24e9, rel=0.05)
