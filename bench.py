"""
Measure, side by side with another checkout.

    python bench.py same-recipe --against PATH_TO_NANOGPT     whole runs of nanoGPT's CPU recipe
    python bench.py same-steps --against PATH_TO_NANOGPT      its steps, on the same weights and batches

Ours and theirs alternate, so that whatever else the machine does hits both. Printed are the values, their medians,
and the median of the ratios of the pairs.
"""

import argparse
import importlib.util
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

# nanoGPT's README, "I only have a macbook": 4 layers, 128 wide, context 64, 2000 iterations on the CPU.
CPU_RECIPE = ('config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 --log_interval=1 --block_size=64 '
              '--batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --max_iters=2000 --lr_decay_iters=2000 --dropout=0.0').split()
HERE = os.path.dirname(os.path.abspath(__file__))

# nanoGPT has no setting for its seed: run its train.py, unchanged, with every seed shifted by the first argument.
SHIFTED_SEED = """
import runpy, sys, torch
shift, seed = int(sys.argv.pop(1)), torch.manual_seed
torch.manual_seed = lambda n: seed(n + shift)
sys.path.insert(0, '')
runpy.run_path('train.py', run_name='__main__')
"""


def timed(command, folder):
    """Run it in `folder`; returns (seconds from start to end, stdout). Ends the program if it fails."""
    began = time.perf_counter()
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, encoding='utf-8')
    if ran.returncode:
        sys.exit(f'error: {" ".join(command)} in {folder} failed: {ran.stderr.strip()[-300:]}')
    return time.perf_counter() - began, ran.stdout


def program(name, path):
    """The Python file at `path`, ours or theirs, as a module of that name: what is measured is loaded, not imported."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def blocks(stdout, size=250):
    """Mean of the printed training losses over each `size` iterations: a curve without the noise of single batches."""
    losses = [float(x) for x in re.findall(r'^iter \d+: loss ([\d.]+)', stdout, flags=re.MULTILINE)]
    return [statistics.mean(losses[i:i + size]) for i in range(0, len(losses) - size + 1, size)]


def val_loss(checkpoint):
    """Loss over the whole val split, measured by our train.py whoever wrote the checkpoint."""
    with tempfile.TemporaryDirectory() as tmp:
        shutil.copy(checkpoint, os.path.join(tmp, 'ckpt.pt'))
        flags = [*CPU_RECIPE, '--eval_iters=0', '--eval_only=True', '--init_from=resume', f'--out_dir={tmp}']
        _, out = timed([sys.executable, 'train.py', *flags], HERE)
    return float(re.search(r'val loss ([\d.]+)', out)[1])


def report(name, ours, theirs, unit):
    """One row: every value, the medians, and how many times as large theirs is, pair by pair."""
    a, b = statistics.median(ours), statistics.median(theirs)
    pairs = [round(y / x, 3) for x, y in zip(ours, theirs)]
    print(f'{name}: ours {a:.4g} {unit} {[round(x, 4) for x in ours]}, theirs {b:.4g} {unit} {[round(x, 4) for x in theirs]}, '
          f'ratio {statistics.median(pairs)} {pairs}')


def same_recipe(args):
    """nanoGPT's CPU recipe in nanoGPT and here: the same architecture, batch, schedule and flags."""
    results = {'ours': [], 'theirs': []}
    with tempfile.TemporaryDirectory() as tmp:
        for n in range(args.rounds):
            for side, folder in (('ours', HERE), ('theirs', args.against)):
                out_dir = os.path.join(tmp, f'{side}{n}')
                script = ['train.py', '--sample_tokens=0', f'--seed={1337 + n}'] if side == 'ours' else ['-c', SHIFTED_SEED, str(n)]
                seconds, out = timed([sys.executable, *script, *CPU_RECIPE, f'--out_dir={out_dir}'], folder)
                times = [float(x) for x in re.findall(r'time ([\d.]+)ms', out)]
                results[side].append(dict(seconds=seconds, ms=statistics.median(times), curve=blocks(out),
                                          val=val_loss(os.path.join(out_dir, 'ckpt.pt'))))
                print(side, json.dumps(results[side][-1]), flush=True)
    for key, unit in (('seconds', 's'), ('ms', 'ms/iteration'), ('val', 'nats, whole val split')):
        report(key, *([r[key] for r in results[side]] for side in ('ours', 'theirs')), unit)
    mean = {side: [statistics.mean(c) for c in zip(*(r['curve'] for r in rs))] for side, rs in results.items()}
    gaps = [a - b for a, b in zip(mean['ours'], mean['theirs'])]
    print('training loss, mean of each 250 iterations, ours - theirs:', [round(g, 4) for g in gaps])


def same_steps(args):
    """Both models in one process, from the same weights on the same batches, 20 steps in turn: the losses must agree."""
    import torch

    import configurator
    import loader
    import optim
    import parallel
    train, nanogpt = program('our_train', os.path.join(HERE, 'train.py')), program('their_model', os.path.join(args.against, 'model.py'))
    cfg = configurator.load(train.TrainConfig, CPU_RECIPE)
    run = parallel.start('cpu')
    meta = loader.read_meta(os.path.join('data', cfg.dataset))
    tokens = loader.Tokens(os.path.join('data', cfg.dataset, 'train.bin'), meta['dtype'], meta['vocab_size'], cfg.block_size)
    model, _ = train.build_model(cfg, run, meta)
    theirs = nanogpt.GPT(nanogpt.GPTConfig(**train.model_args(model.config)))
    theirs.load_state_dict(model.state_dict())
    optimizer = optim.adamw(model, cfg.weight_decay, cfg.learning_rate, (cfg.beta1, cfg.beta2))
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
                for group in opt.param_groups:
                    group['lr'] = optim.learning_rate_at(step, cfg.learning_rate, cfg.min_lr, cfg.warmup_iters, cfg.lr_decay_iters)
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
    commands = parser.add_subparsers(dest='command', required=True)
    command = commands.add_parser('same-recipe', help=same_recipe.__doc__)
    command.add_argument('--against', required=True, metavar='PATH', help="a checkout of nanoGPT with data/shakespeare_char prepared")
    command.add_argument('--rounds', type=int, default=3, help='runs of each (default: %(default)s)')
    command.set_defaults(function=same_recipe)
    command = commands.add_parser('same-steps', help=same_steps.__doc__)
    command.add_argument('--against', required=True, metavar='PATH', help='a checkout of nanoGPT, prepared likewise')
    command.add_argument('--steps', type=int, default=2000, help='default: %(default)s')
    command.set_defaults(function=same_steps)
    args = parser.parse_args()
    if getattr(args, 'rounds', 1) < 1 or getattr(args, 'steps', 60) < 60:
        sys.exit('error: expected --rounds of 1 or more, --steps of 60 or more')
    args.against = os.path.abspath(args.against)
    os.chdir(HERE)
    for path in (os.path.join(args.against, 'train.py'), *(os.path.join(side, 'data', 'shakespeare_char', 'train.bin') for side in (HERE, args.against))):
        if not os.path.exists(path):
            sys.exit(f'error: {path}: not found; expected a checkout of nanoGPT, and data/shakespeare_char prepared in both')
    args.function(args)


if __name__ == '__main__':
    main()
