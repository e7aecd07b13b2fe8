"""
Settings: a dataclass, changed by Python files, changed by --key=value.

    python train.py config/a.py config/b.py --key=value ...

Arguments are applied from left to right; later ones win. A config file is plain Python that assigns to the names of
the settings. It runs in a namespace that already holds every current value, so `lr_decay_iters = max_iters` and
`min_lr = learning_rate / 10` mean what they say. Other names are the file's own business (helpers, or keys of another
script) and can then be set on the command line too; one that looks like a misspelled setting gets a warning. Files of
nanoGPT's users and its forks are welcome: what they may mean differently from us is said in a note.

Whatever is wrong is reported in one line, as a UserError: key, value, what was expected, what to do.
"""

import ast
import dataclasses
import difflib
import gc
import inspect
import math
import os
import pickle
import re
import sys
import time
import traceback
import types
import typing
import warnings
from contextlib import nullcontext

import numpy as np
import torch

from gradus.errors import UserError, exit_on_error, is_main_process, one_line, show, warn
from gradus.files import require_file

TRUE = ('true', 'True', '1')
FALSE = ('false', 'False', '0')
PLAIN = (bool, int, float, str)
MAX_COUNT = 2 ** 53                                   # floats can count no further; nothing is that many
MAX_INT = 2 ** 64

# The settings of nanoGPT's train.py and sample.py. A config of its users means these; its forks have others besides.
NANOGPT_KEYS = frozenset("""
    out_dir eval_interval log_interval eval_iters eval_only always_save_checkpoint init_from
    wandb_log wandb_project wandb_run_name dataset gradient_accumulation_steps batch_size block_size
    n_layer n_head n_embd dropout bias learning_rate max_iters weight_decay beta1 beta2 grad_clip
    decay_lr warmup_iters lr_decay_iters min_lr backend device dtype compile
    start num_samples max_new_tokens temperature top_k seed
""".split())
SUCCESSORS = ('train.py', 'sample.py')                # the scripts that take their place here


def launch(main, cls, argv=None, lower='', names=''):
    """
    Read the settings and call main(cfg): the last line of every script. User errors end in one line; `lower` says which
    settings need less memory. names: see `load`.
    """
    script = sys.modules[cls.__module__]
    gc.freeze()                                       # no garbage in what was imported: looking for it delays exit
    with exit_on_error(lower):
        main(load(cls, sys.argv[1:] if argv is None else argv, script, names))


def load(cls, argv, script=None, names=''):
    """
    A `cls` made of its defaults, the config files and the --key=value arguments in argv. Raises UserError.
    Two attributes are no settings: `argv`, and `from_files`, a help for `explain`.
    names: if given, plain arguments are no config files, but become the tuple in this attribute (folders of runs, say).
    """
    if '--help' in argv or '-h' in argv:
        print(help_text(cls, script))
        sys.exit(0)
    settings = _Settings(cls, script)
    plain = []
    for arg in _join_values(argv, settings.types):
        if arg.startswith('-'):
            settings.set_argument(arg)
        elif names:
            plain.append(arg)
        else:
            settings.run_file(arg)
    cfg = cls(**settings.values)
    if names:
        setattr(cfg, names, tuple(plain))
    cfg.from_files = settings.from_files
    cfg.argv = tuple(argv)
    return cfg


def _join_values(argv, types):
    """argv with `--flag` written as `--flag=True` and `--key value` as `--key=value`, one at a time."""
    argv = list(argv)
    while argv:
        arg = argv.pop(0)
        if arg.startswith('--') and arg[2:] in types:
            hint = types[arg[2:]]
            following = argv[0] if argv else '--'
            has_value = not following.startswith('--')
            if hint is bool:
                has_value = following.lower() in ('true', 'false', '1', '0')
            if bool in _types_of(hint) and not has_value:
                arg = f'{arg}=True'
            elif has_value:
                arg = f'{arg}={argv.pop(0)}'
        yield arg


class _Settings:
    """The current values, while config files and arguments are applied one after the other."""

    def __init__(self, cls, script):
        self.types = typing.get_type_hints(cls)
        self.defaults = {f.name: f.default for f in dataclasses.fields(cls)}
        self.values = dict(self.defaults)
        self.introduced = {}                          # names that config files added
        self.script = getattr(script, '__file__', None)
        self.namespace = dict(os=os, time=time, math=math, pickle=pickle, np=np, torch=torch, nullcontext=nullcontext,
                              sys=sys, __name__='__main__', __file__=self.script)
        self.preloaded = {*self.namespace, '__builtins__'}
        is_successor = os.path.basename(self.script or '') in SUCCESSORS
        self.ours = set(self.values) - NANOGPT_KEYS if is_successor else set()
        self.from_files = {}                          # those of ours that a file has changed, and what to say of them

    def run_file(self, path):
        """Run a config file and take over what it assigned."""
        tree, code = _read(path)
        self.namespace.update(self.values)
        _execute(code, path, self.namespace)

        changed = set()                               # settings
        unknown = set()                               # names that seem to be settings of another script
        for name, value in list(self.namespace.items()):
            if name in self.values:
                value = self.convert(name, value, path)
                if value != self.values[name]:
                    changed.add(name)
                self.values[name] = value
            elif isinstance(name, str) and name not in self.preloaded and not name.startswith('_'):
                is_new = type(value) in PLAIN and name not in self.introduced
                if is_new and not _warn_near_miss(path, name, self.values):
                    unknown.add(name)
                self.introduced[name] = value

        for name in changed & self.ours:
            self.from_files[name] = self.not_nanogpts(name)
        self.note_foreign_file(path, changed & self.ours, unknown & _only_assigned(tree))

    def convert(self, name, value, path):
        """The value that the file `path` gave to a setting, as the type of the setting."""
        if name not in self.ours:
            return convert(value, self.types[name], f'{path}: {name}', round_down=True)
        if value is None:                             # forks say so for "off"
            return self.defaults[name]
        try:
            return convert(value, self.types[name], f'{path}: {name}', round_down=True)
        except UserError as e:
            raise UserError(f'{e}; {self.not_nanogpts(name)}') from e

    def not_nanogpts(self, name):
        return f'{name} is a setting of this {os.path.basename(self.script)}, which nanoGPT does not have'

    def note_foreign_file(self, path, ours, unknown):
        """A file that sets unknown names was written for another script, where those of ours may mean other things."""
        unknown = unknown - NANOGPT_KEYS
        if ours and unknown:
            unknown -= _declared_beside(self.script)
        if ours and unknown and is_main_process():
            text = (f'note: {path} seems to be written for another {os.path.basename(self.script)}, as it sets '
                    f'{_listed(unknown)}; it also sets {_listed(ours)}, which nanoGPT does not have: '
                    'make sure that they mean here what they meant there')
            print(one_line(text, limit=None), file=sys.stderr)

    def set_argument(self, arg):
        """Apply one --key=value."""
        key, equals, text = arg.removeprefix('--').partition('=')
        if not equals or not arg.startswith('--'):
            raise UserError(f'{_short(arg)}: expected --key=value, or the path of a config file')
        if key in self.values:
            self.values[key] = _parse(text, self.types[key], arg)
            self.from_files.pop(key, None)
        elif key in self.introduced:                  # keep its type, if it is a plain one
            kind = type(self.introduced[key])
            hint = kind if kind in PLAIN else None
            self.introduced[key] = self.namespace[key] = _parse(text, hint, arg)
        else:
            suggestion = _did_you_mean(key, [*self.values, *self.introduced])
            raise UserError(f'--{_short(key)}: unknown key{suggestion}; --help lists all')


# ---------------------------------------------------------------------------- config files

def _read(path):
    """The config file `path` as a syntax tree and compiled. Raises UserError."""
    if not os.path.lexists(path):
        raise UserError(f'{path}: no such config file; expected a Python file like config/quickstart.py, '
                        'or --key=value')
    require_file(path)
    try:
        with open(path, 'rb') as f:
            source = f.read().decode('utf-8-sig')
        tree = ast.parse(source, path)
        return tree, compile(tree, path, 'exec')
    except SyntaxError as e:
        line = f':{e.lineno}' if e.lineno else ''
        raise UserError(f'{path}{line}: {e.msg}: {_short((e.text or "").strip())}') from e
    except (OSError, ValueError, MemoryError, RecursionError) as e:
        raise UserError(f'{path}: cannot be read as a Python file: {one_line(e)}') from e


def _execute(code, path, namespace):
    """Run the code of the config file `path`. Raises UserError with its line number if anything goes wrong."""
    try:
        exec(code, namespace)
    except KeyboardInterrupt:
        raise
    except BaseException as e:                        # also SystemExit: a file may not end the program silently
        lines = [frame.lineno for frame in traceback.extract_tb(e.__traceback__) if frame.filename == path]
        try:
            message = one_line(e)
        except Exception:                             # a class of the file's own, which cannot be printed
            message = ''
        raise UserError(f'{path}:{lines[-1]}: {type(e).__name__}: {message}') from e


def _only_assigned(tree):
    """The names that a config file assigns and never uses: settings, not helpers."""
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    used = {node.id for node in names if not isinstance(node.ctx, ast.Store)}
    return {node.id for node in names} - used


def _declared_beside(script):
    """The settings that train.py and sample.py declare: read from their text, as no script may import another one."""
    names = set()
    for file in SUCCESSORS:
        path = os.path.join(os.path.dirname(script), file)
        if os.path.isfile(path):
            with open(path, encoding='utf-8') as f:
                names.update(re.findall(r'^    (\w+): [\w| ]+ = ', f.read(), flags=re.MULTILINE))
    return names


def _listed(names):
    """A few names in words: a, b and c."""
    names = sorted(names)
    if len(names) > 6:
        names = [*names[:5], f'{len(names) - 5} more']
    return ' and '.join(filter(None, [', '.join(names[:-1]), names[-1]]))


def _warn_near_miss(path, name, fields):
    """Warn of a name that is almost a setting. Returns whether it is."""
    suggestion = _did_you_mean(name, fields, cutoff=0.86)
    if suggestion:
        warn(f'{path}: {name} is not a setting of this script{suggestion}')
    return bool(suggestion)


def _did_you_mean(name, known, cutoff=0.6):
    close = difflib.get_close_matches(name, known, n=1, cutoff=cutoff)
    return f'; did you mean {close[0]}?' if close else ''


def explain(cfg, text):
    """
    The error `text`, which calls settings key=value, with a reason at its end if one of them is a setting that nanoGPT
    does not have and a config file gave it this value: the file may mean another setting of that name.
    """
    reasons = getattr(cfg, 'from_files', {})
    named = [name for name in re.findall(r'(\w+)=', text) if name in reasons]
    return f'{text}; {reasons[named[0]]}' if named else text


# ---------------------------------------------------------------------------- values

def _parse(text, hint, arg):
    """The value of a command-line argument: `text` as the type `hint` (None: whatever it looks like)."""
    kinds = _types_of(hint)
    if types.NoneType in kinds and text in ('None', 'none'):
        return None
    if bool in kinds and text in TRUE + FALSE:
        return text in TRUE
    if str in kinds:
        return text
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')           # about the syntax of the text
            value = ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        value = text
    return value if hint is None else convert(value, hint, _short(arg))


def convert(value, hint, where, round_down=False):
    """
    `value` as one of the types of `hint`, widened where nothing is lost; otherwise a UserError naming `where`.
    round_down: a fraction becomes an integer, as in warmup_iters = 0.03 * max_iters.
    """
    kinds = _types_of(hint)
    value = _plain(value, kinds)
    too_large = type(value) in (int, float) and MAX_INT < abs(value) < math.inf
    if type(value) in kinds and not (too_large and type(value) is int):
        return value
    if bool in kinds and type(value) is int and value in (0, 1):
        return bool(value)
    if float in kinds and type(value) is int and not too_large:
        return float(value)
    if int in kinds and type(value) is float and abs(value) <= MAX_INT and (round_down or value.is_integer()):
        return math.floor(value)

    names = ' or '.join('None' if k is types.NoneType else k.__name__ for k in kinds)
    limit = ' up to 2^64' if too_large else ''
    raise UserError(f'{where}: expected {names}{limit}, found {show(value)}')


def _plain(value, kinds):
    """A number of numpy, a path or a device as the plain value that it stands for."""
    try:
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, os.PathLike):
            return os.fspath(value)
        if isinstance(value, torch.device) and str in kinds:
            return str(value)
    except Exception:                                 # an object of the file's own, which is none of these
        pass
    return value


def _short(text):
    """An argument for a message."""
    text = one_line(text, limit=None)
    return text if len(text) <= 200 else text[:100] + '...'


def _types_of(hint):
    """The types that a field's annotation allows: int | None -> (int, NoneType)."""
    return typing.get_args(hint) or (hint,)


# ---------------------------------------------------------------------------- checks

def check_range(cfg, **ranges):
    """
    check_range(cfg, dropout=(0, 1)): UserError unless low <= value <= high; None is no limit, and a good value. Without
    a limit, nothing may be infinite, and no integer larger than MAX_COUNT.
    """
    for key, (low, high) in ranges.items():
        value = getattr(cfg, key)
        if value is None:
            continue
        if high is None and type(value) is int and value > MAX_COUNT:
            high = MAX_COUNT
        high_enough = low is None or value >= low
        low_enough = high is None or value <= high
        if not (high_enough and low_enough) or abs(value) == math.inf:
            limits = f'at least {low}' if high is None else f'between {low} and {high}'
            raise UserError(explain(cfg, f'{key}={show(value)}: expected {limits}'))


def check_choice(cfg, **choices):
    """check_choice(cfg, dtype=('auto', 'float32')): UserError unless the value is among the choices."""
    for key, allowed in choices.items():
        value = getattr(cfg, key)
        if value not in allowed:
            names = [str(choice) for choice in allowed]
            suggestion = _did_you_mean(str(value), names)
            raise UserError(explain(cfg, f"{key}={show(value)}: expected one of {', '.join(names)}{suggestion}"))


def check_out_dir(out_dir):
    """UserError unless out_dir can be a folder that belongs to one run alone, and so may be moved aside."""
    problem = _problem_of_out_dir(out_dir)
    if problem:
        raise UserError(f'out_dir={show(out_dir)}: expected a folder of its own for the run; {problem}')


def _problem_of_out_dir(out_dir):
    try:
        os.fsencode(out_dir)
    except ValueError:
        return 'this cannot be the name of a folder'
    if not out_dir or '\0' in out_dir:
        return 'this cannot be the name of a folder'

    out = os.path.realpath(out_dir)
    for name, folder in (('working', '.'), ('home', os.path.expanduser('~'))):
        if os.path.join(os.path.realpath(folder), '').startswith(os.path.join(out, '')):
            return f'this is the {name} folder, or one above it'
    if os.path.exists(out) and not os.path.isdir(out):
        return 'this is a file'
    for name in ('train.bin', 'val.bin', 'prepare.py', '.git'):
        if os.path.lexists(os.path.join(out, name)):
            return f'this one holds {name}'
    return None


def help_text(cls, script=None):
    """Every key with its default and the comment behind it in the source of `cls`."""
    docstring = (script and script.__doc__) or cls.__doc__ or ''
    lines = [inspect.cleandoc(docstring), '']
    for line in inspect.getsource(cls).splitlines()[1:]:
        setting = (re.match(r"\s+(\w+): [\w| ]+ = (.+?)\s+# (.*)", line)
                   or re.match(r"\s+(\w+): [\w| ]+ = (.+?)()$", line))
        if setting:
            key, default, comment = setting.groups()
            lines.append(f'  --{f"{key}={default}":<30} {comment}'.rstrip())
        elif re.match(r'\s+# ', line):
            lines.append(line.strip())
    return '\n'.join(lines)
