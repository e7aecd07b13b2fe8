"""
The digit network: seconds per epoch of config/mnist_nielsen.py and of the book's algorithm in numpy, which takes one
image at a time; then seconds from process start to 97% and 98% test accuracy.
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

from benchmarks.paired import HERE, report, seconds_of, timed
from gradus import digits

N_TRAIN = 50000
SIZES = (784, 30, 10)


# ---------------------------------------------------------------------------- the book's algorithm

class BookNetwork:
    """Nielsen's algorithm as in the book, one image at a time: the baseline for our mini-batches of columns."""

    def __init__(self, random):
        """Weights (n_l, n_{l-1}) and biases (n_l, 1) from N(0, 1)."""
        self.weights = [random.standard_normal((n_out, n_in)) for n_in, n_out in zip(SIZES, SIZES[1:])]
        self.biases = [random.standard_normal((n, 1)) for n in SIZES[1:]]

    def gradients(self, x, y):
        """The gradient of the cost of one image with respect to every weight and bias."""
        # forward
        activations = [x]
        zs = []
        for w, b in zip(self.weights, self.biases):
            zs.append(w.dot(activations[-1]) + b)
            activations.append(sigmoid(zs[-1]))

        # backward
        nabla_w = [None] * len(self.weights)
        nabla_b = [None] * len(self.biases)
        delta = (activations[-1] - y) * sigmoid_prime(zs[-1])
        for l in reversed(range(len(self.weights))):
            nabla_w[l] = delta.dot(activations[l].T)
            nabla_b[l] = delta
            if l:
                delta = self.weights[l].T.dot(delta) * sigmoid_prime(zs[l - 1])
        return nabla_w, nabla_b

    def step(self, examples, eta):
        """One step of gradient descent on a mini-batch of pairs (x, y)."""
        sum_w = [np.zeros(w.shape) for w in self.weights]
        sum_b = [np.zeros(b.shape) for b in self.biases]
        for x, y in examples:
            nabla_w, nabla_b = self.gradients(x, y)
            sum_w = [s + nabla for s, nabla in zip(sum_w, nabla_w)]
            sum_b = [s + nabla for s, nabla in zip(sum_b, nabla_b)]
        self.weights = [w - eta / len(examples) * s for w, s in zip(self.weights, sum_w)]
        self.biases = [b - eta / len(examples) * s for b, s in zip(self.biases, sum_b)]

    def epoch(self, examples, order):
        """Every example once, in mini-batches of 10."""
        for i in range(0, len(order), 10):
            self.step([examples[j] for j in order[i:i + 10]], 3.0)

    def accuracy(self, images, labels):
        """Percent of the images (N, 784) that it reads correctly."""
        a = images.T                                  # (784, N): all images at once
        for w, b in zip(self.weights, self.biases):
            a = sigmoid(w @ a + b)
        return round(100 * float((a.argmax(axis=0) == labels).mean()), 2)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def sigmoid_prime(z):
    return sigmoid(z) * (1 - sigmoid(z))


# ---------------------------------------------------------------------------- seconds per epoch

def read_examples():
    """The training images as the book's list of pairs of columns, (784, 1) and (10, 1)."""
    images, labels = (tensor.numpy()[:N_TRAIN] for tensor in digits.read_digits('train'))
    targets = np.eye(10)[labels]
    return [(x[:, None], y[:, None]) for x, y in zip(images, targets)]


def train_ours(epochs, out_dir):
    """A run of config/mnist_nielsen.py: (seconds per epoch, final test accuracy in percent)."""
    settings = ['config/mnist_nielsen.py', f'--epochs={epochs}', f'--out_dir={out_dir}']
    _, stdout = timed([sys.executable, 'mlp_mnist.py', *settings], HERE)
    lines = re.findall(r'test accuracy ([\d.]+)%, ([\d.]+) s', stdout)
    accuracy, elapsed = lines[-1]
    return float(elapsed) / len(lines), float(accuracy)


def compare_epochs(rounds):
    """Each round is one epoch of the book's network and one run of ours over all epochs."""
    examples = read_examples()
    tests, answers = (tensor.numpy() for tensor in digits.read_digits('test'))
    random = np.random.default_rng(0)
    book = BookNetwork(random)

    our_seconds, book_seconds = [], []
    with tempfile.TemporaryDirectory() as tmp:
        for n in range(rounds):
            seconds, accuracy = train_ours(rounds, os.path.join(tmp, str(n)))
            our_seconds.append(seconds)
            order = random.permutation(N_TRAIN)
            book_seconds.append(seconds_of(book.epoch, examples, order))

    report(f'an epoch of {N_TRAIN:,} images, 784-30-10', our_seconds, book_seconds, 's', sides=('ours', 'book'))
    book_accuracy = book.accuracy(tests, answers)
    print(f'test accuracy after {rounds} epochs: ours {accuracy}%, book {book_accuracy}%')


# ---------------------------------------------------------------------------- seconds to an accuracy

def time_to(config, out_dir, seed):
    """One run of mlp_mnist.py: seconds from process start to 97%, to 98% and to exit, and the final accuracy."""
    command = [sys.executable, '-u', 'mlp_mnist.py']
    if config:
        command.append(config)
    command += [f'--seed={seed}', f'--out_dir={out_dir}']

    result = {'seconds to 97%': None, 'seconds to 98%': None}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, encoding='utf-8')
    began = time.perf_counter()
    with subprocess.Popen(command, cwd=HERE, **pipes) as process:
        for line in process.stdout:
            if found := re.search(r'test accuracy ([\d.]+)%', line):
                accuracy = float(found[1])
                result['final accuracy'] = accuracy
                for wanted in (97, 98):
                    key = f'seconds to {wanted}%'
                    if result[key] is None and accuracy >= wanted:
                        result[key] = round(time.perf_counter() - began, 2)
    if process.returncode:
        sys.exit(f'error: {" ".join(command)} failed')
    result['seconds in total'] = round(time.perf_counter() - began, 2)
    return result


def report_whole_runs(config, rounds):
    with tempfile.TemporaryDirectory() as tmp:
        results = [time_to(config, os.path.join(tmp, str(n)), seed=n) for n in range(rounds)]

    name = config or 'python mlp_mnist.py'
    for key in results[0]:
        values = [result[key] for result in results]
        reached = [value for value in values if value is not None]
        median = statistics.median(reached) if reached else None
        print(f'{name}, {key}: median {median} {values}')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=3, help='epochs of each, and whole runs (default: %(default)s)')
    parser.add_argument('--config', default='', help='a config of mlp_mnist.py to time instead of its defaults')
    args = parser.parse_args()
    compare_epochs(args.rounds)
    report_whole_runs(args.config, args.rounds)


if __name__ == '__main__':
    main()
