"""What a run's log tells, in numbers: where the loss began, where over-fitting began, where a step went wrong."""

import math
from dataclasses import dataclass

import numpy as np

from gradus.log import is_number

BEFORE = 20                 # a spike is measured against the losses logged before it
AROUND = 3                  # records to show on either side of it


def first_loss(records):
    """The loss before anything was learned, None if the log begins later."""
    return next((r[key] for key in ('loss', 'train_loss', 'val_loss') for r in records
                 if r['iter'] == 0 and is_number(r.get(key))), None)


def evaluations(records):
    """The records of evaluations with finite losses."""
    return [r for r in records if is_number(r.get('train_loss')) and is_number(r.get('val_loss'))]


def overfitting(records):
    """
    Did val loss rise while train loss went on falling? Returns the evaluation where val loss was lowest, the last one,
    and what happened between them; None if there are less than two:

        falling     val loss is at its lowest at the end
        level       it has risen by less than 1%
        overfitting it has risen, and train loss has fallen
        unstable    both have risen
    """
    found = evaluations(records)
    if len(found) < 2:
        return None
    lowest = min(found, key=lambda r: r['val_loss'])
    last = found[-1]
    if last['val_loss'] <= lowest['val_loss']:
        return last, last, 'falling'
    if last['val_loss'] < 1.01 * lowest['val_loss']:
        return lowest, last, 'level'
    return lowest, last, 'overfitting' if last['train_loss'] < lowest['train_loss'] else 'unstable'


# ---------------------------------------------------------------------------- steps that went wrong

@dataclass
class Event:
    """A stretch of the log in which something went wrong."""
    records: list           # of training steps, with a few before and after
    marks: list             # for each of them: 'skipped', 'spike' or ''
    height: float           # the highest loss over the median before it; infinite for a skipped step


def events(records):
    """The steps that were skipped, and spikes: losses far above the median of the losses logged before."""
    steps = [r for r in records if 'skipped' in r or 'loss' in r]
    heights = [math.inf if 'skipped' in r else 0.0 for r in steps]
    at = [i for i, r in enumerate(steps) if 'skipped' not in r and is_number(r['loss'])]
    for i, height in zip(at, _heights([steps[i]['loss'] for i in at])):
        heights[i] = height

    # Steps that went wrong one after the other are one event.
    wrong = [i for i, height in enumerate(heights) if height]
    stretches = []
    for i in wrong:
        if stretches and i - stretches[-1][-1] <= 2 * AROUND:
            stretches[-1].append(i)
        else:
            stretches.append([i])

    found = []
    for stretch in stretches:
        shown = range(max(0, stretch[0] - AROUND), min(len(steps), stretch[-1] + AROUND + 1))
        marks = [('skipped' if heights[i] == math.inf else 'spike') if heights[i] else '' for i in shown]
        found.append(Event([steps[i] for i in shown], marks, max(heights[i] for i in stretch)))
    return found


def _heights(losses):
    """
    For each loss, 0, or if it is a spike: how many times the median of the losses before it. A spike is 20% above this
    median, and by more than eight times as much as those losses usually differ from it.
    """
    heights = np.zeros(len(losses))
    if len(losses) > 3:
        losses = np.array(losses, dtype=float)
        padded = np.concatenate((np.full(BEFORE, np.nan), losses))
        before = np.lib.stride_tricks.sliding_window_view(padded, BEFORE)[3:-1]   # (n - 3, BEFORE)
        median = np.nanmedian(before, axis=1)
        spread = np.nanmedian(abs(before - median[:, None]), axis=1)
        loss = losses[3:]
        is_spike = (median > 0) & (loss > 1.2 * median) & (loss > median + 8 * spread)
        heights[3:][is_spike] = (loss / np.where(median > 0, median, 1))[is_spike]
    return heights.tolist()


# ---------------------------------------------------------------------------- values over the run

def quartiles(records, key):
    """The lower quartile, median and upper quartile of a value; None if it was not logged."""
    values = [r[key] for r in records if is_number(r.get(key))]
    return np.quantile(np.array(values, dtype=float), (0.25, 0.5, 0.75)).tolist() if values else None


def evenly(items, n):
    """At most n of the items, evenly spaced, first and last among them."""
    at = np.unique(np.linspace(0, len(items) - 1, min(n, len(items))).round().astype(int))
    return [items[i] for i in at]


def update_ratios(records, most=8):
    """{role: (iterations, ratios)} of the records with update ratios, positive numbers; at most so many roles."""
    found = {}
    for record in records:
        ratios = record.get('update_ratio')
        if isinstance(ratios, dict) and is_number(record['iter']):
            for role, ratio in ratios.items():
                if is_number(ratio) and ratio > 0 and (role in found or len(found) < most):
                    iterations, values = found.setdefault(role, ([], []))
                    iterations.append(record['iter'])
                    values.append(ratio)
    return found
