"""
How long a script takes from its start to its first result, beyond `import torch`, which nobody can avoid:

    train.py        to the end of the first training step of config/quickstart.py, with one sequence in a batch
    train.py, on    the same for a resumed run
    mlp_mnist.py    to the end of the first step
    sample.py       to its first token, with the model of that run

Wall-clock and CPU seconds of whole processes, one after the other in every round. CPU seconds hardly notice what else
the machine does. Each process counts its modules, too. With --against, another checkout of this repo alternates.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time

from benchmarks.paired import HERE, timed

# Runs a script up to the end of its first optimizer step, or to its own end if it takes none.
DRIVER = """
import os, runpy, sys, time
from torch.optim.optimizer import register_optimizer_step_post_hook

def stop(*_):
    print('', time.time(), time.process_time(), len(sys.modules), sep='\\n', flush=True)
    os._exit(0)

del sys.argv[0]
if sys.argv:
    register_optimizer_step_post_hook(stop)
    runpy.run_path(sys.argv[0], run_name='__main__')
stop()
"""


QUICKSTART = ['train.py', 'config/quickstart.py', '--device=cpu', '--batch_size=1', '--eval_iters=1']


def commands(tmp):
    """{name: command line for DRIVER}; tmp/done holds a run that `prepare` made"""
    return {
        'import torch': [],
        'train.py': [*QUICKSTART, f'--out_dir={tmp}/new'],
        'train.py, on': [*QUICKSTART, '--init_from=resume', f'--out_dir={tmp}/done'],
        'mlp_mnist.py': ['mlp_mnist.py', '--device=cpu', f'--out_dir={tmp}/mnist'],
        'sample.py': ['sample.py', '--device=cpu', '--num_samples=1', '--max_new_tokens=1', f'--out_dir={tmp}/done'],
    }


def environment():
    """This process's, but Python keeps its bytecode between the rounds, as it does unless it is told not to."""
    return {name: value for name, value in os.environ.items() if name != 'PYTHONDONTWRITEBYTECODE'}


def run(arguments, folder):
    """Wall-clock seconds, CPU seconds and modules of one process. Ends the program if it fails."""
    began = time.time()
    ran = subprocess.run([sys.executable, '-c', DRIVER, *arguments], cwd=folder, env=environment(),
                         capture_output=True, text=True, encoding='utf-8')
    if ran.returncode:
        sys.exit(f"error: {' '.join(arguments)} in {folder} failed: {ran.stderr.strip()[-300:]}")
    ended, cpu, modules = ran.stdout.split('\n')[-4:-1]
    return float(ended) - began, float(cpu), int(modules)


def prepare(folder, tmp):
    """A run of one step for sample.py and for the resumed run. Its data is prepared, if it was not."""
    timed([sys.executable, *QUICKSTART, '--max_iters=1', '--sample_tokens=0', f'--out_dir={tmp}/done'], folder)


def measure(folders, tmp, rounds):
    """{(name of the command, folder): [(wall, cpu, modules) of each round]}"""
    found = {}
    for n in range(rounds + 1):
        for name, arguments in commands(tmp).items():
            for folder in folders:
                row = run(arguments, folder)
                if n:                                 # the first round warms up
                    found.setdefault((name, folder), []).append(row)
    return found


def report(found, folder, names):
    """A table of medians, with the lowest and highest wall-clock; beyond `import torch`: differences in each round."""
    print(f'\n{folder}\n')
    print('| | wall-clock (lowest to highest) | CPU | beyond `import torch`: wall-clock | CPU | modules |')
    print('|---|---|---|---|---|---|')
    base = found['import torch', folder]
    for name in names:
        rows = found[name, folder]
        walls = [wall for wall, _, _ in rows]
        wall, cpu, modules = (statistics.median(column) for column in zip(*rows))
        more_wall = statistics.median(row[0] - torch[0] for row, torch in zip(rows, base))
        more_cpu = statistics.median(row[1] - torch[1] for row, torch in zip(rows, base))
        print(f'| {name} | {wall:.2f} s ({min(walls):.2f} to {max(walls):.2f}) | {cpu:.2f} s | {more_wall:.2f} s | '
              f'{more_cpu:.2f} s | {modules:.0f} |')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--against', metavar='PATH', help='another checkout of this repo, with its data prepared')
    parser.add_argument('--rounds', type=int, default=7, help='default: %(default)s')
    args = parser.parse_args()

    folders = [HERE]
    if args.against:
        folders.append(os.path.abspath(args.against))
    with tempfile.TemporaryDirectory() as tmp:
        prepare(HERE, tmp)
        found = measure(folders, tmp, args.rounds)
        for folder in folders:
            report(found, folder, commands(tmp))


if __name__ == '__main__':
    main()
