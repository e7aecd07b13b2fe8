"""What the benchmarks share: run nanoGPT and our scripts, time them, and report values, medians and paired ratios."""

import importlib.util
import os
import re
import statistics
import subprocess
import sys
import time

import torch

from gradus import data, evaluation, metadata, parallel, pretrained

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# nanoGPT's README, "I only have a macbook": 4 layers, 128 wide, context 64, 2000 iterations on the CPU.
CPU_RECIPE = [
    'config/train_shakespeare_char.py',
    '--device=cpu',
    '--compile=False',
    '--eval_iters=20',
    '--log_interval=1',
    '--block_size=64',
    '--batch_size=12',
    '--n_layer=4',
    '--n_head=4',
    '--n_embd=128',
    '--max_iters=2000',
    '--lr_decay_iters=2000',
    '--dropout=0.0',
]
SHAPES = {
    '10.65M': dict(n_layer=6, n_head=6, n_embd=384, block_size=256, vocab_size=65),
    'GPT-2 124M': dict(n_layer=12, n_head=12, n_embd=768, block_size=1024, vocab_size=50304),
}

# nanoGPT has no setting for its seed. This runs its train.py, unchanged, with every seed shifted by the first argument.
SHIFTED_SEED = """
import runpy, sys, torch
shift, seed = int(sys.argv.pop(1)), torch.manual_seed
torch.manual_seed = lambda n: seed(n + shift)
sys.path.insert(0, '')
runpy.run_path('train.py', run_name='__main__')
"""


# ---------------------------------------------------------------------------- nanoGPT

def checkout(path, here=(), there=()):
    """
    The absolute path of a checkout of nanoGPT. Ends the program if it is not one, or if a dataset named in `here`
    (ours) or `there` (nanoGPT's) is not prepared.
    """
    path = os.path.abspath(path)
    prepared = [os.path.join(HERE, 'data', name, 'train.bin') for name in here]
    prepared += [os.path.join(path, 'data', name, 'train.bin') for name in there]

    expected = 'expected a checkout of nanoGPT'
    if prepared:
        expected += ', and this dataset prepared'
    for file in (os.path.join(path, 'train.py'), *prepared):
        if not os.path.exists(file):
            sys.exit(f'error: {file}: not found; {expected}')
    return path


def load_nanogpt(path):
    """The model.py of a checkout of nanoGPT, as a module. Ours is called model too, so it gets another name."""
    spec = importlib.util.spec_from_file_location('nanogpt_model', os.path.join(path, 'model.py'))
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---------------------------------------------------------------------------- timing

def seconds_of(function, *args):
    """How long a call takes, until the GPU has finished too."""
    began = time.perf_counter()
    function(*args)
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def timed(command, folder):
    """Run a command in `folder`; returns (seconds from start to exit, stdout). Ends the program if it fails."""
    began = time.perf_counter()
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, encoding='utf-8')
    seconds = time.perf_counter() - began
    if ran.returncode:
        sys.exit(f'error: {" ".join(command)} in {folder} failed: {ran.stderr.strip()[-300:]}')
    return seconds, ran.stdout


# ---------------------------------------------------------------------------- whole training runs

def our_run(n, *settings):
    """(folder, command) of our train.py with the seed of round n."""
    return HERE, [sys.executable, 'train.py', *settings, '--sample_tokens=0', f'--seed={1337 + n}']


def nanogpt_run(n, path, *settings):
    """(folder, command) of nanoGPT's train.py, its CPU recipe, with the seed of round n."""
    return path, [sys.executable, '-c', SHIFTED_SEED, str(n), *CPU_RECIPE, *settings]


def measure_run(run, out_dir, dataset):
    """
    Run (folder, command) to the end. Returns a dict with its seconds, the loss of its last checkpoint on the val split
    of data/<dataset> and its median milliseconds per iteration; and its stdout.
    """
    folder, command = run
    seconds, stdout = timed([*command, f'--out_dir={out_dir}'], folder)
    step_times = [float(ms) for ms in re.findall(r'time ([\d.]+)ms', stdout)]
    val = val_loss(os.path.join(out_dir, 'ckpt.pt'), os.path.join('data', dataset))
    return dict(seconds=seconds, val=val, ms=statistics.median(step_times)), stdout


def val_loss(path, folder):
    """
    Loss over the whole val split of the dataset `folder`, in windows of the model's own context. The checkpoint may be
    ours or nanoGPT's.
    """
    model = pretrained.build(pretrained.load_checkpoint(path))
    dtype = metadata.read_meta(folder)['dtype']
    val = os.path.join(folder, 'val.bin')
    tokens = data.Tokens(val, dtype, model.config.vocab_size, model.config.block_size)
    loss, _ = evaluation.evaluate(model, tokens, 64, 0, parallel.init('cpu'))
    return loss


# ---------------------------------------------------------------------------- reporting

def report(name, first, second, unit, sides=('ours', 'nanoGPT')):
    """One row: the medians and all values of both sides, and the ratio second / first, pair by pair."""
    ratios = [round(b / a, 3) for a, b in zip(first, second)]
    parts = []
    for side, values in zip(sides, (first, second)):
        parts.append(f'{side} {statistics.median(values):.4g} {unit} {[round(v, 4) for v in values]}')
    parts.append(f'ratio {statistics.median(ratios):.3f} {ratios}')
    print(f'{name}: {", ".join(parts)}')
