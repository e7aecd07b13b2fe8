"""
The published families that our GPT can be: GPT-2, Llama and Qwen3, by the names of Hugging Face and of GGUF.

Each family has one table for its sizes and one for its tensors; both are read in both directions. A tensor of ours can
be several of theirs (queries, keys and values are stacked here), and some lie differently in memory there:

    transposed    (in, out) instead of (out, in): GPT-2 in Hugging Face's format
    interleaved   the pairs that rotary positions rotate lie side by side: queries and keys of Llama in GGUF
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from gradus.errors import UserError, show
from gradus.optim import FLOATS
from gradus.shapes import empty_gpt
from model import GPTConfig


@dataclass(frozen=True)
class Family:
    name: str              # model_type in config.json, general.architecture in GGUF
    hf_class: str
    needs: dict            # field of GPTConfig: the values that it must have
    sizes: tuple           # (field of GPTConfig, key in config.json, key in GGUF)
    tensors: tuple         # (ours, Hugging Face's, GGUF's), without .weight and .bias; {} is the layer
    transposed: tuple = ()     # Hugging Face's tensors that are (in, out)
    interleaved: tuple = ()    # GGUF's tensors whose rotary pairs lie side by side
    always_bias: bool = False  # biases are written even if the model has none


SIZES = (
    ('n_layer', 'num_hidden_layers', 'block_count'),
    ('n_head', 'num_attention_heads', 'attention.head_count'),
    ('kv_heads', 'num_key_value_heads', 'attention.head_count_kv'),
    ('n_embd', 'hidden_size', 'embedding_length'),
    ('hidden', 'intermediate_size', 'feed_forward_length'),
    ('block_size', 'max_position_embeddings', 'context_length'),
    ('vocab_size', 'vocab_size', 'vocab_size'),
    ('head_width', 'head_dim', 'attention.key_length'),
    ('eps', 'rms_norm_eps', 'attention.layer_norm_rms_epsilon'),
    ('rope_theta', 'rope_theta', 'rope.freq_base'),
)
TENSORS = (
    ('transformer.wte', 'model.embed_tokens', 'token_embd'),
    ('transformer.h.{}.ln_1', 'model.layers.{}.input_layernorm', 'blk.{}.attn_norm'),
    ('transformer.h.{}.attn.c_attn', 'model.layers.{}.self_attn.q_proj', 'blk.{}.attn_q'),
    ('transformer.h.{}.attn.c_attn', 'model.layers.{}.self_attn.k_proj', 'blk.{}.attn_k'),
    ('transformer.h.{}.attn.c_attn', 'model.layers.{}.self_attn.v_proj', 'blk.{}.attn_v'),
    ('transformer.h.{}.attn.q_norm', 'model.layers.{}.self_attn.q_norm', 'blk.{}.attn_q_norm'),
    ('transformer.h.{}.attn.k_norm', 'model.layers.{}.self_attn.k_norm', 'blk.{}.attn_k_norm'),
    ('transformer.h.{}.attn.c_proj', 'model.layers.{}.self_attn.o_proj', 'blk.{}.attn_output'),
    ('transformer.h.{}.ln_2', 'model.layers.{}.post_attention_layernorm', 'blk.{}.ffn_norm'),
    ('transformer.h.{}.mlp.c_gate', 'model.layers.{}.mlp.gate_proj', 'blk.{}.ffn_gate'),
    ('transformer.h.{}.mlp.c_fc', 'model.layers.{}.mlp.up_proj', 'blk.{}.ffn_up'),
    ('transformer.h.{}.mlp.c_proj', 'model.layers.{}.mlp.down_proj', 'blk.{}.ffn_down'),
    ('transformer.ln_f', 'model.norm', 'output_norm'),
    ('lm_head', 'lm_head', 'output'),
)
NO_WHAT_IF = dict(score=('dot',), mask=('causal',), residual=(True,))
MODERN = dict(NO_WHAT_IF, pos=('rotary',), norm=('rmsnorm',), mlp=('swiglu',))

GPT2 = Family(
    name='gpt2',
    hf_class='GPT2LMHeadModel',
    needs=dict(NO_WHAT_IF, pos=('learned',), norm=('layernorm',), mlp=('gelu_tanh', 'gelu', 'relu'),
               qk_norm=(False,), n_kv_head=(0,), head_dim=(0,)),
    sizes=(
        ('n_layer', 'n_layer', 'block_count'),
        ('n_head', 'n_head', 'attention.head_count'),
        ('n_embd', 'n_embd', 'embedding_length'),
        ('hidden', 'n_inner', 'feed_forward_length'),
        ('block_size', 'n_positions', 'context_length'),
        ('vocab_size', 'vocab_size', 'vocab_size'),
        ('eps', 'layer_norm_epsilon', 'attention.layer_norm_epsilon'),
    ),
    tensors=tuple((name, name, gguf) for name, gguf in (                        # our names are Hugging Face's
        ('transformer.wte', 'token_embd'),
        ('transformer.wpe', 'position_embd'),
        ('transformer.h.{}.ln_1', 'blk.{}.attn_norm'),
        ('transformer.h.{}.attn.c_attn', 'blk.{}.attn_qkv'),
        ('transformer.h.{}.attn.c_proj', 'blk.{}.attn_output'),
        ('transformer.h.{}.ln_2', 'blk.{}.ffn_norm'),
        ('transformer.h.{}.mlp.c_fc', 'blk.{}.ffn_up'),
        ('transformer.h.{}.mlp.c_proj', 'blk.{}.ffn_down'),
        ('transformer.ln_f', 'output_norm'),
        ('lm_head', 'output'),
    )),
    transposed=('attn.c_attn', 'attn.c_proj', 'mlp.c_fc', 'mlp.c_proj'),
    always_bias=True,
)
LLAMA = Family(
    name='llama',
    hf_class='LlamaForCausalLM',
    needs=dict(MODERN, qk_norm=(False,)),
    sizes=SIZES,
    tensors=TENSORS,
    interleaved=('attn_q', 'attn_k'),
)
QWEN3 = Family(
    name='qwen3',
    hf_class='Qwen3ForCausalLM',
    needs=dict(MODERN, qk_norm=(True,), bias=(False,)),
    sizes=SIZES,
    tensors=TENSORS,
)
FAMILIES = {family.name: family for family in (GPT2, LLAMA, QWEN3)}
AUTOMATIC = dict(n_kv_head='kv_heads', n_inner='hidden', head_dim='head_width', norm_eps='eps')   # where 0 = automatic


# ---------------------------------------------------------------------------- which family

def simplified(config):
    """The same GPTConfig with 0 (automatic) where that means the same."""
    for field, effective in AUTOMATIC.items():
        try:
            simpler = replace(config, **{field: 0})
        except ValueError:                            # a head_dim of 0 needs n_embd to be a multiple of n_head
            continue
        if getattr(simpler, effective) == getattr(config, effective):
            config = simpler
    return config


def family_of(config, source):
    """The family that a GPTConfig belongs to. Raises UserError, which names the field and the nearest family."""
    config = simplified(config)
    obstacles = {}
    for family in FAMILIES.values():
        obstacles[family.name] = [f for f, values in family.needs.items() if getattr(config, f) not in values]
    nearest = min(obstacles, key=lambda name: len(obstacles[name]))
    if not obstacles[nearest]:
        return FAMILIES[nearest]
    needs = FAMILIES[nearest].needs
    parts = [f"{f}={getattr(config, f)} (it has {' or '.join(map(str, needs[f]))})" for f in obstacles[nearest]]
    raise UserError(f"{source}: no published family has this model's shape; the nearest is {nearest}, but for "
                    f"{', '.join(parts)}")


def config_from(family, values, source, **more):
    """
    The GPTConfig of a model of a family. values: a value for each field in `family.sizes`; more: other fields.
    Raises UserError if there is no such GPT.
    """
    settings = {'n_kv_head': 0, 'n_inner': 0, 'head_dim': 0, 'norm_eps': 0.0}
    names = {effective: field for field, effective in AUTOMATIC.items()}
    for field, value in values.items():
        settings[names.get(field, field)] = value
        if value == 0:                                # which would mean automatic here
            raise UserError(f'{source}: {names.get(field, field)}=0: expected a positive number')
    fixed = {field: options[0] for field, options in family.needs.items()}
    try:
        return simplified(GPTConfig(**{**fixed, **settings, **more}))
    except (ValueError, TypeError, OverflowError) as e:
        raise UserError(f'{source}: {e}') from e


# ---------------------------------------------------------------------------- which tensor

def shapes(config):
    """{name: shape} of all parameters of a GPT, without making it."""
    model = empty_gpt(replace(config, n_layer=1))     # all layers are alike, and a file may claim many
    one = {name: tensor.shape for name, tensor in model.state_dict().items()}
    layer = [name for name in one if '.h.0.' in name]
    names = list(one)
    before, after = names[:names.index(layer[0])], names[names.index(layer[-1]) + 1:]
    found = {name: one[name] for name in before}
    for i in range(config.n_layer):
        found.update({name.replace('.h.0.', f'.h.{i}.'): one[name] for name in layer})
    return {**found, **{name: one[name] for name in after}}


@dataclass
class Tensor:
    """One of their tensors: rows of one of ours."""
    theirs: str
    ours: str
    rows: slice
    shape: tuple           # in our layout
    layout: str            # transposed, interleaved, or empty
    heads: int

    def theirs_from(self, ours):
        """Their tensor from the whole of ours."""
        part = ours[self.rows]
        if self.layout == 'transposed':
            return part.t()
        if self.layout == 'interleaved':              # (heads, 2, D/2, in) -> (heads, D/2, 2, in)
            return part.unflatten(0, (self.heads, 2, -1)).transpose(1, 2).reshape(part.shape)
        return part

    def ours_from(self, theirs):
        """Our rows from their tensor."""
        if self.layout == 'transposed':
            return theirs.t()
        if self.layout == 'interleaved':
            return theirs.unflatten(0, (self.heads, -1, 2)).transpose(1, 2).reshape(theirs.shape)
        return theirs

    @property
    def their_shape(self):
        return tuple(reversed(self.shape)) if self.layout == 'transposed' else tuple(self.shape)


def tensors_of(family, config, column):
    """
    A `Tensor` for each of theirs that a model has. column: 1 for Hugging Face's names, 2 for GGUF's. A tied head is not
    among them.
    """
    if family.always_bias:
        config = replace(config, bias=True)
    rows_of = {}
    for row in family.tensors:
        rows_of.setdefault(row[0], []).append(row[column])

    found = []
    for name, shape in shapes(config).items():
        module, _, kind = name.rpartition('.')
        if config.tie_weights and module == 'lm_head':
            continue
        layer = ''.join(re.findall(r'\.(\d+)\.', module))
        their_names = rows_of[re.sub(r'\.\d+\.', '.{}.', module)]
        heads = [config.n_head, config.kv_heads, config.kv_heads]
        sizes = [n * config.head_width for n in heads] if len(their_names) == 3 else [shape[0]]
        start = 0
        for theirs, size, n in zip(their_names, sizes, heads):
            transposed = column == 1 and kind == 'weight' and theirs.endswith(family.transposed)
            interleaved = column == 2 and theirs.endswith(family.interleaved)
            layout = 'transposed' if transposed else 'interleaved' if interleaved else ''
            found.append(Tensor(f'{theirs.format(layer)}.{kind}', name, slice(start, start + size),
                                (size, *shape[1:]), layout, n))
            start += size
    return found


def to_theirs(family, config, weights, column):
    """Their (name, tensor), one after the other, from our weights {name: tensor}."""
    last_name, last = None, None
    for tensor in tensors_of(family, config, column):
        if tensor.ours != last_name:                  # queries, keys and values are read once
            last_name = tensor.ours
            last = weights[tensor.ours] if tensor.ours in weights else torch.zeros(tensor.shape)    # no biases
        yield tensor.theirs, tensor.theirs_from(last)


def from_theirs(family, config, names, read, column, source):
    """
    The `Weights` of a GPT from a file's tensors. names: what the file holds; read(name): one tensor.
    Raises UserError if a tensor is missing, left over, or of another shape.
    """
    if config.n_layer > max(1000, len(names)):
        raise UserError(f'{source}: {config.n_layer} layers, but {len(names)} tensors')
    tensors = tensors_of(family, config, column)
    expected = {tensor.theirs for tensor in tensors}
    if missing := sorted(expected - set(names)):
        raise UserError(f'{source}: no tensor {missing[0]}; expected that of {config.n_layer} layers of {family.name}')
    if left_over := sorted(set(names) - expected, key=str):
        raise UserError(f'{source}: tensor {show(left_over[0])}: {family.name} as we know it has none')

    def rows(tensor):
        part = read(tensor.theirs)
        if tuple(part.shape) != tensor.their_shape:
            raise UserError(f'{source}: {tensor.theirs} is {tuple(part.shape)}, expected {tensor.their_shape}')
        if part.dtype not in FLOATS:
            raise UserError(f'{source}: {tensor.theirs} is of {part.dtype}; expected floating-point weights')
        return tensor.ours_from(part).float()

    if family.always_bias and not config.bias:        # a model without biases was written with zeros
        if any(rows(tensor).any() for tensor in tensors if tensor.theirs.endswith('.bias')):
            raise UserError(f'{source}: bias=False, but its biases are not zero; expected zeros, or no such key')
        tensors = [tensor for tensor in tensors if not tensor.theirs.endswith('.bias')]
    parts = {}
    for tensor in tensors:
        parts.setdefault(tensor.ours, []).append(tensor)

    def reader(tensors):
        return lambda: torch.cat([rows(tensor) for tensor in tensors]).contiguous()

    return Weights(config, {name: reader(tensors) for name, tensors in parts.items()}, source)


class Weights(Mapping):
    """
    The weights of a GPT, {our name: tensor}. A tensor is read when it is asked for, and checked: it has the shape that
    the config implies, and holds finite floating-point numbers. Raises UserError, which names `source`.

    readers: {our name: a function that returns the tensor}.
    """

    def __init__(self, config, readers, source):
        if config.n_layer > max(1000, len(readers)):
            raise UserError(f'{source}: {MISFIT}: n_layer={config.n_layer} for {len(readers)} tensors')
        self.source = source
        self.shapes = shapes(config)
        self.readers = dict(readers)
        if config.tie_weights:                        # some files have one name of the two
            for name, other in (TIED, TIED[::-1]):
                if other in readers:
                    self.readers.setdefault(name, readers[other])
        for name, shape in self.shapes.items():
            if name not in self.readers:
                raise UserError(f'{source}: {MISFIT}: {name} is missing, expected {tuple(shape)}')
        if left_over := sorted(self.readers.keys() - self.shapes.keys()):
            raise UserError(f'{source}: {MISFIT}: unexpected tensor {show(left_over[0])}')

    def __getitem__(self, name):
        tensor = self.readers[name]()
        if tensor.dtype not in FLOATS:
            raise UserError(f'{self.source}: {show(name)} is of {tensor.dtype}; expected floating-point weights')
        if tensor.shape != self.shapes[name]:
            raise UserError(f'{self.source}: {MISFIT}: size mismatch: {name} is {tuple(tensor.shape)}, '
                            f'expected {tuple(self.shapes[name])}')
        if not torch.stack(tensor.aminmax()).isfinite().all():                  # one pass, no copy
            raise UserError(f'{self.source}: {show(name)} holds NaN or infinity: the run that wrote it had diverged; '
                            'use an earlier checkpoint')
        return tensor

    def __iter__(self):
        return iter(self.shapes)

    def __len__(self):
        return len(self.shapes)


TIED = ('lm_head.weight', 'transformer.wte.weight')
MISFIT = 'model_args and weights do not fit'
