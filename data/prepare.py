"""
Your own text: make data/<name> out of any UTF-8 files.

    python data/prepare.py --name=mine notes.txt letters.txt
    python train.py config/quickstart.py --dataset=mine --out_dir=out-mine

--tokenizer: char (an id for each character that occurs), byte (any text, now and later), or gpt2 (word pieces;
fewer tokens, a larger model). The last tenth of the text is held out to measure on.
"""

import argparse
import hashlib
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from gradus import data
from gradus import tokenizer as tokenizers


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('files', nargs='+', help='UTF-8 text files, read one after the other')
    parser.add_argument('--name', default='mine', help='the folder in data/, which is what train.py calls --dataset (default: %(default)s)')
    parser.add_argument('--tokenizer', default='char', choices=('char', 'byte', 'gpt2'), help='default: %(default)s')
    parser.add_argument('--out', help='another folder to write to, instead of data/<name>')
    args = parser.parse_args()
    try:
        text = '\n'.join(data.read_text(path) for path in args.files)
        if len(text) < 100:
            raise data.DataError(f'{", ".join(args.files)}: {len(text)} characters; expected a text to learn from, of 100 at least')
        if args.tokenizer == 'char':
            tokenizer = tokenizers.CharTokenizer.of(text)
        else:
            tokenizer = tokenizers.from_json({'kind': args.tokenizer})
        cut = int(len(text) * 0.9)
        encode = getattr(tokenizer, 'encode_ordinary', tokenizer.encode)
        data.write(args.out or str(HERE / args.name), [encode(text[:cut])], [encode(text[cut:])], tokenizer,
                     source=', '.join(args.files), sha256=hashlib.sha256(text.encode()).hexdigest())
    except (data.DataError, tokenizers.TokenizerError) as e:
        sys.exit(f'error: {e}')


if __name__ == '__main__':
    main()
