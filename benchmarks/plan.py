"""
Will it fit, how long will it take? Before a run starts; usage:

    python bench.py plan config/quickstart.py                       here: memory, and three steps are measured
    python bench.py plan config/gpt2_124m.py --gpus=8 --gpu=a100    elsewhere: computed, nothing runs

The config files and --key=value settings are those of train.py. Memory is in GiB (2^30 bytes), as PyTorch and
nvidia-smi count it. Settings beside train.py's:
"""

import os
import statistics
import sys
import time
from dataclasses import dataclass, replace
from types import SimpleNamespace

import torch

import train
from benchmarks.paired import seconds_of
from benchmarks.step import Ours
from gradus import accounting, configurator, data, evaluation, memory, metadata, parallel, pretrained
from gradus.accounting import n_params
from gradus.errors import UserError
from gradus.forecast import CERTAIN, GIB, available, in_gib, in_words
from gradus.shards import file_names
from model import GPTConfig


@dataclass
class PlanConfig(train.TrainConfig):
    gpus: int = 0                     # how many GPUs to plan for; 0 = this machine, where steps are measured
    gpu: str = 'h100'                 # a100, a100-40gb, a10g, b200, h100, h200, l4, l40s, rtx3090, rtx4090, v100
    vocab_size: int = 0               # of the model; 0 = that of the dataset, GPT-2's if it is not prepared yet
    mfu: float = 0.4                  # the fraction of its peak FLOP/s that a GPU reaches; 0.2 to 0.5 is usual


# name: (its peak in parallel.PEAK_FLOPS, its memory in GiB)
GPUS = {
    'a100': ('A100', 80),
    'a100-40gb': ('A100', 40),
    'a10g': ('A10G', 24),
    'b200': ('B200', 179),
    'h100': ('H100', 80),
    'h200': ('H200', 140),
    'l4': ('L4', 24),
    'l40s': ('L40S', 48),
    'rtx3090': ('RTX 3090', 24),
    'rtx4090': ('RTX 4090', 24),
    'v100': ('V100', 32),
}

# How much of the memory tensors can fill: gaps between them take the rest, and on a GPU CUDA and NCCL.
USABLE = {'cpu': 0.75, 'cuda': 0.92, 'mps': 0.75}
GPT2 = {                                              # n_layer, n_head, n_embd
    'gpt2': (12, 12, 768),
    'gpt2-medium': (24, 16, 1024),
    'gpt2-large': (36, 20, 1280),
    'gpt2-xl': (48, 25, 1600),
}
CHINCHILLA = 20                                       # tokens for each parameter; Hoffmann et al. 2022
PATIENCE = 60                                         # seconds after which no other step is measured


# ---------------------------------------------------------------------------- what is planned

def open_dataset(cfg):
    """The dataset, None if it is not prepared; its meta data; and its model's vocabulary."""
    folder = os.path.join('data', cfg.dataset)
    files = [os.path.join(folder, file_names(folder, split)[0]) for split in ('train', 'val')]
    if not all(os.path.exists(file) for file in files):
        vocab_size = cfg.vocab_size or 50304
        whose = 'that of --vocab_size' if cfg.vocab_size else "GPT-2's; prepare the dataset, or set --vocab_size"
        print(f'{folder} is not prepared: planned with random text and a vocabulary of {vocab_size:,} tokens, {whose}')
        return None, dict(vocab_size=vocab_size, tokenizer=None), vocab_size
    meta = metadata.read_meta(folder)
    vocab_size = cfg.vocab_size or pretrained.padded_vocab_size(meta['vocab_size'])
    return data.open_dataset(folder, meta, vocab_size, cfg.block_size), meta, vocab_size


def shape(cfg, meta, vocab_size):
    """The GPTConfig of the run. A model from elsewhere is loaded to see it, unless it is one of OpenAI's."""
    if cfg.init_from in ('scratch', 'auto', 'resume'):
        return pretrained.config_of(cfg, vocab_size)
    if cfg.init_from in GPT2:
        n_layer, n_head, n_embd = GPT2[cfg.init_from]
        return GPTConfig(n_layer=n_layer, n_head=n_head, n_embd=n_embd, vocab_size=50257, mlp='gelu_tanh',
                         block_size=cfg.block_size, dropout=cfg.dropout)
    return pretrained.start_from(cfg, meta).config


def rows_per_step(cfg):
    return cfg.batch_size * cfg.gradient_accumulation_steps


def largest_batch(fits):
    """The largest number of sequences for which fits(number); 0 if one does not fit."""
    if not fits(1):
        return 0
    low, high = 1, 2
    while fits(high) and high < 2 ** 20:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


# ---------------------------------------------------------------------------- tables

def print_memory(cfg, columns):
    """A table of the kinds of memory; columns: {heading: Step}."""
    rows = [('weights', 'weights'), ('gradients', 'gradients'), (f'optimizer state ({cfg.optimizer})', 'optimizer'),
            ("DDP's or FSDP's buffers", 'buckets'), ('weights in 16 bits', 'copies'),
            ('activations', 'activations'), ('logits', 'logits'), ('at most at one moment', 'peak')]
    print(f"\n{f'memory in GiB, batch_size={cfg.batch_size}':<32}" + ''.join(f'{name:>10}' for name in columns))
    for name, field in rows:
        values = [getattr(step, field) / GIB for step in columns.values()]
        if any(values):
            print(f'{name:<32}' + ''.join(f'{value:>10.3f}' for value in values))


def print_tokens(config, tokens, seconds_per_token=0):
    """Chinchilla's number of tokens beside this run's."""
    enough = CHINCHILLA * n_params(config)
    takes = f', {in_words(enough * seconds_per_token)}' if seconds_per_token else ''
    print(f'Chinchilla: {CHINCHILLA} tokens for each parameter are {in_short(enough)}{takes}; '
          f'this run has {in_short(tokens)}, {tokens / enough:,.2f} times as many')


def in_short(n):
    """124M, 300B."""
    for unit, size in (('T', 1e12), ('B', 1e9), ('M', 1e6)):
        if n >= size:
            return f'{n / size:,.4g}{unit}'
    return f'{n:,.0f}'


# ---------------------------------------------------------------------------- on this machine

def plan_here(cfg):
    dataset, meta, vocab_size = open_dataset(cfg)
    worker = parallel.init(cfg.device, cfg.dtype, cfg.compile, cfg.backend)
    if cfg.deterministic or worker.compile and worker.device.type == 'cpu':     # as train.py does
        parallel.set_deterministic()
    free = available(worker.device)
    config = shape(cfg, meta, vocab_size)
    step = memory.step_of_run(cfg, config, worker)

    # Memory.
    per_row = dataset.train.row_tokens if dataset else cfg.block_size
    tokens = cfg.max_iters * rows_per_step(cfg) * per_row
    print(f'{in_short(n_params(config))} parameters, {worker.device}, {worker.dtype}, '
          f'{cfg.max_iters:,} steps of {round(rows_per_step(cfg) * per_row):,} tokens')
    print_memory(cfg, {'here': step})
    usable = USABLE[worker.device.type]
    print(verdict(step.peak, free, usable))
    if free is not None:
        largest = largest_batch(lambda n: peak_of(n, cfg, config, worker) <= usable * free)
        print(f'largest batch_size that fits: {largest}')
    if free is not None and CERTAIN * step.peak > free:
        print_tokens(config, tokens)
        return

    # Time.
    text = dataset.train if dataset else random_text(config)
    side = Ours(cfg, worker, config, text)
    seconds = time_of_step(side)
    if seconds is None:
        print('interrupted before a step was measured')
        return
    if worker.device.type == 'cuda':
        print(f'allocated on the GPU at one moment: {in_gib(torch.cuda.max_memory_allocated(worker.device))}')
    total = cfg.max_iters * seconds
    print(f'\n{cfg.max_iters:,} steps of {in_words(seconds)}: {in_words(total)}')
    total += print_evaluations(side, dataset)
    print(f'together: {in_words(total)}, without saving ckpt.pt ({in_gib(step.weights + step.optimizer)}) '
          f'and best.pt ({in_gib(step.weights)})')
    print_tokens(config, tokens)


def peak_of(batch_size, cfg, config, worker):
    """Bytes at one moment with another batch_size."""
    return memory.step_of_run(replace(cfg, batch_size=batch_size), config, worker).peak


def verdict(peak, free, usable):
    """Does it fit? usable: the fraction of the free bytes that tensors can fill."""
    if free is None:
        return 'how much is available here is not known'
    if CERTAIN * peak > free:
        return f'{in_gib(free)} are available here: it does not fit; lower batch_size'
    if peak > usable * free:
        return f'{in_gib(free)} are available here: too close to be sure'
    return f'{in_gib(free)} are available here: it fits'


def random_text(config):
    """Tokens as the model may see them."""
    ids = torch.randint(config.vocab_size, (10 ** 6 + config.block_size,)).numpy()
    return data.Tokens.from_ids(ids, config.vocab_size, config.block_size)


def time_of_step(side):
    """
    Seconds of a step: the median of three, after one that warms up; of more if they are short, of fewer after PATIENCE
    seconds or Ctrl-C; None without any. Of many micro-batches, steps of one and of two are measured, and the
    difference counts as often as there are more.
    """
    n = side.cfg.gradient_accumulation_steps
    sizes = (n,) if n <= 2 else (1, 2)
    times = {size: [] for size in sizes}
    print('measuring steps; Ctrl-C uses what has been measured', flush=True)
    began = time.perf_counter()
    try:
        take(side, sizes[0])
        for n_done in range(1, 101):
            for size in sizes:
                times[size].append(take(side, size))
                if n_done <= 3:
                    print(f'step of {size} x {side.cfg.batch_size} sequences: {in_words(times[size][-1])}', flush=True)
            spent = time.perf_counter() - began
            if spent > PATIENCE or n_done >= 3 and spent > 3:
                break
    except KeyboardInterrupt:
        pass
    if not times[sizes[-1]]:
        return n * times[1][0] if times.get(1) else None
    medians = [statistics.median(times[size]) for size in sizes]
    return medians[0] if len(sizes) == 1 else medians[0] + (n - 1) * (medians[1] - medians[0])


def take(side, size):
    """One step of `size` micro-batches; returns its seconds."""
    cfg = side.cfg
    side.cfg = replace(cfg, gradient_accumulation_steps=size)
    try:
        return seconds_of(Ours.step, side, 0)
    finally:
        side.cfg = cfg


def print_evaluations(side, dataset):
    """Measure one batch of an evaluation, print what all of them take, and return it in seconds."""
    cfg = side.cfg
    n = number_of_evaluations(cfg)
    if dataset is None and not cfg.eval_iters:
        print(f'{n:,} evaluations of the whole dataset: not counted, as it is not prepared')
        return 0
    tokens = dataset.val if dataset else side.tokens
    try:
        for _ in range(2):                            # the first one warms up
            began = time.perf_counter()
            evaluation.evaluate(side.fast, tokens, cfg.batch_size, cfg.batch_size, side.worker)
            seconds = time.perf_counter() - began
    except KeyboardInterrupt:
        print(f'{n:,} evaluations: not measured')
        return 0
    batches = 2 * cfg.eval_iters
    if dataset:
        windows = [len(split.eval_starts(cfg.eval_iters * cfg.batch_size)) for split in (dataset.train, dataset.val)]
        batches = sum(-(-each // cfg.batch_size) for each in windows)
    print(f'{n:,} evaluations of {batches:,} batches, {in_words(batches * seconds)} each: '
          f'{in_words(n * batches * seconds)}')
    return n * batches * seconds


def number_of_evaluations(cfg):
    """At iteration 0, every eval_interval, and at the end."""
    return cfg.max_iters // cfg.eval_interval + 1 + (cfg.max_iters % cfg.eval_interval > 0)


# ---------------------------------------------------------------------------- on other machines

def plan_elsewhere(cfg):
    configurator.check_choice(cfg, gpu=tuple(GPUS))
    if cfg.dtype == 'float32':
        raise UserError('dtype=float32: the peaks of GPUs are those of 16 bits; expected auto, bfloat16 or float16')
    _, meta, vocab_size = open_dataset(cfg)
    config = shape(cfg, meta, vocab_size)
    tokens = cfg.max_iters * rows_per_step(cfg) * cfg.block_size
    name, gib = GPUS[cfg.gpu]
    usable = USABLE['cuda']

    print(f'{in_short(n_params(config))} parameters on {cfg.gpus:,} x {cfg.gpu}, 16 bits, '
          f'{cfg.max_iters:,} steps of {rows_per_step(cfg) * cfg.block_size:,} tokens')
    if rows_per_step(cfg) % cfg.gpus:
        print(f'train.py would refuse this: {rows_per_step(cfg):,} sequences a step cannot be divided by {cfg.gpus}')

    # Memory.
    ways = {'ddp': ddp, 'fsdp': fsdp} if cfg.gpus > 1 else {'one GPU': ddp}
    print_memory(cfg, {way: of_gpu(cfg, config, cfg.batch_size) for way, of_gpu in ways.items()})
    for way, of_gpu in ways.items():
        largest = largest_batch(lambda n, of_gpu=of_gpu: of_gpu(cfg, config, n).peak <= usable * gib * GIB)
        print(f'largest batch_size in {usable:.0%} of {gib} GiB, {way}: {largest or "none fits"}')
    if cfg.gpus > 1:
        print('train.py itself uses ddp; neither recomputes activations')

    # Time.
    flops = accounting.flops_per_token(SimpleNamespace(config=config))
    speed = cfg.gpus * parallel.PEAK_FLOPS[name] * cfg.mfu / flops
    print(f'\n{flops * tokens:.3g} FLOP; {speed:,.0f} tokens/s at an MFU of {cfg.mfu:.1%} (--mfu): '
          f'{in_words(tokens / speed)}')
    print_tokens(config, tokens, 1 / speed)


def ddp(cfg, config, batch_size):
    """The `Step` on each GPU if every one has all weights."""
    accumulate = batch_size * cfg.gpus < rows_per_step(cfg)
    return memory.step(config, batch_size, cfg.optimizer, 2, 'cuda', cfg.compile is not False, accumulate, cfg.gpus > 1)


def fsdp(cfg, config, batch_size):
    """
    The same if weights, gradients and optimizer state are divided among the GPUs (Zhao et al. 2023). While they are
    needed, each GPU also has in 16 bits the weights of two blocks, the gradients of one, and both of what is outside
    the blocks.
    """
    whole = replace(ddp(cfg, config, batch_size), buckets=0)
    inside = sum(n for role, n in accounting.param_table(config).items()
                 if role not in ('embedding', 'unembedding', 'position'))
    block = inside // config.n_layer
    outside = n_params(config) - inside
    kinds = ('weights', 'gradients', 'optimizer', 'update', 'early')
    divided = {kind: getattr(whole, kind) // cfg.gpus for kind in kinds}
    return replace(whole, **divided, copies=2 * (2 * block + outside), buckets=2 * (block + outside))


# ---------------------------------------------------------------------------- start

def plan(cfg):
    train.check(cfg)
    configurator.check_range(cfg, gpus=(0, 10 ** 6), mfu=(0.001, 1), vocab_size=(0, 2 ** 20))
    if cfg.gpus:
        plan_elsewhere(cfg)
    else:
        plan_here(cfg)


def main():
    asks = {'-h', '--help'} & {*sys.argv[1:]}
    script = sys.modules[__name__] if asks else train             # nanoGPT's configs mean here what they mean there
    plan(configurator.load(PlanConfig, sys.argv[1:], script))


if __name__ == '__main__':
    main()
