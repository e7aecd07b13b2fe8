"""
A model as one HTML page that needs no server and no network: the files in page/, with weights and tokenizer inside.

Nothing that comes from a model becomes HTML or code: texts travel as JSON, with <, > and & escaped, and the page shows
them as text.
"""

import base64
import json
import os
import re
from dataclasses import asdict, replace
from datetime import date
from itertools import chain

import torch

from gradus import digits, log
from gradus.bpe import as_bpe
from gradus.errors import UserError, one_line, warn
from gradus.files import atomic_write
from gradus.inference import quantize_rows
from gradus.js_regex import to_javascript

FOLDER = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'page')
LIMIT = 2 ** 31                                       # bytes of a page; browsers give up not far above
PIECE = 48 * 2 ** 20                                  # bytes of weights in one element: a string has a limit, too
DTYPES = ('f32', 'f16', 'int8')


# ---------------------------------------------------------------------------- the parts of a page

def embed_json(value):
    """A value as JSON that can stand in a <script> element, whatever texts are in it."""
    text = json.dumps(value)                          # ASCII, so U+2028 is an escape already
    return text.replace('<', '\\u003c').replace('>', '\\u003e').replace('&', '\\u0026')


def source(*names):
    """The text of files in page/, one after the other."""
    parts = []
    for name in names:
        with open(os.path.join(FOLDER, name), encoding='utf-8') as f:
            parts.append(f.read())
    return '\n'.join(parts)


def write(path, template, parts):
    """
    Write a page: the template with each {{name}} replaced by parts[name], which is a text or an iterable of texts, so
    that weights need not be in memory all at once.
    """
    with atomic_write(path) as f:
        for n, piece in enumerate(re.split(r'\{\{(\w+)\}\}', source(template))):
            texts = parts[piece] if n % 2 else [piece]
            for text in [texts] if isinstance(texts, str) else texts:
                f.write(text.encode())


def check_size(path, size, remedy=''):
    """Raise UserError if `size` bytes of weights are too many for a page."""
    if size * 4 / 3 > LIMIT:                          # base64
        raise UserError(f'{path}: {size:,} bytes of weights; expected at most {LIMIT * 3 // 4:,} in a page{remedy}')


def trained_on(path):
    """'trained on 2026-11-26': when the checkpoint `path` was written; empty if that is not known."""
    file = path if os.path.exists(path) else path + '.prev'
    return f'trained on {date.fromtimestamp(os.path.getmtime(file)).isoformat()}' if os.path.isfile(file) else ''


def title_of(source):
    """The name of the run whose checkpoint is the file `source`."""
    return one_line(os.path.basename(os.path.dirname(os.path.abspath(source))) or source, limit=80)


# ---------------------------------------------------------------------------- weights

def stored_dtype(name, shape, dtype, tied):
    """How a tensor is kept: vectors and tables of positions exactly; int8 for what is int8 in gradus/inference.py."""
    if len(shape) < 2 or 'wpe' in name or dtype == 'int8' and 'wte' in name and not tied:
        return 'f32'
    return dtype


def layout(shapes, dtype, tied, at=0):
    """{name: entry}, for readTensor in page/engine.js, from byte `at` on, and where they end."""
    entries = {}
    for name, shape in shapes.items():
        if tied and name == 'lm_head.weight':
            continue
        kept = stored_dtype(name, shape, dtype, tied)
        entry = dict(dtype=kept, shape=list(shape), offset=at)
        if kept == 'int8':
            entry['scales'] = at
            at = entry['offset'] = at + 4 * shape[0]
        at += shape.numel() * {'f32': 4, 'f16': 2, 'int8': 1}[kept]
        at += -at % 12                                # whole numbers of base64 groups, and of floats
        entries[name] = entry
    return entries, at


def bytes_of(tensor, entry):
    """A tensor as its entry says, with zeros at the end up to a multiple of 12 bytes."""
    if entry['dtype'] == 'int8':
        rows, scale = quantize_rows(tensor)
        content = scale.numpy().tobytes() + rows.numpy().tobytes()
    else:
        content = tensor.to(torch.float16 if entry['dtype'] == 'f16' else torch.float32).numpy().tobytes()
    return content + bytes(-len(content) % 12)


def weight_elements(weights, entries):
    """The weights as base64 in <script> elements of limited size; browsers do not run these."""
    for name, entry in entries.items():
        content = bytes_of(weights[name].float(), entry)
        for start in range(0, len(content), PIECE):
            text = base64.b64encode(content[start:start + PIECE]).decode()
            yield f'<script type="application/octet-stream" class="weights">{text}</script>\n'


# ---------------------------------------------------------------------------- the tokenizer

def spec_for_page(tokenizer):
    """
    Plain data from which page/tokenizer.js makes the tokenizer: that of `to_json`, except that kind gpt2 brings its
    tokens, as kind bpe, that `pattern` is a JavaScript regular expression, and that kind bpe has `start_id`, what an
    empty prompt starts from. Raises UserError.
    """
    spec = tokenizer.to_json()
    if spec['kind'] in ('byte', 'char'):
        return spec

    pairs = {key: spec[key] for key in ('separator', 'end_id') if key in spec}
    spec = {**as_bpe(spec), **pairs}
    spec.pop('chat_template', None)                   # a program, which a page cannot run
    return {**spec, 'pattern': to_javascript(spec['pattern']), 'start_id': tokenizer.start_id}


# ---------------------------------------------------------------------------- a GPT

def write_gpt(path, found, tokenizer, dtype='f32', earlier=()):
    """
    Write the `Pretrained` model as a page. dtype: of the matrices, f32, f16 or int8 (with a scale for each row).
    earlier: the same model after fewer iterations, to look back at. Raises UserError if it would be too large.
    """
    config = found.config
    models, size = [], 0
    for model in (*earlier, found):
        if replace(model.config, dropout=0.0) != replace(config, dropout=0.0):
            raise UserError(f'{model.source}: another model than {found.source}; expected one of the same run')
        entries, size = layout(found.weights.shapes, dtype, config.tie_weights, size)
        models.append(dict(name=f'iteration {model.iter_num}', tensors=entries))
    check_size(path, size, '; use --dtype=int8, or --to=gguf for llama.cpp')
    header = dict(
        config=asdict(config),
        models=models,
        bytes=size,
        tokenizer=spec_for_page(tokenizer),
        title=title_of(found.source),
        about=about_gpt(found, dtype, [found.weights.shapes[name] for name in entries]),
    )
    write(path, 'gpt.html', dict(
        style=source('style.css'),
        header=embed_json(header),
        engine=source('engine.js', 'tokenizer.js', 'worker.js'),
        weights=chain(*(weight_elements(model.weights, entry['tensors'])
                        for model, entry in zip((*earlier, found), models))),
        script=source('weights.js', 'gpt.js'),
    ))


def about_gpt(found, dtype, shapes):
    """A line about a model with tensors of these shapes: its run without the path, which is nobody's, and its sizes."""
    n_params = sum(shape.numel() for shape in shapes)
    parts = [one_line(found.about.removeprefix(found.source).removeprefix(': ')),
             trained_on(found.source) if found.iter_num is not None else '',
             f'{n_params / 1e6:.2f}M weights', dtype, f'context of {found.config.block_size} tokens']
    return ', '.join(part for part in parts if part)


# ---------------------------------------------------------------------------- a digit network

LEARNS = 300_000                                      # weights; the page of a larger network only reads


def write_digits(path, found, state):
    """
    Write the network of mlp_mnist.py in the checkpoint `state`, which was read from the file `found`, as a page.
    Raises UserError.
    """
    args = state['model_args']
    model = digits.build(args, found, state['model']).eval()
    weights = folded(model)
    entries, size = layout({name: tensor.shape for name, tensor in weights.items()}, 'f32', tied=False)
    check_size(path, size)
    n_weights = sum(tensor.numel() for tensor in weights.values())
    batch_norm = bool(args.get('batch_norm'))
    header = dict(
        sizes=[int(n) for n in args['sizes']],
        activation=args.get('activation', 'sigmoid'),
        cost=model.cost,
        batch_norm=batch_norm,
        learns=not batch_norm and n_weights < LEARNS,
        tensors=entries,
        bytes=size,
        title=title_of(found),
        about=about_digits(found, state, n_weights),
        examples=examples(),
    )
    write(path, 'digits.html', dict(
        style=source('style.css'),
        header=embed_json(header),
        weights=weight_elements(weights, entries),
        script=source('weights.js', 'network.js', 'diagram.js', 'digits.js'),
    ))


@torch.no_grad()
def folded(model):
    """
    The weights and biases of an `MLP`: {'w1': (n_2, n_1), 'b1': (n_2,), ...}. What batch norm does to z when the
    network is not learning, (z - mean) / sqrt(var + eps) * gamma + beta, is a change of w and b.
    """
    weights = {}
    for l, layer in enumerate(model.layers, start=1):
        w, b = layer.weight.double(), layer.bias.double()                       # (n_l, n_{l-1}), (n_l,)
        norm = model.norms[l - 1] if l <= len(model.norms) else None
        if isinstance(norm, torch.nn.BatchNorm1d):
            scale = norm.weight / (norm.running_var.double() + norm.eps).sqrt()                         # (n_l,)
            w = w * scale[:, None]
            b = (b - norm.running_mean) * scale + norm.bias
        weights[f'w{l}'] = w.float()
        weights[f'b{l}'] = b.float()
    return weights


def about_digits(found, state, n_weights):
    """A line about a digit network: its layers, how many weights, how often it is right, and when it was trained."""
    args = state['model_args']
    parts = ['-'.join(str(n) for n in args['sizes']), args.get('activation', 'sigmoid'),
             f"{args.get('cost', 'quadratic').replace('_', '-')} cost", f'{n_weights:,} weights and biases']
    try:
        records = log.read(os.path.dirname(found) or '.')
    except UserError:                                 # the log is not needed
        records = []
    accuracy = [value for step, value in log.numbers(records, 'iter', 'accuracy') if step == state.get('iter_num')]
    if accuracy:
        measure = 'accuracy on the rest' if state.get('config', {}).get('evaluate') == 'rest' else 'test accuracy'
        parts.append(f'{measure} {accuracy[-1]:.2%}')
    return ', '.join([*parts, trained_on(found)])


def examples():
    """The first test image of each digit: [{'digit': 0, 'pixels': base64 of 784 bytes}, ...]; none without MNIST."""
    try:
        images, labels = digits.read_digits('test')
    except UserError as e:
        warn(f'{e}; the page will have no examples')
        return []
    pixels = (images * 255).round().to(torch.uint8)
    firsts = [(digit, (labels == digit).nonzero()[0].item()) for digit in range(10) if (labels == digit).any()]
    return [dict(digit=digit, pixels=base64.b64encode(pixels[n].numpy().tobytes()).decode()) for digit, n in firsts]
