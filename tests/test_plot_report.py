"""plot.py report: what it finds in a log, and that whatever a file holds is only ever text on the page."""

import json
import math
import statistics
from dataclasses import asdict
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from conftest import run_main, settings

import mlp_mnist
import train
from gradus import checkpoint, configurator
from gradus.errors import UserError
from model import GPT, MLP, GPTConfig

pytest.importorskip('matplotlib')

from plots import findings, made_of, page, report, runs


class Page(HTMLParser):
    """What a browser would make of a page: its elements, their attributes and its text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.attributes, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append(tag)
        self.attributes += attributes

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return ' '.join(' '.join(self.words).split())


def dangerous(page):
    """What could run code, or reach the network, in a `Page`."""
    elements = {'script', 'link', 'iframe', 'object', 'embed', 'img', 'base', 'form', 'b'} & set(page.elements)
    handlers = [name for name, _ in page.attributes if name.startswith('on')]
    links = [value for name, value in page.attributes if name.endswith(('src', 'href')) and not value.startswith('#')]
    return [*elements, *handlers, *links]


def write_run(folder, records, config, model=None):
    """A run's folder: log and checkpoint."""
    folder.mkdir()
    (folder / 'log.jsonl').write_text(''.join(json.dumps(record) + '\n' for record in records), encoding='utf-8')
    model = model or GPT(GPTConfig(vocab_size=65, block_size=8, n_layer=2, n_head=2, n_embd=8, bias=False))
    state = dict(model=model.state_dict(), model_args=checkpoint.model_args(model.config), config=asdict(config))
    checkpoint.save(str(folder / 'ckpt.pt'), state)
    return str(folder)


def steps(losses, **more):
    return [dict(iter=i, loss=loss, grad_norm=1.5, lr=1e-3, **more) for i, loss in enumerate(losses)]


def evaluations(*pairs):
    return [dict(iter=100 * i, train_loss=train, val_loss=val) for i, (train, val) in enumerate(pairs)]


def write(*folders):
    return Page(report.write(runs.load(list(folders))))


def section(of, *folders):
    """The text of one section, report.first_loss for example: the whole page takes longer."""
    found = runs.load(list(folders))
    shapes = [made_of.shape_of(run) for run in found]
    takes_shapes = of in (report.first_loss, made_of.weights)
    return Page(of(found, shapes) if takes_shapes else of(found)).text


# ---------------------------------------------------------------------------- safety

def test_hostile_text_stays_text(tmp_path):
    """In the log, the settings and the names of folders: no element, no attribute, no address comes from them."""
    evil = '"\'><script>alert(1)</script><img src=http://x onerror=alert(2)> <b>$title &amp;\ud800\0'
    records = [dict(iter=0, loss=evil, lr=evil, grad_norm=evil, tokens_per_s=evil, val_loss=evil),
               *steps([4.0] * 30, sample=evil, update_ratio={evil: 1e-3, 'attention': 2e-3}),
               dict(iter=31, skipped=evil, lr=evil)]
    folders = [write_run(tmp_path / name, records, settings(dataset=evil, seed=seed))
               for seed, name in enumerate(('<script>alert(3)<', "_'onload='x $x^$"))]
    found = write(*folders)
    assert dangerous(found) == []
    assert '<script>alert(1)</script>' in found.text and '<script>alert(3)<' in found.text
    assert '$title' in found.text


def test_what_this_test_would_find():
    """Negative control."""
    assert dangerous(Page('<p onclick="x"><script src="a.js"></script>')) == ['script', 'onclick', 'a.js']
    assert dangerous(Page(page.table(['x'], [[page.Html('<b>')]]))) == ['b']
    assert dangerous(Page(page.table(['x'], [['<b>']]))) == []


def test_the_page_needs_nothing_else(tmp_path):
    text = report.write(runs.load([write_run(tmp_path / 'out', steps([4.0] * 5), settings())]))
    assert "default-src 'none'" in text
    assert '@import' not in text and 'url(h' not in text and '$' not in text.split('<body>')[0]


# ---------------------------------------------------------------------------- findings

@pytest.mark.parametrize('loss, words', [(math.log(65), 'It fits'), (math.log(65) * 1.04, 'It fits'),
                                         (math.log(65) * 1.06, 'too high'), (9.0, 'too high'), (1.2, 'too low')])
def test_the_first_loss(loss, words, tmp_path):
    text = section(report.first_loss, write_run(tmp_path / 'out', steps([loss, 4.0]), settings()))
    assert 'ln 65 = 4.174' in text and words in text


def test_the_first_loss_of_others(tmp_path):
    """Of a fine-tuned model, of a log that begins later, and of a model that was just made: that one must fit."""
    tuned = write_run(tmp_path / 'tuned', steps([1.2, 1.1]), settings(init_from='gpt2'))
    later = write_run(tmp_path / 'later', steps([3.0] * 5)[2:], settings())
    assert "training started from 'gpt2'" in section(report.first_loss, tuned)
    assert 'does not begin at iteration 0' in section(report.first_loss, later)

    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=65, block_size=8, n_layer=2, n_head=2, n_embd=8))
    ids = torch.randint(65, (8, 9))
    loss = model(ids[:, :-1], ids[:, 1:])[1].item()
    assert 'It fits' in section(report.first_loss, write_run(tmp_path / 'new', steps([loss]), settings()))


@pytest.mark.parametrize('pairs, what, at', [
    ([(4, 4), (3, 3.2), (2, 3.0)], 'falling', 200),
    ([(4, 4), (3, 3.2), (2, 3.3), (1, 3.9)], 'overfitting', 100),
    ([(4, 4), (3, 3.2), (2.9, 3.21)], 'level', 100),
    ([(4, 4), (3, 3.2), (3.5, 3.6)], 'unstable', 100),
])
def test_where_overfitting_began(pairs, what, at, tmp_path):
    lowest, last, found = findings.overfitting(evaluations(*pairs))
    assert (found, lowest['iter']) == (what, at)
    assert lowest['val_loss'] == min(val for _, val in pairs) and last['val_loss'] == pairs[-1][1]
    text = section(report.overfitting, write_run(tmp_path / 'out', evaluations(*pairs), settings()))
    assert ('Not yet' in text) == (what in ('falling', 'level'))


def test_too_few_evaluations():
    assert findings.overfitting(evaluations((4, 4))) is None
    assert findings.overfitting([*evaluations((4, 4)), dict(iter=9, train_loss=math.nan, val_loss=1)]) is None


def test_spikes(tmp_path):
    """Found where they were put, and nowhere in noise or in a loss that falls steeply."""
    r = np.random.default_rng(0)
    losses = (2 + 2 * np.exp(-np.arange(500) / 50) + r.normal(0, 0.05, 500)).tolist()
    assert findings.events(steps(losses)) == []
    losses[4] = 6.0
    losses[300] = 3.5
    losses[302] = 3.0
    found = findings.events(steps(losses))
    assert [[record['iter'] for record, mark in zip(e.records, e.marks) if mark] for e in found] == [[4], [300, 302]]
    assert [record['iter'] for record in found[1].records] == list(range(297, 306))
    assert found[1].height == pytest.approx(3.5 / statistics.median(losses[280:300]))
    text = section(report.wrong_steps, write_run(tmp_path / 'out', steps(losses), settings()))
    assert 'Skipped steps: 0; spikes: 2.' in text and '300 3.5 1.5 0.001 spike' in text


def test_skipped_steps(tmp_path):
    records = steps([4.0, 3.9]) + [dict(iter=2, skipped='loss is nan', lr=0.5)] + steps([3.8] * 9)[3:]
    found = findings.events(records)
    assert [event.marks for event in found] == [['', '', 'skipped', '', '', '']]
    out = write_run(tmp_path / 'out', records, settings())
    assert 'skipped: loss is nan' in section(report.wrong_steps, out)


def test_quartiles():
    speeds = [5, 1, 4, 9, 2, 6, 7]
    records = [dict(iter=i, tokens_per_s=speed) for i, speed in enumerate(speeds)]
    assert findings.quartiles(records, 'tokens_per_s') == statistics.quantiles(speeds, n=4, method='inclusive')
    assert findings.quartiles(records, 'mfu') is None


def test_samples_are_spread_over_the_run():
    assert findings.evenly(list(range(11)), 6) == [0, 2, 4, 6, 8, 10]
    assert findings.evenly([1, 2], 6) == [1, 2] and findings.evenly([], 6) == []


def test_update_ratios():
    records = [dict(iter=i, update_ratio={'attention': 1e-3 * i, 'norm': math.nan, 'x': 'y'}) for i in range(3)]
    assert findings.update_ratios([*records, dict(iter=3, update_ratio=[1])]) == {'attention': ([1, 2], [1e-3, 2e-3])}
    assert len(findings.update_ratios([dict(iter=0, update_ratio={str(n): 1 for n in range(99)})])) == 8


def test_durations():
    assert [page.duration(s) for s in (None, 8.44, 200, 3900)] == ['', '8.4 s', '3 min 20 s', '1 h 5 min']
    assert page.duration(-1.0) == page.duration(1e99) == ''


# ---------------------------------------------------------------------------- weights and settings

@pytest.mark.parametrize('tie', [True, False])
def test_the_weights_add_up(tie, tmp_path):
    model = GPT(GPTConfig(vocab_size=65, block_size=8, n_layer=2, n_head=2, n_embd=8, tie_weights=tie, mlp='swiglu'))
    text = section(made_of.weights, write_run(tmp_path / 'out', steps([4.0]), settings(), model))
    n = model.num_params()
    assert (f'{n:,} different weights' if tie else f'sum {n:,}') in text


def test_a_single_run_is_compared_with_the_defaults(tmp_path):
    out = write_run(tmp_path / 'out', steps([4.0]), train.TrainConfig(dropout=0.25, out_dir='elsewhere'))
    assert section(made_of.settings, out).endswith('default out dropout 0.0 0.25')


def test_two_runs_are_compared_with_each_other(tmp_path):
    a = write_run(tmp_path / 'out-a', steps([4.0]), settings(beta2=0.99))
    b = write_run(tmp_path / 'out-b', steps([4.0]), settings(seed=7))
    assert section(made_of.settings, a, b).endswith('out-a out-b beta2 0.99 0.95 seed 1337 7')


def test_a_run_without_a_checkpoint(tmp_path):
    folder = tmp_path / 'out'
    folder.mkdir()
    (folder / 'log.jsonl').write_text('{"iter": 0, "loss": 4.2}\n')
    text = write(str(folder)).text
    assert 'nobody knows the vocabulary' in text and 'Where the weights are' not in text


def test_a_run_that_never_was_finite(tmp_path):
    """Nor is any number in it of a size that can be printed."""
    records = [dict(iter=10 ** (i * 9), loss=v, val_loss=v, train_loss=1.0, lr=v, tokens=v, elapsed_s=v, mfu=v)
               for i, v in enumerate((math.nan, math.inf, 1e308, -1e99, 10 ** 400, True, None, [], {}, 0))]
    words = write(write_run(tmp_path / 'out', records, settings())).text.split()
    assert max(words, key=len)[60:] == ''


# ---------------------------------------------------------------------------- real runs

def report_with(*argv):
    report.main(configurator.load(report.Settings, [str(arg) for arg in argv], names='runs'))


def test_a_real_run(place):
    flags = [f'--{key}={value}' for key, value in asdict(settings(max_iters=10, eval_interval=5)).items()]
    assert run_main(train, *flags).returncode == 0
    report_with('out')
    found = Page((place / 'report.html').read_text(encoding='utf-8'))
    assert 'It fits' in found.text and 'Settings that are not the defaults' in found.text
    assert found.elements.count('svg') == 2 and dangerous(found) == []       # losses, update ratios


def test_digits(digits_place, tmp_path):
    assert run_main(mlp_mnist, '--sizes=784-8-10', '--n_train=200', '--mini_batch_size=20', '--epochs=2',
                    '--device=cpu').returncode == 0
    report_with('out-mnist', '--out=digits.html')
    text = Page((tmp_path / 'digits.html').read_text(encoding='utf-8')).text
    n = sum(p.numel() for p in MLP((784, 8, 10)).parameters())
    assert f'sum {n:,}' in text and 'The cost was lowest' in text and 'for 400 images' in text
    assert 'first loss' not in text


def test_errors_are_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / 'out', steps([4.0]), settings())
    for argv, message in (((), 'no runs given'), (('a', 'b', 'c'), '3 runs given: expected one or two'),
                          (('missing',), '^missing: no such run'), (('out', '--out=x.png'), '^out=x.png: ')):
        with pytest.raises(UserError, match=message):
            report_with(*argv)
