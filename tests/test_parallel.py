"""Devices and processes: what is chosen, who does what, and that several processes learn what one does."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import REPO, prepare_babble, read_log, run_main

import train
from gradus import checkpoint, configurator, parallel
from gradus.errors import UserError

FLAGS = (
    '--dataset=babble --device=cpu --block_size=16 --batch_size=3 --n_layer=2 --n_head=2 --n_embd=16 '
    '--max_iters=20 --lr_decay_iters=20 --warmup_iters=2 --learning_rate=0.01 --eval_interval=10 --eval_iters=2 '
    '--sample_tokens=0'
).split()


def launch(processes, out_dir, *flags, script=REPO / 'train.py'):
    """Run train.py under torchrun; returns the CompletedProcess."""
    torchrun = ['-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={processes}']
    return subprocess.run(
        [sys.executable, *torchrun, str(script), *FLAGS, f'--out_dir={out_dir}', *flags],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, 'PYTHONPATH': str(REPO)},
    )


def train_here(out_dir, *flags):
    """Train in this process."""
    train.main(configurator.load(train.TrainConfig, [*FLAGS, f'--out_dir={out_dir}', *flags]))


def train_two(out_dir, *flags, script=REPO / 'train.py'):
    """Train in two processes; returns their output."""
    ran = launch(2, out_dir, *flags, script=script)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def losses(out_dir):
    """(iteration, loss or validation loss) for each line of the log."""
    return [(r['iter'], r.get('loss', r.get('val_loss'))) for r in read_log(out_dir) if 'update_ratio' not in r]


# ---------------------------------------------------------------------------- several processes

# train.py that also reports threads of gloo, the backend of the process group.
WATCHED = """
import os, sys
import train
from gradus import configurator, parallel

def gloo_threads():
    names = [open(f'/proc/self/task/{t}/comm').read() for t in os.listdir('/proc/self/task')]
    return sum('gloo' in name for name in names)

close = parallel.Worker.close

def watched_close(run):
    print(f'while it runs: {gloo_threads() > 0}')
    close(run)

if os.path.exists('/proc/self/task'):
    parallel.Worker.close = watched_close
train.main(configurator.load(train.TrainConfig, sys.argv[1:]))
if os.path.exists('/proc/self/task'):
    print(f'afterwards: {gloo_threads()}')
"""


@pytest.fixture(scope='module')
def pair(tmp_path_factory):
    """A folder with a run of one process and the same run of two, and what the two printed."""
    folder = tmp_path_factory.mktemp('pair')
    (folder / 'watched.py').write_text(WATCHED)
    flags = ['--gradient_accumulation_steps=3', '--batch_size=2']
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        prepare_babble()
        train_here('one', *flags)
        out = train_two('two', *flags, script=folder / 'watched.py')
    return folder, out


def assert_two_follow_one(folder, out):
    """The same global batches give the same losses within 1e-4, and only one process prints and writes."""
    one = losses(folder / 'one')
    two = losses(folder / 'two')
    assert len(one) == len(two) == 23
    assert all(i == j and abs(a - b) < 1e-4 for (i, a), (j, b) in zip(one, two))
    assert abs(one[-1][1] - one[0][1]) > 0.02, 'the run learned nothing'

    assert [out.count(f'iter {i}: ') for i in range(20)] == [1] * 20
    assert out.count('step 20: ') == 1
    assert sorted(os.listdir(folder / 'two')) == sorted(os.listdir(folder / 'one'))


def test_two_processes_follow_one(pair):
    """3 micro-batches of 2 give each process one micro-batch of 2 and one of 1."""
    folder, out = pair
    assert_two_follow_one(folder, out)


@pytest.mark.slow
@pytest.mark.parametrize('accumulation', [4, 2])
def test_two_processes_follow_one_when_whole_micro_batches_are_sharded(place, accumulation):
    train_here('one', f'--gradient_accumulation_steps={accumulation}')
    out = train_two('two', f'--gradient_accumulation_steps={accumulation}')
    assert_two_follow_one(place, out)


@pytest.mark.skipif(not os.path.exists('/proc/self/task'), reason='needs the list of threads that Linux keeps')
def test_no_thread_of_the_process_group_outlives_it(pair):
    """Threads that did aborted some runs at their exit: "terminate called without an active exception"."""
    _, out = pair
    assert out.count('while it runs: True') == 2, out
    assert out.count('afterwards: 0') == 2, out


@pytest.mark.slow
def test_resume_with_another_number_of_processes(place):
    train_here('one', '--gradient_accumulation_steps=2')
    train_two('mixed', '--gradient_accumulation_steps=2', '--max_iters=10')
    train_here('mixed', '--gradient_accumulation_steps=2', '--init_from=resume')

    assert checkpoint.load('mixed/ckpt.pt')['iter_num'] == 20
    expected = dict(losses('one'))
    found = dict(losses('mixed'))
    assert all(abs(loss - found[i]) < 1e-4 for i, loss in expected.items())


@pytest.mark.slow
def test_a_batch_that_cannot_be_sharded_is_one_line_from_rank_0(place):
    ran = launch(2, 'out', '--gradient_accumulation_steps=3')
    assert ran.returncode != 0
    assert not os.path.exists('out')
    expected = 'error: 9 sequences a step on 2 processes: expected batch_size * gradient_accumulation_steps'
    assert ran.stderr.count(expected) == 1


# train.py with a rank 1 that differs, in a way that the first argument says.
ODD_RANK = """
import os, sys
import train
from gradus import configurator

how = sys.argv.pop(1)
if os.environ['RANK'] == '1':
    if how == 'data':
        os.chdir('elsewhere')
    elif how == 'order':
        train.data.fingerprint = lambda folder: 'another text'
    else:
        sys.argv.append(how)
configurator.launch(train.main, train.TrainConfig)
"""


@pytest.mark.slow
@pytest.mark.parametrize('how, expected', [
    ('data', 'error: rank 1: data/babble: no such dataset'),
    ('order', "error: rank 1 has data='another text', rank 0 has data="),
    ('--learning_rate=0.5', 'error: rank 1 has learning_rate=0.5, rank 0 has learning_rate=0.01; start all'),
    ('--seed=5', 'error: rank 1 has seed=5, rank 0 has seed=1337; start all processes with the same'),
])
def test_a_rank_that_differs_is_named_once(place, how, expected):
    os.makedirs('elsewhere/data')
    (place / 'odd.py').write_text(ODD_RANK)
    torchrun = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
    ran = subprocess.run(
        [*torchrun, 'odd.py', how, *FLAGS, '--gradient_accumulation_steps=2', '--out_dir=out'],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, 'PYTHONPATH': str(REPO)},
    )
    assert ran.returncode != 0
    assert ran.stderr.count('error: ') == 1, ran.stderr
    assert expected in ran.stderr
    assert not os.path.exists('out')


@pytest.mark.parametrize('environment, expected', [
    (dict(RANK='abc'), ": the environment has RANK='abc'; expected a number, as torchrun sets it"),
    (dict(WORLD_SIZE='', RANK='0'), ": the environment has WORLD_SIZE=''; expected a number"),
    (dict(WORLD_SIZE='-1'), ": the environment has WORLD_SIZE='-1'"),
    (dict(RANK='3'), ': the environment has RANK=3, WORLD_SIZE=1; expected a rank below the size'),
    (dict(WORLD_SIZE='4'), ': the environment has WORLD_SIZE=4 but no MASTER_ADDR; start with torchrun'),
    (dict(WORLD_SIZE='2', MASTER_ADDR='localhost', MASTER_PORT='x'), ': the processes cannot find each other'),
])
def test_what_a_scheduler_left_in_the_environment_is_one_line(place, environment, expected, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    ran = run_main(train, *FLAGS)
    assert ran.returncode == 2
    assert ran.stderr.count('\n') == 1
    assert ran.stderr.splitlines()[-1].startswith(f'error{expected}'), ran.stderr
    assert 'Traceback' not in ran.stderr


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_ranks_that_are_stopped_exit_at_once(place, number):
    """Ten times: a rank that waits for a thread of gloo, which waits for it, is killed by torchrun after 30 seconds."""
    torchrun = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
    flags = [*FLAGS, '--gradient_accumulation_steps=2', '--max_iters=100000', '--eval_interval=100000', '--out_dir=out']
    for _ in range(10):
        process = subprocess.Popen([*torchrun, REPO / 'train.py', *flags], text=True, stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT)
        output = ''
        for line in process.stdout:
            output += line
            if line.startswith('iter 20:'):
                process.send_signal(number)
                sent = time.perf_counter()
        assert process.wait() != 0
        assert 'saved out/ckpt.pt' in output
        assert time.perf_counter() - sent < 25, output


def test_shards_are_equal_and_complete():
    cpu = torch.device('cpu')

    for world in (1, 2, 3, 6):
        workers = [parallel.Worker(cpu, torch.float32, False, rank, world) for rank in range(world)]
        parts = [range(12)[worker.shard(12)] for worker in workers]
        assert [i for part in parts for i in part] == list(range(12))
        assert len({len(part) for part in parts}) == 1

    with pytest.raises(UserError, match='5 sequences a step on 2 processes'):
        parallel.Worker(cpu, torch.float32, False, 0, 2).shard(5)


# ---------------------------------------------------------------------------- one process

def test_cpu_defaults_and_warnings(capsys):
    run = parallel.init('cpu')
    assert capsys.readouterr().err == ''
    assert run.device.type == 'cpu'
    assert run.dtype == torch.float32
    assert run.compile is False
    assert (run.rank, run.world_size) == (0, 1)
    assert run.is_main
    assert run.sum(1, torch.tensor(2.5)) == [1.0, 2.5]

    float16 = parallel.init('cpu', 'float16')
    assert float16.dtype == torch.float32
    assert 'using float32 on cpu' in capsys.readouterr().err


@pytest.mark.parametrize('machine, supported, expected', [
    ('x86_64', ('_is_avx512_bf16_supported',), torch.bfloat16),
    ('AMD64', ('_is_amx_tile_supported',), torch.bfloat16),
    ('x86_64', ('_is_avx2_supported', '_is_avx512_supported', '_is_vnni_supported'), torch.float32),
])
def test_bfloat16_where_a_cpu_can_multiply_it(machine, supported, expected, monkeypatch, capsys):
    monkeypatch.setattr('platform.machine', lambda: machine)
    for name in dir(torch.cpu):
        if name.startswith('_is_'):
            monkeypatch.setattr(torch.cpu, name, lambda name=name: name in supported)
    assert parallel.init('cpu', 'bfloat16').dtype == expected
    assert ('no instructions for bfloat16; using float32' in capsys.readouterr().err) == (expected == torch.float32)


def test_other_processors_ask_onednn_about_bfloat16(monkeypatch):
    monkeypatch.setattr('platform.machine', lambda: 'arm64')
    monkeypatch.setattr(torch.backends.mkldnn, 'is_available', lambda: False)
    assert not parallel.has_bfloat16()
    monkeypatch.setattr(torch.backends.mkldnn, 'is_available', lambda: True)
    for answer in (True, False):
        monkeypatch.setattr(torch.ops.mkldnn, '_is_mkldnn_bf16_supported', lambda answer=answer: answer)
        assert parallel.has_bfloat16() == answer


def test_sums_are_exact_beyond_float32():
    assert parallel.init('cpu').sum(2 ** 24 + 1) == [2 ** 24 + 1]


def test_sums_of_plain_numbers_do_not_touch_the_device():
    """On a GPU they would wait until it has done everything before. This device cannot be read at all."""
    worker = parallel.Worker(torch.device('meta'), torch.float32, compile=False)
    assert worker.sum(2 ** 24 + 1, 0.5) == [2 ** 24 + 1, 0.5]
    with pytest.raises(RuntimeError, match='meta'):
        worker.sum(torch.tensor(1.0))


def test_compile_without_a_compiler_is_one_line():
    from torch._inductor import config as inductor

    assert parallel.init('cpu', compile=True).compile is True
    with inductor.patch({'cpp.cxx': (None, '/nowhere/g++')}):
        expected = 'compile=True: torch.compile needs a C.. compiler and found none; install'
        with pytest.raises(UserError, match=expected):
            parallel.init('cpu', compile=True)
        assert parallel.init('cpu').compile is False             # nothing else needs a compiler


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs an NVIDIA GPU')
def test_cuda_is_chosen_and_trains(place):
    run = parallel.init()
    assert run.device.type == 'cuda'
    assert run.compile
    assert run.dtype in (torch.bfloat16, torch.float16)

    flags = [f for f in FLAGS if not f.startswith('--device')]
    ran = subprocess.run(
        [sys.executable, str(REPO / 'train.py'), *flags, '--gradient_accumulation_steps=2'],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert 'cuda, bfloat16, compiled' in ran.stdout, ran.stderr
    assert losses('out')[-1][1] < losses('out')[0][1] - 0.1
