"""Kills, signals, full disks, damaged files: whatever stops a run, it resumes where it was, bit for bit."""

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
from conftest import (
    REPO,
    flags_of,
    limited,
    prepare_babble,
    read_log,
    run_main,
    settings,
    sha256_of,
    small_disk,
    snapshot,
)

import train
from gradus import checkpoint, configurator, interrupt
from gradus.errors import UserError

pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='needs fork, resource limits and /proc')


def final(out_dir):
    """What two equal runs have in common: weights, optimizer, and the log except for times."""
    state = checkpoint.load(f'{out_dir}/ckpt.pt')
    return sha256_of([state['model'], state['optimizer'], state['iter_num'], state['best_val_loss']]), read_log(out_dir)


def files(folder):
    """Everything in a run's folder except the log."""
    return snapshot(folder, without=['log.jsonl'])


def unfinished(folder):
    """The temporary files of interrupted saves."""
    return [name for name in os.listdir(folder) if name.endswith('.tmp')]


# ---------------------------------------------------------------------------- kills

# Imports torch once, and the part of it that optimizers load late, so that a run starts at once. Each line it reads is
# a command for train.py, which a fork runs; it prints the fork's process id, and later its exit status.
FORK_SERVER = """
import os, sys
sys.path.insert(0, sys.argv[1])
import torch._dynamo
import train
from gradus import configurator

for line in sys.stdin:
    child = os.fork()
    if not child:
        sys.stdin.close()
        sys.stdout = sys.stderr = open('output.txt', 'a')
        configurator.launch(train.main, train.TrainConfig, line.split())
        os._exit(0)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""

# Most of such a run's time goes into saving its 40 MB: the vocabulary is GPT-2's.
WIDE = (
    '--dataset=wide --device=cpu --block_size=8 --batch_size=2 --gradient_accumulation_steps=1 '
    '--n_layer=1 --n_head=2 --n_embd=64 --dropout=0.1 '
    '--max_iters=18 --lr_decay_iters=18 --warmup_iters=2 --eval_interval=7 --eval_iters=1 '
    '--checkpoint_interval=1 --sample_tokens=0 --init_from=auto'
)


@pytest.fixture
def fork_server(place):
    """start(command) returns the process id; wait() returns the exit status as os.waitpid has it."""
    process = subprocess.Popen(
        [sys.executable, '-c', FORK_SERVER, REPO],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=place,
    )

    def start(command):
        process.stdin.write(command + '\n')
        process.stdin.flush()
        return int(process.stdout.readline())

    def wait():
        return int(process.stdout.readline())

    yield start, wait
    process.stdin.close()
    process.wait()


def wide_dataset():
    """Random tokens of GPT-2's vocabulary."""
    os.makedirs('data/wide')
    for name in ('train', 'val'):
        np.random.default_rng(0).integers(0, 50257, 2000).astype('<u2').tofile(f'data/wide/{name}.bin')


def kill_at_random(fork_server, kills, flags=''):
    """
    Kill runs until `kills` of them have died; every run that finishes must equal one that was never killed.

    Returns how many kills found a checkpoint: the others came before there was anything to lose.
    """
    start, wait = fork_server
    wide_dataset()

    start(f'{WIDE} {flags} --out_dir=whole')
    began = time.perf_counter()
    assert wait() == 0
    seconds = time.perf_counter() - began
    expected = final('whole')

    r = random.Random(0)
    killed = 0
    finished = 0
    found = 0
    while killed < kills or not finished:
        child = start(f'{WIDE} {flags} --out_dir=killed')
        if killed < kills:
            time.sleep(r.uniform(0, seconds / 4))
            try:
                os.kill(child, signal.SIGKILL)
            except ProcessLookupError:                # it has finished
                pass
        status = wait()
        if status == signal.SIGKILL:
            killed += 1
            found += checkpoint.exists('killed/ckpt.pt')
            continue

        assert status == 0, open('output.txt').read()[-2000:]
        assert final('killed') == expected
        assert not unfinished('killed')
        finished += 1
        if killed < kills:                            # once more from the start
            shutil.rmtree('killed')
    return found


def test_killed_at_random_moments(fork_server):
    assert kill_at_random(fork_server, 20) > 10


@pytest.mark.slow
@pytest.mark.parametrize('flags, kills', [('', 100), ('--compile=True', 3)], ids=['eager', 'compiled'])
def test_killed_many_times(fork_server, flags, kills):
    kill_at_random(fork_server, kills, flags)


# ---------------------------------------------------------------------------- signals

LONG = (
    '--dataset=babble --device=cpu --block_size=16 --batch_size=4 --gradient_accumulation_steps=2 '
    '--n_layer=1 --n_head=2 --n_embd=16 --dropout=0.1 '
    '--max_iters=300 --lr_decay_iters=300 --warmup_iters=2 --eval_interval=70 --eval_iters=2 --sample_tokens=0'
).split()


def train_long(*flags):
    train.main(configurator.load(train.TrainConfig, [*LONG, *flags]))


def command(processes=1):
    """The command line that runs train.py, under torchrun if there are several processes."""
    launch = []
    if processes > 1:
        launch = ['-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={processes}']
    return [sys.executable, *launch, str(REPO / 'train.py')]


def interrupted(number, processes=1):
    """Run train.py, send it a signal after 20 iterations; returns its exit code and output."""
    process = subprocess.Popen(
        [*command(processes), *LONG, '--init_from=auto', '--out_dir=out'],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith('iter 20:'):
            process.send_signal(number)
    return process.wait(), ''.join(lines)


@pytest.fixture(scope='module')
def long_run(tmp_path_factory):
    """What the long run ends with if nothing interrupts it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp('long_run'))
        prepare_babble()
        train_long('--out_dir=whole')
        return final('whole')


def interrupted_here(number):
    """The same in this process, without the seconds that it takes to start one."""
    step = train.train_step

    def step_with_signal(*args):
        if args[4] == 20:
            signal.raise_signal(number)
        return step(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, 'train_step', step_with_signal)
        ran = run_main(train, *LONG, '--init_from=auto', '--out_dir=out')
    return ran.returncode, ran.stdout + ran.stderr


@pytest.mark.parametrize('interrupt_it', [interrupted_here, pytest.param(interrupted, marks=pytest.mark.slow)])
@pytest.mark.parametrize('number, code', [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_finishes_the_step_saves_and_says_so(place, long_run, number, code, interrupt_it):
    status, output = interrupt_it(number)

    step = checkpoint.load('out/ckpt.pt')['iter_num']
    assert status == code
    assert 20 < step < 300
    assert f'stopped by {number.name} at iteration {step}, saved in out/ckpt.pt' in output
    assert 'Traceback' not in output

    train_long('--out_dir=out', '--init_from=resume')
    assert final('out') == long_run


@pytest.mark.slow
def test_a_signal_under_torchrun(place):
    status, output = interrupted(signal.SIGTERM, processes=2)

    step = checkpoint.load('out/ckpt.pt')['iter_num']
    assert status != 0
    assert step > 20
    assert 'saved in out/ckpt.pt' in output

    for flags in (['--out_dir=out', '--init_from=resume'], ['--out_dir=whole']):
        subprocess.run([*command(processes=2), *LONG, *flags], check=True, capture_output=True)
    assert final('out') == final('whole')


def test_a_second_signal_quits_at_once(place):
    """Even while the first one is still being handled."""
    script = """
import os, signal, time
from gradus import interrupt

with interrupt.Interrupt() as i:
    i.watch()
    os.kill(os.getpid(), signal.SIGINT)
    print(i.signal, flush=True)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(5)
    print("too late")
"""
    ran = subprocess.run(
        [sys.executable, '-c', script],
        capture_output=True,
        text=True,
        env={**os.environ, 'PYTHONPATH': str(REPO)},
    )
    assert ran.returncode == -signal.SIGINT
    assert ran.stdout == '2\n'
    assert 'Traceback' not in ran.stderr


def test_the_signal_handlers_are_restored():
    before = signal.getsignal(signal.SIGINT)
    with interrupt.Interrupt() as i:
        assert signal.getsignal(signal.SIGINT) == before
        i.watch()
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before


# ---------------------------------------------------------------------------- full disks

FULL = dict(eval_interval=10, checkpoint_interval=5)


def refused(capsys, **changes):
    """Run train.py, which must end with exit code 2 and an error of one line; returns that line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as e:
        configurator.launch(train.main, train.TrainConfig, flags_of(**changes))
    stderr = capsys.readouterr().err
    assert e.value.code == 2
    assert 'Traceback' not in stderr
    return stderr.splitlines()[-1]


def test_a_file_size_limit_ends_in_one_line_and_the_run_goes_on_later(place, capsys):
    train.main(settings(out_dir='whole', **FULL))
    train.main(settings(out_dir='out', max_iters=10, **FULL))
    before = files('out')

    with limited('RLIMIT_FSIZE', 60_000):
        error = refused(capsys, out_dir='out', init_from='resume', **FULL)
    assert files('out') == before
    expected = r'error: out/ckpt.pt: could not be written .* it needs [\d,]+ bytes, and [\d,]+ are free'
    assert re.match(expected, error)

    train.main(settings(out_dir='out', init_from='resume', **FULL))
    assert final('out') == final('whole')


def test_a_full_disk(place, capsys):
    """There is room for two checkpoints and a half."""
    train.main(settings(out_dir='whole', **FULL))
    size = os.path.getsize('whole/ckpt.pt')

    with small_disk('small', round(2.5 * size)):
        error = refused(capsys, out_dir='small/out', **FULL)
        assert re.match(r'error: small/out/\w+.pt: could not be written', error)
        numbers = re.search(r'needs ([\d,]+) bytes, and ([\d,]+) are free', error).groups()
        needed, free = (int(number.replace(',', '')) for number in numbers)
        path = error.split(': ')[1]
        assert free < needed
        assert needed == pytest.approx(os.path.getsize(path), rel=0.1)
        assert checkpoint.load('small/out/ckpt.pt')['iter_num'] in (5, 10)
        assert not unfinished('small/out')

        subprocess.run(['mount', '-o', f'remount,size={20 * size}', 'small'], check=True)
        train.main(settings(out_dir='small/out', init_from='resume', **FULL))
        assert final('small/out') == final('whole')


def test_resuming_on_a_full_disk(place, capsys):
    """Not even the log can be written."""
    with small_disk('small', 4_000_000):
        train.main(settings(out_dir='small/out', max_iters=10, **FULL))
        before = snapshot('small')
        with pytest.raises(OSError), open('small/filler', 'wb') as f:
            while True:
                f.write(bytes(10_000))

        error = refused(capsys, out_dir='small/out', init_from='resume', **FULL)
        assert re.match(r'error: small/out/\S+: could not be written \(No space left on device\); make room', error)
        os.remove('small/filler')
        assert snapshot('small') == before
        train.main(settings(out_dir='small/out', init_from='resume', max_iters=11, **FULL))


# ---------------------------------------------------------------------------- damaged files

def test_a_kill_in_the_middle_of_a_line(place):
    train.main(settings(out_dir='whole', **FULL))
    train.main(settings(out_dir='out', max_iters=10, **FULL))
    with open('out/log.jsonl', 'a') as f:
        f.write('{"iter": 11, "loss": 2.')

    train.main(settings(out_dir='out', init_from='auto', **FULL))
    assert final('out') == final('whole')


def test_auto_never_starts_over_silently(place):
    # There is nothing to resume: from scratch.
    train.main(settings(max_iters=10, checkpoint_interval=5, init_from='auto'))
    assert checkpoint.load('out/ckpt.pt')['iter_num'] == 10

    for name in ('ckpt.pt', 'ckpt.pt.prev'):
        os.truncate(f'out/{name}', 1000)
    before = files('out')
    with pytest.raises(UserError, match='ckpt.pt.prev: damaged'):
        train.main(settings(init_from='auto'))
    assert files('out') == before
    assert not os.path.exists('out-1')
