"""Settings on the command line: types, errors of one line, --help. For config files see test_config_files.py."""

import ast
import contextlib
import dataclasses
import gc
import io
import re
import string
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from conftest import REPO, run_script

import sample
import train
from gradus import configurator
from gradus.errors import UserError
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
    """Check that run() prints one line `error: ...` on stderr and nothing else; return what follows `error: `."""
    script, cls = train, TrainConfig
    if argv[0].startswith(('--top_k', '--temperature', '--checkpoint=')):
        script, cls = sample, SampleConfig
    with pytest.raises(SystemExit) as stop:
        configurator.launch(script.check, cls, argv)

    out, err = capsys.readouterr()
    assert stop.value.code == 2
    assert out == ''
    assert err.startswith('error: ')
    assert err.endswith('\n')
    assert len(err.splitlines()) == 1, err
    return err[7:-1]


# ---------------------------------------------------------------------------- the command line

@pytest.mark.parametrize('value, text, seen', [
    ('8', '1e2', '100'),
    ('0.5', '1', '1.0'),
    ('"s"', '1', "'1'"),
    ('"s"', 'a=b', "'a=b'"),
    ('True', 'false', 'False'),
    ('[1]', '[2, 3]', '[2, 3]'),
    ('{}', 'None', 'None'),
    ('None', '4', '4'),
    ('None', 'abc', "'abc'"),
])
def test_introduced_name_on_the_command_line(value, text, seen):
    """A name that config files introduced keeps the type it had in the last of them; later files see the new value."""
    write('a.py', 'extra = print')
    write('b.py', f'extra = {value}')
    write('c.py', 'out_dir = repr(extra)')
    assert load('a.py', 'b.py', f'--extra={text}', 'c.py').out_dir == seen


@pytest.mark.parametrize('argv, message', [
    ('--max_itres=5', '--max_itres: unknown key; did you mean max_iters?; --help lists all'),
    ('--n_layers=5', '--n_layers: unknown key; did you mean n_layer?; --help lists all'),
    ('--num_samples=5', '--num_samples: unknown key; --help lists all'),
    ('a.py --widht=5', '--widht: unknown key; did you mean width?; --help lists all'),
    ('--width=5 a.py', '--width: unknown key; --help lists all'),                         # not introduced yet
    ('a.py --width=x', "--width=x: expected int, found 'x'"),
])
def test_wrong_name(argv, message, capsys):
    write('a.py', 'width = 8')
    assert failure(capsys, *argv.split()) == message


ANY_STRING = ('', 'a=b', '=', '--seed=1', '1', 'None', 'True', "'q'", '[1]', ' a  b ', 'größer/更大🙂', 'a\nb\\n')


@pytest.mark.parametrize('arg, expected', [
    ('dropout=0', 0.0),
    ('learning_rate=1', 1.0),
    ('learning_rate=3e-4', 3e-4),
    ('learning_rate=.5', 0.5),
    ('min_lr=-1', -1.0),
    ('max_iters=1e5', 100000),
    ('max_iters=2.0', 2),
    ('max_iters=6_000', 6000),
    ('max_iters=-3', -3),
    *[(f'wandb_log={text}', True) for text in ('true', 'True', '1')],
    *[(f'decay_lr={text}', False) for text in ('false', 'False', '0')],
    ('compile=auto', 'auto'),
    ('compile=True', True),
    ('compile=0', False),
    ('compile=reduce-overhead', 'reduce-overhead'),
    ('top_k=None', None),
    ('top_k=none', None),
    ('top_k=5', 5),
    ('top_k=1e2', 100),
    *[(f'out_dir={text}', text) for text in ANY_STRING],
])
def test_type_from_the_command_line(arg, expected):
    key = arg.partition('=')[0]
    cls = SampleConfig if key == 'top_k' else TrainConfig
    assert repr(getattr(load(f'--{arg}', cls=cls), key)) == repr(expected)


NOT_INT = ('1.5', '', 'ten', 'True', 'None', '[1]', '{[]: 1}', '1e999', 'nan', '007', '5 6', '(', 'a\nb')


@pytest.mark.parametrize('arg, expected', [
    *[(f'--max_iters={text}', 'int, found') for text in NOT_INT],
    *[(f'--learning_rate={text}', 'float, found') for text in ('', 'fast', 'None', 'False', '1j')],

    *[(f'--wandb_log={text}', 'bool, found') for text in ('', 'yes', '2', '1.0', 'None')],
    *[
        (text, '--key=value, or the path of a config file')
        for text in ('--max_iters', '-max_iters=3', '-', '--')
    ],
    ('--top_k=few', "int or None, found 'few'"),
])
def test_wrong_argument(arg, expected, capsys):
    shown = ' '.join(arg.split())
    assert failure(capsys, arg).startswith(f'{shown}: expected {expected}')


def test_numbers_without_end_are_shown_short(capsys):
    for key, kind in (('learning_rate', 'float'), ('max_iters', 'int')):
        for digits in (400, 10_000):
            message = failure(capsys, f'--{key}=' + '9' * digits)
            assert f'...: expected {kind}' in message
            assert len(message) < 300


@pytest.mark.parametrize('arg, expected', [
    ('--learning_rate=-1', 'between 0 and'),
    ('--learning_rate=1e999', 'between 0 and'),
    ('--eval_interval=0', 'at least 1'),
    ('--seed=-1', 'between'),
    ('--beta2=1', 'between 0 and'),
    ('--dropout=1', 'less than 1'),
    ('--n_head=5', 'multiple of n_head'),
    ('--mlp=glue', 'swiglu'),
    ('--dtype=float61', 'one of auto, float32, bfloat16, float16; did you mean float16?'),
    ('--compile=maybe', 'one of auto, True, False'),
    ('--lr_schedule=cosin', 'did you mean cosine?'),
    ('--out_dir=', 'a folder of its own'),
    ('--out_dir=.', 'a folder of its own'),
    ('--temperature=-1', 'at least 0'),
    ('--top_k=-1', 'at least 0'),
])
def test_senseless_value(arg, expected, capsys):
    message = failure(capsys, arg)
    assert arg[2:].partition('=')[0] in message
    assert 'expected ' in message
    assert expected in message


def test_traps_warn_and_keep_their_meaning(capsys):
    cfg = load('--max_iters=1000')
    train.check(cfg)
    warnings = [line.split('=')[0] for line in capsys.readouterr().err.splitlines()]
    assert warnings == ['warning: lr_decay_iters', 'warning: warmup_iters']
    assert repr(cfg) == repr(TrainConfig(max_iters=1000))



def test_a_flag_needs_no_value():
    write('c.py', 'dropout = 0.5\n')
    cfg = load('--json', '--seed=3', '--interactive', 'false', '--logprobs', cls=SampleConfig)
    assert cfg.json is True
    assert cfg.logprobs is True
    assert cfg.interactive is False
    assert cfg.seed == 3

    cfg = load('--eval_only', 'c.py', '--decay_lr', '0')
    assert cfg.eval_only is True
    assert cfg.dropout == 0.5
    assert cfg.decay_lr is False


@pytest.mark.parametrize('argv, expected', [
    (['--compile'], True),
    (['--compile', '--seed=3'], True),
    (['--compile', 'auto'], 'auto'),
    (['--compile', 'False'], False),
])
def test_compile_is_a_flag_or_a_word(argv, expected):
    assert load(*argv).compile == expected
    assert load(*argv, cls=SampleConfig).compile == expected


# ---------------------------------------------------------------------------- a script from start to end

def test_launch(capsys, monkeypatch):
    """It reads sys.argv and reports UserErrors on one rank, and no other errors: a bug keeps its traceback."""
    def main(cfg):
        raise UserError(f'seed is {cfg.seed}')

    def bug(cfg):
        raise KeyError(cfg.seed)

    monkeypatch.setattr(sys, 'argv', ['train.py', '--seed=3'])
    monkeypatch.setenv('WORLD_SIZE', '2')
    for rank, printed in ('0', 'error: seed is 3\n'), ('1', ''):
        monkeypatch.setenv('RANK', rank)
        monkeypatch.setenv('LOCAL_RANK', rank)
        with pytest.raises(SystemExit) as stop:
            configurator.launch(main, TrainConfig)
        assert stop.value.code == 2
        assert capsys.readouterr().err == printed

    with pytest.raises(KeyError):
        configurator.launch(bug, TrainConfig)


def test_imports_are_not_searched_for_garbage():
    """Python does that when it exits, and PyTorch's hundreds of thousands of objects would take it half a second."""
    gc.unfreeze()
    imported = len(gc.get_objects())
    frozen = []
    try:
        configurator.launch(lambda cfg: frozen.append(gc.get_freeze_count()), TrainConfig, [])
    finally:
        gc.unfreeze()
    assert frozen[0] > 0.9 * imported > 50_000


def test_the_real_thing(tmp_path):
    """python train.py in another folder: one line, exit code 2, no traceback, and nothing written."""
    done = run_script('train.py', '--nope=1')
    assert (done.returncode, done.stdout, done.stderr) == (2, '', 'error: --nope: unknown key; --help lists all\n')
    assert not list(tmp_path.iterdir())


def test_a_closed_pipe_is_not_an_error():
    """As in `python sample.py | head`."""
    code = f"""
import sys
sys.path.insert(0, {str(REPO)!r})
import sample
from gradus import configurator
from gradus.errors import UserError

def main(cfg):
    for _ in range(1000):
        print('x' * 1000)

configurator.launch(main, sample.SampleConfig, argv=[])
"""
    process = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b''
    assert process.wait() == 141


COMMENTS = dict(
    block_size='tokens in a sequence: the context length',
    lr_decay_iters='when min_lr is reached; usually max_iters',
    wandb_project='',
    always_save_checkpoint='save ckpt.pt at every evaluation; False: only if val improves and at the end',
    start='the prompt, or FILE:prompt.txt',
    top_k='sample from the k most likely tokens only; None or 0 = from all',
    num_samples='samples, generated as one batch',
)


@pytest.mark.parametrize('cls, usage', [
    (TrainConfig, 'python train.py config/quickstart.py'),
    (SampleConfig, 'python sample.py --out_dir='),
])
@pytest.mark.parametrize('argv', [['--help'], ['-h'], ['--nope=1', 'no_such_file.py', '--help']])
def test_help(cls, usage, argv, capsys):
    with pytest.raises(SystemExit) as stop:
        configurator.launch(pytest.fail, cls, argv=argv)
    out, err = capsys.readouterr()
    assert stop.value.code == 0
    assert err == ''
    assert usage in out

    lines = re.findall(r'(?m)^  --(\w+)=(\S+) *(.*)$', out)
    defaults = {key: ast.literal_eval(default) for key, default, _ in lines}
    comments = {key: comment for key, _, comment in lines}
    assert defaults == {f.name: f.default for f in fields(cls)}
    shared = [key for key in COMMENTS if key in comments]
    assert [comments[key] for key in shared] == [COMMENTS[key] for key in shared]


def test_plain():
    """What a checkpoint keeps: the declared keys only, as plain values, whatever the config file made them of."""
    write('a.py', """
from pathlib import Path
helper = [1]
out_dir = Path("o")
device = torch.device("cpu")
seed = np.int32(3)
dropout = np.float32(0.5)
top_k = None
eval_only = np.bool_(True)
learning_rate = 1
""")
    for cls in TrainConfig, SampleConfig:
        values = dataclasses.asdict(load('a.py', cls=cls))
        assert list(values) == [f.name for f in fields(cls)]
        assert {type(v) for v in values.values()} <= {str, int, float, bool, type(None)}
        assert (values['out_dir'], values['device'], values['seed']) == ('o', 'cpu', 3)


# ---------------------------------------------------------------------------- arbitrary input

@pytest.fixture
def fuzz(tmp_path):
    """
    @fuzz(strategy) runs a function at once on 100 examples, the same ones every time, and writes nothing to
    the working folder.
    """
    hypothesis = pytest.importorskip('hypothesis', reason='it draws texts: pip install hypothesis')
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
    """Without NUL and lone surrogates: no operating system passes them on."""
    from hypothesis import strategies as st
    text = st.one_of(
        st.text(st.characters(codec='utf-8', exclude_characters='\0')),
        st.text(string.punctuation + string.digits + 'einNf'),
    )
    value = st.one_of(
        text,
        st.integers().map(str),
        st.floats().map(str),
        st.sampled_from(['None', 'True', '{[]: 1}', '9' * 400, '1e999', '[1, 2]', '1.5']),
    )
    key = st.sampled_from([f.name for f in fields(TrainConfig)]) | text
    setting = st.builds('--{}={}'.format, key, value)
    argument = setting | setting | setting | text | st.sampled_from(['--help', '.', '--'])

    @fuzz(st.lists(argument))
    def check(argv):
        out = io.StringIO()
        err = io.StringIO()
        code = None
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                configurator.launch(train.check, TrainConfig, argv)
            except SystemExit as e:
                code = e.code

        errors = [line[:7] for line in err.getvalue().splitlines() if not line.startswith('warning: ')]
        assert code in (None, 0, 2)
        assert bool(out.getvalue()) == (code == 0)
        assert errors == ['error: '] * (code == 2)
