"""
Where the time of a config's training step goes: the ten operations that take most of it, by torch.profiler, as a
Markdown table; and how often the CPU starts something on a GPU or waits for it. On a GPU these are its kernels.

More config files and --key=value settings may follow, as for train.py. Trains on random tokens.
"""

import argparse

import torch

from benchmarks import step
from gradus.errors import one_line

LAUNCHES = ('cudaLaunchKernel', 'cudaLaunchKernelExC', 'cuLaunchKernel', 'cuLaunchKernelEx', 'cudaGraphLaunch')
WAITS = ('cudaStreamSynchronize', 'cudaDeviceSynchronize', 'cudaEventSynchronize')


def profile_of(side, n_steps):
    """(seconds that a step takes, rows of the profiler over n_steps more steps)"""
    on_cuda = side.worker.device.type == 'cuda'
    step.take(side, range(3))                         # compiles, and warms up
    seconds = step.seconds_of(step.take, side, range(3, 3 + n_steps)) / n_steps
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if on_cuda:
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=kinds) as profiler:
        step.take(side, range(3 + n_steps, 3 + 2 * n_steps))
        if on_cuda:
            torch.cuda.synchronize()
    return seconds, profiler.key_averages()


def own_time(row):
    """Microseconds of the device, or of the CPU where there is none, without what a row's callees take."""
    return row.self_device_time_total if row.device_type.name == 'CUDA' else row.self_cpu_time_total


def explain(side, n_steps, say):
    """Where the time of a step goes: the ten rows that take most, and what the CPU has to do."""
    seconds, rows = profile_of(side, n_steps)
    device = 'CUDA' if side.worker.device.type == 'cuda' else 'CPU'
    kernels = [row for row in rows if row.device_type.name == device and not getattr(row, 'is_user_annotation', False)]
    kernels.sort(key=own_time, reverse=True)
    total = sum(own_time(row) for row in kernels) / 1e6 / n_steps

    say(f'{step.about(side)}: {1000 * seconds:.1f} ms a step, {1000 * total:.1f} ms of them in kernels '
        f'({total / seconds:.0%})\n')
    say('| kernel | calls a step | ms a step | share |\n|---|---|---|---|')
    for row in kernels[:10]:
        ms = own_time(row) / 1000 / n_steps
        name = one_line(row.key, limit=70).replace('|', '/')
        say(f'| `{name}` | {row.count / n_steps:.0f} | {ms:.2f} | {ms / 1000 / max(total, 1e-9):.1%} |')

    launches, waits, items = (sum(row.count for row in rows if row.key in names) / n_steps
                              for names in (LAUNCHES, WAITS, ('aten::_local_scalar_dense',)))
    say(f'\n- a step has {launches:.0f} launches and {waits:.1f} waits for the GPU; it reads {items:.1f} numbers\n')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', default='config/gpt2_124m.py', help='default: %(default)s')
    parser.add_argument('--vocab_size', type=int, default=50304, help='default: %(default)s')
    parser.add_argument('--steps', type=int, default=3, help='default: %(default)s')
    args, settings = parser.parse_known_args()
    args.against = None
    explain(step.build(args, settings)['ours'], args.steps, print)


if __name__ == '__main__':
    main()
