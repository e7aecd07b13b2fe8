"""
Measure, side by side with what there is to beat: `python bench.py NAME ...` runs benchmarks/NAME.py; --help behind it tells more.

    python bench.py time-to-loss --against PATH_TO_NANOGPT    seconds to a loss of 1.88 on tiny Shakespeare, and the loss at equal time
    python bench.py same-recipe --against PATH_TO_NANOGPT     whole runs of nanoGPT's CPU recipe
    python bench.py same-steps --against PATH_TO_NANOGPT      its steps, on the same weights and batches
    python bench.py step --config X --against PATH_TO_NANOGPT tokens/s and MFU of a training step, and of nanoGPT's at the same size
    python bench.py sampling --against PATH_TO_NANOGPT        tokens/s of sampling, and seconds to the first token
    python bench.py llama-cpp                                 tokens/s of one stream, ours and llama.cpp's, in 32 and in 8 bits a weight
    python bench.py mnist                                     the digit network against the book's algorithm in numpy
    python bench.py checkpoint                                what saving GPT-2 124M costs

Ours and theirs alternate, so that whatever else the machine does hits both. Printed are the values, their medians,
and the median of the ratios of the pairs.
"""

import os
import runpy
import sys

from gradus import configurator, parallel

HERE = os.path.dirname(os.path.abspath(__file__))


def main():
    folder = os.path.join(HERE, 'benchmarks')
    names = sorted(f[:-3].replace('_', '-') for f in os.listdir(folder) if f.endswith('.py') and f != 'paired.py')
    name = sys.argv[1] if len(sys.argv) > 1 else '--help'
    if name in ('-h', '--help'):
        print(__doc__.strip())
    elif name not in names:
        sys.exit(f"error: bench.py {name}: expected one of {', '.join(names)}")
    else:
        del sys.argv[0]
        try:
            runpy.run_path(os.path.join(folder, name.replace('-', '_') + '.py'), run_name='__main__')
        except (configurator.ConfigError, parallel.DeviceError) as e:
            sys.exit(f'error: {e}')


if __name__ == '__main__':
    main()
