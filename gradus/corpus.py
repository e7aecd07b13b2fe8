"""
Turn text files of any size into a dataset, in two passes that hold only a few pieces of text in memory.

The first pass counts, collects the characters, and finds whatever is wrong with the files before anything is written.
The second encodes on all cores: pieces are grouped into chunks, threads encode the chunks, and the ids are written in
the order of the text.
"""

import contextlib
import functools
import hashlib
import math
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from gradus import bpe, documents, preparation
from gradus.errors import UserError
from gradus.tokenizer import CharTokenizer, build_tokenizer, without_separator

MANY = 100                                            # from this many documents on, whole documents are held out
CHUNK = 2 ** 18                                       # characters that a thread encodes at a time
MAX_CHUNK = 2 ** 20                                   # the same for text with no place to cut, which takes more memory
TRAINING_BYTES = 5 * 10 ** 7                          # train a BPE tokenizer on at most this much text


def write_text(folder, files, kind, source=None, field='text', val_fraction=0.1, vocab_size=4096):
    """
    Make a dataset from the documents in `files`. kind: the tokenizer, as char, byte, gpt2, bpe (trained on this text,
    with vocab_size tokens) or plain data; source: what meta.json says about the text, by default the names of the
    files. Raises UserError.

    val.bin gets val_fraction of the documents, evenly spread; if there are few documents, the last part of the text.
    """
    read_as = functools.partial(read, files, field, documents.total_bytes(files))
    check_fraction(val_fraction)
    if kind == 'bpe':
        bpe.check_training(vocab_size)
    elif kind != 'char':
        spec = kind if isinstance(kind, dict) else {'kind': kind}
        tokenizer = build_tokenizer(without_separator(spec))

    size = survey(read_as('reading'), with_chars=kind == 'char')
    if size.length < 100:
        raise UserError(f'{", ".join(files)}: {size.length} characters; expected at least 100 characters to train on')
    check_split(size, val_fraction)

    if kind == 'char':
        tokenizer = CharTokenizer(size.chars)
    elif kind == 'bpe':
        tokenizer = train_bpe(split(read_as('sampling'), size, val_fraction), size, vocab_size)

    parts = split(read_as('encoding'), size, val_fraction)
    with contextlib.closing(encoded(chunks(parts, tokenizer), tokenizer)) as ids:
        preparation.write(folder, ids, tokenizer, source=source or source_of(files), sha256=size.sha256)


def read(files, field, n_bytes, description):
    """All pieces of all documents, with a progress bar."""
    with tqdm(total=n_bytes, unit='B', unit_scale=True, desc=description, disable=None, leave=False) as bar:
        yield from documents.read(files, field, bar.update)


def source_of(paths):
    """What meta.json says about a dataset made from `paths`."""
    return ', '.join(paths)


# ---------------------------------------------------------------------------- the first pass

@dataclass
class Size:
    documents: int
    length: int                                       # in characters, documents joined by newlines
    bytes: int                                        # the same as UTF-8
    sha256: str                                       # of these bytes
    chars: list                                       # the different characters, sorted; empty if not asked for


def survey(pieces, with_chars=False):
    """The Size of all documents, from their pieces."""
    digest = hashlib.sha256()
    n_documents = length = n_bytes = 0
    seen = np.zeros(0x110000, dtype=bool)             # by code point
    for begins, text in pieces:
        if begins:
            n_documents += 1
        if begins and n_documents > 1:
            text = '\n' + text
        content = text.encode()
        digest.update(content)
        length += len(text)
        n_bytes += len(content)
        if with_chars:
            seen[np.frombuffer(text.encode('utf-32-le'), dtype='<u4')] = True
    chars = [chr(i) for i in np.flatnonzero(seen)]
    return Size(n_documents, length, n_bytes, digest.hexdigest(), chars)


def train_bpe(parts, size, vocab_size):
    """A tokenizer trained on the train split, or on as many pieces of it, evenly spread, as fit in memory."""
    every = math.ceil(size.bytes / TRAINING_BYTES)
    texts = (text for i, (part, _, text) in enumerate(parts) if part == 'train' and i % every == 0)
    with contextlib.closing(parts):
        spec = bpe.train(texts, vocab_size)
    if len(spec['tokens']) < vocab_size:
        print(f"the text gives {len(spec['tokens']):,} tokens, fewer than --vocab_size={vocab_size:,}")
    return build_tokenizer(spec)


# ---------------------------------------------------------------------------- train and val

def is_held_out(number, fraction):
    """Does document `number`, counted from 0, belong to val.bin? Evenly spread, and the same in every pass."""
    return math.floor((number + 1) * fraction) > math.floor(number * fraction)


def check_fraction(fraction):
    if not 0 < fraction < 1:
        raise UserError(f'--val_fraction={fraction}: expected a number between 0 and 1')


def check_split(size, fraction):
    """Raise UserError if one of the splits would be empty."""
    if size.documents >= MANY:
        held_out, total, of = math.floor(size.documents * fraction), size.documents, 'documents'
    else:
        held_out, total, of = size.length - int(size.length * (1 - fraction)), size.length, 'characters'
    if not 0 < held_out < total:
        raise UserError(f'--val_fraction={fraction}: holds out {held_out:,} of {total:,} {of}; expected some in both '
                        'parts')


def split(pieces, size, fraction):
    """
    Yield (split, begins, text) for each piece (begins, text); the split is 'train' or 'val'. Raises UserError at the
    end if the text is no longer the one that was surveyed.
    """
    cut = int(size.length * (1 - fraction))
    number = -1
    at = 0                                            # characters so far
    name = 'train'
    for begins, text in pieces:
        if begins:
            number += 1
            at += number > 0                          # the newline between two documents
        end = at + len(text)
        if size.documents >= MANY:
            if begins:
                name = 'val' if is_held_out(number, fraction) else 'train'
            yield name, begins, text
        elif at < cut < end:
            yield 'train', begins, text[:cut - at]
            yield 'val', False, text[cut - at:]
        else:
            yield 'train' if end <= cut else 'val', begins, text
        at = end
    if (number + 1, at) != (size.documents, size.length):
        raise UserError('the files changed while they were read; wait until they are complete')


# ---------------------------------------------------------------------------- chunks

class Chunk:
    """
    Texts of one split that are encoded together: pieces of documents, with None where the end-of-text id goes. For a
    tokenizer without that id, documents are joined by newlines and treated as one text.
    """

    def __init__(self, tokenizer):
        self.size = CHUNK                             # the chunk is complete from this length on
        self.cut_anywhere = not hasattr(tokenizer, 'bpe')
        if not self.cut_anywhere and tokenizer.to_json().get('pattern', bpe.GPT2) not in bpe.PATTERNS.values():
            self.size = MAX_CHUNK                     # an unknown pattern may not begin a piece where we cut
        self.separator = '\n' if tokenizer.end_id is None else None
        self.is_first = True
        self.texts = ['']
        self.length = 0
        self.searched = 0                             # no place to cut in this much of the last text

    def add(self, begins, text):
        """Add a piece; yields the lists of texts that are complete."""
        if begins and not self.is_first:
            if self.separator:
                text = self.separator + text
            else:
                if self.length >= self.size:
                    yield self.take(len(self.texts[-1]))
                self.texts += [None, '']
                self.searched = 0
        self.is_first = False
        self.texts[-1] += text
        self.length += len(text)
        if self.length >= self.size and (cut := self.place_to_cut()):
            yield self.take(cut)

    def place_to_cut(self):
        """How much of the last text can be encoded without knowing what follows; 0 if no place is known yet."""
        text = self.texts[-1]
        if self.cut_anywhere or len(text) >= MAX_CHUNK:
            return len(text)
        cut = bpe.last_cut(text, self.searched)
        self.searched = max(0, len(text) - 1)
        return cut

    def take(self, cut=None):
        """Remove and return all texts, the last one only up to `cut`."""
        last = self.texts[-1]
        texts = [*self.texts[:-1], last[:cut]]
        self.texts = [last[len(texts[-1]):]]
        self.length = len(self.texts[0])
        self.searched = 0
        return texts


def chunks(parts, tokenizer):
    """Group pieces (split, begins, text) into (split, texts to encode together)."""
    open_chunks = dict(train=Chunk(tokenizer), val=Chunk(tokenizer))
    for name, begins, text in parts:
        for texts in open_chunks[name].add(begins, text):
            yield name, texts
    for name, chunk in open_chunks.items():
        yield name, chunk.take()


# ---------------------------------------------------------------------------- encoding

def encoded(tasks, tokenizer):
    """Yield (split, ids) for each (split, texts), in the same order; one thread for each core does the encoding."""
    dtype = preparation.on_disk(preparation.dtype_for(tokenizer))
    end = np.array([tokenizer.end_id or 0], dtype=dtype)

    def encode(texts):
        arrays = [end if text is None else tokenizer.encode_array(text) for text in texts]
        return np.concatenate(arrays).astype(dtype)

    n_threads = n_cores()
    waiting = deque()
    with ThreadPoolExecutor(n_threads) as pool:
        try:
            for name, texts in tasks:
                waiting.append((name, pool.submit(encode, texts)))
                if len(waiting) > 2 * n_threads:      # bounds what is in memory
                    name, future = waiting.popleft()
                    yield name, future.result()
            while waiting:
                name, future = waiting.popleft()
                yield name, future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def n_cores():
    """How many cores this process may use."""
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
