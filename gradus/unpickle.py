"""
Read a pickle of plain data, and run nothing.

A pickle is a program for a small stack machine. Python's own machine calls whatever function the file names. This one
knows the instructions that build plain values, and few names, each of which stands for a harmless piece of our own:

    collections.OrderedDict, defaultdict      become a dict
    numpy arrays and scalars                  are made from their bytes, once shape, type and size have been checked
    _codecs.encode, bytes                     how protocol 2 of Python 3 spells bytes

Nothing is imported, and no file makes it work or allocate out of proportion to its own size.
"""

import math
import pickletools
import re

import numpy as np

from gradus.errors import one_line, show

PLAIN = (int, float, str, bytes, bool, type(None), np.ndarray)
FACTORIES = ('int', 'float', 'str', 'list', 'dict', 'set')          # what a defaultdict may make; it makes nothing here
NAMES = {
    'collections.OrderedDict': 'ordered',
    'collections.defaultdict': 'default',
    '_codecs.encode': 'encode',
    'numpy.dtype': 'dtype',
    'numpy.ndarray': 'ndarray',
    **{f'{module}.bytes': 'bytes' for module in ('builtins', '__builtin__')},
    **{f'{module}.{name}': 'factory' for module in ('builtins', '__builtin__') for name in FACTORIES},
    **{f'numpy.{core}.multiarray.scalar': 'scalar' for core in ('core', '_core')},
    **{f'numpy.{core}.multiarray._reconstruct': 'array' for core in ('core', '_core')},
}
NUMBERS = re.compile(r'[iu][1248]|f[248]|b1')
STRINGS = re.compile(r'[US]\d{1,4}')


class Refused(ValueError):
    """Why a pickle is not read, in one line."""


class _Name:
    """A class or function that the pickle named; `what` says which of ours stands for it."""

    def __init__(self, name, what):
        self.name = name
        self.what = what


class _Unbuilt:
    """A numpy array or dtype whose BUILD instruction is still to come, and where the memo holds it."""

    def __init__(self, what, text=''):
        self.what = what
        self.text = text
        self.memo_keys = []


def load(content):
    """
    The value pickled in `content` (bytes): of int, float, str, bytes, bool, None, list, tuple, dict, and numpy arrays
    of numbers, which are read-only. Strings of Python 2 become str, as latin-1. Raises Refused.

    Parts may be shared, or contain themselves: check the parts that you use, and compare and print no others.
    """
    try:
        value = _Machine(content).run()
        _check_plain(value)
    except Refused:
        raise
    except (ValueError, TypeError, IndexError, KeyError, OverflowError, UnicodeError) as e:
        raise Refused(f'not a complete pickle ({type(e).__name__}: {one_line(e, limit=80)})') from e
    return value


def _check_plain(value):
    """Raise Refused if anything but plain data is in `value`. Each part is looked at once, however often it is used."""
    seen = set()
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, PLAIN) or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, dict):
            waiting += value.values()                 # keys were checked when they came in
        elif isinstance(value, (list, tuple)):
            waiting += value
        elif isinstance(value, _Name):
            raise Refused(f'it holds {show(value.name)}')
        else:
            raise Refused('it holds an unfinished numpy array or a dtype')


class _Machine:
    """The stack machine. `outer` holds the stacks below each MARK, `budget` how many items may still be copied."""

    def __init__(self, content):
        self.content = content
        self.budget = len(content)
        self.stack = []
        self.outer = []
        self.memo = {}

    def run(self):
        for opcode, argument, _ in pickletools.genops(self.content):
            name = opcode.name
            if name in CONSTANTS:
                self.stack.append(CONSTANTS[name]())
            elif name in VALUES:
                self.stack.append(argument)
            elif name in INSTRUCTIONS:
                INSTRUCTIONS[name](self, argument)
            elif name not in IGNORED:
                raise Refused(f'it uses the instruction {name}')
        return self.stack.pop()                       # genops ends after STOP

    def spend(self, n):
        """What is copied n items at a time must come from the file: references to one part could repeat it forever."""
        self.budget -= n
        if self.budget < 0:
            raise Refused('it would grow far beyond the size of the file')

    # stack and memo

    def mark(self, _):
        self.outer.append(self.stack)
        self.stack = []

    def items(self):
        """What was pushed since the last MARK."""
        items = self.stack
        self.stack = self.outer.pop()
        return items

    def pop(self, _):
        if self.stack:
            self.stack.pop()
        else:
            self.items()

    def pop_mark(self, _):
        self.items()

    def dup(self, _):
        self.stack.append(self.stack[-1])

    def get(self, key):
        self.stack.append(self.memo[key])

    def put(self, key):
        value = self.stack[-1]
        if isinstance(value, _Unbuilt):
            value.memo_keys.append(key)
        self.memo[key] = value

    def memoize(self, _):
        self.put(len(self.memo))

    # containers

    def tuple(self, _):
        items = self.items()
        self.stack.append(tuple(items))

    def short_tuple(self, n):
        start = len(self.stack) - n
        if start < 0:
            raise IndexError('too few items for a tuple')
        items = tuple(self.stack[start:])
        del self.stack[start:]
        self.stack.append(items)

    def list(self, _):
        items = self.items()
        self.stack.append(items)

    def dict(self, _):
        items = self.items()
        self.stack.append({})
        self.set(items)

    def append(self, _):
        self.extend([self.stack.pop()])

    def appends(self, _):
        self.extend(self.items())

    def extend(self, items):
        if type(self.stack[-1]) is not list:
            raise TypeError('items for what is not a list')
        self.stack[-1].extend(items)

    def set_item(self, _):
        value = self.stack.pop()
        key = self.stack.pop()
        self.set([key, value])

    def set_items(self, _):
        self.set(self.items())

    def set(self, items):
        if type(self.stack[-1]) is not dict or len(items) % 2:
            raise TypeError('keys and values for what is not a dictionary')
        for key, value in zip(items[::2], items[1::2]):
            self.check_key(key)
            self.stack[-1][key] = value

    def check_key(self, key):
        """A key is a small value, or a tuple of some: hashing another could take forever."""
        if type(key) is tuple:
            self.spend(len(key))
        for part in key if type(key) is tuple else (key,):
            if type(part) not in (str, bytes, bool, float, type(None)):
                if type(part) is not int or part.bit_length() > 60:
                    raise Refused(f'it holds a dictionary with the key {show(key)}')

    # names, and what stands for them

    def name(self, argument):
        module, _, name = argument.partition(' ')
        full = f'{module}.{name}'
        if full not in NAMES:
            raise Refused(f'it asks for {show(full)[1:-1]}')
        self.stack.append(_Name(full, NAMES[full]))

    def name_on_stack(self, _):
        name = self.stack.pop()
        module = self.stack.pop()
        if type(name) is not str or type(module) is not str:
            raise TypeError('a name that is not a string')
        self.name(f'{module} {name}')

    def reduce(self, _):
        arguments = self.stack.pop()
        called = self.stack.pop()
        if not isinstance(called, _Name) or type(arguments) is not tuple:
            raise Refused(f'it calls {show(called)}')
        function = CALLS.get(called.what)
        if function is None:
            raise Refused(f'it calls {show(called.name)}')
        self.stack.append(function(self, *arguments))

    def ordered(self, pairs=()):
        """Python 2 gives the items as a list of pairs; Python 3 sets them afterwards."""
        if type(pairs) not in (list, tuple):
            raise TypeError('an OrderedDict of no list')
        self.spend(len(pairs))
        made = {}
        for key, value in pairs:
            self.check_key(key)
            made[key] = value
        return made

    def default(self, factory=None):
        if not (factory is None or isinstance(factory, _Name) and factory.what in ('factory', 'bytes')):
            raise Refused(f'it holds a defaultdict of {show(factory)}')
        return {}

    def encode(self, text, encoding):
        if type(text) is not str or encoding not in ('latin1', 'latin-1'):
            raise Refused(f'it encodes {show(text)} as {show(encoding)}')
        self.spend(len(text))
        return text.encode('latin-1')

    def no_bytes(self):
        return b''

    # numpy

    def dtype(self, text, align=False, copy=True):
        if type(text) is not str or not (NUMBERS.fullmatch(text) or STRINGS.fullmatch(text)):
            raise Refused(f'it holds a numpy type {show(text)}; expected numbers or strings')
        return _Unbuilt('dtype', text)

    def array(self, *_):
        """numpy makes an empty array first; everything about it comes with BUILD."""
        return _Unbuilt('array')

    def scalar(self, dtype, raw):
        if not isinstance(dtype, np.dtype):
            raise Refused('it holds a numpy scalar without a simple type')
        self.spend(dtype.itemsize)
        raw = self.checked(raw, dtype, ())
        if dtype.kind == 'U':                         # numpy takes numbers that are no characters
            return raw.decode('utf-32-be' if dtype.str[0] == '>' else 'utf-32-le', 'surrogatepass').rstrip('\0')
        return np.frombuffer(raw, dtype)[0].item()

    def build(self, _):
        state = self.stack.pop()
        unbuilt = self.stack[-1]
        if not isinstance(unbuilt, _Unbuilt) or type(state) is not tuple:
            raise Refused(f'it sets the state of {show(unbuilt)}')
        built = self.built_dtype(unbuilt.text, *state) if unbuilt.what == 'dtype' else self.built_array(*state)
        self.stack[-1] = built
        for key in unbuilt.memo_keys:
            self.memo[key] = built

    def built_dtype(self, text, version, order, subtype=None, names=None, fields=None, *_):
        if order not in ('<', '>', '|', '=') or (subtype, names, fields) != (None, None, None):
            raise Refused(f'it holds a numpy type {show(text)} with fields or a strange byte order')
        return np.dtype(order + text)

    def built_array(self, version, shape, dtype, by_columns, raw):
        if not isinstance(dtype, np.dtype) or dtype.kind not in 'iufb':
            raise Refused('it holds a numpy array of other things than numbers')
        limit = len(self.content)
        if type(shape) is not tuple or len(shape) > 32 or not all(type(n) is int and 0 <= n <= limit for n in shape):
            raise Refused(f'it holds a numpy array of shape {show(shape)}')
        raw = self.checked(raw, dtype, shape)
        values = np.frombuffer(raw, dtype) if raw else np.zeros(0, dtype)
        return values.reshape(shape, order='F' if by_columns else 'C')

    def checked(self, raw, dtype, shape):
        """The bytes of an array of that type and shape; Python 2 stored them as a string."""
        size = math.prod(shape) * dtype.itemsize
        if type(raw) not in (bytes, str) or len(raw) != size:
            found = f'{len(raw):,} bytes' if type(raw) in (bytes, str) else show(raw)
            raise Refused(f'it holds a numpy array of shape {show(shape)} and type {dtype}, with {found}')
        if type(raw) is str:
            self.spend(size)
            raw = raw.encode('latin-1')
        if dtype.kind == 'b' and raw.strip(b'\0\1'):
            raise Refused('it holds truth values other than 0 and 1')
        return raw


CONSTANTS = {
    'NONE': lambda: None,
    'NEWTRUE': lambda: True,
    'NEWFALSE': lambda: False,
    'EMPTY_TUPLE': tuple,
    'EMPTY_LIST': list,
    'EMPTY_DICT': dict,
}
VALUES = {'INT', 'BININT', 'BININT1', 'BININT2', 'LONG', 'LONG1', 'LONG4', 'FLOAT', 'BINFLOAT',
          'STRING', 'BINSTRING', 'SHORT_BINSTRING', 'UNICODE', 'SHORT_BINUNICODE', 'BINUNICODE', 'BINUNICODE8',
          'SHORT_BINBYTES', 'BINBYTES', 'BINBYTES8'}
IGNORED = {'PROTO', 'FRAME', 'STOP'}
INSTRUCTIONS = {
    'MARK': _Machine.mark,
    'POP': _Machine.pop,
    'POP_MARK': _Machine.pop_mark,
    'DUP': _Machine.dup,
    **dict.fromkeys(('GET', 'BINGET', 'LONG_BINGET'), _Machine.get),
    **dict.fromkeys(('PUT', 'BINPUT', 'LONG_BINPUT'), _Machine.put),
    'MEMOIZE': _Machine.memoize,
    'TUPLE': _Machine.tuple,
    'TUPLE1': lambda machine, _: machine.short_tuple(1),
    'TUPLE2': lambda machine, _: machine.short_tuple(2),
    'TUPLE3': lambda machine, _: machine.short_tuple(3),
    'LIST': _Machine.list,
    'DICT': _Machine.dict,
    'APPEND': _Machine.append,
    'APPENDS': _Machine.appends,
    'SETITEM': _Machine.set_item,
    'SETITEMS': _Machine.set_items,
    **dict.fromkeys(('GLOBAL', 'INST'), _Machine.name),
    'STACK_GLOBAL': _Machine.name_on_stack,
    'REDUCE': _Machine.reduce,
    'BUILD': _Machine.build,
}
CALLS = {
    'ordered': _Machine.ordered,
    'default': _Machine.default,
    'bytes': _Machine.no_bytes,
    'encode': _Machine.encode,
    'dtype': _Machine.dtype,
    'array': _Machine.array,
    'scalar': _Machine.scalar,
}
