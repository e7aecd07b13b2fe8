"""
Settings: a dataclass, changed by Python files, changed by --key=value.

    python train.py config/a.py config/b.py --key=value ...

Arguments are applied from left to right; later ones win. A config file is plain Python that assigns to the names of
the settings. It runs in a namespace that already holds every current value, so `lr_decay_iters = max_iters` and
`min_lr = learning_rate / 10` mean what they say. Other names are the file's own business (helpers, or keys of another
script) and can then be set on the command line too; one that looks like a misspelled setting gets a warning.

Whatever is wrong is reported in one line, as a UserError: key, value, what was expected, what to do.
"""

import ast
import dataclasses
import difflib
import inspect
import math
import os
import pickle
import re
import reprlib
import sys
import time
import traceback
import types
import typing
from contextlib import nullcontext

import numpy as np
import torch

from gradus.errors import UserError, exit_on_error, one_line, warn

TRUE = ('true', 'True', '1')
FALSE = ('false', 'False', '0')


def launch(main, cls, argv=None, lower=''):
    """
    Read the settings and call main(cfg): the last line of every script. User errors end in one line; `lower` says which
    settings need less memory.
    """
    script = sys.modules[cls.__module__]
    with exit_on_error(lower):
        main(load(cls, sys.argv[1:] if argv is None else argv, script))


def load(cls, argv, script=None):
    """A `cls` made of its defaults, the config files and the --key=value arguments in argv. Raises UserError."""
    if '--help' in argv or '-h' in argv:
        print(help_text(cls, script))
        sys.exit(0)
    settings = _Settings(cls, script)
    for arg in _join_values(argv, settings.types):
        if arg.startswith('-'):
            settings.set_argument(arg)
        else:
            settings.run_file(arg)
    return cls(**settings.values)


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
        self.values = {f.name: f.default for f in dataclasses.fields(cls)}
        self.introduced = {}                          # names that config files added
        self.namespace = dict(os=os, time=time, math=math, pickle=pickle, np=np, torch=torch, nullcontext=nullcontext,
                              sys=sys, __name__='__main__', __file__=getattr(script, '__file__', None))
        self.preloaded = {*self.namespace, '__builtins__'}

    def run_file(self, path):
        """Run a config file and take over what it assigned."""
        self.namespace.update(self.values)
        _execute(path, self.namespace)
        for name, value in self.namespace.items():
            if name in self.values:
                self.values[name] = _convert(value, self.types[name], f'{path}: {name}')
            elif name not in self.preloaded and not name.startswith('_'):
                plain = isinstance(value, (bool, int, float, str))
                if plain and name not in self.introduced:
                    _warn_near_miss(path, name, self.values)
                self.introduced[name] = value

    def set_argument(self, arg):
        """Apply one --key=value."""
        key, equals, text = arg.removeprefix('--').partition('=')
        if not equals or not arg.startswith('--'):
            raise UserError(f'{arg}: expected --key=value, or the path of a config file')
        if key in self.values:
            self.values[key] = _parse(text, self.types[key], arg)
        elif key in self.introduced:                  # keep its type, if it is a plain one
            kind = type(self.introduced[key])
            hint = kind if kind in (bool, int, float, str) else None
            self.introduced[key] = self.namespace[key] = _parse(text, hint, arg)
        else:
            suggestion = _did_you_mean(key, [*self.values, *self.introduced])
            raise UserError(f'--{key}: unknown key{suggestion}; --help lists all')


def _execute(path, namespace):
    """Run the config file `path` in `namespace`. Raises UserError with file and line number if anything goes wrong."""
    try:
        with open(path, 'rb') as f:
            source = f.read().decode('utf-8-sig')
        code = compile(source, path, 'exec')
    except FileNotFoundError as e:
        raise UserError(f'{path}: no such config file; expected a Python file like config/quickstart.py, '
                        'or --key=value') from e
    except SyntaxError as e:
        raise UserError(f'{path}:{e.lineno}: {e.msg}: {(e.text or "").strip()}') from e
    except (OSError, ValueError, MemoryError, RecursionError) as e:
        raise UserError(f'{path}: cannot be read as a Python file: {one_line(e)}') from e
    try:
        exec(code, namespace)
    except Exception as e:
        lines = [frame.lineno for frame in traceback.extract_tb(e.__traceback__) if frame.filename == path]
        raise UserError(f'{path}:{lines[-1]}: {type(e).__name__}: {one_line(e)}') from e


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
        value = ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        value = text
    return value if hint is None else _convert(value, hint, arg)


def _convert(value, hint, where):
    """`value` as one of the types of `hint`, widened where nothing is lost; otherwise a UserError naming `where`."""
    kinds = _types_of(hint)
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, os.PathLike) or (isinstance(value, torch.device) and str in kinds):
        value = str(value)
    if type(value) in kinds:
        return value
    if bool in kinds and type(value) is int and value in (0, 1):
        return bool(value)
    if float in kinds and type(value) is int and abs(value) <= sys.float_info.max:
        return float(value)
    if int in kinds and type(value) is float and value.is_integer():
        return int(value)
    names = ' or '.join('None' if k is types.NoneType else k.__name__ for k in kinds)
    raise UserError(f'{where}: expected {names}, found {reprlib.repr(value)}')


def _types_of(hint):
    """The types that a field's annotation allows: int | None -> (int, NoneType)."""
    return typing.get_args(hint) or (hint,)


def _warn_near_miss(path, name, fields):
    suggestion = _did_you_mean(name, fields, cutoff=0.85)
    if suggestion:
        warn(f'{path}: {name} is not a setting of this script{suggestion}')


def _did_you_mean(name, known, cutoff=0.6):
    close = difflib.get_close_matches(name, known, n=1, cutoff=cutoff)
    return f'; did you mean {close[0]}?' if close else ''


def check_range(cfg, **ranges):
    """check_range(cfg, dropout=(0, 1)): UserError unless low <= value <= high; None is no limit, and a good value."""
    for key, (low, high) in ranges.items():
        value = getattr(cfg, key)
        if value is None:
            continue
        high_enough = low is None or value >= low
        low_enough = high is None or value <= high
        if not (high_enough and low_enough) or abs(value) == math.inf:
            limits = f'at least {low}' if high is None else f'between {low} and {high}'
            raise UserError(f'{key}={value}: expected {limits}')


def check_choice(cfg, **choices):
    """check_choice(cfg, dtype=('auto', 'float32')): UserError unless the value is among the choices."""
    for key, allowed in choices.items():
        value = getattr(cfg, key)
        if value not in allowed:
            names = [str(choice) for choice in allowed]
            suggestion = _did_you_mean(str(value), names)
            raise UserError(f"{key}={value!r}: expected one of {', '.join(names)}{suggestion}")


def check_out_dir(out_dir):
    """UserError unless out_dir can be a folder that belongs to one run alone, and so may be moved aside."""
    here = os.path.realpath('.')
    out = os.path.realpath(out_dir.replace('\0', ''))
    if not out_dir or '\0' in out_dir or here == out or here.startswith(out + os.sep):
        raise UserError(f'out_dir={out_dir!r}: expected a folder of its own for the run')


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
