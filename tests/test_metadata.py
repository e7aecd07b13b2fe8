"""What the ids of a dataset mean: meta.json, meta.pkl, neither; and what is said if there is no dataset at all."""

import collections
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from gradus import metadata
from gradus.errors import UserError

TWO_BYTES = np.dtype('<u2')


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_without_meta_the_tokens_are_gpt2s():
    os.makedirs('d')
    assert metadata.read_meta('d') == dict(vocab_size=50304, dtype=TWO_BYTES, tokenizer={'kind': 'gpt2'})


class Hostile:
    def __reduce__(self):
        return os.system, ('touch was_here',)


@pytest.mark.parametrize('content', [
    pickle.dumps(Hostile()),
    pickle.dumps(dict(vocab_size=2, itos={0: 'a', 1: Hostile()}, stoi={})),
    pickle.dumps([1]),
    b'',
    b'\x80',
    pickle.dumps({}),
    pickle.dumps(dict(itos={0: 'a'})),
    *[pickle.dumps(dict(vocab_size=n, itos={0: 'a'}, stoi={}))
      for n in ('2', 0, -1, True, 2.0, None, [2], 10 ** 9, 10 ** 5000, np.int64(-1), np.float64(2), np.array(2))],
])
def test_meta_pkl_runs_nothing_and_is_refused_in_one_line(content):
    os.makedirs('d')
    Path('d/meta.pkl').write_bytes(content)
    with pytest.raises(UserError) as e:
        metadata.read_meta('d')

    assert not os.path.exists('was_here')
    assert str(e.value).isprintable()
    assert len(str(e.value)) < 400
    assert str(e.value).startswith(f'{os.path.join("d", "meta.pkl")}: ')


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
    '[' * 100_000 + ']' * 100_000,
    '{"vocab_size": NaN, "dtype": "uint16", "tokenizer": {"kind": "byte"}}',
    '{"vocab_size": 1e3, "dtype": "uint16", "tokenizer": {"kind": "byte"}}',
    '{"vocab_size": true, "dtype": "uint16", "tokenizer": {"kind": "byte"}}',
    '{"vocab_size": 1%s, "dtype": "uint16", "tokenizer": {"kind": "byte"}}' % ('0' * 30),
    '{"vocab_size": 1%s, "dtype": "uint16", "tokenizer": {"kind": "byte"}}' % ('0' * 10_000),
    '{"vocab_size": 255, "dtype": "uint16", "tokenizer": {"kind": "byte"}}',
    '{"vocab_size": 256, "dtype": "uint16", "tokenizer": {"kind": "b\\u001b[31mte"}}',
    '{"vocab_size": 256, "dtype": "uint16", "tokenizer": {"kind": "char", "chars": ["a", "a"]}}',
    '{"vocab_size": 256, "dtype": "uint16", "tokenizer": {"kind": "byte"}, "train_tokens": -1}',
    '{"vocab_size": 256, "dtype": "uint16", "tokenizer": {"kind": "byte"}, "val_tokens": "many"}',
    '{"vocab_size": 256, "dtype": "uint16", "tokenizer": {"kind": "byte"}, "val_tokens": 1%s}' % ('0' * 99),
])
def test_meta_json_of_the_wrong_form_is_refused_in_one_line(text):
    os.makedirs('d')
    Path('d/meta.json').write_text(text)
    with pytest.raises(UserError) as e:
        metadata.read_meta('d')

    assert str(e.value).isprintable()
    assert len(str(e.value)) < 300
    assert str(e.value).startswith(f'{os.path.join("d", "meta.json")}: ')

def test_a_meta_json_with_more_in_it_is_read():
    """Duplicate keys, unknown keys and counts that are missing are no reason to refuse a dataset."""
    os.makedirs('d')
    Path('d/meta.json').write_text('{"vocab_size": 3, "vocab_size": 300, "dtype": "uint32", "x": [NaN], '
                                   '"tokenizer": {"kind": "byte"}, "source": 5}')
    assert metadata.read_meta('d') == dict(vocab_size=300, dtype=np.dtype('<u4'), tokenizer={'kind': 'byte'},
                                           train_tokens=None, val_tokens=None,
                                           train_pairs=None, val_pairs=None, source=None)


@pytest.mark.skipif(os.name != 'posix', reason='pipes and devices are different there')
@pytest.mark.parametrize('name', ['meta.json', 'meta.pkl'])
def test_meta_files_that_are_no_files(name):
    os.makedirs(f'folder/{name}')
    os.mkdir('pipe')
    os.mkfifo(f'pipe/{name}')
    for folder, target in (('device', '/dev/zero'), ('link', 'nowhere')):
        os.mkdir(folder)
        os.symlink(target, f'{folder}/{name}')
    for folder in ('folder', 'pipe', 'device', 'link'):
        with pytest.raises(UserError, match=rf'^{folder}/{name}: .*; expected a file$'):
            metadata.read_meta(folder)

    # so large that it costs an hour to read
    os.mkdir('large')
    with open(f'large/{name}', 'wb') as f:
        f.truncate(2 ** 40)
    with pytest.raises(UserError, match='expected a small file'):
        metadata.read_meta('large')


# ---------------------------------------------------------------------------- nanoGPT's meta.pkl

def meta_of(**meta):
    os.makedirs('d', exist_ok=True)
    Path('d/meta.pkl').write_bytes(pickle.dumps(meta))
    return metadata.read_meta('d')


ABC = {'kind': 'char', 'chars': ['a', 'b', 'c']}


@pytest.mark.parametrize('itos', [
    {0: 'a', 1: 'b', 2: 'c'},
    {2: 'c', 0: 'a', 1: 'b'},
    ['a', 'b', 'c'],
    {np.int64(0): 'a', np.int64(1): np.str_('b'), 2: 'c'},
    collections.OrderedDict(enumerate('abc')),
    collections.defaultdict(str, enumerate('abc')),
], ids=repr)
def test_meta_pkl_of_many_kinds(itos):
    expected = dict(vocab_size=3, dtype=TWO_BYTES, tokenizer=ABC)
    assert meta_of(vocab_size=3, itos=itos, stoi={}) == expected
    assert meta_of(vocab_size=np.int64(3), itos=itos, more={(1, 2): np.arange(3)}) == expected


@pytest.mark.parametrize('meta, found', [
    ({}, 'no itos'),
    (dict(itos=None), 'no itos'),
    (dict(itos='abc'), "itos is 'abc'"),
    (dict(itos=5), 'itos is 5'),
    (dict(itos={}), 'itos is empty'),
    (dict(itos={1: 'a', 2: 'b'}), 'itos has no id 0'),
    (dict(itos={0: 'a', 2: 'b'}), 'itos has no id 1'),
    (dict(itos={'a': 0, 'b': 1}), 'itos has no id 0'),
    (dict(itos={0: b'a', 1: b'b'}), 'itos holds bytes'),
    (dict(itos=[97, 98]), 'itos holds integers'),
    (dict(itos=[('a', 'b')]), 'itos holds tuples'),
    (dict(itos=['a', None]), 'itos holds None'),
    (dict(itos=['a', 'b', 'a']), "itos holds 'a' twice"),
    (dict(itos=['a', '']), 'itos holds an empty string'),
    (dict(itos=['a', np.arange(3)]), 'itos holds <ndarray>'),
    (dict(itos=list('abcdefghijk')), 'itos has 11 entries, but vocab_size is 10'),
    (dict(itos=['\x1b[31m', '\x1b[31m']), r"itos holds '\x1b[31m' twice"),
], ids=lambda value: repr(value)[:40])
def test_a_vocabulary_without_text_is_enough_to_train(meta, found):
    """nanoGPT's train.py reads vocab_size and nothing else."""
    path = os.path.join('d', 'meta.pkl')
    sentence = f'{path}: {found}; expected one string for each id 0, 1, ...; no text can be shown'
    assert meta_of(vocab_size=10, **meta) == dict(vocab_size=10, dtype=TWO_BYTES, tokenizer=None, no_tokenizer=sentence)


# ---------------------------------------------------------------------------- no such dataset

def message(folder):
    with pytest.raises(UserError) as e:
        metadata.read_meta(folder)
    assert str(e.value).isprintable()
    return str(e.value)


def test_a_missing_dataset_is_looked_for():
    assert f'there is no folder data in {os.getcwd()}; run this from' in message('data/x')

    for i in range(3):
        os.makedirs(f'data/set{i}')
    Path('data/prepare.py').touch()
    assert message('data/x').endswith('(here: set0, set1, set2)')
    assert message('data/data/set1').endswith('did you mean --dataset=set1?')
    assert message('data/data/set1/').endswith('did you mean --dataset=set1?')
    assert message('data/data/nothing').endswith('(here: none)')
    assert message('data/prepare.py') == 'data/prepare.py: a file; expected a folder with train.bin and val.bin'
    message('data/' + 'x' * 300)
    message('/nowhere/x')

    for i in range(20):
        os.makedirs(f'data/\x1b[31m{i}')
    assert message('data/x').count(',') == 11
    assert message('data/x').endswith('and 11 more)')
