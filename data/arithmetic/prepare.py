"""
Sums: 123+456 and its result, 579, as pairs of prompt and completion. A GPT that gets sums right that it has never seen
has learned to add.

    python data/arithmetic/prepare.py                        sums of two numbers of up to three digits
    python data/arithmetic/prepare.py --digits=5 --no-reverse

The digits of a sum are written backwards, ones first: 975. That is the order in which carrying works, so each digit
depends on little. The usual order is harder to learn, because its first digit depends on all carries.
"""

import argparse
import random
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))
from gradus import pairs, preparation
from gradus.errors import UserError, exit_on_error

AUTOMATIC = True       # small, and no download: train.py may run this file when the dataset is missing
N_HELD_OUT = 1000      # sums for val.bin, and as many for test.tsv


def sums(digits, n, reverse, seed=0):
    """n different sums of numbers below 10 ** digits: (prompt, completion)."""
    limit = 10 ** digits
    for i in random.Random(seed).sample(range(limit ** 2), n):
        a, b = divmod(i, limit)
        total = str(a + b)
        yield f'{a}+{b}', total[::-1] if reverse else total


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--digits', default='3', help='at most so many digits a number (default: %(default)s)')
    parser.add_argument('--examples', default='50000', help='sums to train on (default: %(default)s)')
    parser.add_argument('--reverse', action=argparse.BooleanOptionalAction, default=True,
                        help='write the ones of a sum first')
    parser.add_argument('--out', default=str(HERE), help='folder to write to (default: beside this file)')
    args = parser.parse_args()

    digits = preparation.number('digits', args.digits, int)
    examples = preparation.number('examples', args.examples, int)
    n = examples + 2 * N_HELD_OUT
    if not 1 <= digits <= 9 or examples < 1 or n > 100 ** digits:
        raise UserError(f'--digits={digits} --examples={examples}: expected 1 to 9 digits, and no more sums '
                        f'than there are, among them {2 * N_HELD_OUT:,} to validate and to test on')

    # All different, in random order: the last ones are held out.
    found = list(sums(digits, n, args.reverse))
    test = [found.pop() for _ in range(N_HELD_OUT)]
    parts = ['train'] * examples + ['val'] * N_HELD_OUT
    tokenizer = pairs.tokenizer_for('char', ['0123456789+'])
    _, sha256 = pairs.survey(found)
    pairs.write(args.out, [(part, *pair) for part, pair in zip(parts, found)], tokenizer, 'sums', sha256, test)


if __name__ == '__main__':
    with exit_on_error():
        main()
