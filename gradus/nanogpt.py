"""
A model as nanoGPT's own files: a ckpt.pt, and for characters a meta.pkl, which it looks for in its data/<dataset>/.

nanoGPT has one architecture: GPT-2 with the exact GELU. A model that differs is refused.
"""

import os
import pickle
import re
from dataclasses import fields

import torch

from gradus.checkpoint import NANOGPT_MODEL_ARGS
from gradus.errors import UserError, one_line
from gradus.files import atomic_write, make_folder
from gradus.optim import AdamW
from gradus.shapes import empty_gpt
from model import GPTConfig

# nanoGPT's defaults. A run that resumes there keeps these betas and this weight decay, whatever its settings say.
OPTIMIZER = dict(lr=6e-4, betas=(0.9, 0.95), weight_decay=0.1)


def write_nanogpt(folder, found):
    """
    Write the `Pretrained` model as `folder`/ckpt.pt, and if it reads characters, `folder`/meta.pkl. Returns the name of
    the dataset that nanoGPT will look for, None for GPT-2's tokens. Raises UserError, also rather than replace a file.

    nanoGPT's sample.py samples from it, and its train.py resumes from it, with moments that start at zero.
    """
    _check_shape(found)
    chars = _characters(found)
    paths = {name: os.path.join(folder, name) for name in ('ckpt.pt', 'meta.pkl')}
    for path in paths.values():
        if os.path.lexists(path):
            raise UserError(f'{path} exists already; give another folder, or delete it')

    # Weights: every name is read once.
    args = {name: getattr(found.config, name) for name in NANOGPT_MODEL_ARGS}
    model_names, optimizer = _blank(args)
    weights = {name: found.weights[name] for name in model_names}
    weights['lm_head.weight'] = weights['transformer.wte.weight']

    dataset = None
    config = {}
    if chars is not None:
        dataset = config['dataset'] = _dataset_name(found.dataset)
    state = dict(
        model=weights,
        optimizer=optimizer,
        model_args=args,
        iter_num=found.iter_num or 0,
        best_val_loss=1e9,                            # as nanoGPT begins: the next evaluation sets it
        config=config,
    )

    make_folder(folder, 'give another folder')
    if chars is not None:
        stoi = {c: i for i, c in enumerate(chars)}
        with atomic_write(paths['meta.pkl']) as f:
            pickle.dump(dict(vocab_size=len(chars), itos=dict(enumerate(chars)), stoi=stoi), f)
    with atomic_write(paths['ckpt.pt']) as f:
        torch.save(state, f)
    return dataset


def _check_shape(found):
    """Raise UserError, which names the first field that stands in the way."""
    config = found.config
    has = dict(
        n_kv_head=config.kv_heads,
        n_inner=config.hidden,
        head_dim=config.head_width,
        norm_eps=config.eps,
    )
    needs = dict(
        n_kv_head=config.n_head,
        n_inner=4 * config.n_embd,
        head_dim=config.n_embd // config.n_head,
        norm_eps=1e-5,
    )
    for field in fields(GPTConfig):
        name = field.name
        if name in NANOGPT_MODEL_ARGS or name == 'rope_theta':                  # which only rotary positions use
            continue
        value = has.get(name, getattr(config, name))
        wanted = needs.get(name, field.default)
        if value != wanted:
            raise UserError(f'{found.source}: {name}={value}: nanoGPT knows only {name}={wanted}; '
                            'choose another format, or train a model with that setting')


def _characters(found):
    """The characters that the ids mean, None for GPT-2's tokens. Raises UserError for what nanoGPT cannot read."""
    kind = (found.tokenizer or {}).get('kind')
    if kind == 'gpt2':
        return None
    if kind == 'char':
        return found.tokenizer['chars']
    raise UserError(f'{found.source}: tokenizer={one_line(kind, limit=60)}: nanoGPT knows only characters (char) and '
                    'GPT-2\'s tokens (gpt2); choose another format')


def _dataset_name(name):
    """The dataset's name if nanoGPT can use it as one folder's name in data/, else a name of our own."""
    plain = isinstance(name, str) and re.fullmatch(r'\w[\w.-]*', name)
    return name if plain else 'gradus'


def _blank(args):
    """The names of nanoGPT's parameters, in its order, and the state of an optimizer that has taken no step."""
    named = dict(empty_gpt(GPTConfig(**args, mlp='gelu')).named_parameters())
    groups = [
        dict(params=[p for p in named.values() if p.dim() >= 2]),
        dict(params=[p for p in named.values() if p.dim() < 2], weight_decay=0.0),
    ]
    return list(named), AdamW(groups, **OPTIMIZER).state_dict()
