"""One process at a time in a folder: a lock that ends with its process, however that happens."""

import os
import stat

from gradus.errors import UserError

NAME = '.lock'


class Lock:
    """
    with Lock('out', 'another run is writing to it'):

    Locks the file .lock in a folder, which holds the number of this process meanwhile. Raises UserError, with the
    number and `meaning`, if another process has locked it, and OSError if the file cannot be written.
    """

    def __init__(self, folder, meaning):
        self.folder = folder
        self.path = os.path.join(folder, NAME)
        self.meaning = meaning

    def __enter__(self):
        self.acquire()
        return self

    def __exit__(self, *error):
        self.release()

    def acquire(self):
        while True:
            self.file = self._open()
            if not _lock_file(self.file):
                holder = self.file.read(20).decode('ascii', 'replace')
                self.file.close()
                raise UserError(f'{self.folder}: {self.meaning} (process {holder or "unknown"}); '
                                'wait for it, stop it, or choose another folder')
            if self.is_held():
                break
            self.file.close()                         # its holder deleted it just now, when it ended
        try:
            self.file.truncate(0)
            self.file.write(str(os.getpid()).encode())
        except OSError:                               # a full disk: the lock holds without the number, too
            pass

    def _open(self):
        """The lock file, opened; never a file that is somebody else's."""
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, 'O_NOFOLLOW', 0) | getattr(os, 'O_NONBLOCK', 0)
        refused = UserError(f'{self.path}: not a lock file of ours; move it away, or choose another folder')
        try:
            descriptor = os.open(self.path, flags, 0o666)
        except OSError as e:
            if os.path.islink(self.path) or os.path.isdir(self.path):
                raise refused from e
            raise
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise refused
        file = os.fdopen(descriptor, 'r+b', buffering=0)
        content = file.read(21)
        file.seek(0)
        if len(content) > 20 or (content and not content.isdigit()):
            file.close()
            raise refused
        return file

    def is_held(self):
        """Is the file that we locked still the one at its path?"""
        if self.file.closed:
            return False
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self.file.fileno()))
        except OSError:
            return False

    def release(self):
        """Delete the file, then unlock it: the other way round, somebody else's lock could be deleted."""
        held = self.is_held()
        if os.name == 'nt':                           # where an open file cannot be deleted
            self.file.close()
        try:
            if held:
                os.remove(self.path)
        except OSError:                               # a file that stays behind is not locked
            pass
        self.file.close()


def _lock_file(file):
    """Lock an open file for this process; False if another one has locked it. True if the file system has no locks."""
    try:
        if os.name == 'nt':
            import msvcrt
            file.seek(2 ** 20)                        # a byte beyond the text, which stays readable
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            file.seek(0)
        else:
            import fcntl
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        return False
    except OSError:
        file.seek(0)
    return True
