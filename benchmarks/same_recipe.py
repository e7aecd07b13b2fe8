"""
Whole runs of nanoGPT's CPU recipe, in nanoGPT and here, with the same architecture, batch, schedule and flags: seconds,
time per iteration, and losses.
"""

import argparse
import json
import os
import re
import statistics
import tempfile

from benchmarks.paired import CPU_RECIPE, checkout, measure_run, nanogpt_run, our_run, report


def curve(stdout, size=250):
    """Mean of the printed training losses over each `size` iterations: a curve without the noise of single batches."""
    losses = [float(loss) for loss in re.findall(r'^iter \d+: loss ([\d.]+)', stdout, flags=re.MULTILINE)]
    return [statistics.mean(losses[i:i + size]) for i in range(0, len(losses) - size + 1, size)]


def mean_curve(results):
    """The training curve, averaged over the rounds."""
    return [statistics.mean(losses) for losses in zip(*(row['curve'] for row in results))]


def same_recipe(args):
    results = {'ours': [], 'nanoGPT': []}
    with tempfile.TemporaryDirectory() as tmp:
        for n in range(args.rounds):
            runs = {'ours': our_run(n, *CPU_RECIPE), 'nanoGPT': nanogpt_run(n, args.against)}
            for side, run in runs.items():
                row, stdout = measure_run(run, os.path.join(tmp, f'{side}{n}'), 'shakespeare_char')
                row['curve'] = curve(stdout)
                results[side].append(row)
                print(side, json.dumps(row), flush=True)

    for key, unit in (('seconds', 's'), ('ms', 'ms/iteration'), ('val', 'nats, whole val split')):
        ours, theirs = ([row[key] for row in rows] for rows in results.values())
        report(key, ours, theirs, unit)

    gaps = [a - b for a, b in zip(mean_curve(results['ours']), mean_curve(results['nanoGPT']))]
    print('training loss, mean over each 250 iterations, ours - nanoGPT:', [round(gap, 4) for gap in gaps])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--against', required=True, metavar='PATH',
                        help='a checkout of nanoGPT with data/shakespeare_char prepared')
    parser.add_argument('--rounds', type=int, default=3, help='runs of each (default: %(default)s)')
    args = parser.parse_args()
    args.against = checkout(args.against, here=['shakespeare_char'], there=['shakespeare_char'])
    same_recipe(args)


if __name__ == '__main__':
    main()
