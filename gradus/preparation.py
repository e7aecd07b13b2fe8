"""
Make datasets: read a text, write train.bin, val.bin and meta.json (see data.py), start a dataset's prepare.py.

PyTorch is not needed here, so that data/*/prepare.py start at once.
"""

import contextlib
import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import urllib.request
from http.client import HTTPException

import numpy as np

from gradus.errors import UserError, one_line, printable
from gradus.files import DISK_FULL, WriteError, make_folder, require_file, sync_folder, temporary_name
from gradus.lock import Lock
from gradus.tokenizer import CharTokenizer, build_tokenizer

FILES = ('train.bin', 'val.bin', 'meta.json')
ELSEWHERE = 'choose another folder with --out'


# ---------------------------------------------------------------------------- sources

def read_text(path):
    """The text of a UTF-8 file, line endings untouched. Raises UserError."""
    require_file(path)
    try:
        with open(path, encoding='utf-8', newline='') as f:
            return f.read()
    except UnicodeDecodeError as e:
        raise UserError(f'{path}: not UTF-8 text (byte {e.start}); convert it first') from e
    except OSError as e:
        raise UserError(f'{path}: {e.strerror}; expected a text file') from e


def download(url, sha256, path, instead=None):
    """
    Download url, unless the file `path` exists; either way its sha256 must match. If its folder cannot be written, the
    file goes into the folder `instead`. Returns its path. Raises UserError.
    """
    folder = os.path.dirname(path) or '.'
    if instead and not os.path.lexists(path) and not os.access(folder, os.W_OK):
        folder = instead
        path = os.path.join(folder, os.path.basename(path))
    if os.path.lexists(path):
        require_file(path)
        try:
            with open(path, 'rb') as f:
                found = hashlib.sha256(f.read()).hexdigest()
        except OSError as e:
            raise UserError(f'{path}: cannot be read ({e.strerror}); give another copy with --input FILE') from e
        if found != sha256:
            raise UserError(f'{path}: sha256 {found[:12]}..., expected {sha256[:12]}...; '
                            'delete the file to download it again')
        return path

    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            content = response.read(2 ** 28)
    except (OSError, ValueError, HTTPException) as e:
        raise UserError(f'{url}: download failed ({one_line(e, limit=120)}); '
                        'download it elsewhere and pass it with --input FILE') from e
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise UserError(f'{url}: sha256 {found[:12]}..., expected {sha256[:12]}...: another file came; '
                        'download it elsewhere and pass it with --input FILE')
    make_folder(folder, ELSEWHERE)
    replace_files(folder, {os.path.basename(path): [content]})
    return path


# ---------------------------------------------------------------------------- writing

def write(folder, train, val, tokenizer, source, sha256):
    """
    Write train.bin, val.bin and meta.json into `folder`. Whenever this is interrupted, the folder holds the dataset
    that it held before, or the new one, or one that is refused as incomplete. Raises UserError.

    train, val: iterables of chunks, each a sequence of ids ([ids] if there is only one); tokenizer: one of
    tokenizer.py's; source: what the ids were made from, in words; sha256: of that text, in hexadecimal.
    """
    dtype = 'uint16' if tokenizer.n_vocab <= 2 ** 16 else 'uint32'
    on_disk = np.dtype(dtype).newbyteorder('<')
    counts = {}

    def token_bytes(name, chunks):
        counts[name] = 0
        for ids in chunks:
            ids = np.asarray(ids, dtype=on_disk)
            counts[name] += ids.size
            yield ids.tobytes()

    def meta_bytes():
        """Comes last, when the tokens have been counted."""
        meta = dict(tokenizer=tokenizer.to_json(), vocab_size=tokenizer.n_vocab, dtype=dtype,
                    train_tokens=counts['train'], val_tokens=counts['val'], source=source, sha256=sha256)
        yield (json.dumps(meta, indent=1) + '\n').encode()

    make_folder(folder, ELSEWHERE)
    replace_files(folder, {'train.bin': token_bytes('train', train), 'val.bin': token_bytes('val', val),
                           'meta.json': meta_bytes()})
    print(f"{printable(folder)}: train has {counts['train']:,} tokens, val has {counts['val']:,} tokens, "
          f'vocabulary {tokenizer.n_vocab:,}')


def replace_files(folder, contents):
    """
    Put new files into `folder`: `contents` gives for each name the pieces, bytes, to write. All of them are written
    under temporary names and flushed to disk before the first is renamed. Raises WriteError.

    The first file is the one without which a folder counts as incomplete: an old one is removed before any other
    file is replaced, and the new one comes last.
    """
    with _writing(folder), Lock(folder, 'another process is writing to it'):
        _replace_files(folder, contents)


def _replace_files(folder, contents):
    paths = [os.path.join(folder, name) for name in contents]
    with _writing(folder):
        remove_leftovers(folder, contents)
    try:
        for path, pieces in zip(paths, contents.values()):
            with _writing(path), open(temporary_name(path), 'wb') as f:
                for piece in pieces:
                    f.write(piece)
                f.flush()
                os.fsync(f.fileno())

        first, *others = paths
        with _writing(first):
            if others and os.path.lexists(first):
                os.remove(first)
                sync_folder(folder)
        for path in reversed(others):                 # meta.json first: it says what the folder will hold
            with _writing(path):
                os.replace(temporary_name(path), path)
        with _writing(first):
            sync_folder(folder)
            os.replace(temporary_name(first), first)
            sync_folder(folder)
    finally:
        with contextlib.suppress(OSError):
            remove_leftovers(folder, contents)


@contextlib.contextmanager
def _writing(path):
    """What the operating system refuses inside becomes a WriteError about `path`."""
    try:
        yield
    except OSError as e:
        remedy = 'make room' if e.errno in DISK_FULL else ELSEWHERE
        raise WriteError(f'{path}: could not be written ({e.strerror or one_line(e)}); {remedy}') from e


def remove_leftovers(folder, names):
    """Remove what `temporary_name` called the files `names` in this process, or in one that was killed."""
    for entry in os.listdir(folder):
        if is_leftover(entry, names) and not _runs(int(entry.split('.')[-2])):
            with contextlib.suppress(OSError):
                os.remove(os.path.join(folder, entry))


def is_leftover(entry, names):
    """Does the file name `entry` come from `temporary_name` for one of `names`?"""
    found = re.fullmatch(r'(.+)\.[0-9]+\.tmp', entry)
    return found is not None and found[1] in names


def _runs(pid):
    """Does another process of this number run? Yes if in doubt: Windows cannot be asked."""
    if pid == os.getpid():
        return False
    if os.name != 'posix':
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):                  # not ours
        pass
    return True


def write_text(folder, paths, kind):
    """
    Make a dataset of UTF-8 text files, one after the other; the last tenth of the text becomes val.bin. kind: that of
    the tokenizer (char, byte, gpt2), or its plain data. Raises UserError.
    """
    text = '\n'.join(read_text(path) for path in paths)
    if len(text) < 100:
        raise UserError(f'{", ".join(paths)}: {len(text)} characters; expected at least 100 characters to train on')
    if kind == 'char':
        tokenizer = CharTokenizer.from_text(text)
    else:
        tokenizer = build_tokenizer(kind if isinstance(kind, dict) else {'kind': kind})
    cut = int(len(text) * 0.9)
    train = tokenizer.encode_ordinary(text[:cut])
    val = tokenizer.encode_ordinary(text[cut:])
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    write(folder, [train], [val], tokenizer, source=source_of(paths), sha256=sha256)


def source_of(paths):
    """What meta.json says about a dataset made of the files `paths`."""
    return ', '.join(paths)


# ---------------------------------------------------------------------------- automatic preparation

def prepare(folder, name):
    """
    Make sure that `folder` has the file `name`. A small dataset, whose prepare.py says AUTOMATIC = True, is prepared on
    the spot. Raises UserError for others, which the user has to start, and if preparing fails.
    """
    script = os.path.join(folder, 'prepare.py')
    if os.path.lexists(os.path.join(folder, name)) or not os.path.exists(script):
        return
    if not re.search(r'^AUTOMATIC = True', read_text(script), flags=re.MULTILINE):
        raise UserError(f'{folder}: no {name}; prepare the dataset first: python {script}')
    if not os.access(folder, os.W_OK):
        run = [shlex.quote(os.path.abspath(path)) for path in (script, sys.argv[0])]
        raise UserError(f'{folder}: not prepared yet, and it cannot be written; in a folder of your own, run '
                        f'python {run[0]} --out {folder} and then python {run[1]}')

    print(f'preparing {folder} ...', flush=True)
    returncode, lines = _run(script)
    reason = ''
    if returncode == 2 and lines and lines[-1].startswith('error: '):
        reason = lines.pop().removeprefix('error: ')
    if lines:
        print('\n'.join(lines), file=sys.stderr)
    if returncode:
        why = f': {reason}' if reason else f', see above (exit code {returncode})'
        raise UserError(f'{folder}: could not be prepared{why}; python {script} --help lists its options')


def _run(script):
    """Run a prepare.py to its end, unless a signal stops it. Returns its exit code and the lines of its stderr."""
    received = []                                     # signals
    with _handled_by(lambda number, frame: received.append(number)):
        # In a session of its own: Ctrl-C reaches this process alone, which says so once and stops the child.
        child = subprocess.Popen([sys.executable, script], stderr=subprocess.PIPE, start_new_session=True)
        while True:
            if received:
                _stop(child)
                raise KeyboardInterrupt if received[0] == signal.SIGINT else SystemExit(128 + received[0])
            with contextlib.suppress(subprocess.TimeoutExpired):
                stderr = child.communicate(timeout=0.2)[1]
                break
    return child.returncode, stderr.decode(errors='replace').splitlines()


def _stop(child):
    """End a process of `_run`, and those that it started."""
    with contextlib.suppress(OSError):
        if os.name == 'posix':
            os.killpg(child.pid, signal.SIGTERM)
        else:
            child.terminate()
    child.wait()


@contextlib.contextmanager
def _handled_by(handler):
    """Ctrl-C and SIGTERM call `handler` inside."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread():               # only there may that be changed
        numbers = ()
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous or signal.SIG_DFL)
