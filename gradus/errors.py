"""What the user can fix: one line on stderr, exit code 2, no traceback."""

import os
import sys


class UserError(Exception):
    """
    A problem that the user can fix. The message is one line: which file or setting, what was found, what was
    expected, what to do. `configurator.launch` prints it and ends the program with exit code 2.
    """


def one_line(error, limit=300):
    """The message of any exception on one line."""
    return ' '.join(str(error).split())[:limit]


def warn(text):
    """Print a warning to stderr, once even if several processes train together."""
    if os.environ.get('RANK', '0') == '0':
        print(f'warning: {text}', file=sys.stderr)
