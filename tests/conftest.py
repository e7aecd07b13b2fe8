"""Fixtures, and the option with which CI makes sure that nothing was skipped but for want of a GPU."""

import gzip
import hashlib
import json
import os
import random
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from gradus import data
from gradus.tokenizer import CharTokenizer
from mlp_mnist import FILES

torch.set_num_threads(1)              # tiny models: faster, and other processes do not disturb
os.environ['OMP_NUM_THREADS'] = '1'   # the same for the processes that tests start

REPO = Path(__file__).resolve().parents[1]


def pytest_addoption(parser):
    parser.addoption('--nothing-skipped', action='store_true', help='a skipped test fails, unless it is marked cuda')


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.skipped and item.config.getoption('--nothing-skipped') and not item.get_closest_marker('cuda'):
        report.outcome, report.longrepr = 'failed', f'skipped, but nothing may be: {report.longrepr}'
    return report


@pytest.fixture
def test_data():
    """The folder of data that no test can make, named by the environment variable TEST_DATA."""
    folder = os.environ.get('TEST_DATA')
    if not folder:
        pytest.skip('TEST_DATA is not set: a folder with tinyshakespeare/input.txt, mnist/ and tiktoken/')
    return Path(folder)


def babble(n=20_000, seed=0):
    """n characters of made-up words: enough structure to learn something from."""
    r = random.Random(seed)
    words = [''.join(r.choice('abcdefgh') for _ in range(r.randint(2, 6))) for _ in range(40)]
    text = ''
    while len(text) < n:
        text += r.choice(words) + r.choice('   \n')
    return text[:n]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty working folder with one small dataset, data/babble."""
    monkeypatch.chdir(tmp_path)
    prepare_babble()
    return tmp_path


def prepare_babble():
    text = babble()
    tokenizer = CharTokenizer.of(text)
    data.write('data/babble', [tokenizer.encode(text[:18_000])], [tokenizer.encode(text[18_000:])], tokenizer, 'babble', '0')


def settings(**changes):
    """A small run on data/babble that uses dropout, accumulation and a modern block."""
    return train.TrainConfig(**{**dict(
        dataset='babble', out_dir='out', device='cpu', block_size=16, batch_size=4, gradient_accumulation_steps=2,
        n_layer=2, n_head=4, n_embd=32, n_kv_head=2, pos='rotary', mlp='swiglu', dropout=0.1, learning_rate=1e-2, max_iters=20,
        lr_decay_iters=60, warmup_iters=4, min_lr=1e-3, eval_interval=20, eval_iters=3, sample_tokens=0), **changes})


def run_script(name, *args, env=(), **kwargs):
    """python <repo>/<name> args..., in the current folder; returns the CompletedProcess with text output."""
    return subprocess.run([sys.executable, str(REPO / name), *map(str, args)], capture_output=True, text=True, encoding='utf-8',
                          env={**os.environ, **dict(env)}, timeout=300, **kwargs)


def sha256_of(value):
    """One hash of all tensors and numbers in a nested dictionary or list, with their keys, shapes and dtypes."""
    digest = hashlib.sha256()

    def add(v):
        if isinstance(v, dict):
            for key in sorted(v, key=str):
                digest.update(str(key).encode())
                add(v[key])
        elif isinstance(v, (list, tuple)):
            for item in v:
                add(item)
        elif isinstance(v, torch.Tensor):
            digest.update(f'{v.dtype}{tuple(v.shape)}'.encode())
            digest.update(v.detach().cpu().contiguous().numpy().tobytes())
        else:
            digest.update(repr(v).encode())
    add(value)
    return digest.hexdigest()


def read_log(out_dir, times=False):
    """log.jsonl as a list of records, without the two that tell the time."""
    with open(os.path.join(out_dir, 'log.jsonl'), encoding='utf-8') as f:
        records = [json.loads(line) for line in f]
    return records if times else [{k: v for k, v in r.items() if k not in ('elapsed_s', 'tokens_per_s')} for r in records]


# ---------------------------------------------------------------------------- digits

def idx(array):
    """The bytes of an idx file, by its specification."""
    return b'\0\0\x08' + bytes([array.ndim]) + struct.pack(f'>{array.ndim}I', *array.shape) + array.astype(np.uint8).tobytes()


@pytest.fixture
def digits_place(tmp_path, monkeypatch):
    """A folder with a learnable data/mnist, 200 + 100 images: 7 x 7 squares that are the same for each digit, and noise. test:0 has a wrong label."""
    monkeypatch.chdir(tmp_path)
    os.makedirs('data/mnist')
    r = np.random.default_rng(0)
    patterns = (r.random((10, 7, 7)) > 0.7).repeat(4, axis=1).repeat(4, axis=2)
    for split, n in (('train', 200), ('test', 100)):
        digits = r.permutation(n) % 10
        Path('data/mnist', FILES[split][0]).write_bytes(idx(180 * patterns[digits] + 75 * r.random((n, 28, 28))))
        digits[0] = (digits[0] + (split == 'test')) % 10
        Path('data/mnist', FILES[split][1]).write_bytes(idx(digits))


@pytest.fixture
def mnist(test_data, tmp_path, monkeypatch):
    """A folder with the real data/mnist, gunzipped."""
    monkeypatch.chdir(tmp_path)
    os.makedirs('data/mnist')
    for name in (*FILES['train'], *FILES['test']):
        Path('data/mnist', name).write_bytes(gzip.decompress((test_data / 'mnist' / f'{name}.gz').read_bytes()))
