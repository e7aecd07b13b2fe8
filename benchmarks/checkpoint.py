"""GPT-2 124M with AdamW: seconds of a save, of writing as many bytes, and of a step; what saving every 1,000 iterations costs."""

import argparse
import os
import statistics
import tempfile
import time

import torch

from benchmarks.paired import report
from gradus import checkpoint, optim
from model import GPT, GPTConfig


def checkpoint_cost(args):
    model = GPT(GPTConfig())
    optimizer = optim.build(model, 'adamw', 0.1, 1e-4, (0.9, 0.95))
    ids = torch.randint(50257, (1, 1025))

    def step():
        _, loss = model(ids[:, :-1], ids[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def save(path):
        checkpoint.save(path, dict(model=model.state_dict(), model_args={}, optimizer=optimizer.state_dict()))

    def write(path):                                  # a new file each time, as a save is one
        with open(path + '.tmp', 'wb') as f:
            for _ in range(64):
                f.write(block)
            f.flush()
            os.fsync(f.fileno())
        if os.path.exists(path):
            os.replace(path, path + '.prev')
        os.replace(path + '.tmp', path)

    step()
    results = {'ours': [], 'theirs': [], 'step': []}
    with tempfile.TemporaryDirectory(dir=args.folder) as tmp:
        save(os.path.join(tmp, 'ckpt.pt'))
        block = os.urandom(os.path.getsize(os.path.join(tmp, 'ckpt.pt')) // 64)
        for _ in range(args.rounds):
            for side, function in (('ours', lambda: save(os.path.join(tmp, 'ckpt.pt'))), ('theirs', lambda: write(os.path.join(tmp, 'plain'))), ('step', step)):
                began = time.perf_counter()
                function()
                results[side].append(time.perf_counter() - began)
    report(f'{len(block) * 64 / 1e9:.2f} GB, saved (ours) and merely written and flushed (theirs)', results['ours'], results['theirs'], 's')
    seconds, a_step = statistics.median(results['ours']), statistics.median(results['step'])
    print(f'a step of 1 x 1024 tokens: {a_step:.2f} s; saving every 1,000 iterations adds {seconds / 1000:.4f} s to each, {seconds / 1000 / a_step:.2%}')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=5, help='default: %(default)s')
    parser.add_argument('--folder', help='where to write (default: the temporary folder)')
    args = parser.parse_args()
    checkpoint_cost(args)


if __name__ == '__main__':
    main()
