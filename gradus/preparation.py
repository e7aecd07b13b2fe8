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

from gradus.errors import UserError, one_line, printable, show
from gradus.files import DISK_FULL, WriteError, make_folder, require_file, sync_folder, temporary_name
from gradus.lock import Lock

FILES = ('train.bin', 'val.bin', 'meta.json', 'train.pairs.bin', 'val.pairs.bin')    # all that a dataset may have
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


def download(url, sha256, path, instead=None, option='--input FILE'):
    """
    Download url, unless the file `path` exists; either way its sha256 must match. If its folder cannot be written, the
    file goes into the folder `instead`. Returns its path. Raises UserError, which names the `option` for another copy.
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
            raise UserError(f'{path}: cannot be read ({e.strerror}); give another copy with {option}') from e
        if found != sha256:
            raise UserError(f'{path}: sha256 {found[:12]}..., expected {sha256[:12]}...; '
                            'delete the file to download it again')
        return path

    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            content = response.read(2 ** 28)
    except (OSError, ValueError, HTTPException) as e:
        raise UserError(f'{url}: download failed ({one_line(e, limit=120)}); '
                        f'download it elsewhere and pass it with {option}') from e
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise UserError(f'{url}: sha256 {found[:12]}..., expected {sha256[:12]}...: another file came; '
                        f'download it elsewhere and pass it with {option}')
    make_folder(folder, ELSEWHERE)
    name = os.path.basename(path)
    write_files(folder, [name], [(name, content)])
    return path


def number(key, text, kind):
    """The value of a prepare.py's option --key, an int or a float. Raises UserError."""
    try:
        return kind(text)
    except ValueError as e:
        words = {int: 'an integer', float: 'a number'}
        raise UserError(f'--{key}={show(text)[1:-1]}: expected {words[kind]}') from e


# ---------------------------------------------------------------------------- writing

def write(folder, pieces, tokenizer, source, sha256, index=None, extra=None):
    """
    Write train.bin, val.bin and meta.json into `folder`. Whenever this is interrupted, the folder holds the dataset
    that it held before, or the new one, or one that is refused as incomplete. Raises UserError.

    pieces: (split, ids), where 'train' and 'val' may alternate, so that one pass over a text can fill both files;
    tokenizer: one of tokenizer.py's; source: what the ids were made from, in words; sha256: of that text, in
    hexadecimal; index: only for pairs, what train.pairs.bin and val.pairs.bin will hold: {split: a flat array of two
    numbers for each example}, which grows while the pieces are asked for; extra: files that belong to this dataset,
    {name: content}.
    """
    dtype = dtype_for(tokenizer)
    counts = dict(train=0, val=0)

    def contents():
        for split, ids in pieces:
            ids = np.asarray(ids, dtype=on_disk(dtype))
            counts[split] += ids.size
            yield f'{split}.bin', ids.tobytes()
        for split, n in counts.items():
            if not n:
                raise UserError(f'{folder}: the text gives no tokens for {split}.bin, so nothing was written; '
                                'expected a longer one')
        more = {}
        for split, numbers in (index or {}).items():
            more[f'{split}_pairs'] = len(numbers) // 2
            yield f'{split}.pairs.bin', np.asarray(numbers, dtype='<i8').tobytes()
        meta = dict(tokenizer=tokenizer.to_json(), vocab_size=tokenizer.n_vocab, dtype=dtype,
                    train_tokens=counts['train'], val_tokens=counts['val'], source=source, sha256=sha256, **more)
        yield 'meta.json', (json.dumps(meta, indent=1) + '\n').encode()
        yield from (extra or {}).items()

    make_folder(folder, ELSEWHERE)
    write_files(folder, [*(FILES if index else FILES[:3]), *(extra or ())], contents())
    print(f"{printable(folder)}: train has {counts['train']:,} tokens, val has {counts['val']:,} tokens, "
          f'vocabulary {tokenizer.n_vocab:,}')


def splits(train, val):
    """The pieces that `write` takes, from two iterables of chunks of ids."""
    for split, chunks in (('train', train), ('val', val)):
        for ids in chunks:
            yield split, ids


def dtype_for(tokenizer):
    """The name of the smallest dtype that holds all ids of a tokenizer, as in meta.json."""
    return 'uint16' if tokenizer.n_vocab <= 2 ** 16 else 'uint32'


def on_disk(dtype):
    """The dtype of that name in the byte order of .bin files."""
    return np.dtype(dtype).newbyteorder('<')


def write_files(folder, names, pieces):
    """
    Put new files into `folder`. pieces: (name, bytes), where the `names` may alternate. All files are written under
    temporary names and flushed to disk before the first is renamed. Raises WriteError.

    Without the file of the first name, a folder counts as incomplete: an old one is removed before any other file is
    replaced, and the new one comes last. If that file belongs to a dataset, files that only the old dataset had are
    removed too.
    """
    lock = Lock(folder, 'another process is writing to it')
    with _writing(folder):
        lock.acquire()
    try:
        _write_files(folder, names, pieces)
    finally:
        lock.release()


def _write_files(folder, names, pieces):
    first, *others = names
    stale = [name for name in FILES if name not in names and first in FILES]
    with _writing(folder):
        remove_leftovers(folder, [*names, *stale])
    try:
        _write_temporary(folder, names, pieces)
        _rename(folder, first, others, stale)
    finally:
        with contextlib.suppress(OSError):
            remove_leftovers(folder, names)


def _write_temporary(folder, names, pieces):
    """Write the pieces under temporary names; at the end, all of them are on disk."""
    with contextlib.ExitStack() as stack:
        files = {}
        for name in names:
            path = os.path.join(folder, name)
            stack.enter_context(_writing(path))       # closing it at the end may fail too
            files[name] = stack.enter_context(open(temporary_name(path), 'wb'))
        for name, piece in pieces:
            with _writing(os.path.join(folder, name)):
                files[name].write(piece)
        for name, file in files.items():
            with _writing(os.path.join(folder, name)):
                file.flush()
                os.fsync(file.fileno())


def _rename(folder, first, others, stale):
    """Replace the old files by the temporary ones, in the order that `write_files` promises."""
    path = os.path.join(folder, first)
    with _writing(path):
        if (others or stale) and os.path.lexists(path):
            os.remove(path)
            sync_folder(folder)
    for name in stale:
        path = os.path.join(folder, name)
        with _writing(path):
            if os.path.lexists(path):
                os.remove(path)
    for name in reversed(others):                     # meta.json first: it says what the folder will hold
        path = os.path.join(folder, name)
        with _writing(path):
            os.replace(temporary_name(path), path)
    path = os.path.join(folder, first)
    with _writing(path):
        sync_folder(folder)
        os.replace(temporary_name(path), path)
        sync_folder(folder)


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
