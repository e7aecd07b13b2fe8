"""Choosing the next token: filters against plain Python, frequencies against softmax, one random stream per row."""

import math

import pytest
import torch
from test_model import random_model, some_ids

from gradus.sampling import Sampler, keep_min_p, keep_top_k, keep_top_p, penalize_repetition

LOGITS = torch.tensor([2.0, 0.5, -1.0, 1.0, 0.0, -3.0, 1.5, 0.2])
N = 20000
NO_IDS = torch.zeros(1, 0, dtype=torch.long)


def drawn(n=N, logits=LOGITS, ids=None, **how):
    """How often n rows, each with its own seed, draw each id: (V,)."""
    ids = NO_IDS.expand(n, 0) if ids is None else torch.tensor([ids]).expand(n, -1)
    sampler = Sampler(seeds=range(n), **how)
    sampler.AHEAD = 1                                 # one number from each generator is enough

    new = sampler(logits.expand(n, -1), ids)

    assert new.shape == (n, 1)
    assert new.dtype == torch.int64
    return new.flatten().bincount(minlength=len(logits)).double()


def softmax(logits):
    weights = [math.exp(x - max(logits)) for x in logits]
    return [w / sum(weights) for w in weights]


def reference(logits, temperature=1.0, top_k=None, top_p=1.0, min_p=0.0):
    """The probabilities as the help text defines them."""
    probs = softmax([x / temperature for x in logits.tolist()])

    # top_k
    order = sorted(range(len(probs)), key=lambda i: -probs[i])
    order = order[:top_k or None]
    probs = [p if i in order else 0.0 for i, p in enumerate(probs)]

    # top_p
    total, kept, reached = sum(probs), [], 0.0
    for i in order:
        if reached < top_p:
            kept.append(i)
        reached += probs[i] / total

    # min_p
    kept = [i for i in kept if probs[i] >= min_p * max(probs)]
    total = sum(probs[i] for i in kept)
    return [probs[i] / total if i in kept else 0.0 for i in range(len(probs))]


def chi_square(seen, expected):
    return ((seen - expected) ** 2 / expected).sum()


LIMIT = 24.3                                          # of chi-square with 7 degrees of freedom, p = 0.001


@pytest.mark.parametrize('how', [
    {},
    dict(temperature=0.6, top_k=0),
    dict(temperature=2.0, top_k=99),
    dict(temperature=1.5, top_k=4),
    dict(temperature=1e6),
    dict(top_p=0.8),
    dict(top_p=0.05),
    dict(top_p=0.9, temperature=3.0),
    dict(min_p=0.3),
    dict(min_p=1.0),
    dict(min_p=0.1, temperature=2.0),
    dict(top_k=5, top_p=0.9, min_p=0.2, temperature=1.3),
    dict(top_k=3, top_p=0.75),
])
def test_frequencies_are_those_of_the_reference(how):
    expected = N * torch.tensor(reference(LOGITS, **how)).double()

    seen = drawn(**how)

    keep = expected > 0
    assert seen[~keep].sum() == 0
    assert chi_square(seen[keep], expected[keep]) < LIMIT


def test_the_chi_square_would_notice():
    """Negative control: a temperature 10% off."""
    expected = N * torch.tensor(reference(LOGITS)).double()
    assert chi_square(drawn(temperature=1.1), expected) > LIMIT


def test_one_row_has_the_frequencies_of_many():
    """One generator over time, across several of the blocks in which random numbers are drawn."""
    sampler = Sampler(seeds=[3])
    new = torch.cat([sampler(LOGITS[None], NO_IDS) for _ in range(4000)])

    expected = 4000 * torch.tensor(reference(LOGITS)).double()
    assert chi_square(new.flatten().bincount(minlength=8).double(), expected) < LIMIT


def test_filters_row_by_row():
    """Each row of a batch has its own threshold; ties with the last of the top k are kept, as in nanoGPT."""
    logits = torch.tensor([[1.0, 5.0, 3.0, 3.0], [9.0, 0.0, 1.0, 2.0]])
    assert keep_top_k(logits, 2).isfinite().tolist() == [[False, True, True, True], [True, False, False, True]]

    probs = torch.tensor([[0.1, 0.6, 0.2, 0.1], [0.25, 0.25, 0.25, 0.25]], dtype=torch.float64)
    assert (keep_top_p(probs, 0.7) > 0).tolist() == [[False, True, True, False], [True, True, True, False]]
    assert (keep_min_p(probs, 0.3) > 0).tolist() == [[False, True, True, False], [True] * 4]


def test_repetition_penalty_matches_transformers():
    processors = pytest.importorskip('transformers', reason='transformers has the reference').generation.logits_process
    ids = torch.tensor([[0, 5, 5, 2], [1, 1, 1, 1]])
    logits = torch.stack((LOGITS, -LOGITS))
    theirs = processors.RepetitionPenaltyLogitsProcessor(1.7)(ids, logits)

    torch.testing.assert_close(penalize_repetition(logits, ids, 1.7), theirs)
    assert not torch.equal(theirs, logits)
    assert drawn(500, repetition_penalty=100.0, temperature=0.01, ids=[0])[6] == 500   # the second most likely


@pytest.mark.parametrize('how', [
    dict(temperature=0),
    dict(temperature=1e-300),
    dict(top_k=1),
    dict(temperature=1e6, top_k=1),
    dict(top_p=0.0),
    dict(min_p=1.0),
])
@pytest.mark.parametrize('scale', [1.0, 1e30])
def test_settings_that_always_take_the_most_likely(how, scale):
    assert drawn(500, LOGITS.roll(3) * scale, **how)[3] == 500


def test_large_logits_and_high_temperatures():
    expected = N * torch.tensor(reference(LOGITS, 2.0)).double()
    assert chi_square(drawn(logits=LOGITS * 1e4, temperature=2e4), expected) < LIMIT


def test_a_row_depends_on_nothing_but_its_seed():
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(1))
    ids = torch.zeros(5, 0, dtype=torch.long)
    together, alone = Sampler(seeds=[1, 2, 3, 4, 2]), Sampler(seeds=[4])

    for _ in range(300):
        new = together(logits, ids)
        assert new[3] == alone(logits[3:4], ids[:1])

    # Negative control: different seeds, different ids.
    different = Sampler(seeds=[1, 2])(logits[:1].expand(2, -1), ids[:2])
    assert different.flatten().unique().numel() == 2


def test_a_random_number_next_to_one_draws_a_possible_id():
    """u just below 1, and the last ids have probability 0: neither they nor an id past the end may be drawn."""
    sampler = Sampler(top_k=2, seeds=[1])
    sampler.uniform()
    sampler.numbers = torch.full((1, Sampler.AHEAD), (1 - 2 ** -53) * (1 - 1e-12), dtype=torch.float64)
    sampler.drawn = 1

    assert sampler(torch.tensor([[1.0, 2.0, -5.0, -9.0]]), NO_IDS).item() == 1


def test_a_random_number_of_zero_draws_a_possible_id():
    """u = 0, and the first id has probability 0: the first possible id is drawn."""
    sampler = Sampler(top_k=2, seeds=[1])
    sampler.uniform()
    sampler.numbers = torch.zeros(1, Sampler.AHEAD, dtype=torch.float64)

    assert sampler(torch.tensor([[-9.0, 2.0, 1.0, -5.0]]), NO_IDS).item() == 1


def test_logprobs_are_the_models_own():
    sampler = Sampler(temperature=0.1, top_k=1, repetition_penalty=2.0, logprobs=True)

    new = sampler(LOGITS[None], torch.tensor([[0]]))

    assert sampler.logprobs.item() == pytest.approx(LOGITS.log_softmax(0)[new.item()].item())


# ---------------------------------------------------------------------------- generation with a GPT

def test_each_row_is_sampled_from_its_own_seed():
    model, prompt = random_model('modern'), some_ids(1, 4).expand(3, 4)

    def draw(*seeds):
        return model.generate(prompt[:len(seeds)], 20, Sampler(seeds=seeds))

    rows = draw(1, 2, 1)
    assert torch.equal(rows, draw(1, 2, 1))
    assert torch.equal(rows[0], rows[2])
    assert not torch.equal(rows[0], rows[1])
    assert torch.equal(rows[1:2], draw(2))            # the other rows make no difference


def test_generating_nothing_and_after_a_long_prompt():
    model, prompt = random_model('modern'), some_ids(2, 40)
    assert torch.equal(model.generate(prompt, 0), prompt)

    long, short = (model.generate(p, 6, Sampler(seeds=(1, 2))) for p in (prompt, prompt[:, -16:]))
    assert torch.equal(long[:, :40], prompt)
    assert torch.equal(long[:, 40:], short[:, 16:])


@pytest.mark.parametrize('temperature', [0, 1.0, 1e6])
def test_padding_is_never_sampled(temperature):
    model, prompt = random_model(), some_ids(2, 3) % 6
    assert model.generate(prompt, 40, Sampler(temperature, seeds=(1, 2))).max() >= 6
    assert model.generate(prompt, 40, Sampler(temperature, seeds=(1, 2)), n_vocab=6).max() < 6
