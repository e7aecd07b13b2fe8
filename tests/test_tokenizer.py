"""Text to ids and back, and the plain data that tokenizers are stored as."""

import json

import pytest

from gradus.errors import UserError
from gradus.tokenizer import ByteTokenizer, CharTokenizer, GPT2Tokenizer, build_tokenizer


@pytest.fixture
def gpt2(test_data, monkeypatch):
    monkeypatch.setenv('TIKTOKEN_CACHE_DIR', str(test_data / 'tiktoken'))
    return GPT2Tokenizer()


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
