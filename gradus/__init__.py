"""What the scripts share. Importing it makes Ctrl-C during the slow imports that follow end in one line."""

import os
import sys


def _quiet_interrupt(kind, error, trace, otherwise=sys.excepthook):
    if not issubclass(kind, KeyboardInterrupt) or hasattr(sys, 'ps1'):          # ps1: an interactive session
        return otherwise(kind, error, trace)
    print('interrupted', file=sys.stderr, flush=True)
    os._exit(130)


sys.excepthook = _quiet_interrupt
