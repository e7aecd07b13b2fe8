"""
Training runs whose results are kept: a run is identified by its settings, its text and the number of threads. train.py
trains it in a process of its own, and it leaves a line in results.jsonl. What has a line is not trained again.
"""

import hashlib
import json
import os
import queue
import re
import shutil
import statistics
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from glob import glob

from benchmarks.paired import HERE, val_loss
from gradus import log, metadata
from gradus.errors import UserError, one_line, warn
from gradus.files import make_folder

ROUNDS = 3                                            # in which the time of a step is measured
STEPS = 40                                            # at least so many in each


def key_of(cfg, n_threads):
    """What identifies a run: every setting, the text, and the number of threads, which changes the last bits."""
    text = metadata.fingerprint(os.path.join('data', cfg.dataset))
    record = json.dumps([asdict(replace(cfg, out_dir='')), text, n_threads], sort_keys=True)
    return hashlib.sha256(record.encode()).hexdigest()[:16]


def shortened(cfg, n):
    """The same run in n iterations. The cool-down is a fraction of them; only a warm-up may be too long."""
    warmup_iters = cfg.warmup_iters if cfg.warmup_iters < n else n // 10
    return replace(cfg, max_iters=n, lr_decay_iters=n, warmup_iters=warmup_iters)


# ---------------------------------------------------------------------------- what has been run

class Results:
    """results.jsonl: a line for each finished run, and for each step time that was measured; {key: line} in `rows`."""

    def __init__(self, folder):
        make_folder(folder, 'give another --out')
        self.path = os.path.join(folder, 'results.jsonl')
        self.lock = threading.Lock()
        self.code = code_digest()
        self.rows = {}
        if not os.path.exists(self.path):
            return
        with open(self.path, encoding='utf-8', errors='replace') as f:
            for line in f:
                try:
                    row = json.loads(line)
                    self.rows[row['key']] = row
                except (ValueError, TypeError, KeyError):       # half a line that a kill left behind
                    continue

    def add(self, key, **row):
        """Write a line. Several threads may call this."""
        row = dict(key=key, **row, code=self.code)
        with self.lock:
            with open(self.path, 'a+', encoding='utf-8') as f:
                f.write(('' if self._ends_with_newline() else '\n') + json.dumps(row) + '\n')
            self.rows[key] = row

    def _ends_with_newline(self):
        with open(self.path, 'rb') as f:
            content = f.read()
        return not content or content.endswith(b'\n')

    def warn_of_other_code(self, keys):
        """Warn if a result among `keys` was made by other code than today's."""
        if any(self.rows[key].get('code') != self.code for key in keys if key in self.rows):
            warn(f'{self.path}: some of these results come from another state of model.py, train.py or gradus/; '
                 'to make them again, give another --out')


def code_digest():
    """A short hash of the code that trains."""
    paths = [os.path.join(HERE, name) for name in ('model.py', 'train.py')]
    paths += sorted(glob(os.path.join(HERE, 'gradus', '*.py')))
    digest = hashlib.sha256()
    for path in paths:
        with open(path, 'rb') as f:
            digest.update(f.read())
    return digest.hexdigest()[:12]


# ---------------------------------------------------------------------------- training

def train_once(cfg, folder):
    """
    Train cfg in `folder`, or finish a run that was stopped there. Returns the pairs (iteration, seconds so far) of its
    log, or None if it diverged. Raises UserError if train.py fails otherwise.
    """
    init_from = 'auto' if cfg.init_from == 'scratch' else cfg.init_from
    settings = asdict(replace(cfg, out_dir=folder, init_from=init_from))
    command = [sys.executable, os.path.join(HERE, 'train.py'), *(f'--{key}={value}' for key, value in settings.items())]
    ran = subprocess.run(command, capture_output=True, text=True, encoding='utf-8', errors='replace')
    if ran.returncode == 2 and '--skip_nonfinite=N' in ran.stderr:              # its advice if a loss is not finite
        return None
    if ran.returncode:
        raise UserError(f'{folder}: train.py failed: {one_line(ran.stderr.strip()[-300:])}')
    return log.numbers(log.read(folder), 'iter', 'elapsed_s')


def finish(name, cfg, key, results, out, keep):
    """Train a run, evaluate its last weights and write its line. keep: its folder, too."""
    stem = re.sub(r'[^\w=.-]+', '_', f'{name}-{cfg.dataset}-{cfg.seed}')[:100]
    folder = os.path.join(out, f'{stem}-{key[:6]}')
    points = train_once(cfg, folder)
    loss = seconds = None
    if points:
        loss = val_loss(os.path.join(folder, 'ckpt.pt'), os.path.join('data', cfg.dataset), cfg.device)
        seconds = points[-1][1]
    results.add(key, variant=name, dataset=cfg.dataset, seed=cfg.seed, loss=loss, iterations=cfg.max_iters,
                seconds=seconds, settings=asdict(cfg))
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)

    outcome = 'diverged' if loss is None else f'loss {loss:.4f}, {cfg.max_iters} iterations, {seconds:.1f} s'
    print(f'seed {cfg.seed}, {cfg.dataset}, {name}: {outcome}', file=sys.stderr, flush=True)


def cores_here():
    """The numbers of the cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else list(range(os.cpu_count() or 1))


def pin(cores):
    """
    Bind this thread, and the processes that it starts, to a core of its own.

    This is how free cores are used without disturbing what is compared. Runs side by side share memory bandwidth,
    caches and clock speed, so each takes longer. But where the number of iterations is given, a run's loss does not
    depend on its time: one thread computes the same bits, whoever its neighbours are. Where time decides, with a budget
    in seconds, there are no neighbours: one run at a time has all the cores, as it will have later.
    """
    core = cores.get()
    if hasattr(os, 'sched_setaffinity'):              # on Linux; it binds the thread that calls it
        os.sched_setaffinity(0, {core})


def finish_all(runs, results, out, keep, jobs):
    """Finish the runs (name, cfg, key) that have no line yet, `jobs` of them side by side. Returns how many."""
    todo = [run for run in runs if run[2] not in results.rows]
    cores = queue.SimpleQueue()
    for core in cores_here():
        cores.put(core)
    pinned = dict(initializer=pin, initargs=(cores,)) if jobs > 1 else {}
    with ThreadPoolExecutor(jobs, **pinned) as pool:
        futures = [pool.submit(finish, *run, results, out, keep) for run in todo]
        try:
            for future in futures:
                future.result()
        except BaseException:                         # also Ctrl-C, which the runs get, too: they save and stop
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return len(todo)


# ---------------------------------------------------------------------------- equal time

def equal_time(configs, seconds, results, out, n_threads):
    """
    configs {(name, dataset): cfg}, 'base' first: each with the number of iterations whose training takes so long.

    All variants are timed in turn, several times, so that other load and the speed of the machine affect them alike. A
    number that an earlier call chose stays. A variant that is new then is timed beside the base, and the base's times
    then and now say how much slower the machine is today.
    """
    keys = {}
    for place, cfg in configs.items():
        keys[place] = f'{seconds:g}s-' + key_of(replace(cfg, max_iters=0, lr_decay_iters=0), n_threads)
    new = [place for place in configs if keys[place] not in results.rows]
    with_new = {dataset for _, dataset in new}
    to_time = [place for place in configs if place in new or place[0] == 'base' and place[1] in with_new]
    times = step_times({place: configs[place] for place in to_time}, seconds, os.path.join(out, 'step-time'))

    for place in new:
        name, dataset = place
        base = 'base', dataset
        slower = times[base][0] / results.rows[keys[base]]['step_s'] if name != 'base' else 1.0
        step, rest = times[place][0] / slower, times[place][1] / slower
        iterations = max(1, round((seconds - rest) / step))
        results.add(keys[place], variant=name, dataset=dataset, step_s=step, rest_s=rest, iterations=iterations)
        print(f'{dataset}, {name}: {1000 * step:.2f} ms a step, {iterations} iterations in {seconds:g} s',
              file=sys.stderr, flush=True)
    return {place: shortened(cfg, results.rows[keys[place]]['iterations']) for place, cfg in configs.items()}


def step_times(configs, seconds, folder):
    """Of each config, the medians over several interleaved runs: {place: (seconds of a step, of all the rest)}."""
    steps = {}
    for place, cfg in configs.items():                # not counted: fills caches, and says how many steps to time
        step, _ = step_time(cfg, STEPS, folder)
        steps[place] = max(STEPS, 10 * round(seconds / 20 / step / 10))
    found = {place: [] for place in configs}
    for _ in range(ROUNDS):
        for place, cfg in configs.items():
            found[place].append(step_time(cfg, steps[place], folder))
    return {place: tuple(map(statistics.median, zip(*times))) for place, times in found.items()}


def step_time(cfg, steps, folder):
    """(seconds of a step, seconds of all the rest of the loop), from a run of so many steps, a multiple of ten."""
    try:
        points = train_once(shortened(cfg, steps + 1), folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if points is None:
        raise UserError(f'optimizer={cfg.optimizer}, learning_rate={cfg.learning_rate}: the loss is not finite after '
                        f'less than {steps} iterations, too few to time')
    (first, began), *_, (last, ended) = [point for point in points if 10 <= point[0] <= steps]    # the first are slow
    step = (ended - began) / (last - first)
    return step, max(0.0, points[-1][1] - (steps + 1) * step)
