"""
Is a config a record of the CPU speedrun? Its rules are in docs/speedrun.md. This runs the candidate and the standing
record, interleaved, with the same seeds, each from process start to exit, checks the rules that a program can check,
and prints the runs and the verdict as Markdown. On two cores, with nothing else running:

    python bench.py speedrun config/mine.py --record=config/shakespeare_char_cpu.py --loss=1.88

Further --key=value of train.py are part of the candidate. If the candidate changes code, too, the record runs in a
checkout without the change: --checkout=../gradus.
"""

import argparse
import hashlib
import os
import statistics
import sys
import tempfile

import train
from benchmarks.paired import HERE, interval, measure_run, our_run, p_below_0, warn_if_busy
from gradus import configurator
from gradus.errors import UserError, warn

DATASET = 'shakespeare_char'
# Tiny Shakespeare by characters, the first 90% to train on: as data/shakespeare_char/prepare.py and nanoGPT's write it.
SHA256 = {
    'train.bin': '6ec305602a99ac2802745a134e1f5e33e2231b4855525b00b9aebb730ac2626f',
    'val.bin': 'd37d30cc0c8327c270d493299c3dca54135f6d5f1c9ef60cda78076e311204b1',
}
N_CORES = 2
ROUNDS = range(100, 105)                              # seeds 1437 to 1441, far from those that people tune on
P = 0.05


# ---------------------------------------------------------------------------- the rules

def check_text(checkout):
    """UserError if the dataset in the checkout is another one, or split elsewhere."""
    for name, expected in SHA256.items():
        path = os.path.join(checkout, 'data', DATASET, name)
        try:
            with open(path, 'rb') as f:
                found = hashlib.sha256(f.read()).hexdigest()
        except OSError as e:
            raise UserError(f'{path}: {e.strerror}; run data/{DATASET}/prepare.py there first') from e
        if found != expected:
            raise UserError(f'{path}: not tiny Shakespeare by characters, split 90/10; run data/{DATASET}/prepare.py')


def check_machine():
    """UserError unless there are two cores for this process and those that it starts; a warning if they are busy."""
    if not hasattr(os, 'sched_getaffinity'):
        warn(f'cannot see here how many cores a process may use; the rules allow {N_CORES}')
    elif (n := len(os.sched_getaffinity(0))) != N_CORES:
        raise UserError(f'{n} cores; the rules say {N_CORES}: taskset -c 0,1 python bench.py speedrun ...')
    warn_if_busy()


def check_config(arguments):
    """UserError if the config breaks a rule."""
    cfg = configurator.load(train.TrainConfig, arguments, train)
    rules = dict(dataset=(DATASET,), init_from=('scratch',), device=('cpu', 'auto'), eval_only=(False,))
    for key, allowed in rules.items():
        if getattr(cfg, key) not in allowed:
            raise UserError(f'{arguments[0]}: {key}={getattr(cfg, key)}; the rules say {key}={allowed[0]}')
    train.check(cfg)


# ---------------------------------------------------------------------------- the runs, and what they say

def measure(sides):
    """
    {side: its runs}, dicts with 'seconds' and 'val'. sides: {side: (checkout, arguments of train.py)}. Before the runs
    that count there is a short one of each, so that none of them finds cold files.
    """
    runs = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as folder:
        for side in sides:
            measure_one(sides[side], 0, os.path.join(folder, side), '--max_iters=1')
        for n in ROUNDS:
            for side in sorted(sides, reverse=n % 2 == 1):      # who goes first changes
                run = measure_one(sides[side], n, os.path.join(folder, f'{side}-{n}'))
                runs[side].append(run)
                line = f"seed {1337 + n}, {side}: {run['seconds']:.2f} s, loss {run['val']:.4f}"
                print(line, file=sys.stderr, flush=True)
    return runs


def measure_one(side, n, out_dir, *more):
    """The run of round n of a side, measured."""
    checkout, arguments = side
    _, command = our_run(n, *arguments, '--device=cpu', *more)
    run, _ = measure_run((checkout, command), out_dir, DATASET)
    return run


def verdict(candidate, record, target):
    """The runs of both and the verdict, as Markdown."""
    lines = ['| seed | candidate, s | record, s | candidate, loss | record, loss |', '|---|---|---|---|---|']
    for n, ours, theirs in zip(ROUNDS, candidate, record):
        lines.append(f"| {1337 + n} | {ours['seconds']:.2f} | {theirs['seconds']:.2f} | {ours['val']:.4f} | "
                     f"{theirs['val']:.4f} |")
    columns = [[run[key] for run in runs] for key in ('seconds', 'val') for runs in (candidate, record)]
    means = [statistics.mean(column) for column in columns]
    lines.append(f'| mean | {means[0]:.2f} | {means[1]:.2f} | {means[2]:.4f} | {means[3]:.4f} |')

    # Paired: seed and moment are shared. One-sided: only a faster candidate is a record.
    differences = [ours - theirs for ours, theirs in zip(*columns[:2])]
    mean, low, high = interval(differences)
    p = p_below_0(differences)
    loss = statistics.mean(columns[2])
    reached = 'reached' if loss <= target else '**not reached**'
    lines += ['', f'Seconds, candidate - record: {mean:+.2f} (95%: {low:+.2f} to {high:+.2f}), p = {p:.4f}, one-sided '
              f'paired t test. Loss: {loss:.4f}, target {target}: {reached}.', '']
    if means[3] > target:
        lines += [f'The record itself does not reach {target} here.', '']

    why = [f'its mean loss is not {target} or less'] * (not loss <= target) + [f'p is not below {P}'] * (p >= P)
    lines.append(f"**Not a record**: {' and '.join(why)}." if why else f'**A record**: {means[0]:.2f} s.')
    return '\n'.join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.add_argument('config', help='the candidate')
    parser.add_argument('--record', default='config/shakespeare_char_cpu.py', help='default: %(default)s')
    parser.add_argument('--loss', type=float, default=1.88, help='nats per character (default: %(default)s)')
    parser.add_argument('--checkout', default=HERE, help='where the record runs (default: here)')
    args, further = parser.parse_known_args()
    checkout = os.path.abspath(args.checkout)
    sides = dict(candidate=(HERE, [args.config, *further]), record=(checkout, [args.record]))

    check_config([args.config, *further])
    for folder, _ in sides.values():
        check_text(folder)
    check_machine()
    runs = measure(sides)
    print(verdict(runs['candidate'], runs['record'], args.loss))


if __name__ == '__main__':
    main()
