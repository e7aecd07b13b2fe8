"""
Compare Gradus with what it should beat: `python bench.py NAME ...` runs benchmarks/NAME.py; add --help for its options.

    python bench.py time-to-loss --against NANOGPT      time to a loss of 1.88 on tiny Shakespeare, loss at equal time
    python bench.py loss-curve --against NANOGPT        val loss over time, nanoGPT's and ours, as a picture
    python bench.py same-recipe --against NANOGPT       whole runs of nanoGPT's CPU recipe, in nanoGPT and here
    python bench.py same-steps --against NANOGPT        single steps from the same weights on the same batches
    python bench.py plan config/X.py                    before a run starts: will it fit, how long will it take
    python bench.py step --config X --against NANOGPT   tokens/s and MFU of a training step, and of nanoGPT's
    python bench.py step-profile --config X             where the time of a training step goes
    python bench.py sampling --against NANOGPT          tokens/s of sampling
    python bench.py startup                             seconds from the start of a script to its first result
    python bench.py llama-cpp                           tokens/s of one stream and of a prompt, ours and llama.cpp's
    python bench.py packing                             how pairs of different length should share a batch
    python bench.py mnist                               the digit network and the book's algorithm in numpy
    python bench.py prepare                             tokens/s of data/prepare.py, and of tiktoken alone
    python bench.py what-if                             the table of WHATIF.md: a GPT with one thing changed
    python bench.py ablate config/x.py --change="a=1"   is a change worth it? paired seeds, equal time or steps
    python bench.py speedrun config/x.py                is a config a record of the CPU speedrun (docs/speedrun.md)?
    python bench.py tokenizers                          bits per byte after equal time with each tokenizer
    python bench.py pizza --model FILE                  what "it" looks at, in 90 sentences, and what the model says
    python bench.py page                                tokens/s of HTML pages in Chromium
    python bench.py checkpoint                          what it costs to save GPT-2 124M
    python bench.py export-memory                       memory that export and import of 350M weights take
    python bench.py gpu --against NANOGPT               what a GPU does, in eight minutes: tests, speed, loss, resume

NANOGPT is the path of a checkout of nanoGPT. The two sides alternate, so that other load on the machine affects both.
The output shows all values, their medians, and the median of the paired ratios.
"""

import os
import runpy
import sys

from gradus.errors import UserError, exit_on_error

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'benchmarks')
SHARED = ('paired', 'runs', 'gpu_parts')              # files that benchmarks share


def names():
    """What can be measured: the files in benchmarks/, but for those they share."""
    stems = [file.removesuffix('.py') for file in os.listdir(FOLDER) if file.endswith('.py')]
    return sorted(stem.replace('_', '-') for stem in stems if stem not in SHARED)


def main():
    name = sys.argv[1] if len(sys.argv) > 1 else '--help'
    if name in ('-h', '--help'):
        print(__doc__.strip())
        return
    if name not in names():
        raise UserError(f"bench.py {name}: expected one of {', '.join(names())}")

    del sys.argv[0]                                   # the benchmark sees its own name first, then its options
    runpy.run_path(os.path.join(FOLDER, name.replace('-', '_') + '.py'), run_name='__main__')


if __name__ == '__main__':
    with exit_on_error():
        main()
