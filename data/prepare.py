"""
Your own text: make data/<name> from files of any size.

    python data/prepare.py --name=mine notes.txt letters.txt
    python data/prepare.py --name=web --tokenizer=bpe --vocab_size=8192 folder/ pages.jsonl.gz more.parquet
    python train.py config/quickstart.py --dataset=mine --out_dir=out-mine

A UTF-8 text file is one document. In .jsonl and .parquet, each line or row is one, and --field names its text. Text and
.jsonl may be compressed (.gz). A folder stands for all files in it and below.

    python data/prepare.py --pairs --name=answers --tokenizer=bpe questions.tsv

--pairs: each line is a prompt, a tab and its completion, or, in .jsonl, {"prompt": ..., "completion": ...}. Only
completions are learned, and no example sees another. --separator is a text that ends prompts; by default it is a token
of its own, and a newline for gpt2 and other models' tokenizers.

--tokenizer: char (one id for each character that occurs), byte (works for any text), bpe (--vocab_size tokens, trained
on this text), gpt2 (50,257 tokens: a shorter text, but a larger model), or that of a model to fine-tune, as train.py
--init_from calls it: a run's folder, a Hugging Face folder or name, or a .gguf file.

A tenth is held out for validation: every tenth document or pair; with fewer than 100 documents, the end of the text.
"""

import argparse
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from gradus import corpus, documents, pairs, preparation
from gradus.errors import UserError, exit_on_error, show
from gradus.metadata import read_meta

KINDS = ('char', 'byte', 'bpe', 'gpt2')


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


def dataset_files(folder):
    """The real paths of a dataset's files in `folder`, and of those that an interrupted attempt left."""
    try:
        names = os.listdir(folder)
    except (OSError, ValueError):
        names = []
    ours = [name for name in names if name in preparation.FILES or preparation.is_leftover(name, preparation.FILES)]
    return {os.path.realpath(os.path.join(folder, name)) for name in ours}


def check_replaceable(folder, source, files):
    """
    Raise UserError if `folder` holds anything but the dataset made from `source`, the paths that the user gives, and
    `files`, which these stand for.
    """
    if not os.path.lexists(folder):
        return
    try:
        names = os.listdir(folder)
    except OSError as e:
        raise UserError(f'{folder}: {e.strerror}; expected a folder to write to') from e
    known = dataset_files(folder) | {os.path.realpath(path) for path in [*source, *files]}
    others = []
    for name in sorted(names):
        path = os.path.join(folder, name)
        if not name.startswith('.') and os.path.realpath(path) not in known and not holds_only(path, known):
            others.append(name)
    if others:
        raise UserError(f'{folder}: holds other files ({show(others[0])[1:-1]}); choose another name, or add '
                        '--overwrite to write into this folder')

    if 'meta.json' in names or 'train.bin' in names:  # val.bin alone is what an interrupted attempt left
        try:
            found = read_meta(folder).get('source')
        except UserError:
            found = None
        if found != corpus.source_of(source):
            raise UserError(f'{folder}: holds a dataset made from {show(found) if found else "something else"}; '
                            'choose another name, or add --overwrite to replace it')


def holds_only(path, known):
    """Is `path` a folder whose files are all `known`?"""
    try:
        return os.path.isdir(path) and all(os.path.realpath(file) in known for file in documents.find([path]))
    except UserError:
        return False


def tokenizer_of(name):
    """What `write_text` takes: a kind of tokenizer, or the plain data of a model's own."""
    if name in KINDS:
        return name
    from gradus import pretrained  # imports torch, which takes a second
    try:
        return pretrained.find_tokenizer(pretrained.load(name))
    except UserError as e:
        raise UserError(f'--tokenizer={name}: {e}; expected {", ".join(KINDS)}, or a model') from e


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('files', nargs='+', help='files and folders, read one after the other')
    parser.add_argument('--name', default='mine',
                        help='the folder in data/, which train.py calls --dataset (default: %(default)s)')
    parser.add_argument('--tokenizer', default='char', help='char, byte, bpe, gpt2, or a model (default: %(default)s)')
    parser.add_argument('--vocab_size', help='how many tokens bpe has (default: 4096)')
    parser.add_argument('--field', help='the text in .jsonl and .parquet (default: text)')
    parser.add_argument('--val_fraction', default='0.1', help='how much is held out (default: %(default)s)')
    parser.add_argument('--pairs', action='store_true', help='lines of prompt and completion')
    parser.add_argument('--separator', help='for --pairs: a text that ends each prompt')
    parser.add_argument('--out', help='another folder to write to, instead of data/<name>')
    parser.add_argument('--overwrite', action='store_true', help='even if the folder holds something else')
    args = parser.parse_args()

    if args.separator is not None and (not args.pairs or not args.separator):
        raise UserError(f'--separator={show(args.separator)[1:-1]}: expected a text, together with --pairs')
    if args.field is not None and args.pairs:
        raise UserError(f'--field={show(args.field)[1:-1]}: not for --pairs, whose fields are prompt and completion')
    args.val_fraction = preparation.number('val_fraction', args.val_fraction, float)
    if args.vocab_size is not None and args.tokenizer != 'bpe':
        raise UserError(f'--vocab_size={show(args.vocab_size)[1:-1]}: a tokenizer of kind {args.tokenizer} has a '
                        'vocabulary of its own; leave it out, or train one with --tokenizer=bpe')
    args.vocab_size = preparation.number('vocab_size', '4096' if args.vocab_size is None else args.vocab_size, int)
    return args


def main():
    args = parse_arguments()
    folder = folder_called(args.name) if args.out is None else args.out
    files = documents.find(args.files, skip=dataset_files(folder))
    if not args.overwrite:
        check_replaceable(folder, args.files, files)
    options = dict(source=corpus.source_of(args.files), val_fraction=args.val_fraction, vocab_size=args.vocab_size)
    kind = tokenizer_of(args.tokenizer)
    if args.pairs:
        separator = args.separator and args.separator.replace('\\n', '\n')     # a shell passes \n as two characters
        pairs.prepare(folder, files, kind, separator=separator, **options)
    else:
        corpus.write_text(folder, files, kind, field=args.field or 'text', **options)


if __name__ == '__main__':
    with exit_on_error():
        main()
