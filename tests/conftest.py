"""Shared fixtures and helpers, and the option CI uses to forbid skipped tests (except those that need a GPU)."""

import functools
import gc
import gzip
import hashlib
import io
import json
import os
import random
import struct
import subprocess
import sys
import threading
import urllib.request
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import train
from gradus import configurator, kernel, preparation
from gradus.digits import FILES
from gradus.tokenizer import CharTokenizer, GPT2Tokenizer

# Tiny models run faster on one thread. The variable does the same for the processes that tests start.
torch.set_num_threads(1)
os.environ['OMP_NUM_THREADS'] = '1'

REPO = Path(__file__).resolve().parents[1]


def pytest_addoption(parser):
    parser.addoption('--nothing-skipped', action='store_true', help='fail skipped tests, unless they are marked cuda')


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.skipped and item.config.getoption('--nothing-skipped') and not item.get_closest_marker('cuda'):
        report.outcome = 'failed'
        report.longrepr = f'skipped, which --nothing-skipped forbids: {report.longrepr}'
    return report


@pytest.fixture
def test_data():
    """The folder of downloaded data that some tests need; the environment variable TEST_DATA names it."""
    folder = os.environ.get('TEST_DATA')
    if not folder:
        pytest.skip('TEST_DATA is not set: a folder with tinyshakespeare/input.txt, mnist/ and tiktoken/')
    return Path(folder)


def babble(n=20_000, seed=0):
    """n characters of made-up words, with enough structure to learn from."""
    r = random.Random(seed)
    words = [''.join(r.choice('abcdefgh') for _ in range(r.randint(2, 6))) for _ in range(40)]

    text = ''
    while len(text) < n:
        text += r.choice(words) + r.choice('   \n')
    return text[:n]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Work in an empty folder with one small dataset, data/babble."""
    monkeypatch.chdir(tmp_path)
    prepare_babble()
    return tmp_path


def prepare_babble():
    """Write data/babble in the current folder."""
    text = babble()
    tokenizer = CharTokenizer.from_text(text)
    train_ids = tokenizer.encode(text[:18_000])
    val_ids = tokenizer.encode(text[18_000:])
    preparation.write('data/babble', [('train', train_ids), ('val', val_ids)], tokenizer, 'babble', '0')


def settings(**changes):
    """A small run on data/babble that uses dropout, gradient accumulation and a modern block."""
    defaults = dict(
        dataset='babble',
        out_dir='out',
        device='cpu',
        block_size=16,
        batch_size=4,
        gradient_accumulation_steps=2,
        n_layer=2,
        n_head=4,
        n_embd=32,
        n_kv_head=2,
        pos='rotary',
        mlp='swiglu',
        dropout=0.1,
        learning_rate=1e-2,
        max_iters=20,
        lr_decay_iters=60,
        warmup_iters=4,
        min_lr=1e-3,
        eval_interval=20,
        eval_iters=3,
        sample_tokens=0,
    )
    return train.TrainConfig(**{**defaults, **changes})


def flags_of(**changes):
    """settings(**changes) as arguments of train.py."""
    return [f'--{key}={value}' for key, value in vars(settings(**changes)).items()]


def run_script(name, *args, env=(), **kwargs):
    """Run `python <repo>/<name> args...` in the current folder; returns the CompletedProcess, output as text."""
    return subprocess.run(
        [sys.executable, str(REPO / name), *map(str, args)],
        capture_output=True,
        text=True,
        encoding='utf-8',
        env={**os.environ, **dict(env)},
        timeout=300,
        **kwargs,
    )


def run_main(script, *args):
    """
    What run_script would return, from a call in this process: the seconds that it takes to start one are saved.
    `script` is the module: train, sample, export, mlp_mnist or a picture of plots/.
    """
    own = {name: value for name, value in vars(script).items() if getattr(value, '__module__', '') == script.__name__}
    settings_class = next(value for name, value in own.items() if name.endswith(('Config', 'Settings')))
    out = io.StringIO()
    err = io.StringIO()
    code = 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            configurator.launch(script.main, settings_class, [*map(str, args)])
        except SystemExit as e:
            code = e.code or 0
    return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())


def read_terminal(master):
    """Everything that is written to a pseudo-terminal, until the other side is closed."""
    seen = b''
    try:
        while piece := os.read(master, 10_000):
            seen += piece
    except OSError:                                   # how Linux says that the other side is closed
        pass
    return seen


@contextmanager
def limited(name, amount):
    """Lower a resource limit of this process, for example RLIMIT_AS, for the duration of a with block."""
    import resource  # not on Windows

    kind = getattr(resource, name)
    soft, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (amount, hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (soft, hard))


@contextmanager
def small_disk(folder, size):
    """Mount a tmpfs of `size` bytes at `folder`."""
    mount = ['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', folder]
    os.makedirs(folder)
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip('only root can mount a tmpfs')
    try:
        yield
    finally:
        gc.unfreeze()                                 # what `launch` has set aside
        gc.collect()                                  # closes what a failed run left open: it would keep the disk busy
        subprocess.run(['umount', folder], check=True)


def snapshot(folder, without=()):
    """The bytes of every file in a folder and its subfolders, by path."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in Path(folder).rglob('*')
        if path.is_file() and path.name not in without
    }


def sha256_of(value):
    """One hash over all tensors and numbers in nested dictionaries and lists, with their keys, shapes and dtypes."""
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
    """log.jsonl as a list of records, without the fields that measure time unless `times` is set."""
    with open(os.path.join(out_dir, 'log.jsonl'), encoding='utf-8') as f:
        records = [json.loads(line) for line in f]

    if not times:
        for record in records:
            record.pop('elapsed_s', None)
            record.pop('tokens_per_s', None)
    return records


@pytest.fixture
def gpt2(test_data, monkeypatch):
    """GPT-2's tokenizer, whose files tiktoken finds."""
    monkeypatch.setenv('TIKTOKEN_CACHE_DIR', str(test_data / 'tiktoken'))
    return GPT2Tokenizer()


# ---------------------------------------------------------------------------- llama.cpp

# As in benchmarks/llama_cpp.py, but without torch, which would take most of the time that it needs to start.
LLAMA_CPP = """
import sys, threading
import xllamacpp

params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.n_ctx = int(sys.argv[2])
params.n_parallel = 1
params.verbosity = -1
params.cpuparams.n_threads = 1
params.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
threading.Event().wait()
"""


class LlamaServer:
    """llama.cpp with a GGUF file, in a process of its own, reached over HTTP. A context manager."""

    def __init__(self, path, n_ctx):
        self.command = [sys.executable, '-c', LLAMA_CPP, str(path), str(n_ctx)]

    def __enter__(self):
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        too_late = threading.Timer(60, self.process.kill)
        too_late.start()
        self.url = next((line.strip() for line in self.process.stdout if line.startswith('http')), None)
        too_late.cancel()
        if self.url is None:
            self.__exit__()
            raise RuntimeError('llama.cpp did not start: it refused the file, or needs more than a minute')
        return self

    def __exit__(self, *exception):
        self.process.terminate()
        self.process.communicate()

    def post(self, page, **body):
        """The answer of one of the server's pages, as plain data."""
        headers = {'Content-Type': 'application/json'}
        request = urllib.request.Request(self.url + page, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=120) as response:
            return json.load(response)

    def complete(self, prompt, n, **options):
        """(ids, log-probabilities) of n greedy tokens after the prompt, a text or a list of ids."""
        options = dict(temperature=0, ignore_eos=True, cache_prompt=False, return_tokens=True, n_probs=1) | options
        answer = self.post('/completion', prompt=prompt, n_predict=n, **options)
        return answer['tokens'], [token['logprob'] for token in answer['completion_probabilities']]

    def tokenize(self, text, special=False):
        """The ids of a text. special: may <|endoftext|> be a token of its own?"""
        return self.post('/tokenize', content=text, add_special=False, parse_special=special)['tokens']

    def detokenize(self, ids):
        return self.post('/detokenize', tokens=list(ids))['content']


@pytest.fixture
def llama_server():
    """The class `LlamaServer`, if there is a llama.cpp to run."""
    pytest.importorskip('xllamacpp', reason='llama.cpp, the reference implementation: pip install xllamacpp')
    return LlamaServer


# ---------------------------------------------------------------------------- digits

def idx(array):
    """The bytes of an idx file, by its specification."""
    magic = b'\0\0\x08' + bytes([array.ndim])
    sizes = struct.pack(f'>{array.ndim}I', *array.shape)
    return magic + sizes + array.astype(np.uint8).tobytes()


@pytest.fixture
def digits_place(tmp_path, monkeypatch):
    """Work in a folder with a learnable data/mnist."""
    monkeypatch.chdir(tmp_path)
    write_digits()


def write_digits():
    """
    Write data/mnist, 200 training and 100 test images, in the current folder.

    Each digit is a pattern of 7 x 7 squares, plus noise. The first test image has a wrong label.
    """
    os.makedirs('data/mnist', exist_ok=True)
    r = np.random.default_rng(0)
    patterns = (r.random((10, 7, 7)) > 0.7).repeat(4, axis=1).repeat(4, axis=2)

    for split, n in (('train', 200), ('test', 100)):
        digits = r.permutation(n) % 10
        images = 180 * patterns[digits] + 75 * r.random((n, 28, 28))
        if split == 'test':
            digits[0] = (digits[0] + 1) % 10

        image_file, label_file = FILES[split]
        Path('data/mnist', image_file).write_bytes(idx(images))
        Path('data/mnist', label_file).write_bytes(idx(digits))


@functools.cache
def unpacked(path):
    """The content of a gzipped file."""
    return gzip.decompress(path.read_bytes())


@pytest.fixture
def mnist(test_data, tmp_path, monkeypatch):
    """Work in a folder with the real data/mnist, unpacked."""
    monkeypatch.chdir(tmp_path)
    os.makedirs('data/mnist')
    for name in (*FILES['train'], *FILES['test']):
        Path('data/mnist', name).write_bytes(unpacked(test_data / 'mnist' / f'{name}.gz'))


# ---------------------------------------------------------------------------- the C++ kernel

@pytest.fixture
def threads():
    """A function that sets the number of threads until the end of the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def require_compiler():
    kernel.load.cache_clear()
    if kernel.load() is None:
        pytest.skip('no C++ compiler')


@pytest.fixture(scope='module', params=['this processor', 'any processor'])
def compiled(request, tmp_path_factory):
    """The kernel with this processor's instructions, and with those that every processor of its kind has."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == 'any processor':
            patch.setattr(kernel, 'CACHE', str(tmp_path_factory.mktemp('kernel')))
            patch.setattr(kernel, 'COMPILE', [o for o in kernel.COMPILE if '=native' not in o])
        require_compiler()
        yield
    kernel.load.cache_clear()
