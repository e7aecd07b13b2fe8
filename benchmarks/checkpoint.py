"""
What saving GPT-2 124M with AdamW costs: seconds of a save, of writing as many bytes, and of a training step, and how
much a save every 1,000 iterations adds to a step.
"""

import argparse
import os
import statistics
import tempfile

import torch

from benchmarks.paired import report, seconds_of
from gradus import checkpoint, optim
from model import GPT, GPTConfig


class Training:
    """GPT-2 124M with AdamW, on one sequence of 1,024 tokens."""

    def __init__(self):
        self.model = GPT(GPTConfig())
        self.optimizer = optim.build(self.model, 'adamw', 0.1, 1e-4, (0.9, 0.95))
        self.ids = torch.randint(50257, (1, 1025))

    def step(self):
        _, loss = self.model(self.ids[:, :-1], self.ids[:, 1:])
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def save(self, path):
        state = dict(model=self.model.state_dict(), model_args={}, optimizer=self.optimizer.state_dict())
        checkpoint.save(path, state)


def write_plainly(path, block, n):
    """Write n blocks to a new file and flush it to disk, keeping the previous file, as a save does."""
    with open(path + '.tmp', 'wb') as f:
        for _ in range(n):
            f.write(block)
        f.flush()
        os.fsync(f.fileno())
    if os.path.exists(path):
        os.replace(path, path + '.prev')
    os.replace(path + '.tmp', path)


def checkpoint_cost(args):
    training = Training()
    training.step()                                   # warms up, and gives AdamW its state

    saves, writes, steps = [], [], []
    with tempfile.TemporaryDirectory(dir=args.folder) as tmp:
        path = os.path.join(tmp, 'ckpt.pt')
        training.save(path)
        block = os.urandom(os.path.getsize(path) // 64)
        for _ in range(args.rounds):
            saves.append(seconds_of(training.save, path))
            writes.append(seconds_of(write_plainly, os.path.join(tmp, 'plain'), block, 64))
            steps.append(seconds_of(training.step))

    report(f'{len(block) * 64 / 1e9:.2f} GB', saves, writes, 's', sides=('checkpoint.save', 'plain write and flush'))
    step = statistics.median(steps)
    added = statistics.median(saves) / 1000
    print(f'a step of 1 x 1024 tokens: {step:.2f} s; saving every 1,000 iterations adds {added:.4f} s to each, '
          f'{added / step:.2%}')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=5, help='default: %(default)s')
    parser.add_argument('--folder', help='where to write (default: the temporary folder)')
    args = parser.parse_args()
    checkpoint_cost(args)


if __name__ == '__main__':
    main()
