"""
Checkpoints: a dictionary goes to disk whole or not at all, and comes back as it was or not at all.

A file is written beside its place, flushed to the disk, then renamed into place; the one it replaces
is kept as <name>.prev. torch.load does not notice a flipped bit, so the checksums of the zip archive
are verified first. Only tensors and plain values are ever unpickled: a checkpoint cannot run code.
"""

import errno
import json
import math
import os
import pickle
import shutil
import sys
import zipfile
from contextlib import contextmanager

import torch


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged or hostile, or cannot be written, in one line."""


@contextmanager
def _replacing(path, keep=False):
    """A binary file to write to that takes the place of `path` once it is on the disk; `keep` makes the old one `path`.prev."""
    tmp = path + '.tmp'
    try:
        with open(tmp, 'wb') as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        if keep and os.path.exists(path):
            os.replace(path, path + '.prev')
        os.replace(tmp, path)
    except BaseException:
        if os.path.exists(tmp):
            os.remove(tmp)
        raise
    if hasattr(os, 'O_DIRECTORY'):                    # make the renames last; Windows has no such thing
        folder = os.open(os.path.dirname(path) or '.', os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(folder)
        os.close(folder)


def save(path, state):
    """
    Write the dictionary `state` to `path`, atomically; what was there becomes `path`.prev. Raises CheckpointError if that
    is impossible, on a full disk say; then what was there is as it was.
    """
    try:
        with _replacing(path, keep=True) as f:
            torch.save(state, f)
    except (OSError, RuntimeError) as e:              # torch makes the latter of the former
        counter = _Counter()
        torch.save(state, counter)
        free = shutil.disk_usage(os.path.dirname(path) or '.').free
        raise CheckpointError(f'{path}: could not be written ({_gist(e)}); it needs {counter.n:,} bytes, and {free:,} are free; '
                              'what was there before is as it was: make room, then go on with --init_from=resume') from e


class _Counter:
    """A file that only counts what is written to it."""
    n = 0

    def write(self, data):
        self.n += len(data)
        return len(data)

    def flush(self):
        pass


def load(path, device='cpu', repair=False):
    """
    The verified dictionary in `path`, or in `path`.prev if that one is missing or damaged (with a warning).
    It has at least 'model', parameter names to tensors, and 'model_args'. Raises CheckpointError.
    repair moves a damaged `path` out of the way, for else the next `save` would put it in the place of the good one.
    """
    if not exists(path):
        raise CheckpointError(f'{path}: not found; expected a checkpoint of train.py{_runs_here()}')
    try:
        return _load(path, device)
    except CheckpointError as e:
        if not os.path.exists(path + '.prev'):
            raise
        state = _load(path + '.prev', device)
        print(f'warning: {e}; using {path}.prev, the one before', file=sys.stderr)
        if repair and os.path.exists(path):
            os.replace(path, path + '.damaged')
        return state


def exists(path):
    """Is there a checkpoint, whole or not, at `path`?"""
    return os.path.exists(path) or os.path.exists(path + '.prev')


def find(out_dir, name=''):
    """The path of a run's checkpoint: `name`, else best.pt if there is one, else ckpt.pt."""
    paths = [os.path.join(out_dir, n) for n in ([name] if name else ['best.pt', 'ckpt.pt'])]
    return next((p for p in paths if exists(p)), paths[-1])


def newest_run():
    """The folder here whose checkpoint was written last. Raises CheckpointError if there is none."""
    files = [os.path.join(d, name + end) for d in os.listdir('.') for name in ('best.pt', 'ckpt.pt') for end in ('', '.prev')]
    files = [path for path in files if os.path.exists(path)]
    if not files:
        raise CheckpointError('no run in this folder: expected out-NAME/best.pt or ckpt.pt; train one (python train.py config/quickstart.py) or give --out_dir')
    return os.path.dirname(max(files, key=os.path.getmtime))


def _load(path, device):
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if any(e.compress_type != zipfile.ZIP_STORED for e in entries) or sum(e.file_size for e in entries) > os.path.getsize(path):
                raise CheckpointError(f'{path}: refused, its contents would be larger than the file')
            damaged = archive.testzip()
        if damaged:
            raise CheckpointError(f'{path}: damaged (checksum of {damaged})')
        state = torch.load(path, map_location=device, weights_only=True)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as e:
        raise CheckpointError(f'{path}: refused, it holds more than tensors and plain values: {_gist(e)}') from e
    except Exception as e:                            # zipfile and torch raise a dozen types for damaged files
        raise CheckpointError(f'{path}: damaged, or no PyTorch checkpoint ({type(e).__name__}: {_gist(e)})') from e
    if not (isinstance(state, dict) and isinstance(state.get('model'), dict) and isinstance(state.get('model_args'), dict)
            and all(isinstance(t, torch.Tensor) for t in state['model'].values())):
        raise CheckpointError(f'{path}: expected a dictionary with model and model_args, as train.py writes it')
    _check_types(path, state)
    for prefix in ('module.', '_orig_mod.'):          # left by DDP and torch.compile in other people's files
        state['model'] = {name.removeprefix(prefix): tensor for name, tensor in state['model'].items()
                          if not name.endswith('.attn.bias')}               # old nanoGPT's causal mask
    return state


def _check_types(path, state):
    """What a training run relies on must be what it seems to be."""
    if isinstance(state.get('best_val_loss'), torch.Tensor):                    # nanoGPT's
        state['best_val_loss'] = state['best_val_loss'].tolist()
    kinds = dict(iter_num=int, best_val_loss=(int, float), elapsed_s=(int, float), evaluated=bool, config=dict, optimizer=dict,
                 scaler=dict, tokenizer=dict, machine=dict)
    for key, kind in kinds.items():
        if key in state and (not isinstance(state[key], kind) or isinstance(state[key], bool) and key != 'evaluated'):
            raise CheckpointError(f'{path}: {key} is {type(state[key]).__name__}; expected a checkpoint as train.py writes it')
    if not 0 <= state.get('iter_num', 0) < 2 ** 53 or math.isnan(state.get('best_val_loss', 0)):
        raise CheckpointError(f"{path}: iter_num={state.get('iter_num')}, best_val_loss={state.get('best_val_loss')}; expected numbers that a run can have")


def _gist(error):
    """The first sentence of torch's pages of advice."""
    return ' '.join(str(error).split('\n')[0].split())[:160]


def _runs_here():
    runs = sorted(d for d in os.listdir('.') if os.path.exists(os.path.join(d, 'ckpt.pt')))
    return f"; runs here: {', '.join(runs)} (--out_dir=...)" if runs else ''


def open_run(folder, resumed=False):
    """Make the folder of a run, unless the run is resumed there; another run in it is moved aside. Raises CheckpointError."""
    try:
        if not resumed and (moved := move_aside(folder)):
            print(f'the run that was in {folder} is now in {moved}')
        os.makedirs(folder, exist_ok=True)
        for name in os.listdir(folder):
            if name.endswith('.tmp'):                 # half a file that a kill left behind
                os.remove(os.path.join(folder, name))
    except OSError as e:
        raise CheckpointError(f'out_dir={folder}: cannot be written ({e.strerror}); give another one') from e


def move_aside(folder):
    """Rename a folder that holds a run to <folder>-1, -2, ...; returns the new name, or None if there was no run."""
    if not any(os.path.exists(os.path.join(folder, name)) for name in ('ckpt.pt', 'ckpt.pt.prev', 'best.pt', 'log.jsonl')):
        return None
    n = 1
    while os.path.exists(f'{folder}-{n}'):
        n += 1
    os.rename(folder, f'{folder}-{n}')
    return f'{folder}-{n}'


class Log:
    """log.jsonl: one JSON object a line, on the disk as soon as it is written."""

    def __init__(self, path, step=0, evaluated=False):
        """
        Go on at `step`: what the run will write again is dropped, iterations from `step` on and half lines. The evaluation
        at `step` stays if it was due (`evaluated`), not if it was there only because a run ended.
        """
        self.path = path
        if os.path.exists(path):
            with open(path, encoding='utf-8', errors='replace') as f:
                kept = [line for line in f if self._stays(line, step, evaluated)]
            with _replacing(path) as f:
                f.write(''.join(kept).encode())
        self.file = open(path, 'ab', buffering=0)

    @staticmethod
    def _stays(line, step, evaluated):
        try:
            record = json.loads(line)
            return line.endswith('\n') and (record['iter'] < step or record['iter'] == step and evaluated and 'val_loss' in record)
        except (ValueError, KeyError, TypeError):
            return False

    def write(self, **record):
        """Raises CheckpointError where the disk is full."""
        line = (json.dumps(record) + '\n').encode()
        try:
            if self.file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as e:
            raise CheckpointError(f'{self.path}: could not be written ({e.strerror}); make room, then go on with --init_from=resume') from e

    def close(self):
        self.file.close()
