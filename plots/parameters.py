"""
Where the weights of a GPT are, by kind of matrix, as 3Blue1Brown counts those of GPT-3: a table, and a picture of it.

    python plot.py parameters config/x.py [--key=value]        the model of a config of train.py, which is not built
    python plot.py parameters --init_from=out-quickstart       that of a run, gpt2, a folder, a .gguf file

    python plot.py parameters --n_layer=96 --n_head=96 --n_embd=12288 --block_size=2048 --vocab_size=50257 \\
        --tie_weights=False                                    GPT-3

Beside the settings below, it takes all those of train.py.
"""

import os
import re
from dataclasses import dataclass

import train
from gradus import accounting, configurator, metadata, pretrained
from gradus.errors import one_line
from plots import figures


@dataclass
class Settings(train.TrainConfig):
    out: str = 'parameters.png'       # the picture: .png, .svg or .pdf
    init_from: str = 'scratch'        # scratch: the model of these settings; resume: out_dir's; gpt2*, folder, .gguf
    vocab_size: int = 0               # tokens in the vocabulary; 0 = that of data/<dataset>


# Roles of `accounting.param_formulas`, in words and in the order of the table, by what the weights do.
GROUPS = {
    'vocabulary': {'embedding': 'embedding', 'unembedding': 'unembedding'},
    'attention': {'Q': 'query', 'K': 'key', 'V': 'value', 'output': 'output'},
    'feed-forward': {'up': 'up-projection', 'gate': 'gate', 'down': 'down-projection'},
    'rest': {'position': 'position', 'norm': 'norm', 'bias': 'bias'},
}
COLORS = {'vocabulary': '#2a2a2a', 'attention': '#1b6ca8', 'feed-forward': '#e9a35b', 'rest': '#c8c8c8'}
ORDER = ('embedding', 'Q', 'K', 'V', 'output', 'up', 'gate', 'down', 'unembedding', 'position', 'norm', 'bias')


@dataclass
class Row:
    """A line of the table and a bar of the picture."""
    name: str
    group: str
    formula: str            # in names, such as d_embed * n_vocab; empty if the weights are counted elsewhere
    numbers: str            # the same in numbers
    matrices: int           # 0: these are vectors
    weights: int


def rows_of(config):
    """The `Row`s of a GPTConfig: those that have weights. A tied unembedding has none of its own."""
    sizes = accounting.sizes(config)
    formulas = accounting.param_formulas(config)
    rows = []
    for role in ORDER:
        formula, matrices = formulas[role]
        group = next(group for group, names in GROUPS.items() if role in names)
        name = GROUPS[group][role]
        if role == 'unembedding' and config.tie_weights:
            rows.append(Row(name, group, '', 'the matrix of the embedding, counted there', 0, 0))
        elif weights := accounting.evaluate(formula, sizes):
            numbers = re.sub(r'[a-z_]+', lambda word: f'{sizes[word[0]]:,}', formula)
            rows.append(Row(name, group, formula, numbers, matrices, weights))
    return rows


def counted_by_3blue1brown(rows):
    """The matrices that he counts: all but positions, norms and biases."""
    return [row for row in rows if row.group != 'rest']


# ---------------------------------------------------------------------------- the table

def print_table(rows):
    """Print a line for each row, a sum of what 3Blue1Brown counts, and the total."""
    total = sum(row.weights for row in rows)
    counted = counted_by_3blue1brown(rows)
    wide = max(len(row.formula) for row in rows)
    numbers_wide = max(len(row.numbers) for row in rows)

    print(f"{'':<17}{'formula':<{wide}}   {'in numbers':<{numbers_wide}}  matrices          weights    share")
    for row in rows:
        equals = '=' if row.formula else ' '
        matrices = f'{row.matrices:,}' if row.matrices else ''
        print(f'{row.name:<17}{row.formula:<{wide}} {equals} {row.numbers:<{numbers_wide}}  {matrices:>8}  '
              f'{row.weights:>15,}  {row.weights / total:7.2%}')
        if row is counted[-1]:
            print_sum('sum so far', counted, wide + numbers_wide + 3, total)
    print_sum('total', rows, wide + numbers_wide + 3, total)

    print('\nd_embed = n_embd, n_vocab = vocab_size, n_neurons = n_inner, d_query = d_value = head_dim, '
          'n_context = block_size;\nn_norms, n_biases: the weights of all norms, and all biases, in one layer')


def print_sum(name, rows, width, total):
    matrices = sum(row.matrices for row in rows)
    weights = sum(row.weights for row in rows)
    print(f'{name:<17}{"":<{width}}  {matrices:>8,}  {weights:>15,}  {weights / total:7.2%}')


# ---------------------------------------------------------------------------- the picture

def draw(path, rows, name):
    """A bar for each row, with its formula in numbers; the groups differ in color and lightness."""
    total = sum(row.weights for row in rows)
    figure = figures.new_figure(8, 0.4 * len(rows) + 1.4)
    axes = figure.subplots()

    for y, row in enumerate(rows):
        axes.barh(y, row.weights / total, color=COLORS[row.group], height=0.7)
        text = f'{row.weights:,}  ({row.weights / total:.1%})\n{row.numbers.replace(" * ", " × ")}'
        axes.annotate(text, (row.weights / total, y), (3, 0), textcoords='offset points', va='center', fontsize=7.5)
    for group in GROUPS:
        share = sum(row.weights for row in rows if row.group == group) / total
        axes.barh(0, 0, color=COLORS[group], label=f'{group} {share:.1%}')

    longest = max(row.weights for row in rows) / total
    axes.set(xlim=(0, 1.6 * longest), ylim=(len(rows) - 0.5, -0.5), yticks=range(len(rows)),
             yticklabels=[row.name for row in rows], xlabel='share of all weights')
    axes.xaxis.set_major_formatter('{x:.0%}')
    axes.grid(False, axis='y')
    axes.set_axisbelow(True)
    figure.legend(loc='outside lower center', ncols=len(GROUPS))
    name = figures.drawable(one_line(name, limit=60))
    axes.set_title(f'{name}: {total:,} weights', loc='left')
    figures.save(figure, path)


# ---------------------------------------------------------------------------- which model

def find_config(cfg):
    """The GPTConfig that the settings describe or name, and a name for it. Raises UserError."""
    if cfg.init_from in ('scratch', 'auto'):
        vocab_size = cfg.vocab_size or vocabulary_of(cfg.dataset)
        return pretrained.config_of(cfg, vocab_size), f'{cfg.n_layer:,} x {cfg.n_embd:,}'
    source = cfg.out_dir if cfg.init_from == 'resume' else cfg.init_from
    return pretrained.load(source, or_else='scratch, resume').config, os.path.basename(os.path.normpath(source))


def vocabulary_of(dataset):
    """The vocabulary that train.py gives a model for data/`dataset`. If there is none, GPT-2's, and a line about it."""
    folder = os.path.join('data', dataset)
    if not any(os.path.exists(os.path.join(folder, name)) for name in ('meta.json', 'meta.pkl', 'train.bin')):
        print(f"no data/{dataset} here, so the vocabulary is GPT-2's, padded to 50,304; for another, --vocab_size=N")
        return 50304
    return pretrained.padded_vocab_size(metadata.read_meta(folder)['vocab_size'])


def main(cfg):
    figures.check_out(cfg.out)
    configurator.check_range(cfg, vocab_size=(0, 2 ** 20))
    config, name = find_config(cfg)
    rows = rows_of(config)
    print_table(rows)
    draw(cfg.out, rows, name)
