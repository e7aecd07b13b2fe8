"""Matrices held otherwise: split over cores they give the same, in 8 bits nearly the same."""

import copy

import pytest
import torch
from conftest import settings

import sample
import train
from inference import Int8Linear, SplitLinear, replace_linear
from model import GPT, GPTConfig


@pytest.fixture
def threads():
    """Set the number of threads in a test; afterwards it is what it was."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def linear(n_in, n_out, bias):
    torch.manual_seed(3)
    return torch.nn.Linear(n_in, n_out, bias=bias).requires_grad_(False)


@pytest.mark.parametrize('n_in, n_out', [(12, 18), (18, 12), (16, 16), (12, 7)])
@pytest.mark.parametrize('parts', [1, 2, 3])
@pytest.mark.parametrize('shape', [(1, 1), (5, 1), (2, 9), (4,)])
def test_split_is_the_same_product(n_in, n_out, parts, shape, threads):
    threads(parts)
    whole = linear(n_in, n_out, bias=parts == 2)
    split, x = SplitLinear(whole), torch.randn(*shape, n_in)
    assert len(split.weight) == (parts if n_out % parts == 0 else 1)
    torch.testing.assert_close(split(x), whole(x), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize('bias', [True, False])
def test_int8_is_integer_arithmetic_row_by_row(bias):
    """Against the definition with Python's integers."""
    whole = linear(10, 6, bias)
    whole.weight[2] = 0.0                             # a row without a scale
    small, x = Int8Linear(whole), torch.randn(2, 3, 10)
    x[1, 2] = 0.0
    rounded = small.weight * small.scale[:, None]
    assert small.weight.dtype == torch.int8 and ((rounded - whole.weight).abs() <= small.scale[:, None] / 2 + 1e-8).all()
    out = small(x)
    for i, row in enumerate(x.view(6, 10).tolist()):
        s = max(abs(v) for v in row) / 127 or 1.0
        q = [round(v / s) for v in row]
        for j in range(6):
            total = sum(a * b for a, b in zip(q, small.weight[j].tolist()))
            expected = s * small.scale[j].item() * total + (whole.bias[j].item() if bias else 0.0)
            assert out.view(6, 6)[i, j].item() == pytest.approx(expected, abs=2e-3)   # one step of rounding, where float and double differ
    assert torch.equal(small(x[:1, :1]), out[:1, :1])  # a row does not depend on those beside it


@pytest.mark.parametrize('kind', [SplitLinear, Int8Linear])
def test_a_model_is_replaced_whole(kind, threads):
    threads(2)
    torch.manual_seed(1)
    model = GPT(GPTConfig(block_size=16, vocab_size=12, n_layer=2, n_head=4, n_embd=32, pos='rotary', mlp='swiglu', bias=True)).eval()
    other = replace_linear(copy.deepcopy(model), kind)
    assert sum(isinstance(m, kind) for m in other.modules()) == 2 * 5 + 1 and not any(isinstance(m, torch.nn.Linear) for m in other.modules())
    idx = torch.randint(12, (3, 9))
    with torch.no_grad():
        expected, found = model(idx, idx)[0], other(idx, idx)[0]
    gap = (found - expected).norm() / expected.norm()
    assert gap < (1e-6 if kind is SplitLinear else 0.03) and (kind is SplitLinear or gap > 1e-5)   # 8 bits do show
    if kind is SplitLinear:
        assert torch.equal(model.generate(idx, 20), other.generate(idx, 20))


def test_perplexity_in_8_bits_is_within_1_percent(place, capsys):
    train.main(settings(max_iters=150, lr_decay_iters=150, dropout=0.0))
    perplexity = {}
    with open('text.txt', 'w') as f:
        f.write(babbled())
    for quantize in ('', 'int8'):
        capsys.readouterr()
        sample.main(sample.SampleConfig(device='cpu', eval='text.txt', quantize=quantize))
        perplexity[quantize] = float(capsys.readouterr().out.split('perplexity ')[1].split(',')[0])
    assert perplexity[''] < 9.5                       # it has learnt something: ten characters
    assert abs(perplexity['int8'] / perplexity[''] - 1) < 0.01


def babbled():
    meta = train.loader.read_meta('data/babble')
    ids = train.loader.Tokens('data/babble/val.bin', meta['dtype'], meta['vocab_size'], 16).ids
    return train.tokenizers.from_json(meta['tokenizer']).decode(ids[:3000].tolist())


def test_quantize_is_for_the_cpu(place):
    with pytest.raises(ValueError, match="quantize='int4'"):
        sample.main(sample.SampleConfig(quantize='int4'))
