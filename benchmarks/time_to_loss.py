"""
Whole training runs, timed from process start to exit: first --config, then nanoGPT's CPU recipe (without --against: a
second config), then --long, which should take about as long as the recipe. Each loss is that of the last checkpoint
over the whole val split.
"""

import argparse
import json
import os
import pickle
import shutil
import tempfile

from benchmarks.paired import checkout, measure_run, nanogpt_run, our_run, report


def copy_for_nanogpt(dataset, folder):
    """Our token files with a meta.pkl, so that nanoGPT reads the same tokens."""
    source = os.path.join('data', dataset)
    for name in ('train.bin', 'val.bin'):
        shutil.copy(os.path.join(source, name), folder)
    with open(os.path.join(source, 'meta.json'), encoding='utf-8') as f:
        vocab_size = json.load(f)['vocab_size']
    with open(os.path.join(folder, 'meta.pkl'), 'wb') as f:
        pickle.dump(dict(vocab_size=vocab_size), f)


def runs_of_round(n, args, nanogpt_data):
    """The runs of round n, by name; the second is the one to beat."""
    dataset = f'--dataset={args.dataset}'
    runs = {'ours': our_run(n, args.config, dataset)}
    if args.against:
        runs['nanoGPT'] = nanogpt_run(n, args.against, f'--dataset={nanogpt_data}')
    else:
        runs['other'] = our_run(n, args.other, dataset)
    if args.long:
        runs['ours, long'] = our_run(n, args.long, dataset)
    return runs


def measure(args):
    """All rounds, interleaved: {name of the run: {'seconds', 'val', 'ms': values}}."""
    results = {}
    with tempfile.TemporaryDirectory() as tmp:
        copy_for_nanogpt(args.dataset, tmp)
        for n in range(args.rounds):
            for name, run in runs_of_round(n, args, tmp).items():
                row, _ = measure_run(run, os.path.join(tmp, f'{name}{n}'), args.dataset)
                row['seconds'] = round(row['seconds'], 2)
                row['val'] = round(row['val'], 4)
                print(name, json.dumps(row), flush=True)
                columns = results.setdefault(name, {key: [] for key in row})
                for key, value in row.items():
                    columns[key].append(value)
    return results


def time_to_loss(args):
    results = measure(args)
    ours, theirs, *long = results.values()
    sides = tuple(results)[:2]

    for key, unit in (('seconds', 's from start to exit'), ('val', 'nats, whole val split'), ('ms', 'ms/iteration')):
        report(key, ours[key], theirs[key], unit, sides)
    for columns in long:
        report('at equal time: seconds', columns['seconds'], theirs['seconds'], 's', sides)
        report('at equal time: val', columns['val'], theirs['val'], 'nats, whole val split', sides)

    for name, columns in results.items():
        reached = sum(val <= args.loss for val in columns['val'])
        print(f'{name}: {reached} of {args.rounds} runs reached {args.loss}')
    print(f'where ours reached the loss and {sides[1]} did not, the ratio of the seconds is a lower bound')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--against', metavar='PATH', help='a checkout of nanoGPT, whose CPU recipe is run')
    parser.add_argument('--config', default='config/shakespeare_char_cpu.py', help='default: %(default)s')
    parser.add_argument('--other', default='config/shakespeare_char_cpu_long.py',
                        help='the config to compare with if there is no --against (default: %(default)s)')
    parser.add_argument('--long', default='',
                        help='a config that takes about as long as nanoGPT: config/shakespeare_char_cpu_long.py')
    parser.add_argument('--dataset', default='shakespeare_char', help='folder in data/ (default: %(default)s)')
    parser.add_argument('--loss', type=float, default=1.88, help='nats per token (default: %(default)s)')
    parser.add_argument('--rounds', type=int, default=3, help='runs of each (default: %(default)s)')
    args = parser.parse_args()
    if args.against:
        args.against = checkout(args.against, here=[args.dataset])
    time_to_loss(args)


if __name__ == '__main__':
    main()
