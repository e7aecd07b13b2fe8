"""
Draw how runs went: losses, learning rate and speed.

    python plot.py curves out-a out-b                        over iterations
    python plot.py curves out-a-1 out-a-2 --x=seconds        over time: which run is faster where?
    python plot.py curves out-mnist                          cost, accuracy and eta of mlp_mnist.py

Runs that differ only in their seed are drawn as one: their mean, and a band from the lowest to the highest.
"""

from dataclasses import dataclass

import numpy as np

from gradus import configurator
from gradus.errors import UserError
from gradus.log import is_number
from plots import figures
from plots.runs import group, load, name_of, series

NAMES = 'runs'


@dataclass
class Settings:
    out: str = 'curves.png'           # file to write: .png, .svg or .pdf
    x: str = 'iter'                   # over iter (iterations), tokens, or seconds


X = {'iter': ('iter', 'iterations'), 'tokens': ('tokens', 'tokens'), 'seconds': ('elapsed_s', 'seconds of training')}
MOST = 500                            # points in a line: more than this, no picture can show
PART = 40                             # noisy values are averaged over 1/40 of the run


def main(cfg):
    configurator.check_choice(cfg, x=tuple(X))
    figures.check_out(cfg.out)
    figures.save(draw(load(cfg.runs), cfg.x), cfg.out)


def draw(runs, x='iter'):
    """The picture of these runs, a matplotlib Figure: three panels over `x`. Raises UserError if a run has no `x`."""
    x, x_label = X[x]
    for run in runs:
        if not any(is_number(record.get(x)) for record in run.records):
            raise UserError(f'x={x}: {run.folder} does not log it; expected --x=iter or --x=seconds')
    groups = group(runs)
    figure = figures.new_figure(8, 7 + 0.1 * len(groups))
    panels = figure.subplots(3, 1, sharex=True, height_ratios=(2, 1, 1))
    panels[-1].set_xlabel(x_label)

    if runs[0].digits:
        draw_digits(panels, groups, x)
        kinds = []
    else:
        kinds = draw_text(panels, groups, x)
        panels[2].yaxis.set_major_formatter('{x:,.9g}')
    if x != 'elapsed_s':
        panels[-1].xaxis.set_major_formatter('{x:,.9g}')
    add_legend(figure, groups, kinds)
    return figure


def draw_text(panels, groups, x):
    """The panels of runs of train.py. Returns what the kinds of lines mean, as (style, meaning), for the legend."""
    few = len(groups) <= 3                            # with more, what is faint would hide the lines
    kinds = []
    for i, runs in enumerate(groups):
        train = [series(run, x, 'loss') for run in runs]
        if not any(len(values) for _, values in train):         # log_interval was longer than the run
            train = [series(run, x, 'train_loss') for run in runs]
        kinds += draw_noisy(panels[0], train, color_and_dashes(i), few)
        draw_line(panels[0], [series(run, x, 'val_loss') for run in runs], marked(color_and_dashes(i)))
        draw_line(panels[1], [series(run, x, 'lr') for run in runs], color_and_dashes(i))
        draw_noisy(panels[2], [series(run, x, 'tokens_per_s') for run in runs], color_and_dashes(i), few)
        draw_skipped(panels[0], runs, x, i)

    label(panels[0], groups, x, ('loss', 'val_loss'), 'loss in nats per token')
    label(panels[1], groups, x, ('lr',), 'learning rate')
    panels[2].set_ylabel('tokens per second')
    panels[2].set_ylim(bottom=0)

    average = f'train loss, averaged over 1/{PART} of the run' if 'averaged' in kinds else 'train loss'
    meaning = [(dict(color='gray'), average), (marked(dict(color='gray')), 'val loss')]
    if 'faint' in kinds:
        meaning.insert(1, (dict(color='gray', linewidth=0.8, alpha=0.4), 'as logged'))
    if any('skipped' in record for runs in groups for run in runs for record in run.records):
        meaning.append((dict(color='gray', marker='x', linestyle='none'), 'skipped step'))
    return meaning


def draw_digits(panels, groups, x):
    """The panels of runs of mlp_mnist.py."""
    for i, runs in enumerate(groups):
        style = marked(color_and_dashes(i))
        draw_line(panels[0], [series(run, x, 'cost') for run in runs], style)
        accuracies = [series(run, x, 'accuracy') for run in runs]
        draw_line(panels[1], [(at, 100 * values) for at, values in accuracies], style)
        draw_line(panels[2], [series(run, x, 'lr') for run in runs], style)
    label(panels[0], groups, x, ('cost',), 'cost of unseen images')
    panels[1].set_ylabel('accuracy in %')
    label(panels[2], groups, x, ('lr',), 'learning rate eta')


def label(axes, groups, x, keys, text):
    """
    Label the axis of the values of these keys. Its scale is a logarithm if a linear one would flatten something: a
    run that is ten times lower than another, or one that is ten times as high somewhere as it usually is.
    """
    series_of_runs = [series(run, x, key)[1] for runs in groups for run in runs for key in keys]
    series_of_runs = [values[values > 0] for values in series_of_runs if (values > 0).any()]
    if series_of_runs:
        usual = [np.median(values) for values in series_of_runs]
        highest = max(values.max() for values in series_of_runs)
        if highest > 10 * min(usual):
            axes.set_yscale('log', nonpositive='mask')
            text += ' (log scale)'
        elif keys == ('lr',):
            axes.set_ylim(bottom=0)
    axes.set_ylabel(text)


def add_legend(figure, groups, kinds):
    """One legend below the panels, where it covers nothing."""
    from matplotlib.lines import Line2D
    entries = [(color_and_dashes(i), name_of(runs)) for i, runs in enumerate(groups)] + kinds
    handles = [Line2D([], [], **style) for style, _ in entries]
    labels = [label for _, label in entries]
    columns = max(1, min(4, 100 // (max(map(len, labels)) + 8)))
    figure.legend(handles, labels, loc='outside lower center', ncols=columns, handlelength=4, frameon=False)


# ---------------------------------------------------------------------------- lines

def color_and_dashes(i):
    """The style of group i: 36 of them differ."""
    n = len(figures.COLORS)
    return dict(color=figures.COLORS[i % n], linestyle=figures.DASHES[(i + i // n) % n])


def marked(style):
    """The style with a dot at each value: few values, and nothing known of what is between them."""
    return dict(style, marker='o', markersize=4, linewidth=0.8)


def draw_line(axes, runs, style):
    """
    The line of a group. runs: (x, y) of each of them, arrays. Of several, draw the mean and a band from the lowest to
    the highest, where they have values.
    """
    runs = [(x, y) for x, y in runs if len(x)]
    if not runs:
        return
    grid = runs[0][0]
    mean = runs[0][1]
    if len(runs) > 1:
        grid = thinned(np.unique(np.concatenate([x for x, _ in runs])))
        values = np.array([np.interp(grid, x, y, left=np.nan, right=np.nan) for x, y in runs])  # (runs, points)
        mean = np.nanmean(values, axis=0)
        low, high = np.nanmin(values, axis=0), np.nanmax(values, axis=0)
        axes.fill_between(grid, low, high, color=style['color'], alpha=0.2, linewidth=0)
    elif 'marker' not in style:
        at = thinned(np.arange(len(grid)))
        grid, mean = grid[at], mean[at]
    if len(grid) == 1:                                # a line through one point would not be seen
        style = marked(style)
    axes.plot(grid, mean, **{'linewidth': 1.2, 'markevery': max(1, len(grid) // 20), **style})


def draw_noisy(axes, runs, style, faint):
    """
    The lines of values that scatter: averaged if they are many. The values of a single run are drawn faintly behind
    them if `faint`. Returns what was done: 'averaged', 'faint'.
    """
    done = []
    if max(len(x) for x, _ in runs) >= 2 * PART:
        done.append('averaged')
        if faint and len(runs) == 1:
            axes.plot(*extremes(*runs[0]), color=style['color'], linestyle='-', linewidth=0.8, alpha=0.3)
            done.append('faint')
    draw_line(axes, [smoothed(x, y) for x, y in runs], style)
    return done


def draw_skipped(axes, runs, x, i):
    """A cross at the upper edge for every step that was skipped because its loss or gradient was not finite."""
    at = [record[x] for run in runs for record in run.records if 'skipped' in record and is_number(record.get(x))]
    style = dict(color=color_and_dashes(i)['color'], marker='x', linestyle='none')
    axes.plot(at, [0.97] * len(at), transform=axes.get_xaxis_transform(), **style)


def thinned(values):
    """At most MOST of the values, evenly spaced, first and last among them."""
    at = np.linspace(0, len(values) - 1, min(len(values), MOST)).round().astype(int)
    return values[at]


def smoothed(x, y):
    """
    The moving average of y over 1/PART of the values, at MOST places at most. Near the start the window is short, to
    both sides, because losses fall steeply there.
    """
    half = len(y) // (2 * PART)
    at = thinned(np.arange(len(y)))
    means = [y[i - min(i, half):i + min(i, half) + 1].mean() for i in at]
    return x[at], np.array(means)


def extremes(x, y):
    """Of a long series, the lowest and the highest value of each stretch: spikes stay visible."""
    step = -(-len(y) // MOST)
    if step < 3:
        return x, y
    kept = []
    for start in range(0, len(y), step):
        part = y[start:start + step]
        kept += sorted({start + int(part.argmin()), start + int(part.argmax())})
    return x[kept], y[kept]
