"""Token files and batches, and the datasets that come with the repo."""

import hashlib
import json
import os
import pickle

import numpy as np
import pytest
import torch
from conftest import REPO, run_script

from gradus import data
from gradus.tokenizer import ByteTokenizer, CharTokenizer, from_json


def tokens_of(ids, block_size, vocab_size=1000, dtype='<u2', path='x.bin'):
    np.array(ids).astype(dtype).tofile(path)
    return data.Tokens(path, np.dtype(dtype), vocab_size, block_size)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# ---------------------------------------------------------------------------- batches

def test_targets_are_inputs_one_later():
    tokens = tokens_of(range(100), 7)
    x, y = tokens.windows([0, 50, 92])
    assert x.dtype == y.dtype == torch.int64 and x.is_contiguous() and y.is_contiguous()
    assert x.tolist() == [list(range(s, s + 7)) for s in (0, 50, 92)]
    assert y.tolist() == [list(range(s + 1, s + 8)) for s in (0, 50, 92)]


def test_beyond_the_end_there_is_nothing_to_learn():
    x, y = tokens_of(range(10, 20), 4).windows([8, 10])
    assert x.tolist() == [[18, 19, 0, 0], [0, 0, 0, 0]] and y.tolist() == [[19, -1, -1, -1], [-1, -1, -1, -1]]


def test_batches_depend_on_seed_and_step_alone():
    tokens = tokens_of(range(5000), 8, vocab_size=5000)
    first = tokens.batch_starts(3, 17, 64)
    for step in (0, 5, 16):
        tokens.batch_starts(3, step, 64)
    np.random.seed(0)
    torch.manual_seed(0)
    assert (tokens.batch_starts(3, 17, 64) == first).all()
    assert (tokens.batch_starts(4, 17, 64) != first).any()


def test_neighbouring_steps_share_no_randomness():
    """With the step in Philox's lowest counter word, step i + 1 would repeat the draws of step i, four places on."""
    tokens = tokens_of(np.arange(60_000), 8, vocab_size=60_000)
    steps = [tokens.batch_starts(1, step, 200).tolist() for step in range(4)]
    for a in range(4):
        for b in range(a):
            assert len(set(steps[a]) & set(steps[b])) <= 5                        # 0.7 expected by chance


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
    epochs = [starts[i:i + 99].tolist() for i in range(0, 297, 99)]              # 99 windows of 10, from a random token on
    for epoch in epochs:
        assert sorted(epoch) == list(range(min(epoch), min(epoch) + 990, 10)) and epoch != sorted(epoch)
        assert min(epoch) >= 0 and max(epoch) + 11 <= 1003
    assert len({tuple(np.argsort(e)) for e in epochs}) == 3
    assert len(set(tokens.batch_starts(1, 0, 99, 'random'))) < 99                # negative control: random ones come twice


def test_shuffled_depends_on_seed_and_step_alone():
    here, there = (tokens_of(range(500), 8, vocab_size=500) for _ in range(2))
    forwards = {step: here.batch_starts(5, step, 16, 'shuffled').tolist() for step in range(31)}
    for step in (30, 0, 13, 4, 29):                   # epochs end within steps 3 and 11
        assert there.batch_starts(5, step, 16, 'shuffled').tolist() == forwards[step]
    assert here.batch_starts(5, 9, 16, 'shuffled').tolist() != here.batch_starts(6, 9, 16, 'shuffled').tolist()


def test_shuffled_works_with_a_text_of_one_window():
    assert tokens_of(range(9), 8).batch_starts(1, 3, 4, 'shuffled').tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize('n_tokens, block, n, expected', [
    (101, 10, 0, range(0, 100, 10)), (101, 10, 99, range(0, 100, 10)), (102, 10, 0, range(0, 101, 10)), (101, 10, 5, range(0, 100, 20)),
    (11, 10, 3, [0]), (101, 10, 3, [0, 30, 60])])
def test_evaluation_windows(n_tokens, block, n, expected):
    assert tokens_of(range(n_tokens), block).eval_starts(n).tolist() == list(expected)


# ---------------------------------------------------------------------------- files

def test_dataset_round_trip_with_large_ids():
    class Big(ByteTokenizer):
        n_vocab = 100_000
    data.write('data/big', [[99_999, 1], [70_000]], [[5, 65_536]], Big(), 'numbers', 'ab' * 32)
    meta = data.read_meta('data/big')
    assert os.path.getsize('data/big/train.bin') == 12 and meta['dtype'] == np.dtype('<u4') and meta['vocab_size'] == 100_000
    tokens = data.Tokens('data/big/train.bin', meta['dtype'], meta['vocab_size'], 2)
    assert tokens.windows([0])[0].tolist() == [[99_999, 1]] and tokens.windows([0])[1].tolist() == [[1, 70_000]]
    on_disk = json.load(open('data/big/meta.json'))
    assert (on_disk['train_tokens'], on_disk['val_tokens'], on_disk['sha256'], on_disk['source']) == (3, 2, 'ab' * 32, 'numbers')


def test_ids_are_little_endian_uint16():
    data.write('d', [[258, 1]], [[0]], CharTokenizer([chr(i) for i in range(300)]), '', '')
    assert open('d/train.bin', 'rb').read() == b'\x02\x01\x01\x00'


def test_a_broken_write_leaves_the_old_file():
    data.write('d', [[1, 2]], [[3]], ByteTokenizer(), '', '')
    with pytest.raises(OverflowError):
        data.write('d', [[4], [70_000]], [[3]], ByteTokenizer(), '', '')
    assert open('d/train.bin', 'rb').read() == b'\x01\x00\x02\x00'


def test_without_meta_the_tokens_are_gpt2s():
    os.makedirs('d')
    assert data.read_meta('d') == dict(vocab_size=50304, dtype=np.dtype('<u2'), tokenizer={'kind': 'gpt2'})


class Hostile:
    def __reduce__(self):
        return os.system, ('touch was_here',)


@pytest.mark.parametrize('content', [
    pickle.dumps(Hostile()), pickle.dumps(dict(vocab_size=2, itos={0: 'a', 1: Hostile()}, stoi={})), pickle.dumps([1]), b'', b'\x80',
    pickle.dumps(dict(vocab_size='2', itos={0: 'a'}, stoi={})), pickle.dumps(dict(vocab_size=1, itos={0: 'a', 2: 'b'}, stoi={})),
    pickle.dumps(dict(vocab_size=np.int64(1), itos={0: 'a'}))])
def test_meta_pkl_runs_nothing_and_is_refused_in_one_line(content):
    os.makedirs('d')
    open('d/meta.pkl', 'wb').write(content)
    with pytest.raises(data.DataError) as e:
        data.read_meta('d')
    assert not os.path.exists('was_here') and '\n' not in str(e.value) and 'd/meta.pkl' in str(e.value)


def test_the_hostile_pickle_is_hostile():
    """Negative control: an ordinary unpickler would have run it."""
    pickle.loads(pickle.dumps(Hostile()))
    assert os.path.exists('was_here')


@pytest.mark.parametrize('text', ['', '{', '[]', '{"vocab_size": 3}', '{"vocab_size": "3", "dtype": "uint16", "tokenizer": {}}',
                                  '{"vocab_size": 3, "dtype": "float32", "tokenizer": {}}', '{"vocab_size": -3, "dtype": "uint16", "tokenizer": {}}',
                                  '{"vocab_size": 3, "dtype": "uint16", "tokenizer": "byte"}', '{"vocab_size": 3, "dtype": [], "tokenizer": {}}',
                                  '[' * 100_000])
def test_meta_json_of_the_wrong_form_is_refused_in_one_line(text):
    os.makedirs('d')
    open('d/meta.json', 'w').write(text)
    with pytest.raises(data.DataError) as e:
        data.read_meta('d')
    assert '\n' not in str(e.value) and 'd/meta.json' in str(e.value)


def test_damaged_token_files_are_named():
    with pytest.raises(data.DataError, match=r'x\.bin: token id 1000; expected ids below the vocabulary size 1000'):
        tokens_of([1, 2, 1000, 3], 2)
    with pytest.raises(data.DataError, match='4 tokens; expected at least block_size .* 5'):
        tokens_of(range(4), 4)
    open('odd.bin', 'wb').write(b'123')
    with pytest.raises(data.DataError, match='3 bytes; expected a multiple of 2'):
        data.Tokens('odd.bin', np.dtype('<u2'), 10, 1)
    open('empty.bin', 'wb').close()
    with pytest.raises(data.DataError, match='0 tokens'):
        data.Tokens('empty.bin', np.dtype('<u2'), 10, 1)
    with pytest.raises(data.DataError, match=r'python .*prepare\.py'):
        data.Tokens('missing.bin', np.dtype('<u2'), 10, 1)


def test_an_id_beyond_the_first_check_is_found_in_its_batch(monkeypatch):
    tokens = tokens_of(range(100), 4, vocab_size=100)
    tokens.vocab_size = 90                                                        # as if the file were too long to check at once
    tokens.windows([0, 80])
    with pytest.raises(data.DataError, match='token id 9'):
        tokens.windows([0, 88])


def test_a_download_is_checked(tmp_path):
    url, right = (tmp_path / 'source.txt').as_uri(), hashlib.sha256(b'text').hexdigest()
    (tmp_path / 'source.txt').write_bytes(b'text')
    assert data.download(url, right, 'got.txt') == 'got.txt' and open('got.txt').read() == 'text'
    (tmp_path / 'source.txt').unlink()
    assert data.download(url, right, 'got.txt') == 'got.txt'                    # it is there already
    with pytest.raises(data.DataError, match='delete the file'):
        data.download(url, '0' * 64, 'got.txt')
    with pytest.raises(data.DataError, match='--input FILE'):
        data.download(url, right, 'other.txt')


# ---------------------------------------------------------------------------- data/*/prepare.py

@pytest.mark.parametrize('name, train_tokens, val_tokens', [('shakespeare_char', 1_003_854, 111_540), ('shakespeare', 301_966, 36_059)])
def test_shakespeare_has_nanogpts_token_counts(test_data, name, train_tokens, val_tokens):
    ran = run_script(f'data/{name}/prepare.py', '--input', test_data / 'tinyshakespeare/input.txt', '--out', 'd',
                     env={'TIKTOKEN_CACHE_DIR': str(test_data / 'tiktoken')})
    assert ran.returncode == 0, ran.stderr
    assert os.path.getsize('d/train.bin') == 2 * train_tokens and os.path.getsize('d/val.bin') == 2 * val_tokens
    assert f'{train_tokens:,}' in ran.stdout and f'{val_tokens:,}' in ran.stdout
    assert json.load(open('d/meta.json'))['sha256'] == '86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed'


def test_shakespeare_char_numbers_characters_as_nanogpt_does(test_data):
    run_script('data/shakespeare_char/prepare.py', '--input', test_data / 'tinyshakespeare/input.txt', '--out', 'd')
    text = open(test_data / 'tinyshakespeare/input.txt', encoding='utf-8').read()
    chars = sorted(set(text))
    stoi = {c: i for i, c in enumerate(chars)}
    expected = np.array([stoi[c] for c in text], dtype='<u2').tobytes()
    assert open('d/train.bin', 'rb').read() + open('d/val.bin', 'rb').read() == expected
    assert data.read_meta('d')['tokenizer'] == {'kind': 'char', 'chars': chars}


def test_any_text_can_be_prepared():
    open('mine.txt', 'w', encoding='utf-8', newline='').write('Grüße\r\naus 北京 ' * 50)
    ran = run_script('data/shakespeare_char/prepare.py', '--input', 'mine.txt', '--out', 'd')
    assert ran.returncode == 0, ran.stderr
    meta = data.read_meta('d')
    assert meta['tokenizer']['chars'] == sorted(set('Grüße\r\naus 北京 '))


def test_the_standard_library_is_a_dataset():
    ran = run_script('data/python_stdlib/prepare.py', '--out', 'd')
    assert ran.returncode == 0, ran.stderr
    meta = data.read_meta('d')
    train, val = (bytes(np.fromfile(f'd/{name}.bin', dtype='<u2').astype(np.uint8)) for name in ('train', 'val'))
    assert meta['tokenizer'] == {'kind': 'byte'} and train.isascii() and len(train) > 3_000_000 and 0.03 < len(val) / len(train) < 0.2
    assert b'def dataclass(' in train + val and b'site-packages' not in ran.stdout.encode()
    first = train, val
    run_script('data/python_stdlib/prepare.py', '--out', 'd')
    assert tuple(bytes(np.fromfile(f'd/{n}.bin', dtype='<u2').astype(np.uint8)) for n in ('train', 'val')) == first


@pytest.mark.parametrize('name, args, message', [
    ('shakespeare_char', ['--input', 'missing.txt'], 'missing.txt'), ('shakespeare', ['--input', 'missing.txt'], 'missing.txt'),
    ('shakespeare_char', ['--input', 'binary.txt'], 'not UTF-8'), ('python_stdlib', ['--input', '.'], 'less than 1 MB')])
def test_prepare_says_what_is_wrong_in_one_line(name, args, message):
    open('binary.txt', 'wb').write(b'\xff\xfe\x00')
    ran = run_script(f'data/{name}/prepare.py', *args, '--out', 'd')
    assert ran.returncode != 0 and message in ran.stderr and ran.stderr.count('\n') == 1 and not os.path.exists('d')


def test_only_small_datasets_are_prepared_by_train():
    automatic = {p.parent.name: 'AUTOMATIC = True' in p.read_text(encoding='utf-8') for p in REPO.glob('data/*/prepare.py')}
    assert automatic == {'python_stdlib': True, 'shakespeare': True, 'shakespeare_char': True, 'openwebtext': False, 'mnist': True}


def test_openwebtext_is_read_through_datasets(test_data, tmp_path):
    """With a stand-in for the package: two documents of 2,500 are held out, each one ends with <|endoftext|>."""
    (tmp_path / 'datasets.py').write_text('''
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
''')
    env = {'TIKTOKEN_CACHE_DIR': str(test_data / 'tiktoken'), 'PYTHONPATH': str(tmp_path)}
    ran = run_script('data/openwebtext/prepare.py', '--out', 'd', env=env)
    assert ran.returncode == 0, ran.stderr
    val, train = (np.fromfile(f'd/{name}.bin', dtype='<u2') for name in ('val', 'train'))
    assert val.tolist() == [15496, 995, 657, 50256, 15496, 995, 352, 50256] and (train == 50256).sum() == 2498
    (tmp_path / 'datasets.py').write_text('raise ImportError')
    ran = run_script('data/openwebtext/prepare.py', '--out', 'd', env=env)
    assert ran.returncode != 0 and 'pip install datasets' in ran.stderr


@pytest.mark.parametrize('kind', ['char', 'byte', 'gpt2'])
def test_own_text_from_several_files(kind, request, monkeypatch):
    if kind == 'gpt2':
        monkeypatch.setenv('TIKTOKEN_CACHE_DIR', str(request.getfixturevalue('test_data') / 'tiktoken'))
    open('a.txt', 'w', encoding='utf-8').write('Grüße ' * 40)
    open('b.txt', 'w', encoding='utf-8').write('<|endoftext|> is text here ' * 40)
    ran = run_script('data/prepare.py', 'a.txt', 'b.txt', f'--tokenizer={kind}', '--out', 'd')
    assert ran.returncode == 0, ran.stderr
    meta = data.read_meta('d')
    ids = [i for name in ('train', 'val') for i in np.fromfile(f'd/{name}.bin', dtype='<u2').tolist()]
    assert from_json(meta['tokenizer']).decode(ids) == 'Grüße ' * 40 + '\n' + '<|endoftext|> is text here ' * 40 and 50256 not in ids
