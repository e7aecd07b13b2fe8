"""
Token files: write them, read them, cut batches out of them.

    data/<name>/train.bin, val.bin    raw little-endian uint16 ids (uint32 if meta.json says so), nothing else
    data/<name>/meta.json             tokenizer, vocabulary size, dtype, token counts, source and its sha256

nanoGPT's folders (meta.pkl, or no meta at all for GPT-2 tokens) are read as they are.
Which tokens step i trains on depends on (seed, i) alone; see `batch_starts`.
"""

import gzip
import hashlib
import io
import json
import math
import os
import pickle
import re
import subprocess
import sys
import urllib.request
import zlib
from contextlib import contextmanager

import numpy as np
import torch

ORDERS = ('random', 'shuffled')


class DataError(ValueError):
    """A dataset that is missing, damaged or does not fit, in one line."""


# ---------------------------------------------------------------------------- writing

def read_text(path):
    """The text of a UTF-8 file as it stands, line ends untouched. Raises DataError."""
    try:
        with open(path, encoding='utf-8', newline='') as f:
            return f.read()
    except UnicodeDecodeError as e:
        raise DataError(f'{path}: not UTF-8 text (byte {e.start}); convert it first') from e
    except OSError as e:
        raise DataError(f'{path}: {e.strerror}; expected a text file') from e


def download(url, sha256, path):
    """Fetch url into the file `path`, unless it is there; either way its sha256 must be right. Raises DataError."""
    if not os.path.exists(path):
        try:
            with urllib.request.urlopen(url, timeout=60) as response:
                content = response.read()
        except OSError as e:
            raise DataError(f'{url}: download failed ({e}); fetch it elsewhere and give it with --input FILE') from e
        with replacing(path) as f:
            f.write(content)
    with open(path, 'rb') as f:
        found = hashlib.sha256(f.read()).hexdigest()
    if found != sha256:
        raise DataError(f'{path}: sha256 {found[:12]}..., expected {sha256[:12]}...; delete the file to download it again')
    return path


def write(folder, train, val, tokenizer, source, sha256):
    """
    Write train.bin, val.bin and meta.json into `folder`, each complete or not at all.

    train, val: iterables of chunks, each a sequence of ids ([ids] if there is one only); tokenizer: one of
    tokenizer.py's; source: what the ids were made from, in words; sha256: of that text, in hexadecimal.
    """
    dtype = 'uint16' if tokenizer.n_vocab <= 2 ** 16 else 'uint32'
    counts = {}
    os.makedirs(folder, exist_ok=True)
    for name, chunks in (('train', train), ('val', val)):
        with replacing(os.path.join(folder, f'{name}.bin')) as f:
            for ids in chunks:
                f.write(np.asarray(ids, dtype=np.dtype(dtype).newbyteorder('<')).tobytes())
            counts[name] = f.tell() // np.dtype(dtype).itemsize
    meta = dict(tokenizer=tokenizer.to_json(), vocab_size=tokenizer.n_vocab, dtype=dtype,
                train_tokens=counts['train'], val_tokens=counts['val'], source=source, sha256=sha256)
    with replacing(os.path.join(folder, 'meta.json')) as f:
        f.write((json.dumps(meta, indent=1) + '\n').encode())
    print(f"{folder}: train has {counts['train']:,} tokens, val has {counts['val']:,} tokens, vocabulary {tokenizer.n_vocab:,}")


def prepare(folder, name):
    """
    Make sure that `folder` has the file `name`: a small dataset, one whose prepare.py says AUTOMATIC = True, is prepared on
    the spot. Raises DataError for the others, which stay the user's decision, and where that fails.
    """
    script = os.path.join(folder, 'prepare.py')
    if os.path.exists(os.path.join(folder, name)) or not os.path.exists(script):
        return
    if not re.search(r'^AUTOMATIC = True', read_text(script), flags=re.MULTILINE):
        raise DataError(f'{folder}: no {name}; prepare the dataset first: python {script}')
    print(f'preparing {folder} ...')
    if subprocess.run([sys.executable, script]).returncode:
        raise DataError(f'{folder}: could not be prepared, see above; python {script} --help tells how to use a copy of the files')


@contextmanager
def replacing(path):
    """A file to write to that takes the place of `path` once it is complete: a broken write leaves the old one."""
    with open(path + '.tmp', 'wb') as f:
        yield f
    os.replace(path + '.tmp', path)


# ---------------------------------------------------------------------------- reading

class _PlainUnpickler(pickle.Unpickler):
    """Numbers, strings, lists and dictionaries need no class; whatever does could run code."""

    def find_class(self, module, name):
        raise pickle.UnpicklingError(f'it asks for {module}.{name}')


def read_meta(folder):
    """
    What the ids of `folder` mean: {'vocab_size', 'dtype', 'tokenizer'} from meta.json, else from nanoGPT's
    meta.pkl (read without executing anything), else GPT-2's as nanoGPT assumes. Raises DataError.
    """
    if not os.path.isdir(folder):
        parent = os.path.dirname(folder)
        here = sorted(d for d in os.listdir(parent) if os.path.isdir(os.path.join(parent, d))) if os.path.isdir(parent) else []
        raise DataError(f"{folder}: no such dataset; expected a folder with train.bin and val.bin (here: {', '.join(here) or 'none'})")
    path = os.path.join(folder, 'meta.json')
    if os.path.exists(path):
        try:
            with open(path, encoding='utf-8') as f:
                meta = json.load(f)
            sizes = meta['vocab_size'], np.dtype({'uint16': '<u2', 'uint32': '<u4'}[meta['dtype']])
            if not (type(sizes[0]) is int and 0 < sizes[0] <= 2 ** 32 and isinstance(meta['tokenizer'], dict)):
                raise TypeError('vocab_size or tokenizer of the wrong type')
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
            raise DataError(f'{path}: expected vocab_size, dtype (uint16 or uint32) and tokenizer, '
                            f'found {type(e).__name__}: {e}; prepare the dataset again') from e
        return dict(vocab_size=sizes[0], dtype=sizes[1], tokenizer=meta['tokenizer'])
    path = os.path.join(folder, 'meta.pkl')
    if os.path.exists(path):
        try:
            with open(path, 'rb') as f:
                meta = _PlainUnpickler(io.BytesIO(f.read())).load()
            itos = meta['itos']
            chars = [itos[i] for i in range(len(itos))]
            if type(meta['vocab_size']) is not int or meta['vocab_size'] < len(chars):
                raise TypeError(f'vocab_size {meta["vocab_size"]!r} for {len(chars)} characters')
        except Exception as e:                        # a pickle of someone else's can fail in any way
            raise DataError(f"{path}: expected nanoGPT's plain dictionary of vocab_size, itos, stoi; refused: {e}") from e
        return dict(vocab_size=meta['vocab_size'], dtype=np.dtype('<u2'), tokenizer={'kind': 'char', 'chars': chars})
    return dict(vocab_size=50304, dtype=np.dtype('<u2'), tokenizer={'kind': 'gpt2'})


def read_idx(path):
    """
    The uint8 array in a file of MNIST's format: two zero bytes, type 8, the number of dimensions, each size as four
    bytes, the most significant first, then the values; gzipped or not. Raises DataError.
    """
    try:
        with open(path, 'rb') as f:
            content = f.read()
        if content[:2] == b'\x1f\x8b':
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as e:
        raise DataError(f'{path}: cannot be read ({e}); expected one of the four files of MNIST') from e
    if content[:4] not in (b'\0\0\x08\1', b'\0\0\x08\3') or len(content) < 4 + 4 * content[3]:
        raise DataError(f'{path}: begins with {content[:4].hex()}; expected 00000801 (labels) or 00000803 (images), an idx file of bytes')
    dimensions = content[3]
    shape = np.frombuffer(content, '>u4', dimensions, offset=4).tolist()
    found = len(content) - 4 - 4 * dimensions
    if found != math.prod(shape) or not found:
        raise DataError(f"{path}: {found:,} values; expected {' x '.join(map(str, shape))} = {math.prod(shape):,}: the file is truncated or too long")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape).copy()


class Tokens:
    """One .bin file, mapped into memory: opening costs nothing, however long it is."""

    epoch = None                                      # the shuffled epoch asked for last: ((seed, number), starts)

    def __init__(self, path, dtype, vocab_size, block_size):
        """Raises DataError if the file is missing, damaged, or too short for one window of block_size + 1 ids."""
        self.path, self.vocab_size, self.block_size = path, vocab_size, block_size
        if not os.path.exists(path):
            raise DataError(f'{path}: not found; prepare the dataset first: python {os.path.join(os.path.dirname(path), "prepare.py")}')
        size = os.path.getsize(path)
        if size % dtype.itemsize:
            raise DataError(f'{path}: {size:,} bytes; expected a multiple of {dtype.itemsize} ({dtype.name}); prepare it again')
        if size // dtype.itemsize < block_size + 1:
            raise DataError(f'{path}: {size // dtype.itemsize:,} tokens; expected at least block_size + 1 = {block_size + 1:,}; '
                            'use more text or a smaller --block_size')
        self.ids = np.memmap(path, dtype=dtype, mode='r')
        self._check(self.ids[:2 ** 26])               # enough to notice a mix-up at once; windows() sees the rest

    @classmethod
    def of(cls, ids, vocab_size, block_size, path='text'):
        """The same for a list of ids, of any length, that is not in a file of its own; `path` is what errors call it."""
        tokens = cls.__new__(cls)
        tokens.path, tokens.vocab_size, tokens.block_size, tokens.ids = path, vocab_size, block_size, np.asarray(ids)
        return tokens

    def __len__(self):
        return len(self.ids)

    def _check(self, ids):
        if ids.max() >= self.vocab_size:
            raise DataError(f'{self.path}: token id {ids.max()}; expected ids below the vocabulary size {self.vocab_size}; '
                            'prepare the dataset and its meta file together')

    def windows(self, starts):
        """
        Inputs and targets (n, T) int64, one window for each of the n starts: y is x one token later.
        Beyond the end of the file x is 0 and y is -1, which the loss ignores.
        """
        at = np.asarray(starts, dtype=np.int64)[:, None] + np.arange(self.block_size + 1)   # (n, T + 1)
        past_end = at >= len(self.ids)
        block = self.ids[np.minimum(at, len(self.ids) - 1)]
        self._check(block)
        block = torch.from_numpy(block.astype(np.int64))
        x, y = block[:, :-1].contiguous(), block[:, 1:].contiguous()
        if past_end.any():
            x[torch.from_numpy(past_end[:, :-1])] = 0
            y[torch.from_numpy(past_end[:, 1:])] = -1
        return x, y

    def batch_starts(self, seed, step, n, order='random'):
        """
        Where the n windows of step `step` begin: random, and a function of (seed, step) alone, so that a
        resumed run, or one on more processes, sees what the first run saw.

        random: anywhere, each time anew, as nanoGPT.  shuffled: epoch by epoch the text is cut into windows, from a random
        first token on, and dealt out like a deck of cards: nothing comes twice before everything came once.
        """
        if order == 'shuffled':
            each = (len(self.ids) - self.block_size) // self.block_size or 1    # windows in an epoch
            places = range(step * n, step * n + n)
            return np.array([self._epoch(seed, place // each, each)[place % each] for place in places])
        # Philox counts its own draws in the lowest of the four counter words. The step belongs into a higher
        # one: in the lowest, step i + 1 would repeat most of step i's numbers.
        random = np.random.Generator(np.random.Philox(key=seed, counter=[0, step, 0, 0]))
        return random.integers(0, len(self.ids) - self.block_size, size=n)

    def _epoch(self, seed, epoch, n):
        """The starts of epoch `epoch`, shuffled; the last one asked for is kept."""
        if self.epoch is None or self.epoch[0] != (seed, epoch):
            random = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 1, epoch]))
            first = random.integers(0, len(self.ids) - n * self.block_size)
            self.epoch = (seed, epoch), first + random.permutation(n) * self.block_size
        return self.epoch[1]

    def eval_starts(self, n):
        """
        Windows to measure a loss on, the same at every call: n of the non-overlapping windows, evenly
        spread over the file; all of them (the last one may be shorter) if n is 0 or more than there are.
        """
        whole = -(-(len(self.ids) - 1) // self.block_size)
        n = min(n, whole) or whole
        return (np.arange(n) * whole // n) * self.block_size
