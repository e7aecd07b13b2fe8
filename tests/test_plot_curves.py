"""plot.py curves: which runs are one band, what the lines show, and logs with something missing or broken."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from conftest import settings

from gradus import checkpoint, configurator
from gradus.errors import UserError

pytest.importorskip('matplotlib')

from matplotlib.colors import to_rgb

from plots import curves, runs


def write_run(folder, records, **config):
    """A run's folder: its log, and a checkpoint with these settings if there are any."""
    folder.mkdir(parents=True)
    (folder / 'log.jsonl').write_text(''.join(json.dumps(record) + '\n' for record in records))
    if config:
        checkpoint.save(str(folder / 'ckpt.pt'), dict(model={}, model_args={}, config=config))
    return str(folder)


def text_log(n=40, lift=0.0):
    """The log of a run of train.py: n steps, an evaluation before each tenth one."""
    records = []
    for i in range(n):
        clock = dict(tokens=100 * i, elapsed_s=2.0 * i, lr=1e-3)
        if i % 10 == 0:
            records.append(dict(iter=i, train_loss=4 - i / n + lift, val_loss=4.1 - i / n + lift, **clock))
        records.append(dict(iter=i, loss=4 - i / n + lift, grad_norm=1.0, tokens_per_s=1000, **clock))
    return records


def digit_log():
    return [dict(iter=10 * n, epoch=n, cost=1 / n, accuracy=1 - 0.1 / n, lr=0.1, elapsed_s=float(n)) for n in (1, 2, 3)]


def lines(axes):
    """The (x, y) of the lines in a panel, without empty ones."""
    return [line.get_data() for line in axes.lines if len(line.get_xdata())]


def load(*folders):
    return runs.load([str(folder) for folder in folders])


# ---------------------------------------------------------------------------- groups

def test_seeds_are_one_group(tmp_path):
    a = write_run(tmp_path / 'out-a-1', text_log(), **asdict(settings(seed=1, out_dir='out-a-1')))
    b = write_run(tmp_path / 'out-a-2', text_log(), **asdict(settings(seed=2, out_dir='x', wandb_run_name='b')))
    c = write_run(tmp_path / 'out-c', text_log(), **asdict(settings(seed=1, dropout=0.2)))
    d = write_run(tmp_path / 'out-d', text_log())     # nothing is known of its settings
    e = write_run(tmp_path / 'out-e', text_log())
    groups = runs.group(load(a, c, b, d, e))
    assert [runs.name_of(g) for g in groups] == ['out-a (2 seeds)', 'out-c', 'out-d', 'out-e']


def test_a_resumed_run_is_in_the_group_of_the_others(tmp_path):
    a = write_run(tmp_path / 'out-a', text_log(), **asdict(settings(seed=1)))
    b = write_run(tmp_path / 'out-b', text_log(), **asdict(settings(seed=1, init_from='resume')))
    c = write_run(tmp_path / 'out-c', text_log(), **asdict(settings(seed=1, init_from='gpt2')))
    assert [runs.name_of(g) for g in runs.group(load(a, b, c))] == ['out (2 runs)', 'out-c']


def test_a_damaged_checkpoint_does_not_stop_the_picture(tmp_path, capsys):
    a = write_run(tmp_path / 'out-a', text_log())
    (tmp_path / 'out-a' / 'ckpt.pt').write_bytes(b'PK')
    assert load(a)[0].config == {}
    assert 'drawn without its settings' in capsys.readouterr().err


def test_names(tmp_path):
    """The folder's own name, unless two have the same; no formulas; nothing that the legend hides."""
    x, y, odd = (write_run(tmp_path / path, text_log()) for path in ('x/out', 'y/out', '_$x^$'))
    assert [run.name for run in load(x, odd, x)] == ['out', '_$x^$']
    assert [run.name for run in load(x, y)] == [x, y]
    figure = curves.draw(load(odd))
    assert figure.legends[0].get_texts()[0].get_text() == r' _\$x^\$'


def test_a_log_that_was_put_together_from_two(tmp_path):
    """The later value counts, and lines never run backwards."""
    (run,) = load(write_run(tmp_path / 'out', [dict(iter=i, loss=float(n)) for n, i in enumerate((0, 1, 2, 1, 2, 3))]))
    x, y = runs.series(run, 'iter', 'loss')
    assert x.tolist() == [0, 1, 2, 3] and y.tolist() == [0, 3, 4, 5]


# ---------------------------------------------------------------------------- lines

@pytest.mark.parametrize('x, factor, label', [('iter', 1, 'iterations'), ('tokens', 100, 'tokens'),
                                              ('seconds', 2, 'seconds of training')])
def test_what_is_drawn(x, factor, label, tmp_path):
    """Few values are drawn as they are, over the x that was asked for."""
    figure = curves.draw(load(write_run(tmp_path / 'out', text_log())), x)
    losses, rates, speeds = figure.axes
    (train_x, train_y), (val_x, val_y) = lines(losses)
    assert train_x.tolist() == [factor * i for i in range(40)]
    assert train_y == pytest.approx([4 - i / 40 for i in range(40)])
    assert val_x.tolist() == [0, 10 * factor, 20 * factor, 30 * factor]
    assert val_y == pytest.approx([4.1, 3.85, 3.6, 3.35])
    assert set(lines(rates)[0][1]) == {1e-3} and set(lines(speeds)[0][1]) == {1000}
    assert speeds.get_xlabel() == label and losses.get_ylabel() == 'loss in nats per token'


def test_a_band_is_the_mean_and_the_extremes_of_its_runs(tmp_path):
    lifts = (0.0, 0.1, 0.5)
    folders = [write_run(tmp_path / f'out-{n}', text_log(lift=lift), **asdict(settings(seed=n)))
               for n, lift in enumerate(lifts)]
    losses = curves.draw(load(*folders)).axes[0]
    (x, y), _ = lines(losses)
    assert y == pytest.approx([4 - i / 40 + np.mean(lifts) for i in range(40)])
    corners = losses.collections[0].get_paths()[0].vertices
    at_20 = corners[corners[:, 0] == 20, 1]
    assert (at_20.min(), at_20.max()) == pytest.approx((3.5, 4.0))


def test_a_band_where_one_run_ended_early(tmp_path):
    a = write_run(tmp_path / 'out-1', text_log(40), **asdict(settings(seed=1)))
    b = write_run(tmp_path / 'out-2', text_log(40, lift=1)[:22], **asdict(settings(seed=2)))
    (x, y), _ = lines(curves.draw(load(a, b)).axes[0])
    assert y[:2] == pytest.approx([4.5, 4.475]) and y[-1] == pytest.approx(4 - 39 / 40)


def test_smoothing_is_a_moving_average():
    """As a plain loop has it. A straight line stays straight, but for the end, where there are no later values."""
    n = 400
    y = np.random.default_rng(0).normal(size=n)
    half = n // (2 * curves.PART)
    expected = []
    for i in range(n):
        reach = min(i, half)
        window = [y[j] for j in range(i - reach, i + reach + 1) if j < n]
        expected.append(sum(window) / len(window))
    x, smooth = curves.smoothed(np.arange(n), y)
    assert smooth == pytest.approx(expected)
    assert smooth.std() < 0.6 * y.std()               # and it does smooth
    straight = curves.smoothed(np.arange(n), np.arange(n))[1]
    assert straight[:-half] == pytest.approx(np.arange(n)[:-half])


def test_a_noisy_loss_is_averaged_and_shown_faintly_too(tmp_path):
    figure = curves.draw(load(write_run(tmp_path / 'out', text_log(200))))
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ['out', 'train loss, averaged over 1/40 of the run', 'as logged', 'val loss']
    few = curves.draw(load(write_run(tmp_path / 'few', text_log(20))))
    assert [text.get_text() for text in few.legends[0].get_texts()] == ['few', 'train loss', 'val loss']


def test_a_spike_survives_in_a_long_log():
    y = np.zeros(100_000)
    y[54_321] = 9
    x, drawn = curves.extremes(np.arange(len(y)), y)
    assert len(drawn) <= 2 * curves.MOST and x[drawn.argmax()] == 54_321
    assert 9 not in curves.thinned(y)                 # negative control


def test_skipped_steps_are_marked(tmp_path):
    records = text_log(30) + [dict(iter=i, skipped='loss is nan', tokens=3000, elapsed_s=60.0) for i in (30, 31)]
    figure = curves.draw(load(write_run(tmp_path / 'out', records)))
    crosses = [line.get_xdata() for line in figure.axes[0].lines if line.get_marker() == 'x']
    assert [list(at) for at in crosses if len(at)] == [[30, 31]]
    assert 'skipped step' in [text.get_text() for text in figure.legends[0].get_texts()]


def test_runs_without_some_of_it(tmp_path):
    """Without an evaluation; with evaluations alone; without a single finite loss."""
    steps = [r for r in text_log() if 'loss' in r]
    evaluations = [r for r in text_log() if 'val_loss' in r]
    broken = [dict(iter=i, loss=float('nan')) for i in range(5)]
    for name, records, n_lines in (('a', steps, 1), ('b', evaluations, 2), ('c', broken, 0)):
        figure = curves.draw(load(write_run(tmp_path / name, records)))
        figure.draw_without_rendering()
        assert len(lines(figure.axes[0])) == n_lines


def test_digits(tmp_path):
    figure = curves.draw(load(write_run(tmp_path / 'out-mnist', digit_log())))
    costs, accuracies, rates = figure.axes
    assert lines(costs)[0][1] == pytest.approx([1, 1 / 2, 1 / 3])
    assert lines(accuracies)[0][1] == pytest.approx([90, 95, 100 - 10 / 3])
    assert accuracies.get_ylabel() == 'accuracy in %' and rates.get_ylabel() == 'learning rate eta'


def test_a_scale_that_flattens_nothing(tmp_path):
    usual = curves.draw(load(write_run(tmp_path / 'a', text_log())))
    records = [*text_log(), dict(iter=40, loss=5000.0)]
    spike = curves.draw(load(write_run(tmp_path / 'b', records)))
    assert usual.axes[0].get_yscale() == 'linear' and spike.axes[0].get_yscale() == 'log'
    assert 'log scale' in spike.axes[0].get_ylabel()


# ---------------------------------------------------------------------------- many runs, odd values, errors

def test_twelve_runs_stay_apart(tmp_path):
    """Each has a style of its own, the legend names all and covers no panel."""
    folders = [write_run(tmp_path / f'out-{n:02}', text_log(lift=n / 10)) for n in range(12)]
    figure = curves.draw(load(*folders))
    figure.draw_without_rendering()
    styles = {(to_rgb(style['color']), str(style['linestyle'])) for style in map(curves.color_and_dashes, range(36))}
    assert len(styles) == 36
    legend = figure.legends[0]
    assert len(legend.get_texts()) == 12 + 2
    assert overlaps(figure, legend) == []
    legend.set_loc('upper right')                     # negative control
    assert overlaps(figure, legend) == [0]


def overlaps(figure, legend):
    """The numbers of the panels that the legend covers."""
    covered = legend.get_window_extent()
    return [i for i, axes in enumerate(figure.axes) if covered.overlaps(axes.get_window_extent())]


def test_odd_values_are_left_out(tmp_path):
    values = ['NaN', 'Infinity', '1e308', '1' + '0' * 400, '"x"', '[]', '{}', 'null', 'true', '-1', '0', '1e99', '3.0']
    (tmp_path / 'out').mkdir()
    with open(tmp_path / 'out/log.jsonl', 'w') as f:
        for i, v in enumerate(values * 10):
            w = values[i * 5 % len(values)]
            f.write(f'{{"iter": {i}, "loss": {v}, "val_loss": {w}, "lr": {v}, "tokens": {w}, "tokens_per_s": {w}}}\n')
    for x in ('iter', 'tokens'):
        curves.draw(load(tmp_path / 'out'), x).draw_without_rendering()


def draw_with(*argv):
    curves.main(configurator.load(curves.Settings, [str(arg) for arg in argv], names='runs'))


def test_errors_are_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = write_run(tmp_path / 'out', text_log())
    digits = write_run(tmp_path / 'out-mnist', digit_log())
    neither = write_run(tmp_path / 'neither', [dict(iter=1)])
    (tmp_path / 'empty').mkdir()
    for argv, message in (((), 'no runs given'),
                          (('missing',), '^missing: no such run'),
                          ((text, 'empty'), '^empty: no log.jsonl'),
                          ((neither,), 'neither losses nor costs'),
                          ((text, digits), 'out is a run of train.py and .*out-mnist one of mlp_mnist.py'),
                          ((digits, '--x=tokens'), '^x=tokens: .*out-mnist does not log it'),
                          ((text, '--x=epochs'), '^x=.epochs.: expected one of'),
                          ((text, '--out=x.jpg'), '^out=x.jpg: ')):
        with pytest.raises(UserError, match=message) as e:
            draw_with(*argv)
        assert '\n' not in str(e.value)
    assert not (tmp_path / 'curves.png').exists()
    draw_with(text)
    assert (tmp_path / 'curves.png').read_bytes().startswith(b'\x89PNG')


def test_a_single_loss_is_seen(tmp_path):
    """A line needs two points. With more it has no dots."""
    for n, marker in ((1, 'o'), (2, 'None')):
        run = write_run(tmp_path / str(n), [dict(iter=i, loss=4.0) for i in range(n)])
        line = next(line for line in curves.draw(load(run)).axes[0].lines if len(line.get_xdata()) == n)
        assert line.get_marker() == marker


def test_a_long_name_leaves_room_for_the_curves(tmp_path):
    """Its middle is left out, because names often differ at their ends."""
    pair = [write_run(tmp_path / ('long' * 50 + end), text_log()) for end in ('-a', '-b')]
    figure = curves.draw(load(*pair))
    figure.draw_without_rendering()
    assert figure.axes[0].get_window_extent().height > 200
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[0].endswith('…' + 'long' * 7 + '-a') and labels[1].endswith('-b')


def test_an_x_without_numbers_is_refused(tmp_path):
    run = write_run(tmp_path / 'a', [dict(iter=1, loss=4.0, tokens='many')])
    with pytest.raises(UserError, match='x=tokens'):
        curves.draw(load(run), 'tokens')
    assert curves.draw(load(run), 'iter')
