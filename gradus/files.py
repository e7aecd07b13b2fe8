"""The one way to write a file: under a temporary name, flushed to disk, then renamed."""

import errno
import os
from contextlib import contextmanager


@contextmanager
def atomic_write(path, keep_previous=False):
    """
    A temporary binary file to write to. It replaces `path` once it is complete and flushed to disk; on any error it is
    removed, and `path` is left as it was. keep_previous: the file that it replaces becomes `path`.prev.
    """
    tmp = path + '.tmp'
    try:
        with open(tmp, 'wb') as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        if keep_previous and os.path.exists(path):
            os.replace(path, path + '.prev')
        os.replace(tmp, path)
    except BaseException:
        if os.path.exists(tmp):
            os.remove(tmp)
        raise
    sync_folder(os.path.dirname(path) or '.')


def sync_folder(folder):
    """Make renames in `folder` survive a power cut. Windows has no such call, and some file systems refuse it."""
    if not hasattr(os, 'O_DIRECTORY'):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as e:
        if e.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)
