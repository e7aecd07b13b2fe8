"""
Hugging Face's files: a published GPT-2 to our names and layouts, and our weights as safetensors.

The four matrices of a block are stored there as (in, out), ours as (out, in); otherwise the names agree.
Needs safetensors, and huggingface_hub to download: pip install safetensors huggingface_hub
"""

import json
import os

from gradus.errors import UserError, one_line
from gradus.files import atomic_write

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
        with open(config_path, encoding='utf-8') as f:
            config = json.load(f)
        weights = load_file(weights_path)
    except Exception as e:                            # a dozen types for damaged files
        raise UserError(f'{source}: cannot be read ({type(e).__name__}: {str(e)[:120]})') from e
    model_args = _model_args(config, source)
    return model_args, from_hf_gpt2(weights, model_args['tie_weights'])


def _model_args(config, source):
    """config.json as keyword arguments of GPTConfig. Raises UserError, also for variants that our GPT-2 cannot be."""
    if config.get('model_type') != 'gpt2':
        raise UserError(f"{source}: a model of type {config.get('model_type')}; expected gpt2")
    activation = config.get('activation_function', 'gelu_new')
    supported = dict(
        activation_function=activation in ACTIVATION,
        layer_norm_epsilon=config.get('layer_norm_epsilon', 1e-5) == 1e-5,
        scale_attn_weights=config.get('scale_attn_weights', True),
        scale_attn_by_inverse_layer_idx=not config.get('scale_attn_by_inverse_layer_idx'),
    )
    for key, ok in supported.items():
        if not ok:
            raise UserError(f'{source}: {key}={config[key]} is not supported')

    try:
        args = dict(
            n_layer=config['n_layer'],
            n_head=config['n_head'],
            n_embd=config['n_embd'],
            bias=True,
            block_size=config['n_positions'],
            vocab_size=config['vocab_size'],
            mlp=ACTIVATION[activation],
            tie_weights=config.get('tie_word_embeddings', True),
        )
    except KeyError as e:
        raise UserError(f'{source}: no {e} in config.json') from e
    if (config.get('n_inner') or 4 * config['n_embd']) != 4 * config['n_embd']:
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
        state[name] = tensor.t().contiguous() if name.endswith(TRANSPOSED) else tensor
    if tied and 'transformer.wte.weight' in state:
        state['lm_head.weight'] = state['transformer.wte.weight']
    return state


def _find(source, name):
    """The path of file `name` of a model: in the folder `source`, else downloaded from the hub into its cache."""
    if os.path.isdir(source):
        path = os.path.join(source, name)
        if not os.path.exists(path):
            raise UserError(f'{path}: not found; expected a folder with config.json and model.safetensors')
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
    except Exception as e:                            # safetensors has its own type for a full disk
        raise UserError(f'{path}: could not be written ({one_line(e, limit=120)})') from e
