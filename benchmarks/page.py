"""
HTML pages in a headless Chromium: megabytes, seconds until the page is ready, tokens/s in the first 200 tokens after a
prompt of 8, and the longest time in which the page could not draw while it wrote.

Models of the quickstart's size and of nanoGPT's 10.65M, with random weights in 32 bits; and FILE, in 8 bits.
"""

import argparse
import os
import re
import statistics
import tempfile
import time

import torch

from benchmarks.paired import SHAPES
from gradus import configurator, page, pretrained
from gradus.errors import UserError
from gradus.families import Weights
from gradus.tokenizer import build_tokenizer
from model import GPT, GPTConfig
from plots.browser import browser, wait
from train import TrainConfig

PROMPT = 'The day.'
N_TOKENS = 200

# The longest time between two frames, from the call on.
LONGEST_GAP = """() => {
  let last = performance.now();
  window.longestGap = 0;
  const frame = (now) => {
    window.longestGap = Math.max(window.longestGap, now - last);
    last = now;
    requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
}"""


# ---------------------------------------------------------------------------- pages

def random_model(config):
    """A model as a file would hold it, with random weights that do not repeat themselves at once."""
    torch.manual_seed(0)
    tensors = GPT(config).state_dict()
    makers = {name: (lambda tensor=tensor: tensor) for name, tensor in tensors.items()}
    return pretrained.Pretrained('random', config, Weights(config, makers, 'random'), tokenizer={'kind': 'byte'},
                                 about='random weights')


def models(file):
    """{name: (model, dtype of its page)}"""
    quickstart = configurator.load(TrainConfig, ['config/quickstart.py'])
    found = {
        'quickstart': (random_model(pretrained.config_of(quickstart, vocab_size=256)), 'f32'),
        '10.65M': (random_model(GPTConfig(**{**SHAPES['10.65M'], 'vocab_size': 256})), 'f32'),
    }
    if file:
        found[os.path.basename(file)] = (pretrained.load(file), 'int8')
    return found


# ---------------------------------------------------------------------------- one measurement

def measure(chromium, path):
    """Open a page and let it write: dict(ready, speed, gap) in seconds, tokens/s and milliseconds."""
    tab = chromium.new_page()
    tab.set_default_timeout(600_000)
    began = time.perf_counter()
    tab.goto('file://' + path)
    wait(tab)
    ready = time.perf_counter() - began

    tab.fill('#prompt', PROMPT)
    tab.fill('#max', str(N_TOKENS))
    tab.evaluate(LONGEST_GAP)
    tab.click('#go')
    wait(tab)
    gap = tab.evaluate('window.longestGap')
    status = tab.inner_text('#status')
    tab.close()
    said = re.fullmatch(r'\d+ tokens, ([\d.]+) per second', status)
    if said is None:
        raise UserError(f'{path}: the page says {status!r}; expected a speed')
    return dict(ready=ready, speed=float(said[1]), gap=gap)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', metavar='FILE', default='', help='a .gguf file or another model of init_from')
    parser.add_argument('--rounds', type=int, default=3, help='default: %(default)s')
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as tmp, browser() as chromium:
        pages = {}
        for name, (found, dtype) in models(args.model).items():
            pages[name] = os.path.join(tmp, f'{name}.html')
            page.write_gpt(pages[name], found, build_tokenizer(found.tokenizer), dtype)

        results = {name: [] for name in pages}
        for _ in range(args.rounds):
            for name, path in pages.items():
                results[name].append(measure(chromium, path))

        print('| model | MB | seconds until ready | tokens/s | longest gap, ms |\n|---|---|---|---|---|')
        for name, rows in results.items():
            ready, speed, gap = (statistics.median(row[key] for row in rows) for key in ('ready', 'speed', 'gap'))
            size = os.path.getsize(pages[name]) / 1e6
            values = ', '.join(f"{row['speed']:.4g}" for row in rows)
            print(f'| {name} | {size:.1f} | {ready:.1f} | {speed:.4g} ({values}) | {gap:.0f} |')


if __name__ == '__main__':
    main()
