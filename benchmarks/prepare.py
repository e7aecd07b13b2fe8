"""
How fast data/prepare.py turns JSON lines into GPT-2 tokens, compared with tiktoken's own `encode_ordinary_batch` on the
same documents and cores: tokens/s, and the peak memory of our process. Ours reads the file twice and writes the
dataset; tiktoken has the documents in memory, and its ids are dropped.

The documents are the source of Python's standard library, repeated. Each measurement is a process of its own.
"""

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

from benchmarks.export_memory import peak_bytes
from gradus import corpus
from gradus.metadata import read_meta
from gradus.tokenizer import GPT2Tokenizer

SIDES = ('tiktoken', 'ours')


def bytes_of(size):
    """200MB -> 200,000,000"""
    units = {'MB': 10 ** 6, 'GB': 10 ** 9}
    number, unit = size[:-2], size[-2:].upper()
    if unit not in units or not number.isdecimal():
        sys.exit(f'error: --size={size}: expected a number of MB or GB, such as 200MB')
    return int(number) * units[unit]


def make_documents(path, size):
    """Write JSON lines with `size` bytes of text."""
    texts = []
    for file in sorted(Path(sysconfig.get_paths()['stdlib']).rglob('*.py')):
        if 'site-packages' not in file.parts:
            texts.append(file.read_text(encoding='utf-8', errors='replace'))
    written = 0
    with open(path, 'w', encoding='utf-8') as f:
        while written < size:
            for text in texts:
                f.write(json.dumps({'text': text}) + '\n')
                written += len(text)
                if written >= size:
                    break


def measure_ours(path):
    """(tokens, seconds)"""
    with tempfile.TemporaryDirectory(dir=os.path.dirname(path)) as folder:
        began = time.perf_counter()
        corpus.write_text(folder, [path], 'gpt2')
        seconds = time.perf_counter() - began
        meta = read_meta(folder)
    return meta['train_tokens'] + meta['val_tokens'], seconds


def measure_tiktoken(path):
    """The same, a thousand documents at a time: a list of all ids would take gigabytes."""
    with open(path, encoding='utf-8') as f:
        texts = [json.loads(line)['text'] for line in f]
    bpe = GPT2Tokenizer().bpe
    tokens = 0
    began = time.perf_counter()
    for i in range(0, len(texts), 1000):
        found = bpe.encode_ordinary_batch(texts[i:i + 1000], num_threads=corpus.n_cores())
        tokens += sum(map(len, found))
    return tokens, time.perf_counter() - began


def measured(side, path):
    """Run one side in a process of its own; returns its tokens/s and its peak memory in MB."""
    command = [sys.executable, '-m', 'benchmarks.prepare', side, path]
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    ran = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if ran.returncode:
        sys.exit(f'error: {side} failed: {ran.stderr.strip()[-300:]}')
    tokens, seconds, peak = map(float, ran.stdout.splitlines()[-1].split())
    return tokens / seconds, peak / 1e6


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--size', default='200MB', help='of the text, in MB or GB (default: %(default)s)')
    parser.add_argument('--rounds', type=int, default=3, help='default: %(default)s')
    parser.add_argument('--folder', help='where to write (default: the temporary folder)')
    args = parser.parse_args()
    size = bytes_of(args.size)

    speeds = {side: [] for side in SIDES}
    peaks = []
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path = os.path.join(folder, 'documents.jsonl')
        make_documents(path, size)
        for _ in range(args.rounds):
            for side in SIDES:
                speed, peak = measured(side, path)
                speeds[side].append(speed)
                if side == 'ours':
                    peaks.append(round(peak))

    from benchmarks.paired import report  # imports torch, whose memory would count for the processes started here
    report(f'{args.size} on {corpus.n_cores()} cores', speeds['tiktoken'], speeds['ours'], 'tokens/s', SIDES)
    print(f'peak memory of ours: {max(peaks)} MB {peaks}')


if __name__ == '__main__':
    if len(sys.argv) == 3 and sys.argv[1] in SIDES:
        measure = dict(ours=measure_ours, tiktoken=measure_tiktoken)[sys.argv[1]]
        print(*measure(sys.argv[2]), peak_bytes())
    else:
        main()
