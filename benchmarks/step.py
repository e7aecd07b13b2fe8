"""
Tokens per second and MFU of a config's training step: ours, and nanoGPT's model of the same size with its own optimizer and step,
in one process, in turn, on random tokens. Behind --config further files and --key=value, as for train.py.
"""

import argparse
import os
import statistics
import time

import torch

from benchmarks.paired import HERE, checkout, program, report
from gradus import configurator, data, optim, parallel


def step(args, rest):
    train = program('our_train', os.path.join(HERE, 'train.py'))
    cfg = configurator.load(train.TrainConfig, [args.config, *rest])
    run = parallel.start(cfg.device, cfg.dtype, cfg.compile, cfg.backend)
    if run.compile and run.device.type == 'cpu':      # as train.py does
        parallel.be_deterministic()
    torch.manual_seed(cfg.seed)
    config = train.model_config(cfg, vocab_size=args.vocab_size)
    tokens = data.Tokens.of(torch.randint(args.vocab_size, (10 ** 6,)).numpy(), args.vocab_size, cfg.block_size)
    model = train.GPT(config).to(run.device)
    optimizer = optim.build(model, cfg.optimizer, cfg.weight_decay, cfg.learning_rate, (cfg.beta1, cfg.beta2), run.dtype)
    scaler = torch.amp.GradScaler(run.device.type, enabled=run.dtype == torch.float16)
    fast = torch.compile(model) if run.compile else model

    def our_step(n):
        optim.set_step(optimizer, n, cfg.learning_rate)
        train.train_step(fast, optimizer, scaler, tokens, n, cfg, run)

    sides = {'ours': (our_step, model.flops_per_token())}
    if args.against:
        nanogpt = program('their_model', os.path.join(args.against, 'model.py'))
        theirs = nanogpt.GPT(nanogpt.GPTConfig(**{name: getattr(config, name) for name in train.NANOGPT_MODEL_ARGS})).to(run.device)
        their_optimizer = theirs.configure_optimizers(cfg.weight_decay, cfg.learning_rate, (cfg.beta1, cfg.beta2), run.device.type)
        their_fast = torch.compile(theirs) if run.compile else theirs

        def their_batch():
            starts = torch.randint(len(tokens) - cfg.block_size, (cfg.batch_size,)).tolist()
            x, y = (torch.stack([torch.from_numpy(tokens.ids[i + d:i + d + cfg.block_size]) for i in starts]) for d in (0, 1))
            return run.put(x, y)

        def their_step(n):
            for _ in range(cfg.gradient_accumulation_steps):
                x, y = their_batch()
                with run.autocast():
                    loss = their_fast(x, y)[1] / cfg.gradient_accumulation_steps
                scaler.scale(loss).backward()
            if cfg.grad_clip:
                torch.nn.utils.clip_grad_norm_(theirs.parameters(), cfg.grad_clip)
            their_optimizer.step()
            their_optimizer.zero_grad(set_to_none=True)

        sides['theirs'] = their_step, 6 * theirs.get_num_params() + 12 * config.n_layer * config.n_embd * config.block_size

    per_step = cfg.batch_size * cfg.gradient_accumulation_steps * cfg.block_size
    speeds = {side: [] for side in sides}
    for n in range(args.rounds + 1):
        for side, (take, _) in sides.items():
            began = time.perf_counter()
            for k in range(args.steps):
                take(n * args.steps + k)
            if run.device.type == 'cuda':
                torch.cuda.synchronize()
            if n:                                     # the first round compiles and warms up
                speeds[side].append(args.steps * per_step / (time.perf_counter() - began))
    print(f'{model.num_params() / 1e6:.1f}M weights, {per_step:,} tokens a step, {run.device}, {run.dtype}, optimizer {cfg.optimizer}{", compiled" * run.compile}')
    if args.against:
        report('speed', speeds['theirs'], speeds['ours'], 'tokens/s', sides=('nanoGPT', 'ours'))
    for side, (_, flops) in sides.items():
        speed = statistics.median(speeds[side])
        print(f'{side}: {speed:,.0f} tokens/s, ' + (f'MFU {speed * flops / run.peak_flops:.1%}' if run.peak_flops else f'{speed * flops / 1e9:,.1f} GFLOP/s'))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--against', metavar='PATH', help='a checkout of nanoGPT')
    parser.add_argument('--config', default='config/gpt2_124m.py', help='default: %(default)s')
    parser.add_argument('--vocab_size', type=int, default=50304, help='default: %(default)s')
    parser.add_argument('--rounds', type=int, default=5, help='default: %(default)s')
    parser.add_argument('--steps', type=int, default=5, help='in each round (default: %(default)s)')
    args, rest = parser.parse_known_args()
    if args.against:
        args.against = checkout(args.against)
    step(args, rest)


if __name__ == '__main__':
    main()
