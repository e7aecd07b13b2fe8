"""
The source of Python's own standard library, one id for each byte: a corpus that every machine has already.

    python data/python_stdlib/prepare.py

Every tenth file is held out for val.bin. Tests and what is not the library (idlelib, site-packages, ...) are left out.
"""

import argparse
import hashlib
import os
import sys
import sysconfig
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))
from gradus import preparation
from gradus.errors import UserError, exit_on_error
from gradus.tokenizer import ByteTokenizer

AUTOMATIC = True       # small, and no download: train.py may run this file when the dataset is missing
LEFT_OUT = {'test', 'tests', 'idlelib', 'idle_test', 'site-packages', 'dist-packages', 'lib2to3', 'turtledemo',
            'ensurepip', 'encodings', 'pydoc_data', '__pycache__', '__phello__'}


def source_files(folder):
    """The library's .py files in a fixed order, so that the same Python gives the same dataset."""
    files = []
    for path in folder.rglob('*.py'):
        folders = path.relative_to(folder).parts[:-1]
        if not LEFT_OUT & set(folders) and path.is_file():
            files.append(path)
    return sorted(files, key=lambda path: path.relative_to(folder).as_posix())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--input', default=sysconfig.get_paths()['stdlib'],
                        help='folder of Python source (default: %(default)s)')
    parser.add_argument('--out', default=str(HERE), help='folder to write to (default: beside this file)')
    args = parser.parse_args()

    # Read.
    if not os.path.isdir(args.input):
        raise UserError(f'{args.input}: no such folder; expected one with the source of Python')
    texts = []
    try:
        for path in source_files(Path(args.input)):
            text = path.read_bytes().replace(b'\r\n', b'\n')
            if text.isascii() and text.strip():
                texts.append(text)
    except OSError as e:
        raise UserError(f'{e.filename}: cannot be read ({e.strerror}); give another folder with --input') from e
    if sum(map(len, texts)) < 1_000_000:
        raise UserError(f'{args.input}: less than 1 MB of Python source; expected the standard library of a full '
                        'Python, or another folder with --input FOLDER')

    # Split and write.
    train = b'\n'.join(text for i, text in enumerate(texts) if i % 10 != 9)
    val = b'\n'.join(text for i, text in enumerate(texts) if i % 10 == 9)
    version = sys.version.split()[0]
    sha256 = hashlib.sha256(train + val).hexdigest()
    preparation.write(args.out, [('train', memoryview(train)), ('val', memoryview(val))], ByteTokenizer(),
                      source=f'standard library of Python {version}', sha256=sha256)


if __name__ == '__main__':
    with exit_on_error():
        main()
