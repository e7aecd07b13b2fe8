"""
Tokens per second of one greedy stream on the CPU, ours and llama.cpp's, interleaved, with the same weights and number
of threads. The model is a GPT-2 with random weights, in 32 bits and in 8 (llama.cpp's Q8_0 has a scale for every 32
weights, ours one for each row). The texts should start with the same tokens. With --model, it is a real model, which
llama.cpp reads as it is, and we as float32 and in 8 bits.

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


def measure(theirs, ours, args):
    """Tokens/s of both sides in each round, and how many tokens of the last round's texts agree."""
    their_speeds, our_speeds = [], []
    for n in range(args.rounds + 1):
        their_seconds, their_ids = theirs.generate(PROMPT, args.tokens)
        our_seconds, our_ids = ours.generate(PROMPT, args.tokens)
        if n:                                         # the first round warms up
            their_speeds.append(args.tokens / their_seconds)
            our_speeds.append(args.tokens / our_seconds)
    return their_speeds, our_speeds, common_prefix(their_ids, our_ids)


def compare(size, bits, model, args, path=None):
    """One row: llama.cpp and our model with these weights; path: a file that has them."""
    with tempfile.TemporaryDirectory() as tmp:
        if path is None:
            path = os.path.join(tmp, 'model.gguf')
            write(model, path, bits)
        theirs = LlamaCpp(path, model.config.block_size)
        try:
            their_speeds, our_speeds, same = measure(theirs, Ours(model, bits), args)
        finally:
            theirs.process.terminate()
    name = f'{size}, {bits} bits, first {same} of {args.tokens} greedy tokens identical'
    report(name, their_speeds, our_speeds, 'tokens/s', sides=('llama.cpp', 'ours'))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=3, help='default: %(default)s')
    parser.add_argument('--tokens', type=int, default=128, help='default: %(default)s')
    parser.add_argument('--model', help='a .gguf file, such as a published model, instead of random weights')
    args = parser.parse_args()
    if not all(importlib.util.find_spec(name) for name in ('gguf', 'xllamacpp')):
        sys.exit('error: bench.py llama-cpp needs gguf and xllamacpp; pip install gguf xllamacpp')

    parallel.init('cpu', compile=False)
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
