"""
GGUF, the format of llama.cpp and what is built on it: one file with sizes, tokenizer and weights.

    load(path)      a GPT-2, Llama or Qwen3 as GPTConfig, weights, tokenizer; quantized weights become float32 again
    write(path)     the same for llama.cpp, with weights in float32, float16, or 8 bits (q8_0)

Layout: magic, version, two counts, the keys with their values, a line about each tensor, then all numbers. The file may
come from anywhere: counts and sizes are compared with its length before anything is made of them.
Needs gguf: pip install gguf
"""

import os
import struct
from dataclasses import dataclass
from math import prod

import numpy as np
import torch

from gradus import families, tokenizer_files
from gradus.errors import UserError, one_line, show
from gradus.families import FAMILIES
from gradus.files import atomic_write, require_file

NUMBERS = {0: '<B', 1: '<b', 2: '<H', 3: '<h', 4: '<I', 5: '<i', 6: '<f', 7: '<?', 10: '<Q', 11: '<q', 12: '<d'}
STRING, ARRAY = 8, 9                                  # the other two types of values
MAX_HEADER = 2 ** 27                                  # bytes of everything before the weights
MAX_COUNT = 2 ** 22                                   # values in an array, or keys, or tensors
DTYPES = ('f32', 'f16', 'q8_0')
NO_BIAS = 'gradus.no_bias'                            # a key of ours: the biases are zeros because there are none

# Keys below the architecture's name that change nothing about what we compute, beside those in the family's table.
HARMLESS = ('attention.value_length', 'rope.dimension_count', 'tensor_data_layout')
OFF = {'rope.scaling.type': ('none', ''), 'attention.sliding_window': (0,), 'attention.causal': (True,),
       'expert_count': (0,), 'expert_used_count': (0,)}


def _package(what):
    try:
        import gguf
        return gguf
    except ImportError as e:
        raise UserError(f'{what} needs gguf; pip install gguf') from e


# ---------------------------------------------------------------------------- reading

@dataclass
class Stored:
    """A tensor in the file."""
    shape: tuple           # as torch counts: (rows, columns)
    kind: int              # GGUF's number of the type
    start: int             # byte in the file
    size: int              # bytes


class Header:
    """A cursor over the part of the file before the weights. Each read is checked against what is left."""

    def __init__(self, file, size, source):
        self.file = file
        self.left = min(size, MAX_HEADER)
        self.source = source

    def bytes(self, n):
        if n > self.left:
            raise UserError(f'{self.source}: truncated or not GGUF: {n:,} bytes announced, {self.left:,} left')
        self.left -= n
        return self.file.read(n)

    def number(self, layout):
        return struct.unpack(layout, self.bytes(struct.calcsize(layout)))[0]

    def count(self, smallest):
        """A number of things that take at least `smallest` bytes each."""
        n = self.number('<Q')
        if n > MAX_COUNT or n * smallest > self.left:
            raise UserError(f'{self.source}: truncated or not GGUF: {n:,} values announced, {self.left:,} bytes left')
        return n

    def string(self):
        return self.bytes(self.number('<Q')).decode('utf-8', errors='replace')

    def value(self, kind):
        if kind in NUMBERS:
            return self.number(NUMBERS[kind])
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            raise UserError(f'{self.source}: a value of type {kind}; expected one of 0 to 12')
        kind = self.number('<I')
        if kind == STRING:
            return [self.string() for _ in range(self.count(8))]
        if kind not in NUMBERS:
            raise UserError(f'{self.source}: an array of type {kind}; expected numbers or strings')
        width = struct.calcsize(NUMBERS[kind])
        n = self.count(width)
        return np.frombuffer(self.bytes(n * width), NUMBERS[kind]).tolist()


def read_header(path):
    """({key: value}, {name: Stored}) of a GGUF file. Raises UserError."""
    require_file(path)
    gguf = _package(path)
    size = os.path.getsize(path)
    try:
        with open(path, 'rb') as f:
            header = Header(f, size, path)
            magic, version = header.bytes(4), header.number('<I')
            if magic != b'GGUF' or version not in (2, 3):
                raise UserError(f'{path}: begins with {show(magic)}, version {version}; expected GGUF, version 2 or 3')
            n_tensors, n_keys = header.count(24), header.count(12)
            keys = {}
            for _ in range(n_keys):
                key = header.string()
                keys[key] = header.value(header.number('<I'))
            tensors = {}
            for _ in range(n_tensors):
                name = header.string()
                n_dims = header.number('<I')
                if n_dims > 4:
                    raise UserError(f'{path}: {show(name)} has {n_dims} dimensions; expected at most 4')
                dims = [header.number('<Q') for _ in range(n_dims)]
                kind, offset = header.number('<I'), header.number('<Q')
                if name in tensors:
                    raise UserError(f'{path}: two tensors are called {show(name)}')
                tensors[name] = (dims, kind, offset)
            end = f.tell()
    except OSError as e:
        raise UserError(f'{path}: cannot be read ({e.strerror})') from e

    alignment = keys.get('general.alignment', 32)
    if type(alignment) is not int or not 1 <= alignment <= 2 ** 20:
        raise UserError(f'{path}: general.alignment is {show(alignment)}; expected a small number')
    data = end + -end % alignment
    return keys, {name: _stored(gguf, path, name, *found, data, size) for name, found in tensors.items()}


def _stored(gguf, path, name, dims, kind, offset, data, size):
    """Where a tensor is. Raises UserError unless the file holds all of it."""
    try:
        kind = gguf.GGMLQuantizationType(kind)
        block, n_bytes = gguf.GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError) as e:
        raise UserError(f'{path}: {show(name)} is of type {show(kind)}, which the package gguf does not know') from e
    if not dims or not all(dims) or dims[0] % block:
        raise UserError(f'{path}: {show(name)} has the shape {dims}; expected rows of {block} numbers or multiples')
    length = prod(dims) // block * n_bytes
    if data + offset + length > size:
        raise UserError(f'{path}: truncated: {show(name)} claims {length:,} bytes at {data + offset:,}, '
                        f'the file has {size:,}')
    return Stored(tuple(reversed(dims)), kind, data + offset, length)


def load(path):
    """
    (config, weights, tokenizer) of a GGUF file. tokenizer: plain data, or a sentence that says why there is none.
    Raises UserError.
    """
    keys, stored = read_header(path)
    gguf = _package(path)
    family, config = _config(keys, stored, path)

    def read(name):
        tensor = stored[name]
        with open(path, 'rb') as f:
            f.seek(tensor.start)
            raw = np.frombuffer(f.read(tensor.size), np.uint8)
        try:
            with np.errstate(all='ignore'):           # of NaN and infinity: Weights refuses them
                numbers = gguf.dequantize(raw.reshape(prod(tensor.shape[:-1]), -1), tensor.kind)
        except NotImplementedError as e:
            raise UserError(f'{path}: {show(name)} is {tensor.kind.name}: {one_line(e)}') from e
        return torch.from_numpy(numbers.reshape(tensor.shape).astype(np.float32))

    weights = families.from_theirs(family, config, stored.keys(), read, 2, path)
    try:
        tokenizer = tokenizer_files.from_gguf(keys)
    except UserError as e:
        tokenizer = f'{path}: {e}'
    return config, weights, tokenizer


def _config(keys, stored, path):
    """The family and the GPTConfig that the keys describe. Raises UserError for what our GPT cannot be."""
    name = keys.get('general.architecture')
    if type(name) is not str or name not in FAMILIES:
        raise UserError(f"{path}: general.architecture is {show(name)}; expected {', '.join(FAMILIES)}")
    family = FAMILIES[name]
    known = {key for _, _, key in family.sizes} | {*HARMLESS}
    for full, value in keys.items():
        key = full.removeprefix(f'{name}.')
        off = key in OFF and value in OFF[key]
        if full.startswith(f'{name}.') and key not in known and not off:
            raise UserError(f'{path}: {full}={show(value)} is not supported')

    sizes = {}
    defaults = {'rope.freq_base': 10000.0}
    if 'token_embd.weight' in stored:
        defaults['vocab_size'] = stored['token_embd.weight'].shape[0]
    for field, _, key in family.sizes:
        kind = float if field in ('eps', 'rope_theta') else int
        value = keys.get(f'{name}.{key}', defaults.get(key))
        if value is None and key == 'attention.head_count_kv':
            value = sizes['n_head']
        if value is None and key == 'attention.key_length':
            value = sizes['n_embd'] // max(sizes['n_head'], 1)
        if type(value) is not kind:
            raise UserError(f'{path}: {name}.{key} is {show(value)}; expected {kind.__name__}')
        sizes[field] = float(str(np.float32(value))) if kind is float else value
    for key in ('attention.value_length', 'rope.dimension_count'):
        if keys.get(f'{name}.{key}', sizes.get('head_width')) != sizes.get('head_width'):
            raise UserError(f"{path}: {name}.{key}={show(keys[f'{name}.{key}'])} is not supported; expected "
                            f"{sizes.get('head_width')}, the width of a head")
    more = dict(tie_weights='output.weight' not in stored)
    more['bias'] = 'blk.0.ffn_up.bias' in stored and keys.get(NO_BIAS) is not True
    return family, families.config_from(family, sizes, path, **more)


# ---------------------------------------------------------------------------- writing

def write(path, config, weights, spec, source, dtype='f32', name='gradus'):
    """
    Write a model for llama.cpp. weights: {our name: tensor}; spec: its tokenizer as plain data. Norms, biases and
    positions stay float32; so do matrices whose rows are no multiple of 32 in q8_0.
    Returns sentences on what the format cannot express. Raises UserError.
    """
    gguf = _package('export.py --to=gguf')
    family = families.family_of(config, source)
    if config.mlp == 'relu':
        raise UserError(f'{source}: mlp=relu: llama.cpp computes GELU in a {family.name}; --to=hf has it')
    tokenizer, notes = tokenizer_files.to_gguf(spec, config.vocab_size)
    if config.mlp == 'gelu':
        notes.append('llama.cpp computes GELU by its tanh approximation: log-probabilities differ by about 0.001')

    out = gguf.GGUFWriter(None, family.name)
    out.add_name(name)
    out.add_file_type({'f32': 0, 'f16': 1, 'q8_0': 7}[dtype])
    for field, _, key in family.sizes:
        value = getattr(config, field)
        add = out.add_float32 if isinstance(value, float) else out.add_uint32
        add(f'{family.name}.{key}', value)
    if family.name != 'gpt2':
        out.add_uint32(f'{family.name}.attention.value_length', config.head_width)
        out.add_uint32(f'{family.name}.rope.dimension_count', config.head_width)
    if family.always_bias and not config.bias:
        out.add_bool(NO_BIAS, True)
    _add_tokenizer(out, tokenizer, spec)

    kinds = {}
    for tensor in families.tensors_of(family, config, 2):
        kind = _kind(gguf, tensor, dtype)
        block, n_bytes = gguf.GGML_QUANT_SIZES[kind]
        numpy_dtype = np.dtype(np.float16 if kind.name == 'F16' else np.float32)
        out.add_tensor_info(tensor.theirs, tensor.shape, numpy_dtype, prod(tensor.shape) // block * n_bytes,
                            raw_dtype=kind)
        kinds[tensor.theirs] = kind
    with atomic_write(path) as f:
        try:
            out.write_header_to_file(f.name)
            out.write_kv_data_to_file()
            out.write_ti_data_to_file()
            for their_name, tensor in families.to_theirs(family, config, weights, 2):
                numbers = np.ascontiguousarray(tensor.detach().float().numpy())
                out.write_tensor_data(gguf.quants.quantize(numbers, kinds[their_name]))
        finally:
            out.close()
    return notes


def _kind(gguf, tensor, dtype):
    """The type in which a tensor is written."""
    kinds = gguf.GGMLQuantizationType
    matrix = len(tensor.shape) == 2 and not tensor.theirs.startswith('position_embd')
    if dtype == 'f16' and matrix:
        return kinds.F16
    if dtype == 'q8_0' and matrix and tensor.shape[1] % 32 == 0:
        return kinds.Q8_0
    return kinds.F32


def _add_tokenizer(out, tokenizer, spec):
    out.add_tokenizer_model(tokenizer['model'])
    out.add_tokenizer_pre(tokenizer['pre'])
    out.add_token_list(tokenizer['tokens'])
    out.add_token_types(tokenizer['token_type'])
    out.add_token_merges(tokenizer['merges'])
    out.add_bos_token_id(tokenizer['bos_token_id'])
    out.add_eos_token_id(tokenizer['eos_token_id'])
    out.add_add_bos_token(tokenizer['add_bos_token'])
    if spec.get('chat_template'):
        out.add_chat_template(spec['chat_template'])
