"""Token files and batches, and the scripts in data/ that prepare datasets."""

import hashlib
import json
import os
import pickle
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import REPO, run_script

from gradus import data
from gradus.errors import UserError
from gradus.tokenizer import ByteTokenizer, CharTokenizer, build_tokenizer

TWO_BYTES = np.dtype('<u2')


def tokens_of(ids, block_size, vocab_size=1000, dtype='<u2', path='x.bin'):
    np.array(ids).astype(dtype).tofile(path)
    return data.Tokens(path, np.dtype(dtype), vocab_size, block_size)


def ids_of(path):
    return np.fromfile(path, dtype=TWO_BYTES)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# ---------------------------------------------------------------------------- batches

def test_targets_are_inputs_one_later():
    tokens = tokens_of(range(100), 7)
    x, y = tokens.windows([0, 50, 92])

    assert x.dtype == y.dtype == torch.int64
    assert x.is_contiguous() and y.is_contiguous()
    assert x.tolist() == [list(range(s, s + 7)) for s in (0, 50, 92)]
    assert y.tolist() == [list(range(s + 1, s + 8)) for s in (0, 50, 92)]


def test_nothing_is_learned_beyond_the_end():
    x, y = tokens_of(range(10, 20), 4).windows([8, 10])
    assert x.tolist() == [[18, 19, 0, 0], [0, 0, 0, 0]]
    assert y.tolist() == [[19, -1, -1, -1], [-1, -1, -1, -1]]


def test_batches_depend_on_seed_and_step_alone():
    tokens = tokens_of(range(5000), 8, vocab_size=5000)
    first = tokens.batch_starts(3, 17, 64)

    # neither on the steps drawn before nor on the global generators
    for step in (0, 5, 16):
        tokens.batch_starts(3, step, 64)
    np.random.seed(0)
    torch.manual_seed(0)
    assert (tokens.batch_starts(3, 17, 64) == first).all()
    assert (tokens.batch_starts(4, 17, 64) != first).any()


def test_neighboring_steps_share_no_randomness():
    """With the step in Philox's lowest counter word, step i + 1 would repeat the draws of step i, shifted by four."""
    tokens = tokens_of(np.arange(60_000), 8, vocab_size=60_000)
    steps = [tokens.batch_starts(1, step, 200).tolist() for step in range(4)]
    for a in range(4):
        for b in range(a):
            assert len(set(steps[a]) & set(steps[b])) <= 5      # 0.7 expected by chance


def test_every_window_can_be_drawn_and_none_reaches_too_far():
    tokens = tokens_of(range(20), 16)
    starts = np.concatenate([tokens.batch_starts(1, step, 50) for step in range(20)])
    assert set(starts) == {0, 1, 2, 3}

    x, y = tokens.windows([3])
    assert y[0, -1] == 19


# ---------------------------------------------------------------------------- shuffled epochs

def test_shuffled_every_token_comes_once_before_any_comes_twice():
    tokens = tokens_of(range(1003), 10, vocab_size=1003)
    starts = np.concatenate([tokens.batch_starts(1, step, 7, 'shuffled') for step in range(50)])

    # an epoch has 99 windows of 10 tokens, counted from a random offset
    epochs = [starts[i:i + 99].tolist() for i in range(0, 297, 99)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(min(epoch), min(epoch) + 990, 10))
        assert epoch != sorted(epoch)
        assert min(epoch) >= 0
        assert max(epoch) + 11 <= 1003
    assert len({tuple(np.argsort(e)) for e in epochs}) == 3

    # negative control: random starts repeat
    assert len(set(tokens.batch_starts(1, 0, 99, 'random'))) < 99


def test_shuffled_depends_on_seed_and_step_alone():
    here = tokens_of(range(500), 8, vocab_size=500)
    there = tokens_of(range(500), 8, vocab_size=500)
    forwards = {step: here.batch_starts(5, step, 16, 'shuffled').tolist() for step in range(31)}

    for step in (30, 0, 13, 4, 29):                   # epochs end within steps 3 and 11
        assert there.batch_starts(5, step, 16, 'shuffled').tolist() == forwards[step]
    assert here.batch_starts(5, 9, 16, 'shuffled').tolist() != here.batch_starts(6, 9, 16, 'shuffled').tolist()


def test_shuffled_works_with_a_text_of_one_window():
    assert tokens_of(range(9), 8).batch_starts(1, 3, 4, 'shuffled').tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize('n_tokens, block, n, expected', [
    (101, 10, 0, range(0, 100, 10)),
    (101, 10, 99, range(0, 100, 10)),
    (102, 10, 0, range(0, 101, 10)),
    (101, 10, 5, range(0, 100, 20)),
    (11, 10, 3, [0]),
    (101, 10, 3, [0, 30, 60]),
])
def test_evaluation_windows(n_tokens, block, n, expected):
    assert tokens_of(range(n_tokens), block).eval_starts(n).tolist() == list(expected)


# ---------------------------------------------------------------------------- files

def test_dataset_round_trip_with_large_ids():
    class Big(ByteTokenizer):
        n_vocab = 100_000

    data.write('data/big', [[99_999, 1], [70_000]], [[5, 65_536]], Big(), 'numbers', 'ab' * 32)
    meta = data.read_meta('data/big')
    assert os.path.getsize('data/big/train.bin') == 12
    assert meta['dtype'] == np.dtype('<u4')
    assert meta['vocab_size'] == 100_000

    x, y = data.Tokens('data/big/train.bin', meta['dtype'], meta['vocab_size'], 2).windows([0])
    assert x.tolist() == [[99_999, 1]]
    assert y.tolist() == [[1, 70_000]]

    on_disk = json.loads(Path('data/big/meta.json').read_text(encoding='utf-8'))
    assert (on_disk['train_tokens'], on_disk['val_tokens']) == (3, 2)
    assert (on_disk['sha256'], on_disk['source']) == ('ab' * 32, 'numbers')


def test_ids_are_little_endian_uint16():
    data.write('d', [[258, 1]], [[0]], CharTokenizer([chr(i) for i in range(300)]), '', '')
    assert Path('d/train.bin').read_bytes() == b'\x02\x01\x01\x00'


def test_a_broken_write_leaves_the_old_file():
    data.write('d', [[1, 2]], [[3]], ByteTokenizer(), '', '')
    with pytest.raises(OverflowError):
        data.write('d', [[4], [70_000]], [[3]], ByteTokenizer(), '', '')
    assert Path('d/train.bin').read_bytes() == b'\x01\x00\x02\x00'


def test_without_meta_the_tokens_are_gpt2s():
    os.makedirs('d')
    assert data.read_meta('d') == dict(vocab_size=50304, dtype=TWO_BYTES, tokenizer={'kind': 'gpt2'})


class Hostile:
    def __reduce__(self):
        return os.system, ('touch was_here',)


@pytest.mark.parametrize('content', [
    pickle.dumps(Hostile()),
    pickle.dumps(dict(vocab_size=2, itos={0: 'a', 1: Hostile()}, stoi={})),
    pickle.dumps([1]),
    b'',
    b'\x80',
    pickle.dumps(dict(vocab_size='2', itos={0: 'a'}, stoi={})),
    pickle.dumps(dict(vocab_size=1, itos={0: 'a', 2: 'b'}, stoi={})),
    pickle.dumps(dict(vocab_size=np.int64(1), itos={0: 'a'})),
])
def test_meta_pkl_runs_nothing_and_is_refused_in_one_line(content):
    os.makedirs('d')
    Path('d/meta.pkl').write_bytes(content)
    with pytest.raises(UserError) as e:
        data.read_meta('d')

    assert not os.path.exists('was_here')
    assert '\n' not in str(e.value)
    assert 'd/meta.pkl' in str(e.value)


def test_the_hostile_pickle_is_hostile():
    """Negative control: an ordinary unpickler runs it."""
    pickle.loads(pickle.dumps(Hostile()))
    assert os.path.exists('was_here')


@pytest.mark.parametrize('text', [
    '',
    '{',
    '[]',
    '{"vocab_size": 3}',
    '{"vocab_size": "3", "dtype": "uint16", "tokenizer": {}}',
    '{"vocab_size": 3, "dtype": "float32", "tokenizer": {}}',
    '{"vocab_size": -3, "dtype": "uint16", "tokenizer": {}}',
    '{"vocab_size": 3, "dtype": "uint16", "tokenizer": "byte"}',
    '{"vocab_size": 3, "dtype": [], "tokenizer": {}}',
    '[' * 100_000,
])
def test_meta_json_of_the_wrong_form_is_refused_in_one_line(text):
    os.makedirs('d')
    Path('d/meta.json').write_text(text)
    with pytest.raises(UserError) as e:
        data.read_meta('d')

    assert '\n' not in str(e.value)
    assert 'd/meta.json' in str(e.value)


def test_damaged_token_files_are_named():
    with pytest.raises(UserError, match=r'x\.bin: token id 1000; expected ids below the vocabulary size 1000'):
        tokens_of([1, 2, 1000, 3], 2)
    with pytest.raises(UserError, match='4 tokens; expected at least block_size .* 5'):
        tokens_of(range(4), 4)
    Path('odd.bin').write_bytes(b'123')
    with pytest.raises(UserError, match='3 bytes; expected a multiple of 2'):
        data.Tokens('odd.bin', TWO_BYTES, 10, 1)
    Path('empty.bin').write_bytes(b'')
    with pytest.raises(UserError, match='0 tokens'):
        data.Tokens('empty.bin', TWO_BYTES, 10, 1)
    with pytest.raises(UserError, match=r'python .*prepare\.py'):
        data.Tokens('missing.bin', TWO_BYTES, 10, 1)


def test_an_id_beyond_the_first_check_is_found_in_its_batch():
    tokens = tokens_of(range(100), 4, vocab_size=100)
    tokens.vocab_size = 90                            # as if the file were too long to be checked when it is opened
    tokens.windows([0, 80])
    with pytest.raises(UserError, match='token id 9'):
        tokens.windows([0, 88])


def test_a_download_is_checked(tmp_path):
    source = tmp_path / 'source.txt'
    source.write_bytes(b'text')
    url = source.as_uri()
    right = hashlib.sha256(b'text').hexdigest()

    assert data.download(url, right, 'got.txt') == 'got.txt'
    assert Path('got.txt').read_text() == 'text'

    # what is there already is not downloaded again
    source.unlink()
    assert data.download(url, right, 'got.txt') == 'got.txt'

    with pytest.raises(UserError, match='delete the file'):
        data.download(url, '0' * 64, 'got.txt')
    with pytest.raises(UserError, match='--input FILE'):
        data.download(url, right, 'other.txt')


# ---------------------------------------------------------------------------- data/*/prepare.py

@pytest.fixture
def run_here(monkeypatch, capsys):
    """
    Like run_script, but in this process, which is much faster; a script that a script starts runs in this process
    too. Each script also runs as a real process in one of the tests.
    """
    def run(command, **kwargs):
        """Stands in for subprocess.run([python, script, ...])."""
        try:
            with monkeypatch.context() as m:
                m.setattr(sys, 'argv', [str(word) for word in command[1:]])
                m.setattr(sys, 'path', list(sys.path))
                m.setattr(subprocess, 'run', run)
                runpy.run_path(sys.argv[0], run_name='__main__')
        except SystemExit as e:
            if isinstance(e.code, str):
                print(e.code, file=sys.stderr)
                return SimpleNamespace(returncode=1)
            return SimpleNamespace(returncode=e.code or 0)
        return SimpleNamespace(returncode=0)

    def run_and_capture(name, *args):
        capsys.readouterr()
        returncode = run([sys.executable, REPO / name, *args]).returncode
        out, err = capsys.readouterr()
        return SimpleNamespace(returncode=returncode, stdout=out, stderr=err)

    return run_and_capture


@pytest.mark.parametrize('name, train_tokens, val_tokens', [
    ('shakespeare_char', 1_003_854, 111_540),
    ('shakespeare', 301_966, 36_059),
])
def test_shakespeare_has_nanogpts_token_counts(test_data, name, train_tokens, val_tokens, run_here):
    text = test_data / 'tinyshakespeare/input.txt'
    if name == 'shakespeare':                         # as processes: this starts shakespeare_char's, then prepare.py
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
    expected = np.array([stoi[c] for c in text], dtype=TWO_BYTES).tobytes()
    assert Path('d/train.bin').read_bytes() + Path('d/val.bin').read_bytes() == expected
    assert data.read_meta('d')['tokenizer'] == {'kind': 'char', 'chars': chars}


def test_any_text_can_be_prepared(run_here):
    Path('mine.txt').write_text('Grüße\r\naus 北京 ' * 50, encoding='utf-8', newline='')
    ran = run_here('data/shakespeare_char/prepare.py', '--input', 'mine.txt', '--out', 'd')
    assert ran.returncode == 0, ran.stderr
    assert data.read_meta('d')['tokenizer']['chars'] == sorted(set('Grüße\r\naus 北京 '))


def test_the_standard_library_is_a_dataset(run_here):
    ran = run_script('data/python_stdlib/prepare.py', '--out', 'd')
    assert ran.returncode == 0, ran.stderr
    train = bytes(ids_of('d/train.bin').astype(np.uint8))
    val = bytes(ids_of('d/val.bin').astype(np.uint8))

    assert data.read_meta('d')['tokenizer'] == {'kind': 'byte'}
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
])
def test_prepare_says_what_is_wrong_in_one_line(name, args, message, run_here):
    Path('binary.txt').write_bytes(b'\xff\xfe\x00')
    ran = run_here(f'data/{name}/prepare.py', *args, '--out', 'd')

    assert ran.returncode != 0
    assert message in ran.stderr
    assert ran.stderr.count('\n') == 1
    assert not os.path.exists('d')


def test_only_small_datasets_are_prepared_by_train():
    scripts = REPO.glob('data/*/prepare.py')
    automatic = {path.parent.name: 'AUTOMATIC = True' in path.read_text(encoding='utf-8') for path in scripts}
    assert automatic == {
        'python_stdlib': True,
        'shakespeare': True,
        'shakespeare_char': True,
        'openwebtext': False,
        'mnist': True,
    }


STAND_IN_FOR_DATASETS = """
class Part(list):
    def iter(self, batch_size):
        for i in range(0, len(self), batch_size):
            yield {'text': self[i:i + batch_size]}

    def train_test_split(self, test_size, seed, shuffle):
        assert (test_size, seed, shuffle) == (0.0005, 2357, True)
        return {'train': Part(self[2:]), 'test': Part(self[:2])}


def load_dataset(name, split):
    assert name.endswith('openwebtext') and split == 'train'
    return Part(f'Hello world {i}' for i in range(2500))
"""


def test_openwebtext_is_read_through_datasets(test_data, tmp_path, monkeypatch, run_here):
    """With a stand-in for the package: 2 of 2,500 documents are held out, and each ends with <|endoftext|>."""
    (tmp_path / 'datasets.py').write_text(STAND_IN_FOR_DATASETS)
    env = {'TIKTOKEN_CACHE_DIR': str(test_data / 'tiktoken'), 'PYTHONPATH': str(tmp_path)}
    ran = run_script('data/openwebtext/prepare.py', '--out', 'd', env=env)
    assert ran.returncode == 0, ran.stderr
    assert ids_of('d/val.bin').tolist() == [15496, 995, 657, 50256, 15496, 995, 352, 50256]
    assert (ids_of('d/train.bin') == 50256).sum() == 2498

    # without the package
    monkeypatch.setitem(sys.modules, 'datasets', None)
    ran = run_here('data/openwebtext/prepare.py', '--out', 'd')
    assert ran.returncode != 0
    assert 'pip install datasets' in ran.stderr


@pytest.mark.parametrize('kind', ['char', 'byte', 'gpt2'])
def test_own_text_from_several_files(kind, request, monkeypatch, run_here):
    if kind == 'gpt2':
        monkeypatch.setenv('TIKTOKEN_CACHE_DIR', str(request.getfixturevalue('test_data') / 'tiktoken'))
    Path('a.txt').write_text('Grüße ' * 40, encoding='utf-8')
    Path('b.txt').write_text('<|endoftext|> is text here ' * 40, encoding='utf-8')

    ran = run_here('data/prepare.py', 'a.txt', 'b.txt', f'--tokenizer={kind}', '--out', 'd')
    assert ran.returncode == 0, ran.stderr
    ids = [*ids_of('d/train.bin').tolist(), *ids_of('d/val.bin').tolist()]
    tokenizer = build_tokenizer(data.read_meta('d')['tokenizer'])
    assert tokenizer.decode(ids) == 'Grüße ' * 40 + '\n' + '<|endoftext|> is text here ' * 40 and 50256 not in ids
