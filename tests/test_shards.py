"""Datasets of many files: one sequence, whatever files it is cut into; headers of llm.c; what is refused."""

import hashlib
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import settings

import train
from gradus import data, metadata, shards
from gradus.errors import RankError, UserError
from gradus.tokenizer import ByteTokenizer

GPT2 = dict(magic=20240520, version=1, dtype='<u2')
LLAMA3 = dict(magic=20240801, version=7, dtype='<u4')


def with_header(ids, magic, version, dtype, count=None):
    """The bytes of a file as llm.c writes it, by its description."""
    header = np.zeros(256, '<i4')
    header[:3] = magic, version, len(ids) if count is None else count
    return header.tobytes() + np.array(ids).astype(dtype).tobytes()


def write_shards(folder, pattern, parts, form=None):
    """One file for each list of ids in `parts`, numbered from 1; raw, or with the header of `form`."""
    os.makedirs(folder, exist_ok=True)
    for i, ids in enumerate(parts, start=1):
        content = np.array(ids).astype('<u2').tobytes() if form is None else with_header(ids, **form)
        Path(folder, pattern % i).write_bytes(content)


def opened(folder='d', block_size=4, vocab_size=None):
    meta = metadata.read_meta(folder)
    return data.open_dataset(folder, meta, vocab_size or meta['vocab_size'], block_size)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def ids():
    return np.random.default_rng(0).integers(0, 256, 1000)


# ---------------------------------------------------------------------------- one sequence

@pytest.mark.parametrize('form', [None, GPT2, LLAMA3], ids=['raw', 'gpt2', 'llama3'])
@pytest.mark.parametrize('cuts', [[500], [1, 2, 3, 400, 999], range(7, 1000, 7)], ids=['two', 'uneven', 'many'])
def test_shards_are_read_like_one_file(ids, form, cuts):
    """Same positions, same batches, same evaluation windows. A window of 65 tokens crosses up to eleven files."""
    dtype = np.dtype(form['dtype'] if form else '<u2')
    ids.astype(dtype).tofile('whole.bin')
    whole = data.Tokens('whole.bin', dtype, 256, 64)
    write_shards('d', 'x_train_%06d.bin', np.split(ids, cuts), form)
    paths = [os.path.join('d', name) for name in shards.file_names('d', 'train')]
    cut = data.Tokens.from_shards(paths, dtype, 256, 64)

    assert len(cut) == len(whole) == 1000
    for order in data.ORDERS:
        for step in (0, 1, 50):
            starts = whole.batch_starts(3, step, 32, order)
            assert (cut.batch_starts(3, step, 32, order) == starts).all()
            for a, b in zip(whole.windows(starts), cut.windows(starts), strict=True):
                assert torch.equal(a, b)
    starts = whole.eval_starts(0)
    assert (cut.eval_starts(0) == starts).all()
    for a, b in zip(whole.windows(starts), cut.windows(starts), strict=True):
        assert torch.equal(a, b)
        assert (b[-1] <= 0).any()                     # the last window reaches beyond the end


def test_positions_of_any_shape():
    write_shards('d', 'train_%d.bin', [[0, 1, 2], [3], [4, 5]])
    tokens = shards.Shards([f'd/train_{i}.bin' for i in (1, 2, 3)], np.dtype('<u2'))
    assert len(tokens) == 6
    assert tokens[np.array(3)] == 3
    assert tokens[np.array([[5, 0], [2, 3], [4, 4]])].tolist() == [[5, 0], [2, 3], [4, 4]]
    assert [tokens.path_of(i)[-5] for i in range(6)] == list('111233')


def test_a_run_on_shards_is_the_run_on_one_file(ids):
    """Down to the last bit of the weights, and prepare.py is not asked for."""
    losses = []
    for name in ('whole', 'cut'):
        folder = os.path.join('data', name)
        os.makedirs(folder)
        Path(folder, 'meta.pkl').write_bytes(pickle.dumps({'vocab_size': 256}))
        if name == 'whole':
            for split in ('train', 'val'):
                ids.astype('<u2').tofile(os.path.join(folder, f'{split}.bin'))
        else:
            Path(folder, 'prepare.py').write_text('')
            write_shards(folder, 'fineweb_train_%06d.bin', np.split(ids, [300, 301]), GPT2)
            write_shards(folder, 'fineweb_val_%06d.bin', np.split(ids, [5]), GPT2)
        cfg = settings(dataset=name, out_dir=name, max_iters=3, eval_interval=3)
        train.main(cfg)
        state = torch.load(f'{name}/ckpt.pt', weights_only=True)
        losses.append((state['best_val_loss'], *state['model'].values()))
    for a, b in zip(*losses, strict=True):
        assert torch.equal(torch.as_tensor(a), torch.as_tensor(b))


# ---------------------------------------------------------------------------- opening

def test_opening_maps_no_more_than_the_first_file(monkeypatch):
    """Only the first file of each split is looked into; a step opens the files that it needs, and few stay open."""
    mapped = []
    memmap = np.memmap

    def counted(path, **kwargs):
        mapped.append(os.path.basename(path))
        return memmap(path, **kwargs)

    monkeypatch.setattr(np, 'memmap', counted)
    write_shards('d', 'train_%06d.bin', [[i % 100] * 5 for i in range(2000)], GPT2)
    write_shards('d', 'val_%06d.bin', [range(9)], GPT2)
    dataset = opened()
    assert len(dataset.train) == 10_000
    assert mapped == ['train_000001.bin', 'val_000001.bin']

    dataset.train.windows([5003, 0, 5001])            # tokens 5001 to 5007, and those of the first file
    assert mapped[2:] == ['train_001001.bin', 'train_001002.bin']

    dataset.train.windows(np.arange(0, 10_000, 5))
    assert len(set(mapped)) == 2001
    assert dataset.train.ids.mapped.cache_info().currsize == shards.MAX_MAPPED


def test_names_and_their_order():
    os.mkdir('d')
    ours = ['train_9.bin', 'train_10.bin', 'a_b_train_000002.bin', 'a_b_train_000010.bin', 'tiny_shakespeare_train.bin']
    others = ['train_1.bin.7.tmp', 'xtrain_1.bin', 'train_x.bin', 'train_.bin', 'train_1.binary', 'train.txt',
              'train_val.bin', 'retrain.bin', 'fineweb_val_000000.bin']
    for name in ours + others:
        Path('d', name).touch()
    assert shards.file_names('d', 'train') == ours
    assert shards.file_names('d', 'val') == ['fineweb_val_000000.bin', 'train_val.bin']
    assert shards.file_names('missing', 'val') == ['val.bin']


def test_a_missing_number_is_a_smaller_dataset():
    write_shards('d', 'train_%06d.bin', [range(5), range(6), range(7)])
    write_shards('d', 'val_%06d.bin', [range(5)])
    os.remove('d/train_000002.bin')
    assert len(opened().train) == 12


def test_train_bin_wins():
    """What was read before there were shards is still read, and the checkpoint's fingerprint still fits."""
    for split in ('train', 'val'):
        np.arange(8, dtype='<u2').tofile(f'{split}.bin')
        shutil.copy(f'{split}.bin', f'old_{split}.bin')
    alone = Path('alone')
    alone.mkdir()
    for split in ('train', 'val'):
        shutil.copy(f'{split}.bin', alone)
    assert len(opened('.').train) == 8
    assert metadata.fingerprint('.') == metadata.fingerprint('alone')

    # each split for itself: shards to train on, val.bin to evaluate on
    os.remove('train.bin')
    assert opened('.').train.path.endswith('old_train.bin')
    assert opened('.').val.path.endswith('val.bin')


def test_the_fingerprint_of_plain_files_is_what_checkpoints_hold():
    Path('train.bin').write_bytes(bytes(20))
    Path('val.bin').write_bytes(bytes(12))
    assert metadata.fingerprint('.') == hashlib.sha256(b' train.bin 20 val.bin 12').hexdigest()


def test_the_fingerprint_covers_every_shard():
    write_shards('d', 'train_%06d.bin', [range(5), range(6)])
    write_shards('d', 'val_%06d.bin', [range(5)])
    seen = {metadata.fingerprint('d')}
    os.rename('d/train_000002.bin', 'd/train_000003.bin')
    seen.add(metadata.fingerprint('d'))
    write_shards('d', 'train_%06d.bin', [range(6)])
    seen.add(metadata.fingerprint('d'))
    write_shards('d', 'val_%06d.bin', [range(5), range(5)])
    seen.add(metadata.fingerprint('d'))
    assert len(seen) == 4


def test_counts_of_meta_json_are_those_of_all_shards():
    from gradus import preparation

    write_shards('d', 'train_%06d.bin', [range(5), range(6)])
    preparation.write('d', preparation.splits([range(11)], [range(11)]), ByteTokenizer(), '', '')
    os.remove('d/train.bin')
    assert len(opened().train) == 11
    write_shards('d', 'train_%06d.bin', [range(6)])
    with pytest.raises(UserError, match=r'^d.train_000001\.bin and 1 more: 12 tokens, meta.json says 11; '):
        opened()


# ---------------------------------------------------------------------------- what the ids mean

def test_gpt2_tokens_without_a_meta_file(gpt2):
    write_shards('d', 'fineweb_train_%06d.bin', [range(50_300, 50_304)], GPT2)
    write_shards('d', 'fineweb_val_%06d.bin', [range(5)], GPT2)
    dataset = opened(block_size=3)
    assert dataset.tokenizer_spec == {'kind': 'gpt2'}
    assert dataset.train.vocab_size == 50304
    assert dataset.train.windows([0])[1].tolist() == [[50301, 50302, 50303]]


def test_llama3_tokens_have_no_tokenizer(capsys):
    write_shards('d', 'tiny_shakespeare_train.bin%.0s', [range(128_251, 128_256)], LLAMA3)
    write_shards('d', 'tiny_shakespeare_val.bin%.0s', [range(5)], LLAMA3)
    dataset = opened()
    assert dataset.train.vocab_size == 128_256
    assert dataset.train.windows([0])[1].tolist() == [[128_252, 128_253, 128_254, 128_255]]
    assert (dataset.tokenizer, dataset.tokenizer_spec, dataset.byte_lengths) == (None, None, None)
    assert capsys.readouterr().err == 'warning: d: Llama 3 tokens, without their tokenizer; no text can be shown\n'


# ---------------------------------------------------------------------------- what is refused

REFUSED = {
    'version': (with_header([1] * 9, 20240520, 2, '<u2'),
                'header of version 2 for GPT-2 tokens; expected version 1; write or download it again in that format'),
    'cut short': (with_header([1] * 9, **GPT2)[:-4],
                  '14 bytes of tokens; expected 9 tokens of 2 bytes, as its header says: an incomplete download?'),
    'cut within a token': (with_header([1] * 9, **GPT2)[:-1], '17 bytes of tokens; expected 9 tokens of 2 bytes'),
    'cut within the header': (with_header([1] * 9, **GPT2)[:500], '0 bytes of tokens; expected 9 tokens of 2 bytes'),
    'longer': (with_header([1] * 9, **GPT2) + b'12', '20 bytes of tokens; expected 9 tokens'),
    'negative': (with_header([1] * 9, **GPT2, count=-9), '18 bytes of tokens; expected -9 tokens'),
    'header only': (with_header([], **GPT2), 'no tokens; expected at least one'),
    'questions': (with_header([1] * 9, 20240522, 1, '<u2'), "llm.c's multiple-choice questions; expected tokens"),
    'other dtype': (with_header([1] * 9, **LLAMA3), 'Llama 3 tokens, uint32; expected uint16, as meta.json or'),
    'odd': (b'123', '3 bytes; expected a multiple of 2'),
    'empty': (b'', 'no tokens; expected at least one'),
}


@pytest.mark.parametrize('split', ['train', 'val'])
@pytest.mark.parametrize('content, message', REFUSED.values(), ids=list(REFUSED))
def test_damaged_shards_are_named(split, content, message):
    write_shards('d', 'train_%06d.bin', [range(9), range(9)], GPT2)
    write_shards('d', 'val_%06d.bin', [range(9), range(9)], GPT2)
    path = os.path.join('d', f'{split}_000002.bin')
    Path(path).write_bytes(content)
    with pytest.raises(UserError) as error:
        opened()
    assert str(error.value).startswith(f'{path}: {message}')
    assert '\n' not in str(error.value)


@pytest.mark.skipif(os.name != 'posix', reason='pipes are different there')
def test_shards_that_are_no_files():
    write_shards('d', 'train_%06d.bin', [range(9)], GPT2)
    write_shards('d', 'val_%06d.bin', [range(9)], GPT2)
    os.mkfifo('d/train_000002.bin')
    with pytest.raises(UserError, match=r'^d.train_000002\.bin: a pipe; expected a file$'):
        opened()
    os.remove('d/train_000002.bin')
    os.symlink('nowhere', 'd/train_000000.bin')
    with pytest.raises(UserError, match=r'^d.train_000000\.bin: No such file or directory; expected a file$'):
        opened()


@pytest.mark.parametrize('there, missing', [('train', 'val'), ('val', 'train')])
def test_a_split_without_shards(there, missing):
    """An interrupted download often has no more than the val file."""
    write_shards('d', f'train_set_{there}_%06d.bin', [range(9), range(9)], GPT2)
    with pytest.raises(UserError) as error:
        opened()
    assert str(error.value) == (f'd: train_set_{there}_000001.bin and 1 more, but no file of {missing}; expected '
                                f'train_set_{missing}*.bin beside it; download or copy that, too')


def test_too_few_tokens():
    write_shards('d', 'train_%06d.bin', [range(2), range(2)])
    write_shards('d', 'val_%06d.bin', [range(9)])
    with pytest.raises(UserError, match=r'^d.train_000001\.bin and 1 more: 4 tokens; expected at least block_size'):
        opened()


def test_an_id_beyond_the_vocabulary_names_its_file():
    write_shards('d', 'train_%06d.bin', [range(9), [1, 2, 99], range(9)])
    write_shards('d', 'val_%06d.bin', [range(9)])
    tokens = opened(vocab_size=50304).train
    tokens.vocab_size = 50
    tokens.windows([0, 14])
    with pytest.raises(RankError, match=r'^d.train_000002\.bin: token id 99; expected ids below .* 50; '):
        tokens.windows([0, 10])

    # the beginning is looked at when it is opened
    write_shards('d', 'train_%06d.bin', [[60_000] * 9])
    with pytest.raises(UserError, match=r'^d.train_000001\.bin: token id 60000; expected ids below'):
        opened()


def test_a_file_that_shrinks_after_it_was_opened():
    write_shards('d', 'train_%06d.bin', [range(9), range(9)])
    write_shards('d', 'val_%06d.bin', [range(9)])
    tokens = opened().train
    os.truncate('d/train_000002.bin', 4)
    with pytest.raises(RankError, match=r'^d.train_000002\.bin: cannot be read \(.+\)$'):
        tokens.windows([7])
