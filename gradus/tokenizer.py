"""
Text to numbers and back.

    encode('Hi') -> [72, 105]        decode([72, 105]) -> 'Hi'

Three kinds. Each is stored as plain data, {"kind": ...}, in a dataset's meta.json and inside checkpoints:

    byte   256 ids, the bytes of UTF-8: any text, nothing to learn, nothing unknown
    char   one id for each character of the training text
    gpt2   GPT-2's 50,257 byte-pair tokens, through tiktoken
"""

import numpy as np

from gradus.errors import UserError, show


class ByteTokenizer:
    n_vocab = 256
    start_id = 10                                     # what an empty prompt starts from: a newline
    end_id = None                                     # no token marks the end of a text

    def encode(self, text):
        return list(text.encode('utf-8', errors='replace'))

    encode_ordinary = encode

    def decode(self, ids):
        return bytes(ids).decode('utf-8', errors='replace')

    def decode_bytes(self, ids):
        """The text as UTF-8; the last character may be incomplete."""
        return bytes(ids)

    def byte_lengths(self):
        """How many bytes of UTF-8 each id stands for: (n_vocab,) integers."""
        return np.ones(256, dtype=np.int64)

    def to_json(self):
        return {'kind': 'byte'}


class CharTokenizer:
    end_id = None

    def __init__(self, chars):
        """`chars`: the characters in the order of their ids, as a string or a list."""
        self.chars = list(chars)
        self.ids = {c: i for i, c in enumerate(self.chars)}
        self.n_vocab = len(self.chars)
        self.start_id = self.ids.get('\n', 0)

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
                        f'{self.n_vocab} characters of the training text; leave it out or replace it')

    encode_ordinary = encode

    def decode(self, ids):
        return ''.join(self.chars[i] for i in ids)

    def decode_bytes(self, ids):
        return self.decode(ids).encode('utf-8', errors='replace')

    def byte_lengths(self):
        return np.array([len(c.encode('utf-8', errors='replace')) for c in self.chars], dtype=np.int64)

    def to_json(self):
        return {'kind': 'char', 'chars': self.chars}


class GPT2Tokenizer:
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

    def decode(self, ids):
        return self.bpe.decode(ids)

    def decode_bytes(self, ids):
        return self.bpe.decode_bytes(ids)

    def byte_lengths(self):
        lengths = [len(self.bpe.decode_single_token_bytes(i)) for i in range(self.n_vocab)]
        return np.array(lengths, dtype=np.int64)

    def to_json(self):
        return {'kind': 'gpt2'}


def check_spec(spec):
    """The vocabulary size of the tokenizer that `spec` describes. Raises UserError if `to_json` wrote no such thing."""
    kind = spec.get('kind') if isinstance(spec, dict) else None
    if type(kind) is not str or kind not in ('byte', 'char', 'gpt2'):
        raise UserError(f'tokenizer {show(spec)}: expected a kind among byte, char, gpt2')
    if kind != 'char':
        return ByteTokenizer.n_vocab if kind == 'byte' else GPT2Tokenizer.n_vocab

    chars = spec.get('chars')
    strings = type(chars) is list and chars and all(type(c) is str and c for c in chars)
    if not strings or len(set(chars)) != len(chars):
        raise UserError(f'tokenizer of kind char with chars {show(chars)}: expected a list of different strings')
    return len(chars)


def build_tokenizer(spec):
    """The tokenizer that `to_json` described. Raises UserError if `spec` is not such a description."""
    check_spec(spec)
    if spec['kind'] == 'byte':
        return ByteTokenizer()
    if spec['kind'] == 'gpt2':
        return GPT2Tokenizer()
    return CharTokenizer(spec['chars'])
