"""Text to ids and back, and the plain data that tokenizers are stored as."""

import json

import numpy as np
import pytest

from gradus.errors import UserError
from gradus.tokenizer import ByteTokenizer, CharTokenizer, GPT2Tokenizer, build_tokenizer, check_spec

TEXTS = ['', 'Hello, world\n', 'Grüße aus 北京 🙂', 'def f(x):\n\treturn x\r\n']


@pytest.mark.parametrize('kind', ['byte', 'char', 'gpt2'])
@pytest.mark.parametrize('text', TEXTS)
def test_round_trips_through_plain_json(text, kind, request):
    if kind == 'byte':
        made = ByteTokenizer()
    elif kind == 'char':
        made = CharTokenizer.from_text(''.join(TEXTS))
    else:
        made = request.getfixturevalue('gpt2')

    again = build_tokenizer(json.loads(json.dumps(made.to_json())))
    ids = again.encode(text)

    assert ids == made.encode(text)
    assert again.decode(ids) == text
    assert all(0 <= i < again.n_vocab for i in ids)
    assert 0 <= again.start_id < again.n_vocab
    assert again.byte_lengths().shape == (again.n_vocab,)
    assert sum(again.byte_lengths()[i] for i in ids) == len(text.encode())


def test_char_ids_are_in_sorted_order():
    made = CharTokenizer.from_text('banana\n')
    assert made.chars == ['\n', 'a', 'b', 'n']
    assert made.encode('ban') == [2, 1, 3]
    assert made.start_id == 0


def test_bytes_cut_in_the_middle_of_a_character_are_decoded():
    assert ByteTokenizer().decode('北'.encode()[:2]) == '\ufffd'


def test_gpt2_has_tiktokens_ids(gpt2):
    assert gpt2.n_vocab == 50257
    assert gpt2.encode('Hello world') == [15496, 995]
    assert gpt2.encode('<|endoftext|>') == [50256] == [gpt2.start_id]
    assert gpt2.encode_ordinary('<|endoftext|>') == [27, 91, 437, 1659, 5239, 91, 29]


def test_an_unknown_character_is_named_with_its_position():
    with pytest.raises(UserError, match=r"'!' at position 3 of the text 'aba!b'") as e:
        CharTokenizer.from_text('ab').encode('aba!b')
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('data', [
    None,
    'byte',
    [],
    {},
    {'kind': 'magic'},
    {'kind': ['byte']},
    {'kind': 'char'},
    {'kind': 'char', 'chars': 'ab'},
    {'kind': 'char', 'chars': []},
    {'kind': 'char', 'chars': ['a', 'a']},
    {'kind': 'char', 'chars': ['a', 1]},
    {'kind': 'char', 'chars': ['']},
])
def test_anything_but_a_tokenizer_is_refused(data):
    with pytest.raises(UserError) as e:
        build_tokenizer(data)
    assert '\n' not in str(e.value)


def test_gpt2_without_files_and_network_says_what_to_do(monkeypatch):
    import tiktoken

    def offline(name):
        raise ConnectionError('no\nnetwork')

    monkeypatch.setattr(tiktoken, 'get_encoding', offline)

    with pytest.raises(UserError, match='TIKTOKEN_CACHE_DIR') as e:
        GPT2Tokenizer()
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('kind', ['byte', 'char', 'gpt2'])
def test_the_size_in_a_description_is_the_tokenizers(kind, request):
    made = CharTokenizer('abc') if kind == 'char' else ByteTokenizer()
    if kind == 'gpt2':
        made = request.getfixturevalue('gpt2')
        assert made.bpe.n_vocab == made.n_vocab
    assert check_spec(made.to_json()) == made.n_vocab


def halves(levels):
    """A tuple of two equal halves, which are the same object: 2**levels parts to whoever follows them all."""
    value = ()
    for _ in range(levels):
        value = value, value
    return value


class Str(str):
    """What a character is not: it may answer anything."""


@pytest.mark.parametrize('spec', [
    halves(40),
    {'kind': halves(40)},
    {'kind': 'char', 'chars': [halves(40)]},
    {'kind': 'char', 'chars': [Str('a')]},
    {'kind': 'char', 'chars': ('a', 'b')},
    {'kind': '\x1b[31m\n'},
    {'kind': 'x' * 10 ** 6},
    {'kind': 10 ** 10_000},
    {'kind': np.array(['char', 'byte'])},
], ids=range(9))
def test_what_is_refused_is_shown_briefly(spec):
    with pytest.raises(UserError) as e:
        build_tokenizer(spec)
    assert str(e.value).isprintable()
    assert len(str(e.value)) < 250


def test_lone_surrogates():
    """Python has strings that are no text; they come from JSON and from pickles."""
    made = build_tokenizer(json.loads('{"kind": "char", "chars": ["a", "\\ud800", "\\n"]}'))
    ids = made.encode('a\ud800')
    assert ids == [0, 1]
    assert made.decode(ids) == 'a\ud800'
    assert made.decode_bytes(ids) == b'a?'
    assert made.byte_lengths().tolist() == [1, 1, 1]
    with pytest.raises(UserError) as e:
        made.encode('a\udfff')
    assert str(e.value).isprintable()
    assert ByteTokenizer().encode('\ud800') == [63]
