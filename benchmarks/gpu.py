"""
Everything that we say about a GPU, measured on one in a few minutes:

    versions     of the driver, CUDA, torch and this code
    tests        the tests that need a GPU: pytest -m cuda
    step         a step of GPT-2 124M in bfloat16, and nanoGPT's: tokens/s, MFU, memory
    shakespeare  config/shakespeare_char.py: seconds to a val loss of 1.4697, nanoGPT's best, and the lowest loss
    resume       deterministic=True: is a run that was stopped and resumed the same, bit for bit?
    sampling     tokens/s of one text and of many at once, plain and compiled
    profile      where the time of a step goes

Each part has its share of the minutes, and what those before it left over. If there are too few minutes for all, the
last ones are left out. Each runs in a process of its own, so that it can fail, hang or run out of memory alone, which
is said in one line. The results are Markdown for LOG.md, printed and appended to --out as they come; all other output
goes to a .log file beside it.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from datetime import date

from benchmarks import gpu_parts
from benchmarks.paired import HERE, checkout
from gradus.errors import one_line

BENCH = os.path.join(HERE, 'bench.py')

# name: (function, heading, minutes that it takes, compiling included)
PARTS = {
    'versions': (gpu_parts.versions, 'Versions', 0.2),
    'tests': (gpu_parts.tests, 'Tests that need a GPU', 1.3),
    'step': (gpu_parts.steps, 'A training step of GPT-2 124M', 2.2),
    'shakespeare': (gpu_parts.shakespeare, 'config/shakespeare_char.py', 1.4),
    'resume': (gpu_parts.resume, 'Stopped and resumed, deterministic=True', 1.1),
    'sampling': (gpu_parts.sample, 'Sampling', 1.1),
    'profile': (gpu_parts.profile, 'Where the time of a step goes', 0.7),
}
AT_LEAST = 10                                         # seconds, less than that is not worth starting a part
ERROR = re.compile(r'error: |([\w.]+\.)?\w*(Error|Exception|Interrupt)\b')      # the line that says why one failed


class Report:
    """Prints Markdown and appends it to a file, at once."""

    def __init__(self, path):
        self.path = path

    def __call__(self, text=''):
        print(text, flush=True)
        with open(self.path, 'a', encoding='utf-8') as f:
            f.write(text + '\n')


def kill_group(process):
    """End a process and all that it started: compilers, training runs."""
    if hasattr(os, 'killpg'):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()


def reason(log):
    """Why a program failed: the last line of its log that names an error."""
    lines = [line for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if ERROR.match(line)]
    return one_line((errors or lines or ['no output'])[-1])


def run_part(name, seconds, log_path):
    """Run a part in a process of its own, for so many seconds at most. Returns what went wrong, '' if nothing did."""
    command = [sys.executable, BENCH, 'gpu', *sys.argv[1:], f'--part={name}', f'--seconds={seconds:.0f}']
    with open(log_path, 'a+', encoding='utf-8', errors='replace') as log:
        print(f'\n==== {name}', file=log, flush=True)
        start = log.tell()
        process = subprocess.Popen(command, stderr=log, start_new_session=True)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.terminate()                       # it may say what it knows
            with suppress(subprocess.TimeoutExpired):
                process.wait(3)
            return f'cut off after {seconds:.0f} s'
        finally:
            kill_group(process)
        log.seek(start)
        return f'failed: {reason(log.read())}' if code else ''


def run_all(args, say):
    """All parts, one after the other. Returns the names of those that failed or had no time."""
    end = time.monotonic() + 60 * args.minutes
    minutes_left = sum(minutes for _, _, minutes in PARTS.values())
    failed = []
    say(f'## GPU, {date.today()}\n\n`python bench.py gpu {" ".join(sys.argv[1:])}`\n')
    for name, (_, heading, minutes) in PARTS.items():
        began = time.monotonic()
        seconds = min(end - began, max(60 * minutes, (end - began) * minutes / minutes_left))
        minutes_left -= minutes

        say(f'### {heading}\n')
        problem = 'no time left'
        if seconds >= AT_LEAST:
            problem = run_part(name, seconds, log_path(args))
        if problem:
            failed.append(name)
            say(f'\n**{name}: {problem}**')
        say(f'\n({time.monotonic() - began:.0f} of {max(seconds, 0):.0f} s)\n')
    return failed


def log_path(args):
    return os.path.splitext(args.out)[0] + '.log'


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--against', metavar='PATH', help='a checkout of nanoGPT')
    parser.add_argument('--minutes', type=float, default=8, help='for all parts together (default: %(default)s)')
    parser.add_argument('--out', default='out-gpu/gpu.md', help='default: %(default)s')
    parser.add_argument('--device', default='cuda', help='default: %(default)s')
    parser.add_argument('--loss', type=float, default=1.4697, help='the val loss to reach (default: %(default)s)')
    parser.add_argument('--miniature', action='store_true', help='tiny models: a test of this program, on any device')
    parser.add_argument('--part', choices=PARTS, help='only this part, in this process')
    parser.add_argument('--seconds', type=float, default=120, help='for --part (default: %(default)s)')
    args = parser.parse_args()
    if args.against:
        args.against = checkout(args.against)
    os.makedirs(os.path.dirname(args.out) or '.', exist_ok=True)
    say = Report(args.out)

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))                     # so that `finally` is done
    if args.part:
        args.deadline = time.monotonic() + 0.7 * args.seconds                   # the rest is for what comes after
        PARTS[args.part][0](args, say)
        return
    if failed := run_all(args, say):
        sys.exit(f"error: these parts failed: {', '.join(failed)}; see {log_path(args)}")


if __name__ == '__main__':
    main()
