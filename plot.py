"""
Draw what a network has learned, and how: `python plot.py NAME ...` runs plots/NAME.py; add --help for its settings.

    python plot.py curves out-a out-b                losses, learning rate and speed of runs
    python plot.py report out-a out-b                a page about a run, or about two, to open in a browser
    python plot.py attention --start="The pizza came out of the oven and it tasted good."   who looks at whom
    python plot.py embeddings --nearest=king         which tokens are near which
    python plot.py positions                         how it knows where a token is
    python plot.py temperature --start="To be"       the next token, at several temperatures
    python plot.py parameters config/x.py            where the weights are
    python plot.py digits --out_dir=out-mnist        what a digit network sees, and what it misread
    python plot.py screenshot --page=model.html      a page of export.py --to=html, as a browser shows it
    python plot.py docs                              all pictures of the pages of this repo, once more

Needs matplotlib: pip install matplotlib (screenshot: playwright)
"""

import importlib
import os
import sys

from gradus import configurator
from gradus.errors import UserError, exit_on_error

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'plots')


def names():
    """What can be drawn: the files in plots/ that have settings; the others are what these share."""
    found = []
    for file in sorted(os.listdir(FOLDER)):
        if file.endswith('.py'):
            with open(os.path.join(FOLDER, file), encoding='utf-8') as f:
                if '\nclass Settings' in f.read():
                    found.append(file.removesuffix('.py'))
    return found


def main():
    name = sys.argv[1] if len(sys.argv) > 1 else '--help'
    if name in ('-h', '--help'):
        print(__doc__.strip())
        return
    if name not in names():
        raise UserError(f"plot.py {name}: expected one of {', '.join(names())}")
    picture = importlib.import_module(f'plots.{name}')
    configurator.launch(picture.main, picture.Settings, sys.argv[2:], names=getattr(picture, 'NAMES', ''))


if __name__ == '__main__':
    with exit_on_error():
        main()
