"""Settings that are odd rather than misspelled: folders that no run may have, numbers beyond all bounds, odd files."""

import os
import time

import pytest
from test_configurator import failure, load, write

import train
from gradus import configurator
from gradus.errors import UserError
from sample import SampleConfig
from train import TrainConfig


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('RANK', raising=False)


# ---------------------------------------------------------------------------- the folder of a run

@pytest.fixture
def work(tmp_path, monkeypatch):
    """Work in <home>/work, with some folders beside and below it. Returns home."""
    home = tmp_path / 'home'
    for name in ('empty', 'work/inside', 'work/.git', 'checkout/.git'):
        (home / name).mkdir(parents=True)
    for name in ('train.bin', 'val.bin', 'prepare.py'):
        write(home / 'work' / name.partition('.')[0] / name, '')
    write(home / 'work/file', '')
    os.symlink(home / 'work/train', home / 'work/link-to-train')
    os.symlink(home / 'empty', home / 'work/link')
    monkeypatch.setenv('HOME', str(home))
    monkeypatch.chdir(home / 'work')
    return home


@pytest.mark.parametrize('out_dir, problem', [
    *[(name, 'the working folder, or one above') for name in ('.', './', '..', '/', '//', 'inside/..', '{home}/work')],
    ('file', 'this is a file'),
    ('/dev/null', 'this is a file'),
    ('train', 'this one holds train.bin'),
    ('val/', 'this one holds val.bin'),
    ('prepare', 'this one holds prepare.py'),
    ('../checkout', 'this one holds .git'),
    ('link-to-train/', 'this one holds train.bin'),
    ('', 'cannot be the name of a folder'),
    ('a\0b', 'cannot be the name of a folder'),
    ('\ud800', 'cannot be the name of a folder'),
])
def test_what_cannot_be_the_folder_of_a_run(work, out_dir, problem):
    with pytest.raises(UserError, match='^out_dir=.*: expected a folder of its own for the run; ') as e:
        configurator.check_out_dir(out_dir.format(home=work))
    assert problem in str(e.value)


@pytest.mark.parametrize('out_dir', ['{home}', '{home}/', '{home}/empty/..', '{home}/..'])
def test_home_cannot_be_the_folder_of_a_run_wherever_one_works(work, out_dir, tmp_path, monkeypatch):
    os.mkdir(tmp_path / 'scratch')
    monkeypatch.chdir(tmp_path / 'scratch')
    with pytest.raises(UserError, match='home folder, or one above it|working folder, or one above it'):
        configurator.check_out_dir(out_dir.format(home=work))


@pytest.mark.parametrize('out_dir', ['out', 'out/', 'a/b/c', 'inside', 'inside/', '../empty', '../work2', 'link',
                                     'link/', 'link/new', '{home}/empty', 'größer'])
def test_what_can_be_the_folder_of_a_run(work, out_dir):
    configurator.check_out_dir(out_dir.format(home=work))


# ---------------------------------------------------------------------------- numbers and long arguments

@pytest.mark.parametrize('arg, expected', [
    ('--warmup_iters=' + '9' * 400, 'expected int up to 2^64, found <int of'),
    ('--block_size=-1' + '0' * 400, 'expected int up to 2^64, found <int of'),
    ('--max_iters=1e300', 'expected int up to 2^64, found 1e+300'),
    ('--max_iters=18446744073709551616', 'max_iters=18446744073709551616: expected between 0 and 9007199254740992'),
    ('--batch_size=9007199254740993', 'expected between 1 and 9007199254740992'),
    ('--top_k=9007199254740993', 'expected between 0 and 9007199254740992'),
    ('--max_iters=2**64', "expected int, found '2**64'"),
    ('--' + 'x' * 9999 + '=1', 'unknown key'),
    ('-' + 'x' * 9999, 'expected --key=value'),
    ('x\x1b]0;title\a', 'no such config file'),
    (r'--max_iters="\d"', 'expected int'),            # Python would warn of the escape
])
def test_what_nothing_can_be_is_one_short_line(arg, expected, capsys, recwarn):
    message = failure(capsys, arg)
    assert not recwarn.list
    assert expected in message
    assert message.isprintable()
    assert len(message) < 300


def test_the_largest_numbers_are_accepted():
    """Negative control."""
    train.check(load('--seed=9223372036854775808', '--max_iters=9007199254740992'))
    assert load('--top_k=9007199254740992', cls=SampleConfig).top_k == 2 ** 53


# ---------------------------------------------------------------------------- files

@pytest.mark.parametrize('make, expected', [
    (lambda: os.mkfifo('a.py'), 'a.py: a pipe; expected a file'),
    (lambda: os.symlink('/dev/zero', 'a.py'), 'a.py: a device; expected a file'),
    (lambda: os.symlink('nowhere', 'a.py'), 'a.py: No such file or directory; expected a file'),
], ids=['pipe', 'device', 'broken link'])
def test_what_is_no_file_ends_at_once(make, expected, capsys):
    make()
    start = time.monotonic()
    assert failure(capsys, 'a.py', '--log_interval=1') == expected
    assert time.monotonic() - start < 5


@pytest.mark.parametrize('content, expected', [
    ('max_iters = -0.5', 'max_iters=-1: expected '),
    ('max_iters = 2 ** 60', 'max_iters=1152921504606846976: expected between 0 and'),
    ('raise GeneratorExit', 'a.py:1: GeneratorExit:'),
    ('\nreturn', "a.py:2: 'return' outside function: "),
    (r'raise ValueError("\x1b]0;title\a")', r'a.py:1: ValueError: \x1b]0;title\x07'),
    ('n_layer = [[[[[[[[1]]]]]]]]', 'a.py: n_layer: expected int, found [['),
])
def test_files_that_end_oddly(content, expected, capsys):
    write('a.py', content)
    message = failure(capsys, 'a.py', '--log_interval=1')
    assert message.startswith(expected)
    assert message.isprintable()


WEIRD = r'''
class Weird:
    def __repr__(self):
        raise RuntimeError("no repr")

    __str__ = __bool__ = __eq__ = __hash__ = __fspath__ = __repr__

    @property
    def __class__(self):
        raise RuntimeError("no class")

helper = Weird()
globals()[3] = globals()["\x1b[31m"] = 4
'''


def test_objects_that_cannot_be_shown(capsys):
    write('weird.py', WEIRD)
    assert repr(load('weird.py', 'weird.py')) == repr(TrainConfig())

    write('a.py', f'{WEIRD}\nout_dir = helper')
    assert failure(capsys, 'a.py', '--log_interval=1') == 'a.py: out_dir: expected str, found <Weird>'


def test_ctrl_c_in_a_config_file(capsys):
    write('a.py', 'raise KeyboardInterrupt')
    with pytest.raises(SystemExit) as stop:
        configurator.launch(train.check, TrainConfig, ['a.py'])
    assert stop.value.code == 130
    assert capsys.readouterr().err == 'interrupted\n'


def test_explain_finds_the_setting_in_a_text_about_several():
    write('a.py', 'n_kv_head = 5')
    cfg = load('a.py')
    text = 'n_head=12, n_kv_head=5: expected n_head to be a multiple of n_kv_head'
    reason = 'n_kv_head is a setting of this train.py, which nanoGPT does not have'
    assert configurator.explain(cfg, text) == f'{text}; {reason}'
    assert configurator.explain(load(), text) == text
    assert configurator.explain(load('a.py', '--n_kv_head=5'), text) == text


def test_a_misspelled_setting_is_not_a_fork(capsys):
    write('a.py', 'cooldwon = 0.5\npos = "rotary"')
    load('a.py')
    err = capsys.readouterr().err
    assert err == 'warning: a.py: cooldwon is not a setting of this script; did you mean cooldown?\n'


def test_the_settings_of_nanogpt_are_all_here():
    """None is misspelled, and none is ours."""
    assert configurator.NANOGPT_KEYS <= {*vars(TrainConfig()), *vars(SampleConfig())}
    assert len(configurator.NANOGPT_KEYS) == 39
    assert not configurator.NANOGPT_KEYS & {'pos', 'norm', 'mlp', 'lr_schedule', 'optimizer', 'data_order', 'top_p'}
