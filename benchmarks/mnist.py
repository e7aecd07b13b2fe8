"""
The digit network: seconds an epoch of config/mnist_nielsen.py against the book's algorithm in numpy, one image after the
other; then seconds from the start of the process to 97% and 98%.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

from benchmarks.paired import HERE, program, report, timed


class BookNetwork:
    """Nielsen's algorithm as the book tells it, one image after the other: the yardstick for our mini-batches of columns."""

    def __init__(self, weights, biases):
        self.weights, self.biases = weights, biases   # numpy, (n_l, n_{l-1}) and (n_l, 1)

    def gradients(self, x, y):
        by_w, by_b = [np.zeros(w.shape) for w in self.weights], [np.zeros(b.shape) for b in self.biases]
        acts, zs = [x], []
        for w, b in zip(self.weights, self.biases):
            zs.append(w.dot(acts[-1]) + b)
            acts.append(sigmoid(zs[-1]))
        delta = (acts[-1] - y) * slope_of_sigmoid(zs[-1])
        for n in reversed(range(len(self.weights))):
            by_w[n], by_b[n] = delta.dot(acts[n].T), delta
            if n:
                delta = self.weights[n].T.dot(delta) * slope_of_sigmoid(zs[n - 1])
        return by_w, by_b

    def step(self, examples, eta):
        sum_w, sum_b = [np.zeros(w.shape) for w in self.weights], [np.zeros(b.shape) for b in self.biases]
        for x, y in examples:
            by_w, by_b = self.gradients(x, y)
            sum_w = [s + g for s, g in zip(sum_w, by_w)]
            sum_b = [s + g for s, g in zip(sum_b, by_b)]
        self.weights = [w - eta / len(examples) * s for w, s in zip(self.weights, sum_w)]
        self.biases = [b - eta / len(examples) * s for b, s in zip(self.biases, sum_b)]


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def slope_of_sigmoid(z):
    return sigmoid(z) * (1 - sigmoid(z))


def mnist(args):
    """The digit network: an epoch of config/mnist_nielsen.py against the book's algorithm, then the time to 97% and 98%."""
    digits = program('our_mnist', os.path.join(HERE, 'mlp_mnist.py'))
    images, labels = (t.numpy() for t in digits.read_digits('train'))
    tests, answers = (t.numpy() for t in digits.read_digits('test'))
    random = np.random.default_rng(0)
    book = BookNetwork([random.standard_normal(shape) for shape in ((30, 784), (10, 30))], [random.standard_normal((n, 1)) for n in (30, 10)])
    examples = [(x[:, None], y[:, None]) for x, y in zip(images[:50000], np.eye(10)[labels[:50000]])]
    seconds, accuracy = {'ours': [], 'theirs': []}, {}
    with tempfile.TemporaryDirectory() as tmp:
        for n in range(args.rounds):
            _, out = timed([sys.executable, 'mlp_mnist.py', 'config/mnist_nielsen.py', f'--epochs={args.rounds}', f'--out_dir={tmp}/{n}'], HERE)
            epochs = re.findall(r'test accuracy ([\d.]+)%, ([\d.]+) s', out)
            accuracy['ours'] = float(epochs[-1][0])
            seconds['ours'].append(float(epochs[-1][1]) / len(epochs))
            order = random.permutation(50000)
            began = time.perf_counter()
            for i in range(0, 50000, 10):
                book.step([examples[j] for j in order[i:i + 10]], 3.0)
            seconds['theirs'].append(time.perf_counter() - began)
        a = tests.T
        for w, b in zip(book.weights, book.biases):
            a = sigmoid(w @ a + b)
        accuracy['theirs'] = round(100 * float((a.argmax(axis=0) == answers).mean()), 2)
        report('an epoch of 50,000 images, 784-30-10', seconds['ours'], seconds['theirs'], 's')
        print(f'test accuracy after {args.rounds} epochs: {accuracy}')
        results = [time_to(args.config, os.path.join(tmp, f'whole{n}'), n) for n in range(args.rounds)]
    for key in results[0]:
        values = [r[key] for r in results]
        known = [v for v in values if v is not None]
        print(f"{args.config or 'python mlp_mnist.py'}, {key}: median {statistics.median(known) if known else None} {values}")


def time_to(config, out_dir, seed):
    """One run of mlp_mnist.py: seconds from the start of the process to 97% and 98%, and to its end, and where it ended."""
    command = [sys.executable, '-u', 'mlp_mnist.py', *([config] if config else []), f'--seed={seed}', f'--out_dir={out_dir}']
    result = {'seconds to 97%': None, 'seconds to 98%': None}
    began = time.perf_counter()
    with subprocess.Popen(command, cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, encoding='utf-8') as process:
        for line in process.stdout:
            if found := re.search(r'test accuracy ([\d.]+)%', line):
                for key, wanted in (('seconds to 97%', 97), ('seconds to 98%', 98)):
                    if result[key] is None and float(found[1]) >= wanted:
                        result[key] = round(time.perf_counter() - began, 2)
                result['final accuracy'] = float(found[1])
    if process.returncode:
        sys.exit(f'error: {" ".join(command)} failed')
    return {**result, 'seconds in all': round(time.perf_counter() - began, 2)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=3, help='epochs of each, and runs (default: %(default)s)')
    parser.add_argument('--config', default='', help='a settings file of mlp_mnist.py to time instead of its defaults')
    args = parser.parse_args()
    mnist(args)


if __name__ == '__main__':
    main()
