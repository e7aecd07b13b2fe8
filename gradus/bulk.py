"""
Datasets of gigabytes: what they need, said and checked before anything is downloaded; documents that stream through
the tokenizer on all cores, in bounded memory.
"""

import math
import os
import shutil
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
from tqdm import tqdm

from gradus import preparation
from gradus.errors import UserError, one_line, printable
from gradus.files import make_folder, require_file

BATCH = 1000                                          # documents that are encoded together


# ---------------------------------------------------------------------------- what it needs

def announce(what, tokens, tokenizer, out, downloads=(), streamed=0):
    """
    Print what a dataset of about `tokens` tokens needs. Raises UserError if `out` cannot be written, or the disks
    have too little room.

    downloads: (folder, bytes) of what is stored there before; streamed: bytes that are read over the network only.
    """
    make_folder(out, preparation.ELSEWHERE)
    if not os.access(out, os.W_OK):
        raise UserError(f'{out}: cannot be written; {preparation.ELSEWHERE}')
    size = tokens * (2 if tokenizer.n_vocab <= 2 ** 16 else 4)
    stored = sum(n_bytes for _, n_bytes in downloads)

    speed = tokens_per_second(tokenizer)
    cores = f'{os.cpu_count()} core{"s" if os.cpu_count() > 1 else ""}'
    minutes = math.ceil(tokens / speed / 60)
    network = f'download {gigabytes(stored + streamed)}, ' if stored + streamed else ''
    kept = f' (and {gigabytes(stored)} of downloads)' if stored else ''
    print(f'{what}: {network}about {_number_of(tokens)} tokens, {gigabytes(size)} on disk{kept}; '
          f'about {minutes:,} min to encode on {cores} ({speed / 1e6:.1f} million tokens/s)', flush=True)
    require_space([(out, size), *downloads])


def _number_of(n):
    return f'{n / 1e9:.2f} billion' if n >= 5e7 else f'{n / 1e6:.2f} million'


def gigabytes(n):
    return f'{n / 1e9:.1f} GB' if n >= 5e7 else f'{n / 1e6:.1f} MB'


def require_space(needs):
    """Raise UserError unless there is room for all of `needs`: (folder, bytes), several of them perhaps on one disk."""
    total = {}
    for folder, n_bytes in needs:
        device = os.stat(_existing(folder)).st_dev
        total[device] = total.get(device, 0) + n_bytes
        free = shutil.disk_usage(_existing(folder)).free
        if total[device] > free:
            raise UserError(f'{folder}: {gigabytes(free)} free; expected {gigabytes(total[device])}; make room, or '
                            f'{preparation.ELSEWHERE} (for downloads from Hugging Face: HF_HOME)')


def _existing(folder):
    """The folder itself or the nearest one above it that exists."""
    folder = os.path.realpath(folder)
    while not os.path.exists(folder):
        folder = os.path.dirname(folder)
    return folder


def tokens_per_second(tokenizer):
    """How fast this machine encodes on all its cores, measured with the English of Python's own help pages."""
    from pydoc_data.topics import topics

    texts = list(topics.values()) * 4
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        began = time.perf_counter()
        n = sum(len(ids) for ids in pool.map(_encoder(tokenizer), texts))
        return n / (time.perf_counter() - began)


# ---------------------------------------------------------------------------- documents

def parquet_rows(paths, column):
    """
    How many rows the parquet files have together. Raises UserError if one is damaged, or has no text in `column`.
    """
    rows = 0
    for path in paths:
        with _opened(path) as file:
            names = file.schema_arrow.names
            if column not in names:
                listed = ', '.join(printable(name) for name in names[:12]) or 'none'
                raise UserError(f'{path}: no column {column}; found {listed}; expected the files of the dataset')
            kind = file.schema_arrow.field(column).type
            if 'string' not in str(kind):
                raise UserError(f'{path}: column {column} holds {one_line(kind, limit=60)}; expected strings')
            rows += file.metadata.num_rows
    return rows


def parquet_batches(paths, column):
    """Lists of texts from parquet files, one file after the other. Raises UserError."""
    for path in paths:
        with _opened(path) as file:
            for batch in file.iter_batches(batch_size=BATCH, columns=[column]):
                texts = batch.column(0).to_pylist()
                if None in texts:
                    raise UserError(f'{path}: a row without {column}; expected a text in each')
                yield texts


@contextmanager
def _opened(path):
    """A parquet file; whatever pyarrow raises about it becomes a UserError."""
    try:
        from pyarrow import parquet
    except ImportError as e:
        raise UserError(f'{path}: parquet files are read with pyarrow; pip install pyarrow') from e
    require_file(path)
    try:
        with parquet.ParquetFile(path) as file:
            yield file
    except UserError:
        raise
    except Exception as e:                            # its own errors, OSError, and UnicodeDecodeError
        raise UserError(f'{path}: cannot be read as parquet ({one_line(e, limit=160)}); download it again') from e


# ---------------------------------------------------------------------------- tokens

def encoded(batches, tokenizer, n, is_held_out):
    """
    (split, ids) for lists of texts: each text is a document, which ends with <|endoftext|>. is_held_out(i): does
    document i belong to val? Raises UserError at the end if these were not n documents.
    """
    end = np.array([tokenizer.start_id], dtype=np.uint32)
    i = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool, \
            tqdm(total=n, desc='encoding', unit=' documents', unit_scale=True, disable=None) as bar:
        for documents in _one_ahead(pool, _encoder(tokenizer), batches):
            parts = dict(train=[], val=[])
            for ids in documents:
                parts['val' if is_held_out(i) else 'train'] += [ids, end]
                i += 1
                bar.update()
            for split, arrays in parts.items():
                if arrays:
                    yield split, np.concatenate(arrays)
    if i != n:
        raise UserError(f'the text has {i:,} documents; expected {n:,}: it is incomplete, or another version; '
                        'nothing was written')


def _one_ahead(pool, encode, batches):
    """The results of each batch. While one is used, the next is read and encoded."""
    waiting = deque()
    for texts in batches:
        waiting.append(pool.map(encode, texts))
        if len(waiting) > 1:
            yield waiting.popleft()
    yield from waiting


def _encoder(tokenizer):
    """From a text to an array of ids, without Python's lists, so that threads do not wait for each other."""
    return lambda text: tokenizer.bpe.encode_to_numpy(text, disallowed_special=())


# SHIM, to be removed with the next preparation.write: call preparation.write(out, pieces, tokenizer, source, '') then.
def write(out, pieces, tokenizer, source):
    """Write a dataset of (split, ids), in any order."""
    val = []

    def train():
        for split, ids in pieces:
            if split == 'train':
                yield ids
            else:
                val.append(ids)

    preparation.write(out, train(), val, tokenizer, source=source, sha256='')
