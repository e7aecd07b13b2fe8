"""
The sections of a report about what a run is made of, rather than how it went: its weights, its speed, the size of its
steps, its settings.
"""

import math
from dataclasses import fields

from gradus import checkpoint, pretrained
from gradus.accounting import param_table
from gradus.errors import UserError, show, warn
from gradus.log import is_number
from mlp_mnist import MnistConfig
from plots import curves, figures, findings, page
from plots.runs import last, plain
from train import TrainConfig


def shape_of(run):
    """The GPTConfig of a run, or the shapes of a digit network's weights; None without a good checkpoint."""
    path = checkpoint.find(run.folder)
    if not checkpoint.exists(path):
        return None
    try:
        if run.digits:
            return {key: tensor.shape for key, tensor in checkpoint.load(path, mapped=True)['model'].items()}
        return pretrained.load_checkpoint(path, mapped=True).config
    except UserError as e:
        warn(f'{e}; reported without its weights')
        return None


def weights(runs, shapes):
    """Where the weights are: a table with bars for each run."""
    parts = []
    same = len(runs) == 2 and shapes[0] == shapes[1]
    for run, shape in zip(runs[:1] if same else runs, shapes):
        if shape is None:
            continue
        table = digit_table(shape) if run.digits else param_table(shape)
        most = max(table.values(), default=0)
        total = sum(table.values())
        rows = [[role, f'{n:,}', f'{n / total:.1%}', page.bar(n / most)] for role, n in table.items() if n]
        rows.append(['sum', f'{total:,}', '', ''])
        if len(runs) > 1:
            parts.append(page.heading('both runs' if same else run.name))
        parts.append(page.table(['', 'weights', 'share', ''], rows))
        if not run.digits and shape.tie_weights:
            parts.append(page.paragraph(f'Embedding and unembedding are one matrix here, so there are '
                                        f'{total - table["unembedding"]:,} different weights.'))
    advice = ('The feed-forward layers (up, gate, down) hold about two thirds of a large model. In a small one with a '
              'large vocabulary, embedding and unembedding hold most.')
    if runs[0].digits:
        advice = 'Most are usually in the first layer, where each neuron has a weight for every pixel.'
    return page.section('Where the weights are', advice, *parts)


def digit_table(shapes):
    """{layer: number of weights and biases}"""
    table = {}
    for key, shape in shapes.items():
        if key.endswith(('weight', 'bias')):          # no statistics of batch norm
            layer = ' '.join(key.split('.')[:2])      # layers 0, norms 0
            table[layer] = table.get(layer, 0) + math.prod(shape)
    return table


def speed(runs):
    """How fast it went: quartiles, because a few slow steps say little."""
    rows = []
    for key, words in (('tokens_per_s', 'tokens per second'), ('mfu', 'model FLOPs utilization')):
        for run in runs:
            if found := findings.quartiles(run.records, key):
                shown = [page.percent(value, 3) if key == 'mfu' else page.number(round(value)) for value in found]
                measure = words if len(runs) == 1 else f'{run.name}: {words}'
                rows.append([measure, shown[1], f'{shown[0]} to {shown[2]}'])
    advice = ('The median of all logged steps, and the range of the middle half. A wide range often means that '
              'something else was using the machine.')
    parts = [page.table(['', 'median', 'middle half'], rows)] if rows else []
    if runs[0].digits:
        advice = 'The time includes the evaluation after every epoch.'
        parts = page.of_each(runs, [images_per_second(run) for run in runs])
    return page.section('Speed', advice, *parts)


def images_per_second(run):
    seconds = last(run, 'elapsed_s')
    epochs = last(run, 'epoch')
    n_train = run.config.get('n_train')
    if not (seconds and epochs and is_number(n_train)):
        return 'The log and the checkpoint do not say.'
    images = epochs * n_train
    return f'{page.duration(seconds)} for {page.number(images)} images: {images / seconds:,.0f} a second.'


def updates(runs):
    """How far steps moved the weights, relative to the weights."""
    found = [(run, ratios) for run in runs if (ratios := findings.update_ratios(run.records))]
    if not found:
        return ''
    drawing = figures.new_figure(8, 3.5 * len(found))
    panels = drawing.subplots(len(found), 1, squeeze=False, sharex=True, sharey=True)[:, 0]
    for axes, (run, ratios) in zip(panels, found):
        for i, (role, (iterations, values)) in enumerate(ratios.items()):
            axes.plot(iterations, values, label=plain(role[:40]), **curves.color_and_dashes(i))
        axes.axhline(1e-3, color='gray', linewidth=2, alpha=0.5, label='1e-3')
        axes.set(yscale='log', ylabel='update / weight', title=run.label if len(runs) > 1 else '')
        axes.legend(loc='center left', bbox_to_anchor=(1, 0.5), frameon=False)
    panels[-1].set_xlabel('iterations')
    return page.section('How far a step moves the weights', 'The size of an update over the size of the weights. With '
                        'AdamW, about one thousandth is a good rule of thumb: far below, learning is slow; far above, '
                        'it is rough. Muon takes larger steps, and the first steps of a run are large, too.',
                        page.figure(drawing, 'update-to-weight ratios over iterations'))


# ---------------------------------------------------------------------------- settings

def settings(runs):
    """Where two runs differ, or a single one differs from the defaults."""
    if not all(run.config for run in runs):
        return page.section('Settings', 'A run keeps them in its checkpoint.',
                            *page.of_each(runs, ['known' if run.config else 'there is no checkpoint' for run in runs]))
    script, cls = ('mlp_mnist.py', MnistConfig) if runs[0].digits else ('train.py', TrainConfig)
    defaults = {f.name: f.default for f in fields(cls)}
    if len(runs) == 1:
        title = 'Settings that are not the defaults'
        advice = f'What makes this run what it is. python {script} --help explains each.'
        header = ['', 'default', runs[0].name]
        left, right = defaults, runs[0].config
        keys = right
    else:
        title = 'Settings in which the two runs differ'
        advice = 'If runs differ in more than one setting, it is hard to say which one made the difference.'
        header = ['', runs[0].name, runs[1].name]
        left, right = ({**defaults, **run.config} for run in runs)
        keys = {**left, **right}
    rows = [[key[:60], *(show(side[key]) if key in side else '' for side in (left, right))]
            for key in keys if key != 'out_dir' and left.get(key) != right.get(key)]
    return page.section(title, advice, page.table(header, rows, 'words') if rows else page.paragraph('None.'))
