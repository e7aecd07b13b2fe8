"""
Token files: write them, read them, cut batches out of them.

    data/<name>/train.bin, val.bin    raw little-endian uint16 ids (uint32 if meta.json says so), nothing else
    data/<name>/meta.json             tokenizer, vocabulary size, dtype, token counts, source and its sha256

nanoGPT's folders (with meta.pkl, or without any meta file for GPT-2 tokens) are read as they are.
Which tokens step i trains on depends on (seed, i) alone; see `Tokens.batch_starts`.
"""

import hashlib
import io
import json
import os
import pickle
import re
import subprocess
import sys
import urllib.request
from dataclasses import dataclass

import numpy as np
import torch

from gradus.errors import UserError, warn
from gradus.files import atomic_write
from gradus.tokenizer import CharTokenizer, build_tokenizer

ORDERS = ('random', 'shuffled')


# ---------------------------------------------------------------------------- writing

def read_text(path):
    """The text of a UTF-8 file, line endings untouched. Raises UserError."""
    try:
        with open(path, encoding='utf-8', newline='') as f:
            return f.read()
    except UnicodeDecodeError as e:
        raise UserError(f'{path}: not UTF-8 text (byte {e.start}); convert it first') from e
    except OSError as e:
        raise UserError(f'{path}: {e.strerror}; expected a text file') from e


def download(url, sha256, path):
    """Download url to the file `path`, unless it exists; either way its sha256 must match. Raises UserError."""
    if not os.path.exists(path):
        try:
            with urllib.request.urlopen(url, timeout=60) as response:
                content = response.read()
        except OSError as e:
            raise UserError(f'{url}: download failed ({e}); download it elsewhere and pass it with --input FILE') from e
        with atomic_write(path) as f:
            f.write(content)
    with open(path, 'rb') as f:
        found = hashlib.sha256(f.read()).hexdigest()
    if found != sha256:
        raise UserError(f'{path}: sha256 {found[:12]}..., expected {sha256[:12]}...; '
                        'delete the file to download it again')
    return path


def write(folder, train, val, tokenizer, source, sha256):
    """
    Write train.bin, val.bin and meta.json into `folder`, each complete or not at all.

    train, val: iterables of chunks, each a sequence of ids ([ids] if there is only one); tokenizer: one of
    tokenizer.py's; source: what the ids were made from, in words; sha256: of that text, in hexadecimal.
    """
    dtype = 'uint16' if tokenizer.n_vocab <= 2 ** 16 else 'uint32'
    on_disk = np.dtype(dtype).newbyteorder('<')
    counts = {}
    os.makedirs(folder, exist_ok=True)
    for name, chunks in (('train', train), ('val', val)):
        with atomic_write(os.path.join(folder, f'{name}.bin')) as f:
            for ids in chunks:
                f.write(np.asarray(ids, dtype=on_disk).tobytes())
            counts[name] = f.tell() // on_disk.itemsize

    meta = dict(tokenizer=tokenizer.to_json(), vocab_size=tokenizer.n_vocab, dtype=dtype,
                train_tokens=counts['train'], val_tokens=counts['val'], source=source, sha256=sha256)
    with atomic_write(os.path.join(folder, 'meta.json')) as f:
        f.write((json.dumps(meta, indent=1) + '\n').encode())
    print(f"{folder}: train has {counts['train']:,} tokens, val has {counts['val']:,} tokens, "
          f'vocabulary {tokenizer.n_vocab:,}')


def write_text(folder, paths, kind):
    """
    Make a dataset of UTF-8 text files, one after the other, for a tokenizer of `kind` (char, byte, gpt2); the last
    tenth of the text becomes val.bin. Raises UserError.
    """
    text = '\n'.join(read_text(path) for path in paths)
    if len(text) < 100:
        raise UserError(f'{", ".join(paths)}: {len(text)} characters; expected at least 100 characters to train on')
    tokenizer = CharTokenizer.from_text(text) if kind == 'char' else build_tokenizer({'kind': kind})
    cut = int(len(text) * 0.9)
    train = tokenizer.encode_ordinary(text[:cut])
    val = tokenizer.encode_ordinary(text[cut:])
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    write(folder, [train], [val], tokenizer, source=', '.join(paths), sha256=sha256)


def prepare(folder, name):
    """
    Make sure that `folder` has the file `name`. A small dataset, whose prepare.py says AUTOMATIC = True, is prepared on
    the spot. Raises UserError for others, which the user has to start, and if preparing fails.
    """
    script = os.path.join(folder, 'prepare.py')
    if os.path.exists(os.path.join(folder, name)) or not os.path.exists(script):
        return
    if not re.search(r'^AUTOMATIC = True', read_text(script), flags=re.MULTILINE):
        raise UserError(f'{folder}: no {name}; prepare the dataset first: python {script}')
    print(f'preparing {folder} ...')
    if subprocess.run([sys.executable, script]).returncode:
        raise UserError(f'{folder}: could not be prepared, see above; '
                        f'python {script} --help tells how to use a copy of the files')


# ---------------------------------------------------------------------------- reading

class _PlainUnpickler(pickle.Unpickler):
    """Numbers, strings, lists and dictionaries need no class; whatever needs one could run code."""

    def find_class(self, module, name):
        raise pickle.UnpicklingError(f'it asks for {module}.{name}')


def read_meta(folder):
    """
    What the ids of `folder` mean: {'vocab_size', 'dtype', 'tokenizer'} from meta.json, else from nanoGPT's
    meta.pkl (read without executing anything), else GPT-2's, as nanoGPT assumes. Raises UserError.
    """
    if not os.path.isdir(folder):
        parent = os.path.dirname(folder)
        names = os.listdir(parent) if os.path.isdir(parent) else []
        datasets = sorted(name for name in names if os.path.isdir(os.path.join(parent, name)))
        raise UserError(f'{folder}: no such dataset; expected a folder with train.bin and val.bin '
                        f"(here: {', '.join(datasets) or 'none'})")
    path = os.path.join(folder, 'meta.json')
    if os.path.exists(path):
        return _read_meta_json(path)
    path = os.path.join(folder, 'meta.pkl')
    if os.path.exists(path):
        return _read_meta_pkl(path)
    return dict(vocab_size=50304, dtype=np.dtype('<u2'), tokenizer={'kind': 'gpt2'})


def _read_meta_json(path):
    try:
        with open(path, encoding='utf-8') as f:
            meta = json.load(f)
        vocab_size = meta['vocab_size']
        tokenizer = meta['tokenizer']
        dtype = np.dtype({'uint16': '<u2', 'uint32': '<u4'}[meta['dtype']])
        if not (type(vocab_size) is int and 0 < vocab_size <= 2 ** 32 and isinstance(tokenizer, dict)):
            raise TypeError('vocab_size or tokenizer of the wrong type')
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
        raise UserError(f'{path}: expected vocab_size, dtype (uint16 or uint32) and tokenizer, '
                        f'found {type(e).__name__}: {e}; prepare the dataset again') from e
    return dict(vocab_size=vocab_size, dtype=dtype, tokenizer=tokenizer)


def _read_meta_pkl(path):
    try:
        with open(path, 'rb') as f:
            meta = _PlainUnpickler(io.BytesIO(f.read())).load()
        vocab_size = meta['vocab_size']
        itos = meta['itos']
        chars = [itos[i] for i in range(len(itos))]
        if type(vocab_size) is not int or vocab_size < len(chars):
            raise TypeError(f'vocab_size {vocab_size!r} for {len(chars)} characters')
    except Exception as e:                            # a foreign pickle can fail in any way
        raise UserError(f"{path}: expected nanoGPT's plain dictionary of vocab_size, itos, stoi; refused: {e}") from e
    return dict(vocab_size=vocab_size, dtype=np.dtype('<u2'), tokenizer={'kind': 'char', 'chars': chars})


class Tokens:
    """One .bin file, memory-mapped, so that a file larger than memory is no problem."""

    def __init__(self, path, dtype, vocab_size, block_size):
        """Raises UserError if the file is missing, damaged, or too short for one window of block_size + 1 ids."""
        if not os.path.exists(path):
            script = os.path.join(os.path.dirname(path), 'prepare.py')
            raise UserError(f'{path}: not found; prepare the dataset first: python {script}')
        size = os.path.getsize(path)
        if size % dtype.itemsize:
            raise UserError(f'{path}: {size:,} bytes; expected a multiple of {dtype.itemsize} ({dtype.name}); '
                            'prepare it again')
        if size // dtype.itemsize < block_size + 1:
            raise UserError(f'{path}: {size // dtype.itemsize:,} tokens; expected at least '
                            f'block_size + 1 = {block_size + 1:,}; use more text or a smaller --block_size')
        self._init(np.memmap(path, dtype=dtype, mode='r'), vocab_size, block_size, path)
        self._check(self.ids[:2 ** 26])               # enough to notice a mix-up at once; windows() checks the rest

    @classmethod
    def from_ids(cls, ids, vocab_size, block_size, path='text'):
        """The same for a list of ids of any length that is not in a file; errors call it `path`."""
        tokens = cls.__new__(cls)
        tokens._init(np.asarray(ids), vocab_size, block_size, path)
        return tokens

    def _init(self, ids, vocab_size, block_size, path):
        self.ids = ids
        self.vocab_size = vocab_size
        self.block_size = block_size
        self.path = path
        self.epoch_key = None                         # (seed, epoch) of the shuffled epoch in use, and its starts
        self.epoch_starts = None

    def __len__(self):
        return len(self.ids)

    def _check(self, ids):
        if ids.max() >= self.vocab_size:
            raise UserError(f'{self.path}: token id {ids.max()}; expected ids below the vocabulary size '
                            f'{self.vocab_size}; prepare the dataset and its meta file together')

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
        x = block[:, :-1].contiguous()                                          # (n, T)
        y = block[:, 1:].contiguous()                                           # (n, T)
        if past_end.any():
            x[torch.from_numpy(past_end[:, :-1])] = 0
            y[torch.from_numpy(past_end[:, 1:])] = -1
        return x, y

    def batch_starts(self, seed, step, n, order='random'):
        """
        Where the n windows of step `step` begin: random, but a function of (seed, step) alone, so that a resumed run,
        or one on more processes, sees what the first run saw.

        random: anywhere in the text, independently each time, as in nanoGPT.  shuffled: each epoch cuts the text into
        non-overlapping windows, from a random first token on, and visits each window once, in random order.
        """
        if order == 'shuffled':
            per_epoch = (len(self.ids) - self.block_size) // self.block_size or 1
            starts = []
            for i in range(step * n, step * n + n):
                epoch, position = divmod(i, per_epoch)
                starts.append(self._epoch(seed, epoch, per_epoch)[position])
            return np.array(starts)
        # Philox counts its own draws in the lowest of the four counter words. The step belongs in a higher
        # one: in the lowest, step i + 1 would repeat most of step i's numbers.
        random = np.random.Generator(np.random.Philox(key=seed, counter=[0, step, 0, 0]))
        return random.integers(0, len(self.ids) - self.block_size, size=n)

    def _epoch(self, seed, epoch, n):
        """The n shuffled starts of epoch `epoch`; the last epoch asked for is cached."""
        if self.epoch_key != (seed, epoch):
            random = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 1, epoch]))
            first = random.integers(0, len(self.ids) - n * self.block_size)
            self.epoch_key = seed, epoch
            self.epoch_starts = first + random.permutation(n) * self.block_size
        return self.epoch_starts

    def eval_starts(self, n):
        """
        Windows to measure a loss on, the same at every call: n of the non-overlapping windows, evenly spread over
        the file; all of them (the last may be shorter) if n is 0 or more than there are.
        """
        total = -(-(len(self.ids) - 1) // self.block_size)
        n = min(n, total) or total
        return (np.arange(n) * total // n) * self.block_size


@dataclass
class Dataset:
    """A folder of data/, opened for a model."""
    train: Tokens
    val: Tokens
    tokenizer: object                     # None if GPT-2's files are missing
    tokenizer_spec: dict                  # the same as plain data
    byte_lengths: torch.Tensor | None     # (V,): how many bytes each id stands for; 0 for ids that pad the vocabulary


def open_dataset(folder, meta, vocab_size, block_size):
    """
    The `Dataset` in `folder`, which `read_meta` described as `meta`, for a model of that vocabulary and context.
    Raises UserError if its files do not fit.
    """
    train = Tokens(os.path.join(folder, 'train.bin'), meta['dtype'], vocab_size, block_size)
    val = Tokens(os.path.join(folder, 'val.bin'), meta['dtype'], vocab_size, block_size)
    try:
        tokenizer = build_tokenizer(meta['tokenizer'])
    except UserError as e:
        if meta['tokenizer'].get('kind') != 'gpt2':
            raise
        warn(f'{e}; training without it: no bits per byte, no samples')
        return Dataset(train, val, None, meta['tokenizer'], None)
    if tokenizer.n_vocab > vocab_size:
        raise UserError(f'{folder}: a tokenizer of {tokenizer.n_vocab} tokens for a model of {vocab_size}; '
                        'expected the dataset that the model was trained on, or --init_from=scratch')
    lengths = torch.from_numpy(tokenizer.byte_lengths())
    byte_lengths = torch.nn.functional.pad(lengths, (0, vocab_size - len(lengths)))
    return Dataset(train, val, tokenizer, meta['tokenizer'], byte_lengths)
