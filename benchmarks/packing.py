"""
How should pairs of different length share a batch? Training steps of config/translate_de_en.py's model, with the
examples of a batch laid out in four ways, alternating:

    similar    a row for each, in batches of similar length, padded to the longest: what data.Pairs does
    random     the same in batches of any length
    context    a row for each, padded to the context length
    packed     as many whole examples in a row as fit, and a mask so that none sees another

For each: milliseconds and targets per second, which is what counts, and how much of the tokens is padding.
"""

import argparse
import os
import statistics
from unittest import mock

import torch
from torch.nn import functional as F

import train
from benchmarks.paired import HERE, seconds_of
from gradus import configurator, data, metadata, optim, parallel, pretrained
from model import GPT

attention = F.scaled_dot_product_attention


# ---------------------------------------------------------------------------- layouts: x, y (n, T), mask or None

def one_a_row(pairs, examples):
    return *pairs.windows(examples), None


def padded_to_context(pairs, examples):
    x, y = pairs.windows(examples)
    more = pairs.block_size - x.size(1)
    return F.pad(x, (0, more)), F.pad(y, (0, more), value=-1), None


def packed(pairs, examples):
    """Each example goes into the first row that has room, the longest first."""
    T = pairs.block_size
    rows = []                                         # [tokens that are left, examples]
    for i in reversed(examples):
        row = next((row for row in rows if row[0] >= pairs.lengths[i]), None)
        if row is None:
            row = [T, []]
            rows.append(row)
        row[0] -= pairs.lengths[i]
        row[1].append(i)

    x = torch.zeros(len(rows), T, dtype=torch.int64)
    y = torch.full((len(rows), T), -1)
    owner = torch.full((len(rows), T), -1)
    for r, (_, examples) in enumerate(rows):
        at = 0
        for i in examples:
            one_x, one_y = pairs.windows([i])
            end = at + one_x.size(1)
            x[r, at:end], y[r, at:end], owner[r, at:end] = one_x[0], one_y[0], int(i)
            at = end
    mask = (owner[:, :, None] == owner[:, None, :]).tril()                      # (rows, T, T)
    return x, y, mask[:, None]


# name: how a batch is chosen, how it is laid out
LAYOUTS = {
    'similar': ('shuffled', one_a_row),
    'random': ('random', one_a_row),
    'context': ('shuffled', padded_to_context),
    'packed': ('random', packed),
}


# ---------------------------------------------------------------------------- steps

def masked_by(mask):
    """Attention with a mask of its own; positions are relative, so that they need no change."""
    def attend(q, k, v, attn_mask=None, is_causal=True, **options):
        return attention(q, k, v, attn_mask=mask, **options)
    return attend if mask is not None else attention


class Side:
    """A model of its own, trained on one layout."""

    def __init__(self, cfg, pairs, order, layout, worker):
        torch.manual_seed(0)
        self.model = GPT(pretrained.config_of(cfg, pairs.tokens.vocab_size))
        betas = (cfg.beta1, cfg.beta2)
        self.optimizer = optim.build(self.model, cfg.optimizer, cfg.weight_decay, cfg.learning_rate, betas,
                                     worker.dtype)
        self.pairs = pairs
        self.choose = lambda step: pairs.batch_starts(0, step, cfg.batch_size, order)
        self.layout = layout
        self.seconds, self.targets, self.padding = [], [], []

    def step(self, step):
        examples = self.choose(step)
        x, y, mask = self.layout(self.pairs, examples)
        self.seconds.append(seconds_of(self.update, x, y, mask))
        self.targets.append((y >= 0).sum().item())
        self.padding.append(1 - self.pairs.lengths[examples].sum() / x.numel())

    def update(self, x, y, mask):
        with mock.patch.object(F, 'scaled_dot_product_attention', masked_by(mask)):
            _, loss = self.model(x, y)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--steps', type=int, default=60, help='of each side (default: %(default)s)')
    args = parser.parse_args()
    os.chdir(HERE)
    cfg = configurator.load(train.TrainConfig, ['config/translate_de_en.py', '--device=cpu'])
    meta = metadata.read_meta('data/multi30k')
    pairs = data.open_dataset('data/multi30k', meta, meta['vocab_size'], cfg.block_size).train
    worker = parallel.init('cpu')

    sides = {name: Side(cfg, pairs, *how, worker) for name, how in LAYOUTS.items()}
    for step in range(args.steps):
        for side in sides.values():
            side.step(step)
    for name, side in sides.items():
        rates = [n / s for n, s in zip(side.targets[5:], side.seconds[5:])]     # the first steps warm up
        low, median, high = statistics.quantiles(rates, n=4)
        print(f'{name:8} {1000 * statistics.median(side.seconds[5:]):6.1f} ms, {median:6.0f} targets/s '
              f'(quartiles {low:.0f} and {high:.0f}), {statistics.mean(side.padding):.1%} padding')


if __name__ == '__main__':
    main()
