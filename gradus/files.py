"""The one way to write a file: under a temporary name, flushed to disk, then renamed; and what may be read."""

import errno
import os
import shutil
import stat
from contextlib import contextmanager

from gradus.errors import UserError, one_line

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class WriteError(UserError):
    """A file could not be written. unchanged: is the old file still in place?"""
    unchanged = False


@contextmanager
def atomic_write(path, keep_previous=False):
    """
    A temporary binary file to write to. It replaces `path` once it is complete and flushed to disk; on any error it is
    removed, and `path` is left as it was. keep_previous: the file that it replaces becomes `path`.prev.
    Raises WriteError.
    """
    tmp = temporary_name(path)
    existed = os.path.exists(path)
    try:
        with open(tmp, 'wb') as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        if keep_previous and existed:
            os.replace(path, path + '.prev')
        os.replace(tmp, path)
        sync_folder(os.path.dirname(path) or '.')
    except BaseException as e:
        if os.path.exists(tmp):
            os.remove(tmp)
        if keep_previous and existed and not os.path.exists(path):
            os.replace(path + '.prev', path)
        cause = _os_error(e)
        if cause is None:
            raise
        advice = '; make room' if cause.errno in DISK_FULL else ''
        error = WriteError(f'{path}: could not be written ({cause.strerror or one_line(cause)}){advice}')
        error.unchanged = existed and os.path.exists(path)
        raise error from e


def temporary_name(path):
    """A name beside `path` that belongs to this process."""
    return f'{path}.{os.getpid()}.tmp'


def _os_error(error):
    """The OSError that `error` is or comes from, else None: torch turns one into a RuntimeError."""
    if isinstance(error, OSError):
        return error
    if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
        return error.__context__
    return None


def make_folder(folder, advice):
    """Create `folder` and those above it, unless it exists. Raises UserError, which ends with `advice`."""
    try:
        os.makedirs(folder, exist_ok=True)
    except (OSError, ValueError) as e:
        raise UserError(f'{folder}: cannot be created ({getattr(e, "strerror", None) or e}); {advice}') from e


def sync_folder(folder):
    """Make renames in `folder` survive a power cut. Windows has no such call, and some file systems refuse it."""
    if not hasattr(os, 'O_DIRECTORY'):
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:                           # a folder that may be written but not listed
        return
    try:
        os.fsync(descriptor)
    except OSError as e:
        if e.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def require_file(path):
    """
    Raise UserError unless `path` is a regular file that exists: opening a pipe would wait forever, and a device may
    never end.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as e:
        raise UserError(f'{path}: {getattr(e, "strerror", None) or e}; expected a file') from e
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: 'a folder', stat.S_IFIFO: 'a pipe', stat.S_IFSOCK: 'a socket'}
        raise UserError(f'{path}: {kinds.get(stat.S_IFMT(mode), "a device")}; expected a file')


@contextmanager
def atomic_folder(path):
    """
    A temporary folder to write to. It becomes `path` once all its files are complete; on any error it is removed. If
    `path` exists, its files of the same names are replaced, one after the other; others stay. Raises UserError.
    """
    tmp = temporary_name(os.path.normpath(path))
    try:
        os.mkdir(tmp)
        yield tmp
        sync_folder(tmp)
        if os.path.isdir(path):
            for name in os.listdir(tmp):
                os.replace(os.path.join(tmp, name), os.path.join(path, name))
        else:
            os.rename(tmp, path)
        sync_folder(os.path.dirname(os.path.normpath(path)) or '.')
    except OSError as e:
        raise WriteError(f'{path}: could not be written ({e.strerror or one_line(e)})') from e
    finally:
        shutil.rmtree(tmp, ignore_errors=True)
