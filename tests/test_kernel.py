"""The C++ kernel computes what PyTorch computes, is built once and safely, and nothing needs it."""

import copy
import os
import subprocess
import sys

import pytest
import torch
from conftest import REPO, require_compiler

from gradus import inference, kernel
from gradus.inference import FastAttention, FastRMSNorm, Int8Linear, PackedLinear, replace_linear, use_kernel
from gradus.sampling import Sampler
from model import GPT, CausalSelfAttention, GPTConfig, KVCache


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """A cache folder with nothing but the kernel, just built."""
    with monkeypatch.context() as patch:
        patch.setattr(kernel, 'CACHE', str(tmp_path / 'cache'))
        require_compiler()
        yield tmp_path / 'cache'
    kernel.load.cache_clear()


@pytest.fixture
def without(monkeypatch):
    """A function that calls another one without the kernel."""
    def call(function, *args):
        with monkeypatch.context() as patch:
            patch.setattr(kernel, 'ready', lambda *tensors: False)
            return function(*args)
    return call


def linear(n_in, n_out, bias=True):
    return torch.nn.Linear(n_in, n_out, bias=bias).requires_grad_(False)


# ---------------------------------------------------------------------------- 8-bit matrices

@pytest.mark.parametrize('n_in, n_out', [(1, 1), (3, 2), (16, 16), (63, 5), (64, 7), (65, 33), (257, 3), (768, 40)])
@pytest.mark.parametrize('bias', [True, False])
def test_int8_is_the_same_to_the_last_bit(n_in, n_out, bias, compiled, without):
    torch.manual_seed(n_in)
    layer = Int8Linear(linear(n_in, n_out, bias))
    for n in (1, 2, 3, 4, 5, 7, 8, 11, 16):
        x = torch.randn(n, n_in) * 10.0 ** torch.randint(-6, 6, (n, 1))
        x[n // 2] = 0.0
        y = kernel.int8_linear(x, layer.weight, layer.scale, layer.row_sum, layer.bias)
        assert torch.equal(y, without(layer, x))
        assert torch.equal(layer(x[None, :, :]), y[None])

    # The comparison can fail: one weight differs by one.
    layer.weight[-1, -1] ^= 1
    layer.row_sum = layer.weight.sum(dim=1, dtype=torch.int32)
    x = torch.ones(1, n_in)
    assert not torch.equal(kernel.int8_linear(x, layer.weight, layer.scale, layer.row_sum, layer.bias)[:, -1],
                           y[:1, -1])


def test_int8_rounds_halves_as_pytorch_does_and_survives_extremes(compiled, without):
    layer = Int8Linear(linear(256, 9))
    halves = torch.arange(256.0) - 127.5
    halves[0] = 127.0                                 # the scale is 1
    rows = [halves, torch.full((256,), -3e38), torch.full((256,), 1e-42), torch.full((256,), -0.0)]
    layer.weight[0] = 127
    layer.row_sum = layer.weight.sum(dim=1, dtype=torch.int32)
    x = torch.stack(rows)

    assert torch.equal(layer(x), without(layer, x))


@pytest.mark.parametrize('bad', [float('nan'), float('inf'), -float('inf')])
def test_int8_lets_nobody_overlook_what_is_not_finite(bad, compiled, without):
    layer, x = Int8Linear(linear(70, 5)), torch.randn(5, 70)
    x[2, 69] = bad

    y = layer(x)

    assert y[2].isnan().all() and without(layer, x)[2].isnan().all()
    assert torch.equal(y[[0, 1, 3, 4]], without(layer, x)[[0, 1, 3, 4]])


def test_int8_takes_only_what_it_can_read(compiled, without):
    layer, x = Int8Linear(linear(32, 6)), torch.randn(3, 32)

    def taken(x, weight=layer.weight, scale=layer.scale):
        return kernel.int8_linear(x, weight, scale, layer.row_sum, layer.bias) is not None

    assert taken(x)
    assert not taken(x.double())
    assert not taken(torch.randn(32, 3).T)
    assert not taken(x[:, :31].contiguous())
    assert not taken(torch.randn(kernel.MAX_ROWS + 1, 32))
    assert not taken(x, weight=torch.ones(32, 6, dtype=torch.int8).T)
    assert not taken(x, weight=layer.weight.float())
    assert not taken(x, scale=layer.scale.double())

    # The layer computes those, too.
    turned = torch.randn(32, 3).T
    assert torch.equal(layer(turned), layer(turned.contiguous()))


# ---------------------------------------------------------------------------- matrices in float32

@pytest.mark.parametrize('n_in, n_out', [(1, 1), (3, 2), (7, 16), (64, 17), (65, 33), (257, 100), (300, 1001)])
@pytest.mark.parametrize('bias', [True, False])
def test_linear_in_double_precision(n_in, n_out, bias, compiled):
    torch.manual_seed(n_in)
    layer = linear(n_in, n_out, bias)
    packed = PackedLinear(layer)
    exact = copy.deepcopy(layer).double()
    for n in (1, 2, 3, 5, 6, 7, 12, 13, 40):
        x = torch.randn(n, n_in)
        y = packed(x)
        assert (y - exact(x.double())).abs().max() < 1e-6 * (1 + n_in ** 0.5)
        assert torch.equal(packed(x.mT.contiguous().mT[None])[0], y)

        # What a row becomes does not depend on the other rows.
        assert torch.equal(packed(x[-1:]), y[-1:])

    # The comparison can fail: one weight is another one.
    packed.weight[-1, -1, (n_out - 1) % 16] += 0.1
    assert not torch.equal(packed(x)[:, -1], y[:, -1]) and torch.equal(packed(x)[:, :-1], y[:, :-1])


def test_linear_takes_only_what_it_can_read(compiled):
    layer = linear(32, 6)
    packed = kernel.pack(layer.weight)
    assert kernel.linear(torch.randn(3, 32), packed, layer.bias, 6) is not None
    for x in (torch.randn(3, 32).double(), torch.randn(3, 31), torch.randn(32, 3).T):
        assert kernel.linear(x, packed, layer.bias, 6) is None


# ---------------------------------------------------------------------------- attention and RMSNorm

KINDS = {
    'gpt2': {},
    'llama': dict(pos='rotary', norm='rmsnorm', mlp='swiglu', bias=False, n_kv_head=2, head_dim=10),
    'qwen3': dict(pos='rotary', norm='rmsnorm', mlp='swiglu', bias=False, n_kv_head=1, qk_norm=True),
    'reversed': dict(score='reversed'),
}


def random_gpt(kind):
    torch.manual_seed(4)
    model = GPT(GPTConfig(block_size=24, vocab_size=31, n_layer=2, n_head=4, n_embd=32, **KINDS[kind])).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.4).add_(0.5 if p.dim() == 1 else 0.0)
    return model


@torch.no_grad()
def logits_one_by_one(model, idx):
    """Logits (B, T, V), each token with the cache of those before it."""
    cache = KVCache(model.config)
    return torch.cat([model(idx[:, t:t + 1], cache=cache)[0] for t in range(idx.size(1))], dim=1)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('n_texts', [1, 3])
def test_attention_and_norms_are_the_same(kind, n_texts, compiled, monkeypatch):
    model = random_gpt(kind)
    fast = use_kernel(copy.deepcopy(model))
    calls = []
    real = kernel.attend
    monkeypatch.setattr(kernel, 'attend', lambda *args: calls.append(args[-1]) or real(*args))
    idx = torch.randint(31, (n_texts, 24))

    found, expected = logits_one_by_one(fast, idx), logits_one_by_one(model, idx)

    assert (found - expected).norm() / expected.norm() < 1e-5
    wanted = [] if kind == 'reversed' else [t for t in range(2, 25) for _ in range(2)]
    assert calls == wanted                            # all but a text's first token
    kinds = [type(m) for m in fast.modules()]
    assert kinds.count(FastAttention) == kinds.count(CausalSelfAttention) == 2
    assert kinds.count(FastRMSNorm) == kinds.count(torch.nn.RMSNorm) == {'gpt2': 0, 'llama': 5, 'qwen3': 9}.get(kind, 0)

    # Four times the context.
    seeds = range(n_texts)
    expected = model.generate(idx[:, :5], 96, Sampler(seeds=seeds))
    assert torch.equal(fast.generate(idx[:, :5], 96, Sampler(seeds=seeds)), expected)

    # The comparison can fail: attention that misses the newest token.
    if wanted:
        monkeypatch.setattr(kernel, 'attend', lambda *args: real(*args[:-1], args[-1] - 1))
        assert not torch.equal(fast.generate(idx[:, :5], 96, Sampler(seeds=seeds)), expected)


def test_rms_norm_in_double_precision(compiled):
    norm = torch.nn.RMSNorm(70, eps=1e-4).requires_grad_(False)
    norm.weight.normal_()
    x = torch.randn(3, 5, 70) * 100
    x[0, 0] = 0.0
    x[1, 1, 1] = float('nan')

    y = kernel.rms_norm(x, norm.weight, 1e-4)

    torch.testing.assert_close(y, norm.double()(x.double()).float(), equal_nan=True)
    assert y[1, 1].isnan().all() and not y[0].isnan().any()
    assert kernel.rms_norm(x[..., :69], norm.weight.float(), 1e-4) is None


@pytest.mark.parametrize('n_threads', [2, 3])
def test_the_number_of_threads_changes_nothing(n_threads, compiled, threads):
    matrix, x = linear(96, 1001), torch.randn(2, 96)
    layer, packed = Int8Linear(matrix), PackedLinear(matrix)
    heads, cached = torch.randn(2, 24, 64), torch.randn(2, 2, 8, 100, 64)
    one = layer(x), packed(x), kernel.attend(heads.clone(), (), 0.0, (), *cached.clone(), 99)
    threads(n_threads)
    many = layer(x), packed(x), kernel.attend(heads.clone(), (), 0.0, (), *cached.clone(), 99)
    assert all(map(torch.equal, one, many))


def test_a_compiled_step_does_without(compiled, monkeypatch, without):
    def refuse(*args):
        raise AssertionError('called while compiling')
    layer, x = Int8Linear(linear(8, 5)), torch.randn(1, 8)
    torch._dynamo.reset()
    program = torch.compile(layer, fullgraph=True, backend='eager')

    with monkeypatch.context() as patch:
        patch.setattr(kernel, 'load', refuse)
        with pytest.raises(AssertionError, match='called'):
            layer(x)
        assert torch.equal(program(x), without(layer, x))
    torch._dynamo.reset()


# ---------------------------------------------------------------------------- building

def test_without_a_compiler_pytorch_does_it(cache, monkeypatch):
    model = random_gpt('llama')
    idx = torch.randint(31, (1, 3))
    expected = inference.prepare(copy.deepcopy(model), torch.float32, int8=True).generate(idx, 40)

    for cxx in ('', 'false', '/no/such/compiler', 'c++ "'):
        monkeypatch.setenv('CXX', cxx)
        kernel.load.cache_clear()
        plain = inference.prepare(copy.deepcopy(model), torch.float32, int8=True)

        assert kernel.load() is None, cxx
        assert not any(isinstance(m, FastAttention) for m in plain.modules())
        assert torch.equal(plain.generate(idx, 40), expected)


def test_it_is_built_once(cache, monkeypatch):
    def refuse(prefix):
        raise AssertionError('built again')
    assert len(os.listdir(cache)) == 1                # no temporary file is left

    kernel.load.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(kernel, 'build', refuse)
        assert kernel.load() is not None
        kernel.load.cache_clear()
        patch.setattr(kernel, 'COMPILE', [*kernel.COMPILE, '-DOTHER'])
        with pytest.raises(AssertionError, match='built again'):
            kernel.load()                             # other options, or another processor: another file


def test_a_damaged_file_is_built_again(cache):
    path, = cache.iterdir()
    whole = path.read_bytes()
    path.rename(cache / 'old')                        # it is still loaded: do not write into it
    path.write_bytes(whole[:len(whole) // 2])         # a library that is cut off kills the process that loads it
    kernel.load.cache_clear()

    assert kernel.load() is not None
    assert path.read_bytes() == whole


def test_a_folder_that_cannot_be_written_is_no_error(cache, monkeypatch, tmp_path):
    (tmp_path / 'file').write_text('')
    monkeypatch.setattr(kernel, 'CACHE', str(tmp_path / 'file'))
    kernel.load.cache_clear()

    assert kernel.load() is None
    assert Int8Linear(linear(8, 5))(torch.randn(1, 8)).shape == (1, 5)


@pytest.mark.slow
def test_several_processes_may_build_at_once(cache, tmp_path):
    code = 'from gradus import kernel; assert kernel.load() is not None'
    env = {**os.environ, 'XDG_CACHE_HOME': str(tmp_path / 'new')}
    running = [subprocess.Popen([sys.executable, '-c', code], cwd=REPO, env=env) for _ in range(2)]

    assert [process.wait() for process in running] == [0, 0]
    assert len(os.listdir(tmp_path / 'new' / 'gradus')) == 1


def test_prepare_uses_it_on_the_cpu(compiled):
    for int8, kind in ((True, Int8Linear), (False, PackedLinear)):
        model = inference.prepare(random_gpt('llama'), torch.float32, int8)
        kinds = {type(m) for m in model.modules()}
        assert {kind, FastAttention, FastRMSNorm} <= kinds
    assert FastAttention not in {type(m) for m in replace_linear(random_gpt('llama'), PackedLinear).modules()}
