"""
Settings: a dataclass, changed by Python files, changed by --key=value.

    python train.py config/a.py config/b.py --key=value ...

Arguments count from left to right, later wins. A config file is plain Python that assigns to the
names of the settings; it runs in one namespace that already holds every current value, so that
`lr_decay_iters = max_iters` or `min_lr = learning_rate / 10` mean what they say. Names that are no
setting are the file's own business (helpers, or keys of another script) and may then be set on the
command line too; one that looks like a misspelt setting gets a warning.

What is wrong is told in one line, as a ConfigError: key, value, what was expected, what to do.
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


class ConfigError(ValueError):
    """A setting that cannot be used, in one line."""


def run(main, cls, errors=(), argv=None):
    """
    Read the settings and call main(cfg): the last line of every script. Errors of the user's (ConfigError
    and the types in `errors`) end the program with one line on stderr and exit code 2, without traceback.
    """
    script = sys.modules[cls.__module__]
    for stream in (sys.stdout, sys.stderr):           # any text on any terminal, Windows' too
        if hasattr(stream, 'reconfigure'):
            stream.reconfigure(encoding='utf-8', errors='replace')
    try:
        main(load(cls, sys.argv[1:] if argv is None else argv, script))
    except (ConfigError, *errors) as e:
        if os.environ.get('RANK', '0') == '0':
            print(f'error: {_one_line(e)}', file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:                           # whoever read the output has enough: | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except KeyboardInterrupt:                         # Ctrl-C
        print('interrupted', file=sys.stderr)
        sys.exit(130)


def load(cls, argv, script=None):
    """A `cls` made of its defaults, the config files and the --key=value arguments in argv. Raises ConfigError."""
    fields = {f.name: f for f in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    values = {name: f.default for name, f in fields.items()}
    introduced = {}                                   # names that config files added
    namespace = dict(os=os, time=time, math=math, pickle=pickle, np=np, torch=torch, nullcontext=nullcontext,
                     sys=sys, __name__='__main__', __file__=getattr(script, '__file__', None))
    preloaded = set(namespace) | {'__builtins__'}
    if '--help' in argv or '-h' in argv:
        print(help_text(cls, script))
        sys.exit(0)
    argv = list(argv)
    while argv:
        arg = argv.pop(0)
        if arg.startswith('--') and arg[2:] in fields:
            hint, after = hints[arg[2:]], argv[0] if argv else '--'
            if hint is bool and after.lower() not in ('true', 'false', '1', '0') or bool in _kinds(hint) and after.startswith('--'):
                arg = f'{arg}=True'                   # --flag
            elif not after.startswith('--'):
                arg = f'{arg}={argv.pop(0)}'          # --key value
        if not arg.startswith('-'):
            namespace.update(values)
            _execute(arg, namespace)
            for name, value in namespace.items():
                if name in fields:
                    values[name] = _fit(value, hints[name], f'{arg}: {name}')
                elif name not in preloaded and not name.startswith('_'):
                    if name not in introduced and isinstance(value, (bool, int, float, str)):
                        _warn_near_miss(arg, name, fields)
                    introduced[name] = value
            continue
        key, equals, text = arg.removeprefix('--').partition('=')
        if not equals or not arg.startswith('--'):
            raise ConfigError(f'{arg}: expected --key=value, or the path of a config file')
        if key in fields:
            values[key] = _parse(text, hints[key], arg)
        elif key in introduced:                       # keep its type, as far as it has a plain one
            kind = type(introduced[key])
            introduced[key] = namespace[key] = _parse(text, kind if kind in (bool, int, float, str) else None, arg)
        else:
            raise ConfigError(f'--{key}: unknown key{_did_you_mean(key, [*fields, *introduced])}; --help lists all')
    return cls(**values)


def _execute(path, namespace):
    """Run the config file `path` in `namespace`, turning whatever goes wrong into one line with file and line number."""
    try:
        with open(path, encoding='utf-8-sig') as f:
            code = compile(f.read(), path, 'exec')
    except FileNotFoundError as e:
        raise ConfigError(f'{path}: no such config file; expected a Python file like config/quickstart.py, or --key=value') from e
    except SyntaxError as e:
        raise ConfigError(f'{path}:{e.lineno}: {e.msg}: {(e.text or "").strip()}') from e
    except (OSError, ValueError, MemoryError, RecursionError) as e:
        raise ConfigError(f'{path}: cannot be read as a Python file: {_one_line(e)}') from e
    try:
        exec(code, namespace)
    except Exception as e:
        lines = [frame.lineno for frame in traceback.extract_tb(e.__traceback__) if frame.filename == path]
        raise ConfigError(f'{path}:{lines[-1]}: {type(e).__name__}: {_one_line(e)}') from e


def _parse(text, hint, arg):
    """The value of a command-line argument: `text` as the type `hint` (None: whatever it looks like)."""
    kinds = _kinds(hint)
    if types.NoneType in kinds and text in ('None', 'none'):
        return None
    if bool in kinds and text in ('true', 'True', '1', 'false', 'False', '0'):
        return text in ('true', 'True', '1')
    if str in kinds:
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        value = text
    return value if hint is None else _fit(value, hint, arg)


def _fit(value, hint, where):
    """`value` as one of the types of `hint`, widened where nothing is lost; else ConfigError naming `where`."""
    kinds = _kinds(hint)
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
    raise ConfigError(f'{where}: expected {names}, found {reprlib.repr(value)}')


def _kinds(hint):
    """The types that a field's annotation allows: int | None -> (int, NoneType)."""
    return typing.get_args(hint) or (hint,)


def _warn_near_miss(path, name, fields):
    hint = _did_you_mean(name, fields, cutoff=0.85)
    if hint and os.environ.get('RANK', '0') == '0':
        print(f'warning: {path}: {name} is no setting of this script{hint}', file=sys.stderr)


def _did_you_mean(name, known, cutoff=0.6):
    close = difflib.get_close_matches(name, known, n=1, cutoff=cutoff)
    return f'; did you mean {close[0]}?' if close else ''


def _one_line(error):
    return ' '.join(str(error).split())


def in_range(cfg, **ranges):
    """in_range(cfg, dropout=(0, 1)): ConfigError unless low <= value <= high; None is no limit, and passes as a value."""
    for key, (low, high) in ranges.items():
        value = getattr(cfg, key)
        if value is None:
            continue
        if not ((low is None or value >= low) and (high is None or value <= high)) or abs(value) == math.inf:
            limits = f'at least {low}' if high is None else f'between {low} and {high}'
            raise ConfigError(f'{key}={value}: expected {limits}')


def one_of(cfg, **choices):
    """one_of(cfg, dtype=('auto', 'float32')): ConfigError unless the value is among the choices."""
    for key, allowed in choices.items():
        value = getattr(cfg, key)
        if value not in allowed:
            raise ConfigError(f"{key}={value!r}: expected one of {', '.join(map(str, allowed))}{_did_you_mean(str(value), map(str, allowed))}")


def own_folder(out_dir):
    """ConfigError unless out_dir can be a folder that belongs to one run alone, so that it may be moved aside."""
    here, out = os.path.realpath('.'), os.path.realpath(out_dir.replace('\0', ''))
    if not out_dir or '\0' in out_dir or here == out or here.startswith(out + os.sep):
        raise ConfigError(f'out_dir={out_dir!r}: expected a folder of its own for the run')


def plain(cfg):
    """The settings as a dictionary of str, int, float, bool and None: what a checkpoint keeps."""
    return dataclasses.asdict(cfg)


def help_text(cls, script=None):
    """Every key with its default and the comment behind it in the source of `cls`."""
    lines = [inspect.cleandoc((script and script.__doc__) or cls.__doc__ or ''), '']
    for line in inspect.getsource(cls).splitlines()[1:]:
        setting = re.match(r"\s+(\w+): [\w| ]+ = (.+?)\s+# (.*)", line) or re.match(r"\s+(\w+): [\w| ]+ = (.+?)()$", line)
        if setting:
            lines.append('  --{:<30} {}'.format('='.join(setting.groups()[:2]), setting[3]).rstrip())
        elif re.match(r'\s+# ', line):
            lines.append(line.strip())
    return '\n'.join(lines)
