"""page/tokenizer.js in node against Python's tokenizers: the same ids, bytes and texts."""

import codecs
import json
import os
import random
import subprocess

import pytest

pytest.importorskip('hypothesis', reason='it draws texts: pip install hypothesis')
from hypothesis import given, settings
from hypothesis import strategies as st
from test_llama_cpp import smollm2
from test_page import node_path

from gradus import pretrained
from gradus.bpe import GPT2, PATTERNS, WHOLE
from gradus.errors import UserError
from gradus.js_regex import to_javascript
from gradus.page import spec_for_page
from gradus.tokenizer import LETTERS, ByteTokenizer, CharTokenizer, build_tokenizer, bytes_to_letters

TOKENIZER = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'page', 'tokenizer.js')
SCRIPT = """
const {makeTokenizer, StreamDecoder} = require(process.argv[1]);
const {specs, texts, ids} = JSON.parse(require('fs').readFileSync(0, 'utf-8'));
const results = specs.map((spec, n) => {
  const tokenizer = makeTokenizer(spec);
  const attempt = (encode) => { try { return encode(); } catch (error) { return error.message; } };
  const {nVocab, startId, endId} = tokenizer;
  return {
    nVocab, startId, endId,
    prompt: tokenizer.prompt([7]),
    encoded: texts.map((text) => attempt(() => tokenizer.encode(text))),
    ordinary: texts.map((text) => attempt(() => tokenizer.encodeOrdinary(text))),
    bytes: Array.from({length: nVocab}, (_, id) => Buffer.from(tokenizer.bytesOf(id)).toString('hex')),
    decoded: ids[n].map((row) => tokenizer.decode(row)),
    streamed: ids[n].map((row) => {
      const stream = new StreamDecoder(tokenizer);
      return [...row.map((id) => stream.add(id)), stream.close()];
    }),
  };
});
console.log(JSON.stringify(results));
"""

TEXTS = [
    '', ' ', 'Hello, world!', "I'll  WE'VE it's 'S they'RE 'ſ", '   leading and trailing   ', '\n\n\n',
    ' 12 345\n6 1234567', '½² ⅷ Ⅷ ٣٤', '  \n\n  a\t b \t\t', '\r\n \r\nA\r', 'def f(x):\n        return -x  # no\n',
    'e\u0301 é ≯>\u0338 \u1e9b\u0323 가 \u1100\u1161', '日本語', '😀👩\u200d👩\u200d👧 🇩🇪', 'ǅ K k \u212a ß ẞ İ ı',
    '\0\x7f\x85\u2028\ufeff\ufeffx', '\x1c\x1f\u180e\u200b\u3000\xa0 x',
    '<|endoftext|><|user|>x<|endoftext|>', '<|endof', "\'\'\'\"\"\" -- [a]{b} \\d /* $^ */",
]


HALF = 'half \ud83d a character'


def random_texts(n, seed=0):
    """Texts of assigned characters: of all planes, or of a few that the patterns tell apart."""
    r = random.Random(seed)
    few = "ab AB's 'll1²½\n\r\t  \x85\xa0\u2003\u0301é日😀_-<|>ſ"
    texts = []
    for _ in range(n):
        any_of = few if r.random() < 0.7 else [chr(r.choice([r.randrange(0x250), r.randrange(0x3000)])) for _ in few]
        texts.append(''.join(r.choices(any_of, k=r.randrange(30))))
    return texts


def run_node(specs, texts, ids):
    data = json.dumps(dict(specs=specs, texts=texts, ids=ids))
    done = subprocess.run([node_path(), '-e', SCRIPT, TOKENIZER], input=data, capture_output=True, encoding='utf-8',
                          timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def check(tokenizers, texts):
    """Everything that page/tokenizer.js says is what Python says, for each tokenizer."""
    r = random.Random(1)
    ids = [[r.choices(range(t.n_vocab), k=r.randrange(12)) for _ in range(30)] for t in tokenizers]
    results = run_node([spec_for_page(t) for t in tokenizers], texts, ids)
    for tokenizer, rows, found in zip(tokenizers, ids, results, strict=True):
        assert (found['nVocab'], found['startId'], found['endId']) == \
            (tokenizer.n_vocab, tokenizer.start_id, tokenizer.end_id)
        assert found['prompt'] == tokenizer.prompt([7])
        assert found['bytes'] == [tokenizer.decode_bytes([i]).hex() for i in range(tokenizer.n_vocab)]
        assert found['decoded'] == [tokenizer.decode(row) for row in rows]
        for n, text in enumerate(texts):
            try:
                expected = tokenizer.encode(text)
            except UserError:
                assert found['encoded'][n].startswith('The model does not know the character'), repr(text)
                continue
            assert found['encoded'][n] == expected, repr(text)
            assert found['ordinary'][n] == tokenizer.encode_ordinary(text), repr(text)
        for row, pieces in zip(rows, found['streamed'], strict=True):
            stream = codecs.getincrementaldecoder('utf-8')('replace')
            expected = [stream.decode(tokenizer.decode_bytes([i])) for i in row]
            assert pieces == [*expected, stream.decode(b'', final=True)]


def pairs_of(pattern, missing=(), **more):
    """
    A tokenizer of kind bpe whose tokens are all pairs of some bytes, in a random order: its ids show where a pattern
    cuts. Some tokens have three and four bytes.
    """
    r = random.Random(2)
    some = sorted({*b"ab AB'sl1\n\r\t_-", *'²é日😀ſ\u0301\x85'.encode()})
    longer = [bytes([a, b]) for a in some for b in some]
    r.shuffle(longer)
    longer += dict.fromkeys(a + b for a, b in zip(longer[:60], longer[60:120]))
    longer += dict.fromkeys(token + bytes([some[0]]) for token in longer[:50])
    tokens = [None if b in missing else LETTERS[b] for b in range(256)] + list(map(bytes_to_letters, longer))
    special = ['<|endoftext|>', '<|user|>', '<|user|>x']
    ids = [len(tokens) + i for i in range(3)]
    spec = dict(kind='bpe', tokens=tokens + special, special=ids, start=[], end_id=ids[0], pattern=pattern)
    return build_tokenizer(spec | more)


CL100K = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|"
          r'\s+(?!\S)|\s')
O200K = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
         r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
         r'\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+')
OTHERS = [
    CL100K, O200K, r'\w+|\W', r'[\w\-]+|.|\s', r'\d{2}|\D', r'(?>a+|ab)|(?:(?>a|b)++l)++|[\s\S]', r'[a-s]+?l|[^a-s]',
    r'(?i:[a-k]+|s-s|[sl]{3})|[\s\S]',
    r'\x61\u{62}|\x{41}|\p{Han}|\pL|[\s\S]', r'(ab?)+|[]\-]|[\s\S]', r'[-a\]]{2,}|[\s\S]',
    r'a(?=b)|(?!ab)[ab]{2}|(?:(?!s+|\s)[\s\S])+', r'^a|b$|[^ab]+', r'(?:a+){2}+|-\.?|[\s\S]',
]
REFUSED = [
    r'(?<=a)b', '(?i)a', r'\bA', r'(a)\1', '[a&&b]', '[[:alpha:]]', 'a)', '(a', r'\p{Greek_Ext}', '(?i:é)', r'\K', '\\',
    r'(?i:\p{L})', '*a', '(?=a)*', '[b-a]', 'a{,', r'\u{110000}', r'\<a', r'[\w-a]',
]


def test_every_kind():
    chars = CharTokenizer([*"\nabAB's <|>", '<script>', '"onerror=', '😀'])
    pairs = build_tokenizer({'kind': 'byte', 'separator': [10, 9], 'end_id': 10})
    texts = [*TEXTS, *random_texts(100), HALF, 'ab', 'a😀\n', 'ab日']
    check([ByteTokenizer(), pairs, chars, CharTokenizer('xyz')], texts)


@pytest.mark.parametrize('missing', [(), (0x41, 0xf0, 0x20)])
def test_bpe(missing):
    """Every pattern that we know, and with a vocabulary that lacks bytes."""
    kinds = [pairs_of(pattern, missing) for pattern in [*PATTERNS.values(), WHOLE]]
    kinds += [pairs_of(GPT2, missing, normalizer='NFC', start=[5, 6], separator=[1, 2])]
    check(kinds, [*TEXTS, *random_texts(200), *([] if missing else [HALF])])


@settings(max_examples=10, deadline=None, database=None)
@given(st.lists(st.text(st.characters(exclude_categories=['Cs', 'Cn'])), min_size=40, max_size=40))
def test_any_text(texts):
    """Unassigned characters are left out, because node's Unicode may be newer than tiktoken's."""
    check([ByteTokenizer(), pairs_of(GPT2), pairs_of(PATTERNS['qwen2'], normalizer='NFC')], texts)


def test_patterns_of_other_models():
    """Possessive quantifiers, atomic groups, classes, caseless groups: as tiktoken's engine understands them."""
    check([pairs_of(pattern) for pattern in OTHERS], [*TEXTS, *random_texts(200)])


@pytest.mark.parametrize('pattern', REFUSED)
def test_refused_patterns(pattern):
    with pytest.raises(UserError, match='which a page cannot have'):
        to_javascript(pattern)


def test_gpt2(gpt2):
    pairs = build_tokenizer({'kind': 'gpt2', 'separator': [198], 'end_id': 198})
    check([gpt2, pairs], [*TEXTS, *random_texts(200), 'The quick brown fox ' * 600, '日本' * 2000, 'a' * 5000])


@pytest.mark.slow
def test_the_tokenizer_of_a_real_model():
    """SmolLM2-135M-Instruct, from its GGUF file."""
    pytest.importorskip('gguf', reason='it reads the weights: pip install gguf')
    tokenizer = build_tokenizer(pretrained.load(str(smollm2())).tokenizer)
    check([tokenizer], [*TEXTS, *random_texts(300), '<|im_start|>user\nHi 123<|im_end|>\n'])


def test_markup_in_a_vocabulary_is_text():
    spec = spec_for_page(CharTokenizer(['<script>', '"onerror=']))
    assert run_node([spec], [], [[[0, 1, 0]]])[0]['decoded'] == ['<script>"onerror=<script>']


def test_the_comparison_can_fail():
    """Negative controls: another pattern, another order of tokens, and a page's tokenizer that is not the same."""
    expected = run_node([spec_for_page(pairs_of(GPT2))], TEXTS, [[]])[0]['encoded']
    assert expected == [pairs_of(GPT2).encode(text) for text in TEXTS]

    spec = spec_for_page(pairs_of(GPT2))
    assert run_node([{**spec, 'pattern': WHOLE}], TEXTS, [[]])[0]['encoded'] != expected
    assert run_node([{**spec, 'special': []}], TEXTS, [[]])[0]['encoded'] != expected
