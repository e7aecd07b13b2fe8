"""The one way to write a file: beside its place, flushed to the disk, then renamed into place."""

import os
from contextlib import contextmanager


@contextmanager
def atomic_write(path, keep_previous=False):
    """
    A binary file to write to. It takes the place of `path` once it is complete and on the disk; if anything goes wrong
    it is removed, and what was at `path` stays. keep_previous: the file that it replaces becomes `path`.prev.
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
    """Make renames in `folder` survive a power cut. Windows has no such call."""
    if not hasattr(os, 'O_DIRECTORY'):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(descriptor)
    os.close(descriptor)
