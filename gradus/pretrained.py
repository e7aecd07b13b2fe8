"""
Where a model comes from: a run's folder, a checkpoint file, a Hugging Face folder, a name on the hub, or a GGUF file.

    pretrained = load('out-quickstart')        # config, weights, tokenizer, and a line about it
    model = build(pretrained)
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import torch

from gradus import checkpoint, configurator, gguf_file, hf, metadata
from gradus.errors import UserError, one_line, show, warn
from gradus.families import MISFIT, Weights
from gradus.shapes import empty_gpt
from gradus.tokenizer import build_tokenizer, check_spec, same_tokens
from model import GPTConfig


@dataclass
class Pretrained:
    """A model as it was found, checked but not built yet."""
    source: str             # path or name, for messages
    config: GPTConfig
    weights: Mapping        # parameter name -> tensor, as in GPT.state_dict(); read and checked when asked for
    tokenizer: dict | None  # plain data, for tokenizer.build_tokenizer; None if the file does not hold one
    about: str              # a line about it, for people
    iter_num: int | None = None
    dataset: str | None = None   # what it was trained on, by its own account
    no_tokenizer: str = ''       # why there is none


def load(source, or_else='resume'):
    """
    The `Pretrained` model in `source`. Raises UserError if there is none, or if it is damaged or inconsistent.

    source: a run's folder, a checkpoint file of train.py or nanoGPT, a file of export.py (safetensors, gguf), a folder
    with config.json and model.safetensors, gpt2, gpt2-medium, gpt2-large, gpt2-xl, or owner/model on the hub.
    or_else: what else the script accepts as init_from, for the error message.
    """
    if source.endswith('.gguf'):
        return _from_elsewhere(source, *gguf_file.load(source))
    if source.endswith('.safetensors') and os.path.isfile(source):
        return load_safetensors(source)
    if os.path.isfile(source):
        return load_checkpoint(source)
    if os.path.isdir(source):
        path = checkpoint.find(source)
        if checkpoint.exists(path):
            return load_checkpoint(path)
        if any(os.path.exists(os.path.join(source, name)) for name in hf.FILES):
            return _from_elsewhere(source, *hf.load(source))
    elif source.startswith('gpt2') or re.fullmatch(r'[\w-]+/[\w.-]+', source):
        return _from_elsewhere(source, *hf.load(source))
    raise UserError(f'init_from={source}: expected {or_else}, gpt2, gpt2-medium, gpt2-large, gpt2-xl, owner/model, '
                    'the folder of a run, a folder with config.json and model.safetensors, or a .gguf file')


def load_checkpoint(path, mapped=False):
    """
    The model in a checkpoint of train.py or nanoGPT. mapped: leave the tensors on disk until they are asked for.
    Raises UserError.
    """
    return _from_state(path, checkpoint.load(path, mapped=mapped))


def _from_state(path, state):
    about = f"{path}: iteration {state.get('iter_num', '?')}"
    if 'best_val_loss' in state:
        about += f", best val loss {state['best_val_loss']:.4f}"
    if is_digit_network(state):
        raise UserError(f'{path}: a digit network of mlp_mnist.py; expected a GPT, a run of train.py')
    config = read_config(state['model_args'], path)
    return Pretrained(
        source=path,
        config=config,
        weights=_weights(config, state['model'], path),
        tokenizer=state.get('tokenizer'),
        about=about,
        iter_num=state.get('iter_num'),
        dataset=state.get('config', {}).get('dataset'),
    )


def is_digit_network(state):
    """Does this checkpoint hold a network of mlp_mnist.py?"""
    return 'sizes' in state['model_args']


def load_newest(name=''):
    """The GPT in the newest run here, from its file `name`; digit networks do not count. Raises UserError."""
    for folder in checkpoint.run_folders():
        path = checkpoint.find(folder, name)
        state = checkpoint.load(path)
        if not is_digit_network(state):
            return _from_state(path, state)
    raise UserError('no run in this folder: expected out-NAME/best.pt or ckpt.pt; '
                    'train one (python train.py config/quickstart.py) or give --out_dir')


def load_chosen(cfg):
    """
    The model that the settings init_from, out_dir, checkpoint and dataset choose: a line about it, the GPT, on the CPU,
    and its tokenizer. Raises UserError.
    """
    if os.path.basename(cfg.checkpoint) != cfg.checkpoint:
        raise UserError(f'checkpoint={cfg.checkpoint}: expected the name of a file in out_dir')
    if cfg.init_from != 'resume':
        found = load(cfg.init_from)
    elif cfg.out_dir:
        found = load_checkpoint(checkpoint.find(cfg.out_dir, cfg.checkpoint))
    else:
        found = load_newest(cfg.checkpoint)
    tokenizer = tokenizer_for(found, cfg.dataset)
    return found.about, build(found), tokenizer


def _from_elsewhere(source, config, weights, tokenizer):
    spec = None if isinstance(tokenizer, str) else tokenizer
    return Pretrained(source, config, weights, tokenizer=spec, about=source,
                      no_tokenizer=tokenizer if spec is None else '')


def load_safetensors(path):
    """The model in a file that export.py --to=safetensors wrote. Raises UserError."""
    metadata, names, read = hf.read_safetensors(path, f'{path}:')
    try:
        model_args = json.loads(metadata['model_args'])
        tokenizer = json.loads(metadata.get('tokenizer', 'null'))
    except (KeyError, TypeError, ValueError, RecursionError) as e:
        raise UserError(f'{path}: no model_args in its metadata; expected a file of export.py --to=safetensors, or '
                        'a folder with config.json') from e
    if not isinstance(model_args, dict) or not isinstance(tokenizer, (dict, type(None))):
        raise UserError(f'{path}: its metadata says model_args={show(model_args)}; expected an object')
    config = read_config(model_args, path)
    weights = Weights(config, {name: (lambda name=name: read(name)) for name in names}, path)
    return Pretrained(path, config, weights, tokenizer, about=path)


def read_config(model_args, source):
    """The GPTConfig that `model_args` describe. Raises UserError, which names `source`, if they do not describe one."""
    try:
        return GPTConfig(**_plain_args(model_args))
    except (ValueError, TypeError, AttributeError, RuntimeError) as e:
        raise _mismatch(source, e) from e


def _weights(config, tensors, source):
    return Weights(config, {name: (lambda tensor=tensor: tensor) for name, tensor in tensors.items()}, source)


def _plain_args(model_args):
    """`model_args` with a value of its type for each field of GPTConfig. Raises ValueError."""
    kinds = {field.name: type(field.default) for field in fields(GPTConfig)}
    dropout = model_args.get('dropout', 0)
    if type(dropout) not in (int, float) or not 0 <= dropout < 1:               # forks say None; weights do not care
        model_args = {**model_args, 'dropout': 0.0}
    args = {}
    for name, value in model_args.items():
        if name not in kinds:
            raise ValueError(f'{show(name)} is unknown')
        if kinds[name] is float and type(value) is int and abs(value) < 2 ** 53:
            value = float(value)
        if kinds[name] is bool and type(value) is int and value in (0, 1):      # nanoGPT keeps a config's bias = 0
            value = bool(value)
        wrong_number = kinds[name] in (int, float) and type(value) is kinds[name] and not abs(value) < 2 ** 53
        if type(value) is not kinds[name] or wrong_number:
            raise ValueError(f'{name} is {show(value)}, expected {kinds[name].__name__}')
        args[name] = value
    return args


def build(pretrained, dropout=0.0):
    """
    The GPT with these weights, in float32 on the CPU. They are read one after the other, so that no more memory is
    needed than for the model itself. Raises UserError if one is missing, left over, damaged or of another shape.
    """
    config = replace(pretrained.config, dropout=dropout)
    own, storages = {}, set()
    for name in pretrained.weights:
        if config.tie_weights and name == 'lm_head.weight':
            continue
        tensor = pretrained.weights[name].float()
        storage = tensor.untyped_storage()
        alone = storage.nbytes() == tensor.nbytes and storage.data_ptr() not in storages
        if not tensor.is_contiguous() or not alone:   # memory that something else uses too
            tensor = tensor.clone(memory_format=torch.contiguous_format)
        storages.add(tensor.untyped_storage().data_ptr())
        own[name] = tensor

    model = empty_gpt(config)
    if config.tie_weights:
        own['lm_head.weight'] = own['transformer.wte.weight']
    model.load_state_dict(own, assign=True)
    if config.tie_weights:
        model.transformer.wte.weight = model.lm_head.weight
    for p in model.parameters():
        p.requires_grad_()
    model.init_tables()
    return model


def start_from(cfg, meta):
    """
    The GPT that cfg.init_from names, cropped to cfg.block_size, to be trained on a dataset with meta file `meta`.
    Warns about settings that it cannot have. Raises UserError.
    """
    found = load(cfg.init_from, or_else='scratch, resume, auto')
    if ignored := ignored_settings(cfg, found.config):
        warn(f'the model is {cfg.init_from}; ignored: {ignored}')
    tokenizers = found.tokenizer, meta['tokenizer']
    if None not in tokenizers and not same_tokens(*tokenizers):
        warn(f'data/{cfg.dataset} has another tokenizer than {cfg.init_from}: the same ids mean something else')
    model = build(found, dropout=cfg.dropout)
    try:
        model.crop_block_size(cfg.block_size)
    except ValueError as e:
        raise UserError(f'{e}; the model is {cfg.init_from}') from e
    return model


def gpt_from_weights(model_args, weights, source='checkpoint', **overrides):
    """The GPT with a checkpoint's model_args (overrides win) and weights. Raises UserError, which names `source`."""
    config = read_config(model_args | overrides, source)
    found = Pretrained(source, config, _weights(config, weights, source), tokenizer=None, about=source)
    return build(found, dropout=config.dropout)


def _mismatch(source, error):
    return UserError(f'{source}: {MISFIT}: {one_line(error)}')


def find_tokenizer(pretrained, dataset=''):
    """
    The plain data of a model's tokenizer: that of data/`dataset` if given, else the one in its file. A checkpoint of
    nanoGPT holds none and only names its dataset. That name is compared with the folders in data/, never opened as a
    path; without a meta file GPT-2's tokens are assumed. Raises UserError if none fits.
    """
    if dataset:
        return _tokenizer_of(os.path.join('data', dataset))
    if pretrained.tokenizer is not None:
        try:
            check_spec(pretrained.tokenizer)
        except UserError as e:
            raise UserError(f'{pretrained.source}: {e}, or --dataset=NAME') from e
        return pretrained.tokenizer
    if pretrained.no_tokenizer:
        raise UserError(f'{pretrained.no_tokenizer}; give --dataset=NAME')

    vocab_size = pretrained.config.vocab_size
    folders = os.listdir('data') if os.path.isdir('data') else []
    if pretrained.dataset in folders:
        folder = os.path.join('data', folders[folders.index(pretrained.dataset)])
        if metadata.read_meta(folder)['vocab_size'] in (vocab_size, 50257):
            return _tokenizer_of(folder)
    if vocab_size < 50257:
        wanted = f'data/{one_line(pretrained.dataset, limit=60)} that fits'
        if pretrained.dataset is None:
            wanted = 'name of its dataset'
        raise UserError(f'{pretrained.source}: no tokenizer in it, and no {wanted}; '
                        'expected --dataset=NAME, a folder in data/ whose meta.pkl or meta.json has '
                        f'{vocab_size} tokens')
    return {'kind': 'gpt2'}


def tokenizer_for(pretrained, dataset=''):
    """The tokenizer that `find_tokenizer` finds, built. Raises UserError if it has more tokens than the model."""
    tokenizer = build_tokenizer(find_tokenizer(pretrained, dataset))
    vocab_size = pretrained.config.vocab_size
    if tokenizer.n_vocab > vocab_size:
        raise UserError(f'{pretrained.source}: a tokenizer of {tokenizer.n_vocab} tokens for a model of {vocab_size}; '
                        'expected the one that it was trained with, --dataset=NAME')
    return tokenizer


def _tokenizer_of(folder):
    """The plain data of a dataset's tokenizer. Raises UserError if its meta file does not say what the ids mean."""
    meta = metadata.read_meta(folder)
    if meta['tokenizer'] is None:
        raise UserError(meta['no_tokenizer'])
    return meta['tokenizer']


def config_of(cfg, vocab_size):
    """The GPTConfig that the settings describe. Raises UserError for a shape that cannot be built."""
    shape = {f.name: getattr(cfg, f.name) for f in fields(GPTConfig) if f.name != 'vocab_size'}
    try:
        return GPTConfig(vocab_size=vocab_size, **shape)
    except (ValueError, OverflowError) as e:
        raise UserError(configurator.explain(cfg, one_line(e))) from e


def padded_vocab_size(n):
    """A model's vocabulary for n tokens: GPT-2's is padded to a multiple of 64, for faster matmuls, as in nanoGPT."""
    return 50304 if n == 50257 else n


def check_same_run(cfg, state, meta, path):
    """Raise UserError unless the settings have the sizes and the tokenizer of the run in the checkpoint `state`."""
    earlier = state.get('config', {})
    for field in fields(GPTConfig):
        name = field.name
        if name in ('vocab_size', 'dropout'):
            continue
        found = state['model_args'].get(name, field.default)
        wanted = getattr(cfg, name)
        from_elsewhere = name != 'block_size' and wanted == earlier.get(name)   # from gpt2, whose sizes no config set
        if wanted != found and not from_elsewhere:
            raise UserError(f'{path} has {name}={one_line(found, limit=60)}, but the settings say {name}={wanted}; '
                            'resume with the config of that run, or give another --out_dir')

    vocab_size = state['model_args'].get('vocab_size', 0)
    tokenizers = state.get('tokenizer'), meta['tokenizer']
    same_tokenizer = None in tokenizers or tokenizers[0] == tokenizers[1]
    if meta['vocab_size'] > padded_vocab_size(vocab_size) or not same_tokenizer:
        raise UserError(f'{path} was trained with another tokenizer (vocab_size={vocab_size}) than data/{cfg.dataset} '
                        f"has (vocab_size={meta['vocab_size']}); use the same --dataset")


def ignored_settings(cfg, config):
    """
    What the settings say of a model's shape and a pretrained model has otherwise, in words; empty if there is nothing.
    A default says nothing, and block_size crops the model.
    """
    meant_by_0 = dict(n_kv_head=config.kv_heads, n_inner=config.hidden)
    defaults = {field.name: field.default for field in fields(cfg)}
    ignored = []
    for field in fields(GPTConfig):
        name = field.name
        if name in ('vocab_size', 'dropout', 'block_size'):
            continue
        wanted = getattr(cfg, name)
        own = getattr(config, name)
        if wanted not in (defaults[name], own, meant_by_0.get(name, own)):
            ignored.append(f'{name}={wanted} (it has {own})')
    return ', '.join(ignored)
