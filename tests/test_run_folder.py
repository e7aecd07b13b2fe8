"""The folder of a run: one run at a time writes to it, and what it did not write stays where it is."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import REPO, flags_of, read_log, run_main, settings, sha256_of, snapshot

import train
from gradus import checkpoint
from gradus.errors import UserError
from gradus.run_folder import RunFolder

STATE = dict(model={'w': torch.ones(3)}, model_args={'n_layer': 1})


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# ---------------------------------------------------------------------------- one run at a time

# Each line it reads is a folder, in which it holds the lock of `out` until the next line comes.
HOLDER = """
import os, sys
sys.path.insert(0, sys.argv[1])
from gradus.run_folder import RunFolder

for line in sys.stdin:
    os.chdir(line.strip())
    with RunFolder('out'):
        print('locked', flush=True)
        sys.stdin.readline()
    print('unlocked', flush=True)
"""


@pytest.fixture(scope='module')
def holder():
    """A process that runs HOLDER."""
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
    process = subprocess.Popen([sys.executable, '-c', HOLDER, REPO], **pipes)
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def other_process(holder, tmp_path):
    """Another process that holds the lock of `out`. A test may kill it, if it is the last one that needs it."""
    holder.stdin.write(f'{tmp_path}\n')
    assert holder.stdout.readline() == 'locked\n'
    yield holder
    if holder.poll() is None:
        holder.stdin.write('\n')
        assert holder.stdout.readline() == 'unlocked\n'


def test_a_second_run_is_refused_with_the_process_number(other_process):
    expected = f'out: another run is writing to it .process {other_process.pid}.; wait for it, stop it, or choose'
    for _ in range(2):
        with pytest.raises(UserError, match=expected), RunFolder('out'):
            pass
    assert os.path.exists('out/.lock')


@pytest.mark.parametrize('init_from', ['scratch', 'auto', 'resume'])
def test_train_py_is_refused_and_changes_nothing(place, other_process, init_from):
    train.main(settings(out_dir='other', max_iters=2))
    os.rename('other/ckpt.pt', 'out/ckpt.pt')
    before = snapshot('.')

    with pytest.raises(UserError, match='another run is writing to it'):
        train.main(settings(init_from=init_from))
    assert snapshot('.') == before

    train.main(settings(init_from=init_from, eval_only=True))     # which writes nothing
    assert snapshot('.') == before


def test_a_kill_leaves_no_lock_behind(other_process):
    other_process.send_signal(getattr(signal, 'SIGKILL', signal.SIGTERM))
    other_process.wait()
    assert os.path.exists('out/.lock')
    with RunFolder('out') as folder:
        folder.start()
    assert os.listdir('out') == []


def test_the_lock_ends_with_the_run():
    for _ in range(2):
        with RunFolder('out') as folder:
            folder.start(resume=True)
            folder.save('ckpt.pt', STATE)
    assert sorted(os.listdir('out')) == ['ckpt.pt', 'ckpt.pt.prev']


def test_a_run_that_fails_before_it_writes_leaves_no_folder():
    with pytest.raises(ValueError), RunFolder('out'):
        raise ValueError
    assert os.listdir('.') == []

    os.makedirs('mine')
    with pytest.raises(ValueError), RunFolder('mine'):
        raise ValueError
    assert os.listdir('.') == ['mine']


@pytest.mark.slow
@pytest.mark.parametrize('init_from', ['scratch', 'auto'])
def test_two_runs_started_together(place, init_from):
    """One of them trains; the other is refused, or comes after it. Weights and log are of the same run."""
    for n in range(3):
        runs = []
        for seed in (1, 2):
            flags = flags_of(out_dir=f'out{n}', init_from=init_from, seed=seed, max_iters=1000, log_interval=50)
            command = [sys.executable, REPO / 'train.py', *flags]
            runs.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        errors = [run.communicate()[1] for run in runs]
        codes = [run.returncode for run in runs]
        assert sorted(codes) == [0, 2], errors
        assert 'another run is writing to it' in errors[codes.index(2)]

        seed = 1 + codes.index(0)
        assert checkpoint.load(f'out{n}/ckpt.pt')['config']['seed'] == seed
        train.main(settings(out_dir='alone', seed=seed, max_iters=1000, log_interval=50))
        assert read_log(f'out{n}') == read_log('alone')


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='needs POSIX signals')
def test_ranks_that_outlive_torchrun_hold_the_lock(place):
    flags = flags_of(max_iters=100_000, eval_interval=100_000, log_interval=1)
    torchrun = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
    agent = subprocess.Popen([*torchrun, REPO / 'train.py', *flags], stdout=subprocess.PIPE, text=True)
    for line in agent.stdout:
        if line.startswith('iter 5:'):
            break
    agent.kill()
    agent.wait()

    rank_0 = int(Path('out/.lock').read_text())
    try:
        with pytest.raises(UserError, match=f'another run is writing to it .process {rank_0}.'):
            train.main(settings(init_from='auto'))
    finally:
        os.kill(rank_0, signal.SIGKILL)


# ---------------------------------------------------------------------------- a folder that is deleted

def test_a_deleted_folder_is_made_again(place, monkeypatch):
    """Nothing is missing afterwards: neither the checkpoint nor the lines of the log before."""
    import shutil

    step = train.train_step

    def delete_once(*args):
        if args[4] == 7:
            shutil.rmtree('out')
        return step(*args)

    train.main(settings(out_dir='whole', log_interval=1, checkpoint_interval=5))
    monkeypatch.setattr(train, 'train_step', delete_once)
    train.main(settings(out_dir='out', log_interval=1, checkpoint_interval=5))
    assert read_log('out') == read_log('whole')
    state, expected = checkpoint.load('out/ckpt.pt'), checkpoint.load('whole/ckpt.pt')
    assert sha256_of([state['model'], state['optimizer']]) == sha256_of([expected['model'], expected['optimizer']])
    assert '.lock' not in os.listdir('out')


def test_a_run_does_not_write_into_the_folder_of_one_that_came_after_it():
    with RunFolder('out') as first:
        first.start()
        first.save('ckpt.pt', STATE)
        for name in os.listdir('out'):
            os.remove(os.path.join('out', name))
        with RunFolder('out') as second:
            second.start()
            second.save('ckpt.pt', {**STATE, 'iter_num': 2})
            with pytest.raises(UserError, match='another run is writing to it'):
                first.save('ckpt.pt', {**STATE, 'iter_num': 1})
            assert checkpoint.load('out/ckpt.pt')['iter_num'] == 2


def test_such_a_run_ends_in_one_line_while_the_other_goes_on():
    with RunFolder('out') as second:
        with pytest.raises(UserError, match='another run is writing to it'), RunFolder('first') as first:
            first.path = 'out'
            first.lock.path = 'out/.lock'             # as if its folder had been deleted, and taken by the second
            first.save('ckpt.pt', STATE)
        second.save('ckpt.pt', STATE)
    assert os.listdir('out') == ['ckpt.pt']


# ---------------------------------------------------------------------------- only its own files

def test_only_files_of_a_run_are_moved_aside():
    os.makedirs('out')
    for name in ('notes.txt', 'other.tmp', 'input.txt.tmp'):
        Path('out', name).write_text('mine')
    for n in range(3):
        with RunFolder('out') as folder:
            folder.start()
            Path('out/log.jsonl').write_text(f'{n}')
            folder.save('ckpt.pt', {**STATE, 'iter_num': n})
            folder.save('best.pt', {**STATE, 'iter_num': n})

    assert sorted(os.listdir('out')) == ['best.pt', 'ckpt.pt', 'input.txt.tmp', 'log.jsonl', 'notes.txt', 'other.tmp']
    for n, name in enumerate(('out-1', 'out-2', 'out')):
        assert checkpoint.load(f'{name}/ckpt.pt')['iter_num'] == n
        assert Path(name, 'log.jsonl').read_text() == f'{n}'
    assert sorted(os.listdir('out-1')) == ['best.pt', 'ckpt.pt', 'log.jsonl']


def test_halves_of_our_own_files_are_removed():
    os.makedirs('out')
    for name in ('ckpt.pt.123.tmp', 'best.pt.tmp', 'log.jsonl.7.tmp', 'x.pt.123.tmp'):
        Path('out', name).write_text('half')
    with RunFolder('out') as folder:
        folder.start()
    assert os.listdir('out') == ['x.pt.123.tmp']


def test_a_log_alone_is_no_run_and_is_kept():
    os.makedirs('out')
    for _ in range(2):
        Path('out/log.jsonl').write_text('{"iter": 1}\n')
        with RunFolder('out') as folder:
            folder.start()
    assert sorted(os.listdir('.')) == ['out']
    assert sorted(os.listdir('out')) == ['log-1.jsonl', 'log-2.jsonl']


@pytest.mark.parametrize('kind', ['file', 'number and more', 'link', 'folder', 'pipe'])
def test_a_lock_of_somebody_else_stays(kind):
    if kind in ('link', 'pipe') and os.name == 'nt':
        pytest.skip('links need rights there, and pipes are no files')
    os.makedirs('out')
    Path('notes.txt').write_text('12345')
    lock = Path('out/.lock')
    if kind == 'file':
        lock.write_text('my notes')
    elif kind == 'number and more':
        lock.write_text('123\n')
    elif kind == 'link':
        os.symlink('../notes.txt', lock)
    elif kind == 'folder':
        lock.mkdir()
    else:
        os.mkfifo(lock)
    before = snapshot('.') if kind != 'pipe' else None

    with pytest.raises(UserError, match='out/.lock: not a lock file of ours; move it away'), RunFolder('out'):
        pass
    assert os.path.lexists(lock)
    assert kind == 'pipe' or snapshot('.') == before
    assert Path('notes.txt').read_text() == '12345'


def test_a_folder_that_became_a_file_is_one_line():
    with RunFolder('out') as folder:
        folder.start()
        os.remove('out/.lock')
        os.rmdir('out')
        Path('out').write_text('')
        with pytest.raises(UserError, match='out_dir=out: cannot be written'):
            folder.save('ckpt.pt', STATE)


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='needs pipes')
def test_a_log_that_is_a_pipe_is_one_line(place):
    train.main(settings(max_iters=2))
    os.remove('out/log.jsonl')
    os.mkfifo('out/log.jsonl')
    with pytest.raises(UserError, match='out/log.jsonl: a pipe; expected a file'):
        train.main(settings(max_iters=4, init_from='resume'))


def test_a_trailing_slash():
    for n in range(2):
        with RunFolder('out/') as folder:
            folder.start()
            folder.save('ckpt.pt', {**STATE, 'iter_num': n})
    assert sorted(os.listdir('.')) == ['out', 'out-1']
    assert checkpoint.load('out-1/ckpt.pt')['iter_num'] == 0


@pytest.mark.skipif(os.name == 'nt', reason='links need rights there')
def test_a_link_to_the_place_where_runs_go():
    os.makedirs('disk/runs')
    os.symlink('disk/runs', 'out')
    for n in range(2):
        with RunFolder('out') as folder:
            folder.start()
            folder.save('ckpt.pt', {**STATE, 'iter_num': n})
    assert os.path.islink('out')
    assert sorted(os.listdir('disk')) == ['runs', 'runs-1']
    assert checkpoint.load('out/ckpt.pt')['iter_num'] == 1


def test_a_folder_that_cannot_be_written_is_one_line(place):
    Path('file').write_text('')
    for out_dir in ('file/below', 'x' * 300, *(['/proc/none'] if sys.platform == 'linux' else [])):
        ran = run_main(train, *flags_of(out_dir=out_dir))
        assert ran.returncode == 2
        last = ran.stderr.splitlines()[-1]
        assert last.startswith(f'error: out_dir={out_dir}: cannot be written (')
        assert 'Traceback' not in ran.stderr
