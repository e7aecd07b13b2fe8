"""Making datasets: complete or not at all, whenever it is interrupted."""

import contextlib
import hashlib
import itertools
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import snapshot

from gradus import data, metadata, preparation
from gradus.errors import UserError
from gradus.files import WriteError
from gradus.lock import Lock
from gradus.tokenizer import ByteTokenizer, CharTokenizer


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# ---------------------------------------------------------------------------- sources

@pytest.mark.skipif(os.name != 'posix', reason='pipes and devices are different there')
def test_texts_that_are_no_files():
    os.mkdir('folder')
    os.mkfifo('pipe')
    for name, found in (('folder', 'a folder'), ('pipe', 'a pipe'), ('/dev/zero', 'a device'), ('missing', 'No such')):
        with pytest.raises(UserError, match=rf'^{name}: {found}.*; expected a file$'):
            preparation.read_text(name)
    with pytest.raises(UserError, match='File name too long'):
        preparation.read_text('x' * 300)
    with pytest.raises(UserError, match='null'):
        preparation.read_text('a\0b')


def test_a_text_that_may_not_be_read(monkeypatch):
    def refuses(*args, **kwargs):
        raise PermissionError(13, 'Permission denied')

    Path('x').touch()
    monkeypatch.setattr('builtins.open', refuses)
    with pytest.raises(UserError, match='^x: Permission denied; expected a text file$'):
        preparation.read_text('x')


def test_a_download_is_checked(tmp_path):
    source = tmp_path / 'source.txt'
    source.write_bytes(b'text')
    url = source.as_uri()
    right = hashlib.sha256(b'text').hexdigest()

    assert preparation.download(url, right, 'got.txt') == 'got.txt'
    assert Path('got.txt').read_text() == 'text'

    # what is there already is not downloaded again
    source.unlink()
    assert preparation.download(url, right, 'got.txt') == 'got.txt'

    with pytest.raises(UserError, match='delete the file'):
        preparation.download(url, '0' * 64, 'got.txt')
    with pytest.raises(UserError, match='--input FILE'):
        preparation.download(url, right, 'other.txt')

    # another file is not even stored
    source.write_bytes(b'<html>welcome</html>')
    with pytest.raises(UserError, match='another file came; .* --input FILE'):
        preparation.download(url, right, 'other.txt')
    assert sorted(os.listdir()) == ['got.txt', 'source.txt']

    # what is no file is not read
    os.mkdir('folder')
    with pytest.raises(UserError, match='folder: a folder; expected a file'):
        preparation.download(url, right, 'folder')


# ---------------------------------------------------------------------------- writing

def test_dataset_round_trip_with_large_ids():
    class Big(ByteTokenizer):
        n_vocab = 100_000

    pieces = [('train', [99_999, 1]), ('val', [5]), ('train', np.array([70_000])), ('val', [65_536])]
    preparation.write('data/big', pieces, Big(), 'numbers', 'ab' * 32)
    meta = metadata.read_meta('data/big')
    assert os.path.getsize('data/big/train.bin') == 12
    assert meta['dtype'] == np.dtype('<u4')
    assert meta['vocab_size'] == 100_000

    x, y = data.Tokens('data/big/train.bin', meta['dtype'], meta['vocab_size'], 2).windows([0])
    assert x.tolist() == [[99_999, 1]]
    assert y.tolist() == [[1, 70_000]]

    on_disk = json.loads(Path('data/big/meta.json').read_text(encoding='utf-8'))
    assert (on_disk['train_tokens'], on_disk['val_tokens']) == (3, 2)
    assert (on_disk['sha256'], on_disk['source']) == ('ab' * 32, 'numbers')


@pytest.mark.parametrize('pieces', [[], [('train', [1])], [('val', [1]), ('train', [])]])
def test_a_dataset_without_tokens_replaces_none(pieces):
    write_old('json')
    before = opened()
    with pytest.raises(UserError, match='no tokens for (train|val).bin, so nothing was written'):
        preparation.write('d', pieces, ByteTokenizer(), '', '')
    assert opened() == before


def test_ids_are_little_endian_uint16():
    preparation.write('d', [('train', [258, 1]), ('val', [0])], CharTokenizer([chr(i) for i in range(300)]), '', '')
    assert Path('d/train.bin').read_bytes() == b'\x02\x01\x01\x00'


def test_a_broken_write_leaves_the_old_file():
    preparation.write('d', [('train', [1, 2]), ('val', [3])], ByteTokenizer(), '', '')
    with pytest.raises(OverflowError):
        preparation.write('d', preparation.splits([[4], [70_000]], [[3]]), ByteTokenizer(), '', '')
    assert Path('d/train.bin').read_bytes() == b'\x01\x00\x02\x00'


# ---------------------------------------------------------------------------- interrupted

class Killed(BaseException):
    """Nothing runs after it, not even what cleans up."""


class Machine:
    """
    Counts the file system's operations and kills the process in front of one of them; those in `lost` are not done, as
    if the power had failed before they reached the disk.
    """

    def __init__(self, patch, kill_at=None, lost=()):
        self.log = []
        self.kill_at = kill_at
        self.lost = lost
        for name in ('replace', 'remove', 'rename', 'unlink', 'fsync'):
            patch.setattr(os, name, self.watched(name, getattr(os, name)))
        patch.setattr(preparation, 'open', self.open, raising=False)

    def step(self, *what):
        """Is the operation to be done? Raises Killed."""
        if self.kill_at is not None and len(self.log) >= self.kill_at:
            raise Killed
        self.log.append(what)
        return len(self.log) - 1 not in self.lost

    def watched(self, name, function):
        def operation(*args):
            if name != 'fsync':
                names = [os.path.basename(arg) for arg in args]
            elif os.path.isdir(f'/proc/self/fd/{args[0]}'):
                names = ['folder']
            else:
                names = [os.path.basename(os.readlink(f'/proc/self/fd/{args[0]}'))]
            if self.step(name, *names) and name != 'fsync':       # an fsync would only cost time
                return function(*args)
        return operation

    def open(self, path, mode='r', **kwargs):
        f = open(path, mode, **kwargs)
        if 'w' in mode:
            self.step('open', os.path.basename(path))
            write = f.write
            f = HalfWritten(f, lambda content: write(content if self.step('write') else content[:1]))
        return f


class HalfWritten:
    def __init__(self, f, write):
        self.f = f
        self.write = write

    def __getattr__(self, name):
        return getattr(self.f, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.f.close()


OLD = [list(b'abcab'), list(b'cab')], ByteTokenizer()
NEW = [[0, 1, 2, 2, 2], [1, 1, 1]], CharTokenizer('xyz')
PAIRS = ['train.pairs.bin', 'val.pairs.bin']


def write(dataset):
    (train, val), tokenizer = dataset
    preparation.write('d', [('train', train), ('val', val)], tokenizer, 'text', '0')


def write_old(kind):
    """The same tokens with meta.json, with the files of pairs beside it, with nanoGPT's meta.pkl, or as GPT-2's."""
    shutil.rmtree('d', ignore_errors=True)
    if kind == 'nothing':
        return
    write(OLD)
    if kind == 'pairs':
        for name in PAIRS:
            Path('d', name).write_bytes(b'old')
    elif kind != 'json':
        os.remove('d/meta.json')
    if kind == 'pkl':
        Path('d/meta.pkl').write_bytes(pickle.dumps({'vocab_size': 256, 'itos': [chr(i) for i in range(256)]}))


def opened():
    """All that training sees of the dataset; None if it is refused, in one line."""
    try:
        meta = metadata.read_meta('d')
        if meta['tokenizer'] == {'kind': 'gpt2'}:
            meta['tokenizer'] = {'kind': 'byte'}      # needs no files
        found = data.open_dataset('d', meta, meta['vocab_size'], 2)
    except UserError as e:
        assert re.search('there is no folder|prepare the dataset first|prepare it again', str(e)), e
        return None
    pairs = [name for name in PAIRS if os.path.exists(os.path.join('d', name))]
    return found.train.ids.tolist(), found.val.ids.tolist(), meta['vocab_size'], meta['tokenizer'], pairs


def interrupted(**kill):
    """Write the new dataset on a Machine that is killed; returns its operations and what is found then."""
    with pytest.MonkeyPatch.context() as patch:
        machine = Machine(patch, **kill)
        with contextlib.suppress(Killed):
            write(NEW)
    return machine.log, opened()


posix = pytest.mark.skipif(not os.path.isdir('/proc/self/fd'), reason='needs /proc')
KINDS = pytest.mark.parametrize('kind', ['json', 'pairs', 'pkl', 'gpt2', 'nothing'])


def states(kind):
    """What is found after a kill in front of each operation, and at the end."""
    write_old(kind)
    log, complete = interrupted()
    found = []
    for kill_at in range(len(log) + 1):
        write_old(kind)
        before = opened()
        found.append(interrupted(kill_at=kill_at)[1])
    assert found[0] == before
    assert found[-1] == complete == ([0, 1, 2, 2, 2], [1, 1, 1], 3, {'kind': 'char', 'chars': ['x', 'y', 'z']}, [])
    return found, {str(state) for state in found} - {str(state) for state in (before, None, complete)}


@posix
@KINDS
def test_killed_in_front_of_any_operation(kind):
    found, mixed = states(kind)
    assert len(found) >= 15
    assert not mixed
    assert None in found


@posix
def test_what_this_test_would_find(monkeypatch):
    """Negative control: files that are replaced one after the other give mixtures, and those are noticed."""
    def one_by_one(folder, names, pieces):
        pieces = list(pieces)
        for name in names:
            path = os.path.join(folder, name)
            with getattr(preparation, 'open', open)(path + '.tmp', 'wb') as f:
                f.write(b''.join(piece for of, piece in pieces if of == name))
            os.replace(path + '.tmp', path)

    monkeypatch.setattr(preparation, 'write_files', one_by_one)
    for kind in ('json', 'pkl', 'gpt2'):
        assert states(kind)[1]


@posix
@KINDS
def test_a_power_cut(kind):
    """Of the operations after the last flush of the folder, any may be lost, whatever their order."""
    write_old(kind)
    before = opened()
    log, complete = interrupted()

    flushes = [i for i, step in enumerate(log) if step == ('fsync', 'folder')]
    tried = 0
    for start, end in zip([0, *flushes], [*flushes, len(log)]):
        changes = [i for i in range(start, end) if log[i][0] in ('replace', 'remove')]
        for n in range(len(changes) + 1):
            for lost in itertools.combinations(changes, n):
                write_old(kind)
                assert interrupted(kill_at=end, lost=lost)[1] in (before, None, complete)
                tried += 1
    assert tried > 6

    # and each file is on disk before it gets its name
    for i, step in enumerate(log):
        if step[0] == 'replace':
            assert ('fsync', step[1]) in log[:i]


@posix
def test_leftovers_are_removed_once_there_is_a_dataset():
    write_old('json')
    interrupted(kill_at=12)
    assert any(name.endswith('.tmp') for name in os.listdir('d'))

    dead = subprocess.Popen([sys.executable, '-c', ''])
    dead.wait()
    others = ['train.bin.tmp', 'x.1.tmp', 'notes.tmp', f'other.bin.{dead.pid}.tmp', f'train.bin.{os.getppid()}.tmp']
    ours = [f'{name}.{dead.pid}.tmp' for name in ('train.bin', 'val.bin', 'meta.json')]
    for name in others + ours:
        Path('d', name).touch()
    write(NEW)
    assert sorted(os.listdir('d')) == sorted(['train.bin', 'val.bin', 'meta.json', *others])


def test_other_files_of_an_old_dataset_go_with_it():
    write_old('pairs')
    write(NEW)
    assert sorted(os.listdir('d')) == ['meta.json', 'train.bin', 'val.bin']

    # but a file that is not a dataset's leaves them alone
    write_old('pairs')
    preparation.write_files('d', ['input.txt'], [('input.txt', b'te'), ('input.txt', b'xt')])
    assert sorted(os.listdir('d')) == ['input.txt', 'meta.json', 'train.bin', *PAIRS[:1], 'val.bin', *PAIRS[1:]]
    assert Path('d/input.txt').read_text() == 'text'


def test_two_processes_do_not_write_one_dataset():
    write(OLD)
    before = snapshot('d')
    with Lock('d', 'another process is writing to it'):
        with pytest.raises(UserError, match=f'^d: another process is writing to it .process {os.getpid()}.'):
            write(NEW)
    assert snapshot('d') == before
    write(NEW)


@pytest.mark.parametrize('operation', ['replace', 'remove', 'fsync'])
def test_an_error_of_the_disk_is_one_line(operation, monkeypatch):
    write(OLD)

    def fails(*args):
        raise OSError(5, 'Input/output error')

    with monkeypatch.context() as patch:
        patch.setattr(os, operation, fails)
        with pytest.raises(WriteError, match=r'^d.\w+\.\w+: could not be written \(Input/output error\); choose'):
            write(NEW)
    assert not any(name.endswith('.tmp') for name in os.listdir('d')) or operation == 'remove'
    assert opened() is None or operation != 'replace'
