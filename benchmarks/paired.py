"""
What the benchmarks share: run nanoGPT and our scripts, time them, say whether pairs of values differ, and report all
values, medians and paired ratios.
"""

import importlib.util
import math
import os
import re
import statistics
import subprocess
import sys
import time

import torch

from gradus import data, evaluation, metadata, parallel, pretrained
from gradus.errors import warn

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


def warn_if_busy():
    """Warn if something else seems to run here. The load is a mean over a minute, so this looks before, not during."""
    load = os.getloadavg()[0] if hasattr(os, 'getloadavg') else 0.0             # Windows has none
    if load > 0.5:
        warn(f'the load average is {load:.2f}: something else runs on this machine, so do not trust the times')


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


def val_loss(path, folder, device='cpu'):
    """
    Loss over the whole val split of the dataset `folder`, in windows of the model's own context. The checkpoint may be
    ours or nanoGPT's.
    """
    worker = parallel.init(device)
    model = pretrained.build(pretrained.load_checkpoint(path)).to(worker.device)
    meta = metadata.read_meta(folder)
    val = data.open_dataset(folder, meta, model.config.vocab_size, model.config.block_size).val
    loss, _ = evaluation.evaluate(model, val, 64, 0, worker)
    return loss


# ---------------------------------------------------------------------------- do pairs of values differ?

def student(t, df):
    """
    The probability that Student's T with df degrees of freedom (1, 2, ...) is between -t and t: the finite sum of
    Abramowitz and Stegun, 26.7.3 and 26.7.4.
    """
    theta = math.atan(t / math.sqrt(df))
    odd = df % 2
    term = math.cos(theta) if odd else 1.0
    total = 0.0
    for k in range(odd, df - 1, 2):
        total += term
        term *= (k + 1) / (k + 2) * math.cos(theta) ** 2
    if odd:
        return 2 / math.pi * (theta + math.sin(theta) * total)
    return math.sin(theta) * total


def t_quantile(df, coverage=0.95):
    """The t with student(t, df) = coverage, by bisection: 12.706, 4.303, 3.182, ... for 1, 2, 3, ... and 95%."""
    low, high = 0.0, 1.0
    while student(high, df) < coverage:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if student(middle, df) < coverage else (low, middle)
    return high


def interval(differences):
    """(mean, low, high) of the differences of two or more pairs: the mean and its 95% interval by Student's t."""
    n = len(differences)
    mean = statistics.mean(differences)
    half = t_quantile(n - 1) * statistics.stdev(differences) / math.sqrt(n)
    return mean, mean - half, mean + half


def p_below_0(differences):
    """
    The paired t test, one-sided: if the true mean of the differences is 0, how probable is one this far below 0, or
    further? Two or more differences.
    """
    n = len(differences)
    mean = statistics.mean(differences)
    error = statistics.stdev(differences) / math.sqrt(n)
    if error == 0:
        return 0.0 if mean < 0 else 1.0
    return (1 - math.copysign(student(abs(mean) / error, n - 1), -mean)) / 2


# ---------------------------------------------------------------------------- reporting

def report(name, first, second, unit, sides=('ours', 'nanoGPT')):
    """One row: the medians and all values of both sides, and the ratio second / first, pair by pair."""
    ratios = [round(b / a, 3) for a, b in zip(first, second)]
    parts = []
    for side, values in zip(sides, (first, second)):
        parts.append(f'{side} {statistics.median(values):.4g} {unit} {[round(v, 4) for v in values]}')
    parts.append(f'ratio {statistics.median(ratios):.3f} {ratios}')
    print(f'{name}: {", ".join(parts)}')
