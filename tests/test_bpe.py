"""Training a byte-pair encoding: against the library that trains it, which can also encode."""

import functools
import json
import random
import re
import sys

import pytest

from gradus import bpe, corpus, tokenizer_files
from gradus.errors import UserError
from gradus.metadata import read_meta
from gradus.tokenizer import BPETokenizer, build_tokenizer, check_spec

hypothesis = pytest.importorskip('hypothesis', reason='it draws texts: pip install hypothesis')
tokenizers = pytest.importorskip('tokenizers', reason='it trains a vocabulary: pip install tokenizers')
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

PIECES = ["it's", ' the', ' cat', '  ', '\n', '\n\n', '1984', ' 12', '!', '?!', 'é', '中文', '😀', 'aaaa', 'abab', '\t',
          '\x00', ' <|endoftext|>', ' Grüße', 'ing', 'tion', '====', '\u0301', '\u00a0', ' 北京']


@functools.cache
def sample(n=20_000, seed=0):
    r = random.Random(seed)
    return [''.join(r.choices(PIECES, k=20)) for _ in range(n // 20)]


@functools.cache
def trained(vocab_size=600):
    """Our tokenizer and theirs, from the same plain data."""
    spec = bpe.train(sample(), vocab_size)
    files, _ = tokenizer_files.to_hf(spec, len(spec['tokens']))
    return BPETokenizer(spec), tokenizers.Tokenizer.from_str(files['tokenizer.json'])


TEXT = st.lists(st.sampled_from(PIECES) | st.text(st.characters(exclude_categories=['Cs']), max_size=5)).map(''.join)


@settings(max_examples=200, deadline=None)
@given(text=TEXT)
def test_any_text_comes_back_and_the_ids_are_theirs(text):
    ours, theirs = trained()
    ids = ours.encode_ordinary(text)
    assert ours.decode(ids) == text
    assert ours.decode(ours.encode(text)) == text
    assert ours.encode(text) == theirs.encode(text).ids


def test_it_is_the_encoding_that_was_trained():
    """Not only the one that we write: the library's own object, which never went through our hands."""
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    theirs.train_from_iterator(sample(), tokenizers.trainers.BpeTrainer(
        vocab_size=599, initial_alphabet=alphabet, show_progress=False, max_token_length=bpe.MAX_LENGTH))
    ours = trained()[0]
    for text in [*sample(2000, seed=1), ''.join(sample(2000, seed=2))]:
        assert ours.encode_ordinary(text) == theirs.encode(text).ids


def test_what_is_trained():
    spec = bpe.train(sample(), 400)
    assert check_spec(spec) == 400
    assert spec['tokens'][-1] == '<|endoftext|>'
    assert (spec['special'], spec['end_id'], spec['start'], spec['pattern']) == ([399], 399, [], bpe.GPT2)
    assert bpe.train(iter(sample()), 400) == spec
    assert json.loads(json.dumps(spec)) == spec
    tokenizer = build_tokenizer(spec)
    assert tokenizer.encode('<|endoftext|>') == [399]
    assert tokenizer.encode_ordinary('<|endoftext|>') != [399]

    pairs = bpe.train(sample(), 400, special=('<|endoftext|>', '<|separator|>'))
    assert pairs['tokens'] == [*spec['tokens'][:398], '<|endoftext|>', '<|separator|>']
    assert (pairs['special'], pairs['end_id']) == ([398, 399], 398)


def test_all_merges_are_those_of_the_text():
    """The least vocabulary is the bytes; the first merge is the most frequent pair."""
    assert len(bpe.train(['abab ab'], 257)['tokens']) == 257
    spec = bpe.train(['xyxyxy xy zz'] * 9, 258)
    assert spec['tokens'][256] == 'xy'


@pytest.mark.parametrize('texts', [[], [''], ['a'], ['ab' * 300], ['a' * 100_000], ['\x00' * 5000, ' ' * 5000]])
def test_texts_with_few_merges(texts):
    spec = bpe.train(texts, 5000)
    assert 257 <= check_spec(spec) < 400
    tokenizer = build_tokenizer(spec)
    assert all(tokenizer.decode(tokenizer.encode_array(text)) == text for text in texts)


def test_a_sample_is_evenly_spread(monkeypatch):
    """Of many texts with ever new words, as Chinese has them, so many are taken as memory allows."""
    texts = [f'word{i:04} word' for i in range(1000)]
    assert sorted(bpe._sample(texts)) == texts
    monkeypatch.setattr(bpe, 'MAX_WORDS', 8 * 100)
    numbers = sorted(int(text[4:8]) for text in bpe._sample(texts))
    assert 90 < len(numbers) < 110
    gaps = [b - a for a, b in zip([-1, *numbers], [*numbers, 1000])]
    assert max(gaps) <= 20


@settings(max_examples=100, deadline=None)
@given(parts=st.lists(st.sampled_from(['a' * 1500, ' ' * 999, '\n' * 2500, 'b', ' ', '中' * 1200]), max_size=9))
def test_long_runs_are_cut(parts):
    text = ''.join(parts)
    pieces = list(bpe._in_short_runs([text]))
    assert ''.join(pieces) == text
    runs = [run for piece in pieces for run in re.findall(r'\S+|\s+', piece)]
    assert max(map(len, runs), default=0) <= 1000


def test_what_cannot_be_trained(monkeypatch):
    for size in (-1, 0, 256, 2 ** 20 + 1):
        with pytest.raises(UserError, match=f'^--vocab_size={size}: expected 257 to 1,048,576 tokens'):
            bpe.train(sample(), size)
    with pytest.raises(UserError, match='^--vocab_size=257: expected 258'):
        bpe.train(sample(), 257, special=('<|endoftext|>', '<|separator|>'))
    monkeypatch.setitem(sys.modules, 'tokenizers', None)
    with pytest.raises(UserError, match='needs the package tokenizers; pip install tokenizers$'):
        bpe.train(sample(), 300)


def test_a_dataset_with_a_tokenizer_of_its_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for i, text in enumerate(sample(4000)):
        (tmp_path / f'{i:03}.txt').write_text(text, encoding='utf-8', newline='')
    files = sorted(str(path) for path in tmp_path.glob('*.txt'))
    corpus.write_text('d', files, 'bpe', vocab_size=300)
    assert capsys.readouterr().out.startswith('d: train has ')
    spec = read_meta('d')['tokenizer']
    assert len(spec['tokens']) == 300

    # Held-out documents are not trained on.
    texts = [text for i, text in enumerate(sample(4000)) if not corpus.is_held_out(i, 0.1)]
    assert bpe.train(texts, 300) == spec

    # Of a large text, evenly spread pieces are enough.
    seen = []
    train = bpe.train
    monkeypatch.setattr(bpe, 'train', lambda texts, size: train(map(lambda t: seen.append(t) or t, texts), size))
    monkeypatch.setattr(corpus, 'TRAINING_BYTES', len(''.join(sample(4000)).encode()) // 3)
    corpus.write_text('d', files, 'bpe', vocab_size=5000)
    assert 40 < len(seen) < 70
    assert 'tokens, fewer than --vocab_size=5,000\n' in capsys.readouterr().out
