"""
Other people's weights: Hugging Face's names and layouts to ours, and ours to other people.

GPT-2's four matrices stand there as (in, out), ours as (out, in); the names agree but for that.
Needs safetensors, and huggingface_hub to download: pip install safetensors huggingface_hub
"""

import json
import os

TRANSPOSED = ('attn.c_attn.weight', 'attn.c_proj.weight', 'mlp.c_fc.weight', 'mlp.c_proj.weight')
ACTIVATION = {'gelu': 'gelu', 'gelu_new': 'gelu_tanh', 'gelu_pytorch_tanh': 'gelu_tanh', 'relu': 'relu'}


class InteropError(ValueError):
    """Weights that cannot be had or do not fit, in one line."""


def load_gpt2(source):
    """
    (model_args, state_dict) of a GPT-2 in Hugging Face's format.

    source: a folder with config.json and model.safetensors, or a name on the hub (gpt2, gpt2-medium,
    gpt2-large, gpt2-xl, or owner/model). model_args: keyword arguments of GPTConfig. Raises InteropError.
    """
    try:
        from safetensors.torch import load_file
    except ImportError as e:
        raise InteropError(f'init_from={source} needs safetensors; pip install safetensors huggingface_hub') from e
    config_path, weights_path = (_find(source, name) for name in ('config.json', 'model.safetensors'))
    try:
        with open(config_path, encoding='utf-8') as f:
            config = json.load(f)
        weights = load_file(weights_path)
    except Exception as e:                            # a dozen types for damaged files
        raise InteropError(f'{source}: cannot be read ({type(e).__name__}: {str(e)[:120]})') from e
    if config.get('model_type') != 'gpt2':
        raise InteropError(f"{source}: a model of type {config.get('model_type')}; expected gpt2")
    activation = config.get('activation_function', 'gelu_new')
    for key, ours in (('activation_function', activation in ACTIVATION), ('layer_norm_epsilon', config.get('layer_norm_epsilon', 1e-5) == 1e-5),
                      ('scale_attn_weights', config.get('scale_attn_weights', True)),
                      ('scale_attn_by_inverse_layer_idx', not config.get('scale_attn_by_inverse_layer_idx'))):
        if not ours:
            raise InteropError(f'{source}: {key}={config[key]} is not in our GPT-2')
    try:
        model_args = dict(n_layer=config['n_layer'], n_head=config['n_head'], n_embd=config['n_embd'], bias=True,
                          block_size=config['n_positions'], vocab_size=config['vocab_size'],
                          mlp=ACTIVATION[activation], tie_weights=config.get('tie_word_embeddings', True))
    except KeyError as e:
        raise InteropError(f'{source}: no {e} in config.json') from e
    if (config.get('n_inner') or 4 * config['n_embd']) != 4 * config['n_embd']:
        model_args['n_inner'] = config['n_inner']
    return model_args, from_hf_gpt2(weights, model_args['tie_weights'])


def save_safetensors(path, weights, **metadata):
    """
    Write {name: tensor} to `path`, with the metadata as JSON texts beside them. A tensor that two names share is written
    under both. Raises InteropError.
    """
    try:
        from safetensors.torch import save_file
    except ImportError as e:
        raise InteropError('export.py needs safetensors; pip install safetensors') from e
    try:
        save_file({name: tensor.clone() for name, tensor in weights.items()}, path + '.tmp',
                  metadata={'format': 'pt', **{key: json.dumps(value) for key, value in metadata.items()}})
        os.replace(path + '.tmp', path)
    except Exception as e:                            # safetensors has its own type for a full disk
        if os.path.exists(path + '.tmp'):
            os.remove(path + '.tmp')
        raise InteropError(f'{path}: could not be written ({" ".join(str(e).split())[:120]})') from e


def from_hf_gpt2(weights, tied=True):
    """Rename and transpose {Hugging Face name: tensor} into the state_dict of our GPT."""
    state = {}
    for name, tensor in weights.items():
        if name.endswith(('.attn.bias', '.attn.masked_bias')):        # the causal mask, once stored as a buffer
            continue
        if not name.startswith(('transformer.', 'lm_head.')):         # the hub's own files leave the prefix out
            name = 'transformer.' + name
        state[name] = tensor.t().contiguous() if name.endswith(TRANSPOSED) else tensor
    if tied and 'transformer.wte.weight' in state:                    # else from_state says that it is missing
        state['lm_head.weight'] = state['transformer.wte.weight']
    return state


def _find(source, name):
    """The path of file `name` of a model: in the folder `source`, else downloaded from the hub into its cache."""
    if os.path.isdir(source):
        path = os.path.join(source, name)
        if not os.path.exists(path):
            raise InteropError(f'{path}: not found; expected a folder with config.json and model.safetensors')
        return path
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as e:
        raise InteropError(f'init_from={source} is no folder here, and a download needs huggingface_hub; pip install huggingface_hub') from e
    try:
        return hf_hub_download(source if '/' in source else f'openai-community/{source}', name)
    except Exception as e:                            # the hub's own errors and those of the network
        raise InteropError(f'{source}: {name} is not in the cache and could not be downloaded ({type(e).__name__}); '
                           'give a folder with config.json and model.safetensors') from e
