"""Copies of a run's log.jsonl for tools that draw it: Weights & Biases and TensorBoard, both optional packages."""

import os
import textwrap
from dataclasses import asdict

from gradus.errors import UserError, one_line, warn


def start(cfg, first_step):
    """The mirrors that the settings ask for; the first record will be of step `first_step`. Raises UserError."""
    mirrors = []
    if cfg.tensorboard_log:
        mirrors.append(TensorBoard(cfg.out_dir, first_step))
    if cfg.wandb_log:
        mirrors.append(Wandb(cfg))
    return mirrors


class Wandb:
    """A run of Weights & Biases with these settings. Raises UserError if the package is missing, or cannot start."""

    def __init__(self, cfg):
        try:
            import wandb
        except ImportError as e:
            raise UserError('wandb_log=True needs wandb; pip install wandb, or use --wandb_log=False') from e
        self.wandb = wandb
        try:
            wandb.init(project=cfg.wandb_project, name=cfg.wandb_run_name, config=asdict(cfg))
        except Exception as e:                        # not logged in, no network: its errors have no class in common
            raise UserError(f'wandb_log=True: {one_line(e) or type(e).__name__}; use --wandb_log=False') from e

    def log(self, record, step):
        self.wandb.log(record, step=step)

    def close(self):
        self.wandb.finish()


class TensorBoard:
    """
    Event files in out_dir/tensorboard: numbers are scalars, texts are texts, {'a': {'b': 1}} is called a/b. Where
    TensorBoard already shows a step from `first_step` on, it drops that. Raises UserError if the package is missing.
    """

    def __init__(self, out_dir, first_step=0):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as e:
            raise UserError('tensorboard_log=True needs tensorboard; pip install tensorboard, or use '
                            '--tensorboard_log=False') from e
        self.make_writer = SummaryWriter
        self.folder = os.path.join(out_dir, 'tensorboard')
        self.first_step = first_step
        self.writer = None
        self.broken = False

    def log(self, record, step):
        """A disk that is full, or a folder that was deleted, ends this copy, not the run."""
        if self.broken:
            return
        try:
            if self.writer is None:                   # not earlier: an old run has been moved out of the folder by now
                self.writer = self.make_writer(self.folder, purge_step=self.first_step)
            self._add(record, step)
            self.writer.flush()
        except OSError as e:
            self.broken = True
            warn(f'{self.folder}: could not be written ({one_line(e)}); the run goes on without it')

    def _add(self, record, step, prefix=''):
        for name, value in record.items():
            if isinstance(value, dict):
                self._add(value, step, f'{prefix}{name}/')
            elif isinstance(value, str):              # shown as Markdown, in which indented lines stay as they are
                self.writer.add_text(prefix + name, textwrap.indent(value, '    ', lambda line: True), step)
            elif name != 'iter':
                self.writer.add_scalar(prefix + name, value, step)

    def close(self):
        if self.writer and not self.broken:
            self.writer.close()
