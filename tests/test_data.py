"""Token files and batches."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from gradus import data, metadata, preparation
from gradus.errors import UserError
from gradus.tokenizer import ByteTokenizer, CharTokenizer

TWO_BYTES = np.dtype('<u2')


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

    assert x.dtype == y.dtype == torch.int64
    assert x.is_contiguous() and y.is_contiguous()
    assert x.tolist() == [list(range(s, s + 7)) for s in (0, 50, 92)]
    assert y.tolist() == [list(range(s + 1, s + 8)) for s in (0, 50, 92)]


def test_nothing_is_learned_beyond_the_end():
    x, y = tokens_of(range(10, 20), 4).windows([8, 10])
    assert x.tolist() == [[18, 19, 0, 0], [0, 0, 0, 0]]
    assert y.tolist() == [[19, -1, -1, -1], [-1, -1, -1, -1]]


def test_inputs_and_targets_of_a_single_row_share_no_memory():
    x, y = tokens_of(range(10, 20), 4).windows([8])
    assert x.tolist() == [[18, 19, 0, 0]]
    assert y.tolist() == [[19, -1, -1, -1]]


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


@pytest.mark.skipif(os.name != 'posix', reason='pipes and devices are different there')
def test_token_files_that_are_no_files():
    os.mkdir('folder.bin')
    os.mkfifo('pipe.bin')
    os.symlink('/dev/zero', 'device.bin')
    os.symlink('nowhere', 'link.bin')
    for name, found in (('folder', 'a folder'), ('pipe', 'a pipe'), ('device', 'a device'), ('link', 'No such file')):
        with pytest.raises(UserError, match=rf'^{name}\.bin: {found}.*expected a file$'):
            data.Tokens(f'{name}.bin', TWO_BYTES, 10, 1)


@pytest.mark.parametrize('error', [PermissionError(13, 'Permission denied'), OSError(5, 'Input/output error'),
                                   ValueError('mmap\nlength')])
def test_a_token_file_that_cannot_be_read(error, monkeypatch):
    def fails(*args, **kwargs):
        raise error

    monkeypatch.setattr(np, 'memmap', fails)
    with pytest.raises(UserError, match=r'^x\.bin: cannot be read \([\w/ ]+\)$'):
        tokens_of(range(10), 2)


# ---------------------------------------------------------------------------- open_dataset

def opened(folder='d', block_size=4):
    meta = metadata.read_meta(folder)
    return data.open_dataset(folder, meta, meta['vocab_size'], block_size)


def write(ids=(3, 1, 4, 1, 5, 9, 2, 6), tokenizer=None, source='pi'):
    preparation.write('d', [('train', ids), ('val', ids)], tokenizer or ByteTokenizer(), source, '0')


def test_a_dataset_is_opened(capsys):
    write()
    dataset = opened()
    assert len(dataset.train) == len(dataset.val) == 8
    assert dataset.tokenizer_spec == {'kind': 'byte'}
    assert dataset.byte_lengths.tolist() == [1] * 256
    assert capsys.readouterr().err == ''


def test_token_counts_are_those_of_meta_json():
    for name in ('train', 'val'):
        write()
        Path(f'd/{name}.bin').write_bytes(bytes(18))
        with pytest.raises(UserError, match=rf'^d.{name}\.bin: 9 tokens, meta.json says 8; .*prepare it again$'):
            opened()

    # a meta.json without counts says nothing about them
    meta = json.loads(Path('d/meta.json').read_text())
    del meta['train_tokens'], meta['val_tokens']
    Path('d/meta.json').write_text(json.dumps(meta))
    opened()


@pytest.mark.parametrize('missing', ['train.bin', 'val.bin'])
def test_an_incomplete_dataset_is_refused(missing):
    write()
    os.remove(f'd/{missing}')
    with pytest.raises(UserError, match=rf'^d.{missing}: not found, so the dataset is incomplete; prepare it again'):
        opened()


def test_without_a_tokenizer_there_is_a_note_and_a_dataset(capsys):
    write()
    os.remove('d/meta.json')
    Path('d/meta.pkl').write_bytes(pickle.dumps({'vocab_size': np.int64(10), 'itos': {0: b'a'}}))

    dataset = opened()
    assert (dataset.tokenizer, dataset.tokenizer_spec, dataset.byte_lengths) == (None, None, None)
    assert len(dataset.train) == 8
    err = capsys.readouterr().err
    assert err == f'warning: {os.path.join("d", "meta.pkl")}: itos holds bytes; expected one string for each id ' \
                  '0, 1, ...; no text can be shown\n'


def test_lone_surrogates_are_characters_like_others(capsys):
    write((0, 1, 2, 1, 0), CharTokenizer(['a', '\ud800', '\udfff']))
    dataset = opened()
    assert dataset.byte_lengths.tolist() == [1, 1, 1]
    assert dataset.tokenizer.decode([1, 0]) == '\ud800a'
    assert dataset.tokenizer.decode_bytes([1, 0]) == b'?a'


def test_the_fingerprint_is_that_of_the_dataset():
    write()
    first = opened().fingerprint
    assert len(first) == 64
    assert opened().fingerprint == first
    write()
    assert opened().fingerprint == first

    # other tokens, other text, other tokenizer, other sizes
    seen = {first}
    for change in (dict(ids=(1,) * 9), dict(source='e'), dict(tokenizer=CharTokenizer('abcdefghijk'))):
        write(**change)
        seen.add(opened().fingerprint)
    os.remove('d/meta.json')
    seen.add(metadata.fingerprint('d'))
    Path('d/meta.pkl').write_bytes(pickle.dumps({'vocab_size': 65}))
    seen.add(metadata.fingerprint('d'))
    Path('d/val.bin').write_bytes(bytes(10))
    seen.add(metadata.fingerprint('d'))
    assert len(seen) == 7
