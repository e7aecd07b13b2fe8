"""What the benchmarks share: run the two sides in turn, and report values, medians and the ratios of the pairs."""

import importlib.util
import os
import statistics
import subprocess
import sys
import time

from gradus import checkpoint, data, evaluation, parallel
from model import GPT

# nanoGPT's README, "I only have a macbook": 4 layers, 128 wide, context 64, 2000 iterations on the CPU.
CPU_RECIPE = ('config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 --log_interval=1 --block_size=64 '
              '--batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --max_iters=2000 --lr_decay_iters=2000 --dropout=0.0').split()
SHAPES = {
    '10.65M': dict(n_layer=6, n_head=6, n_embd=384, block_size=256, vocab_size=65),
    'GPT-2 124M': dict(n_layer=12, n_head=12, n_embd=768, block_size=1024, vocab_size=50304),
}
HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# nanoGPT has no setting for its seed: run its train.py, unchanged, with every seed shifted by the first argument.
SHIFTED_SEED = """
import runpy, sys, torch
shift, seed = int(sys.argv.pop(1)), torch.manual_seed
torch.manual_seed = lambda n: seed(n + shift)
sys.path.insert(0, '')
runpy.run_path('train.py', run_name='__main__')
"""


def timed(command, folder):
    """Run it in `folder`; returns (seconds from start to end, stdout). Ends the program if it fails."""
    began = time.perf_counter()
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, encoding='utf-8')
    if ran.returncode:
        sys.exit(f'error: {" ".join(command)} in {folder} failed: {ran.stderr.strip()[-300:]}')
    return time.perf_counter() - began, ran.stdout


def program(name, path):
    """The Python file at `path`, ours or theirs, as a module of that name: what is measured is loaded, not imported."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def val_loss(path, folder):
    """Loss over the whole val split of the dataset `folder`, in windows of the model's own context, whoever wrote the checkpoint."""
    state = checkpoint.load(path)
    model = GPT.from_state(state['model_args'], state['model'], path, dropout=0.0)
    tokens = data.Tokens(os.path.join(folder, 'val.bin'), data.read_meta(folder)['dtype'], model.config.vocab_size, model.config.block_size)
    return evaluation.evaluate(model, tokens, 64, 0, parallel.start('cpu'))[0]


def report(name, ours, theirs, unit, sides=('ours', 'theirs')):
    """One row: every value, the medians, and how many times as large the second side's is, pair by pair."""
    a, b = statistics.median(ours), statistics.median(theirs)
    pairs = [round(y / x, 3) for x, y in zip(ours, theirs)]
    print(f'{name}: {sides[0]} {a:.4g} {unit} {[round(x, 4) for x in ours]}, {sides[1]} {b:.4g} {unit} {[round(x, 4) for x in theirs]}, '
          f'ratio {statistics.median(pairs):.3f} {pairs}')


def checkout(path, here=(), there=()):
    """The absolute path of a checkout of nanoGPT, after a look that it is one, and that these datasets are prepared here and there."""
    path = os.path.abspath(path)
    prepared = [os.path.join(side, 'data', name, 'train.bin') for side, names in ((HERE, here), (path, there)) for name in names]
    for each in (os.path.join(path, 'train.py'), *prepared):
        if not os.path.exists(each):
            sys.exit(f'error: {each}: not found; expected a checkout of nanoGPT' + (', and this dataset prepared' if prepared else ''))
    return path
