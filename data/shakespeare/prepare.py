"""
Tiny Shakespeare in GPT-2's tokens; split where nanoGPT splits it.

    python data/shakespeare/prepare.py                    download the text (1.1 MB)
    python data/shakespeare/prepare.py --input input.txt  use a copy of it, or any other text
"""

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))
from gradus import corpus, preparation
from gradus.errors import exit_on_error

AUTOMATIC = True       # small: train.py may run this file when the dataset is missing
URL = 'https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt'
SHA256 = '86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed'
COPY = HERE.parent / 'shakespeare_char' / 'input.txt'   # one download serves both datasets


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--input', help='a UTF-8 text file to use instead of the download')
    parser.add_argument('--out', default=str(HERE), help='folder to write to (default: beside this file)')
    args = parser.parse_args()
    path = args.input or preparation.download(URL, SHA256, str(COPY), args.out)
    corpus.write_text(args.out, [path], 'gpt2')


if __name__ == '__main__':
    with exit_on_error():
        main()
