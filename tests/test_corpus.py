"""Texts to token files in two passes: the same ids as encoding all at once, whatever the size of the pieces."""

import functools
import hashlib
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import REPO

from gradus import bpe, corpus, documents, preparation
from gradus.errors import UserError
from gradus.metadata import read_meta
from gradus.tokenizer import BPETokenizer, ByteTokenizer, CharTokenizer, build_tokenizer

hypothesis = pytest.importorskip('hypothesis', reason='it draws texts: pip install hypothesis')
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

LETTERS = bpe.as_bpe({'kind': 'byte'})['tokens']


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def ids_in(folder):
    """The ids of both splits."""
    dtype = read_meta(folder)['dtype']
    return [np.fromfile(os.path.join(folder, f'{name}.bin'), dtype=dtype).tolist() for name in ('train', 'val')]


def small_bpe(pattern, end_id=None, **more):
    """A tokenizer that merges spaces, newlines and some letters, so that a wrong cut shows."""
    pairs = [' a', '  ', '\n\n', ' \n', 'ab', 'a1', '1 ', 'a ', 'a\n', "'s", ' b', '11', '111', ' 1', '  a', '!\n']
    tokens = [*LETTERS, *(''.join(LETTERS[b] for b in pair.encode()) for pair in pairs)]
    special = []
    if end_id is not None:
        special = [len(tokens)]
        tokens = [*tokens, '<|endoftext|>']
    return dict(kind='bpe', tokens=tokens, special=special, start=[], pattern=pattern, end_id=(special or [None])[0],
                **more)


@functools.cache
def small_tokenizer(pattern, left_out=b'', **options):
    spec = small_bpe(pattern, **options)
    spec['tokens'] = [token for token in spec['tokens'] if token not in [LETTERS[b] for b in left_out]]
    return BPETokenizer(spec)


# ---------------------------------------------------------------------------- where a text may be cut

SPECIAL_CASES = "ab1 \n\r\t'sS!_²½ⅣéÉ\u0301\u00a0\u2028中あ😀\u200d𝟙\x00"
TRICKY = st.text(st.sampled_from(SPECIAL_CASES) | st.characters(exclude_categories=['Cs']), max_size=40)


@pytest.mark.parametrize('name', bpe.PATTERNS)
@settings(max_examples=100, deadline=None)
@given(left=TRICKY, right=TRICKY)
def test_all_patterns_begin_a_piece_where_a_text_is_cut(name, left, right):
    """The claim of bpe.last_cut, for the pieces that the pattern finds, not only for the tokens of one vocabulary."""
    regex = pytest.importorskip('regex', reason='it splits as the patterns do: pip install regex')
    text = left + 'x '[len(left) % 2:] + right
    cut = bpe.last_cut(text)
    found = regex.findall(bpe.PATTERNS[name], text)
    if cut:
        assert text[cut - 1].isalnum() and text[cut] in ' \n'
        assert regex.findall(bpe.PATTERNS[name], text[:cut]) + regex.findall(bpe.PATTERNS[name], text[cut:]) == found
        tokenizer = small_tokenizer(bpe.PATTERNS[name])
        pieces = np.concatenate([tokenizer.encode_array(text[:cut]), tokenizer.encode_array(text[cut:])])
        assert pieces.tolist() == tokenizer.encode_ordinary(text)


def test_what_python_calls_letters_and_digits_are_letters_and_numbers_for_the_patterns():
    regex = pytest.importorskip('regex', reason='it splits as the patterns do: pip install regex')
    text = ''.join(chr(i) for i in range(0x110000) if chr(i).isalnum())
    assert len(text) > 100_000
    assert regex.fullmatch(r'[\p{L}\p{N}]+', text)


@settings(max_examples=100, deadline=None)
@given(text=st.text('a _.\n', max_size=60), start=st.integers(0, 20))
def test_the_last_cut_is_found(text, start):
    places = [i for i in range(1, len(text)) if i > start and text[i - 1] == 'a' and text[i] in ' \n']
    assert bpe.last_cut(text, start) == max(places, default=0)
    far = text + '.' * 3000                           # beyond the first window
    assert bpe.last_cut(far, start) == max(places, default=0)


# ---------------------------------------------------------------------------- arrays of ids

@settings(max_examples=50, deadline=None)
@given(text=st.text(st.characters(), max_size=30) | st.just('a<|endoftext|> b'))
def test_encode_array_is_encode_ordinary(text):
    """Half characters and special tokens in the text, too."""
    tokenizers = [ByteTokenizer(), CharTokenizer.from_text(text + 'xy'), small_tokenizer(bpe.GPT2, end_id=1),
                  small_tokenizer(bpe.GPT2, normalizer='NFC'), small_tokenizer(bpe.GPT2, left_out=b'x\xff\xc3')]
    for tokenizer in tokenizers:
        assert tokenizer.encode_array(text).tolist() == tokenizer.encode_ordinary(text)


def test_encode_array_of_gpt2(test_data, monkeypatch):
    monkeypatch.setenv('TIKTOKEN_CACHE_DIR', str(test_data / 'tiktoken'))
    tokenizer = build_tokenizer({'kind': 'gpt2'})
    for text in ('', 'Hello <|endoftext|> world\n', '\ud800x', '😀' * 9, ' ' * 100_000):
        assert tokenizer.encode_array(text).tolist() == tokenizer.encode_ordinary(text)


def test_an_unknown_character_names_the_tokenizer_that_knows_all():
    for encode in (CharTokenizer('ab').encode, CharTokenizer('ab').encode_array):
        with pytest.raises(UserError, match="^character 'é' at position 2 .* --tokenizer=byte, which knows all"):
            encode('abé')


# ---------------------------------------------------------------------------- whole datasets

def prepare(texts, kind, chunk=7, max_chunk=20, block=5, many=100, **options):
    """The ids of both splits, prepared with tiny pieces and chunks from JSON lines."""
    Path('x.jsonl').write_text(''.join(json.dumps({'text': text}) + '\n' for text in texts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, 'BLOCK', block)
        patch.setattr(corpus, 'CHUNK', chunk)
        patch.setattr(corpus, 'MAX_CHUNK', max_chunk)
        patch.setattr(corpus, 'MANY', many)
        corpus.write_text('d', ['x.jsonl'], kind, **options)
    return ids_in('d')


def expected(texts, spec, val_fraction, many):
    """The same, all in memory."""
    tokenizer = build_tokenizer(spec)
    whole = '\n'.join(texts)
    if len(texts) >= many:
        held_out = [math.floor((i + 1) * val_fraction) > math.floor(i * val_fraction) for i in range(len(texts))]
        parts = [[t for t, held in zip(texts, held_out) if held == part] for part in (False, True)]
    else:
        cut = int(len(whole) * (1 - val_fraction))
        ends = list(itertools.accumulate(len(text) + 1 for text in texts))
        spans = list(zip([0, *ends], [end - 1 for end in ends]))
        train = [whole[a:min(b, cut)] for a, b in spans if a < cut or a == b == cut]
        val = [whole[max(a, cut):b] for a, b in spans if b > cut]
        parts = [train, val]
    if tokenizer.end_id is None:
        return [tokenizer.encode_ordinary('\n'.join(part)) for part in parts]
    found = []
    for part in parts:
        ids = []
        for text in part:
            ids += [*tokenizer.encode_ordinary(text), tokenizer.end_id]
        found.append(ids[:-1])
    return found


WORDS = st.sampled_from(['a', 'b', '1', ' ', '\n', "'s", '!', 'ab1 ', '  ', 'x' * 30, 'é', '中', '😀'])
TEXTS = st.lists(WORDS, max_size=40).map(''.join)


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(TEXTS, min_size=1, max_size=8), chunk=st.integers(1, 30), block=st.integers(1, 40),
       many=st.integers(2, 9), fraction=st.sampled_from([0.1, 0.3, 0.5, 0.9]),
       kind=st.sampled_from(['char', 'byte', 'bpe', 'bpe with an end', 'other pattern']))
def test_ids_do_not_depend_on_the_pieces(texts, chunk, block, many, fraction, kind):
    texts[0] += 'ab 1\n' * 20
    spec = {'bpe': small_bpe(bpe.GPT2), 'bpe with an end': small_bpe(bpe.PATTERNS['qwen2'], end_id=1),
            'other pattern': small_bpe(bpe.WHOLE), 'byte': {'kind': 'byte'},
            'char': {'kind': 'char', 'chars': sorted(set('\n'.join(texts)))}}[kind]
    options = dict(chunk=chunk, block=block, many=many, max_chunk=10_000, val_fraction=fraction)
    try:
        found = prepare(texts, 'char' if kind == 'char' else spec, **options)
    except UserError as e:
        assert 'expected some in both parts' in str(e) or 'the text gives no tokens' in str(e)
        return
    assert found == expected(texts, spec, fraction, many)
    assert read_meta('d')['tokenizer'] == spec
    meta = json.loads(Path('d/meta.json').read_text(encoding='utf-8'))
    assert meta['sha256'] == hashlib.sha256('\n'.join(texts).encode()).hexdigest()


def test_a_text_without_a_place_to_cut():
    """It is cut anywhere then: the text is the same, its tokens need not be."""
    text = 'a' * 1000
    spec = small_bpe(bpe.GPT2)
    spec['tokens'] = [*spec['tokens'], 'aa']
    train, val = prepare([text], spec, chunk=5, max_chunk=11)
    tokenizer = build_tokenizer(spec)
    assert tokenizer.decode(train + val) == text
    assert train != tokenizer.encode_ordinary('a' * 900)
    assert len(train) < 500


@pytest.mark.parametrize('n', [100, 101, 999])
def test_many_documents_are_held_out_whole_and_evenly(n):
    texts = [f'document {i}' for i in range(n)]
    train, val = (bytes(ids).decode().split('\n') for ids in prepare(texts, 'byte'))
    assert sorted(train + val) == sorted(texts)
    numbers = [int(text.split()[1]) for text in val]
    assert len(numbers) == n // 10
    assert set(np.diff(numbers)) <= {9, 10, 11}

    train, val = (bytes(ids).decode() for ids in prepare(texts[:99], 'byte'))
    assert train + val == '\n'.join(texts[:99])


def test_one_text_is_split_where_nanogpt_splits_it():
    text = 'Grüße\r\n' * 333
    Path('x.txt').write_text(text, encoding='utf-8', newline='')
    corpus.write_text('d', ['x.txt'], 'byte')
    n = len(text)
    train, val = (bytes(ids).decode() for ids in ids_in('d'))
    assert (train, val) == (text[:int(n * 0.9)], text[int(n * 0.9):])


@pytest.mark.parametrize('fraction', [0.0, 1.0, -1, math.nan, math.inf, 1e-20])
@pytest.mark.parametrize('n', [1, 200])
def test_fractions_that_leave_a_part_empty(fraction, n):
    with pytest.raises(UserError, match=f'^--val_fraction={fraction}: '):
        prepare(['some text ' * 20] * n, 'byte', val_fraction=fraction)
    assert not os.path.exists('d')


def test_a_fraction_of_too_few_documents():
    with pytest.raises(UserError, match='^--val_fraction=0.001: holds out 0 of 200 documents; expected some in both'):
        prepare(['some text ' * 20] * 200, 'byte', val_fraction=0.001)


def test_too_little_text():
    Path('x.txt').write_text('x' * 99)
    with pytest.raises(UserError, match='^x.txt: 99 characters; expected at least 100 characters to train on$'):
        corpus.write_text('d', ['x.txt'], 'byte')
    assert not os.path.exists('d')


def test_files_that_change_meanwhile(monkeypatch):
    Path('x.txt').write_text('x' * 1000)
    survey = corpus.survey

    def survey_then_change(*args, **kwargs):
        found = survey(*args, **kwargs)
        Path('x.txt').write_text('x' * 1001)
        return found

    monkeypatch.setattr(corpus, 'survey', survey_then_change)
    with pytest.raises(UserError, match='the files changed while they were read'):
        corpus.write_text('d', ['x.txt'], 'byte')
    assert os.listdir('d') == []


def test_an_error_in_a_thread_is_raised_and_ends_the_others(monkeypatch):
    class Failing(ByteTokenizer):
        calls = 0

        def encode_array(self, text):
            self.calls += 1
            if self.calls == 3:
                raise UserError('third')
            return super().encode_array(text)

    tokenizer = Failing()
    tasks = (('train', ['text']) for _ in range(10 ** 6))
    with pytest.raises(UserError, match='third'):
        list(corpus.encoded(tasks, tokenizer))
    assert tokenizer.calls < 1000


# ---------------------------------------------------------------------------- large texts

@pytest.fixture
def large():
    """50 MB of text."""
    source = Path(preparation.__file__).read_text(encoding='utf-8')
    Path('large.txt').write_text(source * (50_000_000 // len(source)), encoding='utf-8')
    return 'large.txt'


MEASURE = """
import resource, sys
sys.path.insert(0, {repo!r})
from gradus import corpus
corpus.write_text('d', [sys.argv[1]], sys.argv[2])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='counts kilobytes as Linux does')
@pytest.mark.parametrize('kind', ['char', 'byte', 'gpt2'])
def test_memory_does_not_grow_with_the_text(kind, large, test_data):
    env = {**os.environ, 'TIKTOKEN_CACHE_DIR': str(test_data / 'tiktoken')}
    Path('small.txt').write_text('a small text ' * 20)
    used = []
    for path in ('small.txt', large):
        command = [sys.executable, '-c', MEASURE.format(repo=str(REPO)), path, kind]
        ran = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
        used.append(int(ran.stdout.split()[-1]) / 1024)
    assert used[1] - used[0] < 40 + 25 * corpus.n_cores()    # MB


@pytest.mark.slow
@pytest.mark.skipif(os.name != 'posix', reason='SIGKILL')
def test_a_kill_in_the_middle_leaves_nothing_wrong(large):
    command = [sys.executable, str(REPO / 'data/prepare.py'), '--tokenizer=byte', '--out=d']
    Path('small.txt').write_text('a small text ' * 20)
    subprocess.run([*command, 'small.txt'], check=True, capture_output=True)
    before = {name: Path('d', name).read_bytes() for name in os.listdir('d')}

    child = subprocess.Popen([*command, '--overwrite', large], stderr=subprocess.DEVNULL)
    while not any(name.startswith('train.bin.') for name in os.listdir('d')):
        time.sleep(0.01)
        assert child.poll() is None
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert {name: Path('d', name).read_bytes() for name in before} == before
    assert len(os.listdir('d')) > len(before)

    subprocess.run([*command, 'small.txt'], check=True, capture_output=True)
    assert {name: Path('d', name).read_bytes() for name in os.listdir('d')} == before
