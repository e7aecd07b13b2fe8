"""A closed terminal, a pipe that breaks, a full disk behind stdout: the run is saved first, and can be resumed."""

import os
import signal
import subprocess
import sys

import pytest
from conftest import REPO, flags_of, prepare_babble, read_log, read_terminal, settings, sha256_of, small_disk

import train
from gradus import checkpoint
from gradus.interrupt import Interrupt

pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='needs /dev/full and terminals')

LONG = dict(n_layer=1, max_iters=300, lr_decay_iters=300, log_interval=1)
TRAIN = [sys.executable, str(REPO / 'train.py')]


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """What the long run ends with if nothing stops it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp('whole'))
        prepare_babble()
        train.main(settings(**LONG))
        return result()


def result():
    state = checkpoint.load('out/ckpt.pt')
    return sha256_of([state['model'], state['optimizer']]), read_log('out')


def assert_stopped_and_resumable(whole):
    """The run was saved in the middle, and ends as if nothing had happened."""
    assert 20 < checkpoint.load('out/ckpt.pt')['iter_num'] < 300
    assert '.lock' not in os.listdir('out')
    train.main(settings(init_from='resume', **LONG))
    assert result() == whole


def read_until(stream, start):
    """Lines up to the first one that begins with `start`."""
    lines = []
    for line in stream:
        lines.append(line)
        if line.startswith(start):
            return lines
    raise AssertionError(lines)


def start(**kwargs):
    return subprocess.Popen([*TRAIN, *flags_of(**LONG)], text=True, **kwargs)


@pytest.mark.slow
def test_a_reader_that_goes_away(place, whole):
    process = start(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    read_until(process.stdout, 'iter 20:')
    process.stdout.close()

    err = process.stderr.read()
    assert process.wait() == 128 + signal.SIGPIPE
    assert 'warning: stdout cannot be written ([Errno 32] Broken pipe)' in err
    assert 'stopped by SIGPIPE at iteration' in err
    assert 'continue with --init_from=resume' in err
    assert 'Traceback' not in err
    assert_stopped_and_resumable(whole)


@pytest.mark.slow
def test_a_full_disk_behind_stdout(place, whole):
    with small_disk('small', 8192):
        with open('small/output.txt', 'w') as output:
            process = start(stdout=output, stderr=subprocess.PIPE)
            err = process.stderr.read()
    assert process.wait() == 128 + signal.SIGPIPE
    assert 'warning: stdout cannot be written ([Errno 28] No space left on device)' in err
    assert 'Traceback' not in err
    assert_stopped_and_resumable(whole)


@pytest.mark.slow
def test_a_full_disk_from_the_start(place):
    """Also without a training run: test_errors.py."""
    with open('/dev/full', 'w') as full:
        process = start(stdout=full, stderr=subprocess.PIPE)
        err = process.stderr.read()
    assert process.wait() == 2
    assert err.splitlines()[-1] == 'error: the output could not be written (No space left on device); make room'
    assert not os.path.exists('out')


@pytest.mark.slow
def test_a_terminal_that_is_closed(place, whole):
    """The window is closed: SIGHUP comes, and everything printed fails."""
    import pty

    master, slave = pty.openpty()
    process = start(stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
    os.close(slave)
    with os.fdopen(master, 'rb', buffering=0) as terminal:
        seen = b''
        while b'iter 20:' not in seen:
            seen += terminal.read(1000)
        process.send_signal(signal.SIGHUP)
    assert process.wait() == 128 + signal.SIGHUP
    assert_stopped_and_resumable(whole)


@pytest.mark.slow
def test_a_terminal_that_vanishes_without_a_signal(place, whole):
    import pty

    master, slave = pty.openpty()
    process = start(stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
    os.close(slave)
    seen = b''
    while b'iter 20:' not in seen:
        seen += os.read(master, 1000)
    os.close(master)
    assert process.wait() in (128 + signal.SIGHUP, 128 + signal.SIGPIPE)
    assert_stopped_and_resumable(whole)


def test_a_signal_while_the_last_sample_is_drawn(place):
    """Everything is saved by then: it ends the program at once."""
    flags = flags_of(max_iters=1, sample_tokens=10 ** 9)
    process = subprocess.Popen([*TRAIN, *flags], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               env={**os.environ, 'PYTHONUNBUFFERED': '1'})
    try:
        read_until(process.stdout, 'done: ')
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=20)[1].endswith('interrupted\n')
        assert process.returncode == 130
    finally:
        process.kill()                                # it would write for hours
    assert '.lock' not in os.listdir('out')


@pytest.mark.slow
def test_nohup_means_what_it_says(place):
    process = subprocess.Popen(['nohup', *TRAIN, *flags_of(**LONG)], text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT)
    read_until(process.stdout, 'iter 20:')
    process.send_signal(signal.SIGHUP)
    process.stdout.read()
    assert process.wait() == 0
    assert checkpoint.load('out/ckpt.pt')['iter_num'] == 300


@pytest.mark.slow
@pytest.mark.parametrize('term', ['dumb', '', 'nonsense'])
def test_any_terminal(place, term):
    import pty

    master, slave = pty.openpty()
    process = subprocess.Popen([*TRAIN, *flags_of(max_iters=5)], stdout=slave, stderr=slave,
                               env={**os.environ, 'TERM': term})
    os.close(slave)
    seen = read_terminal(master)
    assert process.wait() == 0, seen
    assert b'done: best val loss' in seen
    os.close(master)


def test_before_it_watches_signals_have_their_usual_effect():
    before = signal.getsignal(signal.SIGINT), sys.stdout
    with Interrupt() as interrupt:
        assert (signal.getsignal(signal.SIGINT), sys.stdout) == before
        interrupt.watch()
        assert signal.getsignal(signal.SIGINT) != before[0]
        signal.raise_signal(signal.SIGHUP)
        assert interrupt.signal == signal.SIGHUP
    assert (signal.getsignal(signal.SIGINT), sys.stdout) == before
