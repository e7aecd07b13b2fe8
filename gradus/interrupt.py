"""What can stop a run from outside: signals, a terminal that is closed, a pipe or disk behind stdout that breaks."""

import signal
import sys

from gradus.errors import abandon_stdout, one_line, warn


class Interrupt:
    """
    with Interrupt() as interrupt:
        interrupt.watch()

    From then on the first SIGTERM, SIGINT (Ctrl-C) or SIGHUP (the terminal was closed) only sets `interrupt.signal`, so
    that the current step can finish and be saved; a second one ends the program at once. A stdout that breaks counts
    as SIGPIPE. Before, and after `rest`, signals have their usual effect.
    """

    def __enter__(self):
        self.signal = 0
        self.handlers = {}
        self.streams = sys.stdout, sys.stderr
        return self

    def watch(self):
        for name in ('SIGTERM', 'SIGINT', 'SIGHUP'):
            number = getattr(signal, name, None)      # Windows has no SIGHUP
            ignored = name == 'SIGHUP' and number and signal.getsignal(number) == signal.SIG_IGN    # nohup
            if number and not ignored:
                self.handlers[number] = signal.signal(number, self._remember)
        sys.stderr = _Output(sys.stderr)
        sys.stdout = _Output(sys.stdout, self._lost_stdout)

    def _remember(self, number, frame):
        self.signal = number
        for each in self.handlers:
            signal.signal(each, signal.SIG_DFL)

    def _lost_stdout(self, error):
        warn(f'stdout cannot be written ({one_line(error)})')
        self.signal = self.signal or getattr(signal, 'SIGPIPE', signal.SIGTERM)

    def rest(self):
        """From now on signals have their usual effect again: there is nothing left to save."""
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        if getattr(sys.stdout, 'broken', False):
            abandon_stdout()
        sys.stdout, sys.stderr = self.streams
        self.handlers = {}

    def __exit__(self, *error):
        self.rest()


class _Output:
    """A stream that may break without stopping the program: `on_error` is told, and later text goes to stderr."""

    def __init__(self, stream, on_error=None):
        self.stream = stream
        self.on_error = on_error
        self.broken = False

    def write(self, text):
        if self.broken:
            return sys.stderr.write(text) if self.on_error else len(text)
        return self._try(self.stream.write, text)

    def flush(self):
        if not self.broken:
            self._try(self.stream.flush)

    def _try(self, operation, *text):
        try:
            return operation(*text)
        except (OSError, ValueError) as e:            # ValueError: the stream was closed
            self.broken = True
            if self.on_error:
                self.on_error(e)
            return 0

    def __getattr__(self, name):
        return getattr(self.stream, name)
