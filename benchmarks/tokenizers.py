"""
Compare tokenizers: train the model of config/quickstart.py for the same time with each, on tiny Shakespeare and on
Python's standard library, or on --input FILE. All hold out the same text; the table shows bits per byte over all of
it, which, unlike the loss, can be compared between tokenizers.

A short run measures the time of an iteration; the real run then has as many as fit into --seconds. The corpora must be
prepared:

    python data/shakespeare_char/prepare.py
    python data/python_stdlib/prepare.py
"""

import argparse
import contextlib
import io
import os
import re
import statistics
import sys
import tempfile

import numpy as np

from benchmarks.paired import HERE, our_run, timed
from gradus import corpus, data, evaluation, metadata, parallel, pretrained
from gradus.tokenizer import build_tokenizer

# name: (kind, size of the vocabulary)
TOKENIZERS = {
    'char': ('char', 0),
    'byte': ('byte', 0),
    'bpe 512': ('bpe', 512),
    'bpe 2048': ('bpe', 2048),
    'bpe 8192': ('bpe', 8192),
    'gpt2': ('gpt2', 0),
}
HEAD = ('text', 'tokenizer', 'bits per byte', 'tokens per byte', 'parameters', 'ms per iteration', 'iterations')


# ---------------------------------------------------------------------------- texts

def texts(args, folder):
    """{name: (file, fraction that is held out)}"""
    if args.input:
        return {os.path.basename(args.input): (args.input, 0.1)}
    return {
        'tiny Shakespeare': text_of('shakespeare_char', os.path.join(folder, 'shakespeare.txt')),
        'standard library': text_of('python_stdlib', os.path.join(folder, 'stdlib.txt')),
    }


def text_of(dataset, path):
    """Write the text of a prepared dataset to one file, the held-out part last; returns it and the fraction of that."""
    source = os.path.join(HERE, 'data', dataset)
    if not os.path.exists(os.path.join(source, 'train.bin')):
        sys.exit(f'error: {source}: not prepared; python {os.path.join(source, "prepare.py")}')
    meta = metadata.read_meta(source)
    tokenizer = build_tokenizer(meta['tokenizer'])
    parts = []
    for split in ('train', 'val'):
        ids = np.fromfile(os.path.join(source, f'{split}.bin'), dtype=meta['dtype'])
        parts.append(tokenizer.decode(ids.tolist()))
    with open(path, 'w', encoding='utf-8', newline='') as f:
        f.write(''.join(parts))
    return path, len(parts[1]) / len(''.join(parts))


# ---------------------------------------------------------------------------- runs

def train(dataset, out_dir, iterations, settings):
    """Run train.py; returns its median milliseconds per iteration, without those of the first ones."""
    flags = [f'--dataset={dataset}', f'--out_dir={out_dir}', f'--max_iters={iterations}',
             f'--lr_decay_iters={iterations}', f'--eval_interval={iterations}', '--eval_iters=1', '--log_interval=1']
    folder, command = our_run(0, 'config/quickstart.py', *flags, *settings)
    _, stdout = timed(command, folder)
    times = [float(ms) for ms in re.findall(r'time ([\d.]+)ms', stdout)]
    return statistics.median(times[min(5, len(times) - 1):])


def score(out_dir, dataset):
    """(bits per byte of the whole val split, tokens per byte of it, parameters)"""
    model = pretrained.build(pretrained.load_checkpoint(os.path.join(out_dir, 'ckpt.pt')))
    size = model.config.vocab_size
    meta = metadata.read_meta(dataset)
    opened = data.open_dataset(dataset, meta, size, model.config.block_size)
    _, bits = evaluation.evaluate(model, opened.val, 8, 0, parallel.init('cpu'), opened.byte_lengths)
    n_bytes = int(opened.byte_lengths[opened.val.ids.astype(np.int64)].sum())
    return bits, len(opened.val.ids) / n_bytes, model.num_params()


def measure(name, path, fraction, seconds, settings, folder):
    """Print a row of the table for each tokenizer."""
    for tokenizer, (kind, vocab_size) in TOKENIZERS.items():
        dataset = os.path.join(folder, f'{name} {tokenizer}')
        out_dir = os.path.join(folder, f'out {name} {tokenizer}')
        with contextlib.redirect_stdout(io.StringIO()):
            corpus.write_text(dataset, [path], kind, val_fraction=fraction, vocab_size=vocab_size)

        short = train(dataset, out_dir + '-short', 20, settings)
        iterations = max(1, round(1000 * seconds / short))
        ms = train(dataset, out_dir, iterations, settings)
        bits, tokens_per_byte, n_params = score(out_dir, dataset)
        numbers = (f'{bits:.3f}', f'{tokens_per_byte:.3f}', f'{n_params:,}', f'{ms:.0f}', f'{iterations:,}')
        print(f"| {' | '.join((name, tokenizer, *numbers))} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seconds', type=float, default=60, help='of each training run (default: %(default)s)')
    parser.add_argument('--input', metavar='FILE', help='a text file instead of the two corpora')
    parser.add_argument('settings', nargs='*', help='more settings of train.py, after --: -- --device=cpu')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}")
        for name, (path, fraction) in texts(args, folder).items():
            measure(name, path, fraction, args.seconds, args.settings, folder)


if __name__ == '__main__':
    main()
