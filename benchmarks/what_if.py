"""
The table of WHATIF.md: train every config in config/what_if/ with several seeds and print, as Markdown,

    loss            over the whole val split, in nats per character: mean and range over the seeds
    last            the same for the last character of each window only, whose target no mask can reveal
    a line of text  sampled after "ROMEO:" by the run with the first seed

The runs stay in --out; a second call continues where the first was stopped, and trains nothing twice.

    python data/shakespeare_char/prepare.py
    python bench.py what-if
"""

import argparse
import ast
import os
import statistics

import torch
from torch.nn import functional as F

from benchmarks.paired import HERE, our_run, timed, val_loss
from gradus import data, metadata, pretrained
from gradus.sampling import Sampler

FOLDER = os.path.join(HERE, 'config', 'what_if')
DATASET = os.path.join('data', 'shakespeare_char')
PROMPT = 'ROMEO:\n'


def names():
    """base first, then the questions in the order in which the page asks them."""
    order = ['base', 'squared_dot', 'reversed_dot', 'no_scale', 'one_head', 'mask_other_half', 'no_mask',
             'no_position', 'sincos', 'no_residual', 'no_norm', 'sigmoid_gpt']
    found = {file.removesuffix('.py') for file in os.listdir(FOLDER) if file.endswith('.py')}
    return [name for name in order if name in found] + sorted(found.difference(order))


def question_and_answer(name):
    """The two paragraphs of a config's docstring, each on one line."""
    with open(os.path.join(FOLDER, f'{name}.py'), encoding='utf-8') as f:
        docstring = ast.get_docstring(ast.parse(f.read()))
    question, *rest = docstring.split('\n\n')
    return ' '.join(question.split()), ' '.join(rest[-1].split()) if rest else ''


def run(name, seed, out, settings):
    """Train, or finish, one run. Returns its folder."""
    out_dir = os.path.join(out, f'{name}-{seed}')
    folder, command = our_run(seed, f'config/what_if/{name}.py', f'--out_dir={out_dir}', '--init_from=auto', *settings)
    seconds, _ = timed(command, folder)
    print(f'{name}, seed {seed}: {seconds:.0f} s', flush=True)
    return out_dir


@torch.no_grad()
def last_loss(path):
    """Mean loss of the last token of each window of the val split: what comes after it was not among the inputs."""
    model = pretrained.build(pretrained.load_checkpoint(path)).eval()
    size = model.config.block_size
    tokens = data.Tokens(os.path.join(DATASET, 'val.bin'), metadata.read_meta(DATASET)['dtype'],
                         model.config.vocab_size, size)
    losses = []
    for starts in torch.arange(0, len(tokens) - size, size).split(64):
        x, y = tokens.windows(starts.numpy())                                   # (B, T) each
        logits, _ = model(x)                                                    # (B, 1, V)
        losses.append(F.cross_entropy(logits[:, -1], y[:, -1], reduction='none'))
    return torch.cat(losses).mean().item()


def sample(path, n=70):
    """What the model writes after the prompt, as one line."""
    found = pretrained.load_checkpoint(path)
    model = pretrained.build(found).eval()
    tokenizer = pretrained.tokenizer_for(found)
    ids = torch.tensor([tokenizer.encode(PROMPT)])
    ids = model.generate(ids, n, Sampler(temperature=0.8, seeds=[1337]), tokenizer.n_vocab)[0].tolist()
    text = tokenizer.decode(ids).removeprefix(PROMPT)
    return text.replace('\n', ' / ').replace('|', r'\|')


def mean_and_range(values):
    if len(values) == 1:
        return f'{values[0]:.3f}'
    return f'{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})'


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seeds', type=int, default=3, help='runs of each config (default: %(default)s)')
    parser.add_argument('--only', nargs='*', help='names of configs (default: all)')
    parser.add_argument('--out', default='out-what-if', help='folder for the runs (default: %(default)s)')
    parser.add_argument('settings', nargs='*', help='further --key=value of train.py, after a --')
    args = parser.parse_args()
    chosen = args.only or names()

    # Seed by seed, so that there is a whole table early.
    folders = {}
    for seed in range(args.seeds):
        for name in chosen:
            folders.setdefault(name, []).append(run(name, seed, args.out, args.settings))

    print('\n| config | what if | loss | last | a line of text | why |\n|---|---|---|---|---|---|')
    for name, out_dirs in folders.items():
        paths = [os.path.join(out_dir, 'ckpt.pt') for out_dir in out_dirs]
        question, answer = question_and_answer(name)
        loss = mean_and_range([val_loss(path, DATASET) for path in paths])
        last = mean_and_range([last_loss(path) for path in paths])
        print(f'| `{name}` | {question} | {loss} | {last} | `{sample(paths[0])}` | {answer} |', flush=True)


if __name__ == '__main__':
    main()
