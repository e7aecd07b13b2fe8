"""
OpenWebText, an open reproduction of GPT-2's training text: 9 billion tokens, 17 GB, after a download of 54 GB.

    pip install datasets
    python data/openwebtext/prepare.py
"""

import argparse
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))
from tqdm import tqdm

from gradus import data
from gradus.errors import UserError, exit_on_error
from gradus.tokenizer import GPT2Tokenizer

SOURCE = 'Skylion007/openwebtext'


def documents(part, tokenizer, name):
    """The ids of a thousand documents at a time, each document ended by <|endoftext|>."""
    progress = tqdm(part.iter(batch_size=1000), total=-(-len(part) // 1000), desc=name, unit=' thousand')
    for batch in progress:
        chunk = []
        for ids in tokenizer.bpe.encode_ordinary_batch(batch['text'], num_threads=os.cpu_count()):
            chunk += ids
            chunk.append(tokenizer.start_id)
        yield chunk


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', default=str(HERE), help='folder to write to (default: beside this file)')
    args = parser.parse_args()
    try:
        from datasets import load_dataset
    except ImportError as e:
        raise UserError('OpenWebText is read with the package datasets; pip install datasets') from e
    tokenizer = GPT2Tokenizer()

    # The same fraction and seed as nanoGPT: the same documents are held out.
    split = load_dataset(SOURCE, split='train').train_test_split(test_size=0.0005, seed=2357, shuffle=True)
    train = documents(split['train'], tokenizer, 'train')
    val = documents(split['test'], tokenizer, 'val')
    data.write(args.out, train, val, tokenizer, source=SOURCE, sha256='')


if __name__ == '__main__':
    with exit_on_error():
        main()
