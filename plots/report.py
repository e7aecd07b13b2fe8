"""
Write a page about a run, or about two beside each other, to open in a browser: one file, without a network.

    python plot.py report out-a                      what happened in this run, and why
    python plot.py report out-a out-b                the same for two, and in what their settings differ
    python plot.py report out-mnist                  of mlp_mnist.py

Every section says what to look for. plots/report.html is the page's frame.
"""

import math
import os
from dataclasses import dataclass

from gradus.errors import UserError, show
from gradus.files import atomic_write
from gradus.log import is_number
from plots import curves, figures, findings, made_of, page
from plots.runs import last, load, lowest

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
    shapes = [made_of.shape_of(run) for run in runs]
    sections = [overview(runs), loss_curves(runs)]
    if runs[0].digits:
        sections += [lowest_cost(runs)]
    else:
        sections += [first_loss(runs, shapes), overfitting(runs), wrong_steps(runs), samples(runs)]
    sections += [made_of.weights(runs, shapes), made_of.speed(runs), made_of.updates(runs), made_of.settings(runs)]
    return page.fill('Report: ' + ' and '.join(run.name for run in runs), sections)


# ---------------------------------------------------------------------------- how it went

def overview(runs):
    """The figures that one asks for first."""
    measures = [
        ('last iteration', 'iter', last, page.number),
        ('epochs', 'epoch', last, page.number),
        ('tokens', 'tokens', last, page.number),
        ('training time', 'elapsed_s', last, page.duration),
        ('lowest val loss (nats per token)', 'val_loss', lowest, page.number),
        ('lowest val loss (bits per byte)', 'val_bits_per_byte', lowest, page.number),
        ('lowest cost', 'cost', lowest, page.number),
        ('last accuracy', 'accuracy', last, page.percent),
    ]
    rows = [[words, *(show_as(find(run, key)) for run in runs)] for words, key, find, show_as in measures]
    rows = [row for row in rows if any(row[1:])]
    return page.section('At a glance', 'What the run had done when it last wrote to its log.',
                        page.table(['', *(run.name for run in runs)], rows))


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
            text += ' That is the end, so more epochs may help.'
        elif found[-1]['cost'] > 1.05 * best['cost']:
            text += f' Since then it has risen to {page.number(found[-1]["cost"])}: that is over-fitting.'
        else:
            text += ' It has hardly changed since then.'
        texts.append(text)
    return page.section('Where over-fitting began', 'If the cost of unseen images rises while training goes on, the '
                        'network is learning its training images by heart. Distortions, dropout and more images help.',
                        *page.of_each(runs, texts))


# ---------------------------------------------------------------------------- where the loss began, and turned

def first_loss(runs, shapes):
    """Does the first loss fit the size of the vocabulary?"""
    return page.section(
        'Where the first loss comes from',
        'Before it has learned anything, a model should give each of the V tokens of its vocabulary the same '
        'probability, 1/V. Its loss is then ln V. A first loss that is far from it points to a mistake.',
        *page.of_each(runs, [judge_first_loss(run, shape) for run, shape in zip(runs, shapes)]))


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
                        *page.of_each(runs, texts), table)


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
