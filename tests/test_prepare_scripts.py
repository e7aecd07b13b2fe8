"""The scripts in data/ that prepare datasets, and what they say when they cannot."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import REPO, limited, run_script
from test_crash import small_disk

from gradus.metadata import read_meta
from gradus.tokenizer import build_tokenizer


def ids_of(path):
    return np.fromfile(path, dtype='<u2')


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def assert_one_line(ran, *parts):
    assert ran.returncode == 2, ran.stderr
    assert ran.stderr.startswith('error: ')
    assert ran.stderr.count('\n') == 1
    assert ran.stderr[:-1].isprintable()
    for part in parts:
        assert part in ran.stderr


@pytest.fixture
def run_here(monkeypatch, capsys):
    """
    Like run_script, but in this process, which is much faster. Each script also runs as a real process in one of the
    tests.
    """
    def run(name, *args, folder=REPO):
        returncode = 0
        capsys.readouterr()
        with monkeypatch.context() as m:
            m.setattr(sys, 'argv', [str(folder / name), *map(str, args)])
            m.setattr(sys, 'path', list(sys.path))
            try:
                runpy.run_path(sys.argv[0], run_name='__main__')
            except SystemExit as e:
                returncode = e.code or 0
        out, err = capsys.readouterr()
        return SimpleNamespace(returncode=returncode, stdout=out, stderr=err)

    return run


@pytest.mark.parametrize('name, train_tokens, val_tokens', [
    ('shakespeare_char', 1_003_854, 111_540),
    ('shakespeare', 301_966, 36_059),
])
def test_shakespeare_has_nanogpts_token_counts(test_data, name, train_tokens, val_tokens, run_here):
    text = test_data / 'tinyshakespeare/input.txt'
    if name == 'shakespeare':                         # as a process
        env = {'TIKTOKEN_CACHE_DIR': str(test_data / 'tiktoken')}
        ran = run_script(f'data/{name}/prepare.py', '--input', text, '--out', 'd', env=env)
    else:
        ran = run_here(f'data/{name}/prepare.py', '--input', text, '--out', 'd')

    assert ran.returncode == 0, ran.stderr
    assert os.path.getsize('d/train.bin') == 2 * train_tokens
    assert os.path.getsize('d/val.bin') == 2 * val_tokens
    assert f'{train_tokens:,}' in ran.stdout
    assert f'{val_tokens:,}' in ran.stdout
    meta = json.loads(Path('d/meta.json').read_text(encoding='utf-8'))
    assert meta['sha256'] == '86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed'


def test_shakespeare_char_numbers_characters_as_nanogpt_does(test_data, run_here):
    source = test_data / 'tinyshakespeare/input.txt'
    run_here('data/shakespeare_char/prepare.py', '--input', source, '--out', 'd')

    text = source.read_text(encoding='utf-8')
    chars = sorted(set(text))
    stoi = {c: i for i, c in enumerate(chars)}
    expected = np.array([stoi[c] for c in text], dtype='<u2').tobytes()
    assert Path('d/train.bin').read_bytes() + Path('d/val.bin').read_bytes() == expected
    assert read_meta('d')['tokenizer'] == {'kind': 'char', 'chars': chars}


def test_any_text_can_be_prepared(run_here):
    Path('mine.txt').write_text('Grüße\r\naus 北京 ' * 50, encoding='utf-8', newline='')
    ran = run_here('data/shakespeare_char/prepare.py', '--input', 'mine.txt', '--out', 'd')
    assert ran.returncode == 0, ran.stderr
    assert read_meta('d')['tokenizer']['chars'] == sorted(set('Grüße\r\naus 北京 '))


def test_the_standard_library_is_a_dataset(run_here):
    ran = run_script('data/python_stdlib/prepare.py', '--out', 'd')
    assert ran.returncode == 0, ran.stderr
    train = bytes(ids_of('d/train.bin').astype(np.uint8))
    val = bytes(ids_of('d/val.bin').astype(np.uint8))

    assert read_meta('d')['tokenizer'] == {'kind': 'byte'}
    assert train.isascii()
    assert len(train) > 3_000_000
    assert 0.03 < len(val) / len(train) < 0.2
    assert b'def dataclass(' in train + val
    assert 'site-packages' not in ran.stdout

    # a second run gives the same dataset
    run_here('data/python_stdlib/prepare.py', '--out', 'again')
    assert bytes(ids_of('again/train.bin').astype(np.uint8)) == train
    assert bytes(ids_of('again/val.bin').astype(np.uint8)) == val


@pytest.mark.parametrize('name, args, message', [
    ('shakespeare_char', ['--input', 'missing.txt'], 'missing.txt'),
    ('shakespeare', ['--input', 'missing.txt'], 'missing.txt'),
    ('shakespeare_char', ['--input', 'binary.txt'], 'not UTF-8'),
    ('python_stdlib', ['--input', '.'], 'less than 1 MB'),
    ('python_stdlib', ['--input', 'missing'], 'no such folder'),
    ('python_stdlib', ['--input', 'binary.txt'], 'no such folder'),
    ('python_stdlib', ['--input', '/dev/zero'], 'no such folder'),
    ('python_stdlib', ['--input', 'x' * 300], 'no such folder'),
    *[(name, ['--input', path], message) for name in ('shakespeare', 'shakespeare_char')
      for path, message in (('.', 'a folder'), ('pipe', 'a pipe'), ('/dev/zero', 'a device'), ('x' * 300, 'too long'))],
    ('mnist', ['--source', 'missing'], 'No such file'),
    ('mnist', ['--source', '.'], 'not found'),
    ('mnist', ['--source', 'pipe'], 'a pipe'),
    ('mnist', ['--source', '/dev/zero'], 'a device'),
    ('mnist', ['--source', 'x' * 300], 'too long'),
    ('mnist', ['--source', 'binary.txt'], 'not a complete pickle'),
    ('', ['.'], 'binary.txt: not UTF-8 text (byte 0)'),
    ('', ['empty'], 'a folder without files'),
    ('', ['pipe'], 'a pipe'),
    ('', ['missing.txt'], 'missing.txt'),
])
def test_prepare_says_what_is_wrong_in_one_line(name, args, message, run_here):
    Path('binary.txt').write_bytes(b'\xff\xfe\x00')
    os.mkfifo('pipe')
    os.mkdir('empty')
    ran = run_here(f'data/{name}/prepare.py', *args, '--out', 'd')

    assert_one_line(ran, message)
    assert not os.path.exists('d')


def test_only_small_datasets_are_prepared_by_train():
    scripts = REPO.glob('data/*/prepare.py')
    automatic = {path.parent.name: 'AUTOMATIC = True' in path.read_text(encoding='utf-8') for path in scripts}
    assert automatic == {
        'python_stdlib': True,
        'shakespeare': True,
        'shakespeare_char': True,
        'openwebtext': False,
        'fineweb_edu': False,
        'arithmetic': True,
        'multi30k': True,
        'mnist': True,
    }


@pytest.mark.parametrize('kind', ['char', 'byte', 'gpt2'])
def test_own_text_from_several_files(kind, request, monkeypatch, run_here):
    if kind == 'gpt2':
        monkeypatch.setenv('TIKTOKEN_CACHE_DIR', str(request.getfixturevalue('test_data') / 'tiktoken'))
    Path('a.txt').write_text('Grüße ' * 40, encoding='utf-8')
    Path('b.txt').write_text('<|endoftext|> is text here ' * 40, encoding='utf-8')

    ran = run_here('data/prepare.py', 'a.txt', 'b.txt', f'--tokenizer={kind}', '--out', 'd')
    assert ran.returncode == 0, ran.stderr
    ids = [*ids_of('d/train.bin').tolist(), *ids_of('d/val.bin').tolist()]
    tokenizer = build_tokenizer(read_meta('d')['tokenizer'])
    between = '<|endoftext|>' if kind == 'gpt2' else '\n'
    assert tokenizer.decode(ids) == 'Grüße ' * 40 + between + '<|endoftext|> is text here ' * 40
    assert ids.count(50256) == (kind == 'gpt2')


# ---------------------------------------------------------------------------- where nothing can be written

@pytest.fixture
def inputs(test_data, monkeypatch):
    """Arguments with which each script would work."""
    text = test_data / 'tinyshakespeare/input.txt'
    monkeypatch.setenv('TIKTOKEN_CACHE_DIR', str(test_data / 'tiktoken'))
    return {
        'data/prepare.py': [text],
        'data/shakespeare/prepare.py': ['--input', text],
        'data/shakespeare_char/prepare.py': ['--input', text],
        'data/python_stdlib/prepare.py': [],
        'data/mnist/prepare.py': ['--source', test_data / 'mnist'],
    }


SCRIPTS = ['', 'shakespeare', 'shakespeare_char', 'python_stdlib', 'mnist']


@pytest.mark.parametrize('script', SCRIPTS)
@pytest.mark.slow
def test_folders_that_cannot_be(script, inputs, run_here):
    script = os.path.join('data', script, 'prepare.py')
    Path('file').write_text('mine')
    for out in ('/proc/x', 'file', 'file/below', 'x' * 300, 'a\0b'):
        ran = run_here(script, *inputs[script], '--out', out)
        assert_one_line(ran)
        assert 'make room' not in ran.stderr
    assert Path('file').read_text() == 'mine'


@pytest.mark.parametrize('script', SCRIPTS)
@pytest.mark.slow
def test_a_full_disk(script, inputs, run_here):
    """The disk is full, or only this process may write no more: for that, no room can be made."""
    script = os.path.join('data', script, 'prepare.py')
    with small_disk('small', 16_384):
        ran = run_here(script, *inputs[script], '--out', 'small/d')
        assert_one_line(ran, 'could not be written (No space left on device); make room')
        assert os.listdir('small/d') == []

    with limited('RLIMIT_FSIZE', 8192):
        ran = run_here(script, *inputs[script], '--out', 'd')
    assert_one_line(ran, 'could not be written (File too large); choose another folder with --out')
    assert os.listdir('d') == []


def test_a_checkout_that_cannot_be_written_keeps_its_text_elsewhere(tmp_path, monkeypatch):
    """The downloaded input.txt goes beside the dataset then."""
    from gradus import preparation

    (tmp_path / 'source').write_bytes(b'text')
    monkeypatch.setattr(os, 'access', lambda path, mode: path != 'locked')
    sha256 = '982d9e3eb996f559e633f4d194def3761d909f5a3b647d1a851fead67c32c9d1'
    path = preparation.download((tmp_path / 'source').as_uri(), sha256, 'locked/input.txt', 'd')
    assert path == os.path.join('d', 'input.txt')
    assert Path('d/input.txt').read_bytes() == b'text'


# ---------------------------------------------------------------------------- data/prepare.py --name, --out

@pytest.fixture
def checkout(tmp_path):
    """A copy of data/prepare.py and of one dataset's script, to write into."""
    for name in ('prepare.py', 'mnist/prepare.py'):
        os.makedirs((tmp_path / 'repo/data' / name).parent, exist_ok=True)
        shutil.copy(REPO / 'data' / name, tmp_path / 'repo/data' / name)
    os.symlink(REPO / 'gradus', tmp_path / 'repo/gradus')
    Path('a.txt').write_text('some text ' * 50)
    Path('b.txt').write_text('other text ' * 50)
    return tmp_path / 'repo'


@pytest.mark.parametrize('name', [
    '', '.', './', '..', '../x', 'a/../../b', 'a/..', '/nowhere/x', '../data/x', '../../x',
    'mnist', './mnist', 'a/../mnist', 'mnist/', 'x\x1b[31m', 'x\ny', 'x' * 300,
])
def test_names_that_are_refused(name, checkout, run_here):
    before = sorted(checkout.parent.rglob('*'))
    assert_one_line(run_here('data/prepare.py', f'--name={name}', 'a.txt', folder=checkout))
    assert sorted(checkout.parent.rglob('*')) == before


def test_names_that_are_taken(checkout, run_here):
    for name in ('mine', 'two/levels', '..mine', 'x y'):
        ran = run_here('data/prepare.py', f'--name={name}', 'a.txt', folder=checkout)
        assert ran.returncode == 0, ran.stderr
        assert (checkout / 'data' / name / 'train.bin').exists()


@pytest.mark.parametrize('where', ['--name', '--out'])
def test_what_is_there_is_not_overwritten(where, checkout, run_here):
    folder = checkout / 'data/mine' if where == '--name' else Path('mine').resolve()
    place = '--name=mine' if where == '--name' else f'--out={folder}'

    def prepare(*args):
        return run_here('data/prepare.py', place, *args, folder=checkout)

    # The same files, changed or not, another tokenizer, after a kill.
    assert prepare('a.txt').returncode == 0
    Path('a.txt').write_text('new text ' * 50)
    assert prepare('a.txt', '--tokenizer=byte').returncode == 0
    (folder / 'train.bin').unlink()
    (folder / 'val.bin.1.tmp').touch()
    assert prepare('a.txt').returncode == 0

    # Other files.
    before = (folder / 'train.bin').read_bytes()
    assert_one_line(prepare('b.txt'), "made from 'a.txt'", '--overwrite')
    assert_one_line(prepare('a.txt', 'b.txt'), "made from 'a.txt'", '--overwrite')
    (folder / 'meta.json').write_text('{')
    assert_one_line(prepare('a.txt'), 'something else', '--overwrite')
    (folder / 'meta.json').unlink()
    assert_one_line(prepare('a.txt'), 'something else', '--overwrite')
    assert (folder / 'train.bin').read_bytes() == before
    assert prepare('b.txt', '--overwrite').returncode == 0
    assert prepare('b.txt').returncode == 0

    # Other things: nanoGPT's meta.pkl, notes. Its own source may lie there, and hidden files.
    for name in ('meta.pkl', 'notes.md'):
        (folder / name).write_text('x')
        assert_one_line(prepare('b.txt'), f'other files ({name})', '--overwrite')
        (folder / name).unlink()
    shutil.copy('b.txt', folder)
    (folder / '.DS_Store').touch()
    assert prepare(folder / 'b.txt', '--overwrite').returncode == 0
    assert prepare(folder / 'b.txt').returncode == 0


@pytest.mark.parametrize('closed', [
    '',
    '<&- >&- 2>&-',
    *(pytest.param(closed, marks=pytest.mark.slow) for closed in ('<&-', '>&-', '2>&-')),
])
def test_any_terminal_will_do(closed, checkout):
    """A name in Japanese where only Western characters are expected, and closed streams."""
    command = f'exec "$0" repo/data/prepare.py --name=日本語 --tokenizer=byte a.txt {closed}'
    env = {**os.environ, 'PYTHONIOENCODING': 'cp1252', 'LC_ALL': 'C.UTF-8'}
    for _ in range(2):
        ran = subprocess.run(['sh', '-c', command, sys.executable], capture_output=True, env=env, encoding='utf-8')
        assert (ran.returncode, ran.stderr) == (0, '')
        assert 'data/日本語: train has' in ran.stdout or '>&-' in closed
    assert len(ids_of(checkout / 'data/日本語/train.bin')) == 450
    assert read_meta(str(checkout / 'data/日本語'))['source'] == 'a.txt'

    command = command.replace('a.txt', 'missing.txt')
    ran = subprocess.run(['sh', '-c', command, sys.executable], capture_output=True, env=env, encoding='utf-8')
    assert ran.returncode == 2
    assert ran.stderr.count('\n') == (0 if '2>' in closed else 1)
