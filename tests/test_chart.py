"""The chart of a run's losses in the terminal."""

import math
import random

import pytest
from conftest import read_log, settings

import train
from gradus import chart


def grid(text):
    """The plot area of a chart, row by row, and the values at its first and last row."""
    rows = [line for line in text.splitlines() if line[10:11] == '|']
    return [row[11:] for row in rows], float(rows[0][:9]), float(rows[-1][:9])


def points_of(text, mark, width=60):
    """{column: row} of a mark."""
    return {column: n for n, row in enumerate(grid(text)[0]) for column, c in enumerate(row) if c == mark}


def decay(n, final=1.2):
    return [(i, final + 3 / (1 + 20 * i / n)) for i in range(n)]


def test_a_line_is_a_line():
    """61 points on a straight line in a square: the diagonal."""
    text = chart.draw({'val loss': [(i, 10 - i / 6) for i in range(61)]}, width=61, height=61)
    rows, top, bottom = grid(text)
    assert (top, bottom) == (10, 0)
    assert points_of(text, 'o') == {i: i for i in range(61)}


def test_marks_are_where_their_values_are():
    """Reading the chart back gives the points, half a row exact; a column of many is their mean."""
    r = random.Random(0)
    points = [(i, y + r.uniform(-0.3, 0.3)) for i, y in decay(600)]
    text = chart.draw({'a': points})
    rows, top, bottom = grid(text)
    half = (top - bottom) / 12 / 2
    found = points_of(text, 'o')
    assert len(found) > 50
    for column, row in found.items():
        inside = [y for x, y in points if round(x / 599 * 59) == column]
        assert abs(top - row * 2 * half - sum(inside) / len(inside)) <= half * 1.01


def test_two_series_with_axes_that_fit_80_columns():
    text = chart.draw({'val loss': [(0, 4.2), (500, 1.5), (1000, 1.3)], 'train loss': decay(1000)})
    lines = text.splitlines()
    assert text.isascii()
    assert len(lines) == 1 + 13 + 2
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == 'o val loss . train loss ^ higher'.split()
    assert lines[-1].split() == ['0', 'iterations', '1,000']
    assert 'o' in text and '.' in text


@pytest.mark.parametrize('first', [11.0, 1000.0, 1e300])
def test_a_first_loss_far_above_does_not_squash_the_rest(first):
    for n in (6, 60, 2000):
        points = [(0, first), *((i, 3.5 - i / n) for i in range(1, n))]
        text = chart.draw({'val loss': points})
        assert len(set(points_of(text, 'o').values())) >= min(n - 1, 8)
        assert set(points_of(text, '^')) <= {0}
        assert n == 2000 or points_of(text, '^') == {0: 0}        # with 2000, the first column is a mean of many


def test_that_would_squash_it(monkeypatch):
    """Negative control: from the lowest value to the highest."""
    monkeypatch.setattr(chart, '_range', lambda values: (min(values), max(values)))
    text = chart.draw({'val loss': [(0, 1000.0), *((i, 3.5 - i / 60) for i in range(1, 60))]})
    assert len(set(points_of(text, 'o').values())) == 2


def test_what_is_not_finite_is_left_out():
    good = decay(100)
    bad = [(7, math.nan), (8, math.inf), (math.nan, 1.0), (9, -math.inf)]
    assert chart.draw({'a': good + bad}) == chart.draw({'a': good})


@pytest.mark.parametrize('series', [{}, {'a': []}, {'a': [(0, 1.0), (1, 2.0)]}, {'a': [(5, 1.0)] * 9},
                                    {'a': [(0, 1.0)], 'b': [(1, 2.0), (1, 3.0), (2, math.nan)]}])
def test_too_few_points(series):
    assert chart.draw(series) == ''


@pytest.mark.parametrize('values', [[2.0] * 50, [0.0] * 50, [5.0, 1.0, 1.0, 1.0], [1e-12, 2e-12, 3e-12], [-3, -1, 2],
                                    [1e300, 1e301, 1e302], [0.0] * 60 + [7.0]])
def test_odd_values(values):
    text = chart.draw({'a': list(enumerate(values))})
    rows, top, bottom = grid(text)
    assert bottom < top
    assert points_of(text, 'o')
    assert max(map(len, text.splitlines())) <= 80


def test_a_run_ends_with_its_chart(place, capsys):
    """Of all its iterations, even if it was resumed."""
    train.main(settings(max_iters=10, n_layer=1))
    train.main(settings(max_iters=30, n_layer=1, init_from='resume'))
    out = capsys.readouterr().out
    chart.show('out')
    chart_at_the_end = capsys.readouterr().out.rstrip('\n')
    assert chart_at_the_end.splitlines()[-1].split() == ['0', 'iterations', '30']
    assert len(points_of(chart_at_the_end, '.')) + len(points_of(chart_at_the_end, 'o')) > 25
    assert f'{chart_at_the_end}\ndone: ' in out

    capsys.readouterr()
    train.main(settings(max_iters=1, n_layer=1))
    assert '---+' not in capsys.readouterr().out      # too short for one


@pytest.mark.parametrize('content', [b'', b'\xff\xfe\0', b'[' * 10_000, b'{"iter": 1, "loss": 1' + b'0' * 400 + b'}\n',
                                     b'{"iter": 1' + b'0' * 400 + b', "loss": 1}\n' * 9])
def test_a_log_that_cannot_be_drawn_ends_nothing(tmp_path, content, capsys):
    (tmp_path / 'log.jsonl').write_bytes(content)
    chart.show(tmp_path)
    chart.show(tmp_path / 'missing')
    assert capsys.readouterr().out.count('\n') <= 2


def test_the_end_of_a_run_survives_a_lost_log(place, monkeypatch, capsys):
    monkeypatch.setattr(chart.log, 'read', lambda folder: 1 / 0)
    train.main(settings(max_iters=3, n_layer=1))
    out = capsys.readouterr().out
    assert 'no chart of the losses: ZeroDivisionError\ndone: ' in out
    assert read_log('out')
