"""
Hugging Face's format: a folder with config.json, model.safetensors (or several shards), and the tokenizer's files.

    load(source)            a GPT-2, Llama or Qwen3, from a folder or from the hub, as GPTConfig, weights, tokenizer
    write_folder(...)       the same for transformers' AutoModelForCausalLM and AutoTokenizer
    write_safetensors(...)  one file of tensors under our own names

Tensors are read and written one after the other. Reading needs safetensors, and huggingface_hub to download:
pip install safetensors huggingface_hub
"""

import json
import os
import struct

import torch

from gradus import families, tokenizer_files
from gradus.errors import UserError, one_line, show
from gradus.families import FAMILIES
from gradus.files import atomic_write, require_file

FILES = ('config.json', 'model.safetensors')
INDEX = 'model.safetensors.index.json'                # which shard holds which tensor
ACTIVATION = {'gelu': 'gelu', 'gelu_new': 'gelu_tanh', 'gelu_pytorch_tanh': 'gelu_tanh', 'gelu_fast': 'gelu_tanh',
              'relu': 'relu'}

# What config.json may say beside sizes: the values that our GPT computes. A key that is missing has the first one.
ALL = dict(quantization_config=(None,), is_causal=(True,))
ROTARY = dict(ALL, hidden_act=('silu',), rope_scaling=(None, {'rope_type': 'default'}, {'type': 'default'}),
              partial_rotary_factor=(None, 1, 1.0))
KNOWN = {
    'gpt2': dict(ALL, activation_function=('gelu_new', *ACTIVATION), scale_attn_weights=(True,),
                 scale_attn_by_inverse_layer_idx=(False,), add_cross_attention=(False, None)),
    'llama': dict(ROTARY, attention_bias=(False, True), mlp_bias=(False, True), sliding_window=(None,)),
    'qwen3': dict(ROTARY, attention_bias=(False,), use_sliding_window=(False, None)),
}
# What transformers assumes for a size that is missing or null; all others must be there.
DEFAULTS = {
    'gpt2': dict(layer_norm_epsilon=1e-5),
    'llama': dict(rms_norm_eps=1e-6, rope_theta=10000.0),
    'qwen3': dict(rms_norm_eps=1e-6, rope_theta=10000.0, head_dim=128),
}


# ---------------------------------------------------------------------------- reading

def load(source):
    """
    (config, weights, tokenizer) of a model in Hugging Face's format. source: a folder, or a name on the hub (gpt2,
    gpt2-medium, gpt2-large, gpt2-xl, or owner/model). tokenizer: plain data, or a sentence that says why there is none.
    Raises UserError.
    """
    _safetensors(f'init_from={source}')               # before anything is downloaded
    found = _read_json(_find(source, 'config.json'), source)
    family, config = _config(found, source)
    names, read = _tensors(family, source)
    if config.tie_weights:                            # some files hold it nevertheless
        names = names - {'lm_head.weight'}
    weights = families.from_theirs(family, config, names, read, 1, source)
    return config, weights, _tokenizer(source, config, found.get('eos_token_id'))


def _safetensors(what):
    try:
        import safetensors
        return safetensors
    except ImportError as e:
        raise UserError(f'{what} needs safetensors; pip install safetensors huggingface_hub') from e


def _read_json(path, source):
    try:
        with open(path, encoding='utf-8-sig') as f:
            found = json.load(f)
    except (OSError, ValueError, RecursionError) as e:
        name = os.path.basename(path)
        raise UserError(f'{source}: {name} cannot be read ({type(e).__name__}: {one_line(e, limit=120)})') from e
    if not isinstance(found, dict):
        raise UserError(f'{source}: {os.path.basename(path)} holds {show(found)}; expected an object')
    return found


def _config(found, source):
    """The family and the GPTConfig that a config.json describes. Raises UserError for what our GPT cannot be."""
    def value(key, kind, default=None):
        number = found.get(key)
        number = default if number is None else number
        if kind is float and type(number) is int and abs(number) < 2 ** 53:
            number = float(number)
        if type(number) is not kind or kind is int and abs(number) > 2 ** 53:
            raise UserError(f'{source}: {key} is {show(number)} in config.json; expected {kind.__name__}')
        return number

    model_type = value('model_type', str)
    if model_type not in FAMILIES:
        raise UserError(f"{source}: a model of type {show(model_type)}; expected {', '.join(FAMILIES)}")
    family = FAMILIES[model_type]
    found = _flat_rope(found, source)
    _check_known(found, KNOWN[model_type], source)

    # Sizes.
    defaults = {**DEFAULTS[model_type]}
    if model_type != 'gpt2':
        heads = value('num_attention_heads', int)
        defaults.setdefault('head_dim', value('hidden_size', int) // max(heads, 1))
        defaults['num_key_value_heads'] = heads
    else:
        defaults['n_inner'] = 4 * value('n_embd', int)
    sizes = {}
    for field, key, _ in family.sizes:
        sizes[field] = value(key, float if field in ('eps', 'rope_theta') else int, defaults.get(key))

    # The rest.
    more = dict(tie_weights=value('tie_word_embeddings', bool, model_type == 'gpt2'))
    if model_type == 'gpt2':
        more.update(mlp=ACTIVATION[value('activation_function', str, 'gelu_new')],
                    bias=value('bias', bool, True))
    else:
        more['bias'] = value('attention_bias', bool, False)
        if model_type == 'llama' and value('mlp_bias', bool, False) != more['bias']:
            raise UserError(f"{source}: attention_bias={more['bias']} but mlp_bias={not more['bias']} is not "
                            'supported; expected both or neither')
    return family, families.config_from(family, sizes, source, **more)


def _check_known(found, known, source):
    """Raise UserError if one of the `known` keys has a value that our GPT does not compute."""
    for key, values in known.items():
        value = found.get(key, values[0])
        if not any(value is v or type(v) is not bool and value == v for v in values):
            raise UserError(f'{source}: {key}={show(value)} is not supported; expected {show(values[0])}')
    layer_types = found.get('layer_types')
    if layer_types is not None and (type(layer_types) is not list or {*map(str, layer_types)} - {'full_attention'}):
        raise UserError(f'{source}: layer_types={show(layer_types)} is not supported; expected full_attention')


def _flat_rope(found, source):
    """transformers 5 keeps what concerns rotary positions in `rope_parameters`, older versions in two keys."""
    rope = found.get('rope_parameters')
    if rope is None:
        return found
    known = isinstance(rope, dict) and rope.keys() <= {'rope_type', 'type', 'rope_theta', 'partial_rotary_factor'}
    if not known or any(rope.get(key, 'default') != 'default' for key in ('rope_type', 'type')):
        raise UserError(f'{source}: rope_parameters={show(rope)} is not supported; expected the rope_type default and '
                        'rope_theta')
    return {**found, **{key: rope[key] for key in ('rope_theta', 'partial_rotary_factor') if key in rope}}


def _tensors(family, source):
    """
    The names of a model's tensors and a function that reads one of them. A model without head leaves out the prefix.
    """
    prefix = 'transformer.' if family.name == 'gpt2' else 'model.'
    if os.path.isdir(source) and not os.path.exists(os.path.join(source, FILES[1])) and \
            os.path.exists(os.path.join(source, INDEX)):
        shards = _shards(_read_json(os.path.join(source, INDEX), source), source)
    else:
        try:
            shards = [_find(source, FILES[1])]
        except NotOnHub:
            shards = _shards(_read_json(_find(source, INDEX), source), source)
    where = {}
    for path in shards:
        _, names, read = read_safetensors(path, f'{source}: {os.path.basename(path)}')
        for name in names:
            full = name if name.startswith(('transformer.', 'model.', 'lm_head.')) else prefix + name
            if full in where:
                raise UserError(f'{source}: two tensors are called {show(full)}')
            if not name.endswith(('.attn.bias', '.attn.masked_bias', '.rotary_emb.inv_freq')):             # computed
                where[full] = (read, name)

    def read_one(full):
        read, name = where[full]
        return read(name)
    return where.keys(), read_one


def read_safetensors(path, title):
    """
    The metadata of one file, the names of its tensors, and a function that reads one. title: what the error message
    calls it. Raises UserError.
    """
    require_file(path)
    safetensors = _safetensors(path)
    try:
        with safetensors.safe_open(path, 'pt') as f:
            metadata, names = f.metadata() or {}, list(f.keys())
    except MemoryError:
        raise
    except Exception as e:                            # a dozen types for damaged files
        raise UserError(f'{title} cannot be read ({type(e).__name__}: {one_line(e, limit=120)})') from e

    def read(name):
        with safetensors.safe_open(path, 'pt') as f:  # opened again each time: what was mapped is given back
            return f.get_tensor(name)
    return metadata, names, read


def _shards(index, source):
    """The paths of the shards that an index names."""
    names = index.get('weight_map')
    if not isinstance(names, dict) or not all(isinstance(n, str) for n in names.values()):
        raise UserError(f'{source}: {INDEX} has weight_map={show(names)}; expected the names of files')
    for name in names.values():
        if os.path.basename(name) != name:
            raise UserError(f'{source}: {INDEX} names {show(name)}; expected the name of a file beside it')
    return [_find(source, name) for name in sorted(set(names.values()))]


def _tokenizer(source, config, end_id):
    """
    The tokenizer's plain data, or a sentence that says why there is none. Old GPT-2s come without. end_id: what
    config.json says, which counts if tokenizer_config.json says nothing, as that of GPT-2.
    """
    try:
        path = _find(source, 'tokenizer.json')
    except UserError as e:
        return {'kind': 'gpt2'} if config.pos == 'learned' and config.vocab_size in (50257, 50304) else str(e)
    try:
        tokenizer = _read_json(path, source)
    except UserError as e:
        return str(e)
    try:
        config = _read_json(_find(source, 'tokenizer_config.json'), source)
    except UserError:
        config = {}
    try:
        return tokenizer_files.from_hf(tokenizer, {'eos_token_id': end_id, **config})
    except UserError as e:
        return f'{source}: {e}'


class NotOnHub(UserError):
    """There is such a model, without such a file."""


def _find(source, name):
    """The path of file `name` of a model: in the folder `source`, else downloaded from the hub into its cache."""
    if os.path.isdir(source):
        path = os.path.join(source, name)
        if not os.path.exists(path):
            raise UserError(f'{path}: not found; expected a folder with config.json and model.safetensors')
        require_file(path)
        return path
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as e:
        raise UserError(f'init_from={source} is not a folder here, and a download needs huggingface_hub; '
                        'pip install huggingface_hub') from e
    repo = source if '/' in source else f'openai-community/{source}'
    try:
        return hf_hub_download(repo, name)
    except Exception as e:                            # the hub's own errors and those of the network
        kinds = {cls.__name__ for cls in type(e).__mro__}
        absent = 'EntryNotFoundError' in kinds and 'LocalEntryNotFoundError' not in kinds     # Local: no network
        kind = NotOnHub if absent else UserError
        raise kind(f'{source}: {name} is not in the cache and could not be downloaded ({type(e).__name__}); '
                   'give a folder with config.json and model.safetensors') from e


# ---------------------------------------------------------------------------- writing

def config_json(family, config, tokenizer):
    """What transformers must know of a model: config.json."""
    found = {key: getattr(config, field) for field, key, _ in family.sizes}
    found.update(model_type=family.name, architectures=[family.hf_class], tie_word_embeddings=config.tie_weights,
                 dtype='float32', torch_dtype='float32', bos_token_id=tokenizer.start_id,
                 eos_token_id=tokenizer.end_id, pad_token_id=None, use_cache=True)
    if family.name == 'gpt2':
        names = {ours: theirs for theirs, ours in reversed(ACTIVATION.items())}
        found.update(activation_function=names[config.mlp], n_ctx=config.block_size, bias=config.bias)   # bias: ours
        found.update(dict.fromkeys(('attn_pdrop', 'embd_pdrop', 'resid_pdrop'), config.dropout))
    else:
        found.update(hidden_act='silu', attention_bias=config.bias, attention_dropout=config.dropout,
                     rope_parameters=dict(rope_type='default', rope_theta=config.rope_theta))
    if family.name == 'llama':
        found['mlp_bias'] = config.bias
    return found


def write_folder(folder, config, weights, spec, tokenizer, source):
    """
    Write a model for transformers into an existing folder. weights: {our name: tensor}; spec, tokenizer: its
    tokenizer, as plain data and built. Returns sentences on what the format cannot express. Raises UserError.
    """
    family = families.family_of(config, source)
    files, notes = tokenizer_files.to_hf(spec, config.vocab_size)
    files['config.json'] = _as_json(config_json(family, config, tokenizer))
    generation = dict(bos_token_id=tokenizer.start_id, eos_token_id=tokenizer.end_id)
    if tokenizer.n_vocab < config.vocab_size:         # rows without a token, which must never be chosen
        generation['suppress_tokens'] = list(range(tokenizer.n_vocab, config.vocab_size))
    files['generation_config.json'] = _as_json(generation)
    for name, text in files.items():
        with atomic_write(os.path.join(folder, name)) as f:
            f.write(text.encode())
    theirs = {tensor.theirs: tensor.their_shape for tensor in families.tensors_of(family, config, 1)}
    write_safetensors(os.path.join(folder, FILES[1]), theirs, families.to_theirs(family, config, weights, 1))
    return notes


def _as_json(found):
    return json.dumps(found, indent=2, sort_keys=True) + '\n'


def write_safetensors(path, shapes, tensors, **metadata):
    """
    Write tensors in float32, one after the other; safetensors itself would need all of them in memory twice.
    shapes: {name: shape} in the order of `tensors`, (name, tensor) pairs; metadata: written beside them as JSON texts.
    The format: 8 bytes of the header's length, the header as JSON, then all numbers. Raises UserError.
    """
    header = {'__metadata__': {'format': 'pt', **{key: json.dumps(value) for key, value in metadata.items()}}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * torch.Size(shape).numel()
        header[name] = dict(dtype='F32', shape=list(shape), data_offsets=[start, end])
    text = json.dumps(header).encode()
    text += b' ' * (-len(text) % 8)                   # numbers are aligned
    with atomic_write(path) as f:
        f.write(struct.pack('<Q', len(text)) + text)
        for announced, (name, tensor) in zip(shapes, tensors, strict=True):
            assert announced == name and tuple(tensor.shape) == tuple(shapes[name]), name
            f.write(tensor.detach().float().contiguous().numpy().astype('<f4', copy=False).data)
