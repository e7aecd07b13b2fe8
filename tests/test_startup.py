"""A script starts fast: nothing is imported that it does not need, and a model can be made without any memory."""

import json
import subprocess
import sys

import pytest
import torch
from conftest import REPO, flags_of, prepare_babble, write_digits

from gradus.shapes import empty_gpt, shapes_only
from model import GPT, MLP, GPTConfig

# What a run does not need that compiles nothing and draws nothing, in one process: seconds of imports.
UNNEEDED = {'torch._dynamo', 'torch._inductor', 'torch.fx.experimental.symbolic_shapes', 'torch.distributed.nn',
            'torch.distributed.tensor', 'sympy', 'networkx', 'numpy.testing', 'tiktoken', 'regex', 'matplotlib', 'PIL',
            'safetensors', 'transformers', 'huggingface_hub', 'wandb', 'tensorboard'}

BEFORE = f'import sys, torch; sys.path.insert(0, {str(REPO)!r}); before = set(sys.modules)\n'
AFTER = '\nimport json; print(); print(json.dumps([*set(sys.modules) - before]))'
SCRIPT = f'import runpy; del sys.argv[0]; runpy.run_path({str(REPO)!r} + "/" + sys.argv[0], run_name="__main__")'


def unneeded(code, *args):
    """What a new process imports beyond torch, of what it does not need, when it runs `code` with `args`."""
    ran = subprocess.run([sys.executable, '-c', BEFORE + code + AFTER, *args], capture_output=True, text=True,
                         encoding='utf-8', timeout=300)
    assert ran.returncode == 0, ran.stderr
    return UNNEEDED & set(json.loads(ran.stdout.splitlines()[-1]))


def test_scripts_import_nothing_unneeded():
    assert not unneeded('import train, sample, mlp_mnist')


@pytest.mark.slow
@pytest.mark.parametrize('pos, optimizer', [('learned', 'adamw'), ('sinusoidal', 'muon'), ('rotary', 'muon')])
def test_a_run_of_a_gpt_imports_nothing_unneeded(pos, optimizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepare_babble()
    train = ['train.py', *flags_of(pos=pos, optimizer=optimizer, out_dir='out', sample_tokens=3)]

    assert not unneeded(SCRIPT, *train, '--max_iters=1')
    assert not unneeded(SCRIPT, *train, '--max_iters=2', '--init_from=resume')
    assert not unneeded(SCRIPT, 'sample.py', '--out_dir=out', '--max_new_tokens=3', '--device=cpu')


@pytest.mark.slow
@pytest.mark.parametrize('optimizer', ['adamw', 'sgd'])
def test_a_run_of_a_digit_network_imports_nothing_unneeded(optimizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_digits()
    settings = ['--sizes=784-8-10', '--mini_batch_size=50', f'--optimizer={optimizer}', '--device=cpu', '--out_dir=out']

    assert not unneeded(SCRIPT, 'mlp_mnist.py', *settings, '--n_train=100', '--epochs=1')
    assert not unneeded(SCRIPT, 'mlp_mnist.py', *settings, '--predict=test:1')


@pytest.mark.slow
@pytest.mark.parametrize('code', [
    'torch.optim.AdamW([torch.ones(2, requires_grad=True)])',
    'with torch.device("meta"): torch.nn.Embedding(2, 2)',
    'from model import *\nwith torch.device("meta"): rotary(8, 4, 1e4)',
])
def test_what_these_tests_would_find(code):
    """Negative control: what gradus/optim.py and gradus/shapes.py avoid. If this fails, PyTorch may need neither."""
    assert 'torch._dynamo' in unneeded(code)


# ---------------------------------------------------------------------------- networks without memory

@pytest.mark.parametrize('changes', [
    dict(),
    dict(pos='sinusoidal', bias=False, tie_weights=False),
    dict(pos='rotary', norm='rmsnorm', mlp='swiglu', qk_norm=True, n_kv_head=1),
])
def test_an_empty_gpt_has_the_names_and_shapes_and_no_memory(changes):
    config = GPTConfig(**dict(block_size=8, vocab_size=11, n_layer=2, n_head=2, n_embd=8) | changes)
    empty = empty_gpt(config)
    real = GPT(config)

    assert all(p.is_meta for p in empty.parameters())
    assert empty.config == config
    expected = {name: p.shape for name, p in real.state_dict().items()}
    assert {name: p.shape for name, p in empty.state_dict().items()} == expected

    # Complete with weights and tables, it computes the same.
    empty.load_state_dict(real.state_dict(), assign=True)
    empty.init_tables()
    ids = torch.arange(8)[None]
    assert torch.equal(empty(ids)[0], real(ids)[0])


def test_no_size_is_too_large_for_shapes_only():
    empty = empty_gpt(GPTConfig(block_size=2 ** 20, vocab_size=2 ** 20, n_layer=1, n_embd=2 ** 20, n_head=1,
                                pos='rotary'))
    with shapes_only():
        digits = MLP((784, 2 ** 20, 2 ** 20, 10), 'relu', batch_norm=True)
    assert empty.num_params() > 2 ** 40
    assert digits.layers[1].weight.shape == (2 ** 20, 2 ** 20)
