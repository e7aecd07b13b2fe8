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
    """
    n different sums, (prompt, completion), of numbers of up to `digits` digits. All lengths are about as likely: if all
    numbers were, short ones would be too rare to be learned.
    """
    r = random.Random(seed)
    found = {}                                        # in the order in which they were drawn
    while len(found) < n:
        a, b = (r.randrange(10 ** r.randint(1, digits)) for _ in range(2))
        total = str(a + b)
        found[f'{a}+{b}'] = total[::-1] if reverse else total
    return list(found.items())


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
    # Half of all sums at most: drawing new ones remains quick.
    if not 2 <= digits <= 9 or not 1 <= examples <= 100 ** digits // 2 - 2 * N_HELD_OUT:
        raise UserError(f'--digits={digits} --examples={examples}: expected 2 to 9 digits and 1 example or more, up to '
                        'half of all sums, without those held out')

    # All different, in random order: the last ones are held out.
    found = sums(digits, examples + 2 * N_HELD_OUT, args.reverse)
    test = [found.pop() for _ in range(N_HELD_OUT)]
    parts = ['train'] * examples + ['val'] * N_HELD_OUT
    tokenizer = pairs.tokenizer_for('char', ['0123456789+'])
    _, sha256 = pairs.survey(found)
    pairs.write(args.out, [(part, *pair) for part, pair in zip(parts, found)], tokenizer, 'sums', sha256, test)


if __name__ == '__main__':
    with exit_on_error():
        main()
