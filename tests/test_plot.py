"""plot.py: how it finds its pictures, and what all of them share."""

import re
import runpy
import sys

import pytest
from conftest import REPO

from gradus import log
from gradus.errors import UserError

PICTURES = runpy.run_path(str(REPO / 'plot.py'))['names']()


@pytest.mark.parametrize('name', PICTURES)
def test_every_picture_has_help_and_is_listed(name, monkeypatch, capsys):
    plot = runpy.run_path(str(REPO / 'plot.py'))
    monkeypatch.setattr(sys, 'argv', ['plot.py', name, '--help'])
    with pytest.raises(SystemExit) as e:
        plot['main']()
    assert not e.value.code
    assert '--out' in capsys.readouterr().out
    assert f'python plot.py {name} ' in plot['__doc__']


def test_what_is_a_picture():
    """Not every file in plots/ is: some are what the others share."""
    plot = runpy.run_path(str(REPO / 'plot.py'))
    assert set(re.findall(r'    python plot.py (\w+) ', plot['__doc__'])) == set(PICTURES)
    assert not {'browser', 'figures', 'findings', 'made_of', 'page', 'runs'} & set(PICTURES)


def test_an_unknown_picture(monkeypatch):
    plot = runpy.run_path(str(REPO / 'plot.py'))
    monkeypatch.setattr(sys, 'argv', ['plot.py', 'curve'])
    with pytest.raises(UserError, match='plot.py curve: expected one of'):
        plot['main']()


def test_a_missing_matplotlib_is_one_line(monkeypatch):
    from plots import figures
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    with pytest.raises(UserError, match='pip install matplotlib'):
        figures.check_out('x.png')


@pytest.mark.parametrize('out', ['picture', 'picture.jpg', 'folder.png'])
def test_what_cannot_be_the_file_of_a_picture(out, tmp_path, monkeypatch):
    pytest.importorskip('matplotlib')
    from plots import figures
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'folder.png').mkdir()
    with pytest.raises(UserError, match=f'^out={out}: '):
        figures.check_out(out)


@pytest.mark.parametrize('ending', ['png', 'svg', 'pdf'])
def test_the_same_picture_is_the_same_file(ending, tmp_path):
    pytest.importorskip('matplotlib')
    from plots import figures
    contents = []
    for n in (1, 2, 3):
        figure = figures.new_figure(2, 2)
        figure.subplots().plot([1, 2], [3, 4 + (n == 3)])
        figures.save(figure, str(tmp_path / f'{n}.{ending}'))
        contents.append((tmp_path / f'{n}.{ending}').read_bytes())
    assert contents[0] == contents[1]
    assert contents[0] != contents[2]


# ---------------------------------------------------------------------------- reading a log

def test_reading_a_log(tmp_path):
    """Broken lines are left out, whatever is wrong with them."""
    lines = ['{"iter": 0, "loss": 4.5}', 'garbage', '[1]', '{"loss": 1}', '{"iter": "1"}', '[' * 100_000,
             '{"iter": 2, "loss": NaN}', '{"iter": 3, "loss": 2.5}', '{"iter": 4, "lo']
    (tmp_path / 'log.jsonl').write_text('\n'.join(lines))
    records = log.read(str(tmp_path))
    assert [r['iter'] for r in records] == [0, 2, 3]
    assert log.numbers(records, 'iter', 'loss') == [(0, 4.5), (3, 2.5)]
    assert log.numbers(records, 'iter', 'val_loss') == []


def test_what_is_no_log(tmp_path):
    with pytest.raises(UserError, match='no such run'):
        log.read(str(tmp_path / 'out-missing'))
    with pytest.raises(UserError, match='no log.jsonl in it'):
        log.read(str(tmp_path))
    (tmp_path / 'log.jsonl').write_text('\n')
    with pytest.raises(UserError, match='no records in it'):
        log.read(str(tmp_path))
