"""
Whole runs from process start to exit: --config, then nanoGPT's CPU recipe (without --against: a second config), then --long,
which should take as long as the recipe. Every loss is that of the last checkpoint over the whole val split.
"""

import argparse
import json
import os
import pickle
import re
import shutil
import statistics
import sys
import tempfile

from benchmarks.paired import CPU_RECIPE, HERE, SHIFTED_SEED, checkout, report, timed, val_loss


def time_to_loss(args):
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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--against', metavar='PATH', help='a checkout of nanoGPT, whose CPU recipe is run')
    parser.add_argument('--config', default='config/shakespeare_char_cpu.py', help='default: %(default)s')
    parser.add_argument('--other', default='config/shakespeare_char_cpu_long.py', help='the config to compare with, without --against (default: %(default)s)')
    parser.add_argument('--long', default='', help='a config that should take as long as nanoGPT, config/shakespeare_char_cpu_long.py say')
    parser.add_argument('--dataset', default='shakespeare_char', help='folder in data/ (default: %(default)s)')
    parser.add_argument('--loss', type=float, default=1.88, help='nats per token (default: %(default)s)')
    parser.add_argument('--rounds', type=int, default=3, help='runs of each (default: %(default)s)')
    args = parser.parse_args()
    if args.against:
        args.against = checkout(args.against, here=[args.dataset])
    time_to_loss(args)


if __name__ == '__main__':
    main()
