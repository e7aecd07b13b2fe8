"""
FineWeb-Edu, web pages that teach something: one to fourteen files of its sample of 10 billion tokens.

    python data/fineweb_edu/prepare.py --shards=1                download 2.2 GB: pip install huggingface_hub pyarrow
    python data/fineweb_edu/prepare.py --input FILE.parquet ...  from local copies of the files: pip install pyarrow
    python train.py config/fineweb_edu.py

In GPT-2's tokens, <|endoftext|> after each document. One file has about 0.75 billion tokens. Every thousandth document
is held out for val.bin. Downloads stay in Hugging Face's cache.
"""

import argparse
import os
import sys
from contextlib import closing
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))
from gradus import bulk, documents, preparation
from gradus.errors import UserError, exit_on_error, one_line, show
from gradus.tokenizer import GPT2Tokenizer

SOURCE = 'HuggingFaceFW/fineweb-edu'
SIZES = [2_152_000_000] * 13 + [541_000_000]          # of the sample's files, rounded
TOKENS_PER_BYTE = 10e9 / sum(SIZES)
HELD_OUT = 1000                                       # one document of so many


def name_of(i):
    return f'sample/10BT/{i:03d}_00000.parquet'


def is_held_out(i):
    return i % HELD_OUT == HELD_OUT - 1


def check_packages():
    """Raise UserError without the packages that a download needs."""
    try:
        import huggingface_hub  # noqa: F401
        import pyarrow  # noqa: F401
    except ImportError as e:
        raise UserError(f'FineWeb-Edu needs {e.name}; pip install huggingface_hub pyarrow') from e


def downloads_of(n):
    """(folder, bytes) of the first n files, as far as they are not in the cache yet."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.constants import HF_HUB_CACHE

    cached = [try_to_load_from_cache(SOURCE, name_of(i), repo_type='dataset') for i in range(n)]
    missing = [size for size, path in zip(SIZES, cached) if not isinstance(path, str)]
    return [(HF_HUB_CACHE, sum(missing))]


def download(n):
    """The paths of the first n files."""
    from huggingface_hub import hf_hub_download

    paths = []
    for i in range(n):
        try:
            paths.append(hf_hub_download(SOURCE, name_of(i), repo_type='dataset'))
        except Exception as e:                        # many kinds: no network, a full disk, a moved file
            raise UserError(f'{SOURCE}/{name_of(i)}: download failed ({type(e).__name__}: {one_line(e, limit=160)}); '
                            'try again, or download it elsewhere and pass it with --input FILE.parquet') from e
    return paths


def count_documents(paths, field):
    """How many there are in parquet files. Raises UserError if they are too few to hold one out."""
    n = documents.parquet_rows(paths, field)
    if n < HELD_OUT:
        raise UserError(f'{", ".join(paths)}: {n:,} documents; expected at least {HELD_OUT:,}, to hold out one')
    return n


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--shards', default='1', help=f'how many files, 1 to {len(SIZES)} (default: %(default)s)')
    parser.add_argument('--input', nargs='+', metavar='FILE', help='parquet files to use instead of the download')
    parser.add_argument('--field', default='text', help='the column that has the text (default: %(default)s)')
    parser.add_argument('--out', default=str(HERE), help='folder to write to (default: beside this file)')
    args = parser.parse_args()
    if not args.shards.isdecimal() or not 1 <= int(args.shards) <= len(SIZES):
        raise UserError(f'--shards={show(args.shards)[1:-1]}: expected a number of files from 1 to {len(SIZES)}')
    args.shards = int(args.shards)
    return args


def main():
    args = parse_arguments()
    tokenizer = GPT2Tokenizer()

    # What it needs.
    if args.input:
        paths = args.input
        n = count_documents(paths, args.field)
        size = sum(os.path.getsize(path) for path in paths)
        downloads = []
        source = f'{SOURCE}: {", ".join(os.path.basename(path) for path in paths)}'
    else:
        check_packages()
        size = sum(SIZES[:args.shards])
        downloads = downloads_of(args.shards)
        source = f'{SOURCE} sample/10BT, {args.shards} of {len(SIZES)} files'
    bulk.announce('FineWeb-Edu', round(size * TOKENS_PER_BYTE), tokenizer, args.out, downloads)

    # Read, encode, write.
    if not args.input:
        paths = download(args.shards)
        n = count_documents(paths, args.field)
    texts = documents.parquet_texts(paths, args.field)
    with closing(bulk.encoded(texts, tokenizer, n, is_held_out)) as pieces:
        preparation.write(args.out, pieces, tokenizer, source, sha256='')


if __name__ == '__main__':
    with exit_on_error():
        main()
