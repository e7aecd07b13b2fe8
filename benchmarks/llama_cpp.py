"""
Tokens per second of one stream on the CPU, ours and llama.cpp's, with the same weights and threads, in turn: a GPT-2 of random
weights, in 32 bits and in 8 (there Q8_0: a scale for 32 weights; here one for each row). Greedy texts must begin alike.
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
from gradus import inference, parallel
from model import GPT, GPTConfig

NAMES = {
    'transformer.wte': 'token_embd', 'transformer.wpe': 'position_embd', 'transformer.ln_f': 'output_norm', 'transformer.h.': 'blk.', 'ln_1': 'attn_norm',
    'attn.c_attn': 'attn_qkv', 'attn.c_proj': 'attn_output', 'ln_2': 'ffn_norm', 'mlp.c_fc': 'ffn_up', 'mlp.c_proj': 'ffn_down',
}


def write(model, path, bits):
    """A GGUF file of the model, with a vocabulary of made-up words."""
    import gguf
    c, out, q8 = model.config, gguf.GGUFWriter(path, 'gpt2'), gguf.GGMLQuantizationType.Q8_0
    out.add_context_length(c.block_size)
    out.add_embedding_length(c.n_embd)
    out.add_block_count(c.n_layer)
    out.add_feed_forward_length(c.hidden)
    out.add_head_count(c.n_head)
    out.add_layer_norm_eps(1e-5)
    out.add_tokenizer_model('gpt2')
    out.add_tokenizer_pre('gpt-2')
    out.add_token_list([f'w{i}' for i in range(c.vocab_size)])
    out.add_token_types([gguf.TokenType.NORMAL] * c.vocab_size)
    out.add_token_merges(['w 0'])
    out.add_eos_token_id(0)
    out.add_add_bos_token(False)
    for name, p in model.named_parameters():
        for ours, others in NAMES.items():
            name = name.replace(ours, others)
        data = p.detach().float().numpy()
        if bits == 8 and p.dim() == 2 and name != 'position_embd.weight':
            out.add_tensor(name, gguf.quants.quantize(data, q8), raw_dtype=q8)
        else:
            out.add_tensor(name, data)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def serve(path, n_ctx, threads, address):
    """A process of its own: two pools of threads in one wait for each other, and torch's becomes slower by a third."""
    import xllamacpp
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.verbosity = path, n_ctx, 1, -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(params)
    address.put(server.listening_address)
    threading.Event().wait()


class LlamaCpp:
    """llama.cpp with a file of weights, spoken to over HTTP on this machine."""

    def __init__(self, path, n_ctx):
        spawn = multiprocessing.get_context('spawn')
        address = spawn.Queue()
        self.process = spawn.Process(target=serve, args=(path, n_ctx, torch.get_num_threads(), address), daemon=True)
        self.process.start()
        try:
            self.url = address.get(timeout=60) + '/completion'
        except queue.Empty:
            self.process.terminate()
            sys.exit(f'error: {path}: llama.cpp did not start within a minute; what it said stands above')

    def generate(self, prompt, n):
        """(seconds, ids): n greedy tokens behind the ids of the prompt."""
        body = dict(prompt=prompt, n_predict=n, temperature=0, ignore_eos=True, cache_prompt=False, return_tokens=True)
        request = urllib.request.Request(self.url, json.dumps(body).encode(), {'Content-Type': 'application/json'})
        began = time.perf_counter()
        with urllib.request.urlopen(request) as answer:
            answer = json.load(answer)
        return time.perf_counter() - began, answer['tokens']


def ours(model, prompt, n):
    """The same by our model."""
    began = time.perf_counter()
    ids = model.generate(torch.tensor([prompt]), n)[0, len(prompt):].tolist()
    return time.perf_counter() - began, ids


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=3, help='default: %(default)s')
    parser.add_argument('--tokens', type=int, default=128, help='default: %(default)s')
    args = parser.parse_args()
    if not all(importlib.util.find_spec(name) for name in ('gguf', 'xllamacpp')):
        sys.exit('error: bench.py llama-cpp needs gguf and xllamacpp; pip install gguf xllamacpp')
    parallel.start('cpu', compile=False)
    for size, shape in SHAPES.items():
        torch.manual_seed(0)
        model = GPT(GPTConfig(**shape, mlp='gelu_tanh')).eval()
        for bits in (32, 8):
            with tempfile.TemporaryDirectory() as tmp:
                path = os.path.join(tmp, 'model.gguf')
                write(model, path, bits)
                theirs, here = LlamaCpp(path, shape['block_size']), inference.prepare(copy.deepcopy(model), torch.float32, bits == 8)
                prompt, speeds = [1, 2, 3], ([], [])
                for n in range(args.rounds + 1):
                    texts = []
                    for (seconds, ids), side in zip((theirs.generate(prompt, args.tokens), ours(here, prompt, args.tokens)), speeds):
                        texts.append(ids)
                        if n:                         # the first round warms up
                            side.append(args.tokens / seconds)
                alike = next((i for i, (a, b) in enumerate(zip(*texts)) if a != b), args.tokens)
                theirs.process.terminate()
                report(f'{size}, {bits} bits, {alike} of {args.tokens} greedy tokens alike', *speeds, 'tokens/s', sides=('llama.cpp', 'ours'))


if __name__ == '__main__':
    main()
