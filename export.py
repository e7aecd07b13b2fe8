"""
Write a model for other programs.

    python export.py --out_dir=out-quickstart --to=hf --dest=folder          transformers, vLLM, lm_eval, ...
    python export.py --out_dir=out-quickstart --to=gguf --dest=model.gguf    llama.cpp, Ollama, ...
    python export.py --init_from=gpt2 --to=onnx --dest=gpt2.onnx             ONNX Runtime
    python export.py --out_dir=out-quickstart --to=html --dest=model.html    a page to open in a browser, or to mail

hf and gguf need a model of a published family (GPT-2, Llama, Qwen3). safetensors is for train.py and sample.py, and
nanogpt for nanoGPT.
"""

import os
import re
import sys
from dataclasses import dataclass, replace

from gradus import checkpoint, configurator, gguf_file, hf, nanogpt, onnx_file, page, pretrained
from gradus.errors import UserError, show
from gradus.files import atomic_folder


@dataclass
class ExportConfig:
    init_from: str = 'resume'         # resume (from out_dir), or what else train.py accepts
    out_dir: str = 'out'              # folder of the run
    checkpoint: str = ''              # file in it; empty: best.pt if there is one, else ckpt.pt
    dataset: str = ''                 # folder in data/ whose tokenizer to use, if the checkpoint holds none
    to: str = 'safetensors'           # hf, gguf, safetensors, nanogpt, onnx, html
    dest: str = ''                    # folder (hf, nanogpt) or file to write; empty: a name in out_dir
    dtype: str = 'f32'                # gguf: f32, f16, q8_0 (8 bits); html: f32, f16, int8
    force: bool = False               # write even if dest exists


NAMES = dict(hf='hf', nanogpt='nanogpt', gguf='model.gguf', safetensors='model.safetensors', onnx='model.onnx',
             html='model.html')
DTYPES = dict(gguf=gguf_file.DTYPES, html=page.DTYPES)
FOLDERS = ('hf', 'nanogpt')


def check(cfg):
    """Raise UserError for settings that make no sense."""
    configurator.check_choice(cfg, to=tuple(NAMES))
    configurator.check_choice(cfg, dtype=DTYPES.get(cfg.to, ('f32', 'f16', 'q8_0', 'int8')))
    if os.path.basename(cfg.checkpoint) != cfg.checkpoint:
        raise UserError(f'checkpoint={cfg.checkpoint}: expected the name of a file in out_dir')
    if cfg.dtype != 'f32' and cfg.to not in DTYPES:
        raise UserError(f'dtype={cfg.dtype}: only --to=gguf and --to=html have another one than f32')
    if not cfg.dest and cfg.init_from != 'resume':
        raise UserError(f'init_from={cfg.init_from}: expected --dest, where to write')


def load_model(cfg):
    """The model that the settings name, its weights still on disk."""
    if cfg.init_from == 'resume':
        return pretrained.load_checkpoint(checkpoint.find(cfg.out_dir, cfg.checkpoint), mapped=True)
    return pretrained.load(cfg.init_from)


def kept_models(cfg, found):
    """The models of earlier iterations that train.py --keep_interval left in the run's folder, the first one first."""
    if cfg.init_from != 'resume' or found.iter_num is None:
        return []
    names = sorted(name for name in os.listdir(cfg.out_dir) if re.fullmatch(r'step-\d+\.pt', name))
    kept = [pretrained.load_checkpoint(os.path.join(cfg.out_dir, name), mapped=True) for name in names]
    return [model for model in kept if model.iter_num < found.iter_num]


def write(cfg, found, dest):
    """Write the model. Returns sentences on what the format cannot express."""
    if cfg.to == 'safetensors':
        hf.write_safetensors(dest, found.weights.shapes, found.weights.items(), tokenizer=found.tokenizer,
                             model_args=checkpoint.model_args(found.config), iter_num=found.iter_num)
        return []
    tokenizer = pretrained.tokenizer_for(found, cfg.dataset)
    if cfg.to == 'html':
        page.write_gpt(dest, found, tokenizer, cfg.dtype, earlier=kept_models(cfg, found))
        return []
    spec = tokenizer.to_json()
    found = replace(found, tokenizer=spec)
    notes = []
    if tokenizer.separator:
        separator = show(tokenizer.decode(tokenizer.separator))
        notes.append(f'the model was trained on pairs, which this format cannot say: end each prompt with {separator} '
                     f'(ids {show(list(tokenizer.separator))})')
    if cfg.to == 'onnx':
        onnx_file.write_onnx(dest, found)
        return notes
    if cfg.to == 'gguf':
        return notes + gguf_file.write(dest, found.config, found.weights, spec, found.source, cfg.dtype)
    with atomic_folder(dest) as folder:
        if cfg.to == 'hf':
            return notes + hf.write_folder(folder, found.config, found.weights, spec, tokenizer, found.source)
        dataset = nanogpt.write_nanogpt(folder, found)
        return notes + ([f'meta.pkl belongs into data/{dataset} of nanoGPT'] if dataset else [])


def write_digits(cfg, dest):
    """Write the page of a digit network, if the run is one of mlp_mnist.py. Returns whether it is."""
    path = checkpoint.find(cfg.out_dir, cfg.checkpoint)
    state = checkpoint.load(path, mapped=True) if cfg.init_from == 'resume' else None
    if state is None or not pretrained.is_digit_network(state):
        return False
    if cfg.dtype != 'f32':
        raise UserError(f'dtype={cfg.dtype}: expected f32, the only one for a digit network')
    page.write_digits(dest, path, state)
    print(f'{dest}: {path}, as html')
    return True


def main(cfg):
    check(cfg)
    dest = cfg.dest or os.path.join(cfg.out_dir, NAMES[cfg.to])
    if os.path.lexists(dest) and not cfg.force:
        raise UserError(f'{dest}: exists; give another --dest, or --force to replace it')
    if os.path.lexists(dest) and os.path.isdir(dest) != (cfg.to in FOLDERS):
        raise UserError(f"{dest}: expected {'a folder' if cfg.to in FOLDERS else 'a file'} to replace")
    if cfg.to == 'html' and write_digits(cfg, dest):
        return
    found = load_model(cfg)
    notes = write(cfg, found, dest)
    print(f'{dest}: {found.about}, as {cfg.to}')
    for note in notes:
        print(f'note: {note}', file=sys.stderr)


if __name__ == '__main__':
    configurator.launch(main, ExportConfig)
