"""
The loss curve of README.md: val loss over wall-clock time from process start, of nanoGPT's CPU recipe and of --config,
interleaved, with new seeds in each round. Both evaluate during training, which counts as time. Prints every point and
draws them as --out.

Needs matplotlib: pip install matplotlib
"""

import argparse
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import time

from benchmarks.paired import checkout, nanogpt_run, our_run

SIDES = {'nanoGPT': '#d95f02', 'Gradus': '#1b6ca8'}   # and their colors, legible on white and on black


def curve(run, out_dir):
    """Run (folder, command) to the end: the pairs (seconds since its start, val loss) that it prints."""
    folder, command = run
    points = []
    began = time.perf_counter()
    command = [command[0], '-u', *command[1:], f'--out_dir={out_dir}']
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                          encoding='utf-8') as process:
        for line in process.stdout:
            if found := re.match(r'step \d+: train loss [\d.]+, val loss ([\d.]+)', line):
                points.append((round(time.perf_counter() - began, 2), float(found[1])))
    if process.returncode:
        sys.exit(f'error: {" ".join(command)} failed')
    return points


def measure(args):
    """{side: one curve a round}."""
    curves = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as tmp:
        for n in range(args.rounds):
            runs = {
                'nanoGPT': nanogpt_run(n, args.against),
                'Gradus': our_run(n, args.config, f'--eval_interval={args.eval_interval}'),
            }
            for side, run in runs.items():
                curves[side].append(curve(run, f'{tmp}/{side}{n}'))
                print(side, curves[side][-1], flush=True)
    return curves


def draw(curves, path):
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(figsize=(7, 3))
    axes.margins(x=0.15)                              # room for the names
    for side, color in SIDES.items():
        for points in curves[side]:
            seconds, losses = zip(*points)
            axes.plot(seconds, losses, color=color, linewidth=1.5)
        axes.annotate(side, (seconds[-1], losses[-1]), xytext=(4, 8), textcoords='offset points',
                      color=color, fontweight='bold')

    axes.set_xlabel(f'seconds from process start, {os.cpu_count()} CPU cores')
    axes.set_ylabel('val loss, nats per character')
    axes.set_ylim(1.7, 3.2)                           # both start at 4.2, the loss of guessing
    axes.set_xlim(left=0)
    axes.spines[['top', 'right']].set_visible(False)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, facecolor='white')
    print(f'{path}: drawn')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--against', required=True, metavar='PATH',
                        help='a checkout of nanoGPT with data/shakespeare_char prepared')
    parser.add_argument('--config', default='config/shakespeare_char_cpu.py', help='default: %(default)s')
    parser.add_argument('--eval_interval', type=int, default=25, help='of --config (default: %(default)s)')
    parser.add_argument('--rounds', type=int, default=3, help='runs of each (default: %(default)s)')
    parser.add_argument('--out', default='loss-curve.svg', help='the picture (default: %(default)s)')
    args = parser.parse_args()
    if not importlib.util.find_spec('matplotlib'):
        sys.exit('error: bench.py loss-curve needs matplotlib; pip install matplotlib')
    args.against = checkout(args.against, here=['shakespeare_char'], there=['shakespeare_char'])
    draw(measure(args), args.out)


if __name__ == '__main__':
    main()
