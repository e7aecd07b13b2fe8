"""
The folder of a run: ckpt.pt, best.pt, log.jsonl. One run at a time writes to it, and files of others stay as they are.
"""

import os
import re

from gradus import checkpoint
from gradus.errors import UserError
from gradus.lock import Lock

FILES = (r'(ckpt|best|step-\d+)\.pt(\.prev|\.damaged)?|log\.jsonl|model\.safetensors|'
         r'(weights|misread|activations)\.png')                                 # which plot.py digits draws
OURS = re.compile(rf'{FILES}|tensorboard')
UNFINISHED = re.compile(rf'({FILES})(\.\d+)?\.tmp')                             # half a file that a kill left behind


class RunFolder:
    """
    with RunFolder('out') as folder:       locked for other runs until the end of the block, even if that is a kill
        folder.start(resume=False)
        folder.save('ckpt.pt', state)

    write=False: do nothing, for processes that do not write. Raises UserError if another run is using the folder.
    """

    def __init__(self, path, write=True):
        self.path = path
        self.write = write
        self.created = False
        self.lock = None

    def __enter__(self):
        if self.write:
            self.created = not os.path.isdir(self.path)
            self._lock()
        return self

    def __exit__(self, *error):
        if self.lock:
            self.lock.release()
        if self.created and os.path.isdir(self.path) and not os.listdir(self.path):
            os.rmdir(self.path)                       # the run ended before it wrote anything

    def start(self, resume=False):
        """Get ready to write: a run that is in the folder is moved aside, unless it is resumed. Raises UserError."""
        if not self.write:
            return
        try:
            if not resume:
                _move_aside(self.path)
            for name in os.listdir(self.path):
                if UNFINISHED.fullmatch(name):
                    os.remove(os.path.join(self.path, name))
        except OSError as e:
            raise UserError(f'out_dir={self.path}: cannot be written ({e.strerror}); give another one') from e

    def save(self, name, state):
        """Write a checkpoint. If somebody deleted the folder, it is made again. Raises UserError."""
        if not self.lock.is_held():
            self.lock.release()
            self._lock()
        checkpoint.save(os.path.join(self.path, name), state)

    def _lock(self):
        try:
            os.makedirs(self.path, exist_ok=True)
            lock = Lock(self.path, 'another run is writing to it')
            lock.acquire()
            self.lock = lock
        except OSError as e:
            raise UserError(f'out_dir={self.path}: cannot be written ({e.strerror}); give another one') from e


def _move_aside(folder):
    """Move the files of a run to <folder>-1, -2, ..., the checkpoint last. Logs without checkpoints are renamed."""
    folder = os.path.normpath(folder)
    if os.path.islink(folder):                        # runs stay where the link leads to
        folder = os.path.realpath(folder)
    ours = [name for name in os.listdir(folder) if OURS.fullmatch(name)]
    if not any(checkpoint.exists(os.path.join(folder, name)) for name in ('ckpt.pt', 'best.pt')):
        for stem, end in (('log', '.jsonl'), ('tensorboard', '')):
            if stem + end in ours:
                os.rename(os.path.join(folder, stem + end), _free_name(os.path.join(folder, stem), end))
        return

    target = _free_name(folder)
    os.mkdir(target)
    for name in sorted(ours, key=lambda name: name.startswith('ckpt.pt')):
        os.rename(os.path.join(folder, name), os.path.join(target, name))
    print(f'the run that was in {folder} is now in {target}')


def _free_name(stem, end=''):
    n = 1
    while os.path.lexists(f'{stem}-{n}{end}'):
        n += 1
    return f'{stem}-{n}{end}'
