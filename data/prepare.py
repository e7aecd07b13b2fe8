"""
Your own text: make data/<name> from any UTF-8 files.

    python data/prepare.py --name=mine notes.txt letters.txt
    python train.py config/quickstart.py --dataset=mine --out_dir=out-mine

--tokenizer: char (one id for each character that occurs), byte (works for any text), or gpt2 (BPE tokens: fewer of
them, but a larger model). The last tenth of the text is held out for validation.
"""

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from gradus import data
from gradus.errors import exit_on_error


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('files', nargs='+', help='UTF-8 text files, read one after the other')
    parser.add_argument('--name', default='mine',
                        help='the folder in data/, which train.py calls --dataset (default: %(default)s)')
    parser.add_argument('--tokenizer', default='char', choices=('char', 'byte', 'gpt2'), help='default: %(default)s')
    parser.add_argument('--out', help='another folder to write to, instead of data/<name>')
    args = parser.parse_args()
    data.write_text(args.out or str(HERE / args.name), args.files, args.tokenizer)


if __name__ == '__main__':
    with exit_on_error():
        main()
