"""
A model as an ONNX file: one graph that onnxruntime and others run without PyTorch.

    input_ids (B, T) int64  ->  logits (B, T, V) float32        T from 1 to block_size, the logits of every position

Needs onnx and onnxscript: pip install onnx onnxscript
"""

import contextlib
import io
import json
import logging
import warnings

import torch
from torch import nn

from gradus import checkpoint, pretrained
from gradus.errors import UserError
from gradus.files import atomic_write

LIMIT = 2 ** 31 - 2 ** 20                             # protobuf's 2 GiB, minus room for the graph itself


def write_onnx(path, found):
    """
    Write the `Pretrained` model to `path` in float32. model_args, tokenizer and iter_num are in the file's metadata,
    as JSON texts. Raises UserError.
    """
    try:
        import onnx_ir
        import onnxscript  # noqa: F401  torch.onnx needs it
    except ImportError as e:
        raise UserError('an ONNX file needs onnx and onnxscript; pip install onnx onnxscript') from e
    if found.config.mask != 'causal':
        raise UserError(f'{found.source}: mask={found.config.mask}: an ONNX file needs mask=causal; '
                        'choose another format, or train a model with that setting')
    model = pretrained.build(found)
    size = sum(4 * p.numel() for p in model.parameters())
    if size > LIMIT:
        raise UserError(f'{path}: {size:,} bytes of float32 weights; expected at most {LIMIT:,}, '
                        'which is what one ONNX file can hold; choose another format')

    graph = _trace(model)
    _forget_where_it_was_made(graph)
    metadata = dict(model_args=checkpoint.model_args(found.config), tokenizer=found.tokenizer, iter_num=found.iter_num)
    for key, value in metadata.items():
        graph.metadata_props[key] = json.dumps(value)
    content = onnx_ir.to_proto(graph).SerializeToString()
    with atomic_write(path) as f:
        f.write(content)


class AllLogits(nn.Module):
    """The model as a function from ids to the logits of all positions."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids):
        return self.model(input_ids, input_ids, ExplicitMask())[0]              # the loss is not part of the graph


class ExplicitMask:
    """
    Stands in for a `KVCache` that is empty. The model then gets its causal mask as a tensor. It would otherwise ask
    whether T > 1, which has no answer while T stands for any length.
    """

    def advance(self, T):
        self.T = T
        return slice(T)

    def update(self, layer, k, v):
        return k, v, torch.ones(self.T, self.T, dtype=torch.bool, device=k.device).tril()


def _trace(model):
    """The model as a graph of ONNX operators, in memory."""
    block_size = model.config.block_size
    length = min(block_size, 3)                       # of the example; 1 would be taken for a constant
    sizes = {0: torch.export.Dim('batch')}
    if block_size > 1:
        sizes[1] = torch.export.Dim('length', max=block_size)
    example = torch.zeros(2, length, dtype=torch.int64)
    with _silence():
        program = torch.onnx.export(
            AllLogits(model).eval(),
            (example,),
            input_names=['input_ids'],
            output_names=['logits'],
            dynamic_shapes=(sizes,),
            dynamo=True,
            verbose=False,
        )
    return program.model


@contextlib.contextmanager
def _silence():
    """Discard the exporter's progress, warnings and log lines. What goes wrong is an exception."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter('ignore')
            yield
    finally:
        logging.disable(before)


def _forget_where_it_was_made(graph):
    """Each node comes with the stack of the code that made it: paths of this machine, larger than a small model."""
    for node in graph.graph.all_nodes():
        node.metadata_props.clear()
    for value in (*graph.graph.inputs, *graph.graph.outputs, *graph.graph.initializers.values()):
        value.metadata_props.clear()
    graph.graph.metadata_props.clear()
