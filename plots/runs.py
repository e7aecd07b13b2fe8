"""The runs that a picture or a page is about: what they logged, their settings, and which of them belong together."""

import os
from dataclasses import dataclass

import numpy as np

from gradus import checkpoint, log
from gradus.errors import UserError, printable, warn
from gradus.log import is_number
from plots import figures

# Settings that may differ between runs of one group: they change the names of files, and what chance decides.
NAMES_AND_CHANCE = ('seed', 'out_dir', 'wandb_log', 'wandb_project', 'wandb_run_name', 'tensorboard_log')
LONGEST = 60                          # characters of a name in a picture


@dataclass
class Run:
    folder: str
    name: str               # its folder, as short as it can be
    records: list           # of its log.jsonl, as dictionaries
    config: dict            # its settings; empty if there is no checkpoint
    digits: bool            # a run of mlp_mnist.py; otherwise one of train.py

    @property
    def label(self):
        return plain(self.name)


def load(folders):
    """The runs in these folders. Raises UserError if one has no log, or if they are not of one kind."""
    folders = list(dict.fromkeys(os.path.normpath(folder) for folder in folders))
    if not folders:
        raise UserError('no runs given: expected their folders, as in python plot.py curves out-a out-b')
    names = [os.path.basename(folder) for folder in folders]
    names = names if len(set(names)) == len(names) else folders
    runs = []
    for folder, name in zip(folders, names):
        records = log.read(folder)
        runs.append(Run(folder, printable(name), records, _settings(folder), _is_digits(folder, records)))

    odd = next((run for run in runs if run.digits != runs[0].digits), None)
    if odd:
        scripts = [('train.py', 'mlp_mnist.py')[run.digits] for run in (runs[0], odd)]
        raise UserError(f'{runs[0].folder} is a run of {scripts[0]} and {odd.folder} one of {scripts[1]}: '
                        'expected runs of one kind; draw them one after the other')
    return runs


def _is_digits(folder, records):
    """Is this the log of mlp_mnist.py? Raises UserError if it is neither its nor train.py's."""
    keys = set().union(*records)
    if keys & {'loss', 'val_loss', 'skipped'}:
        return False
    if 'cost' in keys:
        return True
    raise UserError(f'{folder}: its log has neither losses nor costs; expected a run of train.py or mlp_mnist.py')


def plain(text):
    """
    Text that matplotlib draws as it is: $ begins no formula, and _ in front does not hide it from the legend. The
    middle of a long one is left out, because names often differ at their ends.
    """
    text = printable(text)
    if len(text) > LONGEST:
        text = f'{text[:LONGEST // 2]}…{text[-LONGEST // 2:]}'
    text = figures.drawable(text)
    return f' {text}' if text.startswith('_') else text


def _settings(folder):
    """The settings in the run's checkpoint. Without a good one there are none: a log is worth drawing all the same."""
    path = checkpoint.find(folder)
    if not checkpoint.exists(path):
        return {}
    try:
        config = checkpoint.load(path, mapped=True).get('config', {})
    except UserError as e:
        warn(f'{e}; drawn without its settings')
        return {}
    return {key: value for key, value in config.items() if isinstance(key, str)}


# ---------------------------------------------------------------------------- which belong together

def group(runs):
    """The runs as lists of those with the same settings, but for the seed and the names of files."""
    groups = []
    for run in runs:
        same = [g for g in groups if run.config and _what_counts(run.config) == _what_counts(g[0].config)]
        if same:
            same[0].append(run)
        else:
            groups.append([run])
    return groups


def _what_counts(config):
    counts = {key: value for key, value in config.items() if key not in NAMES_AND_CHANCE}
    if counts.get('init_from') in ('auto', 'resume'):           # a resumed run is the run that it continues
        counts['init_from'] = 'scratch'
    return counts


def name_of(runs):
    """The name of a group: what the names of its runs begin with, and how many they are."""
    if len(runs) == 1:
        return runs[0].label
    start = os.path.commonprefix([run.name for run in runs]).rstrip('-_. ')
    seeds = {run.config.get('seed') for run in runs}
    return f"{plain(start or runs[0].name)} ({len(runs)} {'seeds' if len(seeds) == len(runs) else 'runs'})"


# ---------------------------------------------------------------------------- values

def series(run, x, y):
    """
    The values of the keys x and y in a run's log, as two arrays, with x rising. If one x occurs twice, as in a log
    that somebody put together from two, the later value counts.
    """
    pairs = sorted(dict(log.numbers(run.records, x, y)).items())
    return np.array([x for x, _ in pairs], dtype=float), np.array([y for _, y in pairs], dtype=float)


def last(run, key):
    """The last number of this name in the run's log, None if there is none."""
    return next((r[key] for r in reversed(run.records) if is_number(r.get(key))), None)


def lowest(run, key):
    """The lowest number of this name in the run's log, None if there is none."""
    return min((r[key] for r in run.records if is_number(r.get(key))), default=None)
