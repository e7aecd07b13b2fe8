"""
Is a change worth it? Train a config, and the same with each --change, from the same seeds, and print as Markdown how
far the losses differ, with 95% intervals:

    python bench.py ablate config/shakespeare_char_cpu.py --budget=10s \\
        --change="optimizer=adamw learning_rate=3e-3" --change="pos=learned"

A change is one or more key=value of train.py, or a config file that is applied on top. Any --key=value of train.py
beside them holds for all runs. The budget of each run:

    --budget=300steps   as many iterations
    --budget=10s        as many iterations as take 10 s: the time of a step is measured first, for each variant
    (none)              the config's own max_iters

Under a budget, both max_iters and lr_decay_iters are that number, so that the learning rate reaches its end; a warm-up
that would not fit becomes a tenth of it. The loss is that of the last weights over the whole val split, in windows of
the model's own context. The seconds are those of the training loop, without start-up; those more than a tenth
off the budget are marked: then something else ran on the machine.

The results stay in --out: a second call continues where the first was stopped, and trains nothing twice.
"""

import argparse
import os
import re
import shlex
import statistics
import sys
from dataclasses import dataclass, replace

import torch

import train
from benchmarks.paired import interval, t_quantile, warn_if_busy
from benchmarks.runs import Results, cores_here, equal_time, finish_all, key_of, shortened
from gradus import configurator, metadata
from gradus.errors import UserError, warn
from gradus.preparation import prepare
from gradus.shards import file_names

FIRST_SEED = 1337
# What a run does beside training is the same for all, and next to nothing.
QUIET = ('--eval_interval=1000000000', '--eval_iters=1', '--log_interval=10', '--sample_tokens=0',
         '--sample_interval=0', '--tensorboard_log=False', '--wandb_log=False', '--eval_only=False')
# What this script sets, and how to say it instead.
OURS = {'seed': '--seeds=N', 'dataset': '--datasets=A,B', 'out_dir': '--out=FOLDER'}
LENGTH = {'max_iters': 'no --budget', 'lr_decay_iters': 'no --budget'}


# ---------------------------------------------------------------------------- what to run

@dataclass
class Budget:
    """Of each run: iterations, or seconds, or neither, which means the config's own length."""
    steps: int = 0
    seconds: float = 0.0

    @classmethod
    def parse(cls, text):
        number = re.fullmatch(r'(\d+(?:\.\d+)?) ?(s|steps)', text)
        n = float(number[1]) if number else 0
        if 0 < n < 1e9 and number[2] == 's':
            return cls(seconds=n)
        if 0 < n < 1e9 and n.is_integer():
            return cls(steps=int(n))
        raise UserError(f'--budget={text}: expected a number of iterations, such as 300steps, or of seconds: 10s')

    def __str__(self):
        if self.seconds:
            return f'{self.seconds:g} s of training each'
        return f'{self.steps} iterations each' if self.steps else "each of its config's length"


def flags_of(change):
    """The arguments of train.py for the text of a --change: "n_layer=6 n_embd=160", or the path of a config file."""
    try:
        words = shlex.split(change)
    except ValueError as e:
        raise UserError(f'--change={change}: {e}') from e
    if not words:
        raise UserError('--change: nothing in it; expected key=value')
    return [f'--{word}' if '=' in word and not word.startswith('-') else word for word in words]


def settings_of(arguments, dataset, budget):
    """The settings that the arguments of train.py stand for, on this dataset ('': the config's own), checked."""
    limited = budget.steps or budget.seconds
    ours = OURS | (LENGTH if limited else {})
    for argument in arguments:
        key = argument.removeprefix('--').partition('=')[0]
        if argument.startswith('--') and key in ours:
            raise UserError(f'{argument}: bench.py ablate sets {key} itself; expected {ours[key]}')

    on_dataset = [f'--dataset={dataset}'] if dataset else []
    cfg = configurator.load(train.TrainConfig, [*arguments, *on_dataset, *QUIET], train)
    cfg = replace(cfg, seed=FIRST_SEED, out_dir='out')
    if limited:
        cfg = shortened(cfg, budget.steps or 10 ** 6)           # seconds: their number comes later
    train.check(cfg)
    return cfg


def configs_of(args, further, budget):
    """{(name, dataset): settings} of all variants on all datasets, 'base' first. Whatever is wrong is found here."""
    changes = {'base': []}
    for change in args.change:
        changes[' '.join(change.split())] = flags_of(change)
    configs = {}
    for dataset in dict.fromkeys(args.datasets.split(',')):
        for name, words in changes.items():
            files = [word for word in words if not word.startswith('-')]        # before what holds for all runs
            flags = [word for word in words if word.startswith('-')]
            cfg = settings_of([args.config, *files, *further, *flags], dataset, budget)
            dataset = cfg.dataset                     # the base's, if none was given
            configs[name, dataset] = cfg
        folder = os.path.join('data', dataset)
        prepare(folder, file_names(folder, 'train')[0])
        metadata.read_meta(folder)
    return configs


# ---------------------------------------------------------------------------- the table

HEAD = """| variant | loss | range | difference from base, 95% interval | iterations | seconds |
|---|---|---|---|---|---|"""


def table(rows_of, budget):
    """The Markdown of one text. rows_of {variant: its results, seed by seed}, 'base' first."""
    lines = [HEAD]
    for name, rows in rows_of.items():
        losses = [row['loss'] for row in rows if row['loss'] is not None]
        if len(losses) < len(rows):
            cells = [f'diverged in {len(rows) - len(losses)} of {len(rows)}', '', '', rows[0]['iterations'], '']
        else:
            seconds = statistics.mean(row['seconds'] for row in rows)
            off = budget.seconds and abs(seconds / budget.seconds - 1) > 0.1
            cells = [f'{statistics.mean(losses):.4f}',
                     f'{min(losses):.4f} to {max(losses):.4f}',
                     '' if name == 'base' else difference(rows, rows_of['base']),
                     rows[0]['iterations'],
                     f'{seconds:.1f}' + (', **not equal time**' if off else '')]
        name = name if name == 'base' else '`' + name.replace('|', r'\|') + '`'
        lines.append(f"| {' | '.join([name, *map(str, cells)])} |")
    return '\n'.join(lines)


def difference(rows, base):
    """How the losses differ from those of the base with the same seeds, in words."""
    if any(row['loss'] is None for row in base):
        return 'the base diverged'
    differences = [row['loss'] - other['loss'] for row, other in zip(rows, base)]
    if len(differences) < 2:
        return f'{differences[0]:+.4f}; one seed, no interval'
    mean, low, high = interval(differences)
    verdict = ', **not told apart**' if low <= 0 <= high else ''
    return f'{mean:+.4f} ({low:+.4f} to {high:+.4f}){verdict}'


def notes(budget, n_seeds, n_threads, jobs):
    """What a reader must know to trust the tables."""
    beside = f', {jobs} runs side by side, so the seconds mean little' if jobs > 1 else ''
    lines = [f'Paired seeds: {n_seeds}. Budget: {budget}. Threads of a run: {n_threads}{beside}. Loss: nats per token, '
             "whole val split, in windows of the model's context."]
    if n_seeds > 1:
        lines.append(f'Interval: mean difference +- {t_quantile(n_seeds - 1):.3f} s / sqrt({n_seeds}), by Student\'s t '
                     f'for 95%. Each row stands alone: of 20 changes without effect, one is told apart.')
    return '\n'.join(lines)


# ---------------------------------------------------------------------------- all of it

def parse():
    """The options, checked, and the further arguments, which are train.py's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.add_argument('config', help='the config file of the base')
    parser.add_argument('--change', action='append', default=[], metavar='"KEY=VALUE ..."', help='a variant of it')
    parser.add_argument('--seeds', type=int, default=3, help='runs of each; intervals need 2 (default: %(default)s)')
    parser.add_argument('--budget', default='', help="300steps or 10s (default: the config's own length)")
    parser.add_argument('--datasets', default='', metavar='A,B', help="one table for each (default: the config's)")
    parser.add_argument('--jobs', type=int, default=1, help='runs side by side, a core each; not with seconds')
    parser.add_argument('--out', default='out-ablate', help='folder for the results (default: %(default)s)')
    parser.add_argument('--keep', action='store_true', help='keep the folders of the runs, too')
    args, further = parser.parse_known_args()

    if args.seeds < 1:
        raise UserError(f'--seeds={args.seeds}: expected at least 1, and 2 or more for intervals')
    n_cores = len(cores_here())
    if not 1 <= args.jobs <= n_cores:
        raise UserError(f'--jobs={args.jobs}: expected a number up to {n_cores}, that of the cores here')
    if args.seeds == 1:
        warn('--seeds=1: no intervals, so nothing can be told apart')
    return args, further


def main():
    args, further = parse()
    budget = Budget.parse(args.budget) if args.budget else Budget()
    if args.jobs > 1 and budget.seconds:
        raise UserError(f'--jobs={args.jobs}: runs side by side slow each other down, so a --budget in seconds allows '
                        'one at a time; expected --jobs=1, or a budget in steps')
    if args.jobs > 1:
        torch.set_num_threads(1)
        os.environ['OMP_NUM_THREADS'] = '1'           # of the processes
    n_threads = torch.get_num_threads()

    configs = configs_of(args, further, budget)
    results = Results(args.out)
    if budget.seconds:
        warn_if_busy()
        configs = equal_time(configs, budget.seconds, results, args.out, n_threads)

    # Seed by seed, so that there is a whole table early; only the last one goes to stdout.
    keys = {}                                         # {dataset: {variant: [key of each seed]}}
    for n_seeds in range(1, args.seeds + 1):
        runs = []
        for (name, dataset), cfg in configs.items():
            cfg = replace(cfg, seed=FIRST_SEED + n_seeds - 1)
            runs.append((name, cfg, key_of(cfg, n_threads)))
            keys.setdefault(dataset, {}).setdefault(name, []).append(runs[-1][2])
        results.warn_of_other_code([key for _, _, key in runs])
        trained = finish_all(runs, results, args.out, args.keep, args.jobs)

        is_last = n_seeds == args.seeds
        if trained or is_last:
            stream = sys.stdout if is_last else sys.stderr
            for dataset, variants in keys.items():
                rows_of = {name: [results.rows[key] for key in found] for name, found in variants.items()}
                print(f'\n**data/{dataset}**\n\n{table(rows_of, budget)}', file=stream)
            print(f'\n{notes(budget, n_seeds, n_threads, args.jobs)}\n', file=stream, flush=True)


if __name__ == '__main__':
    main()
