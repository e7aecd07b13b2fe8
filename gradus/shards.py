"""
Datasets of many files: which files belong to a split, what their headers say, and all of them read as one sequence.

    train_000001.bin, train_000002.bin, ... and val_000000.bin    raw ids, like train.bin
    fineweb_train_000001.bin, ... and fineweb_val_000000.bin      those of llm.c and modded-nanogpt: a header, then ids

The header is 256 int32, little-endian: a magic number, a version, the number of tokens, and zeros. Missing numbers
are fine, so a part of a dataset is a dataset.
"""

import os
import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from gradus.errors import RankError, UserError, one_line, printable
from gradus.files import require_file

HEADER_BYTES = 1024
MAX_MAPPED = 64                                       # at a time: a mapping keeps its file open, and systems limit that

TWO_BYTES = np.dtype('<u2')
FOUR_BYTES = np.dtype('<u4')
LLAMA3_VOCAB = 128_256
QUESTIONS = 20240522                                  # llm.c's multiple-choice tests, such as hellaswag_val.bin


@dataclass(frozen=True)
class Format:
    """What one of llm.c's magic numbers means."""
    version: int
    dtype: np.dtype
    tokens: str                                       # whose tokens they are


# As ids, all of these numbers lie beyond the vocabulary (the first two bytes of 20240520 are 55,432, GPT-2 has 50,257),
# so that a raw file cannot be taken for one with a header.
FORMATS = {
    20240520: Format(1, TWO_BYTES, 'GPT-2'),
    20240801: Format(7, FOUR_BYTES, 'Llama 3'),
}


# ---------------------------------------------------------------------------- which files

def file_names(folder, split):
    """
    The names of the files that hold `split` (train or val), in the order of their tokens; train.bin if there are none.
    A folder with train.bin is read as always, whatever shards lie beside it. The same goes for val.bin.
    """
    plain = f'{split}.bin'
    if os.path.lexists(os.path.join(folder, plain)):
        return [plain]
    try:
        entries = os.listdir(folder)
    except (OSError, ValueError):                     # the caller will say what is wrong with the folder
        return [plain]
    found = []
    for name in entries:
        if match := re.fullmatch(rf'(|.+_){split}(?:_([0-9]+))?\.bin', name):
            prefix, number = match.groups()
            found.append((prefix, int(number or 0), name))                      # 10 comes after 9, also without zeros
    return [name for _, _, name in sorted(found)] or [plain]


def missing_split(folder, split):
    """An error message for a folder that has shards, but none of `split`; None if it has none at all."""
    other = 'val' if split == 'train' else 'train'
    names = file_names(folder, other)
    if names == [f'{other}.bin']:
        return None
    expected = re.sub(rf'{other}(_[0-9]+)?\.bin$', f'{split}*.bin', names[0])
    return (f'{folder}: {_listed(names)}, but no file of {split}; expected {printable(expected)} beside it; '
            'download or copy that, too')


def _listed(names):
    """Names from a folder, shortened."""
    more = f' and {len(names) - 1:,} more' if len(names) > 1 else ''
    return printable(names[0]) + more


def format_of(folder):
    """The `Format` of the first train file if it is a shard with a header, else None. Raises UserError."""
    first = file_names(folder, 'train')[0]
    if first == 'train.bin':
        return None
    return _read_header(os.path.join(folder, first))[0]


# ---------------------------------------------------------------------------- headers

def _read_header(path):
    """The `Format` of a file and the number of tokens that its header claims; (None, None) without a header."""
    require_file(path)
    try:
        with open(path, 'rb') as f:
            content = f.read(HEADER_BYTES).ljust(12, b'\0')
    except OSError as e:
        raise UserError(f'{path}: cannot be read ({e.strerror})') from e
    magic, version, count = (int(value) for value in np.frombuffer(content, '<i4', count=3))
    if magic == QUESTIONS:
        raise UserError(f"{path}: llm.c's multiple-choice questions; expected tokens to train on; "
                        'move it to another folder')
    if magic not in FORMATS:
        return None, None
    found = FORMATS[magic]
    if version != found.version:
        raise UserError(f'{path}: header of version {version} for {found.tokens} tokens; expected version '
                        f'{found.version}; write or download it again in that format')
    return found, count


def _count_tokens(path, dtype):
    """The number of tokens in a shard, and at which byte they begin. Raises UserError if it is not complete."""
    form, claimed = _read_header(path)
    if form is not None and form.dtype != dtype:
        raise UserError(f'{path}: {form.tokens} tokens, {form.dtype.name}; expected {dtype.name}, as meta.json or the '
                        'first train file says; keep each dataset in its own folder')
    first = HEADER_BYTES if form else 0
    size = max(0, os.path.getsize(path) - first)
    count, rest = divmod(size, dtype.itemsize)

    if form is not None and (rest or count != claimed):
        raise UserError(f'{path}: {size:,} bytes of tokens; expected {claimed:,} tokens of {dtype.itemsize} bytes, '
                        'as its header says: an incomplete download? download it again')
    if rest:
        raise UserError(f'{path}: {size:,} bytes; expected a multiple of {dtype.itemsize} ({dtype.name}); '
                        'prepare it again')
    if not count:
        raise UserError(f'{path}: no tokens; expected at least one; prepare or download it again')
    return count, first


# ---------------------------------------------------------------------------- one sequence

class Shards:
    """
    The tokens of several files as one array, for len() and for indexing with an array of positions from 0 on.

    Opening looks at sizes and headers alone. A file is memory-mapped when one of its tokens is first asked for.
    """

    def __init__(self, paths, dtype):
        """Raises UserError if a file is damaged, incomplete, or of another dtype."""
        self.paths = paths
        self.dtype = dtype
        counts_and_offsets = [_count_tokens(path, dtype) for path in paths]
        self.counts = [count for count, _ in counts_and_offsets]
        self.offsets = [offset for _, offset in counts_and_offsets]
        self.ends = np.cumsum(self.counts)            # the position after the last token of each file
        self.mapped = lru_cache(MAX_MAPPED)(self._map)

    def __len__(self):
        return int(self.ends[-1])

    def __getitem__(self, positions):
        """The ids at `positions`, an integer array of any shape."""
        ids = np.empty(positions.shape, self.dtype)
        which = np.searchsorted(self.ends, positions, side='right')             # the file of each position
        for i in np.unique(which):
            here = which == i
            ids[here] = self.mapped(int(i))[positions[here] - (self.ends[i] - self.counts[i])]
        return ids

    def _map(self, i):
        """The ids of file i. RankError: during training, one process may be the only one to meet it."""
        path = self.paths[i]
        try:
            return np.memmap(path, dtype=self.dtype, mode='r', offset=self.offsets[i], shape=(self.counts[i],))
        except (OSError, ValueError) as e:
            raise RankError(f'{path}: cannot be read ({getattr(e, "strerror", None) or one_line(e)})') from e

    def path_of(self, position):
        """The file that holds the token at `position`."""
        return self.paths[int(np.searchsorted(self.ends, position, side='right'))]

    def __str__(self):
        """What errors call the whole sequence."""
        folder, first = os.path.split(self.paths[0])
        return os.path.join(folder, _listed([first, *self.paths[1:]]))
