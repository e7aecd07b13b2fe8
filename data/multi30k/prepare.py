"""
Multi30k: 29,000 descriptions of pictures in German and English (Elliott et al. 2016), to learn to translate.

    python data/multi30k/prepare.py                     download them (1.3 MB)
    python data/multi30k/prepare.py --source FOLDER     use copies: train, val and test_2016_flickr, .de.gz and .en.gz

German is the prompt, English its completion; --reverse swaps them. Both languages share a BPE tokenizer of their own.
test.tsv has the 1,000 pairs of the test set of 2016, for sample.py --eval.
"""

import argparse
import gzip
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))
from gradus import bpe, pairs, preparation
from gradus.errors import UserError, exit_on_error
from gradus.files import make_folder

AUTOMATIC = True       # small: train.py may run this file when the dataset is missing
URL = 'https://raw.githubusercontent.com/multi30k/dataset/master/data/task1/raw'
SHA256 = {
    'train.de.gz': '726e39b2fa9eb9ffb6dc763fb35a179f80fae06ffc5d28b6ace5faa883de28a6',
    'train.en.gz': 'd79cfa999dd4c51d2cb42499b6796d5a882c3a8a961923c25a898c90f8bbd56f',
    'val.de.gz': 'f0cba2f995189cf5770f29a8a9a537a3ad3f51657ad873405082ff6863a5e75a',
    'val.en.gz': '14f7d25ddd868909a9213e361768460edcacdd6ab9d1e77b92560dc10c10dc28',
    'test_2016_flickr.de.gz': '9204244e408ccb38d2a55cfcd344df15005fc42a07a6e55ca6c52b6ababb8cc8',
    'test_2016_flickr.en.gz': '611d361c6334bc7246101d48097c13cf5c4413c5befc793cc629934359d532d9',
}


def read(part, reverse, args):
    """(prompt, completion) of each pair of `part`: train, val or test_2016_flickr."""
    sides = []
    for language in ('en', 'de') if reverse else ('de', 'en'):
        name = f'{part}.{language}.gz'
        path = os.path.join(args.source or HERE, name)
        if args.source and not os.path.lexists(path):
            raise UserError(f'{path}: not found; expected the folder of --source to have {", ".join(SHA256)}')
        path = preparation.download(f'{URL}/{name}', SHA256[name], path, args.out, option='--source FOLDER')
        with gzip.open(path, 'rt', encoding='utf-8', newline='\n') as f:
            sides.append([line.strip() for line in f])
    return list(zip(*sides, strict=True))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--source', help='a folder with copies of the files, instead of the download')
    parser.add_argument('--reverse', action='store_true', help='from English to German')
    parser.add_argument('--vocab_size', default='4096', help='tokens (default: %(default)s)')
    parser.add_argument('--out', default=str(HERE), help='folder to write to (default: beside this file)')
    args = parser.parse_args()
    vocab_size = preparation.number('vocab_size', args.vocab_size, int)
    bpe.check_training(vocab_size, pairs.SPECIAL)

    # Read.
    make_folder(args.out, preparation.ELSEWHERE)
    train, val, test = [read(part, args.reverse, args) for part in ('train', 'val', 'test_2016_flickr')]

    # Write.
    texts = [text for pair in train for text in pair]
    tokenizer = pairs.tokenizer_for('bpe', texts, vocab_size)
    parts = [('train', *pair) for pair in train] + [('val', *pair) for pair in val]
    _, sha256 = pairs.survey([*train, *val])
    pairs.write(args.out, parts, tokenizer, 'Multi30k', sha256, test)


if __name__ == '__main__':
    with exit_on_error():
        main()
