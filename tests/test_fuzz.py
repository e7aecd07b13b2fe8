"""Random settings, files and prompts: a one-line error or success, never a traceback, never a partial write."""

import json
import os
import shutil
import sys

import numpy as np
import pytest
import torch

hypothesis = pytest.importorskip('hypothesis', reason='pip install hypothesis')
from conftest import flags_of, settings, snapshot
from hypothesis import HealthCheck, given
from hypothesis import settings as limits
from hypothesis import strategies as st

import sample
import train
from gradus import checkpoint, configurator, data, gguf_file, hf, metadata, pretrained, tokenizer_files
from gradus.errors import UserError
from gradus.tokenizer import build_tokenizer
from model import GPT, GPTConfig

FEW = limits(max_examples=40, deadline=None, database=None, suppress_health_check=list(HealthCheck))
MANY = limits(FEW, max_examples=100)
KEYS = sorted(vars(settings()))
WORDS = [
    'auto', 'cpu', 'scratch', 'resume', 'rotary', 'swiglu', 'linear', 'babble',
    '1e400', '-0.0', 'nan', '1_000', '0x10', '[1]', '\0', 'ü', '../..', '',
]
VALUES = st.one_of(
    st.integers(-2, 2 ** 70),
    st.floats(),
    st.booleans(),
    st.none(),
    st.text(max_size=8),
    st.sampled_from(WORDS),
)


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def outcome(main, cls, argv):
    """0 for success, 2 for a one-line error. Any exception gets through and fails the test."""
    try:
        configurator.launch(main, cls, argv)
    except SystemExit as e:
        return e.code or 0
    return 0


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(place):
    """A folder with a run of two iterations in `out`."""
    train.main(settings(max_iters=2, lr_decay_iters=2, warmup_iters=0, n_layer=1, eval_iters=1))
    return place


# ---------------------------------------------------------------------------- settings

@FEW
@given(st.lists(st.tuples(st.sampled_from(KEYS), VALUES), min_size=1, max_size=4))
def test_settings_are_used_or_refused(changes):
    """On the command line and in a config file. Settings that pass `check` describe a model that can be built."""
    def check(cfg):
        train.check(cfg)
        assert pretrained.config_of(cfg, 10).n_layer == cfg.n_layer

    argv = [f'--{key}={value}' for key, value in changes]
    assert outcome(check, train.TrainConfig, argv) in (0, 2)

    assignments = [f'{key} = {value!r}' for key, value in changes]
    with open('fuzz.py', 'w', encoding='utf-8') as f:
        f.write('\n'.join(['nan, inf = math.nan, math.inf', *assignments]))
    assert outcome(check, train.TrainConfig, ['fuzz.py']) in (0, 2)


ANY_TEXT = st.text(max_size=100).map(lambda s: s.encode('utf-8', 'surrogatepass'))


@FEW
@given(st.one_of(st.binary(max_size=200), ANY_TEXT))
def test_any_bytes_as_a_config_file(content):
    with open('fuzz.py', 'wb') as f:
        f.write(content)
    try:
        compile(content, 'fuzz.py', 'exec')
    except (SyntaxError, ValueError):
        assert outcome(train.check, train.TrainConfig, ['fuzz.py']) == 2


# ---------------------------------------------------------------------------- files

@FEW
@given(st.data())
def test_damaged_checkpoints_are_refused_or_right(run, draws):
    """A cut file, or one with some bytes changed, is refused, unless it still holds the right state."""
    with open('out/ckpt.pt', 'rb') as f:
        whole = f.read()
    content = bytearray(whole)
    if draws.draw(st.booleans(), 'cut'):
        content = content[:draws.draw(st.integers(0, len(whole)), 'length')]
    for _ in range(draws.draw(st.integers(0, 3), 'changed bytes')):
        if content:
            content[draws.draw(st.integers(0, len(content) - 1))] = draws.draw(st.integers(0, 255))
    os.makedirs('fuzz', exist_ok=True)
    with open('fuzz/ckpt.pt', 'wb') as f:
        f.write(content)

    try:
        state = checkpoint.load('fuzz/ckpt.pt')
    except UserError as e:
        assert '\n' not in str(e)
        return
    good = checkpoint.load('out/ckpt.pt')
    assert all((state['model'][name] == tensor).all() for name, tensor in good['model'].items())
    assert state['iter_num'] == good['iter_num']


ALMOST_A_TOKENIZER = st.fixed_dictionaries(dict(
    kind=st.sampled_from(['char', 'byte', 'gpt2', 'bpe', 3]),
    chars=ANY_JSON,
))
ALMOST_A_META = st.fixed_dictionaries(dict(
    vocab_size=ANY_JSON,
    dtype=st.sampled_from(['uint16', 'uint32', 'float64', 7]),
    tokenizer=ANY_JSON | ALMOST_A_TOKENIZER,
))


def as_file(value):
    return json.dumps(value).encode()


def shared(levels=40):
    """A tuple of 2 ** levels parts in a few kilobytes."""
    value = (1, 2)
    for _ in range(levels):
        value = (value, value)
    return value


# What a checkpoint may hold where something else is expected.
MALFORMED = st.one_of(
    VALUES,
    ANY_JSON,
    st.binary(max_size=8),
    st.builds(shared),
    st.sampled_from([10 ** 5000, -10 ** 30, 2 ** 63, 1e308, 'x' * 10 ** 6, '\x1b[2J', {1: 2}, {(1, 2): 3}, 1j, {1, 2}]),
    st.sampled_from([np.float64(1.5), np.int64(-1), np.bool_(True), np.str_('gelu')]),
    st.sampled_from(['float32', 'float16', 'int64', 'int8', 'bool', 'complex64']).flatmap(
        lambda dtype: st.sampled_from([(), (1,), (0,), (2, 3), (32, 32), (10, 32)]).map(
            lambda shape: torch.ones(shape, dtype=getattr(torch, dtype)))),
    st.builds(lambda: torch.zeros(1).expand(10, 32)),
    st.builds(lambda: torch.zeros(10, 32).to_sparse()),
    st.builds(lambda: torch.zeros(10, 32, device='meta')),
    st.builds(lambda: torch.full((10, 32), float('nan'))),
)


def paths(value, so_far=()):
    """The path to every value inside nested dictionaries and lists: a tuple of keys."""
    inside = {}
    if isinstance(value, dict):
        inside = value
    elif isinstance(value, list):
        inside = dict(enumerate(value))
    for key, part in inside.items():
        yield (*so_far, key)
        yield from paths(part, (*so_far, key))


def changed(value, path, new):
    """A copy of nested dictionaries and lists with the value `new` at `path`; DELETE takes it out."""
    copy = value.copy()
    key, *rest = path
    if rest:
        copy[key] = changed(value[key], rest, new)
    elif new is DELETE:
        del copy[key]
    else:
        copy[key] = new
    return copy


DELETE = object()
SAMPLE_FROM_FUZZ = ['--out_dir=fuzz', '--device=cpu', '--num_samples=1', '--max_new_tokens=2']
RESUME_FUZZ = flags_of(out_dir='fuzz', init_from='resume', max_iters=3, n_layer=1, eval_iters=1, warmup_iters=0)


@MANY
@given(st.data())
def test_any_value_anywhere_in_a_checkpoint(run, draws):
    """Sampling from it and resuming it work, or end in one line."""
    state = torch.load('out/ckpt.pt')
    for _ in range(draws.draw(st.integers(1, 2))):
        path = draws.draw(st.sampled_from(sorted(paths(state), key=str)), 'path')
        state = changed(state, path, draws.draw(st.just(DELETE) | MALFORMED, 'value'))
    shutil.rmtree('fuzz', ignore_errors=True)
    os.makedirs('fuzz')
    torch.save(state, 'fuzz/ckpt.pt')

    assert outcome(sample.main, sample.SampleConfig, SAMPLE_FROM_FUZZ) in (0, 2)
    assert outcome(train.main, train.TrainConfig, RESUME_FUZZ) in (0, 2)


JSON_VALUES = st.one_of(
    ANY_JSON,
    st.sampled_from([10 ** 4000, -1, 0, 2 ** 31, 2 ** 63, 1e308, 'gpt2', 'x' * 10 ** 5, '\x1b[2J', '12', {}, []]),
)


def write_changed(path, value, draws):
    """Write `value` as JSON to `path`, with one or two of its parts replaced or left out."""
    for _ in range(draws.draw(st.integers(1, 2))):
        places = sorted(paths(value), key=str)
        if places:
            new = draws.draw(st.just(DELETE) | JSON_VALUES, 'value')
            value = changed(value, draws.draw(st.sampled_from(places), 'path'), new)
    limit = getattr(sys, 'set_int_max_str_digits', lambda n: None)
    limit(0)                                          # to write them; they are read with the usual limit
    with open(path, 'w', encoding='utf-8') as f:
        json.dump(value, f)
    limit(4300)


@FEW
@given(st.data())
def test_any_value_anywhere_in_meta_json(run, draws):
    with open('data/babble/meta.json', encoding='utf-8') as f:
        good = f.read()
    write_changed('data/babble/meta.json', json.loads(good), draws)
    before = snapshot('.')
    try:
        flags = flags_of(out_dir='fuzzed', eval_only=True, n_layer=1, eval_iters=1)
        assert outcome(train.main, train.TrainConfig, flags) in (0, 2)
        assert snapshot('.') == before
    finally:
        with open('data/babble/meta.json', 'w', encoding='utf-8') as f:
            f.write(good)


CONFIG_JSON = dict(
    model_type='gpt2', n_layer=1, n_head=2, n_embd=8, n_positions=16, n_inner=None, vocab_size=10,
    activation_function='gelu_new', layer_norm_epsilon=1e-5, tie_word_embeddings=True, scale_attn_weights=True,
    scale_attn_by_inverse_layer_idx=False,
)
USE_THEIRS = flags_of(init_from='theirs', eval_only=True, eval_iters=1)


@pytest.fixture
def theirs(run):
    """A GPT-2 in Hugging Face's format, with CONFIG_JSON, which works."""
    pytest.importorskip('safetensors', reason='the format of the weights: pip install safetensors')
    model = GPT(GPTConfig(block_size=16, vocab_size=10, n_layer=1, n_head=2, n_embd=8))
    spec = {'kind': 'char', 'chars': list('abcdefghij')}
    os.makedirs('theirs')
    hf.write_folder('theirs', model.config, model.state_dict(), spec, build_tokenizer(spec), 'test')
    with open('theirs/config.json', 'w', encoding='utf-8') as f:
        json.dump(CONFIG_JSON, f)
    assert outcome(train.main, train.TrainConfig, USE_THEIRS) == 0


@FEW
@given(st.data())
def test_any_value_anywhere_in_config_json(theirs, draws):
    write_changed('theirs/config.json', CONFIG_JSON, draws)
    assert outcome(train.main, train.TrainConfig, USE_THEIRS) in (0, 2)


@MANY
@given(st.data())
def test_any_value_anywhere_in_a_tokenizer(run, draws):
    """tokenizer.json as it is read, and the plain data that travels in checkpoints."""
    spec = dict(kind='bpe', tokens=['a', 'b', 'ab', 'aba', '<|x|>'], special=[4], start=[4], end_id=4,
                pattern=tokenizer_files.GPT2)
    files, _ = tokenizer_files.to_hf(spec, 5)
    assert tokenizer_files.from_hf(json.loads(files['tokenizer.json']), {'eos_token': '<|x|>'}) == spec
    write_changed('changed.json', json.loads(files['tokenizer.json']), draws)
    with open('changed.json', encoding='utf-8') as f:
        changed_file = json.load(f)
    write_changed('changed.json', spec, draws)
    with open('changed.json', encoding='utf-8') as f:
        changed_spec = json.load(f)
    for make in (lambda: tokenizer_files.from_hf(changed_file, {}), lambda: changed_spec):
        try:
            tokenizer = build_tokenizer(make())
            tokenizer.decode(tokenizer.encode('abab<|x|> a'))
        except UserError as e:
            assert '\n' not in str(e)


@pytest.fixture
def gguf_content(here):
    """The bytes of a GGUF file."""
    pytest.importorskip('gguf', reason='the format needs it: pip install gguf')
    model = GPT(GPTConfig(block_size=16, vocab_size=10, n_layer=1, n_head=2, n_embd=8, mlp='gelu_tanh'))
    spec = {'kind': 'char', 'chars': list('abcdefghij')}
    gguf_file.write('m.gguf', model.config, model.state_dict(), spec, 'test')
    with open('m.gguf', 'rb') as f:
        return f.read()


@MANY
@given(st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), min_size=1, max_size=4))
def test_any_bytes_in_a_gguf(gguf_content, changes):
    """In its header, where counts and sizes are."""
    content = bytearray(gguf_content)
    for at, value in changes:
        content[at % 2000] = value
    with open('m.gguf', 'wb') as f:
        f.write(content)
    try:
        pretrained.build(pretrained.load('m.gguf'))
    except UserError as e:
        assert '\n' not in str(e)


@FEW
@given(st.one_of(st.binary(max_size=100), ANY_JSON.map(as_file), ALMOST_A_META.map(as_file)))
def test_any_meta_json(run, content):
    with open('data/babble/meta.json', 'wb') as f:
        f.write(content)
    before = snapshot('.')

    flags = flags_of(out_dir='fuzzed', eval_only=True, n_layer=1, eval_iters=1)
    assert outcome(train.main, train.TrainConfig, flags) in (0, 2)
    assert snapshot('.') == before


@FEW
@given(st.binary(max_size=400))
def test_any_train_bin(run, content):
    with open('data/babble/train.bin', 'wb') as f:
        f.write(content)
    meta = metadata.read_meta('data/babble')

    try:
        tokens = data.Tokens('data/babble/train.bin', meta['dtype'], meta['vocab_size'], 16)
        x, y = tokens.windows(tokens.batch_starts(1, 1, 4))
    except UserError as e:
        assert '\n' not in str(e)
        return
    assert 0 <= x.min()
    assert x.max() < meta['vocab_size']
    assert -1 <= y.min()


# ---------------------------------------------------------------------------- prompts

@FEW
@given(
    st.text(max_size=30),
    st.one_of(st.floats(0, 1e30), st.sampled_from([0.0, 1e-300, 1e300])),
    st.integers(0, 2 ** 62),
    st.integers(0, 2 ** 62),
)
def test_any_prompt(run, prompt, temperature, top_k, seed):
    before = snapshot('.')
    argv = [
        '--out_dir=out',
        '--device=cpu',
        '--num_samples=2',
        '--max_new_tokens=3',
        f'--start={prompt}',
        f'--temperature={temperature!r}',
        f'--top_k={top_k}',
        f'--seed={seed}',
    ]
    assert outcome(sample.main, sample.SampleConfig, argv) in (0, 2)
    assert snapshot('.') == before


def test_a_traceback_would_be_found():
    """Negative control."""
    def main(cfg):
        sys.modules['no such module']

    with pytest.raises(KeyError):
        outcome(main, train.TrainConfig, [])
