"""
Two more formats: nanoGPT's ckpt.pt, and ONNX, which many runtimes read (pip install onnx onnxscript).

Both are exact: what a format cannot express is refused, or said.
"""

import json
import logging
import os
import tempfile
import warnings
from contextlib import contextmanager, redirect_stderr, redirect_stdout

import torch
import torch.nn as nn

from gradus import checkpoint
from gradus.errors import UserError, one_line
from gradus.families import simplified
from gradus.files import atomic_write

NANOGPT = dict(pos='learned', norm='layernorm', mlp='gelu', qk_norm=False, n_kv_head=0, tie_weights=True, n_inner=0,
               head_dim=0, norm_eps=0.0)              # the only values that nanoGPT computes


def write_nanogpt(path, found, spec):
    """
    Write a `Pretrained` as a ckpt.pt for nanoGPT's sample.py and train.py. Returns sentences on what the format cannot
    express. Raises UserError.
    """
    config = simplified(found.config)
    for name, value in NANOGPT.items():
        if getattr(config, name) != value:
            raise UserError(f'{found.source}: {name}={getattr(config, name)}: nanoGPT knows only {name}={value}; '
                            '--to=hf or --to=onnx may express it')
    if spec['kind'] not in ('char', 'gpt2'):
        raise UserError(f"{found.source}: nanoGPT has no tokenizer of kind {spec['kind']}; expected char or gpt2")
    weights = dict(found.weights)
    weights['transformer.wte.weight'] = weights['lm_head.weight']               # one tensor, stored once
    dataset = found.dataset or 'gradus'
    state = dict(
        model=weights,
        model_args={name: getattr(config, name) for name in checkpoint.NANOGPT_MODEL_ARGS},
        iter_num=found.iter_num or 0,
        best_val_loss=1e9,
        config=dict(dataset=dataset),
    )
    with atomic_write(path) as f:
        torch.save(state, f)
    if spec['kind'] == 'char':
        return [f'nanoGPT reads the characters from its own data/{dataset}/meta.pkl']
    return []


class AllLogits(nn.Module):
    """input_ids (B, T) -> logits (B, T, V)."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids):
        return self.model(input_ids, input_ids)[0]    # targets, so that all positions get logits; the loss is unused


def write_onnx(path, model, spec):
    """
    Write a GPT as ONNX: `input_ids` (batch, length) int64 -> `logits` (batch, length, V), for any batch and any length
    up to block_size. Config and tokenizer are in its metadata. Raises UserError.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401  torch.onnx needs it
    except ImportError as e:
        raise UserError('export.py --to=onnx needs onnx and onnxscript; pip install onnx onnxscript') from e
    if 4 * model.num_params() > 2 ** 31 - 2 ** 20:
        raise UserError(f'{path}: {model.num_params():,} weights; one ONNX file holds less than 2 GB; use --to=hf')
    example = torch.zeros(2, min(8, model.config.block_size), dtype=torch.int64)
    length = torch.export.Dim('length', max=model.config.block_size)
    if model.config.block_size == 1:
        length = None
    with tempfile.TemporaryDirectory() as tmp, quiet():
        file = os.path.join(tmp, 'model.onnx')
        try:
            torch.onnx.export(AllLogits(model).eval(), (example,), file, dynamo=True, external_data=False,
                              input_names=['input_ids'], output_names=['logits'],
                              dynamic_shapes={'input_ids': {0: torch.export.Dim('batch'), 1: length}})
        except MemoryError:
            raise
        except Exception as e:                        # a dozen types
            raise UserError(f'{path}: torch.onnx cannot express this model ({one_line(e, limit=160)})') from e
        proto = onnx.load(file)
    texts = dict(model_args=checkpoint.model_args(model.config), tokenizer=spec)
    onnx.helper.set_model_props(proto, {key: json.dumps(value) for key, value in texts.items()})
    with atomic_write(path) as f:
        f.write(proto.SerializeToString())
    return []


@contextmanager
def quiet():
    """Nothing of what the exporter prints, logs and warns about."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with open(os.devnull, 'w', encoding='utf-8') as nowhere, warnings.catch_warnings():
            warnings.simplefilter('ignore')
            with redirect_stdout(nowhere), redirect_stderr(nowhere):
                yield
    finally:
        logging.disable(level)
