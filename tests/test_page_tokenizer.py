"""page/tokenizer.js in node against gradus/tokenizer.py: the same ids, and the same text back."""

import json
import os
import subprocess

import pytest
from conftest import REPO
from test_page import node_path

from gradus import bpe, page
from gradus.tokenizer import build_tokenizer

TEXTS = [
    '', 'a', 'Hello world', "it's, we'll I'M DON'T 12345 6,789.00",
    '  two  spaces\n\n\nlines\t tabs ', 'naïve café — “x”', '日本語のテキスト', '👩‍👩‍👧 🏳️‍🌈 ok',
    'e\u0301 A\u030a', 'def f(x):\n    return x ** 2  # why?\n', '<|endoftext|>',
    '<script>alert(1)</script>', 'x' * 300, '    ', '\r\n', 'ſ K', 'مرحبا بالعالم', '\x00\x07',
]
SCRIPT = """
const {makeTokenizer, StreamDecoder} = require(process.argv[1]);
const {spec, texts} = JSON.parse(require('fs').readFileSync(0, 'utf-8'));
const tokenizer = makeTokenizer(spec);
console.log(JSON.stringify(texts.map((text) => {
  let ids;
  try {
    ids = tokenizer.encode(text);
  } catch (error) {
    return {error: error.message};
  }
  const decoder = new StreamDecoder(tokenizer);
  const streamed = ids.map((id) => decoder.add(id)).join('') + decoder.close();
  return {ids, text: tokenizer.decode(ids), streamed, prompt: tokenizer.prompt(ids)};
})));
"""


def in_node(tokenizer, texts):
    spec = json.loads(json.dumps(page.tokenizer_for_page(tokenizer)))
    done = subprocess.run([node_path(), '-e', SCRIPT, os.path.join(REPO, 'page/tokenizer.js')],
                          input=json.dumps(dict(spec=spec, texts=texts)), capture_output=True, encoding='utf-8',
                          timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def assert_same(tokenizer, texts=TEXTS):
    for text, found in zip(texts, in_node(tokenizer, texts), strict=True):
        assert found['ids'] == tokenizer.encode(text), repr(text)
        assert found['text'] == found['streamed'] == tokenizer.decode(tokenizer.encode(text))
        assert found['prompt'] == tokenizer.prompt(tokenizer.encode(text))


def test_bytes():
    assert_same(build_tokenizer({'kind': 'byte'}))


def test_characters_and_what_is_unknown():
    tokenizer = build_tokenizer({'kind': 'char', 'chars': ['<', 'a', '👩', '日', ' ', '>']})
    found = in_node(tokenizer, ['a日 👩<a>', 'b'])
    assert found[0]['ids'] == tokenizer.encode('a日 👩<a>') == [1, 3, 4, 2, 0, 1, 5]
    assert 'never seen the character "b"' in found[1]['error']


def test_our_own_bpe():
    pytest.importorskip('tokenizers')
    spec = bpe.train(iter(['the cat sat on the mat, the cat! ' * 40, 'naïve café 12345 ' * 20]), 300)
    assert_same(build_tokenizer(spec))


def test_pairs():
    spec = {'kind': 'byte', 'separator': [9], 'end_id': 10}
    assert_same(build_tokenizer(spec), ['ab', ''])


def test_gpt2(gpt2):
    assert_same(gpt2)


def test_patterns_in_javascript():
    """Possessive quantifiers go, others stay; (?i:...) is spelled out."""
    assert page.in_javascript(r'\p{L}++| ?\p{N}{1,3}+|\s+(?!\S)|x?+') == r'\p{L}+| ?\p{N}{1,3}|\s+(?!\S)|x?'
    assert page.in_javascript(r"(?i:'s|'t)|[^\r\n]+") == r"(?:'[sS]|'[tT])|[^\r\n]+"
