"""
A run's checkpoints: written completely or not at all, and verified when they are read.

A file is written under a temporary name, flushed to disk, then renamed; the one it replaces is kept as
<name>.prev. torch.load does not notice a flipped bit, so the checksums of the zip archive are verified first. Only
tensors and plain values are ever unpickled: a checkpoint cannot run code. What it holds is checked before it is used.
"""

import errno
import math
import os
import pickle
import re
import shutil
import zipfile
from contextlib import suppress
from dataclasses import fields

import numpy as np
import torch

from gradus.errors import UserError, one_line, show, warn
from gradus.files import WriteError, atomic_write, make_folder, require_file
from gradus.optim import FLOATS

NANOGPT_MODEL_ARGS = ('n_layer', 'n_head', 'n_embd', 'block_size', 'bias', 'vocab_size', 'dropout')


# ---------------------------------------------------------------------------- checkpoints

def save(path, state):
    """
    Write the dictionary `state` to `path`, atomically; what was there becomes `path`.prev. Raises UserError if that
    fails, for example on a full disk; the old file is then unchanged.
    """
    make_folder(os.path.dirname(path) or '.', 'the run cannot be saved')        # somebody may have deleted it
    try:
        with atomic_write(path, keep_previous=True) as f:
            torch.save(state, f)
    except WriteError as e:
        counter = _ByteCounter()
        torch.save(state, counter)
        free = shutil.disk_usage(os.path.dirname(path) or '.').free
        message = f'{e}; it needs {counter.n:,} bytes, and {free:,} are free'
        if e.unchanged:
            message += '; what was there before is unchanged, continue with --init_from=resume'
        raise UserError(message) from e


class _ByteCounter:
    """A file that only counts what is written to it."""
    n = 0

    def write(self, content):
        self.n += len(content)
        return len(content)

    def flush(self):
        pass


class Damaged(UserError):
    """A checkpoint is not as it was written: it is truncated, or a checksum is wrong."""


def load(path, repair=False, mapped=False):
    """
    The verified dictionary in `path`, or in `path`.prev if that one is missing or damaged (with a warning).
    It has at least 'model', parameter names to tensors, and 'model_args'. Raises UserError.
    repair: move a damaged `path` out of the way, otherwise the next save would put it in the place of the good one.
    mapped: leave the tensors on disk until they are used; the file must not be changed in the meantime.
    """
    if not exists(path):
        raise UserError(f'{path}: not found; expected a checkpoint of train.py{_runs_here()}')
    try:
        if os.path.islink(path) and not os.path.exists(path):
            raise UserError(f'{path}: a link to {os.readlink(path)}, which is not there; is its disk mounted?')
        if not os.path.exists(path):
            raise Damaged(f'{path}: not found')
        return _load(path, mapped)
    except Damaged as e:
        if not os.path.exists(path + '.prev'):
            raise
        state = _load(path + '.prev', mapped)
        warn(f'{e}; using {path}.prev, the one before')
        if repair and os.path.exists(path):
            with suppress(OSError):                   # a folder that cannot be written is found out later
                os.replace(path, path + '.damaged')
        return state


def load_run(path, repair=False):
    """`load` for a run that is to continue."""
    state = load(path, repair)
    for name in ('best_val_loss', 'elapsed_s'):
        value = state.get(name, 0)
        if math.isnan(value) or value < 0 or (name == 'elapsed_s' and value == math.inf):
            raise UserError(f'{path}: {name} is {value}; expected a number that a run can have')
    return state


def exists(path):
    """Is there a checkpoint, whole or not, at `path`? A link counts, even if what it leads to is not there now."""
    return os.path.lexists(path) or os.path.lexists(path + '.prev')


def model_args(config):
    """How a checkpoint describes a GPTConfig: nanoGPT's seven fields, and those of ours that differ from GPT-2."""
    args = {}
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name in NANOGPT_MODEL_ARGS or value != field.default:
            args[field.name] = value
    return args


# ---------------------------------------------------------------------------- reading

LEGACY = b'\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.'   # how torch.save began before it wrote zip archives


def _load(path, mapped):
    require_file(path)
    size = os.path.getsize(path)
    legacy = False
    try:
        with open(path, 'rb') as f:
            legacy = f.read(len(LEGACY)) == LEGACY    # which has no checksums
        if not legacy:
            _verify(path)
    except UserError:
        raise
    except Exception as e:                            # zipfile raises a dozen types for damaged files
        if isinstance(e, OSError) and e.errno != errno.EINVAL:
            raise UserError(f'{path}: cannot be read ({e.strerror})') from e
        raise Damaged(f'{path}: damaged, or not a PyTorch checkpoint ({_what(e)})') from e

    try:
        with torch.serialization.safe_globals(NUMPY_SCALARS):
            state = torch.load(path, map_location='cpu', weights_only=True, mmap=mapped and not legacy)
    except pickle.UnpicklingError as e:
        raise UserError(f'{path}: refused, it holds more than tensors and plain values: {_found_class(e)}') from e
    except MemoryError:
        raise
    except Exception as e:                            # torch raises as many for nonsense
        raise UserError(f'{path}: not a PyTorch checkpoint ({_what(e)})') from e
    _check_values(path, state)
    _check_tensors(path, state, size)
    state['model'] = _clean_names(path, state['model'])
    return state


def _numpy_scalars():
    """What unpickling a numpy number needs; torch.load must be told. It has had two names in numpy."""
    make_scalar = np.float64(0).__reduce__()[0]
    kinds = {type(np.dtype(name)) for name in ('f2', 'f4', 'f8', 'i4', 'i8', 'bool', 'U')}
    names = ('numpy.core.multiarray.scalar', 'numpy._core.multiarray.scalar')
    return [*((make_scalar, name) for name in names), np.dtype, *kinds]


NUMPY_SCALARS = _numpy_scalars()


def _what(error):
    """The class and first line of an exception; torch's messages go on with pages of advice."""
    first_line = str(error).partition('\n')[0]
    return f'{type(error).__name__}: {one_line(first_line, limit=160)}'


def _found_class(error):
    """The class that torch.load refused, without its advice to load the file unsafely."""
    found = re.search(r'GLOBAL ([\w.]+)', str(error))
    return found.group(1) if found else 'an unknown kind of object'


def _verify(path):
    """Raise UserError unless the archive's checksums are right and it does not unpack to more than its own size."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        compressed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
        if compressed or sum(entry.file_size for entry in entries) > os.path.getsize(path):
            raise UserError(f'{path}: refused, its contents would be larger than the file')
        damaged = archive.testzip()
    if damaged:
        raise Damaged(f'{path}: damaged (checksum of {one_line(damaged)})')


# ---------------------------------------------------------------------------- what is in it

KINDS = dict(iter_num=int, epoch=int, skipped=int, best_val_loss=float, elapsed_s=float, evaluated=bool,
             model_args=dict, config=dict, optimizer=dict, scaler=dict, tokenizer=dict, machine=dict)
REQUIRED = ('model_args',)                            # what may not be None


def _check_values(path, state):
    """Raise UserError unless every value that somebody uses has its type. Numbers become Python's."""
    model = state.get('model') if isinstance(state, dict) else None
    if not isinstance(model, dict) or not isinstance(state.get('model_args'), dict):
        raise UserError(f'{path}: expected a dictionary with model and model_args, as train.py writes it')

    for key, kind in KINDS.items():
        if key not in state or state[key] is None and key not in REQUIRED:
            state.pop(key, None)
            continue
        value = state[key] = _plain_number(state[key])
        kinds = (int, float) if kind is float else kind
        unexpected_bool = isinstance(value, bool) and kind is not bool
        if not isinstance(value, kinds) or unexpected_bool:
            raise UserError(f'{path}: {key} is {show(value)}; expected {kind.__name__}, as train.py writes it')
        if type(value) is int and not 0 <= value < 2 ** 53:
            raise UserError(f'{path}: {key} is {show(value)}; expected a number that a run can have')

    # Flat dictionaries. What a fork may have put into `config` beside plain values is of no use here.
    if 'config' in state:
        state['config'] = {key: value for key, value in state['config'].items() if _is_plain(value)}
    for name in ('model_args', 'tokenizer', 'machine'):
        for key, value in state.get(name, {}).items():
            value = state[name][key] = _plain_number(value)
            if not isinstance(key, str) or not _is_plain(value) and not _is_flat_list(value):
                raise UserError(f'{path}: {name} has {show(key)}: {show(value)}; expected plain values')


def _plain_number(value):
    """nanoGPT saves some numbers as tensors of one element, and its forks save numpy's."""
    one_element = type(value) is torch.Tensor and value.numel() == 1
    if isinstance(value, np.generic) or one_element and value.layout == torch.strided and value.device.type == 'cpu':
        return value.item()
    return value


def _is_plain(value):
    return isinstance(value, (bool, int, float, str)) or value is None


def _is_flat_list(value):
    return isinstance(value, list) and all(_is_plain(v) for v in value)


def _check_tensors(path, state, size):
    """Raise UserError unless all tensors are ordinary ones, and claim no more memory than the file explains."""
    named = dict(state['model'])
    moments = (state.get('optimizer') or {}).get('state')
    if isinstance(moments, dict):
        for n, values in moments.items():
            if isinstance(values, dict):
                named.update({f'{name} {n}': v for name, v in values.items() if isinstance(v, torch.Tensor)})

    claimed = 0
    for name, tensor in named.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise UserError(f'{path}: {show(name)} is {show(tensor)}; expected the name of a parameter and a tensor')
        if tensor.layout != torch.strided or tensor.device.type != 'cpu' or tensor.is_quantized:
            raise UserError(f'{path}: {show(name)} is a tensor of layout {tensor.layout} on {tensor.device}; '
                            'expected an ordinary one')
        n_bytes = tensor.numel() * tensor.element_size()
        claimed += n_bytes
        if not n_bytes <= tensor.untyped_storage().nbytes() <= size:
            raise UserError(f'{path}: {show(name)} claims {n_bytes:,} bytes, more than the file holds; refused')
    if claimed > 2 * size:                            # twice: embedding and unembedding may be one tensor
        raise UserError(f'{path}: its tensors claim {claimed:,} bytes, and the file has {size:,}; refused')


def _clean_names(path, weights):
    """The weights without the prefixes that DDP and torch.compile add, and without old nanoGPT's causal masks."""
    cleaned = {}
    for name, tensor in weights.items():
        name = '.'.join(part for part in name.split('.') if part not in ('module', '_orig_mod'))
        if name.endswith('.attn.bias'):
            continue
        if tensor.dtype not in FLOATS and not name.endswith('.num_batches_tracked'):            # of batch norm
            raise UserError(f'{path}: {show(name)} is of {tensor.dtype}; expected floating-point weights')
        if name in cleaned:
            raise UserError(f'{path}: two tensors are called {show(name)}')
        cleaned[name] = tensor
    return cleaned


# ---------------------------------------------------------------------------- which file

def find(out_dir, name=''):
    """The path of a run's checkpoint: `name`, else best.pt if there is one, else ckpt.pt."""
    names = [name] if name else ['best.pt', 'ckpt.pt']
    paths = [os.path.join(out_dir, n) for n in names]
    return next((path for path in paths if exists(path)), paths[-1])


def run_folders():
    """The folders here that hold checkpoints, the one written last first."""
    names = ('best.pt', 'best.pt.prev', 'ckpt.pt', 'ckpt.pt.prev')
    paths = [os.path.join(folder, name) for folder in os.listdir('.') for name in names]
    times = {}
    for path in paths:
        with suppress(OSError):                       # it is not there, or is being replaced just now
            times[path] = os.path.getmtime(path)
    newest_first = sorted(times, key=times.get, reverse=True)
    return list(dict.fromkeys(os.path.dirname(path) for path in newest_first))


def _runs_here():
    runs = sorted(folder for folder in os.listdir('.') if os.path.exists(os.path.join(folder, 'ckpt.pt')))
    return f"; runs here: {', '.join(runs)} (--out_dir=...)" if runs else ''
