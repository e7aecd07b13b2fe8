"""
Datasets of gigabytes: print and check what they need before anything is downloaded, and stream documents through the
tokenizer on all cores, in bounded memory.
"""

import math
import os
import shutil
import time

from tqdm import tqdm

from gradus import corpus, preparation
from gradus.errors import UserError
from gradus.files import make_folder

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
    size = tokens * preparation.on_disk(preparation.dtype_for(tokenizer)).itemsize
    stored = sum(n_bytes for _, n_bytes in downloads)

    speed = tokens_per_second(tokenizer)
    cores = 'one core' if corpus.n_cores() == 1 else f'{corpus.n_cores()} cores'
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

    tasks = [('train', [text]) for text in topics.values()] * 4
    began = time.perf_counter()
    n = sum(len(ids) for _, ids in corpus.encoded(tasks, tokenizer))
    return n / (time.perf_counter() - began)


# ---------------------------------------------------------------------------- tokens

def encoded(texts, tokenizer, n, is_held_out):
    """
    (split, ids) for the texts of n documents, each of which ends with <|endoftext|>. is_held_out(i): does document i
    belong to val? Raises UserError at the end if these were not n documents.
    """
    return corpus.encoded(_tasks(texts, n, is_held_out), tokenizer)


def _tasks(texts, n, is_held_out):
    """(split, texts to encode together), with None for each <|endoftext|>."""
    gathered = dict(train=[], val=[])
    length = dict(train=0, val=0)
    i = 0
    with tqdm(total=n, desc='encoding', unit=' documents', unit_scale=True, disable=None) as bar:
        for text in texts:
            split = 'val' if is_held_out(i) else 'train'
            gathered[split] += [text, None]
            length[split] += len(text)
            if length[split] >= corpus.CHUNK:
                yield split, gathered[split]
                gathered[split] = []
                length[split] = 0
            i += 1
            bar.update()
    for split, rest in gathered.items():
        if rest:
            yield split, rest
    if i != n:
        raise UserError(f'the text has {i:,} documents; expected {n:,}: it is incomplete, or another version; '
                        'nothing was written')
