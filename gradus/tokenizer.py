"""
Text to numbers and back.

    encode('Hi') -> [72, 105]        decode([72, 105]) -> 'Hi'

Three kinds, each of which is plain data, {"kind": ...}, in a meta.json or inside a checkpoint:

    byte   256 ids, the UTF-8 bytes: any text, nothing to learn, nothing unknown
    char   one id for each character that the training text has
    gpt2   GPT-2's 50,257 byte-pair tokens, through tiktoken
"""

import numpy as np


class TokenizerError(ValueError):
    """A tokenizer that cannot be built, or a text that it cannot encode, in one line."""


class ByteTokenizer:
    n_vocab = 256
    start_id = 10                                     # what an empty prompt starts from: a new line
    end_id = None                                     # no token means the end of a text

    def encode(self, text):
        return list(text.encode('utf-8', errors='replace'))

    def decode(self, ids):
        return bytes(ids).decode('utf-8', errors='replace')

    def decode_bytes(self, ids):
        """The text as UTF-8, of which the last character may be incomplete."""
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
    def of(cls, text):
        """The characters of `text`, sorted, as nanoGPT numbers them."""
        return cls(sorted(set(text)))

    def encode(self, text):
        try:
            return [self.ids[c] for c in text]
        except KeyError as e:
            at = text.index(e.args[0])
            raise TokenizerError(f'character {e.args[0]!r} at position {at} of the text {text[max(0, at - 10):at + 10]!r}: expected '
                                 f'one of the {self.n_vocab} characters of the training text; leave it out or replace it') from None

    def decode(self, ids):
        return ''.join(self.chars[i] for i in ids)

    def decode_bytes(self, ids):
        return self.decode(ids).encode('utf-8', errors='replace')

    def byte_lengths(self):
        return np.array([len(c.encode('utf-8', errors='replace')) for c in self.chars], dtype=np.int64)

    def to_json(self):
        return {'kind': 'char', 'chars': self.chars}


class GPT2Tokenizer:
    def __init__(self):
        try:
            import tiktoken
            self.bpe = tiktoken.get_encoding('gpt2')
        except ImportError as e:
            raise TokenizerError('GPT-2 tokens need tiktoken; pip install tiktoken') from e
        except Exception as e:                        # requests' errors, and tiktoken's for a bad cache
            raise TokenizerError("GPT-2's BPE files: not in tiktoken's cache, and the download failed "
                                 f'({type(e).__name__}); set TIKTOKEN_CACHE_DIR to a folder that holds them') from e
        self.n_vocab = self.bpe.n_vocab
        self.start_id = self.end_id = self.bpe.eot_token   # <|endoftext|>, which stands between texts

    def encode(self, text):
        """<|endoftext|> counts as the one special token that it is, as in nanoGPT's prompts."""
        return self.bpe.encode(text, allowed_special={'<|endoftext|>'})

    def encode_ordinary(self, text):
        """For training text: <|endoftext|> is text like any other."""
        return self.bpe.encode_ordinary(text)

    def decode(self, ids):
        return self.bpe.decode(ids)

    def decode_bytes(self, ids):
        return self.bpe.decode_bytes(ids)

    def byte_lengths(self):
        return np.array([len(self.bpe.decode_single_token_bytes(i)) for i in range(self.n_vocab)], dtype=np.int64)

    def to_json(self):
        return {'kind': 'gpt2'}


def from_json(data):
    """The tokenizer that `to_json` described. Raises TokenizerError if `data` is not such a description."""
    kind = data.get('kind') if isinstance(data, dict) else None
    if kind == 'byte':
        return ByteTokenizer()
    if kind == 'gpt2':
        return GPT2Tokenizer()
    if kind == 'char':
        chars = data.get('chars')
        if isinstance(chars, list) and chars and all(isinstance(c, str) and c for c in chars) and len(set(chars)) == len(chars):
            return CharTokenizer(chars)
        raise TokenizerError('tokenizer of kind char: expected "chars", a list of different strings')
    raise TokenizerError(f'tokenizer {str(data)[:60]}: expected a kind among byte, char, gpt2')
