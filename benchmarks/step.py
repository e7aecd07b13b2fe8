"""
Tokens per second and MFU of a config's training step; with --against, also those of nanoGPT's model of the same size,
with its own optimizer and step, alternating in one process. Both train on random tokens. On a CPU nanoGPT knows only
float32, so --dtype is for our side alone.

More config files and --key=value settings may follow, as for train.py.
"""

import argparse
import statistics
from contextlib import nullcontext

import torch

import train
from benchmarks.paired import checkout, load_nanogpt, report, seconds_of
from gradus import accounting, checkpoint, configurator, data, optim, parallel, pretrained
from model import GPT


class Ours:
    def __init__(self, cfg, worker, config, tokens):
        self.cfg = cfg
        self.worker = worker
        self.tokens = tokens
        self.model = worker.place(GPT(config))
        betas = (cfg.beta1, cfg.beta2)
        self.optimizer = optim.build(self.model, cfg.optimizer, cfg.weight_decay, cfg.learning_rate, betas,
                                     worker.dtype)
        self.scaler = torch.amp.GradScaler(worker.device.type, enabled=worker.dtype == torch.float16)
        self.fast = torch.compile(self.model) if worker.compile else self.model
        self.flops_per_token = accounting.flops_per_token(self.model)

    def step(self, n):
        optim.set_step(self.optimizer, n, self.cfg.learning_rate)
        train.train_step(self.fast, self.optimizer, self.scaler, self.tokens, n, self.cfg, self.worker)


class NanoGPT:
    def __init__(self, nanogpt, ours):
        """nanogpt: its model.py; ours: the side whose size, tokens and settings it takes."""
        self.cfg = cfg = ours.cfg
        self.worker = worker = ours.worker
        self.tokens = ours.tokens
        self.scaler = torch.amp.GradScaler(worker.device.type, enabled=worker.dtype == torch.float16)

        config = nanogpt.GPTConfig(**{name: getattr(ours.model.config, name) for name in checkpoint.NANOGPT_MODEL_ARGS})
        self.model = nanogpt.GPT(config).to(worker.device)
        betas = (cfg.beta1, cfg.beta2)
        self.optimizer = self.model.configure_optimizers(cfg.weight_decay, cfg.learning_rate, betas, worker.device.type)
        self.fast = torch.compile(self.model) if worker.compile else self.model

        attention = 12 * config.n_layer * config.n_embd * config.block_size
        self.flops_per_token = 6 * self.model.get_num_params() + attention

    def batch(self):
        """Inputs and targets (B, T) from random places, one slice each, as nanoGPT's get_batch does."""
        T = self.cfg.block_size
        starts = torch.randint(len(self.tokens) - T, (self.cfg.batch_size,)).tolist()
        x = torch.stack([torch.from_numpy(self.tokens.ids[i:i + T]) for i in starts])
        y = torch.stack([torch.from_numpy(self.tokens.ids[i + 1:i + 1 + T]) for i in starts])
        return self.worker.to_device(x, y)

    def step(self, n):
        """The step that nanoGPT's train.py takes: on a CPU in float32, whatever dtype says."""
        on_cpu = self.worker.device.type == 'cpu'
        for _ in range(self.cfg.gradient_accumulation_steps):
            x, y = self.batch()
            with nullcontext() if on_cpu else self.worker.autocast():
                _, loss = self.fast(x, y)
                loss = loss / self.cfg.gradient_accumulation_steps
            self.scaler.scale(loss).backward()
        if self.cfg.grad_clip:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.cfg.grad_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)


def build(args, settings):
    """The sides to measure, by name, ready for step 0."""
    cfg = configurator.load(train.TrainConfig, [args.config, *settings])
    worker = parallel.init(cfg.device, cfg.dtype, cfg.compile, cfg.backend)
    if cfg.deterministic or worker.compile and worker.device.type == 'cpu':     # as train.py does
        parallel.set_deterministic()
    torch.manual_seed(cfg.seed)
    config = pretrained.config_of(cfg, vocab_size=args.vocab_size)
    ids = torch.randint(args.vocab_size, (10 ** 6,)).numpy()
    tokens = data.Tokens.from_ids(ids, args.vocab_size, cfg.block_size)

    sides = {'ours': Ours(cfg, worker, config, tokens)}
    if args.against:
        sides['nanoGPT'] = NanoGPT(load_nanogpt(args.against), sides['ours'])
    return sides


def take(side, steps):
    """The steps of these numbers, one after the other."""
    for n in steps:
        side.step(n)


def rounds(sides, n_rounds, n_steps):
    """
    Tokens/s of each side, {name: number}, once for each round; in a round each side takes n_steps. The first round,
    which compiles and warms up, is not among them.
    """
    cfg = sides['ours'].cfg
    tokens = n_steps * cfg.batch_size * cfg.gradient_accumulation_steps * cfg.block_size
    for n in range(n_rounds + 1):
        steps = range(n * n_steps, (n + 1) * n_steps)
        speeds = {name: tokens / seconds_of(take, side, steps) for name, side in sides.items()}
        if n:
            yield speeds


def share_of_peak(side, speed):
    """What a speed in tokens/s means: MFU where the device's peak is known, else GFLOP/s."""
    flops = speed * side.flops_per_token
    peak = side.worker.peak_flops
    return f'MFU {flops / peak:.1%}' if peak else f'{flops / 1e9:,.1f} GFLOP/s'


def peak_memory(side, n):
    """
    Bytes of CUDA memory that step n takes at its highest: weights, optimizer, gradients, activations. What else is
    there, such as another side, does not count. 0 on other devices.
    """
    if side.worker.device.type != 'cuda':
        return 0
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    side.step(n)
    torch.cuda.synchronize()
    kept = [*side.model.parameters(), *side.model.buffers()]
    for state in side.optimizer.state.values():
        kept += [value for value in state.values() if torch.is_tensor(value) and value.is_cuda]
    return torch.cuda.max_memory_allocated() - before + sum(tensor.nbytes for tensor in kept)


def about(side):
    """What is measured, in words."""
    cfg, worker = side.cfg, side.worker
    tokens = cfg.batch_size * cfg.gradient_accumulation_steps * cfg.block_size
    compiled = ', compiled' if worker.compile else ''
    return (f'{side.model.num_params() / 1e6:.1f}M weights, {tokens:,} tokens a step, {cfg.batch_size} sequences of '
            f'{cfg.block_size} at a time, {worker.device}, {worker.dtype}, optimizer {cfg.optimizer}{compiled}')


def step(args, settings):
    sides = build(args, settings)
    measured = list(rounds(sides, args.rounds, args.steps))
    speeds = {name: [row[name] for row in measured] for name in sides}

    print(about(sides['ours']))
    if args.against:
        report('speed', speeds['nanoGPT'], speeds['ours'], 'tokens/s', sides=('nanoGPT', 'ours'))
    for name, side in sides.items():
        speed = statistics.median(speeds[name])
        print(f'{name}: {speed:,.0f} tokens/s, {share_of_peak(side, speed)}')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--against', metavar='PATH', help='a checkout of nanoGPT')
    parser.add_argument('--config', default='config/gpt2_124m.py', help='default: %(default)s')
    parser.add_argument('--vocab_size', type=int, default=50304, help='default: %(default)s')
    parser.add_argument('--rounds', type=int, default=5, help='default: %(default)s')
    parser.add_argument('--steps', type=int, default=5, help='in each round (default: %(default)s)')
    args, settings = parser.parse_known_args()
    if args.against:
        args.against = checkout(args.against)
    step(args, settings)


if __name__ == '__main__':
    main()
