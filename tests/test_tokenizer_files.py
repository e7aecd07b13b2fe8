"""tokenizer_files.py: what we read and write encodes as transformers and tokenizers do."""

import json
import random

import pytest

pytest.importorskip('hypothesis', reason='it draws texts: pip install hypothesis')
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gradus import bpe, tokenizer_files
from gradus.errors import UserError
from gradus.tokenizer import CharTokenizer, GPT2Tokenizer, build_tokenizer

SMALL = "it's the year 2024, and they'll say: Déjà vu! \n\n\t x == 12345;  日本語 ½² ok 😀 " * 3
HARD = ["I'll  WE'VE it's 'S", ' 12 345\n6', '  \n\n  a\t b ', 'é e\u0301 ≯>\u0338', '\0\x7f\u2028\ufeff',
        '日本語 ½²  ', '<|end|><|user|>x<|end|>', '<|end', '\r\n \r\nA', ' ', '']
PRE_TOKENIZERS = ['gpt-2', 'smollm', 'llama-bpe', 'qwen2']


def pre_tokenizer(name, tokenizers):
    """As the published models of this kind spell it."""
    pre = tokenizers.pre_tokenizers
    byte_level = pre.ByteLevel(add_prefix_space=False, use_regex=name in ('gpt-2', 'smollm'))
    if name == 'gpt-2':
        return byte_level
    if name == 'smollm':
        return pre.Sequence([pre.Digits(individual_digits=True), byte_level])
    split = pre.Split(tokenizers.Regex(tokenizer_files.PATTERNS[name]), 'isolated')
    return pre.Sequence([split, byte_level])


def trained(name, all_bytes=True, start=False):
    """A tokenizer of the package `tokenizers`, trained on SMALL."""
    tokenizers = pytest.importorskip('tokenizers', reason='the outsider: pip install tokenizers')
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = pre_tokenizer(name, tokenizers)
    made.decoder = tokenizers.decoders.ByteLevel()
    if name == 'qwen2':
        made.normalizer = tokenizers.normalizers.NFC()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet() if all_bytes else []
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=400, special_tokens=['<|end|>', '<|user|>'],
                                             show_progress=False, initial_alphabet=alphabet)
    made.train_from_iterator([SMALL], trainer)
    made.add_tokens([tokenizers.AddedToken('<|user|>x', normalized=False)])
    if start:
        made.post_processor = tokenizers.processors.TemplateProcessing(
            single='<|user|> $A', special_tokens=[('<|user|>', made.token_to_id('<|user|>'))])
    return made


def spec_of(made):
    return tokenizer_files.from_hf(json.loads(made.to_str()), {'eos_token': '<|end|>'})


@pytest.mark.parametrize('all_bytes', [True, False])
@pytest.mark.parametrize('name', PRE_TOKENIZERS)
def test_we_encode_as_tokenizers_does(name, all_bytes):
    """Any text, special tokens included; bytes that the vocabulary lacks are left out there, too."""
    made = trained(name, all_bytes)
    ours = build_tokenizer(spec_of(made))
    assert ours.n_vocab == made.get_vocab_size()
    assert ours.end_id == made.token_to_id('<|end|>')
    not_text = ['Cs']
    if not all_bytes:
        assert 'ÿ' not in made.get_vocab()
        not_text.append('Cn')                         # another package cuts there, and its Unicode is newer

    @settings(max_examples=150, deadline=None, database=None)
    @given(st.text(st.characters(exclude_categories=not_text)) | st.text(st.sampled_from(SMALL + "\n  '")))
    def same(text):
        assert ours.encode(text) == made.encode(text).ids
        if all_bytes and name != 'qwen2':
            assert ours.decode(ours.encode_ordinary(text)) == text

    same()
    for text in [*HARD, SMALL]:
        assert ours.encode(text) == made.encode(text).ids, text


def test_merges_are_used():
    """Negative control of the comparison above: bytes alone would be more."""
    ours = build_tokenizer(spec_of(trained('gpt-2')))
    assert len(ours.encode(SMALL)) < len(SMALL.encode()) / 2
    assert ours.encode('<|end|>') == [0]
    assert len(ours.encode_ordinary('<|end|>')) > 1


def test_a_template_puts_tokens_before_a_prompt():
    made = trained('llama-bpe', start=True)
    ours = build_tokenizer(spec_of(made))
    assert [*ours.start, *ours.encode('the year')] == made.encode('the year').ids
    assert list(ours.start) == [1]


SPECS = {
    'byte': lambda: {'kind': 'byte'},
    'char': lambda: CharTokenizer.from_text(SMALL + "'").to_json(),
    'gpt2': lambda: {'kind': 'gpt2'},
    **{name: (lambda name=name: spec_of(trained(name, start=name == 'llama-bpe'))) for name in PRE_TOKENIZERS},
}


@pytest.mark.parametrize('config, end_id', [
    ({'eos_token': '<|end|>'}, 0), ({'eos_token': '<|user|>', 'eos_token_id': 0}, 1), ({'eos_token_id': 1}, 1),
    ({'eos_token_id': [1, 0]}, 1), ({'eos_token_id': []}, None), ({'eos_token_id': 10 ** 30}, None),
    ({'eos_token_id': -1}, None), ({'eos_token_id': 'x'}, None), ({}, None),
])
def test_the_end_of_a_text(config, end_id):
    """GPT-2's tokenizer_config.json says nothing about it, its config.json does."""
    spec = tokenizer_files.from_hf(json.loads(trained('gpt-2').to_str()), config)
    assert spec['end_id'] == end_id


@pytest.mark.parametrize('kind', SPECS)
def test_transformers_encodes_and_decodes_as_we_do(kind, tmp_path, request):
    transformers = pytest.importorskip('transformers', reason='the outsider: pip install transformers')
    if kind == 'gpt2':
        request.getfixturevalue('gpt2')
    spec = SPECS[kind]()
    ours = build_tokenizer(spec)
    files, _ = tokenizer_files.to_hf(spec, ours.n_vocab)
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding='utf-8')
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)

    letters = st.sampled_from(SMALL + "'") if kind == 'char' else st.characters(exclude_categories=['Cs'])

    @settings(max_examples=100, deadline=None, database=None)
    @given(st.text(letters))
    @example(SMALL)
    def same(text):
        ids = [*ours.start, *ours.encode(text)]
        assert theirs(text)['input_ids'] == ids
        assert theirs.decode(ids) == ours.decode(ids)

    same()
    if kind == 'char':
        assert theirs('the Ж year')['input_ids'] == ours.encode('the  year')    # the note says so
        assert tokenizer_files.from_hf(json.loads(files['tokenizer.json']), {}) == spec
        return
    for text in HARD:
        assert theirs(text)['input_ids'] == [*ours.start, *ours.encode(text)]
    again = tokenizer_files.from_hf(json.loads(files['tokenizer.json']), json.loads(files['tokenizer_config.json']))
    assert again == (spec if kind == 'gpt2' else tokenizer_files.as_bpe(spec))
    assert (theirs.eos_token_id, theirs.bos_token_id) == (ours.end_id, None if ours.end_id is None else ours.start_id)


def test_gpt2s_merges_are_those_of_its_file(gpt2):
    """tiktoken keeps ranks only; the file from which it makes them begins with these, and has 50,000."""
    merges = bpe.merges_in(tokenizer_files.as_bpe({'kind': 'gpt2'}))
    assert len(merges) == 50_000
    assert merges[:4] == [('Ġ', 't'), ('Ġ', 'a'), ('h', 'e'), ('i', 'n')]
    assert isinstance(gpt2, GPT2Tokenizer)


@pytest.mark.parametrize('name', ['gpt-2', 'smollm', 'llama-bpe', 'qwen2'])
def test_gguf_and_back(name):
    spec = spec_of(trained(name))
    found, notes = tokenizer_files.to_gguf(spec, 420)
    assert len(found['tokens']) == len(found['token_type']) == 420
    assert bool(notes) == (name == 'qwen2')           # whose NFC llama.cpp does not have
    again = tokenizer_files.from_gguf({f'tokenizer.ggml.{key}': value for key, value in found.items()})
    assert again == {key: value for key, value in spec.items() if key != 'normalizer'}


def test_characters_through_gguf_and_back():
    """llama.cpp builds them of bytes that are no tokens."""
    for text in (SMALL, 'ab\n', '日', '\ufffd'):
        spec = CharTokenizer.from_text(text).to_json()
        found, _ = tokenizer_files.to_gguf(spec, 99)
        assert len(found['tokens']) == 99
        assert tokenizer_files.from_gguf({f'tokenizer.ggml.{key}': value for key, value in found.items()}) == spec


@pytest.mark.parametrize('text', ['ab', '\ud800'])
def test_characters_that_are_none_are_not_exported(text):
    """llama.cpp would merge the one, and end with the other."""
    spec = {'kind': 'char', 'chars': ['a', 'b', '?', text]}
    assert build_tokenizer(spec).n_vocab == 4
    for export in (tokenizer_files.to_hf, tokenizer_files.to_gguf):
        with pytest.raises(UserError, match='expected one character'):
            export(spec, 4)


@pytest.mark.parametrize('pattern', [r'\p{L}+', r'(?i)b+(?=a)', r' ?\p{N}{1,3}|\s', r'[^\r\n]|\n+'])
def test_text_between_the_matches_of_a_pattern_is_kept(pattern):
    """There, Split makes pieces, and tiktoken drops them."""
    tokenizers = pytest.importorskip('tokenizers', reason='the outsider: pip install tokenizers')
    made = trained('llama-bpe')
    pre = tokenizers.pre_tokenizers
    split = pre.Split(tokenizers.Regex(pattern), 'isolated')
    made.pre_tokenizer = pre.Sequence([split, pre.ByteLevel(add_prefix_space=False, use_regex=False)])
    spec = spec_of(made)
    ours = build_tokenizer(spec)

    @settings(max_examples=100, deadline=None, database=None)
    @given(st.text(st.sampled_from(SMALL + 'aAbB\r\n')))
    @example(SMALL)
    def same(text):
        assert ours.encode(text) == made.encode(text).ids
        assert ours.decode(ours.encode_ordinary(text)) == text

    same()
    files, _ = tokenizer_files.to_hf(spec, ours.n_vocab)
    assert tokenizer_files.from_hf(json.loads(files['tokenizer.json']), {'eos_token': '<|end|>'}) == spec


def test_random_merges_are_refused_or_mean_the_same():
    """Lists of merges that no training makes: tiktoken knows the order of tokens alone."""
    tokenizers = pytest.importorskip('tokenizers', reason='the outsider: pip install tokenizers')
    r = random.Random(1)
    accepted = 0
    for _ in range(600):
        vocab = dict.fromkeys('abc')
        merges = []
        for _ in range(r.randint(1, 5)):
            pair = r.choices(list(vocab), k=2)
            if pair not in merges:
                merges.append(pair)
                vocab[''.join(pair)] = None
        vocab = {token: i for i, token in enumerate(vocab)}
        if r.random() < 0.2:
            r.shuffle(merges)
        model = tokenizers.models.BPE(vocab, list(map(tuple, merges)))
        made = tokenizers.Tokenizer(model)
        made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        try:
            ours = build_tokenizer(tokenizer_files.from_hf(json.loads(made.to_str()), {}))
        except UserError as e:
            assert '\n' not in str(e)
            continue
        accepted += 1
        for _ in range(20):
            text = ''.join(r.choices('abc', k=r.randint(1, 12)))
            assert ours.encode(text) == made.encode(text).ids, (merges, text)
    assert 120 < accepted < 580


# ---------------------------------------------------------------------------- what is refused

@pytest.mark.parametrize('changes, named', [
    ({'model': {'type': 'Unigram'}}, "model is 'Unigram'"),
    ({'normalizer': {'type': 'Lowercase'}}, 'normalizer is'),
    ({'pre_tokenizer': {'type': 'Metaspace'}}, 'pre_tokenizer is'),
    ({'pre_tokenizer': {'type': 'ByteLevel', 'add_prefix_space': True}}, 'pre_tokenizer is'),
    ({'pre_tokenizer': {'type': 'Sequence', 'pretokenizers': 7}}, 'pre_tokenizer is'),
    ({'post_processor': {'type': 'BertProcessing'}}, 'post_processor is'),
    ({'post_processor': {'type': 'TemplateProcessing', 'single': [{'Sequence': {}}, {'SpecialToken': {}}]}},
     'post_processor is'),
    ({'added_tokens': [{'id': 0, 'content': '<mask>', 'lstrip': True}]}, "lstrip of '<mask>'"),
    ({'added_tokens': [{'id': 0, 'content': 'new'}]}, "token 'new' has the id 0"),
    ({'added_tokens': [7]}, 'added_tokens has 7'),
    ({'added_tokens': {}}, 'added_tokens is {}'),
    ({'model': {'vocab': {'a': 0, 'b': 2 ** 40}}}, "token 'b' has the id"),
    ({'model': {'vocab': {'a': 0, 'b': 0}}}, "token 'b' has the id 0"),
    ({'model': {'vocab': {'a b': 0}}}, "token 0 is 'a b'"),
    ({'model': {'vocab': {}}}, 'tokens is []'),
    ({'model': {'vocab': {'a': 0, 'b': 1, 'ab': 2}, 'merges': []}}, "token 'ab': expected a merge"),
    ({'model': {'vocab': {'a': 0, 'b': 1, 'c': 2, 'ab': 3, 'bc': 4, 'abc': 5}, 'merges': ['a b', 'b c', 'a bc']}},
     "token 'abc': expected a merge that makes it of 'ab' and 'c'"),
    ({'model': {'vocab': {'a': 0}, 'unk_token': 'a'}}, "unk_token is 'a'"),
    ({'model': {'vocab': {'a': 0, 'aaa': 1}}}, "token 'aaa' cannot be made"),
    ({'model': {'vocab': {'a': 0, 'a' * 10 ** 5: 1}}}, '2 tokens of up to 100,000 bytes'),
    ({'model': {'vocab': {'a': 0, 'b': 1, 'ab': 2}, 'merges': [['a', 'x']]}}, "merge 'a' 'x'"),
    ({'model': {'vocab': {'a': 0, 'b': 1, 'ab': 2, 'ba': 3}, 'merges': ['b a', 'a b']}}, 'in the order of their ids'),
    ({'model': {'vocab': {'a': 0}, 'merges': [5]}}, 'merges has 5'),
    ({'model': 7}, 'model is 7'),
])
def test_a_tokenizer_json_that_is_not_byte_level_bpe(changes, named):
    tokenizer = {'model': {'type': 'BPE', 'vocab': {'a': 0}, 'merges': []}, 'pre_tokenizer': {'type': 'ByteLevel'}}
    with pytest.raises(UserError) as e:
        tokenizer_files.from_hf({**tokenizer, **changes}, {})
    assert named in str(e.value)
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('changes, named', [
    ({'model': 'llama'}, "tokenizer.ggml.model is 'llama'"),
    ({'pre': 'deepseek-coder'}, "tokenizer.ggml.pre is 'deepseek-coder'"),
    ({'tokens': 5}, 'tokenizer.ggml.tokens is 5'),
    ({'token_type': [1]}, 'token_type has 1 entries'),
    ({'merges': ['a']}, 'merges has'),
    ({'merges': [1]}, 'merges has'),
    ({'tokens': ['a', 'a', 'b']}, 'expected different strings'),
    ({'bos_token_id': 10 ** 9, 'add_bos_token': True}, 'start is [1000000000]'),
])
def test_a_gguf_vocabulary_that_we_cannot_read(changes, named):
    fields = dict(model='gpt2', pre='gpt-2', tokens=['a', 'b', 'ab'], token_type=[1, 1, 1], merges=['a b'])
    assert tokenizer_files.from_gguf({f'tokenizer.ggml.{k}': v for k, v in fields.items()})['end_id'] is None
    with pytest.raises(UserError) as e:
        tokenizer_files.from_gguf({f'tokenizer.ggml.{k}': v for k, v in {**fields, **changes}.items()})
    assert named in str(e.value)


@pytest.mark.parametrize('changes, named', [
    (dict(tokens=None), 'tokens is None'),
    (dict(tokens=['a', 7]), 'strings that are not empty'),
    (dict(tokens=['a', '']), 'strings that are not empty'),
    (dict(special=[9]), 'special is [9]'),
    (dict(special=['a']), "special is ['a']"),
    (dict(start=[True]), 'start is [True]'),
    (dict(end_id=-1), 'end_id is -1'),
    (dict(pattern=None), 'pattern is None'),
    (dict(pattern='('), "pattern '('"),
    (dict(normalizer='NFKC'), "normalizer is 'NFKC'"),
    (dict(chat_template=[]), 'chat_template is []'),
    (dict(chat_template='\ud83d'), 'expected whole characters'),
    (dict(tokens=['a', '\udc00']), 'expected whole characters'),
])
def test_hostile_plain_data(changes, named):
    spec = dict(kind='bpe', tokens=['a', 'b', 'ab'], special=[], start=[], end_id=None, pattern='.+')
    assert build_tokenizer(spec).encode('abxb') == [2, 1]
    with pytest.raises(UserError) as e:
        build_tokenizer({**spec, **changes})
    assert named in str(e.value)
    assert '\n' not in str(e.value)


def test_a_pattern_that_never_ends():
    spec = dict(kind='bpe', tokens=['a'], special=[], start=[], end_id=None, pattern=r'(a|a|aa)+(?=b)\1c')
    with pytest.raises(UserError, match='it fails on a text of 40 characters'):
        build_tokenizer(spec).encode('a' * 40)


def test_random_vocabularies_never_crash():
    """Any three-letter world: what is accepted encodes, and what is refused is one line."""
    r = random.Random(0)
    for _ in range(200):
        tokens = list({''.join(r.choices('abc', k=r.randint(1, 4))): None for _ in range(8)})
        merges = [' '.join((t[:n], t[n:])) for t in tokens if len(t) > 1 for n in [r.randint(1, len(t) - 1)]]
        tokenizer = {'model': {'vocab': {t: i for i, t in enumerate(tokens)}, 'merges': merges},
                     'pre_tokenizer': {'type': 'ByteLevel'}}
        try:
            ours = build_tokenizer(tokenizer_files.from_hf(tokenizer, {}))
        except UserError as e:
            assert '\n' not in str(e)
        else:
            assert all(i < len(tokens) for i in ours.encode('abcabca bc'))
