"""Faster inference: split matrices and compiled steps change nothing, 8-bit and cast weights almost nothing."""

import copy
from functools import partial
from itertools import islice

import pytest
import torch
from conftest import require_compiler, settings

import sample
import train
from benchmarks import llama_cpp
from gradus import data, metadata
from gradus.errors import UserError
from gradus.inference import Int8Linear, PackedLinear, SplitLinear, cast_linear, compile_decoding, replace_linear
from gradus.sampling import Sampler
from gradus.tokenizer import build_tokenizer
from model import GPT, GPTConfig, KVCache


def linear(n_in, n_out, bias):
    torch.manual_seed(3)
    return torch.nn.Linear(n_in, n_out, bias=bias).requires_grad_(False)


@pytest.mark.parametrize('n_in, n_out', [(12, 18), (18, 12), (16, 16), (12, 7)])
@pytest.mark.parametrize('parts', [1, 2, 3])
@pytest.mark.parametrize('shape', [(1, 1), (5, 1), (2, 9), (4,)])
def test_split_is_the_same_product(n_in, n_out, parts, shape, threads):
    threads(parts)
    whole = linear(n_in, n_out, bias=parts == 2)
    x = torch.randn(*shape, n_in)

    split = SplitLinear(whole)

    assert len(split.weight) == (parts if n_out % parts == 0 else 1)
    torch.testing.assert_close(split(x), whole(x), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize('bias', [True, False])
def test_int8_is_integer_arithmetic_row_by_row(bias):
    """Against the definition, with Python's integers."""
    whole = linear(10, 6, bias)
    whole.weight[2] = 0.0                             # all zeros: no scale to divide by
    small, x = Int8Linear(whole), torch.randn(2, 3, 10)
    x[1, 2] = 0.0

    # Weights are rounded to the nearest integer.
    rounded = small.weight * small.scale[:, None]
    assert small.weight.dtype == torch.int8
    assert ((rounded - whole.weight).abs() <= small.scale[:, None] / 2 + 1e-8).all()

    # The product of integers, scaled back. A row may differ by one rounding step between float and double.
    out = small(x)
    for i, row in enumerate(x.view(6, 10).tolist()):
        s = max(abs(v) for v in row) / 127 or 1.0
        q = [round(v / s) for v in row]
        for j in range(6):
            total = sum(a * b for a, b in zip(q, small.weight[j].tolist()))
            offset = whole.bias[j].item() if bias else 0.0
            expected = s * small.scale[j].item() * total + offset
            assert out.view(6, 6)[i, j].item() == pytest.approx(expected, abs=2e-3)

    # A row does not depend on the other rows.
    assert torch.equal(small(x[:1, :1]), out[:1, :1])


@pytest.mark.parametrize('kind', [PackedLinear, SplitLinear, Int8Linear])
def test_every_linear_layer_of_a_model_is_replaced(kind, threads):
    if kind is PackedLinear:
        require_compiler()
    threads(2)
    torch.manual_seed(1)
    model = GPT(GPTConfig(
        block_size=16, vocab_size=12, n_layer=2, n_head=4, n_embd=32, pos='rotary', mlp='swiglu', bias=True)).eval()

    other = replace_linear(copy.deepcopy(model), kind)

    assert sum(isinstance(m, kind) for m in other.modules()) == 2 * 5 + 1
    assert not any(isinstance(m, (torch.nn.Linear, torch.nn.Dropout)) for m in other.modules())
    idx = torch.randint(12, (3, 9))
    with torch.no_grad():
        expected, found = model(idx, idx)[0], other(idx, idx)[0]
    gap = (found - expected).norm() / expected.norm()
    if kind is not Int8Linear:
        assert gap < 1e-6
        assert torch.equal(model.generate(idx, 20), other.generate(idx, 20))
    else:
        assert 1e-5 < gap < 0.03                      # 8 bits make a small difference


def some_validation_text():
    meta = metadata.read_meta('data/babble')
    ids = data.Tokens('data/babble/val.bin', meta['dtype'], meta['vocab_size'], 16).ids
    return build_tokenizer(meta['tokenizer']).decode(ids[:3000].tolist())


def test_perplexity_in_8_bits_is_within_1_percent(place, capsys):
    train.main(settings(max_iters=150, lr_decay_iters=150, dropout=0.0))
    with open('text.txt', 'w') as f:
        f.write(some_validation_text())

    perplexity = {}
    for quantize in ('', 'int8'):
        capsys.readouterr()
        sample.main(sample.SampleConfig(device='cpu', eval='text.txt', quantize=quantize))
        perplexity[quantize] = float(capsys.readouterr().out.split('perplexity ')[1].split(',')[0])

    assert perplexity[''] < 9.5                       # it has learned something: there are ten characters
    assert abs(perplexity['int8'] / perplexity[''] - 1) < 0.01


@pytest.mark.parametrize('tie_weights', [True, False])
def test_sample_py_writes_in_8_bits(tie_weights, place, capsys):
    """Also where the embedding is the unembedding, which then has 8 bits, too; and with several beams."""
    train.main(settings(max_iters=2, tie_weights=tie_weights))
    for beams in (1, 3):
        capsys.readouterr()
        sample.main(sample.SampleConfig(device='cpu', quantize='int8', num_samples=1, max_new_tokens=8, beams=beams,
                                        temperature=1.0 if beams == 1 else 0.0, start='a'))
        assert len(capsys.readouterr().out.strip()) > 1


KINDS = {
    'gpt2': {},
    'vaswani': dict(pos='sinusoidal', mlp='relu'),
    'modern': dict(pos='rotary', norm='rmsnorm', mlp='swiglu', qk_norm=True, n_kv_head=2, bias=False,
                   tie_weights=False),
}


def random_model(kind):
    """A GPT with every weight random, biases and norms included."""
    torch.manual_seed(5)
    model = GPT(GPTConfig(block_size=16, vocab_size=23, n_layer=2, n_head=4, n_embd=32, **KINDS[kind])).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.4).add_(0.5 if p.dim() == 1 else 0.0)
    return model


@pytest.mark.parametrize('kind', KINDS)
def test_cast_weights_give_what_autocast_gives(kind):
    model, idx = random_model(kind), torch.randint(23, (3, 12))

    cast = cast_linear(copy.deepcopy(model), torch.bfloat16)

    assert cast.lm_head.weight.dtype == torch.bfloat16
    assert cast.transformer.wte.weight.dtype == torch.float32
    with torch.inference_mode(), torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(cast(idx)[0], model(idx)[0])
        assert torch.equal(cast.generate(idx, 30), model.generate(idx, 30))
    with torch.inference_mode():
        assert not torch.equal(model(idx)[0], cast.float()(idx)[0])   # the cast makes a difference


@pytest.fixture
def programs(monkeypatch):
    """torch.compile without its slow backend: programs run as they are, and are collected in this list."""
    found = []

    def backend(program, inputs):
        found.append(program)
        return program.forward

    real = torch.compile
    monkeypatch.setattr(torch, 'compile', lambda options, **flags: partial(real, backend=backend, **flags))
    torch._dynamo.reset()
    yield found
    torch._dynamo.reset()


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.slow
def test_a_compiled_step_is_one_program_and_gives_the_same_text(kind, programs):
    model, idx = random_model(kind), torch.randint(23, (2, 5), generator=torch.Generator().manual_seed(1))
    compiled = compile_decoding(copy.deepcopy(model))

    # Four times the context.
    expected = model.generate(idx, 60, Sampler(seeds=(1, 2)))
    assert len(expected[0, 5:].unique()) > 4
    assert not torch.equal(*expected[:, 5:])
    assert torch.equal(compiled.generate(idx, 60, Sampler(seeds=(1, 2))), expected)
    assert len(programs) == 1

    # Two texts, interleaved: each has a cache of its own, the program is shared.
    streams = [compiled.stream(idx[[i, j]], Sampler(seeds=(i + 1, j + 1))) for i, j in ((0, 1), (1, 0))]
    interleaved = [torch.cat(texts, dim=1) for texts in zip(*islice(zip(*streams), 20))]
    assert torch.equal(interleaved[0], expected[:, 5:25])
    assert torch.equal(interleaved[1], expected.flip(0)[:, 5:25])
    assert len(programs) == 1

    # A batch of another size needs another program.
    assert torch.equal(compiled.generate(idx[1:], 9, Sampler(seeds=(2,))), expected[1:, :14])
    assert len(programs) == 2

    # A prompt of one token.
    assert torch.equal(*(m.generate(idx[:1, :1], 9, Sampler(seeds=(1,))) for m in (model, compiled)))
    assert len(programs) == 2

    torch.testing.assert_close(compiled(idx, idx)[1], model(idx, idx)[1])


def test_a_compiled_step_knows_where_the_context_ends(programs):
    model = compile_decoding(random_model('modern'))
    cache = KVCache(model.config)
    with torch.no_grad():
        model(torch.zeros(1, 15, dtype=torch.long), cache=cache)
        model(torch.zeros(1, 1, dtype=torch.long), cache=cache)
        with pytest.raises(ValueError, match='17 tokens: expected at most block_size=16'):
            model(torch.zeros(1, 1, dtype=torch.long), cache=cache)

    assert len(programs) == 1


@pytest.mark.slow
def test_sample_compiled_end_to_end(place, capsys):
    train.main(settings(max_iters=30, lr_decay_iters=30))
    torch.use_deterministic_algorithms(False)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()

    texts = []
    for compile in (False, True):
        capsys.readouterr()
        sample.main(sample.SampleConfig(device='cpu', num_samples=3, max_new_tokens=60, compile=compile))
        texts.append(capsys.readouterr().out)

    assert texts[0] == texts[1]
    assert torch._dynamo.utils.counters['stats']['unique_graphs'] == 1
    assert not torch.are_deterministic_algorithms_enabled()      # they make a compiled step copy the whole cache


@pytest.mark.slow
@pytest.mark.parametrize('bits, kind', [(32, PackedLinear), (32, SplitLinear), (8, Int8Linear)])
def test_greedy_texts_match_llama_cpp(bits, kind, tmp_path):
    for name in ('gguf', 'xllamacpp'):
        pytest.importorskip(name, reason=f'the reference to compare with: pip install {name}')
    torch.manual_seed(2)
    model = GPT(GPTConfig(block_size=64, vocab_size=80, n_layer=2, n_head=2, n_embd=64, mlp='gelu_tanh')).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=0.1)
    prompt = [3, 1, 4, 1, 5]

    llama_cpp.write(model, str(tmp_path / 'model.gguf'), bits)
    other = llama_cpp.LlamaCpp(str(tmp_path / 'model.gguf'), 64)
    expected = other.generate(prompt, 40)[1]
    other.process.terminate()
    found = replace_linear(model, kind).generate(torch.tensor([prompt]), 40)[0, 5:].tolist()

    alike = next((i for i, (a, b) in enumerate(zip(found, expected)) if a != b), 40)
    assert len(set(expected)) > 4, alike
    assert alike >= (40 if bits == 32 else 3), alike  # with 8 bits, different rounding soon gives different texts


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs an NVIDIA GPU')
def test_on_cuda_the_compiled_step_is_a_cuda_graph_and_gives_the_same_text():
    model, idx = random_model('modern').cuda(), torch.randint(23, (3, 5)).cuda()
    expected = model.generate(idx, 60, Sampler(seeds=range(3)))
    skips = torch._dynamo.utils.counters['inductor']['cudagraph_skips']

    compile_decoding(model)

    for _ in range(3):                                # each with a cache of its own
        assert torch.equal(model.generate(idx, 60, Sampler(seeds=range(3))), expected)
    assert torch._dynamo.utils.counters['inductor']['cudagraph_skips'] == skips


def test_quantize_is_for_the_cpu(place):
    with pytest.raises(UserError, match="quantize='int4'"):
        sample.main(sample.SampleConfig(quantize='int4'))
