"""Devices and processes: what is chosen, who does what, and that many processes learn what one does."""

import os
import subprocess
import sys

import pytest
import torch
from conftest import REPO, read_log

from gradus import checkpoint, parallel

FLAGS = ['--dataset=babble', '--device=cpu', '--block_size=16', '--n_layer=2', '--n_head=2', '--n_embd=16', '--batch_size=3', '--eval_iters=2',
         '--max_iters=20', '--eval_interval=10', '--learning_rate=0.01', '--warmup_iters=2', '--lr_decay_iters=20', '--sample_tokens=0']


def train(out_dir, *flags, processes=1, script=REPO / 'train.py'):
    """Run train.py, under torchrun if there are several processes; returns its stdout."""
    launch = ['-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={processes}'] if processes > 1 else []
    ran = subprocess.run([sys.executable, *launch, str(script), *FLAGS, f'--out_dir={out_dir}', *flags],
                         capture_output=True, text=True, timeout=300, env={**os.environ, 'PYTHONPATH': str(REPO)})
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def losses(out_dir):
    return [(r['iter'], r.get('loss', r.get('val_loss'))) for r in read_log(out_dir)]


@pytest.mark.parametrize('accumulation', [pytest.param(4, marks=pytest.mark.slow), 3, pytest.param(2, marks=pytest.mark.slow)])
def test_two_processes_follow_one(place, accumulation):
    """The same global batches: 20 losses within 1e-4. 3 micro-batches of 2 become, for each process, one of 2 and one of 1."""
    flags = [f'--gradient_accumulation_steps={accumulation}'] + (['--batch_size=2'] if accumulation == 3 else [])
    train('one', *flags)
    out = train('two', *flags, processes=2)
    one, two = losses('one'), losses('two')
    assert len(one) == len(two) == 23
    assert all(i == j and abs(a - b) < 1e-4 for (i, a), (j, b) in zip(one, two))
    assert abs(one[-1][1] - one[0][1]) > 0.02                                     # it did learn something
    assert [out.count(f'iter {i}: ') for i in range(20)] == [1] * 20 and out.count('step 20: ') == 1
    assert sorted(os.listdir('two')) == sorted(os.listdir('one'))                 # nobody else wrote anything


@pytest.mark.slow
def test_a_run_may_go_on_with_another_number_of_processes(place):
    train('one', '--gradient_accumulation_steps=2')
    train('mixed', '--gradient_accumulation_steps=2', '--max_iters=10', processes=2)
    train('mixed', '--gradient_accumulation_steps=2', '--init_from=resume')
    assert checkpoint.load('mixed/ckpt.pt')['iter_num'] == 20
    ends = dict(losses('mixed'))
    assert all(abs(loss - ends[i]) < 1e-4 for i, loss in dict(losses('one')).items())


@pytest.mark.skipif(not os.path.exists('/proc/self/task'), reason='threads are listed by Linux')
def test_no_thread_of_the_process_group_outlives_it(place):
    """One that did aborted some runs at their exit: "terminate called without an active exception"."""
    (place / 'watched.py').write_text("""
import os, sys
import train
from gradus import configurator, parallel
def gloo():
    return sum('gloo' in open(f'/proc/self/task/{t}/comm').read() for t in os.listdir('/proc/self/task'))
close = parallel.Run.close
parallel.Run.close = lambda run: (print(f'while it runs: {gloo() > 0}'), close(run))
train.main(configurator.load(train.TrainConfig, sys.argv[1:]))
print(f'afterwards: {gloo()}')
""")
    out = train('out', '--max_iters=2', '--gradient_accumulation_steps=2', processes=2, script=place / 'watched.py')
    assert out.count('while it runs: True') == 2 == out.count('afterwards: 0'), out


@pytest.mark.slow
def test_what_cannot_be_dealt_out_is_one_line_from_rank_0(place):
    ran = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', str(REPO / 'train.py'), *FLAGS,
                          '--gradient_accumulation_steps=3'], capture_output=True, text=True, timeout=300)
    assert ran.returncode != 0 and not os.path.exists('out')
    assert ran.stderr.count('error: 9 sequences a step on 2 processes: expected batch_size * gradient_accumulation_steps') == 1


def test_shares_are_equal_and_complete():
    for world in (1, 2, 3, 6):
        parts = [range(12)[parallel.Run(torch.device('cpu'), torch.float32, False, rank, world).share(12)] for rank in range(world)]
        assert [i for part in parts for i in part] == list(range(12)) and len({len(p) for p in parts}) == 1
    with pytest.raises(parallel.DeviceError, match='5 sequences a step on 2 processes'):
        parallel.Run(torch.device('cpu'), torch.float32, False, 0, 2).share(5)


def test_cpu_defaults_and_notes():
    run = parallel.start('cpu')
    assert (run.device.type, run.dtype, run.compile, run.rank, run.world_size, run.note) == ('cpu', torch.float32, False, 0, 1, '')
    assert run.main and run.sum(1, torch.tensor(2.5)) == [1.0, 2.5]
    assert 'using float32 on cpu' in parallel.start('cpu', 'float16').note and parallel.start('cpu', 'float16').dtype == torch.float32
    assert parallel.start('cpu', 'bfloat16').dtype == torch.bfloat16


def test_sums_are_exact_beyond_float32():
    assert parallel.start('cpu').sum(2 ** 24 + 1) == [2 ** 24 + 1]


def test_compile_without_a_compiler_is_one_line():
    from torch._inductor import config as inductor
    assert parallel.start('cpu', compile=True).compile is True
    with inductor.patch({'cpp.cxx': (None, '/nowhere/g++')}):
        with pytest.raises(parallel.DeviceError, match='compile=True: torch.compile needs a C.. compiler and found none; install'):
            parallel.start('cpu', compile=True)
        assert parallel.start('cpu').compile is False     # nothing else needs one


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs an NVIDIA GPU')
def test_cuda_is_chosen_and_trains(place):
    run = parallel.start()
    assert run.device.type == 'cuda' and run.compile and run.dtype in (torch.bfloat16, torch.float16)
    flags = [f for f in FLAGS if not f.startswith('--device')]
    ran = subprocess.run([sys.executable, str(REPO / 'train.py'), *flags, '--gradient_accumulation_steps=2'], capture_output=True, text=True)
    assert ran.returncode == 0 and 'cuda, bfloat16, compiled' in ran.stdout, ran.stderr
    assert losses('out')[-1][1] < losses('out')[0][1] - 0.1
