"""What the user can fix: one line on stderr, exit code 2, no traceback."""

import os
import sys
from contextlib import contextmanager


class UserError(Exception):
    """
    A problem that the user can fix. The message is one line: which file or setting, what was found, what was
    expected, what to do. `exit_on_error` prints it and ends the program with exit code 2.
    """


@contextmanager
def exit_on_error():
    """
    Around a whole program: a UserError ends it with one line on stderr and exit code 2, Ctrl-C with 130, and a closed
    stdout (| head) with 141, all without a traceback. Other exceptions keep theirs.
    """
    try:
        yield
    except UserError as e:
        if os.environ.get('RANK', '0') == '0':
            print(f'error: {one_line(e, limit=None)}', file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        sys.exit(130)


def one_line(error, limit=300):
    """The message of any exception on one line."""
    return ' '.join(str(error).split())[:limit]


def warn(text):
    """Print a warning to stderr, once even if several processes train together."""
    if os.environ.get('RANK', '0') == '0':
        print(f'warning: {text}', file=sys.stderr)
