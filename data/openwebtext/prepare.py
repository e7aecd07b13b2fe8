"""
OpenWebText, an open reproduction of GPT-2's training text: 8 million documents, 9 billion tokens.

    python data/openwebtext/prepare.py                           stream it from Hugging Face: pip install datasets
    python data/openwebtext/prepare.py --input folder/*.parquet  from a copy of its 80 files: pip install pyarrow

Nothing is stored but the tokens. The documents in val.bin are those that nanoGPT holds out. Within the files they keep
the order of the source, where nanoGPT shuffles them.
"""

import argparse
import math
import os
import sys
from contextlib import closing
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))
from gradus import bulk, documents, preparation
from gradus.errors import UserError, exit_on_error, one_line
from gradus.tokenizer import GPT2Tokenizer

SOURCE = 'Skylion007/openwebtext'
DOCUMENTS = 8_013_769
TOKENS = 9_040_017_095                                # nanoGPT's count, train and val
DOWNLOAD = 24_193_092_408                             # bytes


def held_out(n):
    """
    The numbers of the documents, of n, that nanoGPT holds out. This is what the package datasets does in
    train_test_split(test_size=0.0005, seed=2357, shuffle=True), without needing all documents at once.
    """
    shuffled = np.random.default_rng(2357).permutation(n)
    return set(shuffled[:math.ceil(0.0005 * n)].tolist())


def check_package():
    """Raise UserError without the package that a stream needs."""
    try:
        import datasets  # noqa: F401
    except ImportError as e:
        raise UserError('OpenWebText is streamed with the package datasets; pip install datasets, or pass its files '
                        'with --input FILE.parquet ...') from e


def streamed():
    """The documents, over the network."""
    from datasets import load_dataset

    try:
        for batch in load_dataset(SOURCE, split='train', streaming=True).iter(batch_size=1000):
            yield from batch['text']
    except Exception as e:
        raise UserError(f'{SOURCE}: cannot be read ({type(e).__name__}: {one_line(e, limit=160)}); '
                        'try again, or download its files and pass them with --input FILE.parquet ...') from e


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--input', nargs='+', metavar='FILE', help='parquet files to use instead; read in the order '
                        'of their names')
    parser.add_argument('--field', default='text', help='the column that has the text (default: %(default)s)')
    parser.add_argument('--out', default=str(HERE), help='folder to write to (default: beside this file)')
    args = parser.parse_args()
    tokenizer = GPT2Tokenizer()

    if args.input:
        paths = sorted(args.input, key=os.path.basename)
        n = documents.parquet_rows(paths, args.field)
        texts = documents.parquet_texts(paths, args.field)
        bulk.announce('OpenWebText', TOKENS * n // DOCUMENTS, tokenizer, args.out)
        if n != DOCUMENTS:
            print(f'{n:,} documents of {DOCUMENTS:,}: not those that nanoGPT holds out, but as many in proportion')
    else:
        check_package()
        n = DOCUMENTS
        texts = streamed()
        bulk.announce('OpenWebText', TOKENS, tokenizer, args.out, streamed=DOWNLOAD)

    with closing(bulk.encoded(texts, tokenizer, n, held_out(n).__contains__)) as pieces:
        preparation.write(args.out, pieces, tokenizer, SOURCE, sha256='')


if __name__ == '__main__':
    with exit_on_error():
        main()
