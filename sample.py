"""
Generate text with a trained model.

    python sample.py --out_dir=out-quickstart --start="def " --num_samples=3 --temperature=0.8
    python sample.py --init_from=gpt2 --start=FILE:prompt.txt
"""

import os
from dataclasses import dataclass

import torch

import checkpoint
import configurator
import interop
import loader
import parallel
import tokenizer as tokenizers
from model import GPT, ModelError


@dataclass
class SampleConfig:
    init_from: str = 'resume'         # resume (a run's folder, out_dir), gpt2 / gpt2-medium / gpt2-large / gpt2-xl, or a folder
    out_dir: str = 'out'              # folder of the run
    checkpoint: str = ''              # file in it; empty: best.pt if there is one, else ckpt.pt
    dataset: str = ''                 # folder in data/ whose meta file tells the tokenizer, if the checkpoint does not
    start: str = '\n'                 # the prompt, or FILE:prompt.txt
    num_samples: int = 10             # texts, made side by side
    max_new_tokens: int = 500         # tokens of each, behind the prompt
    temperature: float = 0.8          # 0 = always the likeliest, 1 = as the model thinks, more = wilder
    top_k: int | None = 200           # draw from the k likeliest only; None or 0 = from all
    seed: int = 1337                  # the same seed gives the same text
    device: str = 'auto'              # auto, cpu, cuda, cuda:N, mps
    dtype: str = 'auto'               # auto, float32, bfloat16, float16
    compile: bool | str = False       # torch.compile: pays for very long texts on CUDA only


ERRORS = (ModelError, loader.DataError, checkpoint.CheckpointError, tokenizers.TokenizerError, parallel.DeviceError, interop.InteropError)


def load_model(cfg):
    """Where the model comes from, the model, on the CPU, and the plain data of its tokenizer."""
    if cfg.init_from != 'resume':
        args, weights = interop.load_gpt2(cfg.init_from)
        return cfg.init_from, GPT.from_state(args, weights, cfg.init_from, dropout=0.0), {'kind': 'gpt2'}
    path = checkpoint.find(cfg.out_dir, cfg.checkpoint)
    state = checkpoint.load(path)
    model = GPT.from_state(state['model_args'], state['model'], path, dropout=0.0)
    print(f"{path}: iteration {state.get('iter_num', '?')}, best val loss {float(state.get('best_val_loss', float('nan'))):.4f}")
    return path, model, find_tokenizer(cfg, state, path)


def find_tokenizer(cfg, state, path):
    """
    A checkpoint of ours carries its tokenizer. One of nanoGPT's only names its dataset; that name is compared
    with the folders that are in data/, never opened as a path. Without meta file GPT-2's tokens are assumed.
    """
    if cfg.dataset:
        return loader.read_meta(os.path.join('data', cfg.dataset))['tokenizer']
    if 'tokenizer' in state:
        return state['tokenizer']
    here = os.listdir('data') if os.path.isdir('data') else []
    name = state.get('config', {}).get('dataset')
    vocab_size = state['model_args'].get('vocab_size', 0)
    if name in here:
        meta = loader.read_meta(os.path.join('data', here[here.index(name)]))
        if meta['vocab_size'] in (vocab_size, 50257):
            return meta['tokenizer']
    if vocab_size < 50257:
        raise checkpoint.CheckpointError(f'{path}: no tokenizer in it, and no data/{name} that fits; expected --dataset=NAME, '
                                         f'a folder in data/ whose meta.pkl or meta.json has {vocab_size} tokens')
    return {'kind': 'gpt2'}


def read_prompt(cfg, tokenizer, block_size):
    """The prompt's ids, at least one (`generate` reads the last block_size of them), and how many of them to show."""
    text = cfg.start
    if text.startswith('FILE:'):
        text = loader.read_text(text.removeprefix('FILE:'))
    ids = tokenizer.encode(text)
    if len(ids) > block_size:
        print(f'the prompt has {len(ids)} tokens, the context {block_size}: only its end counts')
    return ids or [tokenizer.start_id], len(ids)


def check(cfg):
    """Raise ConfigError for values that make no sense."""
    configurator.in_range(cfg, num_samples=(1, None), max_new_tokens=(0, None), temperature=(0, None), top_k=(0, None), seed=(0, 2 ** 63))
    configurator.one_of(cfg, dtype=('auto', *parallel.DTYPES), compile=('auto', True, False))
    if os.path.basename(cfg.checkpoint) != cfg.checkpoint:
        raise configurator.ConfigError(f'checkpoint={cfg.checkpoint}: expected the name of a file in out_dir')


def main(cfg):
    check(cfg)
    run = parallel.start(cfg.device, cfg.dtype, cfg.compile)
    source, model, data = load_model(cfg)
    tokenizer = tokenizers.from_json(data)
    if tokenizer.n_vocab > model.config.vocab_size:
        raise tokenizers.TokenizerError(f'{source}: a tokenizer of {tokenizer.n_vocab} tokens for a model of {model.config.vocab_size}; '
                                        'expected those that it was trained with, --dataset=NAME')
    ids, shown = read_prompt(cfg, tokenizer, model.config.block_size)
    model.to(run.device).eval()
    if run.compile:
        model.forward = torch.compile(model.forward)
    x = torch.tensor([ids], device=run.device).expand(cfg.num_samples, -1)                    # (num_samples, T)
    # The randomness of sample i is a function of seed and i, whatever runs beside it.
    generators = [torch.Generator().manual_seed(parallel.seed_of(cfg.seed, i)) for i in range(cfg.num_samples)]
    with run.autocast():
        y = model.generate(x, cfg.max_new_tokens, cfg.temperature, cfg.top_k, tokenizer.n_vocab, generators)
    for row in y.tolist():
        print(tokenizer.decode(row[len(ids) - shown:]))
        print('---------------')


if __name__ == '__main__':
    configurator.run(main, SampleConfig, ERRORS)
