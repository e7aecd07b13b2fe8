"""
Hugging Face's files: a published GPT-2 to our names and layouts, and our weights as safetensors.

The four matrices of a block are stored there as (in, out), ours as (out, in); otherwise the names agree.
Needs safetensors, and huggingface_hub to download: pip install safetensors huggingface_hub
"""

import json
import os

from gradus.errors import UserError, one_line, show
from gradus.files import atomic_write, require_file

FILES = ('config.json', 'model.safetensors')
TRANSPOSED = ('attn.c_attn.weight', 'attn.c_proj.weight', 'mlp.c_fc.weight', 'mlp.c_proj.weight')
ACTIVATION = {'gelu': 'gelu', 'gelu_new': 'gelu_tanh', 'gelu_pytorch_tanh': 'gelu_tanh', 'relu': 'relu'}


def load_gpt2(source):
    """
    (model_args, state_dict) of a GPT-2 in Hugging Face's format.

    source: a folder with config.json and model.safetensors, or a name on the hub (gpt2, gpt2-medium, gpt2-large,
    gpt2-xl, or owner/model). model_args: keyword arguments of GPTConfig. Raises UserError.
    """
    try:
        from safetensors.torch import load_file
    except ImportError as e:
        raise UserError(f'init_from={source} needs safetensors; pip install safetensors huggingface_hub') from e
    config_path, weights_path = (_find(source, name) for name in FILES)
    try:
        with open(config_path, encoding='utf-8-sig') as f:
            config = json.load(f)
        weights = load_file(weights_path)
    except MemoryError:
        raise
    except Exception as e:                            # a dozen types for damaged files
        raise UserError(f'{source}: cannot be read ({type(e).__name__}: {one_line(e, limit=120)})') from e
    model_args = _model_args(config, source)
    twice = sorted(weights.keys() & {f'transformer.{name}' for name in weights})
    if twice:
        raise UserError(f'{source}: two tensors are called {show(twice[0])}')
    return model_args, from_hf_gpt2(weights, model_args['tie_weights'])


def _model_args(config, source):
    """config.json as keyword arguments of GPTConfig. Raises UserError, also for variants that our GPT-2 cannot be."""
    if not isinstance(config, dict):
        raise UserError(f'{source}: config.json holds {show(config)}; expected an object')

    def value(key, kind, default=None):
        found = config.get(key, default)
        if type(found) is not kind or kind is int and abs(found) > 2 ** 53:
            raise UserError(f'{source}: {key} is {show(found)} in config.json; expected {kind.__name__}')
        return found

    model_type = value('model_type', str)
    if model_type != 'gpt2':
        raise UserError(f'{source}: a model of type {show(model_type)}; expected gpt2')
    activation = value('activation_function', str, 'gelu_new')
    supported = dict(
        activation_function=activation in ACTIVATION,
        layer_norm_epsilon=value('layer_norm_epsilon', float, 1e-5) == 1e-5,
        scale_attn_weights=value('scale_attn_weights', bool, True),
        scale_attn_by_inverse_layer_idx=not value('scale_attn_by_inverse_layer_idx', bool, False),
    )
    for key, ok in supported.items():
        if not ok:
            raise UserError(f'{source}: {key}={show(config[key])} is not supported')

    args = dict(
        n_layer=value('n_layer', int),
        n_head=value('n_head', int),
        n_embd=value('n_embd', int),
        bias=True,
        block_size=value('n_positions', int),
        vocab_size=value('vocab_size', int),
        mlp=ACTIVATION[activation],
        tie_weights=value('tie_word_embeddings', bool, True),
    )
    if config.get('n_inner') is not None and value('n_inner', int) != 4 * args['n_embd']:
        args['n_inner'] = config['n_inner']
    return args


def from_hf_gpt2(weights, tied=True):
    """Rename and transpose {Hugging Face name: tensor} into the state_dict of our GPT."""
    state = {}
    for name, tensor in weights.items():
        if name.endswith(('.attn.bias', '.attn.masked_bias')):        # the causal mask, once stored as a buffer
            continue
        if not name.startswith(('transformer.', 'lm_head.')):         # the hub's own files leave the prefix out
            name = 'transformer.' + name
        turn = name.endswith(TRANSPOSED) and tensor.dim() == 2
        state[name] = tensor.t().contiguous() if turn else tensor
    if tied and 'transformer.wte.weight' in state:
        state['lm_head.weight'] = state['transformer.wte.weight']
    return state


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
        raise UserError(f'{source}: {name} is not in the cache and could not be downloaded ({type(e).__name__}); '
                        'give a folder with config.json and model.safetensors') from e


def save_safetensors(path, weights, **metadata):
    """
    Write {name: tensor} to `path`, with the metadata beside them as JSON texts. A tensor that two names share is
    written under both. Raises UserError.
    """
    try:
        import safetensors.torch
    except ImportError as e:
        raise UserError('export.py needs safetensors; pip install safetensors') from e
    try:
        tensors = {name: tensor.clone() for name, tensor in weights.items()}
        texts = {key: json.dumps(value) for key, value in metadata.items()}
        content = safetensors.torch.save(tensors, metadata={'format': 'pt', **texts})
        with atomic_write(path) as f:
            f.write(content)
    except UserError:
        raise
    except Exception as e:                            # what safetensors cannot write
        raise UserError(f'{path}: could not be written ({one_line(e, limit=120)})') from e
