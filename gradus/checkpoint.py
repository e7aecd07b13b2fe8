"""
The folder of a run, and its checkpoints: written completely or not at all, and verified when they are read.

A file is written under a temporary name, flushed to disk, then renamed; the one it replaces is kept as
<name>.prev. torch.load does not notice a flipped bit, so the checksums of the zip archive are verified first. Only
tensors and plain values are ever unpickled: a checkpoint cannot run code.
"""

import math
import os
import pickle
import shutil
import zipfile
from dataclasses import fields

import torch

from gradus.errors import UserError, one_line, warn
from gradus.files import WriteError, atomic_write, make_folder

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
        if e.disk_full:
            message += ': make room'
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


def load(path, repair=False):
    """
    The verified dictionary in `path`, or in `path`.prev if that one is missing or damaged (with a warning).
    It has at least 'model', parameter names to tensors, and 'model_args'. Raises UserError.
    repair: move a damaged `path` out of the way, otherwise the next save would put it in the place of the good one.
    """
    if not exists(path):
        raise UserError(f'{path}: not found; expected a checkpoint of train.py{_runs_here()}')
    try:
        return _load(path)
    except UserError as e:
        if not os.path.exists(path + '.prev'):
            raise
        state = _load(path + '.prev')
        warn(f'{e}; using {path}.prev, the one before')
        if repair and os.path.exists(path):
            os.replace(path, path + '.damaged')
        return state


def exists(path):
    """Is there a checkpoint, whole or not, at `path`?"""
    return os.path.exists(path) or os.path.exists(path + '.prev')


def model_args(config):
    """How a checkpoint describes a GPTConfig: nanoGPT's seven fields, and those of ours that differ from GPT-2."""
    args = {}
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name in NANOGPT_MODEL_ARGS or value != field.default:
            args[field.name] = value
    return args


def _load(path):
    try:
        _verify(path)
        state = torch.load(path, map_location='cpu', weights_only=True)
    except UserError:
        raise
    except pickle.UnpicklingError as e:
        raise UserError(f'{path}: refused, it holds more than tensors and plain values: {_first_line(e)}') from e
    except Exception as e:                            # zipfile and torch raise a dozen types for damaged files
        raise UserError(f'{path}: damaged, or not a PyTorch checkpoint ({type(e).__name__}: {_first_line(e)})') from e
    _check_types(path, state)
    state['model'] = _clean_names(state['model'])
    return state


def _verify(path):
    """Raise UserError unless the archive's checksums are right and it does not unpack to more than its own size."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        compressed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
        if compressed or sum(entry.file_size for entry in entries) > os.path.getsize(path):
            raise UserError(f'{path}: refused, its contents would be larger than the file')
        damaged = archive.testzip()
    if damaged:
        raise UserError(f'{path}: damaged (checksum of {damaged})')


def _check_types(path, state):
    """Raise UserError unless everything that a training run relies on has the right type."""
    model = state.get('model') if isinstance(state, dict) else None
    if not (isinstance(model, dict) and all(isinstance(t, torch.Tensor) for t in model.values())
            and isinstance(state.get('model_args'), dict)):
        raise UserError(f'{path}: expected a dictionary with model and model_args, as train.py writes it')

    if isinstance(state.get('best_val_loss'), torch.Tensor):                    # nanoGPT's
        state['best_val_loss'] = state['best_val_loss'].tolist()
    kinds = dict(iter_num=int, best_val_loss=(int, float), elapsed_s=(int, float), evaluated=bool, config=dict,
                 optimizer=dict, scaler=dict, tokenizer=dict, machine=dict)
    for key, kind in kinds.items():
        if key not in state:
            continue
        value = state[key]
        unexpected_bool = isinstance(value, bool) and kind is not bool
        if not isinstance(value, kind) or unexpected_bool:
            raise UserError(f'{path}: {key} is {type(value).__name__}; expected a checkpoint as train.py writes it')

    iter_num = state.get('iter_num', 0)
    best_val_loss = state.get('best_val_loss', 0)
    if not 0 <= iter_num < 2 ** 53 or math.isnan(best_val_loss):
        raise UserError(f'{path}: iter_num={iter_num}, best_val_loss={best_val_loss}; '
                        'expected numbers that a run can have')


def _clean_names(weights):
    """The weights without the prefixes that DDP and torch.compile add, and without old nanoGPT's causal masks."""
    for prefix in ('module.', '_orig_mod.'):
        weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    return {name: tensor for name, tensor in weights.items() if not name.endswith('.attn.bias')}


def _first_line(error):
    """torch's messages go on with pages of advice."""
    return one_line(str(error).split('\n')[0], limit=160)


# ---------------------------------------------------------------------------- the folder of a run

def find(out_dir, name=''):
    """The path of a run's checkpoint: `name`, else best.pt if there is one, else ckpt.pt."""
    names = [name] if name else ['best.pt', 'ckpt.pt']
    paths = [os.path.join(out_dir, n) for n in names]
    return next((path for path in paths if exists(path)), paths[-1])


def newest_run():
    """The folder here whose checkpoint was written last. Raises UserError if there is none."""
    names = ('best.pt', 'best.pt.prev', 'ckpt.pt', 'ckpt.pt.prev')
    paths = [os.path.join(folder, name) for folder in os.listdir('.') for name in names]
    files = [path for path in paths if os.path.exists(path)]
    if not files:
        raise UserError('no run in this folder: expected out-NAME/best.pt or ckpt.pt; '
                        'train one (python train.py config/quickstart.py) or give --out_dir')
    return os.path.dirname(max(files, key=os.path.getmtime))


def _runs_here():
    runs = sorted(folder for folder in os.listdir('.') if os.path.exists(os.path.join(folder, 'ckpt.pt')))
    return f"; runs here: {', '.join(runs)} (--out_dir=...)" if runs else ''


def open_run(folder, resume=False):
    """Create the folder of a run, or resume the run in it; otherwise a run in it is moved aside. Raises UserError."""
    try:
        if not resume:
            _move_aside(folder)
        os.makedirs(folder, exist_ok=True)
        for name in os.listdir(folder):
            if name.endswith('.tmp'):                 # half a file that a kill left behind
                os.remove(os.path.join(folder, name))
    except OSError as e:
        raise UserError(f'out_dir={folder}: cannot be written ({e.strerror}); give another one') from e


def _move_aside(folder):
    """Rename a folder that holds a run to <folder>-1, -2, ..."""
    names = ('ckpt.pt', 'ckpt.pt.prev', 'best.pt', 'log.jsonl')
    if not any(os.path.exists(os.path.join(folder, name)) for name in names):
        return
    n = 1
    while os.path.exists(f'{folder}-{n}'):
        n += 1
    os.rename(folder, f'{folder}-{n}')
    print(f'the run that was in {folder} is now in {folder}-{n}')
