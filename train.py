"""
Train a GPT.

    python train.py config/quickstart.py                          on whatever this machine has
    python train.py config/quickstart.py --max_iters=100          the same, with one setting changed
    torchrun --standalone --nproc_per_node=8 train.py config/train_gpt2.py

Everything random in iteration i depends on (seed, i) alone: the same command gives the same weights,
and a run that was stopped and resumed ends where the uninterrupted one does.
"""

import math
import os
import shlex
import signal
import sys
import time
import traceback
from dataclasses import asdict, dataclass, fields

import gradus  # noqa: F401  first: Ctrl-C during the slow imports below is one line

# isort: split
import torch
from tqdm import tqdm

from gradus import chart, checkpoint, configurator, data, evaluation, metadata, mirrors, optim, parallel, pretrained
from gradus.accounting import flops_per_token
from gradus.errors import warn
from gradus.forecast import note_if_long, warn_if_too_large
from gradus.interrupt import Interrupt
from gradus.log import Log, diverged, done_line, losses_line, sizes_line, step_line
from gradus.preparation import prepare
from gradus.run_folder import RunFolder
from gradus.sampling import show_sample
from gradus.shards import file_names
from gradus.updates import copy_matrices, update_ratios
from model import GPT


@dataclass
class TrainConfig:
    # files
    out_dir: str = 'out'              # folder of the run: ckpt.pt (last state), best.pt (best weights), log.jsonl
    init_from: str = 'scratch'        # scratch, resume (from ckpt.pt), auto (resume if possible), gpt2*, folder, .gguf
    eval_interval: int = 2000         # iterations between evaluations
    eval_iters: int = 200             # batches in an evaluation, always the same ones; 0 = the whole split
    eval_only: bool = False           # evaluate once, write nothing
    log_interval: int = 1             # iterations between loss lines
    always_save_checkpoint: bool = True  # save ckpt.pt at every evaluation; False: only if val improves and at the end
    checkpoint_interval: int = 0      # also save ckpt.pt every N iterations; 0 = off
    keep_interval: int = 0            # also keep the weights of every N-th iteration, as step-000500.pt; 0 = off
    skip_nonfinite: int = 0           # skip up to N consecutive non-finite steps (NaN, infinity), then stop
    sample_tokens: int = 300          # length of the sample shown at the end; 0 = no samples
    sample_interval: int = 0          # also show and log a sample every N iterations; 0 = off
    tensorboard_log: bool = False     # also log to out_dir/tensorboard (pip install tensorboard)
    wandb_log: bool = False           # also log to Weights & Biases (pip install wandb)
    wandb_project: str = 'owt'
    wandb_run_name: str = 'gpt2'
    # data
    dataset: str = 'openwebtext'      # folder in data/
    gradient_accumulation_steps: int = 40  # micro-batches in one step, over all processes
    batch_size: int = 12              # sequences in a micro-batch
    block_size: int = 1024            # tokens in a sequence: the context length
    data_order: str = 'random'        # random: windows anywhere; shuffled: every part of the text once per epoch
    # model; model.py explains each field
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0
    bias: bool = False
    pos: str = 'learned'              # learned, sinusoidal, rotary, none
    norm: str = 'layernorm'           # layernorm, rmsnorm, none
    mlp: str = 'gelu'                 # gelu, gelu_tanh, relu, swiglu, sigmoid
    qk_norm: bool = False
    n_kv_head: int = 0                # 0 = n_head
    tie_weights: bool = True
    rope_theta: float = 10000.0
    n_inner: int = 0                  # hidden width of the MLP; 0 = 4 n_embd (swiglu: 8/3 n_embd)
    head_dim: int = 0                 # width of a head; 0 = n_embd / n_head
    norm_eps: float = 0.0             # 0 = 1e-5 for layernorm, 1e-6 for rmsnorm
    score: str = 'dot'                # dot, squared, reversed, unscaled; these three: what if? (WHATIF.md)
    mask: str = 'causal'              # causal, other_half, none
    residual: bool = True
    # optimizer
    optimizer: str = 'adamw'          # adamw, or muon for the blocks' matrices (learning_rate about 0.02)
    learning_rate: float = 6e-4       # peak learning rate
    max_iters: int = 600000           # total iterations (optimizer steps)
    weight_decay: float = 1e-1
    beta1: float = 0.9
    beta2: float = 0.95
    train_temperature: float = 1.0    # divides the logits in the training loss: below 1 if the model overfits
    grad_clip: float = 1.0            # clip gradients to this norm; 0 = off
    # learning rate schedule
    decay_lr: bool = True             # False: constant, without warm-up
    lr_schedule: str = 'cosine'       # cosine, or linear: constant, then linear decay
    cooldown: float = 0.4             # linear: the fraction of lr_decay_iters in which it decays
    warmup_iters: int = 2000
    lr_decay_iters: int = 600000      # when min_lr is reached; usually max_iters
    min_lr: float = 6e-5
    # system
    seed: int = 1337
    device: str = 'auto'              # auto, cpu, cuda, cuda:N, mps
    dtype: str = 'auto'               # auto, float32, bfloat16, float16 (with loss scaling)
    compile: bool | str = 'auto'      # torch.compile: auto (on CUDA), True, False
    backend: str = 'auto'             # between processes: auto, nccl, gloo
    deterministic: bool = False       # on CUDA: bit-identical runs, but slower; the CPU is deterministic anyway


@dataclass
class Progress:
    """What a resumed run must know besides weights and optimizer. Each field is a key of ckpt.pt."""
    iter_num: int = 0                 # steps taken
    best_val_loss: float = math.inf
    elapsed_s: float = 0.0            # training time so far, in seconds
    evaluated: bool = False           # is the evaluation due at iter_num done?
    skipped: int = 0                  # consecutive steps up to here that were not taken, see skip_nonfinite

    @classmethod
    def from_checkpoint(cls, state):
        """nanoGPT saves iter_num and best_val_loss only, right after an evaluation."""
        return cls(**{'evaluated': True} | {f.name: state[f.name] for f in fields(cls) if f.name in state})


# ---------------------------------------------------------------------------- settings

def check(cfg):
    """Raise UserError for settings that make no sense; warn about common mistakes."""
    at_least_1 = ('eval_interval', 'log_interval', 'gradient_accumulation_steps', 'batch_size')
    at_least_0 = ('eval_iters', 'checkpoint_interval', 'keep_interval', 'skip_nonfinite', 'sample_tokens',
                  'sample_interval', 'max_iters', 'grad_clip', 'warmup_iters', 'lr_decay_iters')
    configurator.check_range(cfg, **dict.fromkeys(at_least_1, (1, None)), **dict.fromkeys(at_least_0, (0, None)))
    configurator.check_range(cfg, cooldown=(0, 1), beta1=(0, 0.999999), beta2=(0, 0.999999), seed=(0, 2 ** 63),
                             learning_rate=(0, 1e6), min_lr=(0, 1e6), weight_decay=(0, 1e6), rope_theta=(1e-3, 1e12),
                             train_temperature=(1e-3, 1e3))
    configurator.check_choice(cfg, dtype=('auto', *parallel.DTYPES), compile=('auto', True, False),
                              backend=('auto', 'nccl', 'gloo'), lr_schedule=optim.SCHEDULES,
                              optimizer=optim.OPTIMIZERS, data_order=data.ORDERS)
    configurator.check_out_dir(cfg.out_dir)
    pretrained.config_of(cfg, vocab_size=1)

    if cfg.decay_lr and cfg.lr_decay_iters > 2 * cfg.max_iters:
        warn(f'lr_decay_iters={cfg.lr_decay_iters} is far beyond max_iters={cfg.max_iters}: '
             'the learning rate will hardly decay')
    if cfg.decay_lr and 0 < cfg.max_iters <= cfg.warmup_iters:
        warn(f'warmup_iters={cfg.warmup_iters} is not less than max_iters={cfg.max_iters}: '
             'the learning rate will never reach its maximum')


def get_lr(cfg, iter_num):
    """The learning rate of step iter_num."""
    if not cfg.decay_lr:
        return cfg.learning_rate
    return optim.learning_rate_at(iter_num, cfg.learning_rate, cfg.min_lr, cfg.warmup_iters, cfg.lr_decay_iters,
                                  cfg.lr_schedule, cfg.cooldown)


# ---------------------------------------------------------------------------- setup

def setup(cfg, worker, resume):
    """
    Find everything that can be wrong, and load everything that the loop needs, before anything is written.
    Returns the dataset, the model on its device, optimizer, loss scaler and progress.
    """
    folder = os.path.join('data', cfg.dataset)
    ckpt_path = os.path.join(cfg.out_dir, 'ckpt.pt')
    with worker.together():
        worker.shard(cfg.batch_size * cfg.gradient_accumulation_steps)
        if worker.is_main:
            prepare(folder, file_names(folder, 'train')[0])

    with worker.together():
        # data, model
        meta = metadata.read_meta(folder)
        model, state = build_model(cfg, worker, meta, resume)
        dataset = data.open_dataset(folder, meta, model.config.vocab_size, cfg.block_size)

        # optimizer
        betas = (cfg.beta1, cfg.beta2)
        optimizer = optim.build(model, cfg.optimizer, cfg.weight_decay, cfg.learning_rate, betas, worker.dtype)
        scaler = torch.amp.GradScaler(worker.device.type, enabled=worker.dtype == torch.float16)

        # the rest of the checkpoint
        if resume:
            optim.load_state(optimizer, state, ckpt_path, scaler)
        progress = Progress.from_checkpoint(state) if resume else Progress()

    worker.require_same(cfg, data=dataset.fingerprint, iter_num=progress.iter_num)
    if changes := parallel.changes(state.get('machine', {}), worker.environment(model, dataset)):
        worker.print(f'warning: {ckpt_path} was written with {changes}: the run continues, but not bit for bit')
    return dataset, model, optimizer, scaler, progress


def build_model(cfg, worker, meta, resume=False):
    """The model on its device, and the checkpoint that it came from (empty if there is none)."""
    state = {}
    torch.manual_seed(cfg.seed)
    if resume:
        path = os.path.join(cfg.out_dir, 'ckpt.pt')
        state = checkpoint.load_run(path, repair=worker.is_main and not cfg.eval_only)
        model = pretrained.gpt_from_weights(state['model_args'], state['model'], path, dropout=cfg.dropout)
        pretrained.check_same_run(cfg, state, meta, path)
    elif cfg.init_from in ('scratch', 'auto'):
        model = GPT(pretrained.config_of(cfg, pretrained.padded_vocab_size(meta['vocab_size'])))
    else:
        model = pretrained.start_from(cfg, meta)
    return worker.place(model), state


# ---------------------------------------------------------------------------- one step

def seed_step(cfg, step, rank):
    """Dropout in iteration `step` depends on (seed, step, rank), not on what was drawn before."""
    torch.manual_seed(parallel.seed_from(cfg.seed, step, rank))


def train_step(model, optimizer, scaler, tokens, step, cfg, worker):
    """
    One optimizer step on batch `step`. Returns this rank's mean loss and the gradient norm, as tensors, and whether the
    step was taken: it is not if loss or gradient is not finite on any rank (in float16 only the loss counts, because
    loss scaling deals with gradients).
    """
    if cfg.dropout:                                   # only dropout draws here, and seeding takes a millisecond
        seed_step(cfg, step, worker.rank)

    # This rank's part of the global batch.
    starts = tokens.batch_starts(cfg.seed, step, cfg.batch_size * cfg.gradient_accumulation_steps, cfg.data_order)
    starts = starts[worker.shard(len(starts))]
    micro_batches = [tokens.windows(starts[i:i + cfg.batch_size]) for i in range(0, len(starts), cfg.batch_size)]

    # The loss is the mean over the targets of all micro-batches on all ranks; -1 does not count.
    counts = [(y >= 0).sum().item() for _, y in micro_batches]
    total_count = worker.sum(sum(counts))[0]

    # Forward and backward, one micro-batch at a time; gradients add up.
    total_loss = 0.0
    for i, (micro_batch, count) in enumerate(zip(micro_batches, counts), start=1):
        x, y = worker.to_device(*micro_batch)                                   # (B, T) each
        if worker.world_size > 1:                     # average gradients once, after the last micro-batch
            model.require_backward_grad_sync = i == len(micro_batches)
        with worker.autocast():
            logits, loss = model(x, y, temperature=cfg.train_temperature)
            loss = loss if count else 0 * logits.sum()          # not the mean of nothing, which is NaN
            loss = loss * (count * worker.world_size / max(total_count, 1))
        scaler.scale(loss).backward()
        total_loss = total_loss + loss.detach()

    # Skip the step if loss or gradient is not finite on any rank. This is where the CPU waits for the GPU.
    scaler.unscale_(optimizer)
    params = [p for p in model.parameters() if p.grad is not None]
    grad_norm = torch.nn.utils.get_total_norm([p.grad for p in params])
    finite = total_loss.isfinite() & (grad_norm.isfinite() | scaler.is_enabled())
    taken = not worker.sum(~finite)[0]

    # Update the weights.
    if taken:
        if cfg.grad_clip and grad_norm > cfg.grad_clip:
            torch.nn.utils.clip_grads_with_norm_(params, cfg.grad_clip, grad_norm)
        scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return total_loss, grad_norm, taken


# ---------------------------------------------------------------------------- the loop

def train(cfg, worker, interrupt, folder):
    """Train until max_iters or a signal. Returns the number of the signal, or 0."""
    ckpt_path = os.path.join(cfg.out_dir, 'ckpt.pt')
    resume = cfg.init_from == 'resume' or (cfg.init_from == 'auto' and checkpoint.exists(ckpt_path))
    dataset, model, optimizer, scaler, progress = setup(cfg, worker, resume)

    compiled = torch.compile(model) if worker.compile else model
    ddp = worker.distribute(compiled)
    tokens_per_iter = round(cfg.batch_size * cfg.gradient_accumulation_steps * dataset.train.row_tokens)
    worker.print(sizes_line(model, worker, dataset, tokens_per_iter))

    if cfg.eval_only:
        worker.print(losses_line(progress.iter_num, evaluation.estimate_loss(compiled, dataset, cfg, worker)))
        return 0
    if resume and progress.iter_num >= cfg.max_iters:
        worker.print(f'{ckpt_path} is at iteration {progress.iter_num} already; raise --max_iters to continue')
        return 0

    # Nothing has been written to the run's folder until here.
    warn_if_too_large(cfg, worker, model, dataset, resume)
    copies = mirrors.start(cfg, progress.iter_num + progress.evaluated) if worker.is_main else []
    folder.start(resume)
    log = Log(cfg.out_dir if worker.is_main else None, progress.iter_num, progress.evaluated, copies)
    bar = tqdm(total=cfg.max_iters, initial=progress.iter_num, unit='it', dynamic_ncols=True,
               disable=None if worker.is_main else True)
    start_time = time.perf_counter() - progress.elapsed_s
    saved_at = progress.iter_num if resume else None  # the iteration that ckpt.pt holds
    timed_steps, timed_seconds = 0, 0.0               # steps since the last loss line, and the time they took
    interrupt.watch()

    while True:
        it = progress.iter_num
        lr = get_lr(cfg, it)
        finished = it >= cfg.max_iters
        stop_signal = worker.max(interrupt.signal)    # its number; 0 = none
        eval_due = it % cfg.eval_interval == 0
        sample_due = cfg.sample_interval > 0 and it % cfg.sample_interval == 0
        save_due = it > 0 and cfg.checkpoint_interval > 0 and it % cfg.checkpoint_interval == 0

        # Evaluate, at regular intervals and at the end. If the val loss is the lowest so far, write best.pt.
        if (eval_due or finished) and not progress.evaluated and not stop_signal:
            losses = evaluation.estimate_loss(compiled, dataset, cfg, worker)
            worker.print(losses_line(it, losses))
            val_loss = losses['val_loss']
            if not math.isfinite(val_loss):
                raise diverged(f'val loss is {val_loss}', it, lr, ckpt_path, saved_at)
            improved = val_loss < progress.best_val_loss
            progress.best_val_loss = min(val_loss, progress.best_val_loss)
            progress.evaluated = eval_due             # False for an extra one at the end: a longer run has none here
            progress.elapsed_s = time.perf_counter() - start_time
            log.write(iter=it, **losses, tokens=it * tokens_per_iter, lr=lr, elapsed_s=round(progress.elapsed_s, 3))
            if it > 0:                                # at iteration 0 nothing has been learned
                save_due = save_due or improved or cfg.always_save_checkpoint
                if improved and worker.is_main:
                    folder.save('best.pt', snapshot(cfg, model, dataset, progress))

        # Write everything that a resumed run needs to ckpt.pt.
        if (save_due or finished or stop_signal) and saved_at != it:
            if worker.is_main:
                state = snapshot(cfg, model, dataset, progress)
                state.update(optimizer=optimizer.state_dict(), scaler=scaler.state_dict(),
                             machine=worker.environment(model, dataset))
                folder.save('ckpt.pt', state)
            worker.print(f'saved {ckpt_path}')
            saved_at = it

        # Keep the weights of some iterations for good.
        if cfg.keep_interval and it % cfg.keep_interval == 0 and worker.is_main:
            folder.save(f'step-{it:06}.pt', snapshot(cfg, model, dataset, progress))

        # Show what the model writes by now. A run that is resumed here does it again, because its log drops this.
        if sample_due and worker.is_main and not stop_signal:
            if text := show_sample(model, dataset, cfg, worker):
                log.write(iter=it, sample=text, tokens=it * tokens_per_iter, elapsed_s=round(progress.elapsed_s, 3))

        # Stop at the end, or if a signal asks for it.
        if finished or stop_signal:
            break

        # Take one step.
        before = copy_matrices(model) if eval_due and worker.is_main else None
        began = time.perf_counter()
        optim.set_step(optimizer, it, lr)
        loss, grad_norm, taken = train_step(ddp, optimizer, scaler, dataset.train, it, cfg, worker)
        log_due = taken and it % cfg.log_interval == 0
        if log_due:                                   # waits for the GPU, so that the clock sees the whole step
            loss = worker.sum(loss)[0] / worker.world_size
        timed_seconds += time.perf_counter() - began
        timed_steps += 1
        progress.elapsed_s = time.perf_counter() - start_time

        # Log it.
        tokens = (it + 1) * tokens_per_iter
        progress.skipped = 0 if taken else progress.skipped + 1
        if not taken:
            what = f'loss is {float(loss):.4g} and gradient norm {float(grad_norm):.4g}'
            if progress.skipped > cfg.skip_nonfinite:
                raise diverged(what, it, lr, ckpt_path, saved_at)
            worker.print(f'iter {it}: {what}: skipped')
            log.write(iter=it, skipped=what, tokens=tokens, lr=lr, elapsed_s=round(progress.elapsed_s, 3))
        if before and taken:
            log.write(iter=it, update_ratio=update_ratios(before, model), tokens=tokens, lr=lr)
        if log_due:
            dt = timed_seconds / timed_steps
            speed = dict(tokens_per_s=round(tokens_per_iter / dt))
            if worker.peak_flops:
                speed['mfu'] = round(tokens_per_iter / dt * flops_per_token(model) / worker.peak_flops, 4)
            log.write(iter=it, loss=loss, grad_norm=float(grad_norm), tokens=tokens, **speed, lr=lr,
                      elapsed_s=round(progress.elapsed_s, 3))
            worker.print(step_line(it, loss, dt, speed))
            note_if_long(cfg, worker, it - log.first_iter, cfg.max_iters - it - 1, dt)
            bar.set_postfix(loss=f'{loss:.3f}', refresh=False)
            timed_steps, timed_seconds = 0, 0.0

        progress.iter_num += 1
        progress.evaluated = False
        bar.update()

    bar.close()
    log.close()
    if stop_signal:
        worker.print(f'stopped by {signal.Signals(stop_signal).name} at iteration {it}, saved in {ckpt_path}; '
                     'continue with --init_from=resume')
    elif worker.is_main:
        interrupt.rest()
        print_summary(model, dataset, cfg, worker, progress, show=not sample_due)
    return stop_signal


def snapshot(cfg, model, dataset, progress):
    """What ckpt.pt and best.pt have in common: nanoGPT's keys, the tokenizer and the progress."""
    return dict(model=model.state_dict(), model_args=checkpoint.model_args(model.config), config=asdict(cfg),
                tokenizer=dataset.tokenizer_spec, **asdict(progress))


def print_summary(model, dataset, cfg, worker, progress, show):
    """Print the losses, where the results are, a sample if `show`, and the command that generates more."""
    chart.show(cfg.out_dir)
    print(done_line(cfg.out_dir, progress.best_val_loss))
    if show:
        show_sample(model, dataset, cfg, worker)
    print(f'more samples: python sample.py --out_dir={shlex.quote(cfg.out_dir)}')


def main(cfg):
    check(cfg)
    worker = parallel.init(cfg.device, cfg.dtype, cfg.compile, cfg.backend)
    # Compiled for the CPU, threads would sum an embedding's gradient in no fixed order.
    if cfg.deterministic or (worker.compile and worker.device.type == 'cpu'):
        parallel.set_deterministic()
    try:
        with Interrupt() as interrupt, RunFolder(cfg.out_dir, worker.is_main and not cfg.eval_only) as folder:
            signal_number = train(cfg, worker, interrupt, folder)
    except BaseException as e:
        traceback.clear_frames(e.__traceback__)       # frees the DDP model while its process group still exists
        raise
    finally:
        worker.close()
    if signal_number:
        sys.exit(128 + signal_number)


if __name__ == '__main__':
    configurator.launch(main, TrainConfig, lower='--batch_size, --block_size, --n_layer or --n_embd')
