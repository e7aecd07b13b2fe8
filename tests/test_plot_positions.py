"""plot.py positions: the table that it draws, and what has none."""

import pytest
import torch
from conftest import flags_of, run_main
from test_plot_attention import write_model

import train
from gradus import configurator
from gradus.errors import UserError
from plots import positions


def draw(*args):
    configurator.launch(positions.main, positions.Settings, list(args))


def test_it_draws_sine_and_cosine(tmp_path, monkeypatch):
    pytest.importorskip('matplotlib')
    monkeypatch.chdir(tmp_path)
    draw('--n=10', '--n_embd=7')
    assert (tmp_path / 'positions.png').stat().st_size > 5000


@pytest.mark.parametrize('pos', ['learned', 'sinusoidal'])
def test_the_table_is_what_the_model_adds(pos, place):
    """The embedding of a token at two places differs by two rows of the table."""
    pytest.importorskip('matplotlib')
    flags = flags_of(pos=pos, mlp='gelu', max_iters=2, eval_iters=1, dropout=0.0)
    assert run_main(train, *flags).returncode == 0
    table, _ = positions.table_of(positions.Settings(out_dir='out'))

    from gradus import pretrained
    model = pretrained.build(pretrained.load('out')).eval()
    seen = []
    model.transformer.drop.register_forward_hook(lambda module, args, x: seen.append(x))
    model(torch.full((1, 16), 3))
    torch.testing.assert_close(seen[0][0, 9] - seen[0][0, 2], table[9] - table[2])
    draw('--out_dir=out', '--out=p.svg')
    assert (place / 'p.svg').read_text(encoding='utf-8').startswith('<?xml')


def test_rotary_positions_add_nothing(place):
    pytest.importorskip('matplotlib')
    assert run_main(train, *flags_of(max_iters=1, eval_iters=1)).returncode == 0
    with pytest.raises(UserError, match='pos=rotary, which adds no vector'):
        positions.table_of(positions.Settings(out_dir='out'))


@pytest.mark.parametrize('pos', ['learned', 'sinusoidal'])
def test_a_long_context_is_cut(pos, tmp_path, monkeypatch):
    """All pairs of positions are compared: those of a very long context would fill the memory."""
    pytest.importorskip('matplotlib')
    monkeypatch.chdir(tmp_path)
    write_model('m.pt', block_size=50, pos=pos)
    every, about = positions.table_of(positions.Settings(init_from='m.pt'))
    assert len(every) == 50 and 'first' not in about

    monkeypatch.setattr(positions, 'MOST', 40)
    table, about = positions.table_of(positions.Settings(init_from='m.pt'))
    assert table.equal(every[:40]) and about.startswith('the first 40, ')
