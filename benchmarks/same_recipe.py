"""Whole runs of nanoGPT's CPU recipe, in nanoGPT and here: the same architecture, batch, schedule and flags. Seconds, step time, losses."""

import argparse
import json
import os
import re
import statistics
import sys
import tempfile

from benchmarks.paired import CPU_RECIPE, HERE, SHIFTED_SEED, checkout, report, timed, val_loss


def blocks(stdout, size=250):
    """Mean of the printed training losses over each `size` iterations: a curve without the noise of single batches."""
    losses = [float(x) for x in re.findall(r'^iter \d+: loss ([\d.]+)', stdout, flags=re.MULTILINE)]
    return [statistics.mean(losses[i:i + size]) for i in range(0, len(losses) - size + 1, size)]


def same_recipe(args):
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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--against', required=True, metavar='PATH', help='a checkout of nanoGPT with data/shakespeare_char prepared')
    parser.add_argument('--rounds', type=int, default=3, help='runs of each (default: %(default)s)')
    args = parser.parse_args()
    args.against = checkout(args.against, here=['shakespeare_char'], there=['shakespeare_char'])
    same_recipe(args)


if __name__ == '__main__':
    main()
