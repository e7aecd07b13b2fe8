"""
Tokens per second of sampling, in one process, ours and nanoGPT's `generate` in turn, random weights, temperature 0.8, top_k 200:
ten samples of a small model, one stream of 10.65M and of 124M weights, plain, in 8 bits and compiled; the same at 25 to 100% of a context;
then seconds from the start of sample.py to its first token. "compiled" is --compile=True, after the compilation. On CUDA in bfloat16.
"""

import argparse
import copy
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import islice

import torch

from benchmarks.paired import SHAPES, checkout, program, report
from gradus import checkpoint, inference, parallel
from gradus.sampling import Sampler
from model import GPT, GPTConfig

SIZES = {
    'ten samples of 500, 4 x 128': (dict(n_layer=4, n_head=4, n_embd=128, block_size=64, vocab_size=65), 10, 500),
    'one stream of 256, 10.65M': (SHAPES['10.65M'], 1, 256),
    'one stream of 128, GPT-2 124M': (SHAPES['GPT-2 124M'], 1, 128),
}


def start(model, n_samples):
    """What every text begins with: token 0."""
    return torch.zeros(n_samples, 1, dtype=torch.long, device=model.transformer.wte.weight.device)


def ours(model, n_samples, n_tokens):
    """Seconds for n_samples side by side."""
    sampler = Sampler(temperature=0.8, top_k=200, seeds=range(n_samples))
    began = time.perf_counter()
    for _ in islice(model.stream(start(model, n_samples), sampler), n_tokens):
        pass
    return time.perf_counter() - began


def theirs(model, n_samples, n_tokens):
    """Seconds for n_samples one after the other, as nanoGPT's sample.py makes them."""
    began = time.perf_counter()
    with torch.no_grad():
        for _ in range(n_samples):
            model.generate(start(model, 1), n_tokens, temperature=0.8, top_k=200)[0].tolist()
    return time.perf_counter() - began


def read_bandwidth():
    """GB/s at which this machine reads memory: the sum of 1 GB."""
    numbers, times = torch.ones(2 ** 28), []
    for _ in range(5):
        began = time.perf_counter()
        numbers.sum()
        times.append(time.perf_counter() - began)
    return numbers.nbytes / min(times) / 1e9


def sampling(args, run):
    nanogpt = program('their_model', os.path.join(args.against, 'model.py')) if args.against else None
    on_cpu = run.device.type == 'cpu'
    for name, (shape, n_samples, n_tokens) in SIZES.items():
        torch.manual_seed(0)
        model = GPT(GPTConfig(**shape, bias=False)).to(run.device).eval()
        held = 4 * model.num_params() / 1e9           # GB in float32
        sides = {}
        if nanogpt:
            peer = nanogpt.GPT(nanogpt.GPTConfig(**shape, bias=False, dropout=0.0)).to(run.device).eval()
            peer.load_state_dict(model.state_dict())
            sides['theirs'] = theirs, peer
        for side in ('ours', 'compiled', *(('int8', 'int8, compiled') if on_cpu else ())):
            sides[side] = ours, inference.prepare(copy.deepcopy(model), run.dtype, 'int8' in side, 'compiled' in side)
        speeds = {side: [] for side in sides}
        with run.autocast():
            for n in range(args.rounds + 1):
                for side, (generate, which) in sides.items():
                    seconds = generate(which, n_samples, n_tokens)
                    if n:                             # the first round warms up, and compiles
                        speeds[side].append(n_samples * n_tokens / seconds)
        base = 'theirs' if nanogpt else 'ours'
        for side in (s for s in sides if s != base):
            report(name, speeds[base], speeds[side], 'tokens/s', sides=('nanoGPT' if nanogpt else 'ours', side))
        if on_cpu and '124M' in name:
            bandwidth = read_bandwidth()
            print(f"memory: {bandwidth:.1f} GB/s, of which {held:.2f} GB of weights a token take {statistics.median(speeds['ours']) * held / bandwidth:.0%}")
            for side in ('ours', 'int8'):
                print(f'{side}, tokens/s at 25, 50, 75, 100% of a context of 1024:', [round(s, 1) for s in along_the_context(sides[side][1])])
    if on_cpu:
        first_token(args)


def along_the_context(model, n=16):
    """Tokens/s of the last n tokens before each quarter of the context is full."""
    size, speeds = model.config.block_size, []
    with torch.inference_mode():
        for end in (size // 4, size // 2, 3 * size // 4, size):
            stream = model.stream(start(model, 1).expand(1, end - n - 1), Sampler(0.8, 200, seeds=[0]))
            next(stream)                              # reads the prompt
            began = time.perf_counter()
            for _ in range(n):
                next(stream)
            speeds.append(n / (time.perf_counter() - began))
    return speeds


def first_token(args):
    """Seconds of whole processes: importing torch, and sample.py making one token with a small model."""
    with tempfile.TemporaryDirectory() as tmp:
        model = GPT(GPTConfig(**SIZES['ten samples of 500, 4 x 128'][0], bias=False))
        checkpoint.save(os.path.join(tmp, 'ckpt.pt'), dict(model=model.state_dict(), model_args=vars(model.config), iter_num=0,
                                                         tokenizer=dict(kind='char', chars=[chr(32 + i) for i in range(65)])))
        commands = {'import torch': ['-c', 'import torch'],
                    'sample.py': ['sample.py', f'--out_dir={tmp}', '--start=A', '--num_samples=1', '--max_new_tokens=1', '--device=cpu']}
        seconds = {name: [] for name in commands}
        for _ in range(args.rounds + 1):
            for name, command in commands.items():
                began = time.perf_counter()
                subprocess.run([sys.executable, *command], check=True, capture_output=True)
                seconds[name].append(time.perf_counter() - began)
    base, whole = (statistics.median(s[1:]) for s in seconds.values())
    print(f'start to first token: {whole:.2f} s; importing torch alone {base:.2f} s; {whole - base:.2f} s more')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--against', metavar='PATH', help='a checkout of nanoGPT')
    parser.add_argument('--device', default='cpu', help='default: %(default)s')
    parser.add_argument('--rounds', type=int, default=3, help='default: %(default)s')
    args = parser.parse_args()
    if args.against:
        args.against = checkout(args.against)
    sampling(args, parallel.start(args.device, compile=False))


if __name__ == '__main__':
    main()
