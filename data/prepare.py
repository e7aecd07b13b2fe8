"""
Your own text: make data/<name> from any UTF-8 files.

    python data/prepare.py --name=mine notes.txt letters.txt
    python train.py config/quickstart.py --dataset=mine --out_dir=out-mine

--tokenizer: char (one id for each character that occurs), byte (works for any text), gpt2 (BPE tokens: fewer of them,
but a larger model), or that of a model to fine-tune, as train.py --init_from calls it: a run's folder, a Hugging Face
folder or name, or a .gguf file. The last tenth of the text is held out for validation.
"""

import argparse
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from gradus import preparation
from gradus.errors import UserError, exit_on_error, show
from gradus.metadata import read_meta


def folder_called(name):
    """data/<name>, unless that is no folder of its own for a dataset. Raises UserError."""
    inside = os.path.normpath(name)
    outside = os.path.isabs(name) or os.path.splitdrive(name)[0] or inside.split(os.sep)[0] == os.pardir
    if outside or inside == os.curdir or not name.isprintable():
        raise UserError(f'--name={show(name)[1:-1]}: expected a name for a folder in {HERE}; '
                        'for another place, give --out FOLDER')
    if os.path.lexists(HERE / inside / 'prepare.py'):
        raise UserError(f'--name={name}: {HERE / inside} is a dataset with a prepare.py of its own; '
                        'choose another name')
    return str(HERE / inside)


def check_replaceable(folder, source):
    """Raise UserError if there is something in `folder` that was not made from the same files."""
    if not os.path.lexists(folder):
        return
    try:
        names = os.listdir(folder)
    except OSError as e:
        raise UserError(f'{folder}: {e.strerror}; expected a folder to write to') from e
    sources = [os.path.realpath(path) for path in source]
    others = []
    for name in sorted(names):
        known = name in preparation.FILES or name.startswith('.') or preparation.is_leftover(name, preparation.FILES)
        if not known and os.path.realpath(os.path.join(folder, name)) not in sources:
            others.append(name)
    if others:
        raise UserError(f'{folder}: holds other files ({show(others[0])[1:-1]}); choose another name, or add '
                        '--overwrite to write into this folder')

    if 'meta.json' in names or 'train.bin' in names:  # val.bin alone is what an interrupted attempt left
        try:
            found = read_meta(folder).get('source')
        except UserError:
            found = None
        if found != preparation.source_of(source):
            raise UserError(f'{folder}: holds a dataset made from {show(found) if found else "something else"}; '
                            'choose another name, or add --overwrite to replace it')


def tokenizer_of(name):
    """What `write_text` takes: a kind of tokenizer, or the plain data of a model's own."""
    if name in ('char', 'byte', 'gpt2'):
        return name
    from gradus import pretrained  # imports torch, which takes a second
    try:
        return pretrained.find_tokenizer(pretrained.load(name))
    except UserError as e:
        raise UserError(f'--tokenizer={name}: {e}; expected char, byte, gpt2, or a model') from e


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('files', nargs='+', help='UTF-8 text files, read one after the other')
    parser.add_argument('--name', default='mine',
                        help='the folder in data/, which train.py calls --dataset (default: %(default)s)')
    parser.add_argument('--tokenizer', default='char', help='char, byte, gpt2, or a model (default: %(default)s)')
    parser.add_argument('--out', help='another folder to write to, instead of data/<name>')
    parser.add_argument('--overwrite', action='store_true', help='even if the folder holds something else')
    args = parser.parse_args()

    folder = folder_called(args.name) if args.out is None else args.out
    if not args.overwrite:
        check_replaceable(folder, args.files)
    preparation.write_text(folder, args.files, tokenizer_of(args.tokenizer))


if __name__ == '__main__':
    with exit_on_error():
        main()
