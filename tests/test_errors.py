"""What a user sees when something goes wrong: one line, short and printable, on any terminal, from one process."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPO, run_script

from gradus.errors import RankError, UserError, exit_on_error, on_screen, one_line, printable, show


def ended(error, lower='', **environment):
    """The exit code and the lines on stderr of a program that raises `error`."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE'):
            patch.delenv(name, raising=False)
        for name, value in environment.items():
            patch.setenv(name, value)
        with pytest.raises(SystemExit) as e, exit_on_error(lower):
            raise error
    return e.value.code


# ---------------------------------------------------------------------------- one line

def test_control_characters_are_escaped():
    assert one_line('clear \x1b[2J\r\n the\tscreen \x07 \x9b') == r'clear \x1b[2J the screen \x07 \x9b'
    assert printable('a\n\x1b', keep='\n') == 'a\n\\x1b'
    assert printable('é 日本 😀') == 'é 日本 😀'
    assert printable('\udc80') == r'\udc80'


def test_on_screen_depends_on_the_screen(monkeypatch):
    text = 'a\tb\n\x1b[2J'
    assert on_screen(text) == text
    monkeypatch.setattr(sys.stdout, 'isatty', lambda: True)
    assert on_screen(text) == 'a\tb\n\\x1b[2J'


def shared(kind, levels=40):
    """A value of some kilobytes whose repr has 2 ** levels parts."""
    value = kind([1])
    for _ in range(levels):
        value = kind([value, value])
    return value


class Loud:
    def __repr__(self):
        raise AssertionError('its repr was asked for')


@pytest.mark.parametrize('value', [
    shared(tuple),
    shared(list),
    {'a': shared(tuple), 'b': {'c': shared(list)}},
    'x' * 10 ** 7,
    10 ** 6000,
    torch.zeros(1000),
    np.zeros(1000),
    Loud(),
    [Loud()] * 1000,
    {Loud(): Loud()},
    '\x1b[2J\n',
], ids=lambda value: type(value).__name__)
def test_any_value_is_shown_short(value):
    text = show(value)
    assert len(text) < 400
    assert text.isprintable()


def test_plain_values_are_shown_as_they_are():
    values = ["it's", 7, -1.5, None, True, [1, 2], {'a': 1}, (1, 'x')]
    assert [show(value) for value in values] == [repr(value) for value in values]


# ---------------------------------------------------------------------------- the end of a program

@pytest.mark.parametrize('make', [
    lambda: np.empty(10 ** 15),
    lambda: torch.empty(10 ** 15),
    lambda: torch.empty(10 ** 10, 10 ** 10),
    lambda: np.empty((10 ** 10, 10 ** 10)),
    lambda: [0] * 10 ** 18,
], ids=['numpy', 'torch', 'torch overflow', 'numpy overflow', 'list'])
def test_too_little_memory_is_one_line(make, capsys):
    with pytest.raises(SystemExit) as e, exit_on_error('--batch_size'):
        make()
    err = capsys.readouterr().err
    assert e.value.code == 2
    assert err.startswith('error: not enough memory (')
    assert err.endswith('; lower --batch_size\n')
    assert err.count('\n') == 1


def test_other_errors_keep_their_traceback():
    """Negative control."""
    with pytest.raises(RuntimeError), exit_on_error():
        raise RuntimeError('shapes do not match')


@pytest.mark.parametrize('error, environment, printed', [
    (UserError('e'), {}, 'error: e\n'),
    (UserError('e'), dict(RANK='0', LOCAL_RANK='0'), 'error: e\n'),
    (UserError('e'), dict(RANK='3', LOCAL_RANK='3', WORLD_SIZE='4'), ''),
    (UserError('e'), dict(RANK='8', LOCAL_RANK='0', WORLD_SIZE='9'), 'error: e\n'),
    (UserError('e'), dict(RANK='3'), 'error: e\n'),
    (RankError('e'), dict(RANK='3', LOCAL_RANK='3', WORLD_SIZE='4'), 'error of rank 3: e\n'),
    (
        MemoryError('m'),
        dict(RANK='3', LOCAL_RANK='3', WORLD_SIZE='4'),
        'error of rank 3: not enough memory (m); lower the sizes\n',
    ),
    (UserError('e'), dict(RANK='garbage'), 'error: e\n'),
])
def test_which_process_speaks(error, environment, printed, capsys):
    assert ended(error, **environment) == 2
    assert capsys.readouterr().err == printed


# ---------------------------------------------------------------------------- streams

needs_a_shell = pytest.mark.skipif(os.name == 'nt', reason='needs a POSIX shell')


def in_shell(command, **env):
    """The finished `command`, in which PYTHON and REPO stand for the interpreter and the checkout."""
    command = command.replace('PYTHON', sys.executable).replace('REPO', str(REPO))
    return subprocess.run(['sh', '-c', command], capture_output=True, timeout=300, env={**os.environ, **env})


SLOW = pytest.mark.slow


@needs_a_shell
@pytest.mark.parametrize('closed', ['<&- >&- 2>&-', *(pytest.param(c, marks=SLOW) for c in ('<&-', '>&-', '2>&-'))])
@pytest.mark.slow
def test_closed_streams(place, closed):
    flags = '--dataset=babble --device=cpu --n_layer=1 --n_head=1 --n_embd=8 --block_size=8 --batch_size=2 '
    flags += '--gradient_accumulation_steps=1 --max_iters=3 --lr_decay_iters=3 --warmup_iters=0 --eval_iters=1'
    ran = in_shell(f'PYTHON REPO/train.py {flags} {closed}')
    assert ran.returncode == 0, ran.stderr
    assert b'Traceback' not in ran.stderr + ran.stdout
    assert {'ckpt.pt', 'log.jsonl'} <= set(os.listdir('out'))
    assert torch.load('out/ckpt.pt')['iter_num'] == 3

    ran = in_shell(f'PYTHON REPO/sample.py --out_dir=nowhere {closed}')
    assert ran.returncode == 2
    assert b'Traceback' not in ran.stderr + ran.stdout


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='needs /dev/full')
def test_a_full_disk_behind_stdout_is_one_line():
    ran = in_shell('PYTHON REPO/train.py --help > /dev/full')
    assert ran.returncode == 2
    assert ran.stderr.decode() == f'error: the output could not be written ({os.strerror(errno.ENOSPC)}); make room\n'


@needs_a_shell
def test_any_bytes_on_stdin(place):
    """In a program that reads lines."""
    program = 'from gradus.errors import exit_on_error\nwith exit_on_error():\n    print(ascii(input()))'
    ran = in_shell(f"printf 'a\\377b\\n' | PYTHON -c '{program}'", PYTHONPATH=str(REPO), PYTHONIOENCODING='utf-8')
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.decode().strip() == r"'a\ufffdb'"


@needs_a_shell
def test_a_closed_pipe_is_silent():
    program = 'from gradus.errors import exit_on_error\nwith exit_on_error():\n    print("x" * 10 ** 6)'
    ran = in_shell(f"{{ PYTHON -c '{program}'; echo $? >&2; }} | head -c 1", PYTHONPATH=str(REPO))
    assert ran.stderr.decode().strip() == '141'


@pytest.mark.parametrize('encoding', [pytest.param('cp1252', marks=SLOW), 'ascii'])
def test_any_encoding(encoding, tmp_path):
    flags = ['--out_dir=日本語', '--dataset=日本語']
    ran = run_script('train.py', *flags, env={'PYTHONIOENCODING': encoding}, cwd=tmp_path)
    assert ran.returncode == 2
    assert '日本語' in ran.stderr
    assert ran.stderr.count('\n') == 1


@pytest.mark.skipif(sys.platform != 'linux', reason='needs /proc')
@pytest.mark.parametrize('script', ['train.py', 'sample.py', 'mlp_mnist.py'])
def test_ctrl_c_during_imports_is_one_line(tmp_path, script):
    """Interrupted once torch's library has been loaded, which is long before its import is done."""
    process = subprocess.Popen([sys.executable, REPO / script], cwd=tmp_path, text=True, stderr=subprocess.PIPE)
    while 'libtorch' not in Path(f'/proc/{process.pid}/maps').read_text():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert (process.returncode, err) == (130, 'interrupted\n')


@needs_a_shell
def test_ctrl_c_in_an_interactive_session_does_not_end_it():
    session = 'import gradus, os, signal\nos.kill(os.getpid(), signal.SIGINT)\nprint(6 * 7)\n'
    ran = subprocess.run([sys.executable, '-i', '-c', ''], input=session, capture_output=True, text=True, timeout=60,
                         cwd=REPO)
    assert ran.stdout.strip() == '42'
    assert 'KeyboardInterrupt' in ran.stderr
