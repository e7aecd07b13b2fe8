"""
Checkpoints: a dictionary goes to disk whole or not at all, and comes back as it was or not at all.

A file is written beside its place, flushed to the disk, then renamed into place; the one it replaces
is kept as <name>.prev. torch.load does not notice a flipped bit, so the checksums of the zip archive
are verified first. Only tensors and plain values are ever unpickled: a checkpoint cannot run code.
"""

import json
import os
import pickle
import zipfile

import torch


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged or hostile, in one line."""


def save(path, state):
    """Write the dictionary `state` to `path`, atomically; what was there becomes `path`.prev."""
    tmp = path + '.tmp'
    try:
        with open(tmp, 'wb') as f:
            torch.save(state, f)
            f.flush()
            os.fsync(f.fileno())
    except BaseException:
        if os.path.exists(tmp):
            os.remove(tmp)
        raise
    if os.path.exists(path):
        os.replace(path, path + '.prev')
    os.replace(tmp, path)
    if hasattr(os, 'O_DIRECTORY'):                    # make the renames last; Windows has no such thing
        folder = os.open(os.path.dirname(path) or '.', os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(folder)
        os.close(folder)


def load(path, device='cpu'):
    """
    The verified dictionary in `path`, or in `path`.prev if that one is missing or damaged (with a warning).
    It has at least 'model', parameter names to tensors, and 'model_args'. Raises CheckpointError.
    """
    if not os.path.exists(path) and not os.path.exists(path + '.prev'):
        raise CheckpointError(f'{path}: not found; expected a checkpoint of train.py{_runs_here()}')
    try:
        return _load(path, device)
    except CheckpointError as e:
        if not os.path.exists(path + '.prev'):
            raise
        print(f'warning: {e}; using {path}.prev, the one before')
        return _load(path + '.prev', device)


def _load(path, device):
    try:
        with zipfile.ZipFile(path) as archive:
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
    for prefix in ('module.', '_orig_mod.'):          # left by DDP and torch.compile in other people's files
        state['model'] = {name.removeprefix(prefix): tensor for name, tensor in state['model'].items()
                          if not name.endswith('.attn.bias')}               # old nanoGPT's causal mask
    return state


def _gist(error):
    """The first sentence of torch's pages of advice."""
    return ' '.join(str(error).split('\n')[0].split())[:160]


def _runs_here():
    runs = sorted(d for d in os.listdir('.') if os.path.exists(os.path.join(d, 'ckpt.pt')))
    return f"; runs here: {', '.join(runs)} (--out_dir=...)" if runs else ''


def move_aside(folder):
    """Rename a folder that holds a run to <folder>-1, -2, ...; returns the new name, or None if there was no run."""
    if not any(os.path.exists(os.path.join(folder, name)) for name in ('ckpt.pt', 'ckpt.pt.prev', 'best.pt', 'log.jsonl')):
        return None
    n = 1
    while os.path.exists(f'{folder}-{n}'):
        n += 1
    os.rename(folder, f'{folder}-{n}')
    return f'{folder}-{n}'


def cut_log(path, step, evaluated):
    """
    Drop from a log.jsonl what a run that goes on at `step` will write again: iterations from `step` on, and half
    lines. The evaluation at `step` stays if it was due (`evaluated`), not if it was there only because a run ended.
    """
    if not os.path.exists(path):
        return
    kept = []
    with open(path, encoding='utf-8', errors='replace') as f:
        for line in f:
            try:
                record = json.loads(line)
                if record['iter'] < step or (record['iter'] == step and evaluated and 'val_loss' in record):
                    kept.append(line)
            except (ValueError, KeyError, TypeError):
                continue
    with open(path + '.tmp', 'w', encoding='utf-8') as f:
        f.writelines(kept)
        f.flush()
        os.fsync(f.fileno())
    os.replace(path + '.tmp', path)
