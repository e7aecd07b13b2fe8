"""
Tiny Shakespeare, one id a character: train.bin, val.bin (the last tenth) and meta.json, as nanoGPT cuts it.

    python data/shakespeare_char/prepare.py                    download the text (1.1 MB)
    python data/shakespeare_char/prepare.py --input input.txt  use a copy of it, or any other text
"""

import argparse
import hashlib
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))
import loader
from tokenizer import CharTokenizer

AUTOMATIC = True       # small: train.py may run this file when the dataset is missing
URL = 'https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt'
SHA256 = '86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed'


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--input', help='a UTF-8 text file to use instead of the download')
    parser.add_argument('--out', default=str(HERE), help='folder to write to (default: beside this file)')
    args = parser.parse_args()
    try:
        path = args.input or loader.download(URL, SHA256, str(HERE / 'input.txt'))
        text = loader.read_text(path)
    except loader.DataError as e:
        sys.exit(f'error: {e}')
    tokenizer = CharTokenizer.of(text)
    cut = int(len(text) * 0.9)
    loader.write(args.out, tokenizer.encode(text[:cut]), tokenizer.encode(text[cut:]), tokenizer,
                 source=path, sha256=hashlib.sha256(text.encode()).hexdigest())


if __name__ == '__main__':
    main()
