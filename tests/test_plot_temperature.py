"""plots/temperature.py: the bars are the frequencies with which the sampler draws."""

import pytest
import torch
from test_plot_attention import CHARS, draw, refused, write_model

from gradus.errors import UserError
from gradus.sampling import Sampler
from plots import temperature

LOGITS = torch.tensor([[2.0, 1.0, 0.5, 0.0, -1.0, -30.0]]).double()


@pytest.mark.parametrize('how', [
    dict(temperature=0), dict(temperature=0.5), dict(), dict(temperature=2), dict(top_k=2), dict(top_p=0.7),
    dict(min_p=0.3),
])
def test_the_distribution_is_what_is_drawn(how):
    probs = Sampler(**how).distribution(LOGITS)
    n = 5_000
    sampler = Sampler(**how, seeds=range(n))
    drawn = sampler(LOGITS.expand(n, -1), None).flatten().bincount(minlength=6) / n
    torch.testing.assert_close(drawn.double(), (probs / probs.sum())[0], atol=0.03, rtol=0)
    assert not drawn[probs[0] == 0].any()
    assert (drawn - 1 / 6).abs().max() > 0.1          # negative control: not any distribution fits


def test_the_panels():
    found = temperature.distributions(temperature.Settings(top_k=2, top_p=0.7), LOGITS)
    assert list(found) == ['temperature 0', 'temperature 0.5', 'temperature 1', 'temperature 2',
                           'temperature 1, top_k = 2', 'temperature 1, top_p = 0.7']
    for probs in found.values():
        assert probs.sum().item() == pytest.approx(1)
    torch.testing.assert_close(found['temperature 2'], (LOGITS[0] / 2).softmax(dim=0))
    assert found['temperature 0'].tolist() == [1, 0, 0, 0, 0, 0]
    assert [(probs > 0).sum() for probs in found.values()] == [1, 6, 6, 6, 2, 2]


def test_the_logits_are_those_of_the_last_token(tmp_path):
    """Without the padding of the vocabulary."""
    model = write_model(tmp_path / 'm.pt', vocab_size=64)
    logits = temperature.next_logits(model, CHARS, 'to be\n')
    expected, _ = model(torch.tensor([CHARS.encode('to be\n')]))
    torch.testing.assert_close(logits, expected[:, 0, :CHARS.n_vocab].double())


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('args', [['--top_k=1000', '--top_p=0', '--bars=40'], ['--bars=1', '--top_p=1']])
def test_it_is_drawn(args, tmp_path, monkeypatch):
    pytest.importorskip('matplotlib')
    monkeypatch.chdir(tmp_path)
    write_model('m.pt')
    draw(temperature, 'm.pt', '--start=$to be$\\n', *args, '--out=x.svg')
    drawn = (tmp_path / 'x.svg').read_text(encoding='utf-8')
    assert '>$to␣be$↵<' in drawn and '>temperature 0.5<' in drawn


@pytest.mark.parametrize('args, message', [
    (['--start='], "start='': expected a text"),
    (['--start=' + 'a' * 65], 'start: 65 tokens; expected at most 64'),
    (['--start=a', '--top_k=0'], 'top_k=0'),
    (['--start=a', '--top_p=2'], 'top_p=2'),
    (['--start=a', '--bars=0'], 'bars=0'),
])
def test_what_cannot_be_drawn_is_one_line(args, message, tmp_path):
    pytest.importorskip('matplotlib')
    write_model(tmp_path / 'm.pt')
    assert message in refused(temperature, tmp_path / 'm.pt', *args)


def test_a_model_that_computes_nan(tmp_path):
    model = write_model(tmp_path / 'm.pt')
    with torch.no_grad():
        model.transformer.ln_f.weight.fill_(float('nan'))
    with pytest.raises(UserError, match='NaN or infinity'):
        temperature.next_logits(model, CHARS, 'a')
