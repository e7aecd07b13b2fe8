"""
Measure, side by side with what there is to beat.

    python bench.py mnist                                     the digit network: seconds an epoch against the book's algorithm in numpy,
                                                              and seconds from the start of the process to 97% and 98%
    python bench.py checkpoint                                what saving GPT-2 124M costs
    python bench.py time-to-loss --against PATH_TO_NANOGPT    seconds to a loss of 1.88 on tiny Shakespeare, and the loss at equal time
    python bench.py same-recipe --against PATH_TO_NANOGPT     whole runs of nanoGPT's CPU recipe
    python bench.py same-steps --against PATH_TO_NANOGPT      its steps, on the same weights and batches

Ours and theirs alternate, so that whatever else the machine does hits both. Printed are the values, their medians,
and the median of the ratios of the pairs.
"""

import argparse
import importlib.util
import json
import os
import pickle
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

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


def val_loss(path, folder):
    """Loss over the whole val split of the dataset `folder`, in windows of the model's own context, whoever wrote the checkpoint."""
    import checkpoint
    import evaluation
    import loader
    import parallel
    from model import GPT
    state = checkpoint.load(path)
    model = GPT.from_state(state['model_args'], state['model'], path, dropout=0.0)
    tokens = loader.Tokens(os.path.join(folder, 'val.bin'), loader.read_meta(folder)['dtype'], model.config.vocab_size, model.config.block_size)
    return evaluation.evaluate(model, tokens, 64, 0, parallel.start('cpu'))[0]


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
                                          val=val_loss(os.path.join(out_dir, 'ckpt.pt'), 'data/shakespeare_char')))
                print(side, json.dumps(results[side][-1]), flush=True)
    for key, unit in (('seconds', 's'), ('ms', 'ms/iteration'), ('val', 'nats, whole val split')):
        report(key, *([r[key] for r in results[side]] for side in ('ours', 'theirs')), unit)
    mean = {side: [statistics.mean(c) for c in zip(*(r['curve'] for r in rs))] for side, rs in results.items()}
    gaps = [a - b for a, b in zip(mean['ours'], mean['theirs'])]
    print('training loss, mean of each 250 iterations, ours - theirs:', [round(g, 4) for g in gaps])


def time_to_loss(args):
    """
    Whole runs from process start to exit: --config, then nanoGPT's CPU recipe (without --against: a second config), then --long,
    which should take as long as the recipe. Every loss is that of the last checkpoint over the whole val split.
    """
    folder = os.path.join('data', args.dataset)
    with tempfile.TemporaryDirectory() as tmp:
        for name in ('train.bin', 'val.bin'):         # nanoGPT reads the same tokens, wherever its own data are
            shutil.copy(os.path.join(folder, name), tmp)
        with open(os.path.join(folder, 'meta.json'), encoding='utf-8') as f, open(os.path.join(tmp, 'meta.pkl'), 'wb') as pkl:
            pickle.dump(dict(vocab_size=json.load(f)['vocab_size']), pkl)
        runs = {'ours': (HERE, ['train.py', args.config, f'--dataset={args.dataset}', '--sample_tokens=0'])}
        if args.against:
            runs['theirs'] = args.against, ['-c', SHIFTED_SEED, None, *CPU_RECIPE, f'--dataset={tmp}']
        else:
            runs['theirs'] = HERE, ['train.py', args.other, f'--dataset={args.dataset}', '--sample_tokens=0']
        if args.long:
            runs['ours, long'] = HERE, ['train.py', args.long, f'--dataset={args.dataset}', '--sample_tokens=0']
        results = {name: [] for name in runs}
        for n in range(args.rounds):
            for name, (where, command) in runs.items():
                out_dir = os.path.join(tmp, f'{name}{n}')
                seed = [] if where == args.against else [f'--seed={1337 + n}']
                command = [str(n) if part is None else part for part in command]
                seconds, out = timed([sys.executable, *command, f'--out_dir={out_dir}', *seed], where)
                speed = [float(x) for x in re.findall(r'time ([\d.]+)ms', out)]
                results[name].append(dict(seconds=round(seconds, 2), val=round(val_loss(os.path.join(out_dir, 'ckpt.pt'), folder), 4),
                                          ms=statistics.median(speed)))
                print(name, json.dumps(results[name][-1]), flush=True)
    column = {name: {key: [r[key] for r in rows] for key in rows[0]} for name, rows in results.items()}
    for key, unit in (('seconds', 's from start to exit'), ('val', 'nats, whole val split'), ('ms', 'ms/iteration')):
        report(key, column['ours'][key], column['theirs'][key], unit)
    if args.long:
        report('at equal time: seconds', column['ours, long']['seconds'], column['theirs']['seconds'], 's')
        report('at equal time: val', column['ours, long']['val'], column['theirs']['val'], 'nats, whole val split')
    for name, values in column.items():
        print(f"{name}: {sum(v <= args.loss for v in values['val'])} of {args.rounds} runs reached {args.loss}")
    print('where ours reached the loss and theirs did not, the ratio of the seconds is a lower bound')


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


class BookNetwork:
    """Nielsen's algorithm as the book tells it, one image after the other: the yardstick for our mini-batches of columns."""

    def __init__(self, weights, biases):
        self.weights, self.biases = weights, biases   # numpy, (n_l, n_{l-1}) and (n_l, 1)

    def gradients(self, x, y):
        by_w, by_b = [np.zeros(w.shape) for w in self.weights], [np.zeros(b.shape) for b in self.biases]
        acts, zs = [x], []
        for w, b in zip(self.weights, self.biases):
            zs.append(w.dot(acts[-1]) + b)
            acts.append(sigmoid(zs[-1]))
        delta = (acts[-1] - y) * slope_of_sigmoid(zs[-1])
        for n in reversed(range(len(self.weights))):
            by_w[n], by_b[n] = delta.dot(acts[n].T), delta
            if n:
                delta = self.weights[n].T.dot(delta) * slope_of_sigmoid(zs[n - 1])
        return by_w, by_b

    def step(self, examples, eta):
        sum_w, sum_b = [np.zeros(w.shape) for w in self.weights], [np.zeros(b.shape) for b in self.biases]
        for x, y in examples:
            by_w, by_b = self.gradients(x, y)
            sum_w = [s + g for s, g in zip(sum_w, by_w)]
            sum_b = [s + g for s, g in zip(sum_b, by_b)]
        self.weights = [w - eta / len(examples) * s for w, s in zip(self.weights, sum_w)]
        self.biases = [b - eta / len(examples) * s for b, s in zip(self.biases, sum_b)]


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def slope_of_sigmoid(z):
    return sigmoid(z) * (1 - sigmoid(z))


def mnist(args):
    """The digit network: an epoch of config/mnist_nielsen.py against the book's algorithm, then the time to 97% and 98%."""
    digits = program('our_mnist', os.path.join(HERE, 'mlp_mnist.py'))
    images, labels = (t.numpy() for t in digits.read_digits('train'))
    tests, answers = (t.numpy() for t in digits.read_digits('test'))
    random = np.random.default_rng(0)
    book = BookNetwork([random.standard_normal(shape) for shape in ((30, 784), (10, 30))], [random.standard_normal((n, 1)) for n in (30, 10)])
    examples = [(x[:, None], y[:, None]) for x, y in zip(images[:50000], np.eye(10)[labels[:50000]])]
    seconds, accuracy = {'ours': [], 'theirs': []}, {}
    with tempfile.TemporaryDirectory() as tmp:
        for n in range(args.rounds):
            _, out = timed([sys.executable, 'mlp_mnist.py', 'config/mnist_nielsen.py', f'--epochs={args.rounds}', f'--out_dir={tmp}/{n}'], HERE)
            epochs = re.findall(r'test accuracy ([\d.]+)%, ([\d.]+) s', out)
            accuracy['ours'] = float(epochs[-1][0])
            seconds['ours'].append(float(epochs[-1][1]) / len(epochs))
            order = random.permutation(50000)
            began = time.perf_counter()
            for i in range(0, 50000, 10):
                book.step([examples[j] for j in order[i:i + 10]], 3.0)
            seconds['theirs'].append(time.perf_counter() - began)
        a = tests.T
        for w, b in zip(book.weights, book.biases):
            a = sigmoid(w @ a + b)
        accuracy['theirs'] = round(100 * float((a.argmax(axis=0) == answers).mean()), 2)
        report('an epoch of 50,000 images, 784-30-10', seconds['ours'], seconds['theirs'], 's')
        print(f'test accuracy after {args.rounds} epochs: {accuracy}')
        results = [time_to(args.config, os.path.join(tmp, f'whole{n}'), n) for n in range(args.rounds)]
    for key in results[0]:
        values = [r[key] for r in results]
        known = [v for v in values if v is not None]
        print(f"{args.config or 'python mlp_mnist.py'}, {key}: median {statistics.median(known) if known else None} {values}")


def time_to(config, out_dir, seed):
    """One run of mlp_mnist.py: seconds from the start of the process to 97% and 98%, and to its end, and where it ended."""
    command = [sys.executable, '-u', 'mlp_mnist.py', *([config] if config else []), f'--seed={seed}', f'--out_dir={out_dir}']
    result = {'seconds to 97%': None, 'seconds to 98%': None}
    began = time.perf_counter()
    with subprocess.Popen(command, cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, encoding='utf-8') as process:
        for line in process.stdout:
            if found := re.search(r'test accuracy ([\d.]+)%', line):
                for key, wanted in (('seconds to 97%', 97), ('seconds to 98%', 98)):
                    if result[key] is None and float(found[1]) >= wanted:
                        result[key] = round(time.perf_counter() - began, 2)
                result['final accuracy'] = float(found[1])
    if process.returncode:
        sys.exit(f'error: {" ".join(command)} failed')
    return {**result, 'seconds in all': round(time.perf_counter() - began, 2)}


def checkpoint_cost(args):
    """GPT-2 124M with AdamW: seconds of a save, of writing as many bytes, and of a step; what saving every 1,000 iterations costs."""
    import torch

    import checkpoint
    import optim
    from model import GPT, GPTConfig
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
    commands = parser.add_subparsers(dest='command', required=True)
    command = commands.add_parser('mnist', help=mnist.__doc__)
    command.add_argument('--rounds', type=int, default=3, help='epochs of each, and runs (default: %(default)s)')
    command.add_argument('--config', default='', help='a settings file of mlp_mnist.py to time instead of its defaults')
    command.set_defaults(function=mnist)
    command = commands.add_parser('checkpoint', help=checkpoint_cost.__doc__)
    command.add_argument('--rounds', type=int, default=5, help='default: %(default)s')
    command.add_argument('--folder', help='where to write (default: the temporary folder)')
    command.set_defaults(function=checkpoint_cost)
    command = commands.add_parser('time-to-loss', help='whole runs of two configs, or of one and nanoGPT: seconds and losses', description=time_to_loss.__doc__)
    command.add_argument('--against', metavar='PATH', help='a checkout of nanoGPT, whose CPU recipe is run')
    command.add_argument('--config', default='config/shakespeare_char_cpu.py', help='default: %(default)s')
    command.add_argument('--other', default='config/shakespeare_char_cpu_long.py', help='the config to compare with, without --against (default: %(default)s)')
    command.add_argument('--long', default='', help='a config that should take as long as nanoGPT, config/shakespeare_char_cpu_long.py say')
    command.add_argument('--dataset', default='shakespeare_char', help='folder in data/ (default: %(default)s)')
    command.add_argument('--loss', type=float, default=1.88, help='nats per token (default: %(default)s)')
    command.add_argument('--rounds', type=int, default=3, help='runs of each (default: %(default)s)')
    command.set_defaults(function=time_to_loss)
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
    if getattr(args, 'against', None):
        args.against = os.path.abspath(args.against)
        sides = (HERE,) if args.function == time_to_loss else (HERE, args.against)
        dataset = getattr(args, 'dataset', 'shakespeare_char')
        for path in (os.path.join(args.against, 'train.py'), *(os.path.join(side, 'data', dataset, 'train.bin') for side in sides)):
            if not os.path.exists(path):
                sys.exit(f'error: {path}: not found; expected a checkout of nanoGPT, and data/{dataset} prepared here and, but for time-to-loss, there')
    os.chdir(HERE)
    args.function(args)


if __name__ == '__main__':
    main()
