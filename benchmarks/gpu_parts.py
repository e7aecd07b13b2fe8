"""
The parts of benchmarks/gpu.py: what is measured. Each is a function of the program's arguments and of `say`, which
takes Markdown. What it prints elsewhere is for the log.
"""

import hashlib
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stdout, suppress
from glob import glob
from importlib import metadata
from types import SimpleNamespace

import torch

from benchmarks import sampling, step, step_profile
from benchmarks.paired import HERE, SHAPES, load_nanogpt, seconds_of
from gradus import checkpoint, corpus, parallel
from gradus.errors import one_line
from gradus.sampling import Sampler

# With --miniature: the same on a CPU, for a test of this program.
TINY = ['--n_layer=1', '--n_head=2', '--n_embd=16', '--block_size=16', '--batch_size=2', '--max_iters=20',
        '--lr_decay_iters=20', '--warmup_iters=2', '--eval_interval=10', '--eval_iters=2']
TINY_SHAPE = dict(n_layer=1, n_head=2, n_embd=16, block_size=16, vocab_size=64)

TRAIN = os.path.join(HERE, 'train.py')
MANY = 64                                             # texts that are sampled at once
PACKAGES = ('numpy', 'tqdm', 'tiktoken', 'pytest', 'triton')
BYTES_PER_SEQUENCE = 1.7e9                            # of GPT-2 124M and 1024 tokens, roughly: to choose a micro-batch


def config(name, args, *settings):
    """A config file and settings, as train.py takes them."""
    tiny = TINY if args.miniature else []
    return [os.path.join(HERE, 'config', name), *tiny, *settings, f'--device={args.device}']


def spread(values):
    """The median, and in brackets the lowest and the highest."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f'{middle:,.0f} ({low:,.0f} to {high:,.0f})'


def lines_of(command, folder='.', env=()):
    """
    Run a command; yields (seconds since its start, line) for what it prints, as it comes, and copies it to stderr.
    Ends the program if the command fails.
    """
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, env={**os.environ, 'PYTHONUNBUFFERED': '1', **dict(env)},
                               stdout=subprocess.PIPE, stderr=sys.stderr, text=True, encoding='utf-8', errors='replace')
    for line in process.stdout:
        print(line, end='', file=sys.stderr, flush=True)
        yield time.perf_counter() - began, line.rstrip()
    if process.wait():
        sys.exit(f'error: {" ".join(command)} failed with exit code {process.returncode}')


# ---------------------------------------------------------------------------- versions and tests

def first_line(*command):
    """What a command prints first, '' if it fails."""
    with suppress(OSError, subprocess.TimeoutExpired):
        ran = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=30)
        if ran.returncode == 0:
            return ran.stdout.strip().partition('\n')[0]
    return ''


def version_of(package):
    try:
        return f'{package} {metadata.version(package)}'
    except metadata.PackageNotFoundError:
        return f'no {package}'


def versions(args, say):
    say(f"- code: {first_line('git', 'describe', '--always', '--dirty') or 'not in a git checkout'}")
    say(f"- Python {sys.version.split()[0]}, torch {torch.__version__}, CUDA {torch.version.cuda}, "
        f'cuDNN {torch.backends.cudnn.version()}')
    say(f"- {', '.join(version_of(name) for name in PACKAGES)}")
    query = '--query-gpu=name,driver_version,memory.total,power.limit,clocks.max.sm'
    say(f"- nvidia-smi: {first_line('nvidia-smi', query, '--format=csv,noheader') or 'not found'}")
    worker = parallel.init(args.device)
    if worker.device.type == 'cuda':
        found = torch.cuda.get_device_properties(worker.device)
        say(f'- {found.name}, {found.total_memory / 1e9:.1f} GB, peak {worker.peak_flops / 1e12:.0f} TFLOP/s in 16 '
            'bits by its data sheet')
    say(f'- by default here: {worker.device}, {worker.dtype}, compile={worker.compile}')


def tests(args, say):
    """
    Only files that hold such tests: the others may need packages that are not here. The part `resume` does what the
    longest of them does.
    """
    files = []
    for path in sorted(glob(os.path.join(HERE, 'tests', 'test_*.py'))):
        with open(path, encoding='utf-8') as f:
            if 'mark.cuda' in f.read():
                files.append(path)
    command = [sys.executable, '-m', 'pytest', '-m', 'cuda', '-k', 'not bit_for_bit', '-v', '--tb=short',
               '-p', 'no:cacheprovider', *files]
    n_passed = n_failed = 0
    summary = ''
    try:
        for _, line in lines_of(command, HERE):
            n_passed += ' PASSED' in line
            n_failed += '::' in line and (' FAILED' in line or ' ERROR' in line)
            if re.match(r'(FAILED|ERROR) ', line):
                say(f'- {one_line(line)}')
            if re.match(r'=+ .*\d+ \w+.* in [\d.]+s', line):
                summary = line.strip('= ')
    finally:                                          # also when time is up
        so_far = f'{n_passed} passed, {n_failed} failed, the rest had no time'
        say(f'- {len(files)} files: {summary or so_far}')


# ---------------------------------------------------------------------------- training

def micro_batch(device):
    """Sequences of GPT-2 124M that fit into the memory: a power of two, 32 at most."""
    n = 32
    if device.type == 'cuda':
        memory = torch.cuda.get_device_properties(device).total_memory
        while n > 1 and n * BYTES_PER_SEQUENCE > memory:
            n //= 2
    return n


def gpt2_step(args, against, **changes):
    """The sides of benchmarks/step.py for config/gpt2_124m.py, with a micro-batch that fits."""
    if args.miniature:
        changes.update(gradient_accumulation_steps=2)
    else:
        n = micro_batch(parallel.init(args.device).device)
        changes = dict(batch_size=n, gradient_accumulation_steps=512 // n) | changes
    chosen = config('gpt2_124m.py', args, *(f'--{name}={value}' for name, value in changes.items()))
    options = SimpleNamespace(config=chosen[0], against=against, vocab_size=64 if args.miniature else 50304)
    with redirect_stdout(sys.stderr):                 # nanoGPT prints
        return step.build(options, chosen[1:])


def steps(args, say):
    sides = gpt2_step(args, args.against)
    say(f"{step.about(sides['ours'])}; tokens/s:\n")
    names = list(sides)
    say(f"| round | {' | '.join(names)} | ratio |")
    say(f"|---|{'---|' * len(names)}---|")

    # As many rounds as time allows, and at least two.
    speeds = {name: [] for name in names}
    ratios = []
    for n, row in enumerate(step.rounds(sides, 10, 2), start=1):
        for name in names:
            speeds[name].append(row[name])
        ratios.append(row['ours'] / row[names[-1]])
        numbers = ' | '.join(f'{row[name]:,.0f}' for name in names)
        say(f'| {n} | {numbers} | {ratios[-1]:.3f} |')
        if n > 1 and time.monotonic() > args.deadline:
            break

    say()
    for name, side in sides.items():
        memory = step.peak_memory(side, 100)
        memory = f', {memory / 1e9:.1f} GB at its highest' if memory else ''
        speed = statistics.median(speeds[name])
        say(f'- {name}: {spread(speeds[name])} tokens/s, {step.share_of_peak(side, speed)}{memory}')
    if args.against:
        say(f'- ratio: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})')


def train_to_the_end(seed, args, say):
    """One run of config/shakespeare_char.py. Says each evaluation as it comes; returns a line about the whole run."""
    reached = None
    best = float('inf')
    step_times = []
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as tmp:
        settings = config('shakespeare_char.py', args, f'--seed={seed}', f'--out_dir={tmp}', '--sample_tokens=0')
        for seconds, line in lines_of([sys.executable, TRAIN, *settings]):
            if found := re.match(r'iter \d+: .*time ([\d.]+)ms', line):
                step_times.append(float(found[1]))
            if found := re.match(r'step (\d+): .*val loss ([\d.]+)', line):
                val = float(found[2])
                best = min(best, val)
                say(f'| {seed} | {found[1]} | {seconds:.1f} | {val:.4f} |')
                if reached is None and val <= args.loss:
                    reached = seconds

    to_loss = f'in {reached:.1f} s' if reached else 'not reached'
    return (f'- seed {seed}: {args.loss} {to_loss}; lowest {best:.4f}; {time.perf_counter() - began:.1f} s from start '
            f'to exit; {statistics.median(step_times):.1f} ms an iteration')


def shakespeare(args, say):
    """Up to three seeds, as many as time allows."""
    if not os.path.exists('data/shakespeare_char/train.bin'):
        say('skipped: data/shakespeare_char is not prepared: python data/shakespeare_char/prepare.py')
        return
    say('Loss on the whole val split. The first run compiles; those after it find what it compiled.\n')
    say('| seed | iteration | s since process start | val loss |\n|---|---|---|---|')
    results = []
    began = time.monotonic()
    for n, seed in enumerate((1337, 1338, 1339), start=1):
        results.append(train_to_the_end(seed, args, say))
        longest = (time.monotonic() - began) / n
        if args.miniature or time.monotonic() + longest > args.deadline:
            break
    say()
    for line in results:
        say(line)


# ---------------------------------------------------------------------------- resume

def digest(path):
    """A hash over the weights and the optimizer's state in a checkpoint."""
    state = checkpoint.load(path)
    tensors = dict(state['model'])
    for n, values in state['optimizer']['state'].items():
        tensors.update({f'{n} {name}': torch.as_tensor(value) for name, value in values.items()})
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f'{name}{tensor.dtype}{tuple(tensor.shape)}'.encode())
        found.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def resume(args, say):
    """
    Trains two layers, which compile quickly, on our own source, which is always there. The uninterrupted run shares no
    compiled code with the other.
    """
    n = 6 if args.miniature else 40
    settings = config('shakespeare_char.py', args, '--n_layer=2', '--dataset=source', '--deterministic=True',
                      f'--max_iters={n}', f'--lr_decay_iters={n}', '--warmup_iters=2', f'--eval_interval={n // 2}',
                      '--eval_iters=2', '--sample_tokens=0')
    runs = {
        'uninterrupted': ['--out_dir=whole'],
        'stopped': ['--out_dir=halves', f'--max_iters={n // 2}'],
        'resumed': ['--out_dir=halves', '--init_from=resume'],
    }
    hashes = {}
    with tempfile.TemporaryDirectory() as tmp:
        sources = sorted(glob(os.path.join(HERE, 'gradus', '*.py')))
        with redirect_stdout(sys.stderr):
            corpus.write_text(os.path.join(tmp, 'data', 'source'), sources, 'char')

        for name, more in runs.items():
            folder = more[0].removeprefix('--out_dir=')
            cache = dict(TORCHINDUCTOR_CACHE_DIR=os.path.join(tmp, f'compiled-{folder}'))
            lines = list(lines_of([sys.executable, TRAIN, *settings, *more], tmp, cache))
            hashes[name] = digest(os.path.join(tmp, folder, 'ckpt.pt'))
            say(f'- {name}: weights and optimizer {hashes[name]} ({lines[-1][0]:.0f} s)')

    same = hashes['uninterrupted'] == hashes['resumed'] != hashes['stopped']
    say(f"- {n} steps, stopped after {n // 2} and resumed: {'equal, bit for bit' if same else '**not equal**'}")
    if not same:
        sys.exit('error: the resumed run differs from the uninterrupted one')


# ---------------------------------------------------------------------------- sampling

def choosing_time(n_samples, vocab_size, worker):
    """Milliseconds that it takes to choose the next token of each text: a GPU waits for it, see gradus/sampling.py."""
    logits = torch.randn(n_samples, vocab_size, device=worker.device)
    ids = torch.zeros(n_samples, 1, dtype=torch.long, device=worker.device)
    sampler = Sampler(temperature=0.8, top_k=200, seeds=range(n_samples))
    return 1000 * statistics.median(seconds_of(sampler, logits, ids) for _ in range(5))


def sample(args, say):
    worker = parallel.init(args.device, compile=False)
    nanogpt = load_nanogpt(args.against) if args.against else None
    sizes = [('GPT-2 124M', SHAPES['GPT-2 124M'], 1, 128, nanogpt),
             ('GPT-2 124M', SHAPES['GPT-2 124M'], MANY, 32, None),    # nanoGPT's sample.py makes one after the other
             ('10.65M', SHAPES['10.65M'], 1, 250, nanogpt)]
    if args.miniature:
        sizes = [('tiny', TINY_SHAPE, 1, 8, nanogpt), ('tiny', TINY_SHAPE, 3, 8, None)]

    say('| model | texts | tokens each | side | tokens/s | ratio to the line before |\n|---|---|---|---|---|---|')
    choosing = []
    for size, shape, n_samples, n_tokens, other in sizes:
        with redirect_stdout(sys.stderr):             # nanoGPT prints
            sides, _ = sampling.build(shape, other, worker)
        names = [name for name in ('nanoGPT', 'ours', 'compiled') if name in sides]
        pairs = list(zip(names, names[1:]))           # the plain ones first: compiling may take too long
        for pair in pairs:
            with worker.autocast():
                speeds = sampling.measure({name: sides[name] for name in pair}, n_samples, n_tokens, 3)
            ratios = [b / a for a, b in zip(*speeds.values())]
            for name in pair:
                ratio = f'{statistics.median(ratios):.2f}' if name == pair[1] else ''
                say(f'| {size} | {n_samples} | {n_tokens} | {name} | {spread(speeds[name])} | {ratio} |')
        milliseconds = choosing_time(n_samples, shape['vocab_size'], worker)
        choosing.append(f'{milliseconds:.2f} ({size}, {n_samples})')
    say(f"\n- milliseconds of each step that choosing the tokens takes, on the CPU: {', '.join(choosing)}")


# ---------------------------------------------------------------------------- profile

def profile(args, say):
    step_profile.explain(gpt2_step(args, None, gradient_accumulation_steps=2)['ours'], 3, say)
    chosen = config('shakespeare_char.py', args)
    options = SimpleNamespace(config=chosen[0], against=None, vocab_size=65)
    step_profile.explain(step.build(options, chosen[1:])['ours'], 3 if args.miniature else 20, say)
