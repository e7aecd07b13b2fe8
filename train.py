"""
Train a GPT.

    python train.py config/quickstart.py                          on whatever this machine has
    python train.py config/quickstart.py --max_iters=100          the same, one setting changed
    torchrun --standalone --nproc_per_node=8 train.py config/train_gpt2.py

Everything random in iteration i depends on (seed, i) alone: the same command gives the same weights,
and a run that was stopped and resumed ends where the uninterrupted one does.
"""

import math
import os
import signal
import sys
import time
from dataclasses import dataclass, fields

import torch
from torch.nn.parallel import DistributedDataParallel as DDP
from tqdm import tqdm

from gradus import checkpoint, configurator, data, evaluation, hf, optim, parallel, sampling
from gradus import tokenizer as tokenizers
from model import GPT, GPTConfig, ModelError


@dataclass
class TrainConfig:
    # what goes where
    out_dir: str = 'out'              # folder of the run: ckpt.pt (last state), best.pt (best weights), log.jsonl
    init_from: str = 'scratch'        # scratch, resume (out_dir's ckpt.pt), auto (resume if there is one), gpt2 ... gpt2-xl, or a folder
    eval_interval: int = 2000         # iterations between evaluations
    eval_iters: int = 200             # batches for each evaluation, always the same ones; 0 = the whole split
    eval_only: bool = False           # evaluate once, write nothing
    log_interval: int = 1             # iterations between loss lines
    always_save_checkpoint: bool = True  # save at every evaluation, or only when val improves (and at the end)
    checkpoint_interval: int = 0      # save between evaluations as well, every so many iterations; 0 = no
    skip_nonfinite: int = 0           # steps in a row whose loss or gradient may be no number: they are skipped; one more ends the run
    sample_tokens: int = 300          # tokens of the sample shown at the end; 0 = none
    wandb_log: bool = False           # report to Weights & Biases too (pip install wandb)
    wandb_project: str = 'owt'
    wandb_run_name: str = 'gpt2'
    # data
    dataset: str = 'openwebtext'      # folder in data/
    gradient_accumulation_steps: int = 40  # micro-batches that make one step, over all processes
    batch_size: int = 12              # sequences in a micro-batch
    block_size: int = 1024            # tokens in a sequence: the context
    data_order: str = 'random'        # windows anywhere in the text, or shuffled: each part once, in random order, then again
    # model; model.py tells what each means
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0
    bias: bool = False
    pos: str = 'learned'              # learned, sinusoidal, rotary
    norm: str = 'layernorm'           # layernorm, rmsnorm
    mlp: str = 'gelu'                 # gelu, gelu_tanh, relu, swiglu
    qk_norm: bool = False
    n_kv_head: int = 0                # 0 = n_head
    tie_weights: bool = True
    rope_theta: float = 10000.0
    n_inner: int = 0                  # 0 = 4 n_embd, for swiglu 8/3
    # optimizer
    optimizer: str = 'adamw'          # adamw, or muon: Muon for the matrices of the blocks, AdamW for the rest (learning_rate about 0.02)
    learning_rate: float = 6e-4       # at its highest
    max_iters: int = 600000           # iterations (optimizer steps) in all
    weight_decay: float = 1e-1
    beta1: float = 0.9
    beta2: float = 0.95
    grad_clip: float = 1.0            # longest gradient allowed; 0 = any
    # learning rate over time
    decay_lr: bool = True             # False: constant, no warm-up either
    lr_schedule: str = 'cosine'       # cosine, or linear: constant, then straight down
    cooldown: float = 0.4             # linear: the share of lr_decay_iters that goes down
    warmup_iters: int = 2000
    lr_decay_iters: int = 600000      # where min_lr is reached; usually max_iters
    min_lr: float = 6e-5
    # machine
    seed: int = 1337
    device: str = 'auto'              # auto, cpu, cuda, cuda:N, mps
    dtype: str = 'auto'               # auto, float32, bfloat16, float16 (with loss scaling)
    compile: bool | str = 'auto'      # torch.compile: auto (on CUDA), True, False
    backend: str = 'auto'             # between processes: auto, nccl, gloo
    deterministic: bool = False       # on CUDA: the same bits in every run, but slower; the CPU is so anyway


NANOGPT_MODEL_ARGS = ('n_layer', 'n_head', 'n_embd', 'block_size', 'bias', 'vocab_size', 'dropout')


class TrainError(ValueError):
    """A run that cannot go on, in one line."""


ERRORS = (TrainError, ModelError, data.DataError, checkpoint.CheckpointError, tokenizers.TokenizerError, parallel.DeviceError, hf.InteropError)


def check(cfg):
    """Raise ConfigError for values that make no sense; warn of those that nanoGPT's users regret."""
    at_least_1 = dict.fromkeys(('eval_interval', 'log_interval', 'gradient_accumulation_steps', 'batch_size'), (1, None))
    at_least_0 = dict.fromkeys(('eval_iters', 'checkpoint_interval', 'skip_nonfinite', 'sample_tokens', 'max_iters', 'learning_rate', 'min_lr', 'weight_decay',
                                'grad_clip', 'warmup_iters', 'lr_decay_iters'), (0, None))
    configurator.in_range(cfg, **at_least_1, **at_least_0, cooldown=(0, 1), beta1=(0, 0.999999), beta2=(0, 0.999999), seed=(0, 2 ** 63))
    configurator.one_of(cfg, dtype=('auto', *parallel.DTYPES), compile=('auto', True, False), backend=('auto', 'nccl', 'gloo'),
                        lr_schedule=optim.SCHEDULES, optimizer=optim.OPTIMIZERS, data_order=data.ORDERS)
    model_config(cfg, vocab_size=1)
    configurator.own_folder(cfg.out_dir)
    if cfg.decay_lr and cfg.lr_decay_iters > 2 * cfg.max_iters:
        warn(f'lr_decay_iters={cfg.lr_decay_iters} is far beyond max_iters={cfg.max_iters}: the learning rate will hardly fall')
    if cfg.decay_lr and 0 < cfg.max_iters <= cfg.warmup_iters:
        warn(f'warmup_iters={cfg.warmup_iters} is not less than max_iters={cfg.max_iters}: the learning rate will never reach its height')


def warn(text):
    if os.environ.get('RANK', '0') == '0':
        print(f'warning: {text}', file=sys.stderr)


def model_config(cfg, vocab_size):
    """The GPTConfig that the settings describe."""
    return GPTConfig(vocab_size=vocab_size, **{f.name: getattr(cfg, f.name) for f in fields(GPTConfig) if f.name != 'vocab_size'})


def model_args(config):
    """What a checkpoint says of a model: nanoGPT's seven fields, and of ours those that are not GPT-2's."""
    return {f.name: value for f in fields(config)
            if (value := getattr(config, f.name)) != f.default or f.name in NANOGPT_MODEL_ARGS}


def build_model(cfg, run, meta):
    """The model on its device, and the checkpoint that it came from (empty if it is new)."""
    state = {}
    torch.manual_seed(cfg.seed)
    path = os.path.join(cfg.out_dir, 'ckpt.pt')
    if cfg.init_from == 'resume' or cfg.init_from == 'auto' and checkpoint.exists(path):
        state = checkpoint.load(path, repair=run.main)
        check_same_sizes(cfg, state, meta, path)
        model = GPT.from_state(state['model_args'], state['model'], path, dropout=cfg.dropout)
    elif cfg.init_from in ('scratch', 'auto'):
        # GPT-2's vocabulary is padded to a multiple of 64, for faster matmuls, as nanoGPT does it.
        model = GPT(model_config(cfg, 50304 if meta['vocab_size'] == 50257 else meta['vocab_size']))
    elif cfg.init_from.startswith('gpt2') or os.path.isdir(cfg.init_from):
        args, weights = hf.load_gpt2(cfg.init_from)
        model = GPT.from_state(args, weights, cfg.init_from, dropout=cfg.dropout)
        model.crop_block_size(cfg.block_size)
    else:
        raise configurator.ConfigError(f'init_from={cfg.init_from}: expected scratch, resume, auto, gpt2, gpt2-medium, gpt2-large, gpt2-xl, '
                                       'or a folder with config.json and model.safetensors')
    return model.to(run.device), state


def check_same_sizes(cfg, state, meta, path):
    """A run can only be resumed with the sizes and the tokenizer that it has."""
    was = state.get('config', {})
    for f in fields(GPTConfig):
        if f.name in ('vocab_size', 'dropout'):
            continue
        has, wanted = state['model_args'].get(f.name, f.default), getattr(cfg, f.name)
        if wanted != has and wanted != was.get(f.name):          # the latter: a gpt2 run, whose sizes no config set
            raise checkpoint.CheckpointError(f'{path} has {f.name}={has}, but the settings say {f.name}={wanted}; '
                                             'resume with the config of that run, or give another --out_dir')
    has = state['model_args'].get('vocab_size', 0)
    if meta['vocab_size'] > max(has, 50304 * (has == 50257)) or state.get('tokenizer', meta['tokenizer']) != meta['tokenizer']:
        raise checkpoint.CheckpointError(f"{path} was trained with another tokenizer (vocab_size={has}) than data/{cfg.dataset} has "
                                         f"(vocab_size={meta['vocab_size']}); use the same --dataset")


def seed_step(cfg, step, rank):
    """Dropout in iteration `step` depends on (seed, step, rank), not on what was drawn before."""
    torch.manual_seed(parallel.seed_of(cfg.seed, step, rank))


def train_step(model, optimizer, scaler, tokens, step, cfg, run):
    """
    One step on batch `step`. Returns this rank's mean loss and the gradient's length, as tensors, and whether the step was
    taken: with a loss or gradient that is no finite number (in float16 only the loss counts, scaling copes) it is not.
    """
    if cfg.dropout:                                   # nothing else is random in a step, and torch needs a millisecond for it
        seed_step(cfg, step, run.rank)
    starts = tokens.batch_starts(cfg.seed, step, cfg.batch_size * cfg.gradient_accumulation_steps, cfg.data_order)
    starts = starts[run.share(len(starts))]
    loss_sum = 0.0
    for i in range(0, len(starts), cfg.batch_size):
        micro = starts[i:i + cfg.batch_size]
        x, y = run.put(*tokens.windows(micro))                                  # (B, T) each
        if run.world_size > 1:                        # DDP adds up once, at the end
            model.require_backward_grad_sync = i + cfg.batch_size >= len(starts)
        with run.autocast():
            _, loss = model(x, y)
            loss = loss * (len(micro) / len(starts))          # the mean over all of them, not of the micro-batch
        scaler.scale(loss).backward()
        loss_sum = loss_sum + loss.detach()
    scaler.unscale_(optimizer)
    params = [p for p in model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in params])
    finite = loss_sum.isfinite() & (norm.isfinite() | scaler.is_enabled())
    if run.sum(~finite)[0]:                           # on any rank; this is where a GPU is waited for
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        return loss_sum, norm, False
    if cfg.grad_clip and norm > cfg.grad_clip:        # else it would only multiply by 1
        torch.nn.utils.clip_grads_with_norm_(params, cfg.grad_clip, norm)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return loss_sum, norm, True


def main(cfg):
    check(cfg)
    run = parallel.start(cfg.device, cfg.dtype, cfg.compile, cfg.backend)
    if cfg.deterministic or run.compile and run.device.type == 'cpu':   # else compiled threads add up an embedding's gradient in any order
        parallel.be_deterministic()
    try:
        with parallel.Interrupt() as interrupt:
            train(cfg, run, interrupt)
    finally:
        run.close()


def train(cfg, run, interrupt):
    def say(text):
        if run.main:
            tqdm.write(text)

    # ---- everything that can be wrong is found before anything is written
    if run.note:
        say(f'note: {run.note}')
    run.share(cfg.batch_size * cfg.gradient_accumulation_steps)
    folder, ckpt = os.path.join('data', cfg.dataset), os.path.join(cfg.out_dir, 'ckpt.pt')
    if run.main:
        data.prepare(folder, 'train.bin')
    run.barrier()
    meta = data.read_meta(folder)
    try:
        tokenizer = tokenizers.from_json(meta['tokenizer'])
    except tokenizers.TokenizerError as e:
        if meta['tokenizer'].get('kind') != 'gpt2':
            raise
        tokenizer = None                              # training goes on without text: no bits per byte, no sample
        say(f'note: {e}')
    model, state = build_model(cfg, run, meta)
    splits = {name: data.Tokens(os.path.join(folder, f'{name}.bin'), meta['dtype'], model.config.vocab_size, cfg.block_size)
              for name in ('train', 'val')}
    optimizer = optim.build(model, cfg.optimizer, cfg.weight_decay, cfg.learning_rate, (cfg.beta1, cfg.beta2), run.dtype)
    scaler = torch.amp.GradScaler(run.device.type, enabled=run.dtype == torch.float16)
    if state:
        try:
            optim.load_state(optimizer, state['optimizer'])
            scaler.load_state_dict(state.get('scaler') or scaler.state_dict())
        except (KeyError, ValueError, TypeError) as e:
            raise checkpoint.CheckpointError(f'{ckpt}: no optimizer state to resume from ({e})') from e
        if differs := run.differs(state.get('machine', {})):
            say(f'warning: {ckpt} was written with {differs}: the run goes on, but not bit for bit')
    step = start = state.get('iter_num', 0)
    resumed, was_evaluated = bool(state), state.get('evaluated', start % cfg.eval_interval == 0)
    best_val_loss, elapsed_before = state.get('best_val_loss', math.inf), state.get('elapsed_s', 0.0)
    byte_lengths = None
    if tokenizer is not None:                         # (V,): 0 for ids that only pad the vocabulary
        lengths = torch.from_numpy(tokenizer.byte_lengths())
        byte_lengths = torch.nn.functional.pad(lengths, (0, model.config.vocab_size - len(lengths)))
    wandb = start_wandb(cfg) if cfg.wandb_log and run.main and not cfg.eval_only else None
    state = None                                      # its tensors are in model and optimizer now

    fast = torch.compile(model) if run.compile else model
    wrapped = DDP(fast, device_ids=[run.device] if run.device.type == 'cuda' else None) if run.world_size > 1 else fast
    tokens_per_step, flops_per_token = cfg.batch_size * cfg.gradient_accumulation_steps * cfg.block_size, model.flops_per_token()
    say(f'{model.num_params() / 1e6:.2f}M parameters, {run.device.type}, {str(run.dtype).removeprefix("torch.")}'
        f'{", compiled" if run.compile else ""}; {tokens_per_step:,} tokens per iteration, '
        f'{len(splits["train"]):,} tokens to learn from')

    def losses():
        """One evaluation, as log.jsonl keeps it and as a line to read."""
        (train_loss, _), (val_loss, bpb) = (
            evaluation.evaluate(fast, splits[name], cfg.batch_size, cfg.eval_iters * cfg.batch_size, run, byte_lengths) for name in ('train', 'val'))
        line = f'step {step}: train loss {train_loss:.4f}, val loss {val_loss:.4f}, perplexity {math.exp(min(val_loss, 700)):.2f}'
        say(line + (f', {bpb:.4f} bits per byte' if bpb else ''))
        return dict(train_loss=train_loss, val_loss=val_loss, **(dict(val_bits_per_byte=bpb) if bpb else {}))

    if cfg.eval_only:
        losses()
        return
    if resumed and step >= cfg.max_iters:
        say(f'{ckpt} is at iteration {step} already; raise --max_iters to go on')
        return

    # ---- from here on the run's folder is ours
    log = None
    if run.main:
        checkpoint.open_run(cfg.out_dir, resumed)
        log = checkpoint.Log(os.path.join(cfg.out_dir, 'log.jsonl'), start, was_evaluated)
    bar = tqdm(total=cfg.max_iters, initial=start, disable=None if run.main else True, unit='it', dynamic_ncols=True)
    began = now = time.perf_counter()
    mark, marked = step, now                          # where the speed of the next loss line is counted from

    def record(**values):
        """One line of log.jsonl, on disk at once."""
        entry = dict(iter=step, **values, lr=lr, elapsed_s=round(elapsed_before + time.perf_counter() - began, 3))
        if log:
            log.write(**entry)
        if wandb:
            wandb.log(entry, step=step)

    def snapshot():
        """What both checkpoint files hold."""
        return dict(model=model.state_dict(), model_args=model_args(model.config), iter_num=step, best_val_loss=best_val_loss,
                    config=configurator.plain(cfg), tokenizer=meta['tokenizer'])

    def stop(what):
        """The end of a run that makes no sense any more."""
        good = f'the last good checkpoint is {ckpt}, of iteration {saved}' if saved else 'no checkpoint was saved before'
        raise TrainError(f'iteration {step}: {what} at learning rate {lr:.3g}; {good}; lower --learning_rate, or allow some with --skip_nonfinite=N')

    saved, skipped = start, 0
    while True:
        lr = cfg.learning_rate if not cfg.decay_lr else optim.learning_rate_at(
            step, cfg.learning_rate, cfg.min_lr, cfg.warmup_iters, cfg.lr_decay_iters, cfg.lr_schedule, cfg.cooldown)
        last, interrupted = step >= cfg.max_iters, run.sum(interrupt.signal)[0] if run.world_size > 1 else interrupt.signal
        new = not (resumed and step == start)         # else this very state is on the disk
        evaluated = was_evaluated and not new
        due = cfg.checkpoint_interval and step % cfg.checkpoint_interval == 0
        if (step % cfg.eval_interval == 0 or last) and not evaluated and not interrupted:
            evaluated, values = True, losses()
            if not math.isfinite(values['val_loss']):
                stop(f"val loss is {values['val_loss']}")
            improved = values['val_loss'] < best_val_loss
            best_val_loss = min(best_val_loss, values['val_loss'])
            record(**values, tokens=step * tokens_per_step)
            if improved and step and run.main:
                checkpoint.save(os.path.join(cfg.out_dir, 'best.pt'), snapshot())
            due = due or improved or cfg.always_save_checkpoint
        if new and (due and step or last or interrupted):
            if run.main:
                elapsed = elapsed_before + time.perf_counter() - began
                checkpoint.save(ckpt, dict(**snapshot(), optimizer=optimizer.state_dict(), scaler=scaler.state_dict(), elapsed_s=elapsed,
                                           evaluated=evaluated and step % cfg.eval_interval == 0, machine=run.machine()))
                say(f'saved {ckpt}')
            saved = step
        if last or interrupted:
            break
        if step % cfg.eval_interval == 0 or saved == step:
            mark, marked = step, time.perf_counter()

        optim.set_step(optimizer, step, lr)
        loss, norm, taken = train_step(wrapped, optimizer, scaler, splits['train'], step, cfg, run)
        skipped = 0 if taken else skipped + 1
        if not taken:
            what = f'loss is {float(loss):.4g} and gradient norm {float(norm):.4g}'
            if skipped > cfg.skip_nonfinite:
                stop(what)
            say(f'iter {step}: {what}: skipped')
            record(skipped=what, tokens=(step + 1) * tokens_per_step)
        elif step % cfg.log_interval == 0:
            loss = run.sum(loss)[0] / run.world_size
            now = time.perf_counter()
            seconds = (now - marked) / (step + 1 - mark)
            mark, marked = step + 1, now
            speed = tokens_per_step / seconds
            mfu = dict(mfu=round(speed * flops_per_token / run.peak_flops, 4)) if run.peak_flops else {}
            record(loss=loss, grad_norm=float(norm), tokens=(step + 1) * tokens_per_step, tokens_per_s=round(speed), **mfu)
            say(f'iter {step}: loss {loss:.4f}, time {seconds * 1000:.2f}ms, {speed:,.0f} tokens/s' + (f", mfu {mfu['mfu']:.1%}" if mfu else ''))
            bar.set_postfix(loss=f'{loss:.3f}', refresh=False)
        step += 1
        bar.update()

    bar.close()
    if log:
        log.close()
    if interrupted:
        number = interrupt.signal or signal.SIGTERM   # on a rank that got none itself
        say(f'stopped by {signal.Signals(number).name} at iteration {step}, saved in {ckpt}; go on with --init_from=resume')
        sys.exit(128 + number)
    if run.main:
        finish(model, tokenizer, cfg, run, best_val_loss)


def finish(model, tokenizer, cfg, run, best_val_loss):
    """Say what there is now, show a sample, and how to get more."""
    print(f'done: best val loss {best_val_loss:.4f}; {cfg.out_dir} holds ckpt.pt (resume from it), best.pt (best weights) and log.jsonl')
    if tokenizer is not None and cfg.sample_tokens:
        model.eval()
        with run.autocast():
            ids = model.generate(torch.tensor([[tokenizer.start_id]], device=run.device), cfg.sample_tokens,
                                 sampling.Sampler(temperature=0.8, top_k=200, seeds=[cfg.seed]), tokenizer.n_vocab)
        print(f'a sample:\n---------------\n{tokenizer.decode(ids[0, 1:].tolist())}\n---------------')
    print(f'more samples: python sample.py --out_dir={cfg.out_dir}')


def start_wandb(cfg):
    try:
        import wandb
    except ImportError as e:
        raise configurator.ConfigError('wandb_log=True needs wandb; pip install wandb, or use --wandb_log=False') from e
    wandb.init(project=cfg.wandb_project, name=cfg.wandb_run_name, config=configurator.plain(cfg))
    return wandb


if __name__ == '__main__':
    configurator.run(main, TrainConfig, ERRORS)
