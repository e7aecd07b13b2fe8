"""Automatic preparation: train.py starts a small dataset's prepare.py, and what goes wrong there ends in one line."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from conftest import REPO, snapshot

from gradus import data, metadata, preparation
from gradus.errors import UserError


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@contextmanager
def read_only(folder):
    """A folder that cannot be written, not even by root."""
    if os.geteuid():
        os.chmod(folder, 0o555)
        yield
        os.chmod(folder, 0o755)
        return
    if subprocess.run(['mount', '--bind', folder, folder], capture_output=True).returncode:
        pytest.skip('this root may not mount')
    try:
        subprocess.run(['mount', '-o', 'remount,bind,ro', folder], check=True)
        yield
    finally:
        subprocess.run(['umount', folder], check=True)


PREPARE = """
AUTOMATIC = True
import sys
sys.path.insert(0, {repo!r})
from gradus import preparation
from gradus.errors import exit_on_error
from gradus.tokenizer import ByteTokenizer
with exit_on_error():
    ids = list(range(100))
    preparation.write('data/x', [('train', ids), ('val', ids)], ByteTokenizer(), 'numbers', '0')
"""


def write_script(text=PREPARE):
    os.makedirs('data/x', exist_ok=True)
    Path('data/x/prepare.py').write_text(text.format(repo=str(REPO)))


def test_a_small_dataset_is_prepared_once(capfd):
    write_script()
    preparation.prepare('data/x', 'train.bin')
    assert len(opened().train) == 100
    capfd.readouterr()
    preparation.prepare('data/x', 'train.bin')
    assert capfd.readouterr() == ('', '')


def opened():
    meta = metadata.read_meta('data/x')
    return data.open_dataset('data/x', meta, 256, 4)


def test_a_torn_dataset_is_prepared_again():
    """A kill leaves a folder without train.bin; tokens of another number are reported, not replaced."""
    write_script()
    preparation.prepare('data/x', 'train.bin')
    os.remove('data/x/train.bin')
    preparation.prepare('data/x', 'train.bin')
    assert len(opened().train) == 100

    np.zeros(50, '<u2').tofile('data/x/train.bin')
    preparation.prepare('data/x', 'train.bin')
    with pytest.raises(UserError, match='50 tokens, meta.json says 100; .*prepare it again'):
        opened()


def test_the_line_of_the_script_is_the_line_of_the_parent(capfd):
    write_script(PREPARE + "\n    sys.stderr.write('a warning\\n')\n    preparation.read_text('missing.txt')\n")
    with pytest.raises(UserError, match=r'^data/x: could not be prepared: missing\.txt: No such file .*--help'):
        preparation.prepare('data/x', 'train.bin')
    assert capfd.readouterr().err == 'a warning\n'

    # a traceback is shown in full
    write_script('AUTOMATIC = True\n1 / 0\n')
    os.remove('data/x/train.bin')
    with pytest.raises(UserError, match='^data/x: could not be prepared, see above .exit code 1.'):
        preparation.prepare('data/x', 'train.bin')
    assert 'ZeroDivisionError' in capfd.readouterr().err


def run_train(*args, **kwargs):
    command = [sys.executable, str(REPO / 'train.py'), '--device=cpu', '--dataset=x', *args]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kwargs)


def test_a_folder_that_cannot_be_written_is_one_line():
    write_script()
    with read_only('data/x'):
        ran = run_train()
        _, err = ran.communicate(timeout=100)
        assert ran.returncode == 2
        assert err.count('\n') == 1
        assert err.startswith('error: data/x: not prepared yet, and it cannot be written; ')
        commands = re.search(r'run python (\S+) --out (\S+) and then python (\S+)', err)
        assert commands.groups() == (os.path.abspath('data/x/prepare.py'), 'data/x', str(REPO / 'train.py'))


SLOW = """
AUTOMATIC = True
import os, sys, time
open('pid', 'w').write(str(os.getpid()))
open('pid2', 'w').write('')
import torch
print('imported', flush=True)
sys.stderr.write('noise')
time.sleep(100)
"""


@pytest.mark.skipif(os.name != 'posix', reason='process groups')
@pytest.mark.parametrize('number, moment', [
    (signal.SIGINT, 'at once'),
    (signal.SIGINT, 'imported'),
    (signal.SIGTERM, 'imported, to train.py alone'),
    pytest.param(signal.SIGINT, 'importing', marks=pytest.mark.slow),
    pytest.param(signal.SIGINT, 'imported, to train.py alone', marks=pytest.mark.slow),
    pytest.param(signal.SIGTERM, 'at once', marks=pytest.mark.slow),
    pytest.param(signal.SIGTERM, 'importing', marks=pytest.mark.slow),
    pytest.param(signal.SIGTERM, 'imported', marks=pytest.mark.slow),
])
@pytest.mark.slow
def test_ctrl_c_during_preparation(number, moment):
    """A terminal sends it to the whole process group, `kill` to one process."""
    code, said = {signal.SIGINT: (130, 'interrupted\n'), signal.SIGTERM: (143, '')}[number]
    write_script(SLOW)
    ran = run_train(start_new_session=True)
    assert ran.stdout.readline() == 'preparing data/x ...\n'
    if moment == 'importing':
        wait_for('pid2')
    elif moment.startswith('imported'):
        assert ran.stdout.readline() == 'imported\n'
    send = os.kill if moment.endswith('alone') else os.killpg
    send(ran.pid, number)

    _, err = ran.communicate(timeout=60)
    assert err == said
    assert ran.returncode in (code, -number)          # before the child is started, SIGTERM has its usual effect
    if os.path.exists('pid2'):
        with pytest.raises(ProcessLookupError):
            os.kill(int(Path('pid').read_text()), 0)
    assert os.listdir('data/x') == ['prepare.py']


def wait_for(path):
    for _ in range(600):
        if os.path.exists(path):
            return
        time.sleep(0.05)
    raise AssertionError(f'{path} did not appear')


def test_the_handlers_of_signals_are_put_back():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    write_script()
    preparation.prepare('data/x', 'train.bin')
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert set(snapshot('data/x')) == {'prepare.py', 'train.bin', 'val.bin', 'meta.json'}
