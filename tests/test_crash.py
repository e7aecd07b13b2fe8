"""Kills, signals, full disks, numbers that are none: whatever happens to a run, it goes on where it was, bit for bit."""

import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import REPO, read_log, settings, sha256_of

import train
from gradus import checkpoint, configurator, data, parallel

pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='fork, limits of memory and of files, /proc')

# Imports torch once; then each line it reads is a command for train.py, run in a fork, whose process id it prints first.
NURSERY = """
import os, sys
sys.path.insert(0, sys.argv[1])
import train
from gradus import configurator
for line in sys.stdin:
    child = os.fork()
    if not child:
        sys.stdin.close()
        sys.stdout = sys.stderr = open('output.txt', 'a')
        configurator.run(train.main, train.TrainConfig, train.ERRORS, line.split())
        os._exit(0)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


@pytest.fixture
def nursery(place):
    """start(command) -> process id; wait() -> exit status as os.waitpid has it."""
    process = subprocess.Popen([sys.executable, '-c', NURSERY, REPO], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=place)

    def start(command):
        process.stdin.write(command + '\n')
        process.stdin.flush()
        return int(process.stdout.readline())
    yield start, lambda: int(process.stdout.readline())
    process.stdin.close()
    process.wait()


def final(out_dir):
    """What must be the same: weights, optimizer, and the log but for the times."""
    state = checkpoint.load(f'{out_dir}/ckpt.pt')
    return sha256_of([state['model'], state['optimizer'], state['iter_num'], state['best_val_loss']]), read_log(out_dir)


COMMAND = ('--dataset=wide --device=cpu --block_size=8 --batch_size=2 --gradient_accumulation_steps=1 --n_layer=1 --n_head=2 --n_embd=256 '
           '--dropout=0.1 --max_iters=18 --lr_decay_iters=18 --warmup_iters=2 --eval_interval=7 --eval_iters=1 --checkpoint_interval=1 '
           '--sample_tokens=0 --init_from=auto')


def wide_dataset():
    """GPT-2's vocabulary: with 256 dimensions the model has some 50 MB."""
    os.makedirs('data/wide')
    for name in ('train', 'val'):
        np.random.default_rng(0).integers(0, 50257, 2000).astype('<u2').tofile(f'data/wide/{name}.bin')


def kill_at_random(nursery, kills, flags=''):
    start, wait = nursery
    wide_dataset()
    start(f'{COMMAND} {flags} --out_dir=whole')
    began = time.perf_counter()
    assert wait() == 0
    seconds = time.perf_counter() - began
    r, killed, finished = random.Random(0), 0, 0
    while killed < kills or not finished:
        child = start(f'{COMMAND} {flags} --out_dir=killed')
        if killed < kills:
            time.sleep(r.uniform(0, 1.5 * seconds / 9))
            try:
                os.kill(child, signal.SIGKILL)
            except ProcessLookupError:
                pass
        status = wait()
        killed += status == signal.SIGKILL
        if status != signal.SIGKILL:
            assert status == 0, open('output.txt').read()[-2000:]
            assert final('killed') == final('whole') and not [name for name in os.listdir('killed') if name.endswith('.tmp')]
            finished += 1
            if killed < kills:                        # once more from the start
                shutil.rmtree('killed')


def test_killed_at_random_moments(nursery):
    kill_at_random(nursery, 20)


@pytest.mark.slow
@pytest.mark.parametrize('flags, kills', [('', 100), ('--compile=True', 3)], ids=['eager', 'compiled'])
def test_killed_many_times(nursery, flags, kills):
    kill_at_random(nursery, kills, flags)


# ---------------------------------------------------------------------------- signals

LONG = ('--dataset=babble --device=cpu --block_size=16 --batch_size=4 --gradient_accumulation_steps=2 --n_layer=1 --n_head=2 --n_embd=16 --dropout=0.1 '
        '--max_iters=300 --lr_decay_iters=300 --warmup_iters=2 --eval_interval=70 --eval_iters=2 --sample_tokens=0').split()


def interrupted(number, processes=1, again=False):
    """Start train.py, send it the signal after some iterations; returns the exit code and what it said."""
    command = [sys.executable, str(REPO / 'train.py')] if processes == 1 else \
        [sys.executable, '-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={processes}', str(REPO / 'train.py')]
    process = subprocess.Popen([*command, *LONG, '--init_from=auto', '--out_dir=out'], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    said = []
    for line in process.stdout:
        said.append(line)
        if line.startswith('iter 20:'):
            process.send_signal(number)
            if again:
                process.send_signal(number)
    return process.wait(), ''.join(said)


@pytest.mark.parametrize('number, code', [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_finishes_the_step_saves_and_says_so(place, number, code):
    train.main(settings_of(LONG, out_dir='whole'))
    status, said = interrupted(number)
    step = checkpoint.load('out/ckpt.pt')['iter_num']
    assert status == code and 20 < step < 300 and f'stopped by {number.name} at iteration {step}, saved in out/ckpt.pt' in said and 'Traceback' not in said
    train.main(settings_of(LONG, out_dir='out', init_from='resume'))
    assert final('out') == final('whole')


def settings_of(flags, **changes):
    return configurator.load(train.TrainConfig, [*flags, *(f'--{k}={v}' for k, v in changes.items())])


@pytest.mark.slow
def test_a_signal_under_torchrun(place):
    status, said = interrupted(signal.SIGTERM, processes=2)
    step = checkpoint.load('out/ckpt.pt')['iter_num']
    assert status != 0 and step > 20 and 'saved in out/ckpt.pt' in said
    subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', str(REPO / 'train.py'), *LONG,
                    '--init_from=resume', '--out_dir=out'], check=True, capture_output=True)
    subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', str(REPO / 'train.py'), *LONG,
                    '--out_dir=whole'], check=True, capture_output=True)
    assert final('out') == final('whole')


def test_a_second_signal_quits_at_once(place, monkeypatch):
    """While the first one is still being served."""
    script = ('import os, signal, time\nfrom gradus import parallel\nwith parallel.Interrupt() as i:\n    os.kill(os.getpid(), signal.SIGINT)\n    print(i.signal, flush=True)\n'
              '    os.kill(os.getpid(), signal.SIGINT)\n    time.sleep(5)\n    print("too late")')
    ran = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': str(REPO)})
    assert ran.returncode == -signal.SIGINT and ran.stdout == '2\n' and 'Traceback' not in ran.stderr


def test_the_handlers_are_put_back():
    before = signal.getsignal(signal.SIGINT)
    with parallel.Interrupt():
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before


# ---------------------------------------------------------------------------- full disks

FULL = dict(eval_interval=10, checkpoint_interval=5)


def files(folder):
    return {name: open(f'{folder}/{name}', 'rb').read() for name in os.listdir(folder) if name != 'log.jsonl'}


def train_in(code, **changes):
    """train.py in a process of its own, after `code`."""
    flags = [f'--{key}={value}' for key, value in vars(settings(**changes)).items()]
    return subprocess.run([sys.executable, '-c', f'import sys\nsys.path.insert(0, sys.argv.pop(1))\n{code}\nimport train\nfrom gradus import configurator\n'
                           'configurator.run(train.main, train.TrainConfig, train.ERRORS)', REPO, *flags], capture_output=True, text=True)


def test_a_file_size_limit_ends_in_one_line_and_the_run_goes_on_later(place):
    train.main(settings(out_dir='whole', **FULL))
    train.main(settings(out_dir='out', max_iters=10, **FULL))
    before = files('out')
    ran = train_in('import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))', out_dir='out', init_from='resume', **FULL)
    assert ran.returncode == 2 and 'Traceback' not in ran.stderr and files('out') == before
    assert re.match(r'error: out/ckpt.pt: could not be written .* it needs [\d,]+ bytes, and [\d,]+ are free', ran.stderr.splitlines()[-1])
    train.main(settings(out_dir='out', init_from='resume', **FULL))
    assert final('out') == final('whole')


def test_a_full_disk(place):
    """A tmpfs with room for one checkpoint and a half."""
    os.makedirs('small')
    train.main(settings(out_dir='whole', **FULL))
    size = os.path.getsize('whole/ckpt.pt')
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={round(2.5 * size)}', 'tmpfs', 'small'], capture_output=True).returncode:
        pytest.skip('a tmpfs can only be mounted by root')
    try:
        ran = train_in('', out_dir='small/out', **FULL)
        error = ran.stderr.splitlines()[-1]
        assert ran.returncode == 2 and 'Traceback' not in ran.stderr and re.match(r'error: small/out/\w+.pt: could not be written', error)
        needed, free = (int(n.replace(',', '')) for n in re.search(r'needs ([\d,]+) bytes, and ([\d,]+) are free', error).groups())
        assert free < needed and needed == pytest.approx(os.path.getsize(error.split(': ')[1].replace('ckpt.pt', 'ckpt.pt')), rel=0.1)
        assert checkpoint.load('small/out/ckpt.pt')['iter_num'] in (5, 10) and not [n for n in os.listdir('small/out') if n.endswith('.tmp')]
        subprocess.run(['mount', '-o', f'remount,size={20 * size}', 'small'], check=True)
        train.main(settings(out_dir='small/out', init_from='resume', **FULL))
        assert final('small/out') == final('whole')
    finally:
        subprocess.run(['umount', 'small'], check=True)


# ---------------------------------------------------------------------------- numbers that are none

def poison(monkeypatch, steps):
    """Make the loss of these iterations no number."""
    real, at = train.seed_step, {}

    def seed_step(cfg, step, rank):
        at['step'] = step
        real(cfg, step, rank)
    forward = train.GPT.forward

    def poisoned(self, idx, targets=None, cache=None):
        logits, loss = forward(self, idx, targets, cache)
        return logits, loss * math.nan if self.training and at.get('step') in steps else loss
    monkeypatch.setattr(train, 'seed_step', seed_step)
    monkeypatch.setattr(train.GPT, 'forward', poisoned)


def test_a_loss_that_is_no_number_stops_before_the_step(place, monkeypatch):
    poison(monkeypatch, {12})
    with pytest.raises(train.TrainError, match=r'iteration 12: loss is nan .* at learning rate 0.00\d+; the last good checkpoint is out/ckpt.pt, of iteration 10') as e:
        train.main(settings(checkpoint_interval=5))
    assert '\n' not in str(e.value)
    state = checkpoint.load('out/ckpt.pt')
    assert state['iter_num'] == 10 and all(t.isfinite().all() for t in state['model'].values())


@pytest.mark.parametrize('allowed, steps, ends', [(1, {12}, 20), (2, {12, 13, 15, 16}, 20), (1, {12, 13}, None)])
def test_some_may_be_skipped_in_a_row(place, monkeypatch, allowed, steps, ends):
    poison(monkeypatch, steps)
    cfg = settings(skip_nonfinite=allowed, log_interval=1)
    if ends is None:
        with pytest.raises(train.TrainError, match='iteration 13'):
            train.main(cfg)
        return
    train.main(cfg)
    state = checkpoint.load('out/ckpt.pt')
    assert state['iter_num'] == ends and all(t.isfinite().all() for t in state['model'].values())
    assert {r['iter'] for r in read_log('out') if 'skipped' in r} == steps


def three_steps(monkeypatch, scaling, hook=None, poisoned=()):
    """(taken, did the weights change) of some steps of SGD, with a GradScaler as in float16, or without."""
    run, cfg = parallel.start('cpu'), settings()
    meta = data.read_meta('data/babble')
    model, _ = train.build_model(cfg, run, meta)
    tokens = data.Tokens('data/babble/train.bin', meta['dtype'], meta['vocab_size'], cfg.block_size)
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler('cpu', init_scale=4.0, enabled=scaling)
    poison(monkeypatch, poisoned)
    results = []
    for n in range(3):
        handle = model.lm_head.weight.register_hook(lambda g: g * math.inf) if n == hook else None
        before = sha256_of(model.state_dict())
        _, _, taken = train.train_step(model, optimizer, scaler, tokens, n, cfg, run)
        results.append((taken, sha256_of(model.state_dict()) != before))
        assert all(p.grad is None for p in model.parameters())
        if handle:
            handle.remove()
    return results


def test_a_gradient_that_is_no_number_is_not_used(place, monkeypatch):
    assert three_steps(monkeypatch, scaling=False, hook=1) == [(True, True), (False, False), (True, True)]


def test_with_loss_scaling_it_is_normal_but_a_loss_that_is_none_is_not(place, monkeypatch):
    assert three_steps(monkeypatch, scaling=True, hook=1) == [(True, True), (True, False), (True, True)]
    assert three_steps(monkeypatch, scaling=True, poisoned={1}) == [(True, True), (False, False), (True, True)]


def test_a_val_loss_that_is_no_number_saves_nothing(place, monkeypatch):
    train.main(settings(max_iters=10, eval_interval=5))
    before = files('out')
    monkeypatch.setattr(train.evaluation, 'evaluate', lambda *args: (math.nan, None))
    with pytest.raises(train.TrainError, match='iteration 15: val loss is nan .* out/ckpt.pt, of iteration 10'):
        train.main(settings(max_iters=20, eval_interval=5, init_from='resume'))
    assert files('out') == before


# ---------------------------------------------------------------------------- files of others, other machines, long runs

ABSURD = [dict(n_layer=10 ** 9), dict(n_embd=2 ** 20, n_head=1), dict(vocab_size=10 ** 12), dict(block_size=10 ** 12), dict(n_inner=10 ** 9), dict(n_layer='many'),
          dict(n_layer=-1), dict(n_layer=1000), dict(no_such_field=1)]


def test_absurd_sizes_cost_no_memory(place):
    """In a process that may not use more than half a gigabyte on top of what torch takes."""
    train.main(settings(max_iters=1))
    state = checkpoint.load('out/ckpt.pt')
    for n, absurd in enumerate(ABSURD):
        os.mkdir(f'out{n}')
        torch.save({**state, 'model_args': {**state['model_args'], **absurd}}, f'out{n}/ckpt.pt')
    code = ('import sys, resource\nsys.path.insert(0, sys.argv.pop(1))\nimport sample, torch._dynamo\nfrom gradus import configurator\n'
            'used = int(open("/proc/self/statm").read().split()[0]) * 4096\nresource.setrlimit(resource.RLIMIT_AS, (used + 2 ** 29, used + 2 ** 29))\n'
            'for out_dir in sys.argv[1:]:\n'
            '    try:\n        configurator.run(sample.main, sample.SampleConfig, sample.ERRORS, ["--device=cpu", "--out_dir=" + out_dir])\n'
            '    except SystemExit as e:\n        print(e.code)')
    ran = subprocess.run([sys.executable, '-c', code, REPO, *[f'out{n}' for n in range(len(ABSURD))]], capture_output=True, text=True)
    assert ran.stdout == '2\n' * len(ABSURD)
    for n, line in enumerate(ran.stderr.splitlines()):
        assert line.startswith(f'error: out{n}/ckpt.pt: model_args and weights do not fit') and 'alloc' not in line       # refused, not run out of memory
    assert n == len(ABSURD) - 1


def test_another_machine_gets_a_warning(place, capsys):
    train.main(settings(max_iters=2))
    state = checkpoint.load('out/ckpt.pt')
    assert state['machine'] == parallel.start('cpu').machine()
    capsys.readouterr()
    train.main(settings(max_iters=3, init_from='resume'))
    assert 'bit for bit' not in capsys.readouterr().out
    state = checkpoint.load('out/ckpt.pt')
    state['machine'].update(torch='1.0', threads=64)
    checkpoint.save('out/ckpt.pt', state)
    train.main(settings(max_iters=4, init_from='resume'))
    out = capsys.readouterr().out
    assert out.count('bit for bit') == 1 and 'torch=1.0 (now ' in out and 'threads=64 (now 1)' in out


@pytest.mark.slow
def test_memory_does_not_grow(place):
    """2,000 iterations with evaluations and saves: the resident memory after 400 and at the end."""
    code = ('import train\nstep, seen = train.train_step, []\n'
            'def counted(*args):\n    if args[4] in (400, 1999): print("RESIDENT", open("/proc/self/statm").read().split()[1])\n    return step(*args)\n'
            'train.train_step = counted')
    ran = train_in(code, max_iters=2000, lr_decay_iters=2000, eval_interval=200, checkpoint_interval=50)
    early, late = (int(n) for n in re.findall(r'RESIDENT (\d+)', ran.stdout))
    assert late < 1.05 * early


def test_a_kill_in_the_middle_of_a_line(place):
    train.main(settings(out_dir='whole', **FULL))
    train.main(settings(out_dir='out', max_iters=10, **FULL))
    with open('out/log.jsonl', 'a') as f:
        f.write('{"iter": 11, "loss": 2.')
    train.main(settings(out_dir='out', init_from='auto', **FULL))
    assert final('out') == final('whole')


def test_auto_never_starts_over_silently(place, capsys):
    train.main(settings(max_iters=10, checkpoint_interval=5, init_from='auto'))
    assert checkpoint.load('out/ckpt.pt')['iter_num'] == 10                     # from scratch, as there was nothing
    for name in ('ckpt.pt', 'ckpt.pt.prev'):
        os.truncate(f'out/{name}', 1000)
    before = files('out')
    with pytest.raises(checkpoint.CheckpointError, match='ckpt.pt.prev: damaged'):
        train.main(settings(init_from='auto'))
    assert files('out') == before and not os.path.exists('out-1')
