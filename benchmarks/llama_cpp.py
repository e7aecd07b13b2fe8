"""
Tokens per second on the CPU, ours and llama.cpp's, interleaved, with the same weights and number of threads: of one
greedy stream, and of a long prompt up to the first new token. The model is a GPT-2 with random weights, in 32 bits and
in 8 (llama.cpp's Q8_0 has a scale for every 32 weights, ours one for each row). The texts should start with the same
tokens. With --model, it is a real model, which llama.cpp reads as it is, and we as float32 and in 8 bits.

Needs the packages gguf and xllamacpp: pip install gguf xllamacpp
"""

import argparse
import copy
import importlib.util
import json
import multiprocessing
import os
import queue
import sys
import tempfile
import threading
import time
import urllib.request

import torch

from benchmarks.paired import SHAPES, report
from gradus import gguf_file, inference, parallel, pretrained
from model import GPT, GPTConfig

PROMPT = [1, 2, 3]


def write(model, path, bits):
    """Write the model as a GGUF file, with a made-up vocabulary."""
    chars = [chr(0x10000 + i) for i in range(model.config.vocab_size)]
    gguf_file.write(path, model.config, model.state_dict(), {'kind': 'char', 'chars': chars}, path,
                    'q8_0' if bits == 8 else 'f32')


# ---------------------------------------------------------------------------- the two sides

def serve(path, n_ctx, threads, address):
    """
    Run llama.cpp until terminated; its URL goes into the queue `address`. It needs its own process: two thread pools in
    one process wait for each other, which makes torch slower by a third.
    """
    import xllamacpp
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx = n_ctx
    params.n_parallel = 1
    params.verbosity = -1
    params.cpuparams.n_threads = threads
    params.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(params)
    address.put(server.listening_address)
    threading.Event().wait()


class LlamaCpp:
    """llama.cpp with a file of weights, in its own process, reached over HTTP."""

    def __init__(self, path, n_ctx):
        spawn = multiprocessing.get_context('spawn')
        address = spawn.Queue()
        arguments = (path, n_ctx, torch.get_num_threads(), address)
        self.process = spawn.Process(target=serve, args=arguments, daemon=True)
        self.process.start()
        try:
            self.url = address.get(timeout=60) + '/completion'
        except queue.Empty:
            self.process.terminate()
            sys.exit(f'error: {path}: llama.cpp did not start within a minute; see its messages above')

    def generate(self, prompt, n):
        """(seconds, ids): n greedy tokens that continue the ids of the prompt."""
        body = dict(prompt=prompt, n_predict=n, temperature=0, ignore_eos=True, cache_prompt=False, return_tokens=True)
        request = urllib.request.Request(self.url, json.dumps(body).encode(), {'Content-Type': 'application/json'})
        began = time.perf_counter()
        with urllib.request.urlopen(request) as response:
            answer = json.load(response)
        return time.perf_counter() - began, answer['tokens']


class Ours:
    """Our model, with the same interface."""

    def __init__(self, model, bits):
        self.model = inference.prepare(copy.deepcopy(model), torch.float32, int8=bits == 8)

    def generate(self, prompt, n):
        began = time.perf_counter()
        ids = self.model.generate(torch.tensor([prompt]), n)[0, len(prompt):].tolist()
        return time.perf_counter() - began, ids


# ---------------------------------------------------------------------------- measuring

def common_prefix(a, b):
    """How many tokens two texts have in common before they differ."""
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    return n


def measure(theirs, ours, prompt, n, rounds):
    """The seconds of both sides in each round, for n tokens after the prompt, and how many of them agree at the end."""
    their_seconds, our_seconds = [], []
    for round in range(rounds + 1):
        their_time, their_ids = theirs.generate(prompt, n)
        our_time, our_ids = ours.generate(prompt, n)
        if round:                                     # the first round warms up
            their_seconds.append(their_time)
            our_seconds.append(our_time)
    return their_seconds, our_seconds, common_prefix(their_ids, our_ids)


def report_speed(name, tokens, seconds):
    """One row: tokens/s of llama.cpp and of ours."""
    speeds = [[tokens / s for s in side] for side in seconds]
    report(name, *speeds, 'tokens/s', sides=('llama.cpp', 'ours'))


def compare(size, bits, model, args, path=None):
    """Two rows: llama.cpp and our model with these weights; path: a file that has them."""
    n_prompt = min(args.prompt, model.config.block_size - 1)
    long_prompt = torch.randint(model.config.vocab_size, (n_prompt,)).tolist()
    with tempfile.TemporaryDirectory() as tmp:
        if path is None:
            path = os.path.join(tmp, 'model.gguf')
            write(model, path, bits)
        theirs = LlamaCpp(path, model.config.block_size)
        try:
            ours = Ours(model, bits)
            *seconds, same = measure(theirs, ours, PROMPT, args.tokens, args.rounds)
            *seconds_reading, _ = measure(theirs, ours, long_prompt, 1, args.rounds)
        finally:
            theirs.process.terminate()

    name = f'{size}, {bits} bits'
    report_speed(f'{name}, first {same} of {args.tokens} greedy tokens identical', args.tokens, seconds)
    report_speed(f'{name}, prompt of {n_prompt}', n_prompt, seconds_reading)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=3, help='default: %(default)s')
    parser.add_argument('--tokens', type=int, default=128, help='default: %(default)s')
    parser.add_argument('--prompt', type=int, default=512, help='tokens of the long prompt; default: %(default)s')
    parser.add_argument('--threads', type=int, help="of both sides; default: torch's own number")
    parser.add_argument('--model', help='a .gguf file, such as a published model, instead of random weights')
    args = parser.parse_args()
    if not all(importlib.util.find_spec(name) for name in ('gguf', 'xllamacpp')):
        sys.exit('error: bench.py llama-cpp needs gguf and xllamacpp; pip install gguf xllamacpp')

    parallel.init('cpu', compile=False)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.model:
        model = pretrained.build(pretrained.load(args.model)).eval()
        model.crop_block_size(min(model.config.block_size, 1024))
        for bits in (32, 8):
            compare(os.path.basename(args.model), bits, model, args, args.model)
        return
    for size, shape in SHAPES.items():
        torch.manual_seed(0)
        model = GPT(GPTConfig(**shape, mlp='gelu_tanh')).eval()
        for bits in (32, 8):
            compare(size, bits, model, args)


if __name__ == '__main__':
    main()
