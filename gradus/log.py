"""What a run records: log.jsonl, and the lines on the terminal."""

import errno
import json
import math
import os

from gradus.errors import UserError
from gradus.files import DISK_FULL, atomic_write, make_folder, require_file


class Log:
    """log.jsonl: one JSON object a line, on the disk as soon as it is written; each of the mirrors gets a copy."""

    def __init__(self, out_dir, iter_num=0, evaluated=False, mirrors=()):
        """
        Continue out_dir's log at `iter_num`: what the run will write again is dropped, which is everything from that
        iteration on, and half lines. If the evaluation due at `iter_num` is done (`evaluated`), its line stays.
        out_dir None: write nothing, for processes other than the main one.
        """
        self.mirrors = mirrors
        self.first_iter = iter_num                    # of this process
        self.file = None
        if out_dir is None:
            return
        self.path = os.path.join(out_dir, 'log.jsonl')
        try:
            if os.path.lexists(self.path):
                require_file(self.path)
                with open(self.path, encoding='utf-8', errors='replace') as f:
                    kept = [line for line in f if self._stays(line, iter_num, evaluated)]
                with atomic_write(self.path) as f:
                    f.write(''.join(kept).encode())
            self.file = open(self.path, 'a+b', buffering=0)
        except OSError as e:
            raise UserError(f'{self.path}: cannot be written ({e.strerror})') from e

    @staticmethod
    def _stays(line, iter_num, evaluated):
        try:
            record = json.loads(line)
            before = record['iter'] < iter_num
            due_evaluation = record['iter'] == iter_num and evaluated and 'val_loss' in record
        except (ValueError, KeyError, TypeError, RecursionError):
            return False
        return line.endswith('\n') and (before or due_evaluation)

    def write(self, **record):
        """Append one line. Raises UserError if that fails."""
        if self.file is None:
            return
        line = (json.dumps(record) + '\n').encode()
        try:
            if not os.path.exists(self.path):
                self._restore()
            if self.file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as e:
            advice = 'make room, then ' if e.errno in DISK_FULL else ''
            raise UserError(f'{self.path}: could not be written ({e.strerror}); {advice}continue with '
                            '--init_from=resume') from e
        for mirror in self.mirrors:
            mirror.log(record, step=record['iter'])

    def _restore(self):
        """Somebody deleted the folder: write everything once more. The open file still holds it."""
        self.file.seek(0)
        lines = self.file.read()
        make_folder(os.path.dirname(self.path), 'the run cannot go on')
        self.file.close()
        self.file = open(self.path, 'a+b', buffering=0)
        self.file.write(lines)

    def close(self):
        if self.file is not None:
            self.file.close()
        for mirror in self.mirrors:
            mirror.close()


def read(folder):
    """
    The records in the log of the run in `folder`, as dictionaries, in the order in which they were written. Lines that
    are no record, such as half a line that a kill left behind, are left out. Raises UserError if there is none.
    """
    path = os.path.join(folder, 'log.jsonl')
    if not os.path.isdir(folder):
        raise UserError(f'{folder}: no such run; expected the folder of one, such as out-quickstart')
    if not os.path.exists(path):
        raise UserError(f'{folder}: no log.jsonl in it; expected the folder of a run of train.py or mlp_mnist.py')
    require_file(path)
    records = []
    with open(path, encoding='utf-8', errors='replace') as f:
        for line in f:
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(record, dict) and type(record.get('iter')) is int:
                records.append(record)
    if not records:
        raise UserError(f'{path}: no records in it; expected a JSON object a line, each with its iter')
    return records


def is_number(value):
    """Is this a finite number, of a size that can be computed with and drawn? JSON has no limits."""
    return type(value) in (int, float) and abs(value) < 1e100


def numbers(records, x, y):
    """The pairs (x, y) of the records that have both as finite numbers."""
    return [(r[x], r[y]) for r in records if is_number(r.get(x)) and is_number(r.get(y))]


def sizes_line(model, worker, dataset, tokens_per_iter):
    """What is about to be trained, where, and on how much."""
    dtype = str(worker.dtype).removeprefix('torch.')
    compiled = ', compiled' if worker.compile else ''
    return (f'{model.num_params() / 1e6:.2f}M parameters, {worker.device.type}, {dtype}{compiled}; '
            f'{tokens_per_iter:,} tokens per iteration, {len(dataset.train):,} tokens to train on')


def losses_line(iter_num, losses):
    """An evaluation, in nanoGPT's words and more."""
    perplexity = math.exp(min(losses['val_loss'], 700))
    line = (f"step {iter_num}: train loss {losses['train_loss']:.4f}, val loss {losses['val_loss']:.4f}, "
            f'perplexity {perplexity:.2f}')
    if 'val_bits_per_byte' in losses:
        line += f", {losses['val_bits_per_byte']:.4f} bits per byte"
    return line


def step_line(iter_num, loss, seconds, speed):
    """A training step, in nanoGPT's words and more; speed: tokens_per_s, and mfu if known."""
    line = f"iter {iter_num}: loss {loss:.4f}, time {seconds * 1000:.2f}ms, {speed['tokens_per_s']:,} tokens/s"
    if 'mfu' in speed:
        line += f", mfu {speed['mfu']:.1%}"
    return line


def done_line(out_dir, best_val_loss):
    """The end of a run, and where its results are."""
    best = 'best.pt (best weights) and ' if os.path.exists(os.path.join(out_dir, 'best.pt')) else 'and '
    return f'done: best val loss {best_val_loss:.4f}; {out_dir} holds ckpt.pt (to resume), {best}log.jsonl'


def diverged(what, it, lr, ckpt_path, saved_at):
    """The error that ends a run whose loss or gradient is not finite."""
    good = f'the last good checkpoint is {ckpt_path}, of iteration {saved_at}'
    last_save = good if saved_at else 'no checkpoint has been saved yet'
    return UserError(f'iteration {it}: {what} at learning rate {lr:.3g}; {last_save}; lower --learning_rate, '
                     'or skip such steps with --skip_nonfinite=N')
