"""A checkpoint is written completely or not at all, and read back unchanged or not at all."""

import errno
import json
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import sha256_of

from gradus import checkpoint
from gradus.errors import UserError
from gradus.log import Log

STATE = dict(model={'w': torch.arange(1000.).reshape(20, 50)}, model_args=dict(n_layer=3), iter_num=7, note='ü')


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def assert_refused(path, match):
    """Loading `path` fails with an error of one line that matches."""
    with pytest.raises(UserError, match=match) as e:
        checkpoint.load(path)
    assert '\n' not in str(e.value)


# ---------------------------------------------------------------------------- saving

def test_round_trip_and_the_one_before():
    checkpoint.save('c.pt', STATE)
    checkpoint.save('c.pt', {**STATE, 'iter_num': 8})

    assert sha256_of(checkpoint.load('c.pt')) == sha256_of({**STATE, 'iter_num': 8})
    assert checkpoint.load('c.pt.prev')['iter_num'] == 7
    assert sorted(os.listdir()) == ['c.pt', 'c.pt.prev']


@pytest.mark.parametrize('fails_at', ['save', 'replace'])
def test_an_interrupted_save_leaves_the_old_file(monkeypatch, fails_at):
    checkpoint.save('c.pt', STATE)
    before = Path('c.pt').read_bytes()
    real_save = torch.save

    def failing_save(state, f):
        if not hasattr(f, 'name'):                    # not a file: save() only counts the bytes for its message
            return real_save(state, f)
        f.write(b'half a fi')
        raise OSError('disk full')

    def failing_sync(descriptor):
        raise OSError('disk full')

    if fails_at == 'save':
        monkeypatch.setattr(torch, 'save', failing_save)
    else:
        monkeypatch.setattr(os, 'fsync', failing_sync)

    with pytest.raises(UserError, match='c.pt: could not be written .disk full.; it needs '):
        checkpoint.save('c.pt', {**STATE, 'iter_num': 8})
    assert Path('c.pt').read_bytes() == before
    assert os.listdir() == ['c.pt']


def test_a_kill_between_the_two_renames_loses_nothing():
    checkpoint.save('c.pt', STATE)
    os.replace('c.pt', 'c.pt.prev')
    assert checkpoint.load('c.pt')['iter_num'] == 7


# ---------------------------------------------------------------------------- damaged files

def damage(path, how):
    """
    Flip a bit in the middle ('flip') or shorten the file: by its last byte ('end'), to a number of bytes,
    or to a fraction of its length (-2 is half).
    """
    content = bytearray(Path(path).read_bytes())
    if how == 'flip':
        content[len(content) // 2] ^= 1
    elif how == 'end':
        content = content[:-1]
    elif how >= 0:
        content = content[:how]
    else:
        content = content[:len(content) // -how]
    Path(path).write_bytes(content)


@pytest.mark.parametrize('how', [0, 1, 100, -2, 5000, 'end', 'flip'])
def test_a_damaged_file_is_noticed_and_the_one_before_used(how, capsys):
    checkpoint.save('c.pt', STATE)
    checkpoint.save('c.pt', {**STATE, 'iter_num': 8})

    damage('c.pt', how)
    assert checkpoint.load('c.pt')['iter_num'] == 7
    assert 'c.pt: damaged' in capsys.readouterr().err
    assert sorted(os.listdir()) == ['c.pt', 'c.pt.prev']

    damage('c.pt.prev', how)
    assert_refused('c.pt', match='c.pt.prev: damaged')


@pytest.mark.parametrize('number', [errno.EACCES, errno.EIO, errno.ESTALE])
@pytest.mark.parametrize('at', ['open', 'read'])
def test_a_file_that_cannot_be_read_is_not_damaged(monkeypatch, number, at):
    """It stays where it is, and nothing older is used in its place."""
    checkpoint.save('c.pt', STATE)
    checkpoint.save('c.pt', {**STATE, 'iter_num': 8})

    def failing(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        if at == 'open':
            patch.setattr('builtins.open', failing)
        else:
            patch.setattr(zipfile.ZipFile, 'testzip', failing)
        with pytest.raises(UserError, match=f'^c.pt: cannot be read .{os.strerror(number)}'):
            checkpoint.load('c.pt', repair=True)
    assert sorted(os.listdir()) == ['c.pt', 'c.pt.prev']
    assert checkpoint.load('c.pt')['iter_num'] == 8


def test_a_file_that_is_refused_is_not_damaged():
    checkpoint.save('c.pt', STATE)
    checkpoint.save('c.pt', {**STATE, 'iter_num': 'eight'})
    with pytest.raises(UserError, match='c.pt: iter_num is .eight.'):
        checkpoint.load('c.pt', repair=True)
    assert sorted(os.listdir()) == ['c.pt', 'c.pt.prev']


@pytest.mark.skipif(os.name == 'nt', reason='links need rights there')
def test_a_link_to_a_disk_that_is_not_mounted_is_no_empty_folder():
    os.symlink('disk/c.pt', 'c.pt')
    assert checkpoint.exists('c.pt')
    with pytest.raises(UserError, match='c.pt: a link to disk/c.pt, which is not there; is its disk mounted'):
        checkpoint.load('c.pt')
    os.makedirs('disk')
    checkpoint.save('disk/c.pt', STATE)
    assert checkpoint.load('c.pt')['iter_num'] == 7


def test_torch_alone_does_not_notice_a_flipped_bit():
    """Negative control: it is the checksum that finds it."""
    torch.save(STATE, 'c.pt')
    damage('c.pt', 'flip')
    assert sha256_of(torch.load('c.pt', weights_only=True)) != sha256_of(STATE)


def test_repair_keeps_the_good_one(capsys):
    """Otherwise the next save would turn the damaged file into the previous one, and a crash then would lose both."""
    for n in (7, 8):
        checkpoint.save('c.pt', {**STATE, 'iter_num': n})
    damage('c.pt', 'flip')

    assert checkpoint.load('c.pt', repair=True)['iter_num'] == 7
    assert sorted(os.listdir()) == ['c.pt.damaged', 'c.pt.prev']

    checkpoint.save('c.pt', {**STATE, 'iter_num': 9})
    assert checkpoint.load('c.pt')['iter_num'] == 9
    assert checkpoint.load('c.pt.prev')['iter_num'] == 7


# ---------------------------------------------------------------------------- hostile and foreign files

class Hostile:
    def __reduce__(self):
        return os.system, ('touch was_here',)


class HostileToo:
    def __reduce__(self):
        return eval, ('open("was_here", "w").close()',)


@pytest.mark.parametrize('state', [
    {**STATE, 'extra': Hostile()},
    {**STATE, 'iter_num': HostileToo()},
    Hostile(),
    HostileToo(),
    [1, 2],
    {},
    {'model': [], 'model_args': {}},
    {'model': {'w': 'text'}, 'model_args': {}},
    {'model': {}, 'model_args': 3},
])
def test_anything_but_a_checkpoint_is_refused_in_one_line(state):
    torch.save(state, 'c.pt')
    assert_refused('c.pt', match='c.pt: (.w. is .text.; |refused, |)')
    assert not os.path.exists('was_here')


def test_a_plain_pickle_is_refused():
    Path('c.pt').write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(UserError, match='not a PyTorch checkpoint'):
        checkpoint.load('c.pt')
    assert not os.path.exists('was_here')


@pytest.mark.filterwarnings('ignore:.torch.jit:DeprecationWarning')
def test_a_torchscript_archive_is_refused():
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), 'c.pt')
    assert_refused('c.pt', match='c.pt: ')


def test_a_file_larger_when_unpacked_is_refused():
    torch.save({**STATE, 'model': {'w': torch.zeros(10 ** 6)}}, 'plain.pt')
    with zipfile.ZipFile('plain.pt') as plain, zipfile.ZipFile('c.pt', 'w', zipfile.ZIP_DEFLATED) as bomb:
        for name in plain.namelist():
            bomb.writestr(name, plain.read(name))

    assert os.path.getsize('c.pt') < 40_000
    with pytest.raises(UserError, match='c.pt: refused, its contents would be larger than the file'):
        checkpoint.load('c.pt')


@pytest.mark.parametrize('key, value', [
    ('iter_num', -1),
    ('iter_num', 1.5),
    ('iter_num', True),
    ('iter_num', '7'),
    ('iter_num', 2 ** 60),
    ('config', [1]),
    ('best_val_loss', 'low'),
    ('optimizer', 3),
    ('tokenizer', 'char'),
    ('machine', []),
    ('evaluated', 1),
    ('elapsed_s', 'long'),
    ('scaler', 0),
])
def test_values_of_the_wrong_type_are_refused(key, value):
    torch.save({**STATE, key: value}, 'c.pt')
    assert_refused('c.pt', match=f'c.pt: .*{key}')


def test_a_tensor_as_best_val_loss_is_accepted():
    """nanoGPT writes one."""
    torch.save({**STATE, 'best_val_loss': torch.tensor(1.5)}, 'c.pt')
    assert checkpoint.load('c.pt')['best_val_loss'] == 1.5


def test_prefixes_and_masks_of_other_programs_are_dropped():
    model = {
        'module._orig_mod.a.weight': torch.ones(1),
        '_orig_mod.h.0.attn.bias': torch.ones(1),
        'b.c_attn.bias': torch.ones(1),
    }
    torch.save(dict(model=model, model_args={}), 'c.pt')
    assert list(checkpoint.load('c.pt')['model']) == ['a.weight', 'b.c_attn.bias']


# ---------------------------------------------------------------------------- which file, and the log beside it

def test_a_missing_checkpoint_names_the_runs_that_are_there():
    os.mkdir('out-mine')
    checkpoint.save('out-mine/ckpt.pt', STATE)
    with pytest.raises(UserError, match=r'out/ckpt.pt: not found; .*out-mine'):
        checkpoint.load('out/ckpt.pt')


def test_the_best_is_found_first_even_between_two_renames():
    checkpoint.save('ckpt.pt', STATE)
    assert checkpoint.find('.') == os.path.join('.', 'ckpt.pt')
    assert checkpoint.find('', 'third.pt') == 'third.pt'

    checkpoint.save('best.pt', STATE)
    os.replace('best.pt', 'best.pt.prev')
    assert checkpoint.find('') == 'best.pt'
    assert checkpoint.find('', 'ckpt.pt') == 'ckpt.pt'


def test_the_log_is_cut_to_where_the_run_resumes():
    lines = [
        dict(iter=0, val_loss=1.0),
        dict(iter=0, loss=1.0),
        dict(iter=1, loss=0.9),
        dict(iter=2, val_loss=0.8),
        dict(iter=2, loss=0.8),
        dict(iter=3, loss=0.7),
    ]
    path = Path('log.jsonl')
    path.write_text(''.join(json.dumps(r) + '\n' for r in lines) + '{"iter": 4, "lo')

    # iteration 2 was evaluated already: its evaluation stays
    Log('.', 2, evaluated=True).close()
    assert [json.loads(s) for s in path.read_text().splitlines()] == lines[:4]
    assert os.listdir() == ['log.jsonl']

    # it was not: it will be evaluated again
    log = Log('.', 2, evaluated=False)
    log.write(iter=2, loss=0.5)
    log.close()
    assert [json.loads(s) for s in path.read_text().splitlines()] == [*lines[:3], dict(iter=2, loss=0.5)]
