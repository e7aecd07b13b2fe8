"""
OpenWebText, an open reproduction of GPT-2's training text: 9 billion tokens, 17 GB, after a download of 54 GB.

    pip install datasets
    python data/openwebtext/prepare.py
"""

import argparse
import os
import sys
from contextlib import closing, contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))
from tqdm import tqdm

from gradus import preparation
from gradus.errors import UserError, exit_on_error, one_line
from gradus.files import make_folder
from gradus.tokenizer import GPT2Tokenizer

SOURCE = 'Skylion007/openwebtext'


def documents(part, tokenizer, name):
    """The ids of a thousand documents at a time, each document ended by <|endoftext|>."""
    progress = tqdm(total=-(-len(part) // 1000), desc=name, unit=' thousand', disable=None)
    with progress, reading():
        for batch in part.iter(batch_size=1000):
            chunk = []
            for ids in tokenizer.bpe.encode_ordinary_batch(batch['text'], num_threads=os.cpu_count()):
                chunk += ids
                chunk.append(tokenizer.start_id)
            yield chunk
            progress.update()


@contextmanager
def reading():
    """Whatever the package raises ends in one line: no network, no room for its cache, an unreadable copy."""
    try:
        yield
    except UserError:
        raise
    except Exception as e:
        raise UserError(f'{SOURCE}: cannot be read ({type(e).__name__}: {one_line(e, limit=160)}); '
                        'see the documentation of the package datasets, HF_HOME says where it stores files') from e


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', default=str(HERE), help='folder to write to (default: beside this file)')
    args = parser.parse_args()
    try:
        from datasets import load_dataset
    except ImportError as e:
        raise UserError('OpenWebText is read with the package datasets; pip install datasets') from e
    tokenizer = GPT2Tokenizer()
    make_folder(args.out, preparation.ELSEWHERE)
    if not os.access(args.out, os.W_OK):              # better said before the download than after it
        raise UserError(f'{args.out}: cannot be written; {preparation.ELSEWHERE}')

    # The same fraction and seed as nanoGPT: the same documents are held out.
    with reading():
        split = load_dataset(SOURCE, split='train').train_test_split(test_size=0.0005, seed=2357, shuffle=True)
    with closing(documents(split['train'], tokenizer, 'train')) as train, \
            closing(documents(split['test'], tokenizer, 'val')) as val:
        preparation.write(args.out, train, val, tokenizer, source=SOURCE, sha256='')


if __name__ == '__main__':
    with exit_on_error():
        main()
