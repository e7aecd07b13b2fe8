"""A checkpoint that lies: it cannot corrupt memory, exhaust it, hang, run code, or command the terminal."""

import os
import sys
import time

import numpy as np
import pytest
import torch
from conftest import flags_of, limited, run_main, run_script, settings, sha256_of

import mlp_mnist
import sample
import train
from gradus import checkpoint, optim
from gradus.errors import UserError
from model import GPT, MLP, GPTConfig

STATE = dict(model={'w': torch.arange(1000.).reshape(20, 50)}, model_args=dict(n_layer=3), iter_num=7)


def load(**changes):
    """STATE with some changes, saved and loaded."""
    torch.save({**STATE, **changes}, 'c.pt')
    return checkpoint.load('c.pt')


def refused(match, **changes):
    with pytest.raises(UserError, match=match) as e:
        load(**changes)
    assert str(e.value).isprintable()
    assert len(str(e.value)) < 500


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# ---------------------------------------------------------------------------- moments

SHAPE = (8, 6)
MOMENTS = [
    ('exp_avg', torch.zeros(1).expand(SHAPE), 'stride 0'),
    ('exp_avg_sq', torch.zeros(()), 'no dimensions'),
    ('exp_avg', torch.zeros(6, 8), 'another shape'),
    ('exp_avg', torch.zeros(SHAPE, dtype=torch.int64), 'integers'),
    ('exp_avg', torch.zeros(SHAPE, dtype=torch.complex64), 'complex'),
    ('exp_avg', torch.zeros(SHAPE).to_sparse(), 'sparse'),
    ('exp_avg', torch.zeros(SHAPE, device='meta'), 'meta'),
    ('exp_avg', torch.full(SHAPE, float('nan')), 'not finite'),
    ('exp_avg', torch.zeros(SHAPE).to(torch.float8_e4m3fn), 'float8'),
    ('exp_avg', 'text', 'text'),
    ('exp_avg', [0.0] * 48, 'list'),
    ('exp_avg', None, 'None'),
    ('step', float('nan'), 'NaN'),
    ('step', -1, 'negative'),
    ('step', 'one', 'text'),
    ('step', torch.zeros(2), 'two'),
    ('step', torch.tensor(1j), 'complex step'),
    ('step', True, 'bool'),
    ('step', 10 ** 5000, 'huge'),
]


def stepped(seed=0):
    """A weight matrix and a bias after one step of AdamW."""
    torch.manual_seed(seed)
    layer = torch.nn.Linear(6, 8)
    optimizer = optim.build(layer, 'adamw', 0.1, 1e-2, (0.9, 0.99))
    layer(torch.randn(4, 6)).square().sum().backward()
    optimizer.step()
    return layer, optimizer


@pytest.mark.parametrize('name, value, why', MOMENTS, ids=[f'{name}-{why}' for name, _, why in MOMENTS])
def test_a_moment_that_is_none_is_refused(name, value, why):
    """By load_state itself; checkpoint.load refuses some of them before."""
    layer, optimizer = stepped()
    state = optimizer.state_dict()
    state['state'][0][name] = value
    if why == 'stride 0':                             # is copied: what it says is true of the copy
        optim.load_state(optimizer, dict(optimizer=state), 'c.pt')
        assert optimizer.state_dict()['state'][0]['exp_avg'].untyped_storage().nbytes() == 48 * 4
        return
    with pytest.raises(UserError, match=f'^c.pt: no optimizer state to resume from .*{name}') as e:
        optim.load_state(optimizer, dict(optimizer=state), 'c.pt')
    assert len(str(e.value)) < 300


@pytest.mark.parametrize('broken', [
    lambda state: state['state'].pop(1),
    lambda state: state['state'][0].pop('exp_avg'),
    lambda state: state.pop('param_groups'),
    lambda state: state.update(state=[1, 2]),
    lambda state: state.update(param_groups=3),
    lambda state: state['param_groups'][0].update(params='ab'),
    lambda state: state.update(param_groups=[{'params': [0]}]),
], ids=['one parameter', 'one moment', 'groups', 'list', 'number', 'text', 'group'])
def test_moments_of_some_parameters_only_are_refused(broken):
    _, optimizer = stepped()
    state = optimizer.state_dict()
    broken(state)
    with pytest.raises(UserError, match='^c.pt: no optimizer state to resume from'):
        optim.load_state(optimizer, dict(optimizer=state), 'c.pt')


def test_moments_keep_their_values_whatever_their_strides():
    """The fused kernel walks through memory; strides of another order would pair the wrong numbers."""
    layer, optimizer = stepped()
    state = optimizer.state_dict()
    expected = sha256_of(state['state'])
    for moment in ('exp_avg', 'exp_avg_sq'):
        values = state['state'][0][moment]
        state['state'][0][moment] = values.t().contiguous().t()
        assert not state['state'][0][moment].is_contiguous()

    optim.load_state(optimizer, dict(optimizer=state), 'c.pt')
    assert sha256_of(optimizer.state_dict()['state']) == expected
    assert optimizer.state_dict()['state'][0]['exp_avg'].is_contiguous()


def test_moments_that_share_memory_are_separated():
    _, optimizer = stepped()
    state = optimizer.state_dict()
    state['state'][0]['exp_avg_sq'] = state['state'][0]['exp_avg']
    optim.load_state(optimizer, dict(optimizer=state), 'c.pt')
    moments = optimizer.state_dict()['state'][0]
    assert moments['exp_avg'].data_ptr() != moments['exp_avg_sq'].data_ptr()


@pytest.mark.parametrize('scaler', [{'scale': 'big'}, {'scale': float('nan')}, {}, {'scale': -1.0}, {1: 2}])
def test_a_hostile_loss_scaler(scaler):
    class OnCuda:
        """What torch.amp.GradScaler has on a GPU."""
        state = dict(scale=65536.0, growth_factor=2.0, backoff_factor=0.5, growth_interval=2000, _growth_tracker=0)

        def state_dict(self):
            return self.state

        def load_state_dict(self, state):
            self.state = state

    _, optimizer = stepped()
    own = OnCuda()
    given = dict(optimizer=optimizer.state_dict(), scaler=scaler)
    if scaler:
        with pytest.raises(UserError, match='^c.pt: no optimizer state'):
            optim.load_state(optimizer, given, 'c.pt', own)
    given['scaler'] = {**OnCuda.state, 'scale': 2.0}
    optim.load_state(optimizer, given, 'c.pt', own)
    assert own.state == {**OnCuda.state, 'scale': 2.0}


def hostile_moments(state):
    """The moments of every parameter claim memory that is not there."""
    for values in state['optimizer']['state'].values():
        for name in ('exp_avg', 'exp_avg_sq'):
            values[name] = torch.zeros(1).expand(values[name].shape)
    return state


def test_a_resumed_gpt_survives_them(place):
    """In a process of its own: they crashed it."""
    train.main(settings(max_iters=2))
    torch.save(hostile_moments(torch.load('out/ckpt.pt')), 'out/ckpt.pt')
    ran = run_script('train.py', *flags_of(max_iters=30, init_from='resume'))
    assert ran.returncode == 2
    assert 'out/ckpt.pt: ' in ran.stderr.splitlines()[-1]
    assert 'claims' in ran.stderr


def test_a_resumed_digit_network_survives_them(digits_place):
    flags = ['--n_train=200', '--sizes=784-30-10', '--mini_batch_size=20']
    ran = run_main(mlp_mnist, *flags, '--epochs=1')
    assert ran.returncode == 0, ran.stderr
    torch.save(hostile_moments(torch.load('out-mnist/ckpt.pt')), 'out-mnist/ckpt.pt')
    ran = run_script('mlp_mnist.py', *flags, '--epochs=2', '--init_from=resume')
    assert ran.returncode == 2
    assert 'claims' in ran.stderr


# ---------------------------------------------------------------------------- memory

def test_a_tensor_may_not_claim_more_than_the_file_holds():
    wide = torch.zeros(1).expand(2 ** 15, 2 ** 16)
    refused("'w' claims 8,589,934,592 bytes, more than the file holds", model={'w': wide})
    refused('its tensors claim', model={f'w{n}': STATE['model']['w'] for n in range(1000)})
    tied = load(model={'a': STATE['model']['w'], 'b': STATE['model']['w']})      # negative control
    assert torch.equal(tied['model']['b'], STATE['model']['w'])


@pytest.mark.skipif(sys.platform != 'linux', reason='needs resource limits')
def test_the_claim_is_checked_before_memory_is_used():
    config = GPTConfig(block_size=8, vocab_size=11, n_layer=1, n_head=1, n_embd=8)
    weights = GPT(config).state_dict()
    wide = {name: torch.zeros(1).expand(2 ** 14, 2 ** 15) for name in weights}
    torch.save(dict(model=wide, model_args=checkpoint.model_args(config)), 'c.pt')
    with limited('RLIMIT_AS', 16 * 2 ** 30), pytest.raises(UserError, match='claims'):
        checkpoint.load('c.pt')


@pytest.mark.parametrize('weights', [
    {'w': torch.zeros(3, dtype=torch.int8)},
    {'w': torch.zeros(3, dtype=torch.bool)},
    {'w': torch.zeros(3, dtype=torch.complex64)},
    {'w': torch.zeros(3).to(torch.float8_e4m3fn)},
    {'w': torch.zeros(3).to_sparse()},
    {'w': torch.zeros(3, device='meta')},
    {'w': torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8)},
    {3: torch.zeros(3)},
    {'w': None},
    {'a.w': torch.zeros(3), 'module.a.w': torch.ones(3)},
])
def test_only_ordinary_floating_weights_are_taken(weights):
    refused('c.pt: ', model=weights)


# ---------------------------------------------------------------------------- values

def shared(levels=40):
    value = (1, 2)
    for _ in range(levels):
        value = (value, value)
    return value


@pytest.mark.parametrize('key', checkpoint.KINDS)
@pytest.mark.parametrize('inside', [False, True])
def test_values_of_two_to_the_forty_parts_do_not_hang(key, inside):
    """54 kB of tuples that share their halves: whoever prints or compares them never ends."""
    began = time.perf_counter()
    value = {'kind': shared(), 'n_layer': shared()} if inside else shared()
    if inside and key in ('config', 'scaler', 'optimizer'):       # config: left out; the others: checked on resume
        state = load(**{key: value})
        assert key != 'config' or state['config'] == {}
    else:
        refused(f'c.pt: .*{key}', **{key: value})
    assert time.perf_counter() - began < 20           # not a measurement: it would take weeks


def test_control_characters_do_not_reach_the_terminal():
    refused('c.pt: ', model={'\x1b]0;owned\x07': 'text'})
    refused('c.pt: ', model_args={'\x1b[2J': [[]]})
    refused('c.pt: ', tokenizer={'kind': {'\x1b[2J'}})


def test_numbers_of_numpy_and_torch_are_numbers():
    state = load(iter_num=np.int64(5), best_val_loss=np.float32(1.5), elapsed_s=torch.tensor(2.5),
                 model_args={'n_layer': np.int64(3), 'bias': np.bool_(True), 'mlp': np.str_('gelu')})
    assert state['iter_num'] == 5 and type(state['iter_num']) is int
    assert state['best_val_loss'] == 1.5 and type(state['best_val_loss']) is float
    assert state['elapsed_s'] == 2.5
    assert state['model_args'] == dict(n_layer=3, bias=True, mlp='gelu')
    assert type(state['model_args']['n_layer']) is int


def test_what_only_a_resumed_run_needs():
    """A model can be sampled from without it, and a run cannot be resumed."""
    state = load(optimizer=None, best_val_loss=float('nan'))
    assert 'optimizer' not in state
    with pytest.raises(UserError, match='c.pt: best_val_loss is nan'):
        checkpoint.load_run('c.pt')
    load(optimizer=None)
    assert checkpoint.load_run('c.pt')['iter_num'] == 7


class Thing:
    pass


@pytest.mark.parametrize('value, named', [
    (Thing(), r'test_hostile\.Thing'),
    (os.system, r'posix\.system|nt\.system'),
    (np.zeros(3), r'numpy\S*_reconstruct'),
    (torch.nn.Linear(1, 1), r'torch\.nn\.modules\.linear\.Linear'),
])
def test_the_class_that_is_refused_is_named(value, named):
    refused(f'c.pt: refused, it holds more than tensors and plain values: ({named})$', extra=value)


# ---------------------------------------------------------------------------- what was written elsewhere

def test_files_of_the_time_before_zip_archives():
    torch.save(STATE, 'old.pt', _use_new_zipfile_serialization=False)
    assert sha256_of(checkpoint.load('old.pt')) == sha256_of(STATE)
    with open('old.pt', 'rb') as f:
        content = f.read()
    for length in (30, len(content) // 2, len(content) - 1):
        with open('short.pt', 'wb') as f:
            f.write(content[:length])
        with pytest.raises(UserError, match='short.pt: '):
            checkpoint.load('short.pt')


@pytest.mark.parametrize('prefix', ['module.', '_orig_mod.', '_orig_mod.module.', 'module._orig_mod.module.', ''])
def test_prefixes_in_any_order_and_depth(prefix):
    names = ('transformer.h.0._orig_mod.mlp.w', 'transformer.h.0.attn.bias')
    weights = {prefix + name: torch.ones(3) for name in names}
    assert list(load(model=weights)['model']) == ['transformer.h.0.mlp.w']


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='needs pipes')
@pytest.mark.parametrize('kind', ['pipe', 'folder', 'device'])
def test_what_is_no_file_is_refused_at_once(place, kind):
    os.makedirs('out')
    if kind == 'pipe':
        os.mkfifo('out/ckpt.pt')
    elif kind == 'folder':
        os.makedirs('out/ckpt.pt')
    else:
        os.symlink('/dev/zero', 'out/ckpt.pt')
    for script, flags in ((train, flags_of(init_from='resume')), (sample, ['--out_dir=out'])):
        ran = run_main(script, *flags)
        assert ran.returncode == 2
        assert f'error: out/ckpt.pt: a {kind}; expected a file' in ran.stderr


def test_a_digit_network_with_nan_says_so(digits_place):
    args = dict(sizes=[784, 30, 10])
    model = MLP(**args)
    model.layers[0].weight.data[0, 0] = float('nan')
    os.makedirs('out-mnist')
    torch.save(dict(model=model.state_dict(), model_args=args), 'out-mnist/ckpt.pt')
    with pytest.raises(UserError, match='out-mnist/ckpt.pt: a weight is not finite'):
        mlp_mnist.main(mlp_mnist.MnistConfig(predict='test:1', device='cpu'))
