"""
Write a page about a run, or about two beside each other, to open in a browser: one file, without a network.

    python plot.py report out-a                      what happened in this run, and why
    python plot.py report out-a out-b                the same for two, and in what their settings differ
    python plot.py report out-mnist                  of mlp_mnist.py

Every section says what to look for. plots/report.html is the page's frame.
"""

import math
import os
from dataclasses import dataclass, fields

import torch

from gradus import checkpoint, pretrained
from gradus.accounting import param_table
from gradus.errors import UserError, show, warn
from gradus.files import atomic_write
from gradus.log import is_number
from mlp_mnist import MnistConfig
from model import GPT
from plots import curves, figures, findings, page
from plots.runs import load, plain
from train import TrainConfig

NAMES = 'runs'


@dataclass
class Settings:
    out: str = 'report.html'          # file to write


def main(cfg):
    figures.require_matplotlib()
    if not cfg.out.lower().endswith('.html') or os.path.isdir(cfg.out):
        raise UserError(f'out={cfg.out}: expected a file ending with .html')
    if len(cfg.runs) > 2:
        raise UserError(f'{len(cfg.runs)} runs given: expected one or two; python plot.py curves draws more')
    runs = load(cfg.runs)
    with atomic_write(cfg.out) as f:
        f.write(write(runs).encode())
    print(f'{cfg.out}: written')


def write(runs):
    """The page about these runs, as text."""
    shapes = [shape_of(run) for run in runs]
    sections = [overview(runs), loss_curves(runs)]
    if runs[0].digits:
        sections += [lowest_cost(runs)]
    else:
        sections += [first_loss(runs, shapes), overfitting(runs), wrong_steps(runs), samples(runs)]
    sections += [weights(runs, shapes), speed(runs), updates(runs), settings(runs)]
    return page.fill('Report: ' + ' and '.join(run.name for run in runs), sections)


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


def of_each(runs, texts):
    """A paragraph for each run, which begins with its name if there are two."""
    return [page.paragraph(text if len(runs) == 1 else f'{run.name}: {text}') for run, text in zip(runs, texts)]


def last(run, key):
    """The last number of this name in the run's log, None if there is none."""
    return next((r[key] for r in reversed(run.records) if is_number(r.get(key))), None)


def lowest(run, key):
    """The lowest number of this name in the run's log, None if there is none."""
    return min((r[key] for r in run.records if is_number(r.get(key))), default=None)


# ---------------------------------------------------------------------------- how it went

def overview(runs):
    """The figures that one asks for first."""
    measures = [
        ('last iteration', 'iter', last, page.number),
        ('epochs', 'epoch', last, page.number),
        ('tokens', 'tokens', last, page.number),
        ('training time', 'elapsed_s', last, duration),
        ('lowest val loss (nats per token)', 'val_loss', lowest, page.number),
        ('lowest val loss (bits per byte)', 'val_bits_per_byte', lowest, page.number),
        ('lowest cost', 'cost', lowest, page.number),
        ('last accuracy', 'accuracy', last, page.percent),
    ]
    rows = [[words, *(show_as(find(run, key)) for run in runs)] for words, key, find, show_as in measures]
    rows = [row for row in rows if any(row[1:])]
    return page.section('At a glance', 'What the run had done when it last wrote to its log.',
                        page.table(['', *(run.name for run in runs)], rows))


def duration(seconds):
    """Seconds in words: 1 h 5 min, 3 min 20 s, 8.4 s."""
    if seconds is None or not 0 <= seconds < 1e12:             # what no clock says
        return ''
    if seconds < 60:
        return f'{seconds:.1f} s'
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours:,} h {minutes} min' if hours else f'{minutes} min {seconds} s'


def loss_curves(runs):
    if runs[0].digits:
        advice = ('Cost should fall and accuracy rise, quickly at first and then ever more slowly. '
                  'They are measured on images that the network has not been trained on.')
    else:
        advice = ('Losses should fall steeply at first, then ever more slowly. If the gap between val and train loss '
                  'widens, the model is learning its text by heart.')
    return page.section('The curves', advice, page.figure(curves.draw(runs), 'losses, learning rate, speed'))


def lowest_cost(runs):
    """Digits: when was the cost of unseen images lowest?"""
    texts = []
    for run in runs:
        found = [r for r in run.records if is_number(r.get('cost')) and is_number(r.get('epoch'))]
        if not found:
            texts.append('No costs were logged.')
            continue
        best = min(found, key=lambda r: r['cost'])
        cost, epoch, epochs = (page.number(n) for n in (best['cost'], best['epoch'], found[-1]['epoch']))
        text = f'The cost was lowest, {cost}, after epoch {epoch} of {epochs}.'
        if best is found[-1]:
            text += ' It was still falling at the end, so more epochs may help.'
        elif found[-1]['cost'] > 1.05 * best['cost']:
            text += f' Since then it has risen to {page.number(found[-1]["cost"])}: that is over-fitting.'
        else:
            text += ' It has hardly changed since then.'
        texts.append(text)
    return page.section('Where over-fitting began', 'If the cost of unseen images rises while training goes on, the '
                        'network is learning its training images by heart. Distortions, dropout and more images help.',
                        *of_each(runs, texts))


# ---------------------------------------------------------------------------- where the loss began, and turned

def first_loss(runs, shapes):
    """Does the first loss fit the size of the vocabulary?"""
    return page.section(
        'Where the first loss comes from',
        'Before it has learned anything, a model should give each of the V tokens of its vocabulary the same '
        'probability, 1/V. Its loss is then ln V. A first loss that is far from it points to a mistake.',
        *of_each(runs, [judge_first_loss(run, shape) for run, shape in zip(runs, shapes)]))


def judge_first_loss(run, config):
    """In words, whether the first loss is what it should be."""
    found = findings.first_loss(run.records)
    if found is None:
        return 'The log does not begin at iteration 0, so the first loss is not in it.'
    if config is None:
        return f'The first loss was {page.number(found)}. Without a checkpoint, nobody knows the vocabulary.'
    expected = math.log(config.vocab_size)
    text = f'ln {config.vocab_size:,} = {page.number(expected)}, and the first loss was {page.number(found)}'
    start = run.config.get('init_from', 'scratch')
    if abs(found - expected) <= 0.05 * expected:
        return f'{text}. It fits.'
    if found > expected:
        return (f'{text}. It is too high: the model was confident before it knew anything. '
                'Its first weights, or its logits, are too large.')
    if start not in ('scratch', 'auto', 'resume'):
        return f'{text}. It is lower because training started from {show(start)}, which had learned before.'
    return (f'{text}. It is too low for a model that has seen nothing. Either it started from trained weights, or it '
            'sees the tokens that it should predict, or a few tokens make up most of the text.')


def overfitting(runs):
    """Where val loss began to rise while train loss went on falling."""
    texts, rows = [], []
    for run in runs:
        found = findings.overfitting(run.records)
        if found is None:
            texts.append('There are not enough evaluations to tell.')
            continue
        turn, end, what = found
        at = page.number(turn['iter'])
        rise = page.percent(end['val_loss'] / turn['val_loss'] - 1, 2) if turn['val_loss'] else '?'
        texts.append({
            'falling': 'Not yet: val loss was at its lowest at the end.',
            'level': f'Not yet: val loss has risen by {rise} since iteration {at}, too little to count.',
            'overfitting': f'After iteration {at}: from there, val loss rose by {rise} while train loss '
                           'went on falling. best.pt holds the weights from before the rise.',
            'unstable': f'Val loss has risen by {rise} since iteration {at}, but train loss has risen '
                        'too. That is no over-fitting but instability; a lower learning rate may help.',
        }[what])
        places = [('lowest val loss', turn), ('last evaluation', end)]
        for where, r in places[1:] if turn is end else places:
            train, val = r['train_loss'], r['val_loss']
            rows.append([where if len(runs) == 1 else f'{run.name}: {where}', page.number(r['iter']),
                         page.number(train), page.number(val), page.number(val - train, 2)])
    table = page.table(['', 'iteration', 'train loss', 'val loss', 'gap'], rows) if rows else ''
    return page.section('Where over-fitting began', 'Look for the point where val loss turns upwards while train loss '
                        'keeps falling. From there on, the model learns its text by heart.',
                        *of_each(runs, texts), table)


# ---------------------------------------------------------------------------- steps that went wrong

def wrong_steps(runs, most=5):
    """Skipped steps and spikes, with the records around them."""
    parts = []
    for run in runs:
        found = findings.events(run.records)
        skipped = sum('skipped' in r for r in run.records)
        spikes = sum(event.height < math.inf for event in found)
        text = f'Skipped steps: {skipped:,}; spikes: {spikes:,}.' if found else 'None: every step went well.'
        worst = sorted(found, key=lambda event: event.height, reverse=True)[:most]
        if len(worst) < len(found):
            text += f' The worst {most} places:'
        parts.append(page.paragraph(text if len(runs) == 1 else f'{run.name}: {text}'))
        for event in found:
            if event in worst:
                parts.append(event_table(event))
    return page.section('Steps that went wrong', 'A spike is a loss far above the median of the 20 logged before it; a '
                        'skipped step had a loss or gradient that was not finite (NaN or infinity). A large gradient '
                        'norm just before is a warning; warm-up, grad_clip and a lower learning rate help.', *parts)


def event_table(event, most=12):
    rows = []
    for record, mark in list(zip(event.records, event.marks))[:most]:
        note = page.number(record['skipped']) if mark == 'skipped' else ''
        values = [page.number(record.get(key)) for key in ('loss', 'grad_norm', 'lr')]
        rows.append([page.number(record['iter']), *values, f'{mark}: {note}' if note else mark])
    if len(event.records) > most:
        rows.append([f'... {len(event.records) - most:,} more', '', '', '', ''])
    return page.table(['iteration', 'loss', 'gradient norm', 'learning rate', ''], rows)


# ---------------------------------------------------------------------------- what it wrote

def samples(runs, most=6):
    """What the model wrote as it learned: the beginnings of a few samples."""
    parts = []
    for run in runs:
        found = [r for r in run.records if isinstance(r.get('sample'), str) and r['sample']]
        if found and len(runs) > 1:
            parts.append(page.heading(run.name))
        for record in findings.evenly(found, most):
            parts.append(page.paragraph(f'Iteration {page.number(record["iter"])}'))
            lines = record['sample'][:400].strip('\n').split('\n')
            parts.append(page.preformatted('\n'.join(lines[:8])))
    return page.section('What it wrote as it learned', 'First come the frequencies of letters, then word-like strings, '
                        'words, the layout of the text, and at last a little grammar.', *parts)


# ---------------------------------------------------------------------------- weights and speed

def weights(runs, shapes):
    """Where the weights are: a table with bars for each run."""
    parts = []
    same = len(runs) == 2 and shapes[0] == shapes[1]
    for run, shape in zip(runs[:1] if same else runs, shapes):
        if shape is None:
            continue
        table = digit_table(shape) if run.digits else gpt_table(shape)
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


def gpt_table(config):
    with torch.device('meta'):                        # shapes alone, no memory
        return param_table(GPT(config))


def digit_table(shapes):
    """{layer: number of weights and biases}"""
    table = {}
    for key, shape in shapes.items():
        layer = ' '.join(key.split('.')[:2])          # layers 0, norms 0
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
        parts = of_each(runs, [images_per_second(run) for run in runs])
    return page.section('Speed', advice, *parts)


def images_per_second(run):
    seconds = last(run, 'elapsed_s')
    epochs = last(run, 'epoch')
    n_train = run.config.get('n_train')
    if not (seconds and epochs and is_number(n_train)):
        return 'The log and the checkpoint do not say.'
    images = epochs * n_train
    return f'{duration(seconds)} for {page.number(images)} images: {page.number(images / seconds, 6)} a second.'


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
                            *of_each(runs, ['known' if run.config else 'there is no checkpoint' for run in runs]))
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
