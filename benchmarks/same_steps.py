"""Our model and nanoGPT's in one process, from the same weights on the same batches, 20 steps in turn: the losses must agree."""

import argparse
import os
import statistics
import time

import torch

from benchmarks.paired import CPU_RECIPE, HERE, checkout, program
from gradus import configurator, data, optim, parallel


def same_steps(args):
    train, nanogpt = program('our_train', os.path.join(HERE, 'train.py')), program('their_model', os.path.join(args.against, 'model.py'))
    cfg = configurator.load(train.TrainConfig, CPU_RECIPE)
    run = parallel.start('cpu')
    meta = data.read_meta(os.path.join('data', cfg.dataset))
    tokens = data.Tokens(os.path.join('data', cfg.dataset, 'train.bin'), meta['dtype'], meta['vocab_size'], cfg.block_size)
    model, _ = train.build_model(cfg, run, meta)
    theirs = nanogpt.GPT(nanogpt.GPTConfig(**train.model_args(model.config)))
    theirs.load_state_dict(model.state_dict())
    optimizer = optim.build(model, 'adamw', cfg.weight_decay, cfg.learning_rate, (cfg.beta1, cfg.beta2))
    their_optimizer = theirs.configure_optimizers(cfg.weight_decay, cfg.learning_rate, (cfg.beta1, cfg.beta2), 'cpu')
    scaler = torch.amp.GradScaler('cpu', enabled=False)

    def our_step(step):
        return float(train.train_step(model, optimizer, scaler, tokens, step, cfg, run)[0])

    def their_step(step):
        x, y = tokens.windows(tokens.batch_starts(cfg.seed, step, cfg.batch_size))
        _, loss = theirs(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), cfg.grad_clip)
        their_optimizer.step()
        their_optimizer.zero_grad(set_to_none=True)
        return loss.item()

    seconds, losses = {'ours': [], 'theirs': []}, {'ours': [], 'theirs': []}
    for first in range(0, args.steps, 20):
        for side, take_step, opt in (('ours', our_step, optimizer), ('theirs', their_step, their_optimizer)):
            began = time.perf_counter()
            chunk = range(first, min(first + 20, args.steps))
            for step in chunk:
                optim.set_step(opt, step, optim.learning_rate_at(step, cfg.learning_rate, cfg.min_lr, cfg.warmup_iters, cfg.lr_decay_iters))
                losses[side].append(take_step(step))
            seconds[side].append((time.perf_counter() - began) / len(chunk) * 1000)
    gaps = [abs(a - b) for a, b in zip(losses['ours'], losses['theirs'])]
    for n in (1, 10, 100, args.steps):
        print(f'largest difference of the losses in the first {n} steps: {max(gaps[:n]):.2e}')
    quarter = args.steps // 4
    print('mean difference, ours - theirs, by quarters:', [round(statistics.mean(a - b for a, b in list(zip(*losses.values()))[i:i + quarter]), 5)
                                                           for i in range(0, args.steps - quarter + 1, quarter)])
    ratios = [b / a for a, b in zip(seconds['ours'][1:], seconds['theirs'][1:])]
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(f"ms/step: ours {statistics.median(seconds['ours']):.2f}, theirs {statistics.median(seconds['theirs']):.2f}; "
          f'theirs / ours, pair by pair: median {middle:.3f}, quartiles {low:.3f} and {high:.3f}')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--against', required=True, metavar='PATH', help='a checkout of nanoGPT with data/shakespeare_char prepared')
    parser.add_argument('--steps', type=int, default=2000, help='60 or more (default: %(default)s)')
    args = parser.parse_args()
    args.against = checkout(args.against, here=['shakespeare_char'], there=['shakespeare_char'])
    same_steps(args)


if __name__ == '__main__':
    main()
