"""
What the ids in a dataset's folder mean: its meta.json, nanoGPT's meta.pkl, or, without either, GPT-2's tokens.

These files may come from anywhere: nothing in them is run, and each value is checked before it is used.
"""

import hashlib
import json
import os

from gradus import shards, unpickle
from gradus.errors import UserError, one_line, printable, show
from gradus.files import require_file
from gradus.shards import FOUR_BYTES, TWO_BYTES
from gradus.tokenizer import check_spec

MAX_VOCAB = 2 ** 20                                   # as in GPTConfig
MAX_BYTES = 2 ** 28                                   # of a meta file: far more than a list of all characters needs
DTYPES = {'uint16': TWO_BYTES, 'uint32': FOUR_BYTES}


def read_meta(folder):
    """
    What the ids of `folder` mean: {'vocab_size', 'dtype', 'tokenizer'} from meta.json, else from nanoGPT's meta.pkl,
    else GPT-2's, as nanoGPT assumes, unless the header of a shard says that they are Llama 3's; from meta.json also
    'source' and the counts 'train_tokens', 'val_tokens', 'train_pairs', 'val_pairs', None if missing.
    If it is not known which text an id is, 'tokenizer' is None, and 'no_tokenizer' a sentence that says why.
    Raises UserError.
    """
    if not os.path.isdir(folder):
        raise UserError(_no_such_dataset(folder))
    path = os.path.join(folder, 'meta.json')
    if os.path.lexists(path):
        return _read_meta_json(path)
    path = os.path.join(folder, 'meta.pkl')
    if os.path.lexists(path):
        return _read_meta_pkl(path)
    form = shards.format_of(folder)
    if form is not None and form.dtype == FOUR_BYTES:
        return dict(vocab_size=shards.LLAMA3_VOCAB, dtype=FOUR_BYTES, tokenizer=None,
                    no_tokenizer=f'{folder}: {form.tokens} tokens, without their tokenizer; no text can be shown')
    return dict(vocab_size=50304, dtype=TWO_BYTES, tokenizer={'kind': 'gpt2'})


def fingerprint(folder):
    """
    A sha256 that another dataset in `folder` would change: of its meta file and the names and sizes of its token files,
    so that it costs no time. Raises UserError.
    """
    digest = hashlib.sha256()
    for name in ('meta.json', 'meta.pkl'):
        path = os.path.join(folder, name)
        if os.path.lexists(path):
            digest.update(_content(path))
            break
    for split in ('train', 'val'):
        for name in shards.file_names(folder, split):
            path = os.path.join(folder, name)
            require_file(path)
            digest.update(os.fsencode(f' {name} {os.path.getsize(path)}'))
    return digest.hexdigest()


def _content(path):
    require_file(path)
    if os.path.getsize(path) > MAX_BYTES:
        raise UserError(f'{path}: more than {MAX_BYTES:,} bytes; expected a small file; prepare the dataset again')
    try:
        with open(path, 'rb') as f:
            return f.read()
    except OSError as e:
        raise UserError(f'{path}: cannot be read ({e.strerror})') from e


# ---------------------------------------------------------------------------- meta.json

def _read_meta_json(path):
    try:
        meta = json.loads(_content(path))
    except (ValueError, RecursionError) as e:
        raise UserError(f'{path}: not JSON ({one_line(e, limit=100)}); prepare the dataset again') from e
    if type(meta) is not dict:
        raise UserError(f'{path}: holds {show(meta)}; expected an object; prepare the dataset again')

    # What must be there.
    vocab_size = _vocab_size(path, meta)
    dtype = meta.get('dtype')
    if type(dtype) is not str or dtype not in DTYPES:
        raise _wrong(path, meta, 'dtype', 'uint16 or uint32')
    tokenizer = meta.get('tokenizer')
    try:
        n_vocab = check_spec(tokenizer)
    except UserError as e:
        raise UserError(f'{path}: {e}; prepare the dataset again') from e
    if n_vocab > vocab_size:
        raise _wrong(path, meta, 'vocab_size', f'at least the {n_vocab:,} of its tokenizer')

    # What may be there.
    counts = {}
    for name in ('train_tokens', 'val_tokens', 'train_pairs', 'val_pairs'):
        counts[name] = meta.get(name)
        if counts[name] is not None and not _is_count(counts[name]):
            raise _wrong(path, meta, name, f"a number of {name.partition('_')[2]}")
    for name, other in (('train_pairs', 'val_pairs'), ('val_pairs', 'train_pairs')):
        if counts[name] is None and counts[other] is not None:
            raise _wrong(path, meta, name, f'a number of pairs, as for {other}')
    source = meta.get('source')
    return dict(vocab_size=vocab_size, dtype=DTYPES[dtype], tokenizer=tokenizer, **counts,
                source=source if type(source) is str else None)


def _vocab_size(path, meta):
    vocab_size = meta.get('vocab_size')
    if not _is_count(vocab_size) or not 1 <= vocab_size <= MAX_VOCAB:
        raise _wrong(path, meta, 'vocab_size', f'an integer from 1 to {MAX_VOCAB:,}')
    return vocab_size


def _is_count(value):
    return type(value) is int and 0 <= value < 2 ** 63


def _wrong(path, meta, key, expected):
    found = f'{key} is {show(meta[key])}' if key in meta else f'no {key}'
    return UserError(f'{path}: {found}; expected {expected}; prepare the dataset again')


# ---------------------------------------------------------------------------- meta.pkl

def _read_meta_pkl(path):
    """To train, nanoGPT needs vocab_size alone; to sample also itos and stoi."""
    try:
        meta = unpickle.load(_content(path))
    except unpickle.Refused as e:
        raise UserError(f"{path}: expected nanoGPT's plain dictionary of vocab_size, itos, stoi; refused: {e}") from e
    if type(meta) is not dict:
        raise UserError(f"{path}: holds {show(meta)}; expected nanoGPT's dictionary of vocab_size, itos, stoi")
    vocab_size = _vocab_size(path, meta)

    problem = _problem_of_itos(meta.get('itos'), vocab_size)
    if problem:
        return dict(vocab_size=vocab_size, dtype=TWO_BYTES, tokenizer=None,
                    no_tokenizer=f'{path}: {problem}; expected one string for each id 0, 1, ...; no text can be shown')
    itos = meta['itos']
    return dict(vocab_size=vocab_size, dtype=TWO_BYTES,
                tokenizer={'kind': 'char', 'chars': [itos[i] for i in range(len(itos))]})


def _problem_of_itos(itos, vocab_size):
    """What keeps `itos` from giving a different string for each id from 0 on; None if nothing does."""
    if itos is None:
        return 'no itos'
    if type(itos) not in (dict, list):
        return f'itos is {show(itos)}'
    if not itos:
        return 'itos is empty'
    if len(itos) > vocab_size:
        return f'itos has {len(itos):,} entries, but vocab_size is {vocab_size:,}'
    seen = set()
    for i in range(len(itos)):
        if type(itos) is dict and i not in itos:
            return f'itos has no id {i}'
        text = itos[i]
        if type(text) is not str:
            return f'itos holds {_kind(text)}'
        if not text or text in seen:
            return f'itos holds {show(text)} twice' if text else 'itos holds an empty string'
        seen.add(text)
    return None


def _kind(value):
    names = {bytes: 'bytes', int: 'integers', float: 'numbers', list: 'lists', tuple: 'tuples', dict: 'dictionaries'}
    return names.get(type(value), show(value))


# ---------------------------------------------------------------------------- no such folder

def _no_such_dataset(folder):
    """Where the dataset was looked for, and what is there."""
    folder = os.path.normpath(folder)
    above, _, name = folder.partition(os.sep)
    if os.path.isfile(folder):
        return f'{folder}: a file; expected a folder with train.bin and val.bin'
    if not os.path.isdir(above or os.sep):
        return (f'{folder}: there is no folder {above} in {os.getcwd()}; '
                'run this from the folder that holds it, such as the checkout')
    if name.startswith(above + os.sep) and os.path.isdir(name):
        return f'{folder}: no such dataset; did you mean --dataset={name.partition(os.sep)[2]}?'

    parent = os.path.dirname(folder)
    found = sorted(entry for entry in _names_in(parent) if os.path.isdir(os.path.join(parent, entry)))
    listed = ', '.join(printable(entry) for entry in found[:12]) or 'none'
    more = f' and {len(found) - 12} more' if len(found) > 12 else ''
    return f'{folder}: no such dataset; expected a folder with train.bin and val.bin (here: {listed}{more})'


def _names_in(folder):
    try:
        return os.listdir(folder)
    except (OSError, ValueError):
        return []
