"""
Tokens per second of sampling with random weights, temperature 0.8, top_k 200. With --against, nanoGPT's `generate`
alternates with ours in one process. It measures:

    ten samples of a small model, and one stream of a 10.65M and of a 124M model: plain, compiled, in 8 bits, and both
    the share of the memory bandwidth that reading the weights takes, and the speed at 25 to 100% of a context

"compiled" is --compile=True, without the time to compile. 8 bits and the last line are measured on a CPU only. On
CUDA everything runs in bfloat16.
"""

import argparse
import copy
import statistics
import time
from itertools import islice

import torch

from benchmarks.paired import SHAPES, checkout, load_nanogpt, report, seconds_of
from gradus import inference, parallel
from gradus.sampling import Sampler
from model import GPT, GPTConfig

SMALL = dict(n_layer=4, n_head=4, n_embd=128, block_size=64, vocab_size=65)

# name: (shape of the model, number of samples, tokens in each)
SIZES = {
    'ten samples of 500, 4 x 128': (SMALL, 10, 500),
    'one stream of 256, 10.65M': (SHAPES['10.65M'], 1, 256),
    'one stream of 128, GPT-2 124M': (SHAPES['GPT-2 124M'], 1, 128),
}


# ---------------------------------------------------------------------------- the two ways to sample

def prompt(model, n_samples):
    """What every text starts with: token 0."""
    return torch.zeros(n_samples, 1, dtype=torch.long, device=model.transformer.wte.weight.device)


def generate_ours(model, n_samples, n_tokens):
    """All samples side by side."""
    sampler = Sampler(temperature=0.8, top_k=200, seeds=range(n_samples))
    for _ in islice(model.stream(prompt(model, n_samples), sampler), n_tokens):
        pass


@torch.no_grad()
def generate_nanogpt(model, n_samples, n_tokens):
    """One sample after the other, as nanoGPT's sample.py does."""
    for _ in range(n_samples):
        model.generate(prompt(model, 1), n_tokens, temperature=0.8, top_k=200)[0].tolist()


def build(shape, nanogpt, worker):
    """The sides to measure, {name: (function that generates, model)}, with the same weights; and how many those are."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(**shape, bias=False)).to(worker.device).eval()

    sides = {}
    if nanogpt:
        peer = nanogpt.GPT(nanogpt.GPTConfig(**shape, bias=False, dropout=0.0)).to(worker.device).eval()
        peer.load_state_dict(model.state_dict())
        sides['nanoGPT'] = generate_nanogpt, peer

    names = ['ours', 'compiled']
    if worker.device.type == 'cpu':
        names += ['int8', 'int8, compiled']
    for name in names:
        prepared = inference.prepare(copy.deepcopy(model), worker.dtype, 'int8' in name, 'compiled' in name)
        sides[name] = generate_ours, prepared
    return sides, model.num_params()


# ---------------------------------------------------------------------------- tokens per second

def measure(sides, n_samples, n_tokens, rounds):
    """Tokens/s of each side in each round, interleaved."""
    speeds = {name: [] for name in sides}
    for n in range(rounds + 1):
        for name, (generate, model) in sides.items():
            seconds = seconds_of(generate, model, n_samples, n_tokens)
            if n:                                     # the first round warms up, and compiles
                speeds[name].append(n_samples * n_tokens / seconds)
    return speeds


def sampling(args, worker):
    nanogpt = load_nanogpt(args.against) if args.against else None
    on_cpu = worker.device.type == 'cpu'
    for size, (shape, n_samples, n_tokens) in SIZES.items():
        sides, n_params = build(shape, nanogpt, worker)
        with worker.autocast():
            speeds = measure(sides, n_samples, n_tokens, args.rounds)

        base, *others = sides
        for name in others:
            report(size, speeds[base], speeds[name], 'tokens/s', sides=(base, name))
        if on_cpu and '124M' in size:
            report_bandwidth(n_params, statistics.median(speeds['ours']))
            for name in ('ours', 'int8'):
                report_along_the_context(name, sides[name][1])


# ---------------------------------------------------------------------------- memory and context

def read_bandwidth():
    """GB/s at which this machine reads memory, from the sum of 1 GB."""
    numbers = torch.ones(2 ** 28)
    fastest = min(seconds_of(numbers.sum) for _ in range(5))
    return numbers.nbytes / fastest / 1e9


def report_bandwidth(n_params, speed):
    """What share of the bandwidth it takes to read all weights, in float32, once a token."""
    weights = 4 * n_params / 1e9
    bandwidth = read_bandwidth()
    print(f'memory: {bandwidth:.1f} GB/s; reading {weights:.2f} GB of weights for each token takes '
          f'{speed * weights / bandwidth:.0%} of it')


@torch.inference_mode()
def speed_at(model, end, n=16):
    """Tokens/s of the last n tokens before the context holds `end` of them."""
    stream = model.stream(prompt(model, 1).expand(1, end - n - 1), Sampler(0.8, 200, seeds=[0]))
    next(stream)                                      # reads the prompt
    began = time.perf_counter()
    for _ in range(n):
        next(stream)
    return n / (time.perf_counter() - began)


def report_along_the_context(name, model):
    size = model.config.block_size
    speeds = [speed_at(model, end) for end in (size // 4, size // 2, 3 * size // 4, size)]
    print(f'{name}, tokens/s at 25, 50, 75, 100% of a context of {size}:', [round(speed, 1) for speed in speeds])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--against', metavar='PATH', help='a checkout of nanoGPT')
    parser.add_argument('--device', default='cpu', help='default: %(default)s')
    parser.add_argument('--rounds', type=int, default=3, help='default: %(default)s')
    args = parser.parse_args()
    if args.against:
        args.against = checkout(args.against)
    sampling(args, parallel.init(args.device, compile=False))


if __name__ == '__main__':
    main()
