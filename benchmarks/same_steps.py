"""
Our model and nanoGPT's in one process, from the same weights, on the same batches, alternating every 20 steps. The
losses must agree. nanoGPT's CPU recipe does not compile; --compile=ours compiles our side, --compile=both compiles
both. The first steps, which wait for the compiler, are left out of the ratio.
"""

import argparse
import os
import statistics
import time

import torch

import train
from benchmarks.paired import CPU_RECIPE, checkout, load_nanogpt
from gradus import checkpoint, configurator, data, metadata, optim, parallel

CHUNK = 20


class Ours:
    def __init__(self, cfg, worker, meta, tokens):
        self.cfg = cfg
        self.worker = worker
        self.tokens = tokens
        self.model, _ = train.build_model(cfg, worker, meta)
        betas = (cfg.beta1, cfg.beta2)
        self.optimizer = optim.build(self.model, 'adamw', cfg.weight_decay, cfg.learning_rate, betas)
        self.scaler = torch.amp.GradScaler('cpu', enabled=False)
        self.fast = torch.compile(self.model) if worker.compile else self.model

    def step(self, n):
        """The loss of step n."""
        loss, *_ = train.train_step(self.fast, self.optimizer, self.scaler, self.tokens, n, self.cfg, self.worker)
        return float(loss)


class NanoGPT:
    def __init__(self, nanogpt, ours, compile):
        """nanogpt: its model.py; ours: the side whose weights, batches and settings it takes."""
        self.cfg = cfg = ours.cfg
        self.tokens = ours.tokens
        self.model = nanogpt.GPT(nanogpt.GPTConfig(**checkpoint.model_args(ours.model.config)))
        self.model.load_state_dict(ours.model.state_dict())
        betas = (cfg.beta1, cfg.beta2)
        self.optimizer = self.model.configure_optimizers(cfg.weight_decay, cfg.learning_rate, betas, 'cpu')
        self.fast = torch.compile(self.model) if compile else self.model

    def step(self, n):
        """The loss of step n, with the step that nanoGPT's train.py takes."""
        x, y = self.tokens.windows(self.tokens.batch_starts(self.cfg.seed, n, self.cfg.batch_size))
        _, loss = self.fast(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.cfg.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()


def build(args):
    """Both sides, ready for step 0."""
    cfg = configurator.load(train.TrainConfig, CPU_RECIPE)
    worker = parallel.init('cpu', compile=bool(args.compile))
    folder = os.path.join('data', cfg.dataset)
    meta = metadata.read_meta(folder)
    tokens = data.Tokens(os.path.join(folder, 'train.bin'), meta['dtype'], meta['vocab_size'], cfg.block_size)
    ours = Ours(cfg, worker, meta, tokens)
    return ours, NanoGPT(load_nanogpt(args.against), ours, compile=args.compile == 'both')


def take_steps(side, steps):
    """The losses of these steps, and the milliseconds each takes on average."""
    cfg = side.cfg
    losses = []
    began = time.perf_counter()
    for n in steps:
        lr = optim.learning_rate_at(n, cfg.learning_rate, cfg.min_lr, cfg.warmup_iters, cfg.lr_decay_iters)
        optim.set_step(side.optimizer, n, lr)
        losses.append(side.step(n))
    return losses, (time.perf_counter() - began) / len(steps) * 1000


def same_steps(args):
    ours, theirs = build(args)
    our_losses, our_times = [], []
    their_losses, their_times = [], []
    for first in range(0, args.steps, CHUNK):
        steps = range(first, min(first + CHUNK, args.steps))
        for side, losses, times in ((ours, our_losses, our_times), (theirs, their_losses, their_times)):
            new_losses, ms = take_steps(side, steps)
            losses += new_losses
            times.append(ms)

    report_losses([a - b for a, b in zip(our_losses, their_losses)])
    report_times(our_times, their_times)


def report_losses(gaps):
    """gaps: our loss - nanoGPT's, for each step."""
    for n in (1, 10, 100, len(gaps)):
        print(f'largest difference between the losses in the first {n} steps: {max(map(abs, gaps[:n])):.2e}')
    quarter = len(gaps) // 4
    means = [statistics.mean(gaps[i:i + quarter]) for i in range(0, len(gaps) - quarter + 1, quarter)]
    print('mean difference, ours - nanoGPT, by quarter of the run:', [round(mean, 5) for mean in means])


def report_times(ours, theirs):
    """Milliseconds per step of each chunk; the first chunk warms up and is left out of the ratios."""
    ratios = [b / a for a, b in zip(ours[1:], theirs[1:])]
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(f'ms/step: ours {statistics.median(ours):.2f}, nanoGPT {statistics.median(theirs):.2f}; '
          f'nanoGPT / ours, pair by pair: median {middle:.3f}, quartiles {low:.3f} and {high:.3f}')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--against', required=True, metavar='PATH',
                        help='a checkout of nanoGPT with data/shakespeare_char prepared')
    parser.add_argument('--steps', type=int, default=2000, help='60 or more (default: %(default)s)')
    parser.add_argument('--compile', choices=('ours', 'both'), help='default: neither side')
    args = parser.parse_args()
    args.against = checkout(args.against, here=['shakespeare_char'], there=['shakespeare_char'])
    same_steps(args)


if __name__ == '__main__':
    main()
