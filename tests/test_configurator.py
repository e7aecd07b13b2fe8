"""The config contract: order, what a config file may say, types, errors of one line, --help, nanoGPT's own settings."""

import ast
import contextlib
import io
import os
import re
import string
import subprocess
import sys
import time
from dataclasses import asdict, fields
from pathlib import Path

import pytest
import torch
from conftest import REPO, run_script

import sample
import train
from gradus import configurator
from sample import SampleConfig
from train import TrainConfig


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('RANK', raising=False)


def load(*argv, cls=TrainConfig):
    return configurator.load(cls, argv, sys.modules[cls.__module__])


def write(path, content):
    Path(path).parent.mkdir(exist_ok=True)
    Path(path).write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def failure(capsys, *argv):
    """What run() prints: one line `error: ...` on stderr, nothing else. Returns what follows `error: `."""
    script, cls = (sample, SampleConfig) if argv[0].startswith(('--top_k', '--temperature', '--checkpoint=')) else (train, TrainConfig)
    with pytest.raises(SystemExit) as stop:
        configurator.run(script.check, cls, script.ERRORS, argv)
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and out == '' and err.startswith('error: ') and err.endswith('\n') and len(err.splitlines()) == 1, err
    return err[7:-1]


@pytest.mark.parametrize('argv, expected', [
    ('', {}),
    ('--max_iters=5 --max_iters=6', dict(max_iters=6)),
    ('a.py --max_iters=5', dict(max_iters=5, n_layer=2)),
    ('--max_iters=5 a.py', dict(max_iters=10, n_layer=2)),
    ('a.py b.py', dict(max_iters=20, n_layer=2, n_head=2, wandb_run_name='0.0')),
    ('b.py a.py', dict(max_iters=10, n_layer=2, n_head=12, wandb_run_name='0.0')),
    ('--max_iters=5 b.py', dict(max_iters=10, n_head=12, wandb_run_name='0.0')),
    ('a.py --n_layer=7 --dropout=1 b.py --n_head=3', dict(max_iters=20, n_layer=7, n_head=3, dropout=1.0, wandb_run_name='1.0')),
])
def test_left_to_right(argv, expected):
    """A file sees all that stands to the left of it, already in the setting's type."""
    write('a.py', 'max_iters = 10\nn_layer = 2')
    write('b.py', 'max_iters = max_iters * 2\nn_head = n_layer\nwandb_run_name = str(dropout)')
    assert repr(load(*argv.split())) == repr(TrainConfig(**expected))      # repr, here and below: 0 is not 0.0, 1 is not True


IDIOMS = {
    'f-string, earlier name': ("name = 'baby'\nout_dir = f'out-{name}'", dict(out_dir='out-baby')),
    'f-string, default keys': ("wandb_run_name = f'{dataset}-{n_layer}x{n_embd}'", dict(wandb_run_name='openwebtext-12x768')),
    'other key': ('max_iters = 300\nlr_decay_iters = max_iters', dict(max_iters=300, lr_decay_iters=300)),
    'share': ('max_iters = 310\nwarmup_iters = int(max_iters*0.05)', dict(max_iters=310, warmup_iters=15)),
    'underscore': ('max_iters = 6_000', dict(max_iters=6000)),
    '//': ('tokens_per_pass = 16_384\nblock_size = 512\nbatch_size = tokens_per_pass // block_size', dict(batch_size=32, block_size=512)),
    'tenth': ('min_lr = learning_rate / 10\nlearning_rate = 0.5', dict(min_lr=6e-4 / 10, learning_rate=0.5)),
    'device': ("device = 'cuda' if torch.cuda.is_available() else 'cpu'", dict(device='cuda')),
    'dtype': ("dtype = 'bfloat16' if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else 'float16'", dict(dtype='float16')),
    'exists': ("out_dir = 'a' if os.path.exists('base.py') else 'b'\ndataset = 'a' if os.path.exists('no/such') else 'b'", dict(out_dir='a', dataset='b')),
    'import': ("import time\nwandb_run_name = 'ft-' + str(time.time())", dict(wandb_run_name='ft-7.0')),
    'no import': ("wandb_run_name = 'run' + str(time.time())", dict(wandb_run_name='run7.0')),
    'import as': ("import os as _os\nout_dir = _os.path.join('runs', 'a')", dict(out_dir=os.path.join('runs', 'a'))),
    'from import': ('from math import gcd\nbatch_size = gcd(16, 40)', dict(batch_size=8)),
    'Path': ('from pathlib import Path\nout_dir = Path("out")', dict(out_dir='out')),
    'exec': ("exec(open('base.py').read())\nn_head = helper * n_layer", dict(n_layer=3, n_head=6)),
    'globals': ("for k, v in {'n_layer': 2, 'n_head': 4}.items():\n    globals()[k] = v", dict(n_layer=2, n_head=4)),
    'docstring': ('n_layer = 2\n"""\nmax_iters = 9\n"""\nn_head = 4', dict(n_layer=2, n_head=4)),
    'non-ASCII': ('# größer, 更大 🙂\nn_layer = 2  # é\nwandb_project = "größer"', dict(n_layer=2, wandb_project='größer')),
    'containers': ("b = [0.8, 0.9]\nsize = {'n': 96}\nnote = None\nbeta1, beta2 = b\nn_embd = size['n']", dict(beta1=0.8, beta2=0.9, n_embd=96)),
    "sample.py's keys": ("start = '\\n'\nnum_samples = 3\ntop_k = None\ntemperature = 0.5\nmax_iters = 7", dict(max_iters=7)),
    'twice': ('n_layer = 2\nn_head = 3\nn_layer = 4', dict(n_layer=4, n_head=3)),
    'int for float': ('dropout = 0\nlearning_rate = 1', dict(dropout=0.0, learning_rate=1.0)),
    'float for int': ('max_iters = 1e5', dict(max_iters=100000)),
    'int for bool': ('eval_only = 1\ndecay_lr = 0\ncompile = 1', dict(eval_only=True, decay_lr=False, compile=True)),
    'function': ('base = 100\ndef times(n):\n    return base * n\nmax_iters = times(3)', dict(max_iters=300)),
    'class': ('u = 8\nclass S:\n    w = u * 4\n    def f(self):\n        return u * 2\nn_embd, batch_size = S.w, S().f()', dict(n_embd=32, batch_size=16)),
    'comprehension': ('unit = 4\nbatch_size = sum([unit * i for i in range(4)])', dict(batch_size=24)),
    'loop': ('step = 2\nn_layer = 0\nfor _ in range(5):\n    n_layer += step', dict(n_layer=10)),
    'numpy floats': ('learning_rate = np.float32(0.5)\nmin_lr = np.float64(0.25)\ngrad_clip = np.int64(2)', dict(learning_rate=0.5, min_lr=0.25, grad_clip=2.0)),
    'numpy others': ('max_iters = np.int64(7)\neval_only = np.bool_(True)\ndataset = np.str_("d")', dict(max_iters=7, eval_only=True, dataset='d')),
    'torch.device': ("device = torch.device('cuda', 1)", dict(device='cuda:1')),
    'preloaded': ('with nullcontext():\n    n_layer = pickle.loads(pickle.dumps(int(math.sqrt(9))))', dict(n_layer=3)),
    '__main__': ("if __name__ == '__main__':\n    n_layer = 2", dict(n_layer=2)),
    '__file__': ('out_dir = os.path.basename(__file__)', dict(out_dir='train.py')),
    'Windows': (b'\xef\xbb\xbfn_layer = 2\r\nn_head = 4\r\n', dict(n_layer=2, n_head=4)),           # byte order mark, \r\n
}


@pytest.mark.parametrize('text, expected', IDIOMS.values(), ids=IDIOMS.keys())
def test_idiom(text, expected, monkeypatch, capsys):
    """In a folder of its own, so that base.py is found only if paths are relative to the working folder. No warnings."""
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda: False)
    monkeypatch.setattr(time, 'time', lambda: 7.0)
    write('base.py', 'n_layer = 3\nhelper = 2')
    assert repr(load(write('config/idiom.py', text))) == repr(TrainConfig(**expected))
    assert capsys.readouterr().err == ''


@pytest.mark.parametrize('value, text, seen', [
    ('8', '1e2', '100'), ('0.5', '1', '1.0'), ('"s"', '1', "'1'"), ('"s"', 'a=b', "'a=b'"), ('True', 'false', 'False'),
    ('[1]', '[2, 3]', '[2, 3]'), ('{}', 'None', 'None'), ('None', '4', '4'), ('None', 'abc', "'abc'")])
def test_introduced_name_on_the_command_line(value, text, seen):
    """It keeps the type that the last file gave it, and the next file sees the new value."""
    write('a.py', 'extra = print')
    write('b.py', f'extra = {value}')
    write('c.py', 'out_dir = repr(extra)')
    assert load('a.py', 'b.py', f'--extra={text}', 'c.py').out_dir == seen


@pytest.mark.parametrize('argv, message', [
    ('--max_itres=5', '--max_itres: unknown key; did you mean max_iters?; --help lists all'),
    ('--n_layers=5', '--n_layers: unknown key; did you mean n_layer?; --help lists all'),
    ('--num_samples=5', '--num_samples: unknown key; --help lists all'),
    ('a.py --widht=5', '--widht: unknown key; did you mean width?; --help lists all'),
    ('--width=5 a.py', '--width: unknown key; --help lists all'),                # not yet introduced
    ('a.py --width=x', "--width=x: expected int, found 'x'"),
])
def test_wrong_name(argv, message, capsys):
    write('a.py', 'width = 8')
    assert failure(capsys, *argv.split()) == message


@pytest.mark.parametrize('line, meant', [('n_layers = 3', 'n_layer'), ('learningrate = 1e-3', 'learning_rate'), ("datasets = 'x'", 'dataset'),
                                         ('evalonly = True', 'eval_only'), ('gradient_accumulation_step = 4', 'gradient_accumulation_steps')])
def test_near_miss_in_a_file_warns(line, meant, capsys, monkeypatch):
    """Once, however many files say it, and on one rank."""
    write('a.py', line)
    assert repr(load('a.py', 'a.py')) == repr(TrainConfig())
    assert capsys.readouterr().err == f'warning: a.py: {line.split()[0]} is no setting of this script; did you mean {meant}?\n'
    monkeypatch.setenv('RANK', '1')
    load('a.py')
    assert capsys.readouterr().err == ''


@pytest.mark.parametrize('cls, other', [(TrainConfig, SampleConfig), (SampleConfig, TrainConfig)])
def test_no_warning_for_helpers_nor_for_keys_of_the_other_script(cls, other, capsys):
    helpers = ('tokens_per_pass total_batch_size name model_name run_name epochs num_epochs lr base_lr max_lr max_steps tokens vocab_size '
               'num_gpus device_type eval_every save_interval head_size warmup_ratio data_dir _n_layer n i k v x').split()
    values = {f.name: getattr(cls, f.name, f.default) for f in fields(other)}
    load(write('a.py', '\n'.join(f'{key} = {value!r}' for key, value in {**dict.fromkeys(helpers, 1), **values}.items())), cls=cls)
    assert capsys.readouterr().err == ''


@pytest.mark.parametrize('arg, expected', [
    ('dropout=0', 0.0), ('learning_rate=1', 1.0), ('learning_rate=3e-4', 3e-4), ('learning_rate=.5', 0.5), ('min_lr=-1', -1.0),
    ('max_iters=1e5', 100000), ('max_iters=2.0', 2), ('max_iters=6_000', 6000), ('max_iters=-3', -3), ('max_iters=' + '9' * 400, 10 ** 400 - 1),
    *[(f'wandb_log={text}', True) for text in ('true', 'True', '1')], *[(f'decay_lr={text}', False) for text in ('false', 'False', '0')],
    ('compile=auto', 'auto'), ('compile=True', True), ('compile=0', False), ('compile=reduce-overhead', 'reduce-overhead'),
    ('top_k=None', None), ('top_k=none', None), ('top_k=5', 5), ('top_k=1e2', 100),
    *[(f'out_dir={text}', text) for text in ('', 'a=b', '=', '--seed=1', '1', 'None', 'True', "'q'", '[1]', ' a  b ', 'größer/更大🙂', 'a\nb\\n')],
])
def test_type_from_the_command_line(arg, expected):
    key = arg.partition('=')[0]
    assert repr(getattr(load(f'--{arg}', cls=SampleConfig if key == 'top_k' else TrainConfig), key)) == repr(expected)


@pytest.mark.parametrize('arg, expected', [
    *[(f'--max_iters={text}', 'int, found') for text in ('1.5', '', 'ten', 'True', 'None', '[1]', '{[]: 1}', '1e999', 'nan', '007', '5 6', '(', 'a\nb')],
    *[(f'--learning_rate={text}', 'float, found') for text in ('', 'fast', 'None', 'False', '1j', '9' * 400)],
    *[(f'--wandb_log={text}', 'bool, found') for text in ('', 'yes', '2', '1.0', 'None')],
    *[(text, '--key=value, or the path of a config file') for text in ('--max_iters', '-max_iters=3', '-', '--')],
    ('--top_k=few', "int or None, found 'few'"),
])
def test_wrong_argument(arg, expected, capsys):
    assert failure(capsys, arg).startswith(f'{" ".join(arg.split())}: expected {expected}')


@pytest.mark.parametrize('content, expected', [
    ('max_iters = 2.5', 'a.py: max_iters: expected int, found 2.5'), ('max_iters = "5"', "a.py: max_iters: expected int, found '5'"),
    ('max_iters = True', 'a.py: max_iters: expected int, found True'), ('seed = "y" * 99', "a.py: seed: expected int, found 'yyy"),
    ('dropout = None', 'a.py: dropout: expected float, found None'), ('dropout = False', 'a.py: dropout: expected float, found False'),
    ('min_lr = 10 ** 400', 'a.py: min_lr: expected float, found 1000'), ('out_dir = ["a"]', "a.py: out_dir: expected str, found ['a']"),
    ('out_dir = None', 'a.py: out_dir: expected str, found None'), ('dataset = 3', 'a.py: dataset: expected str, found 3'),
    ('eval_only = 2', 'a.py: eval_only: expected bool, found 2'), ('compile = None', 'a.py: compile: expected bool or str, found None'),
    ('eval_only = np.array([0, 1])', 'a.py: eval_only: expected bool, found array([0, 1])'),
    ('seed = torch.zeros(3, 3)', 'a.py: seed: expected int, found tensor('), ('eval_only = "yes"', "a.py: eval_only: expected bool, found 'yes'"),
    ('n_layer = 2\nn_head = = 3', 'a.py:2: invalid syntax: n_head = = 3'),
    ('\n\nprint("a', 'a.py:3: unterminated string'),
    ('x = 0\n\nn_layer = 1 / x', 'a.py:3: ZeroDivisionError: division by zero'),
    ('\nn_layer = n_layrs', "a.py:2: NameError: name 'n_layrs' is not defined"),
    ('def f():\n    raise ValueError("two\\n  lines")\nf()', 'a.py:2: ValueError: two lines'),
    ("\nexec(open('base.py').read())", 'a.py:2: FileNotFoundError: '),
    ('def f(n):\n    return f(n + 1)\nf(0)', 'a.py:2: RecursionError: '),
    ('# größer'.encode('latin-1'), 'a.py: cannot be read as a Python file: '),
    ('missing', 'a.py: no such config file; expected a Python file'),
    ('folder', 'a.py: cannot be read as a Python file: '),
])
def test_wrong_file(content, expected, capsys):
    if content == 'folder':
        os.mkdir('a.py')
    elif content != 'missing':
        write('a.py', content)
    assert failure(capsys, 'a.py', '--max_iters=1').startswith(expected)


@pytest.mark.parametrize('arg, expected', [
    ('--learning_rate=-1', 'at least 0'), ('--learning_rate=1e999', 'at least 0'), ('--eval_interval=0', 'at least 1'), ('--seed=-1', 'between'),
    ('--beta2=1', 'between 0 and'), ('--dropout=1', 'less than 1'), ('--n_head=5', 'multiple of n_head'), ('--mlp=glue', 'swiglu'),
    ('--dtype=float61', 'one of auto, float32, bfloat16, float16; did you mean float16?'), ('--compile=maybe', 'one of auto, True, False'),
    ('--lr_schedule=cosin', 'did you mean cosine?'), ('--out_dir=', 'a folder of its own'), ('--out_dir=.', 'a folder of its own'),
    ('--temperature=-1', 'at least 0'), ('--top_k=-1', 'at least 0'), ('--checkpoint=a/b.pt', 'name of a file'),
])
def test_senseless_value(arg, expected, capsys):
    message = failure(capsys, arg)
    assert arg[2:].partition('=')[0] in message and 'expected ' in message and expected in message


def test_traps_warn_and_keep_their_meaning(capsys):
    cfg = load('--max_iters=1000')
    train.check(cfg)
    assert [line.split('=')[0] for line in capsys.readouterr().err.splitlines()] == ['warning: lr_decay_iters', 'warning: warmup_iters']
    assert repr(cfg) == repr(TrainConfig(max_iters=1000))
    train.check(load('--max_iters=' + '9' * 400))                                # senseless, but no crash


def test_run(capsys, monkeypatch):
    """It reads sys.argv, catches the errors named to it and no others (a bug keeps its traceback), and speaks on one rank."""
    def main(cfg):
        raise KeyError(cfg.seed)
    monkeypatch.setattr(sys, 'argv', ['train.py', '--seed=3'])
    for rank, printed in ('0', 'error: 3\n'), ('1', ''):
        monkeypatch.setenv('RANK', rank)
        with pytest.raises(SystemExit) as stop:
            configurator.run(main, TrainConfig, (KeyError,))
        assert stop.value.code == 2 and capsys.readouterr().err == printed
    with pytest.raises(KeyError):
        configurator.run(main, TrainConfig, train.ERRORS)


def test_the_real_thing(tmp_path):
    """python train.py in another folder: one line, exit code 2, no traceback, and nothing written."""
    done = run_script('train.py', '--nope=1')
    assert (done.returncode, done.stdout, done.stderr) == (2, '', 'error: --nope: unknown key; --help lists all\n')
    assert not list(tmp_path.iterdir())


COMMENTS = dict(block_size='tokens in a sequence: the context', lr_decay_iters='where min_lr is reached; usually max_iters', wandb_project='',
                always_save_checkpoint='save at every evaluation, or only when val improves (and at the end)', start='the prompt, or FILE:prompt.txt',
                top_k='draw from the k likeliest only; None or 0 = from all', num_samples='texts, made side by side')


@pytest.mark.parametrize('cls, usage', [(TrainConfig, 'python train.py config/quickstart.py'), (SampleConfig, 'python sample.py --out_dir=')])
@pytest.mark.parametrize('argv', [['--help'], ['-h'], ['--nope=1', 'no_such_file.py', '--help']])
def test_help(cls, usage, argv, capsys):
    with pytest.raises(SystemExit) as stop:
        configurator.run(pytest.fail, cls, argv=argv)
    out, err = capsys.readouterr()
    assert stop.value.code == 0 and err == '' and usage in out
    shown = {key: (ast.literal_eval(default), comment) for key, default, comment in re.findall(r'(?m)^  --(\w+)=(\S+) *(.*)$', out)}
    assert {key: default for key, (default, _) in shown.items()} == {f.name: f.default for f in fields(cls)}
    assert [shown[key][1] for key in COMMENTS if key in shown] == [COMMENTS[key] for key in COMMENTS if key in shown]


def test_plain():
    """What a checkpoint keeps: the declared keys only, as plain values, whatever the config file made them of."""
    write('a.py', 'from pathlib import Path\nhelper = [1]\nout_dir = Path("o")\ndevice = torch.device("cpu")\nseed = np.int32(3)\n'
                  'dropout = np.float32(0.5)\ntop_k = None\neval_only = np.bool_(True)\nlearning_rate = 1')
    for cls in TrainConfig, SampleConfig:
        values = configurator.plain(load('a.py', cls=cls))
        assert list(values) == [f.name for f in fields(cls)]
        assert {type(v) for v in values.values()} <= {str, int, float, bool, type(None)}
        assert (values['out_dir'], values['device'], values['seed']) == ('o', 'cpu', 3)


EVAL = dict(batch_size=8, eval_iters=500, eval_only=True, wandb_log=False)
NANOGPT_CONFIGS = {
    'eval_gpt2': dict(EVAL, init_from='gpt2'), 'eval_gpt2_medium': dict(EVAL, init_from='gpt2-medium'),
    'eval_gpt2_large': dict(EVAL, init_from='gpt2-large'), 'eval_gpt2_xl': dict(EVAL, init_from='gpt2-xl'),
    'train_gpt2': dict(
        wandb_log=True, wandb_project='owt', wandb_run_name='gpt2-124M', batch_size=12, block_size=1024, gradient_accumulation_steps=40,
        max_iters=600000, lr_decay_iters=600000, eval_interval=1000, eval_iters=200, log_interval=10, weight_decay=0.1),
    'train_shakespeare_char': dict(
        out_dir='out-shakespeare-char', eval_interval=250, eval_iters=200, log_interval=10, always_save_checkpoint=False, wandb_log=False,
        wandb_project='shakespeare-char', wandb_run_name='mini-gpt', dataset='shakespeare_char', gradient_accumulation_steps=1, batch_size=64,
        block_size=256, n_layer=6, n_head=6, n_embd=384, dropout=0.2, learning_rate=1e-3, max_iters=5000, lr_decay_iters=5000, min_lr=1e-4,
        beta2=0.99, warmup_iters=100),
    'finetune_shakespeare': dict(
        out_dir='out-shakespeare', eval_interval=5, eval_iters=40, wandb_log=False, wandb_project='shakespeare', wandb_run_name='ft-7.0',
        dataset='shakespeare', init_from='gpt2-xl', always_save_checkpoint=False, batch_size=1, gradient_accumulation_steps=32, max_iters=20,
        learning_rate=3e-5, decay_lr=False),
}


def test_nanogpts_defaults():
    """All of its names and values; of what is new, whatever shapes the model is GPT-2's; the machine is found out."""
    expected = dict(
        out_dir='out', eval_interval=2000, log_interval=1, eval_iters=200, eval_only=False, always_save_checkpoint=True, init_from='scratch',
        wandb_log=False, wandb_project='owt', wandb_run_name='gpt2', dataset='openwebtext', gradient_accumulation_steps=40, batch_size=12,
        block_size=1024, n_layer=12, n_head=12, n_embd=768, dropout=0.0, bias=False, learning_rate=6e-4, max_iters=600000, weight_decay=0.1,
        beta1=0.9, beta2=0.95, grad_clip=1.0, decay_lr=True, warmup_iters=2000, lr_decay_iters=600000, min_lr=6e-5,
        pos='learned', norm='layernorm', mlp='gelu', qk_norm=False, n_kv_head=0, tie_weights=True, n_inner=0, lr_schedule='cosine',
        device='auto', dtype='auto', compile='auto', backend='auto')
    values = asdict(TrainConfig())
    assert repr({key: values[key] for key in expected}) == repr(expected)


@pytest.mark.parametrize('name', NANOGPT_CONFIGS)
def test_nanogpts_config_files(name, monkeypatch, capsys):
    """They change these settings and no others, and walk into no trap."""
    monkeypatch.setattr(time, 'time', lambda: 7.0)
    cfg = load(str(REPO / 'config' / f'{name}.py'))
    train.check(cfg)
    assert repr(cfg) == repr(TrainConfig(**NANOGPT_CONFIGS[name])) and capsys.readouterr().err == ''


@pytest.fixture
def fuzz(tmp_path):
    """@fuzz(strategy) runs a function at once on 100 examples, the same ones every time; nothing is written to the working folder."""
    hypothesis = pytest.importorskip('hypothesis')
    hypothesis.configuration.set_hypothesis_home_dir(tmp_path / 'hypothesis')
    settings = hypothesis.settings(max_examples=100, deadline=None, derandomize=True, database=None)
    return lambda strategy: lambda f: settings(hypothesis.given(strategy)(f))()


def test_any_text_survives(fuzz):
    from hypothesis import strategies as st
    write('a.py', 'name = ""')
    write('b.py', 'out_dir = name')

    @fuzz(st.text())
    def check(text):
        assert load(f'--out_dir={text}').out_dir == text
        assert load('a.py', f'--name={text}', 'b.py').out_dir == text


def test_any_arguments_end_well_or_in_one_line(fuzz):
    """No NUL and no lone surrogates: no operating system passes them."""
    from hypothesis import strategies as st
    text = st.text(st.characters(codec='utf-8', exclude_characters='\0')) | st.text(string.punctuation + string.digits + 'einNf')
    value = text | st.integers().map(str) | st.floats().map(str) | st.sampled_from(['None', 'True', '{[]: 1}', '9' * 400, '1e999', '[1, 2]', '1.5'])
    setting = st.builds('--{}={}'.format, st.sampled_from([f.name for f in fields(TrainConfig)]) | text, value)

    @fuzz(st.lists(setting | setting | setting | text | st.sampled_from(['--help', '.', '--'])))
    def check(argv):
        out, err, code = io.StringIO(), io.StringIO(), None
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                configurator.run(train.check, TrainConfig, train.ERRORS, argv)
            except SystemExit as e:
                code = e.code
        assert code in (None, 0, 2) and bool(out.getvalue()) == (code == 0)
        assert [line[:7] for line in err.getvalue().splitlines() if not line.startswith('warning: ')] == ['error: '] * (code == 2)


def test_a_flag_needs_no_value():
    write('c.py', 'dropout = 0.5\n')
    cfg = load('--json', '--seed=3', '--interactive', 'false', '--logprobs', cls=SampleConfig)
    assert cfg.json is cfg.logprobs is True and cfg.interactive is False and cfg.seed == 3
    cfg = load('--eval_only', 'c.py', '--decay_lr', '0')
    assert cfg.eval_only is True and cfg.dropout == 0.5 and cfg.decay_lr is False
    for argv, expected in (['--compile'], True), (['--compile', '--seed=3'], True), (['--compile', 'auto'], 'auto'), (['--compile', 'False'], False):
        assert load(*argv).compile == load(*argv, cls=SampleConfig).compile == expected     # a flag, or one of several words


def test_a_reader_who_has_enough_is_no_error():
    code = f'import sys; sys.path.insert(0, {str(REPO)!r}); import configurator, sample\n' \
           'configurator.run(lambda cfg: [print("x" * 1000) for _ in range(1000)], sample.SampleConfig, argv=[])'
    process = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b'' and process.wait() == 141
