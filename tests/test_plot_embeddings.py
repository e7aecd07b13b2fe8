"""plots/embeddings.py: neighbours, sums of words and the map against plain computations."""

import numpy as np
import pytest
import torch
from test_plot_attention import CHARS, draw, refused, write_model

from gradus.errors import UserError
from gradus.tokenizer import ByteTokenizer, CharTokenizer
from plots import embeddings


class FiveWords:
    """A tokenizer with words, as far as the picture needs one."""
    names = [' king', ' man', ' woman', ' queen', 'x', 'y', ' x']
    n_vocab = 7

    def encode(self, text):
        return [self.names.index(text)] if text in self.names else [self.names.index(c) for c in text if c in 'xy']

    def decode_bytes(self, ids):
        return b''.join(self.names[i].encode() for i in ids)


class Model:
    """Something with an embedding: king = royal + male, ..."""
    class transformer:
        wte = torch.nn.Embedding(8, 4)


@pytest.fixture
def words():
    rows = [[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, -1], [.1, .1, .1, .1],
            [9, 9, 9, 9.]]                            # the last one is padding
    Model.transformer.wte.weight.data = torch.tensor(rows) * torch.arange(1.0, 9)[:, None]   # of different lengths
    return embeddings.Words(Model, FiveWords())


def test_neighbours_are_those_of_a_plain_loop(tmp_path):
    model = write_model(tmp_path / 'm.pt')
    found = embeddings.Words(model, CHARS)
    w = model.transformer.wte.weight.detach().double().numpy()
    cosines = [(w[5] @ row / np.linalg.norm(w[5]) / np.linalg.norm(row), i) for i, row in enumerate(w) if i != 5]
    expected = sorted(cosines, reverse=True)[:4]
    ours = found.nearest(found.vectors[5], 4, without=[5])
    assert [i for i, _ in ours] == [i for _, i in expected]
    assert [c for _, c in ours] == pytest.approx([c for c, _ in expected])
    assert len(found.nearest(found.vectors[5], 1000, without=[5, 5])) == CHARS.n_vocab - 1


def test_a_sum_of_words(words):
    ids, vector = words.sum_of('king - man + woman', 'analogy')
    assert ids == [0, 1, 2]
    king, man, woman = (words.vectors[i] for i in ids)
    torch.testing.assert_close(vector, king - man + woman)
    assert words.nearest(vector, 1, without=ids)[0][0] == 3                     # queen
    assert words.nearest(vector, 7)[-1][0] != 3


@pytest.mark.parametrize('word, expected', [('king', 0), ('x', 6), ('y', 5)])
def test_a_space_before_a_word_is_tried_first(words, word, expected):
    assert words.id_of(word, 'nearest') == expected


@pytest.mark.parametrize('word, message', [
    ('xyx', 'nearest=xyx: 3 tokens, x y x; expected a word that is one token'),
    ('', 'nearest=: 0 tokens, none; expected'),
])
def test_a_word_of_several_tokens(words, word, message):
    with pytest.raises(UserError) as e:
        words.id_of(word, 'nearest')
    assert str(e.value).startswith(message)


def test_the_map_is_that_of_numpy():
    """The coordinates are the eigenvectors' of the covariance; shares are its eigenvalues'."""
    x = torch.randn(12, 5, generator=torch.Generator().manual_seed(1)).double()
    points, share = embeddings.plane(x)
    values, vectors = np.linalg.eigh(np.cov(x.numpy().T))
    expected = (x - x.mean(dim=0)).numpy() @ vectors[:, [-1, -2]]
    assert np.abs(points.numpy()) == pytest.approx(np.abs(expected))
    assert share == pytest.approx(values[[-1, -2]] / values.sum())
    for few in (x[:1], x[:2], x[:, :1], x[:3] * 0):
        points, share = embeddings.plane(few)
        assert points.isfinite().all() and len(share) == 2


@pytest.mark.parametrize('args, message', [
    (['--nearest=ab'], 'nearest=ab: 2 tokens, a b; expected'),
    (['--analogy=a'], "analogy='a': expected words with + or -"),
    (['--analogy=a - '], 'expected words with + or -'),
    (['--compare=a - b'], "compare='a - b': expected two sums"),
    (['--nearest=é'], "character 'é'"),
    (['--top=0'], 'top=0'),
    (['--out=x.jpg'], 'out=x.jpg'),
])
def test_what_cannot_be_drawn_is_one_line(args, message, tmp_path):
    pytest.importorskip('matplotlib')
    write_model(tmp_path / 'm.pt')
    assert message in refused(embeddings, tmp_path / 'm.pt', *args)


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('tokenizer, args', [
    (CHARS, []), (ByteTokenizer(), []), (ByteTokenizer(), ['--nearest=a,b', '--top=3']),
    (CHARS, ['--analogy=a - b + c', '--compare=a - b, c - d']), (CHARS, ['--nearest=a', '--top=1000']),
])
def test_it_is_drawn(tokenizer, args, tmp_path, monkeypatch, capsys):
    pytest.importorskip('matplotlib')
    monkeypatch.chdir(tmp_path)
    write_model('m.pt', tokenizer)
    draw(embeddings, 'm.pt', *args, '--out=x.svg')
    drawn = (tmp_path / 'x.svg').read_text(encoding='utf-8')
    assert '>a<' in drawn and '% of the variance' in drawn
    out = capsys.readouterr().out
    assert ('without the words of the question' in out) == ('--analogy=a - b + c' in args)


def test_weights_that_are_no_numbers(words):
    Model.transformer.wte.weight.data[0, 0] = float('inf')
    with pytest.raises(UserError, match='NaN or infinity'):
        embeddings.Words(Model, FiveWords())


def test_tokens_that_cannot_be_printed(tmp_path):
    pytest.importorskip('matplotlib')
    write_model(tmp_path / 'm.pt', CharTokenizer('\n\t'))
    assert 'none of the tokens can be printed' in refused(embeddings, tmp_path / 'm.pt')
