"""Settings in config files: order, idioms, types, errors of one line, and the configs of nanoGPT."""

import os
import time
from dataclasses import asdict, fields

import pytest
import torch
from conftest import REPO
from test_configurator import failure, load, write

import train
from gradus.errors import UserError
from sample import SampleConfig
from train import TrainConfig


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('RANK', raising=False)


@pytest.mark.parametrize('argv, expected', [
    ('', {}),
    ('--max_iters=5 --max_iters=6', dict(max_iters=6)),
    ('a.py --max_iters=5', dict(max_iters=5, n_layer=2)),
    ('--max_iters=5 a.py', dict(max_iters=10, n_layer=2)),
    ('a.py b.py', dict(max_iters=20, n_layer=2, n_head=2, wandb_run_name='0.0')),
    ('b.py a.py', dict(max_iters=10, n_layer=2, n_head=12, wandb_run_name='0.0')),
    ('--max_iters=5 b.py', dict(max_iters=10, n_head=12, wandb_run_name='0.0')),
    (
        'a.py --n_layer=7 --dropout=1 b.py --n_head=3',
        dict(max_iters=20, n_layer=7, n_head=3, dropout=1.0, wandb_run_name='1.0'),
    ),
])
def test_left_to_right(argv, expected):
    """A file sees everything to the left of it, already converted to the setting's type."""
    write('a.py', 'max_iters = 10\nn_layer = 2')
    write('b.py', 'max_iters = max_iters * 2\nn_head = n_layer\nwandb_run_name = str(dropout)')
    # comparing reprs, here and below: 0 is not 0.0, 1 is not True
    assert repr(load(*argv.split())) == repr(TrainConfig(**expected))


IDIOMS = {
    'f-string, earlier name': ("name = 'baby'\nout_dir = f'out-{name}'", dict(out_dir='out-baby')),
    'f-string, default keys': (
        "wandb_run_name = f'{dataset}-{n_layer}x{n_embd}'",
        dict(wandb_run_name='openwebtext-12x768'),
    ),
    'other key': ('max_iters = 300\nlr_decay_iters = max_iters', dict(max_iters=300, lr_decay_iters=300)),
    'share': ('max_iters = 310\nwarmup_iters = int(max_iters*0.05)', dict(max_iters=310, warmup_iters=15)),
    'underscore': ('max_iters = 6_000', dict(max_iters=6000)),
    '//': (
        'tokens_per_pass = 16_384\nblock_size = 512\nbatch_size = tokens_per_pass // block_size',
        dict(batch_size=32, block_size=512),
    ),
    'tenth': ('min_lr = learning_rate / 10\nlearning_rate = 0.5', dict(min_lr=6e-4 / 10, learning_rate=0.5)),
    'device': ("device = 'cuda' if torch.cuda.is_available() else 'cpu'", dict(device='cuda')),
    'dtype': (
        "dtype = 'bfloat16' if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else 'float16'",
        dict(dtype='float16'),
    ),
    'exists': (
        "out_dir = 'a' if os.path.exists('base.py') else 'b'\ndataset = 'a' if os.path.exists('no/such') else 'b'",
        dict(out_dir='a', dataset='b'),
    ),
    'import': ("import time\nwandb_run_name = 'ft-' + str(time.time())", dict(wandb_run_name='ft-7.0')),
    'no import': ("wandb_run_name = 'run' + str(time.time())", dict(wandb_run_name='run7.0')),
    'import as': ("import os as _os\nout_dir = _os.path.join('runs', 'a')", dict(out_dir=os.path.join('runs', 'a'))),
    'from import': ('from math import gcd\nbatch_size = gcd(16, 40)', dict(batch_size=8)),
    'Path': ('from pathlib import Path\nout_dir = Path("out")', dict(out_dir='out')),
    'exec': ("exec(open('base.py').read())\nn_head = helper * n_layer", dict(n_layer=3, n_head=6)),
    'globals': (
        "for k, v in {'n_layer': 2, 'n_head': 4}.items():\n    globals()[k] = v",
        dict(n_layer=2, n_head=4),
    ),
    'docstring': ('n_layer = 2\n"""\nmax_iters = 9\n"""\nn_head = 4', dict(n_layer=2, n_head=4)),
    'non-ASCII': (
        '# größer, 更大 🙂\nn_layer = 2  # é\nwandb_project = "größer"',
        dict(n_layer=2, wandb_project='größer'),
    ),
    'containers': (
        "b = [0.8, 0.9]\nsize = {'n': 96}\nnote = None\nbeta1, beta2 = b\nn_embd = size['n']",
        dict(beta1=0.8, beta2=0.9, n_embd=96),
    ),
    "sample.py's keys": (
        "start = '\\n'\nnum_samples = 3\ntop_k = None\ntemperature = 0.5\nmax_iters = 7",
        dict(max_iters=7),
    ),
    'twice': ('n_layer = 2\nn_head = 3\nn_layer = 4', dict(n_layer=4, n_head=3)),
    'int for float': ('dropout = 0\nlearning_rate = 1', dict(dropout=0.0, learning_rate=1.0)),
    'float for int': ('max_iters = 1e5', dict(max_iters=100000)),
    'int for bool': (
        'eval_only = 1\ndecay_lr = 0\ncompile = 1',
        dict(eval_only=True, decay_lr=False, compile=True),
    ),
    'function': ('base = 100\ndef times(n):\n    return base * n\nmax_iters = times(3)', dict(max_iters=300)),
    'class': (
        'u = 8\nclass S:\n    w = u * 4\n    def f(self):\n        return u * 2\nn_embd, batch_size = S.w, S().f()',
        dict(n_embd=32, batch_size=16),
    ),
    'comprehension': ('unit = 4\nbatch_size = sum([unit * i for i in range(4)])', dict(batch_size=24)),
    'loop': ('step = 2\nn_layer = 0\nfor _ in range(5):\n    n_layer += step', dict(n_layer=10)),
    'numpy floats': (
        'learning_rate = np.float32(0.5)\nmin_lr = np.float64(0.25)\ngrad_clip = np.int64(2)',
        dict(learning_rate=0.5, min_lr=0.25, grad_clip=2.0),
    ),
    'numpy others': (
        'max_iters = np.int64(7)\neval_only = np.bool_(True)\ndataset = np.str_("d")',
        dict(max_iters=7, eval_only=True, dataset='d'),
    ),
    'torch.device': ("device = torch.device('cuda', 1)", dict(device='cuda:1')),
    'preloaded': (
        'with nullcontext():\n    n_layer = pickle.loads(pickle.dumps(int(math.sqrt(9))))',
        dict(n_layer=3),
    ),
    '__main__': ("if __name__ == '__main__':\n    n_layer = 2", dict(n_layer=2)),
    '__file__': ('out_dir = os.path.basename(__file__)', dict(out_dir='train.py')),
    'Windows': (b'\xef\xbb\xbfn_layer = 2\r\nn_head = 4\r\n', dict(n_layer=2, n_head=4)),     # byte order mark, \r\n
}


@pytest.mark.parametrize('text, expected', IDIOMS.values(), ids=IDIOMS.keys())
def test_idiom(text, expected, monkeypatch, capsys):
    """No warnings. Its own folder, so that base.py is found only if paths are relative to the working folder."""
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda: False)
    monkeypatch.setattr(time, 'time', lambda: 7.0)
    write('base.py', 'n_layer = 3\nhelper = 2')

    assert repr(load(write('config/idiom.py', text))) == repr(TrainConfig(**expected))
    assert capsys.readouterr().err == ''


@pytest.mark.parametrize('content, expected', [
    ('max_iters = math.inf', 'a.py: max_iters: expected int, found inf'),
    ('max_iters = math.nan', 'a.py: max_iters: expected int, found nan'),
    ('max_iters = 10 ** 5000', 'a.py: max_iters: expected int up to 2^64, found <int of 16,610 bits>'),
    ('max_iters = "5"', "a.py: max_iters: expected int, found '5'"),
    ('max_iters = True', 'a.py: max_iters: expected int, found True'),
    ('seed = "y" * 99', "a.py: seed: expected int, found 'yyy"),
    ('dropout = None', 'a.py: dropout: expected float, found None'),
    ('dropout = False', 'a.py: dropout: expected float, found False'),
    ('min_lr = 10 ** 400', 'a.py: min_lr: expected float up to 2^64, found <int of 1,329 bits>'),
    ('out_dir = ["a"]', "a.py: out_dir: expected str, found ['a']"),
    ('out_dir = None', 'a.py: out_dir: expected str, found None'),
    ('dataset = 3', 'a.py: dataset: expected str, found 3'),
    ('eval_only = 2', 'a.py: eval_only: expected bool, found 2'),
    ('compile = None', 'a.py: compile: expected bool or str, found None'),
    ('eval_only = np.array([0, 1])', 'a.py: eval_only: expected bool, found <ndarray>'),
    ('seed = torch.zeros(3, 3)', 'a.py: seed: expected int, found <Tensor>'),
    ('eval_only = "yes"', "a.py: eval_only: expected bool, found 'yes'"),
    ('n_layer = 2\nn_head = = 3', 'a.py:2: invalid syntax: n_head = = 3'),
    ('\n\nprint("a', 'a.py:3: unterminated string'),
    ('x = 0\n\nn_layer = 1 / x', 'a.py:3: ZeroDivisionError: division by zero'),
    ('\nn_layer = n_layrs', "a.py:2: NameError: name 'n_layrs' is not defined"),
    ('def f():\n    raise ValueError("two\\n  lines")\nf()', 'a.py:2: ValueError: two lines'),
    ("\nexec(open('base.py').read())", 'a.py:2: FileNotFoundError: '),
    ('def f(n):\n    return f(n + 1)\nf(0)', 'a.py:2: RecursionError: '),
    ('# größer'.encode('latin-1'), 'a.py: cannot be read as a Python file: '),
    ('missing', 'a.py: no such config file; expected a Python file'),
    ('folder', 'a.py: a folder; expected a file'),
    ('raise SystemExit(3)', 'a.py:1: SystemExit: 3'),
    ('class E(Exception):\n    def __str__(self): return 1 / 0\nraise E', 'a.py:3: E:'),
    ('dataset = "\\x1b[2J" + chr(0)\nn_layer = "\\x1b[2J"', r"a.py: n_layer: expected int, found '\x1b[2J'"),
    ('lr_schedule = 3', 'a.py: lr_schedule: expected str, found 3; lr_schedule is a setting of this train.py, which'),
    ('n_inner = "wide"', "a.py: n_inner: expected int, found 'wide'; n_inner is a setting of this train.py, which"),
])
def test_wrong_file(content, expected, capsys):
    if content == 'folder':
        os.mkdir('a.py')
    elif content != 'missing':
        write('a.py', content)
    assert failure(capsys, 'a.py', '--max_iters=1').startswith(expected)


# ---------------------------------------------------------------------------- nanoGPT's users and forks

def test_counts_may_be_fractions_in_a_file_only(capsys):
    cfg = load(write('a.py', 'max_iters = 1001\nwarmup_iters = 0.03 * max_iters\nlr_decay_iters = max_iters / 2'))
    assert (cfg.warmup_iters, cfg.lr_decay_iters) == (30, 500)
    assert type(cfg.warmup_iters) is int
    assert failure(capsys, '--warmup_iters=30.03').startswith('--warmup_iters=30.03: expected int, found 30.03')


def test_nan_in_a_file_is_refused_by_the_check():
    """Python has no literal for it, so it can come from a file only."""
    with pytest.raises(UserError, match='^rope_theta=nan: expected between'):
        train.check(load(write('a.py', 'rope_theta = math.nan')))


def test_none_is_the_default_of_what_nanogpt_lacks(capsys):
    names = ('lr_schedule', 'pos', 'norm', 'mlp', 'n_kv_head', 'n_inner', 'optimizer', 'data_order')
    cfg = load(write('a.py', '\n'.join(f'{name} = None' for name in names)))
    assert [getattr(cfg, name) for name in names] == [getattr(TrainConfig(), name) for name in names]
    assert failure(capsys, write('b.py', 'n_layer = None')).startswith('b.py: n_layer: expected int, found None')


@pytest.mark.parametrize('line, expected', [
    ("lr_schedule = 'wsd'", "lr_schedule='wsd': expected one of cosine, linear"),
    ("optimizer = 'lion'", "optimizer='lion': expected one of adamw, muon"),
    ("norm = 'LayerNorm'", "norm='LayerNorm': expected one of layernorm, rmsnorm"),
    ('n_inner = -1', 'n_inner=-1: expected an integer of 0'),
])
def test_a_value_of_a_fork_is_told_as_what_it_is(line, expected):
    name = line.split()[0]
    with pytest.raises(UserError) as e:
        train.check(load(write('a.py', line)))
    assert str(e.value).startswith(expected)
    assert str(e.value).endswith(f'; {name} is a setting of this train.py, which nanoGPT does not have')

    flag = f"--{name}={line.split()[-1].strip(chr(39))}"
    with pytest.raises(UserError) as e:               # the command line was written for this train.py
        train.check(load(flag))
    assert 'nanoGPT' not in str(e.value)


def test_a_file_of_a_fork_gets_one_note(capsys):
    load(write('a.py', "use_moe = True\nn_experts = 8\nlr_schedule = 'linear'\npos = 'rotary'\nn_layer = 3"))
    err = capsys.readouterr().err
    assert err.count('\n') == err.count('note: ') == 1
    assert 'a.py seems to be written for another train.py, as it sets n_experts and use_moe' in err
    assert 'it also sets lr_schedule and pos, which nanoGPT does not have' in err


@pytest.mark.parametrize('content', [
    "lr_schedule = 'linear'\npos = 'rotary'",
    'use_moe = True\nn_layer = 3',
    "tokens = 8000\nbatch_size = tokens // 1000\npos = 'rotary'",
    "num_samples = 3\ntop_p = 0.5\npos = 'rotary'",
])
def test_other_files_get_none(content, capsys):
    """Ours, nanoGPT's, those with helpers, those with keys of sample.py."""
    load(write('a.py', content))
    assert capsys.readouterr().err == ''


@pytest.mark.parametrize('path', sorted(REPO.glob('config/*.py')), ids=lambda path: path.name)
def test_our_own_files_get_none(path, capsys):
    load(str(path)) if 'mnist_' not in path.name else None
    assert 'note: ' not in capsys.readouterr().err


@pytest.mark.parametrize('line, meant', [
    ('n_layers = 3', 'n_layer'),
    ('learningrate = 1e-3', 'learning_rate'),
    ("datasets = 'x'", 'dataset'),
    ('evalonly = True', 'eval_only'),
    ('gradient_accumulation_step = 4', 'gradient_accumulation_steps'),
])
def test_near_miss_in_a_file_warns(line, meant, capsys, monkeypatch):
    """Once, however many files say it, and on one rank only."""
    write('a.py', line)
    assert repr(load('a.py', 'a.py')) == repr(TrainConfig())
    assert capsys.readouterr().err == (
        f'warning: a.py: {line.split()[0]} is not a setting of this script; did you mean {meant}?\n')

    monkeypatch.setenv('RANK', '1')
    monkeypatch.setenv('WORLD_SIZE', '2')
    load('a.py')
    assert capsys.readouterr().err == ''


HELPERS = (
    'tokens_per_pass total_batch_size name model_name run_name epochs num_epochs lr base_lr max_lr max_steps tokens '
    'vocab_size num_gpus device_type eval_every save_interval head_size warmup_ratio data_dir _n_layer n i k v x')


@pytest.mark.parametrize('cls, other', [(TrainConfig, SampleConfig), (SampleConfig, TrainConfig)])
def test_no_warning_for_helpers_nor_for_keys_of_the_other_script(cls, other, capsys):
    values = dict.fromkeys(HELPERS.split(), 1)
    values |= {f.name: getattr(cls, f.name, f.default) for f in fields(other)}
    write('a.py', '\n'.join(f'{key} = {value!r}' for key, value in values.items()))

    load('a.py', cls=cls)
    assert capsys.readouterr().err == ''


# ---------------------------------------------------------------------------- nanoGPT's settings

def test_nanogpts_defaults():
    """All of its names and values. Among the new settings, those of the model mean GPT-2, the others are auto."""
    expected = dict(
        # nanoGPT's
        out_dir='out',
        eval_interval=2000,
        log_interval=1,
        eval_iters=200,
        eval_only=False,
        always_save_checkpoint=True,
        init_from='scratch',
        wandb_log=False,
        wandb_project='owt',
        wandb_run_name='gpt2',
        dataset='openwebtext',
        gradient_accumulation_steps=40,
        batch_size=12,
        block_size=1024,
        n_layer=12,
        n_head=12,
        n_embd=768,
        dropout=0.0,
        bias=False,
        learning_rate=6e-4,
        max_iters=600000,
        weight_decay=0.1,
        beta1=0.9,
        beta2=0.95,
        grad_clip=1.0,
        decay_lr=True,
        warmup_iters=2000,
        lr_decay_iters=600000,
        min_lr=6e-5,
        # new
        pos='learned',
        norm='layernorm',
        mlp='gelu',
        qk_norm=False,
        n_kv_head=0,
        tie_weights=True,
        n_inner=0,
        lr_schedule='cosine',
        device='auto',
        dtype='auto',
        compile='auto',
        backend='auto',
    )
    values = asdict(TrainConfig())
    assert repr({key: values[key] for key in expected}) == repr(expected)


EVAL = dict(batch_size=8, eval_iters=500, eval_only=True, wandb_log=False)
NANOGPT_CONFIGS = {
    'eval_gpt2': dict(EVAL, init_from='gpt2'),
    'eval_gpt2_medium': dict(EVAL, init_from='gpt2-medium'),
    'eval_gpt2_large': dict(EVAL, init_from='gpt2-large'),
    'eval_gpt2_xl': dict(EVAL, init_from='gpt2-xl'),
    'train_gpt2': dict(
        wandb_log=True,
        wandb_project='owt',
        wandb_run_name='gpt2-124M',
        batch_size=12,
        block_size=1024,
        gradient_accumulation_steps=40,
        max_iters=600000,
        lr_decay_iters=600000,
        eval_interval=1000,
        eval_iters=200,
        log_interval=10,
        weight_decay=0.1,
    ),
    'train_shakespeare_char': dict(
        out_dir='out-shakespeare-char',
        eval_interval=250,
        eval_iters=200,
        log_interval=10,
        always_save_checkpoint=False,
        wandb_log=False,
        wandb_project='shakespeare-char',
        wandb_run_name='mini-gpt',
        dataset='shakespeare_char',
        gradient_accumulation_steps=1,
        batch_size=64,
        block_size=256,
        n_layer=6,
        n_head=6,
        n_embd=384,
        dropout=0.2,
        learning_rate=1e-3,
        max_iters=5000,
        lr_decay_iters=5000,
        min_lr=1e-4,
        beta2=0.99,
        warmup_iters=100,
    ),
    'finetune_shakespeare': dict(
        out_dir='out-shakespeare',
        eval_interval=5,
        eval_iters=40,
        wandb_log=False,
        wandb_project='shakespeare',
        wandb_run_name='ft-7.0',
        dataset='shakespeare',
        init_from='gpt2-xl',
        always_save_checkpoint=False,
        batch_size=1,
        gradient_accumulation_steps=32,
        max_iters=20,
        learning_rate=3e-5,
        decay_lr=False,
    ),
}


@pytest.mark.parametrize('name', NANOGPT_CONFIGS)
def test_nanogpts_config_files(name, monkeypatch, capsys):
    """They change these settings and no others, and trigger no warning."""
    monkeypatch.setattr(time, 'time', lambda: 7.0)
    cfg = load(str(REPO / 'config' / f'{name}.py'))
    train.check(cfg)
    assert repr(cfg) == repr(TrainConfig(**NANOGPT_CONFIGS[name]))
    assert capsys.readouterr().err == ''
