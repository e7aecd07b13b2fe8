"""Losses and gradients that are not finite, hostile checkpoints, other machines, long runs."""

import math
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import (
    REPO,
    babble,
    flags_of,
    limited,
    read_log,
    run_script,
    settings,
    sha256_of,
    snapshot,
    write_digits,
)

import sample
import train
from gradus import checkpoint, configurator, data, kernel, metadata, parallel, preparation
from gradus.errors import UserError
from gradus.tokenizer import CharTokenizer
from model import GPT, GPTConfig

# ---------------------------------------------------------------------------- NaN and infinity

def poison(monkeypatch, steps):
    """Make the loss of these iterations NaN."""
    real_seed_step = train.seed_step
    real_forward = train.GPT.forward
    current = None

    def seed_step(cfg, step, rank):
        nonlocal current
        current = step
        real_seed_step(cfg, step, rank)

    def forward(self, *args, **kwargs):
        logits, loss = real_forward(self, *args, **kwargs)
        if self.training and current in steps:
            loss = loss * math.nan
        return logits, loss

    monkeypatch.setattr(train, 'seed_step', seed_step)
    monkeypatch.setattr(train.GPT, 'forward', forward)


def assert_saved(iter_num):
    """The checkpoint is of this iteration, and its weights are finite."""
    state = checkpoint.load('out/ckpt.pt')
    assert state['iter_num'] == iter_num
    assert all(t.isfinite().all() for t in state['model'].values())


def test_a_nonfinite_loss_stops_before_the_step(place, monkeypatch):
    poison(monkeypatch, {12})
    expected = (r'iteration 12: loss is nan .* at learning rate 0.00\d+; '
                r'the last good checkpoint is out/ckpt.pt, of iteration 10')
    with pytest.raises(UserError, match=expected) as e:
        train.main(settings(checkpoint_interval=5))
    assert '\n' not in str(e.value)
    assert_saved(10)


@pytest.mark.parametrize('allowed, steps, ends', [(1, {12}, 20), (2, {12, 13, 15, 16}, 20), (1, {12, 13}, None)])
def test_some_nonfinite_steps_in_a_row_may_be_skipped(place, monkeypatch, allowed, steps, ends):
    poison(monkeypatch, steps)
    cfg = settings(skip_nonfinite=allowed, log_interval=1)

    if ends is None:
        with pytest.raises(UserError, match='iteration 13'):
            train.main(cfg)
        return

    train.main(cfg)
    assert_saved(ends)
    assert {r['iter'] for r in read_log('out') if 'skipped' in r} == steps


def test_the_skipped_steps_in_a_row_are_counted_across_a_restart(place, monkeypatch):
    """One more than allowed, with a save in between; the run is killed after it, as by a scheduler."""
    cfg = dict(skip_nonfinite=2, checkpoint_interval=1)
    with monkeypatch.context() as patch:
        poison(patch, {11, 12, 13})
        train.main(settings(max_iters=13, **cfg))
        assert checkpoint.load('out/ckpt.pt')['skipped'] == 2
        with pytest.raises(UserError, match='iteration 13: loss is nan'):
            train.main(settings(init_from='resume', **cfg))

    with monkeypatch.context() as patch:              # negative control: a good step in between
        poison(patch, {10, 11, 13})
        train.main(settings(out_dir='other', max_iters=13, **cfg))
        train.main(settings(out_dir='other', init_from='resume', **cfg))


def three_steps(monkeypatch, scaling, hook=None, poisoned=()):
    """
    (taken, did the weights change) for three steps of SGD, with a GradScaler as in float16, or without one.

    The gradient of step `hook` is infinite, and the loss of the steps `poisoned` is NaN.
    """
    run = parallel.init('cpu')
    cfg = settings()
    meta = metadata.read_meta('data/babble')
    model, _ = train.build_model(cfg, run, meta)
    tokens = data.Tokens('data/babble/train.bin', meta['dtype'], meta['vocab_size'], cfg.block_size)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler('cpu', init_scale=4.0, enabled=scaling)
    poison(monkeypatch, poisoned)

    results = []
    for n in range(3):
        if n == hook:
            handle = model.lm_head.weight.register_hook(lambda g: g * math.inf)
        before = sha256_of(model.state_dict())
        _, _, taken = train.train_step(model, optimizer, scaler, tokens, n, cfg, run)
        results.append((taken, sha256_of(model.state_dict()) != before))
        assert all(p.grad is None for p in model.parameters())
        if n == hook:
            handle.remove()
    return results


def test_a_nonfinite_gradient_is_not_used(place, monkeypatch):
    results = three_steps(monkeypatch, scaling=False, hook=1)
    assert results == [(True, True), (False, False), (True, True)]


def test_with_loss_scaling_a_nonfinite_gradient_is_normal_but_a_nonfinite_loss_is_not(place, monkeypatch):
    results = three_steps(monkeypatch, scaling=True, hook=1)
    assert results == [(True, True), (True, False), (True, True)]

    results = three_steps(monkeypatch, scaling=True, poisoned={1})
    assert results == [(True, True), (False, False), (True, True)]


def test_a_nonfinite_val_loss_saves_nothing(place, monkeypatch):
    train.main(settings(max_iters=10, eval_interval=5))
    before = snapshot('out', without=['log.jsonl'])

    monkeypatch.setattr(train.evaluation, 'evaluate', lambda *args: (math.nan, None))
    with pytest.raises(UserError, match='iteration 15: val loss is nan .* out/ckpt.pt, of iteration 10'):
        train.main(settings(max_iters=20, eval_interval=5, init_from='resume'))
    assert snapshot('out', without=['log.jsonl']) == before


# ---------------------------------------------------------------------------- hostile files, other machines, long runs

ABSURD = [
    dict(n_layer=10 ** 9),
    dict(n_embd=2 ** 20, n_head=1),
    dict(vocab_size=10 ** 12),
    dict(block_size=10 ** 12),
    dict(n_inner=10 ** 9),
    dict(n_layer='many'),
    dict(n_layer=-1),
    dict(n_layer=1000),
    dict(no_such_field=1),
]


@pytest.mark.skipif(sys.platform != 'linux', reason='needs resource limits and /proc')
def test_absurd_sizes_cost_no_memory(place, capsys):
    """They are refused by a process that may use half a gigabyte more than it does already."""
    train.main(settings(max_iters=1))
    state = checkpoint.load('out/ckpt.pt')
    for n, absurd in enumerate(ABSURD):
        os.mkdir(f'out{n}')
        torch.save({**state, 'model_args': {**state['model_args'], **absurd}}, f'out{n}/ckpt.pt')
    capsys.readouterr()

    used = int(open('/proc/self/statm').read().split()[0]) * os.sysconf('SC_PAGESIZE')
    with limited('RLIMIT_AS', used + 2 ** 29):
        for n in range(len(ABSURD)):
            argv = ['--device=cpu', f'--out_dir=out{n}']
            with pytest.raises(SystemExit) as e:
                configurator.launch(sample.main, sample.SampleConfig, argv)
            assert e.value.code == 2

    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(ABSURD)
    for n, line in enumerate(lines):
        assert line.startswith(f'error: out{n}/ckpt.pt: model_args and weights do not fit')
        assert 'alloc' not in line, 'refused only because memory ran out'


def test_what_is_on_disk_already_is_not_saved_again(place, monkeypatch):
    """Otherwise ckpt.pt.prev would become a copy of ckpt.pt."""
    train.main(settings(max_iters=20, checkpoint_interval=5))
    saved = []
    monkeypatch.setattr(checkpoint, 'save', lambda path, state: saved.append((path, state['iter_num'])))

    train.main(settings(max_iters=26, checkpoint_interval=5, eval_interval=40, init_from='resume'))

    assert [n for path, n in saved if path.endswith('ckpt.pt')] == [25, 26]


def test_nanogpts_checkpoint_counts_as_evaluated(place, capsys):
    """It is written right after an evaluation, and does not say so."""
    train.main(settings(max_iters=20, eval_interval=10))
    state = checkpoint.load('out/ckpt.pt')
    del state['evaluated'], state['elapsed_s']
    checkpoint.save('out/ckpt.pt', state)
    capsys.readouterr()

    train.main(settings(max_iters=30, eval_interval=10, init_from='resume'))

    out = capsys.readouterr().out
    assert 'step 20:' not in out
    assert 'step 30:' in out


def test_another_machine_gets_a_warning(place, capsys, monkeypatch):
    train.main(settings(max_iters=2))
    state = checkpoint.load('out/ckpt.pt')
    worker = parallel.init('cpu')
    dataset = SimpleNamespace(fingerprint=metadata.fingerprint('data/babble'))
    model = worker.place(GPT(GPTConfig(**state['model_args'])))
    assert state['machine'] == worker.environment(model, dataset)

    # The same machine gets none.
    capsys.readouterr()
    train.main(settings(max_iters=3, init_from='resume'))
    assert 'bit for bit' not in capsys.readouterr().out

    state = checkpoint.load('out/ckpt.pt')
    state['machine'].update(torch='1.0', threads=64)
    checkpoint.save('out/ckpt.pt', state)
    train.main(settings(max_iters=4, init_from='resume'))
    out = capsys.readouterr().out
    assert out.count('bit for bit') == 1
    assert 'torch=1.0 (now ' in out
    assert 'threads=64 (now 1)' in out

    # Neither does one without a compiler continue bit for bit.
    monkeypatch.setattr(kernel, 'load', lambda: None)
    train.main(settings(max_iters=5, init_from='resume'))
    assert 'kernel=True (now False): the run continues, but not bit for bit' in capsys.readouterr().out


def test_other_data_gets_a_warning(place, capsys):
    """The same characters, so that the run can go on, but another text."""
    train.main(settings(max_iters=2))
    text = babble(seed=3)
    tokenizer = CharTokenizer.from_text(text)
    ids = tokenizer.encode(text)
    preparation.write('data/babble', [('train', ids[:18_000]), ('val', ids[18_000:])], tokenizer, 'b', '1')
    capsys.readouterr()

    train.main(settings(max_iters=3, init_from='resume'))
    out = capsys.readouterr().out
    assert 'warning: out/ckpt.pt was written with data=' in out
    assert out.count('bit for bit') == 1


# ---------------------------------------------------------------------------- memory

@pytest.mark.parametrize('script, flag, lower', [
    ('train.py', 'n_embd=1048576', '--batch_size, --block_size, --n_layer or --n_embd'),
    pytest.param('train.py', 'batch_size=1000000000000', '--batch_size', marks=pytest.mark.slow),
    ('sample.py', 'num_samples=10000000', 'num_samples'),
    pytest.param('mlp_mnist.py', 'sizes=784-900000-300-10', '--mini_batch_size or --sizes', marks=pytest.mark.slow),
])
@pytest.mark.slow
def test_too_little_memory_is_one_line(place, script, flag, lower):
    flags = {'train.py': flags_of(max_iters=2), 'sample.py': [], 'mlp_mnist.py': ['--n_train=200']}[script]
    if script == 'sample.py':
        train.main(settings(max_iters=2))
    if script == 'mlp_mnist.py':
        write_digits()
    with limited('RLIMIT_AS', 3 * 2 ** 30):
        ran = run_script(script, *flags, f'--{flag}')
    last = ran.stderr.splitlines()[-1]
    assert ran.returncode == 2, last
    assert last.startswith('error: ')
    assert lower in last
    assert 'Traceback' not in ran.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='needs /proc')
def test_memory_does_not_grow(place):
    """Compare the resident memory after 400 and after 2,000 iterations, with evaluations and saves."""
    script = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import train
from gradus import configurator

step = train.train_step

def counted(*args):
    if args[4] in (400, 1999):
        print("RESIDENT", open("/proc/self/statm").read().split()[1])
    return step(*args)

train.train_step = counted
configurator.launch(train.main, train.TrainConfig)
"""
    flags = flags_of(max_iters=2000, lr_decay_iters=2000, eval_interval=200, checkpoint_interval=50)
    ran = subprocess.run([sys.executable, '-c', script, REPO, *flags], capture_output=True, text=True)
    early, late = (int(n) for n in re.findall(r'RESIDENT (\d+)', ran.stdout))
    assert late < 1.05 * early
