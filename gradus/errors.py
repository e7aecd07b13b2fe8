"""What the user can fix: one line on stderr, exit code 2, no traceback."""

import errno
import io
import os
import re
import reprlib
import sys
from contextlib import contextmanager, suppress

# How torch, numpy and Python say that there is not enough memory, beside MemoryError.
OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|size calculation overflowed|array is too big|"
                           r'dimension exceeded|integer multiplication overflow|cannot fit .* index-sized integer')


class UserError(Exception):
    """
    A problem that the user can fix. The message is one line: which file or setting, what was found, what was
    expected, what to do. `exit_on_error` prints it and ends the program with exit code 2. If several processes train
    together, all of them meet it, and one of each machine prints it.
    """


class RankError(UserError):
    """A UserError that one process may meet alone. Every process prints its own."""


@contextmanager
def exit_on_error(lower=''):
    """
    Around a whole program: a UserError ends it with one line on stderr and exit code 2, Ctrl-C with 130, and a closed
    stdout (| head) with 141, all without a traceback. So do a full disk behind stdout and too little memory; `lower`
    says which settings need less of it. Other exceptions keep their traceback.
    """
    prepare_streams()
    try:
        yield
        sys.stdout.flush()
    except RankError as e:
        _exit(str(e), alone=True)
    except UserError as e:
        _exit(str(e))
    except BrokenPipeError:
        abandon_stdout()
        sys.exit(141)
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        sys.exit(130)
    except Exception as e:
        if isinstance(e, MemoryError) or OUT_OF_MEMORY.search(str(e)):
            _exit(f"not enough memory ({one_line(e, limit=160)}); lower {lower or 'the sizes'}", alone=True)
        if isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT) and e.filename is None:
            abandon_stdout()
            _exit(f'the output could not be written ({e.strerror}); make room', alone=True)
        raise


def _exit(message, alone=False):
    """Print the error and exit. alone: other processes do not know of it."""
    if alone or _number_of('WORLD_SIZE') < 2 or _number_of('LOCAL_RANK') == 0:
        where = '' if is_main_process() else f" of rank {_number_of('RANK')}"
        print(f'error{where if alone else ""}: {one_line(message, limit=None)}', file=sys.stderr)
    sys.exit(2)


def prepare_streams():
    """Make print work on any terminal, whatever its encoding, and with streams that were closed (2>&-)."""
    # File descriptors 0, 1 and 2 must be taken: otherwise the next file that is opened becomes stdout.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name, mode in (('stdin', 'r'), ('stdout', 'w'), ('stderr', 'w')):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding='utf-8'))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, 'reconfigure'):
            stream.reconfigure(encoding='utf-8', errors='replace')
    if hasattr(sys.stdin, 'reconfigure'):
        with suppress(io.UnsupportedOperation):       # somebody has read from it already
            sys.stdin.reconfigure(errors='replace')


def abandon_stdout():
    """Nobody reads it, or it cannot be written: let what Python still holds go nowhere."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):                     # it is closed already, or not a file
        pass


def is_main_process():
    """Is this the process that prints, rank 0 or the only one?"""
    return _number_of('WORLD_SIZE') < 2 or _number_of('RANK') == 0


def _number_of(variable):
    """What torchrun says in an environment variable such as RANK; 0 if it is not set, or garbage."""
    text = os.environ.get(variable, '')
    return int(text) if text.isdecimal() else 0


def warn(text):
    """Print a warning to stderr, once even if several processes train together."""
    if is_main_process():
        print(f'warning: {one_line(text, limit=None)}', file=sys.stderr)


# ---------------------------------------------------------------------------- values of other people's files

def one_line(error, limit=300):
    """The message of any exception on one line, without control characters."""
    return printable(' '.join(str(error).split()))[:limit]


def printable(text, keep=''):
    """The text with escapes (\\x1b) for what could command a terminal, except for the characters in `keep`."""
    if text.isprintable():
        return text
    return ''.join(c if c.isprintable() or c in keep else c.encode('unicode_escape').decode() for c in text)


def on_screen(text):
    """Text with line ends as it may be printed: without control characters if stdout is a terminal."""
    return printable(text, keep='\n\t') if sys.stdout.isatty() else text


class _Short(reprlib.Repr):
    """repr, but short, however deep or large the value is; of objects only the class."""

    def repr_instance(self, value, level):
        if type(value) in (float, bool, type(None)):
            return repr(value)
        return f'<{type(value).__name__}>'

    def repr_int(self, value, level):
        return repr(value) if value.bit_length() <= 128 else f'<int of {value.bit_length():,} bits>'


def show(value):
    """Any value from a file as a short printable text, for messages."""
    short = _Short()
    short.maxlevel = 2
    short.maxstring = 60
    return printable(short.repr(value))
