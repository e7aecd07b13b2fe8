"""
What train.py says of a run's future: that it will not fit in this machine's memory, before the first step; that it
takes more than a day, after some steps. benchmarks/plan.py says it all.
"""

import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace

import torch

from gradus import memory
from gradus.errors import warn

GIB = 2 ** 30
DAY = 86400                                           # in seconds
CERTAIN = 0.9                                         # the formulas may be wrong by 10%: no false alarm


# ---------------------------------------------------------------------------- what this machine has

def available(device):
    """Bytes that this process can still get on a torch.device, without swapping; None if there is no way to know."""
    try:
        if device.type == 'cuda':
            free, _ = torch.cuda.mem_get_info(device)
            return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        if device.type == 'mps':
            return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
        if device.type == 'cpu' and sys.platform == 'linux':
            return _available_on_linux()
        if device.type == 'cpu' and sys.platform == 'darwin':
            return _available_on_macos(subprocess.run(['vm_stat'], capture_output=True, text=True, timeout=5).stdout)
    except (OSError, RuntimeError, ValueError, AttributeError, subprocess.SubprocessError):
        pass
    return None


def _available_on_linux(root='/'):
    """What the system can give away, or less if a container or a batch system sets a limit. root: of the files."""
    with open(os.path.join(root, 'proc/meminfo'), encoding='utf-8') as f:
        found = re.search(r'^MemAvailable: +(\d+) kB', f.read(), flags=re.MULTILINE)
    available = int(found[1]) * 1024 if found else None

    # Control groups, version 2: from ours up to the outermost one.
    top = os.path.join(root, 'sys/fs/cgroup')
    folder = top + _control_group(root)
    while available is not None and folder.startswith(top):
        with_limit = _left_in_control_group(folder)
        available = min(available, available if with_limit is None else with_limit)
        folder = os.path.dirname(folder)
    return available


def _control_group(root):
    """The path of this process's control group, such as /user.slice/job; '' if it has none."""
    try:
        with open(os.path.join(root, 'proc/self/cgroup'), encoding='utf-8') as f:
            found = re.search(r'^0::(/.*)$', f.read(), flags=re.MULTILINE)
    except OSError:
        return ''
    return found[1].rstrip('/') if found else ''


def _left_in_control_group(folder):
    """Its limit less what it uses and cannot drop; None if there is no limit."""
    try:
        with open(os.path.join(folder, 'memory.max'), encoding='utf-8') as f:
            limit = int(f.read())                     # not a number: "max"
        with open(os.path.join(folder, 'memory.current'), encoding='utf-8') as f:
            used = int(f.read())
        with open(os.path.join(folder, 'memory.stat'), encoding='utf-8') as f:
            cached = re.search(r'^inactive_file (\d+)$', f.read(), flags=re.MULTILINE)
    except (OSError, ValueError):
        return None
    return limit - used + (int(cached[1]) if cached else 0)


def _available_on_macos(vm_stat):
    """Pages that are free, or hold only what can be read again."""
    size = re.search(r'page size of (\d+) bytes', vm_stat)
    kinds = [re.search(rf'Pages {kind}: +(\d+)', vm_stat) for kind in ('free', 'inactive', 'speculative', 'purgeable')]
    if size is None or kinds[0] is None:
        return None
    return int(size[1]) * sum(int(found[1]) for found in kinds if found)


# ---------------------------------------------------------------------------- what train.py says

def warn_if_too_large(cfg, worker, model, dataset, resumed):
    """
    One line if a step of this run certainly needs more memory than there is. Nothing if that is not known, or if
    several processes share it. The weights are allocated already, and the optimizer's state if the run is resumed.
    """
    free = available(worker.device)
    if free is None or worker.device.type == 'cpu' and worker.world_size > 1:
        return
    config = model.config
    if hasattr(dataset.train, 'lengths'):             # pairs, in batches no longer than the longest
        config = replace(config, block_size=min(config.block_size, int(dataset.train.lengths.max())))
    step = memory.step_of_run(cfg, config, worker)
    needed = step.peak - step.weights - step.buckets - resumed * step.optimizer
    if CERTAIN * needed > free:
        warn(f'a step needs about {in_gib(needed)} more memory, and {in_gib(free)} are free: this will not fit; '
             f'lower --batch_size; to see more: {command(cfg)}')


def note_if_long(cfg, worker, steps, iters_left, seconds):
    """
    One line if the rest of a run takes more than a day; `seconds`: of one step, the mean since the last loss line;
    `steps`: how many this process has taken. It speaks at one loss line only: the first one whose mean is of several
    steps, none of which warmed up or compiled.
    """
    left = iters_left * seconds
    if 3 <= steps - cfg.log_interval < 3 + cfg.log_interval and left > DAY:
        worker.print(f'note: {iters_left:,} more steps of {in_words(seconds)} take {in_words(left)} on this machine; '
                     f'to see more: {command(cfg)}')


def command(cfg):
    """What shows more: the plan for the arguments that `configurator.load` made these settings from."""
    return shlex.join(['python', 'bench.py', 'plan', *getattr(cfg, 'argv', ())])


def in_gib(n):
    """Bytes in words."""
    return f'{n / GIB:,.1f} GiB' if n >= GIB / 10 else f'{n / 2 ** 20:.1f} MiB'


def in_words(seconds):
    """A time in words: two figures, in the unit that suits it."""
    for unit, size in (('days', DAY), ('hours', 3600), ('minutes', 60)):
        if seconds >= 2 * size:
            return f'{seconds / size:,.1f} {unit}'
    return f'{seconds:.2g} s' if seconds < 10 else f'{seconds:.0f} s'
