"""
Text to numbers and back.

    encode('Hi') -> [72, 105]        decode([72, 105]) -> 'Hi'        encode_array('Hi') -> np.array([72, 105])

Four kinds. Each is stored as plain data, {"kind": ...}, in a dataset's meta.json and inside checkpoints:

    byte   256 ids, the bytes of UTF-8: any text, nothing to learn, nothing unknown
    char   one id for each character of the training text
    gpt2   GPT-2's 50,257 byte-pair tokens, through tiktoken
    bpe    byte-pair tokens learned from the text, or those of a model such as Llama 3 or Qwen3, through tiktoken too

A dataset of pairs adds two keys to any of them: `separator`, the ids that end a prompt, and `end_id`, the id that ends
a completion.
"""

import re
import unicodedata
from contextlib import contextmanager

import numpy as np

from gradus.errors import UserError, one_line, show


class Tokenizer:
    """What all kinds have."""

    start = ()                                        # ids that precede every prompt
    separator = ()                                    # ids that follow every prompt: only after training on pairs
    end_id = None                                     # of the token that marks the end of a text; None: there is none

    def prompt(self, ids):
        """The ids of a prompt with those that precede and follow every prompt."""
        return [*self.start, *ids, *self.separator]

    def to_json(self):
        """Plain data, from which `build_tokenizer` makes the tokenizer again."""
        pairs = dict(separator=list(self.separator), end_id=self.end_id) if self.separator else {}
        return {**self.plain(), **pairs}


class ByteTokenizer(Tokenizer):
    n_vocab = 256
    start_id = 10                                     # what an empty prompt starts from: a newline

    def encode(self, text):
        return list(text.encode('utf-8', errors='replace'))

    encode_ordinary = encode

    def encode_array(self, text):
        """`encode_ordinary` for large texts: an array of ids."""
        return np.frombuffer(text.encode('utf-8', errors='replace'), dtype=np.uint8)

    def decode(self, ids):
        return bytes(ids).decode('utf-8', errors='replace')

    def decode_bytes(self, ids):
        """The text as UTF-8; the last character may be incomplete."""
        return bytes(ids)

    def byte_lengths(self):
        """How many bytes of UTF-8 each id stands for: (n_vocab,) integers."""
        return np.ones(256, dtype=np.int64)

    def plain(self):
        return {'kind': 'byte'}


class CharTokenizer(Tokenizer):
    def __init__(self, chars):
        """`chars`: the characters in the order of their ids, as a string or a list."""
        self.chars = list(chars)
        self.ids = {c: i for i, c in enumerate(self.chars)}
        self.n_vocab = len(self.chars)
        self.start_id = self.ids.get('\n', 0)
        self.table = None                             # the ids by code point, for `encode_array`

    @classmethod
    def from_text(cls, text):
        """The characters of `text`, sorted, which is how nanoGPT numbers them."""
        return cls(sorted(set(text)))

    def encode(self, text):
        """Raises UserError for a character that the training text does not have."""
        try:
            return [self.ids[c] for c in text]
        except KeyError as e:
            unknown = e.args[0]
        at = text.index(unknown)
        context = text[max(0, at - 10):at + 10]
        raise UserError(f'character {show(unknown)} at position {at} of the text {show(context)}: expected one of the '
                        f'{self.n_vocab} characters of the training text; leave it out or replace it, or train on a '
                        'dataset of data/prepare.py --tokenizer=byte, which knows all characters')

    encode_ordinary = encode

    def encode_array(self, text):
        """`encode_ordinary` for large texts: an array of ids. Raises UserError as `encode` does."""
        if self.table is None:
            table = np.full(0x110000, -1, dtype=np.int32)
            for c, i in self.ids.items():
                if len(c) == 1:
                    table[ord(c)] = i
            self.table = table
        ids = self.table[np.frombuffer(text.encode('utf-32-le', 'surrogatepass'), dtype='<u4')]
        if ids.size and ids.min() < 0:
            self.encode(text)                         # says which character it is
        return ids

    def decode(self, ids):
        return ''.join(self.chars[i] for i in ids)

    def decode_bytes(self, ids):
        return self.decode(ids).encode('utf-8', errors='replace')

    def byte_lengths(self):
        return np.array([len(c.encode('utf-8', errors='replace')) for c in self.chars], dtype=np.int64)

    def plain(self):
        return {'kind': 'char', 'chars': self.chars}


class GPT2Tokenizer(Tokenizer):
    n_vocab = 50257

    def __init__(self):
        """Raises UserError if tiktoken or its files are missing."""
        try:
            import tiktoken
            self.bpe = tiktoken.get_encoding('gpt2')
        except ImportError as e:
            raise UserError('GPT-2 tokens need tiktoken; pip install tiktoken') from e
        except Exception as e:                        # requests' errors, and tiktoken's own for a damaged cache
            raise UserError("GPT-2's BPE files: not in tiktoken's cache, and the download failed "
                            f'({type(e).__name__}); set TIKTOKEN_CACHE_DIR to a folder that holds them') from e
        self.start_id = self.end_id = self.bpe.eot_token   # <|endoftext|>, which separates texts

    def encode(self, text):
        """For prompts: <|endoftext|> is the special token, as in nanoGPT."""
        return self.bpe.encode(text, allowed_special={'<|endoftext|>'})

    def encode_ordinary(self, text):
        """For training text: <|endoftext|> is text like any other."""
        return self.bpe.encode_ordinary(text)

    def encode_array(self, text):
        """`encode_ordinary` for large texts: an array of ids. Other threads run meanwhile."""
        return encode_to_array(self.bpe, text)

    def decode(self, ids):
        return self.bpe.decode(ids)

    def decode_bytes(self, ids):
        return self.bpe.decode_bytes(ids)

    def byte_lengths(self):
        lengths = [len(self.bpe.decode_single_token_bytes(i)) for i in range(self.n_vocab)]
        return np.array(lengths, dtype=np.int64)

    def plain(self):
        return {'kind': 'gpt2'}


class BPETokenizer(Tokenizer):
    """
    Byte-pair encoding: a text is cut into pieces by a pattern; in each piece, the two neighbours that make the token
    learned first are merged, again and again. Sennrich et al. 2016, on bytes as in GPT-2.

    Special tokens, such as <|im_start|>, are found in prompts before anything else.
    """

    def __init__(self, spec):
        """spec: as `check_bpe` describes it. Raises UserError."""
        try:
            import tiktoken
        except ImportError as e:
            raise UserError('BPE tokens need tiktoken; pip install tiktoken') from e
        special = set(spec['special'])
        self.spec = spec
        self.n_vocab = len(spec['tokens'])
        self.start = spec['start']
        self.end_id = spec.get('end_id')
        self.start_id = (*self.start, self.end_id or 0)[0]
        self.special = {spec['tokens'][i]: i for i in special}
        longest_first = sorted(self.special, key=len, reverse=True)
        self.find_special = re.compile('(' + '|'.join(map(re.escape, longest_first)) + ')') if special else None

        # What each id stands for, and what tiktoken merges: an earlier id is merged first.
        self.bytes = [b''] * self.n_vocab
        for i, token in enumerate(spec['tokens']):
            if token is not None:
                self.bytes[i] = token.encode('utf-8', 'replace') if i in special else letters_to_bytes(token)
        ranks = {self.bytes[i]: i for i, token in enumerate(spec['tokens']) if token is not None and i not in special}
        self.missing = {b for b in range(256) if bytes([b]) not in ranks}
        for b in self.missing:                        # tiktoken needs all bytes; these never reach it
            ranks[bytes([b])] = self.n_vocab + b
        try:
            self.bpe = tiktoken.Encoding('bpe', pat_str=spec['pattern'], mergeable_ranks=ranks, special_tokens={})
        except Exception as e:
            raise UserError(f"tokenizer of kind bpe with pattern {show(spec['pattern'])}: {one_line(e)}; "
                            'expected a regular expression') from e

    def encode(self, text):
        """For prompts: special tokens are found."""
        if not self.find_special:
            return self.encode_ordinary(text)
        ids = []
        for n, piece in enumerate(self.find_special.split(text)):
            ids += [self.special[piece]] if n % 2 else self.encode_ordinary(piece)
        return ids

    def encode_ordinary(self, text):
        """For training text: special tokens are text like any other."""
        text = self._normalized(text)
        with self._naming_the_pattern(text):
            if not self.missing.isdisjoint(text.encode('utf-8', 'replace')):
                return self._encode_without_missing(text)
            return self.bpe.encode_ordinary(text)

    def _normalized(self, text):
        if self.spec.get('normalizer'):
            return unicodedata.normalize(self.spec['normalizer'], text)
        return text

    @contextmanager
    def _naming_the_pattern(self, text):
        """Whatever goes wrong inside becomes a UserError about the pattern."""
        try:
            yield
        except BaseException as e:                    # a pattern that gives up is a PanicException
            if isinstance(e, Exception) or type(e).__name__ == 'PanicException':
                raise UserError(f"tokenizer of kind bpe with pattern {show(self.spec['pattern'])}: it fails on a text "
                                f'of {len(text):,} characters; use another tokenizer') from e
            raise

    def encode_array(self, text):
        """`encode_ordinary` for large texts: an array of ids. Other threads run meanwhile."""
        if self.missing:
            return np.array(self.encode_ordinary(text), dtype=np.uint32)
        with self._naming_the_pattern(text):
            return encode_to_array(self.bpe, self._normalized(text))

    def _encode_without_missing(self, text):
        """Bytes that the vocabulary lacks are left out before their neighbours are merged, as in transformers."""
        import regex  # tiktoken needs it too
        ids = []
        seconds = 10 + len(text) / 1e4                # a hostile pattern would take forever
        for piece in regex.finditer(self.spec['pattern'], text, timeout=seconds):
            left = piece.group().encode('utf-8', 'replace').translate(None, bytes(self.missing))
            if left:
                ids += self.bpe._encode_single_piece(left)
        return ids

    def decode(self, ids):
        return self.decode_bytes(ids).decode('utf-8', errors='replace')

    def decode_bytes(self, ids):
        return b''.join(self.bytes[i] for i in ids)

    def byte_lengths(self):
        return np.array([len(b) for b in self.bytes], dtype=np.int64)

    def plain(self):
        return self.spec


def encode_to_array(bpe, text):
    """The ids of a text as an array; bpe: an encoding of tiktoken, whose special tokens are treated as plain text."""
    try:
        return bpe.encode_to_numpy(text, disallowed_special=())
    except UnicodeEncodeError:                        # a lone surrogate
        return np.array(bpe.encode_ordinary(text), dtype=np.uint32)


# ---------------------------------------------------------------------------- bytes as letters

def _letters():
    """
    A printable letter for each byte, as GPT-2's files spell tokens: printable ones stand for themselves, the others
    for the letters from U+0100 on.
    """
    itself = {*range(ord('!'), ord('~') + 1), *range(ord('\xa1'), ord('\xac') + 1), *range(ord('\xae'), 256)}
    others = iter(range(256, 512))
    return [chr(b) if b in itself else chr(next(others)) for b in range(256)]


LETTERS = _letters()
BYTE_OF = {letter: b for b, letter in enumerate(LETTERS)}


def letters_to_bytes(token):
    """Raises KeyError for a letter that stands for no byte."""
    return bytes(BYTE_OF[letter] for letter in token)


def bytes_to_letters(data):
    return ''.join(LETTERS[b] for b in data)


# ---------------------------------------------------------------------------- plain data

def check_spec(spec):
    """The vocabulary size of the tokenizer `spec` describes. Raises UserError unless it is what `to_json` writes."""
    kind = spec.get('kind') if isinstance(spec, dict) else None
    if type(kind) is not str or kind not in ('byte', 'char', 'gpt2', 'bpe'):
        raise UserError(f'tokenizer {show(spec)}: expected a kind among byte, char, gpt2, bpe')
    if kind == 'bpe':
        n_vocab = check_bpe(spec)
    elif kind == 'char':
        n_vocab = check_chars(spec.get('chars'))
    else:
        n_vocab = ByteTokenizer.n_vocab if kind == 'byte' else GPT2Tokenizer.n_vocab

    def is_id(i):
        return type(i) is int and 0 <= i < n_vocab

    separator, end_id = spec.get('separator'), spec.get('end_id')
    if separator is not None and not (type(separator) is list and separator and all(map(is_id, separator))):
        raise UserError(f'tokenizer of kind {kind}: separator is {show(separator)}; expected ids below {n_vocab}')
    if end_id is not None and not is_id(end_id):
        raise UserError(f'tokenizer of kind {kind}: end_id is {show(end_id)}; expected an id below {n_vocab}')
    return n_vocab


def check_chars(chars):
    """How many tokens a tokenizer of kind char has. Raises UserError."""
    strings = type(chars) is list and chars and all(type(c) is str and c for c in chars)
    if not strings or len(set(chars)) != len(chars):
        raise UserError(f'tokenizer of kind char with chars {show(chars)}: expected a list of different strings')
    return len(chars)


def check_bpe(spec):
    """
    The vocabulary size of a tokenizer of kind bpe. Raises UserError unless it is

        tokens       in the order of ids: ordinary ones spelled with `LETTERS`, special ones as they are, None for none;
                     the order of the ordinary ones is that in which they were learned
        special      the ids of special tokens           pattern     a regular expression that finds the pieces
        start        ids that precede every prompt       normalizer  NFC, or None
        end_id       that of the end of a text, or None  chat_template   how transformers writes a dialogue, or None
    """
    def need(ok, key, expected):
        if not ok:
            raise UserError(f'tokenizer of kind bpe: {key} is {show(spec.get(key))}; expected {expected}')

    tokens = spec.get('tokens')
    need(type(tokens) is list and 0 < len(tokens) <= 2 ** 20, 'tokens', 'a list of strings')
    n = len(tokens)
    named = [token for token in tokens if token is not None]
    need(all(type(t) is str and t for t in named), 'tokens', 'strings that are not empty, or None')
    need(len(set(named)) == len(named), 'tokens', 'different strings')

    def is_id(i):
        return type(i) is int and 0 <= i < n and tokens[i] is not None

    for key in ('special', 'start'):
        ids = spec.get(key)
        need(type(ids) is list and all(map(is_id, ids)), key, f'ids of tokens, below {n}')
    need(spec.get('end_id') is None or is_id(spec['end_id']), 'end_id', f'the id of a token, below {n}, or None')
    need(type(spec.get('pattern')) is str, 'pattern', 'a regular expression')
    need(spec.get('normalizer') in (None, 'NFC'), 'normalizer', 'NFC or None')
    need(type(spec.get('chat_template')) in (str, type(None)), 'chat_template', 'a text or None')
    special = set(spec['special'])
    for key, texts in (('tokens', named), ('chat_template', [spec.get('chat_template') or ''])):
        need(not any(re.search('[\ud800-\udfff]', text) for text in texts), key, 'whole characters, no surrogates')
    for i, token in enumerate(tokens):
        if token is not None and i not in special and not all(letter in BYTE_OF for letter in token):
            raise UserError(f'tokenizer of kind bpe: token {i} is {show(token)}; expected letters that stand for bytes')
    return n


def same_tokens(a, b):
    """Do the ids of two tokenizers, as plain data, mean the same text? Only what marks pairs may differ."""
    pairs = ('separator', 'end_id')
    return {k: v for k, v in a.items() if k not in pairs} == {k: v for k, v in b.items() if k not in pairs}


def without_separator(spec):
    """The same plain data for a text, not for pairs."""
    return {key: value for key, value in spec.items() if key != 'separator'}


def build_tokenizer(spec):
    """The tokenizer that `to_json` described. Raises UserError if `spec` is not such a description."""
    check_spec(spec)
    if spec['kind'] == 'byte':
        tokenizer = ByteTokenizer()
    elif spec['kind'] == 'gpt2':
        tokenizer = GPT2Tokenizer()
    elif spec['kind'] == 'bpe':
        tokenizer = BPETokenizer(spec)
    else:
        tokenizer = CharTokenizer(spec['chars'])
    if spec.get('separator'):
        tokenizer.separator = spec['separator']
        tokenizer.end_id = spec.get('end_id', tokenizer.end_id)
    return tokenizer
