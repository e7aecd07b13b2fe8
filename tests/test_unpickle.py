"""The unpickler of plain data: it reads what people pickle, and whatever else a file holds does nothing."""

import collections
import fractions
import os
import pickle
import struct
import time

import numpy as np
import pytest

from gradus import unpickle
from gradus.errors import show

PROTOCOLS = range(5)                                  # 5 has a spelling of its own for arrays


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def refused(content):
    """The reason for which `content` is refused: one line."""
    with pytest.raises(unpickle.Refused) as e:
        unpickle.load(content)
    assert str(e.value).isprintable()
    assert len(str(e.value)) < 300
    return str(e.value)


# ---------------------------------------------------------------------------- what is read

SHARED = ['shared']
PLAIN = [
    None, True, False, 0, -1, 255, 65536, -2 ** 31, 2 ** 31, 10 ** 40, 0.1, float('inf'),
    '', 'a', 'ä北🙂', '\ud800', '\n\t\\', 'x' * 70_000, b'', b'\xff\x00\n', b'x' * 70_000,
    [], (), {}, (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [[], [()]], list(range(3000)),
    {'a': 1, b'b': 2, 3: 4, None: 5, (6, 'x'): 7}, {i: str(i) for i in range(3000)}, [SHARED, SHARED],
]


@pytest.mark.parametrize('protocol', [*PROTOCOLS, 5])
@pytest.mark.parametrize('value', PLAIN, ids=lambda value: show(value)[:20])
def test_plain_values_come_back(value, protocol):
    found = unpickle.load(pickle.dumps(value, protocol))
    assert found == value
    assert repr(found) == repr(value)                 # True is not 1


@pytest.mark.parametrize('protocol', PROTOCOLS)
@pytest.mark.parametrize('value, expected', [
    (np.int64(65), 65),
    (np.uint8(7), 7),
    (np.float32(0.5), 0.5),
    (np.bool_(True), True),
    (np.str_('ä北'), 'ä北'),
    (np.bytes_(b'ab'), b'ab'),
    (np.array(3, '>i2')[()], 3),
    (collections.OrderedDict(b=1, a=[2]), {'b': 1, 'a': [2]}),
    (collections.defaultdict(list, {1: [2]}), {1: [2]}),
    (collections.defaultdict(None, {1: 2}), {1: 2}),
])
def test_what_becomes_plain(value, expected, protocol):
    found = unpickle.load(pickle.dumps(value, protocol))
    assert found == expected
    assert type(found) is type(expected)


def test_a_defaultdict_does_not_grow():
    found = unpickle.load(pickle.dumps(collections.defaultdict(int, {1: 2})))
    with pytest.raises(KeyError):
        found[3]


@pytest.mark.parametrize('protocol', PROTOCOLS)
@pytest.mark.parametrize('array', [
    np.arange(6, dtype='<i8').reshape(2, 3),
    np.arange(6, dtype='>f4').reshape(2, 3).T,
    np.array([[True, False]]),
    np.zeros((0, 3), 'u1'),
    np.array(2.5),
], ids=lambda array: str(array.dtype))
def test_arrays_come_back(array, protocol):
    found = unpickle.load(pickle.dumps([array, array], protocol))
    assert found[0] is found[1]
    assert found[0].dtype == array.dtype
    assert np.array_equal(found[0], array)


# Written by cPickle of Python 2.7.18, with stand-ins for numpy's classes that reduce as numpy 1's do.
FROM_PYTHON_2 = (
    b'\x80\x02cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85q\x03U\x01b\x87Rq\x04(K\x01K'
    b'\x02K\x02\x86q\x05cnumpy\ndtype\nq\x06U\x02f4q\x07K\x00K\x01\x87Rq\x08(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff'
    b'\xff\xffK\x00tq\tb\x89U\x10\x00\x00\x00\x00\x00\x00\x00?\x00\x00\x7f?\x00\x00\x80;tq\nbh\x01h\x02h\x03U\x01b'
    b'\x87Rq\x0b(K\x01K\x02\x85q\x0ch\x06U\x02i8q\rK\x00K\x01\x87Rq\x0eh\tb\x89U\x10\x07\x00\x00\x00\x00\x00\x00\x00'
    b'\x03\x00\x00\x00\x00\x00\x00\x00tq\x0fb\x86.')
DICTIONARIES_OF_PYTHON_2 = (
    b'\x80\x02}q\x01(U\nvocab_sizeq\x02K\x02U\x01occollections\nOrderedDict\nq\x03]q\x04]q\x05(U\x01aK\x01ea\x85Rq'
    b'\x06U\x04itosq\x07}q\x08(K\x00U\x01aK\x01U\x01\xe4uU\x01uX\x02\x00\x00\x00\xc3\xa4U\x01t\x88u.')


def test_pickles_of_python_2():
    x, y = unpickle.load(FROM_PYTHON_2)
    assert (x.dtype, y.dtype) == ('<f4', '<i8')
    assert x.tolist() == [[0, 0.5], [255 / 256, 1 / 256]]
    assert y.tolist() == [7, 3]

    found = unpickle.load(DICTIONARIES_OF_PYTHON_2)
    assert found == {'vocab_size': 2, 'itos': {0: 'a', 1: 'ä'}, 'o': {'a': 1}, 'u': 'ä', 't': True}


def python_2(value):
    """The opcodes, protocol 2, with which Python 2 pickles tuples, arrays, ints and strings."""
    if isinstance(value, tuple):
        return b'(' + b''.join(map(python_2, value)) + b't'
    if isinstance(value, np.ndarray):
        dtype = (b'cnumpy\ndtype\n' + python_2((value.dtype.str[1:], 0, 1)) + b'R'
                 + python_2((3, '<')) [:-1] + b'NNN' + python_2(-1) * 2 + python_2(0) + b'tb')
        start = b'cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n' + python_2((0,)) + python_2('b') + b'tR'
        state = python_2(1) + python_2(value.shape) + dtype + b'\x89' + python_2(value.tobytes())
        return start + b'(' + state + b'tb'
    if isinstance(value, int):
        return b'J' + struct.pack('<i', value)
    raw = value.encode() if isinstance(value, str) else value
    return b'T' + struct.pack('<i', len(raw)) + raw


def test_our_python_2_is_like_the_real_one():
    """The same values as in cPickle's file; test_mnist_data.py writes larger ones in this way."""
    x, y = unpickle.load(FROM_PYTHON_2)
    again = unpickle.load(b'\x80\x02' + python_2((x, y)) + b'.')
    for ours, theirs in zip(again, (x, y)):
        assert ours.dtype == theirs.dtype
        assert np.array_equal(ours, theirs)


def test_a_long_list_of_characters_is_read_soon():
    chars = [chr(i) for i in range(1, 0x1_5000) if not 0xd800 <= i < 0xe000]
    meta = dict(vocab_size=len(chars), itos=dict(enumerate(chars)), stoi={c: i for i, c in enumerate(chars)})
    started = time.perf_counter()
    assert unpickle.load(pickle.dumps(meta)) == meta
    assert time.perf_counter() - started < 10


# ---------------------------------------------------------------------------- what is refused

class Calls:
    """Pickled as a call: Calls(f, *arguments)."""

    def __init__(self, function, *arguments, state=None):
        self.reduced = function, arguments, state

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize('protocol', [*PROTOCOLS, 5])
@pytest.mark.parametrize('value, name', [
    (Calls(os.system, 'touch was_here'), 'system'),
    (Calls(eval, '1'), 'eval'),
    (Calls(getattr, 'a', 'upper'), 'getattr'),
    (Calls(np.load, 'x'), 'numpy'),
    (collections.Counter('aab'), 'collections.Counter'),
    (collections.defaultdict(os.getcwd), 'getcwd'),
    (fractions.Fraction(1, 2), 'fractions.Fraction'),
    (1j, 'complex'),
    (np.datetime64('2020'), 'numpy'),
    (os.getcwd, 'getcwd'),
])
def test_other_names_are_refused_by_name(value, name, protocol):
    assert name in refused(pickle.dumps({'itos': [value]}, protocol))
    assert not os.path.exists('was_here')


def test_the_hostile_pickle_is_hostile():
    """Negative control: an ordinary unpickler runs it."""
    pickle.loads(pickle.dumps(Calls(os.system, 'touch was_here')))
    assert os.path.exists('was_here')


@pytest.mark.parametrize('value', [
    np.array(['a', 'b']),
    np.array([None]),
    np.zeros(2, 'i4,f4'),
    np.zeros(2, 'c8'),
    np.zeros(2, 'M8[s]'),
    np.zeros(2, 'V3'),
    [int],
    {'d': np.dtype('f4')},
    {frozenset(): 1},
    {1, 2},
    bytearray(b'x'),
    {2 ** 61: 1},
    {((1,),): 1},
], ids=lambda value: show(value)[:30])
def test_what_is_not_plain_is_refused(value):
    refused(pickle.dumps(value))


ARRAY = b'cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85C\x01btR(K\x01'
F4 = b'cnumpy\ndtype\n(X\2\0\0\0f4K\0K\1tR(K\3X\1\0\0\0<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb'
SCALAR = b'cnumpy.core.multiarray\nscalar\n'


def test_the_handwritten_array_is_right():
    """Negative control for what follows: only the values that are changed there are wrong."""
    good = ARRAY + b'K\2\x85' + F4 + b'\x89C\x08' + bytes(8) + b'tb.'
    assert unpickle.load(good).tolist() == [0, 0]
    assert unpickle.load(SCALAR + b'(' + F4 + b'C\4' + bytes(4) + b'tR.') == 0


@pytest.mark.parametrize('content', [
    ARRAY + b'K\3\x85' + F4 + b'\x89C\x08' + bytes(8) + b'tb.',               # one number too few
    ARRAY + b'K\1\x85' + F4 + b'\x89C\x08' + bytes(8) + b'tb.',
    ARRAY + b'\x8a\5\0\0\0\0\x10\x85' + F4 + b'\x89C\x08' + bytes(8) + b'tb.',  # 2**36 numbers
    ARRAY + b'\x8a\7\0\0\0\0\0\0\x40K\0\x86' + F4 + b'\x89C\0tb.',            # 2**54 rows of nothing
    ARRAY + b'J\xff\xff\xff\xffJ\xfe\xff\xff\xff\x86' + F4 + b'\x89C\x08' + bytes(8) + b'tb.',   # -1 x -2
    ARRAY + b'(' + b'K\1' * 40 + b't' + F4 + b'\x89C\4' + bytes(4) + b'tb.',
    ARRAY + b'\x88\x85' + F4 + b'\x89C\4' + bytes(4) + b'tb.',                # shape (True,)
    ARRAY + b'K\2' + F4 + b'\x89C\x08' + bytes(8) + b'tb.',
    ARRAY + b'K\1\x85' + F4.replace(b'f4', b'O8') + b'\x89C\x08' + bytes(8) + b'tb.',
    ARRAY + b'K\1\x85' + F4.replace(b'f4', b'b1') + b'\x89C\1\2tb.',          # a bool that is 2
    ARRAY + b'K\2\x85' + F4 + b'\x89](K\0K\0etb.',                            # a list for bytes
    ARRAY + b'K\1\x85X\2\0\0\0f4\x89C\4' + bytes(4) + b'tb.',
    ARRAY[:-3] + b'.',                                                        # never built
    ARRAY[:-3] + b'}b.',
    SCALAR + b'(' + F4 + b'C\5' + bytes(5) + b'tR.',
    SCALAR + b'(' + F4.replace(b'f4', b'U1') + b'C\4\xff\xff\xff\xfftR.',                  # no character
    SCALAR + b'(X\2\0\0\0f4C\4' + bytes(4) + b'tR.',
    b'(K\1K\2o.', b'(ios\nsystem\n.', b'cos\nsystem\n)\x81.', b'cos\nsystem\n.', b'\x8c\2os\x8c\6system\x93.',
    b'K\1K\1\x93.', b'K\1)R.', b'cnumpy\nndarray\n)R.', b'cnumpy\nndarray\n)\x81.', b'cnumpy\nndarray\n}b.',
    b'c_codecs\nencode\nX\1\0\0\0aX\3\0\0\0hex\x86R.', b'cbuiltins\nbytes\nK\1\x85R.', b'cbuiltins\nint\n)R.',
    b'\x82\1.', b'\x83\1\0.', b'\x84\1\0\0\0.',                               # EXT1, EXT2, EXT4
    b'Pos.', b'K\1Q.',                                                        # persistent ids
    b'I' + b'9' * 10 ** 6 + b'\n.', b'L' + b'9' * 10 ** 6 + b'L\n.',
    b'\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.', b'\x96\0\0\0\0\0\x10\0\0.', b'\x8b\xff\xff\xff\x7f.',
    b'K\1r\xff\xff\xff\x7f', b'h\1.', b'2.', b'0.', b'1.', b't.', b'u.', b'e.', b'a.', b's.', b'R.', b'b.', b'l.',
    b'\x85.', b'K\1\x86.', b'K\1\x87.', b'(.', b'.', b'', b'\x80', b'\x80\xff.', b'zzz', bytes(100),
    b'}(K\1u.', b'](K\1u.', b'}(K\1e.', b'K\1K\2a.', b'}]K\1s.', b'}}K\1s.',
], ids=lambda content: content[:40].decode('latin-1').encode('unicode_escape').decode())
def test_hostile_and_damaged_pickles_are_refused(content):
    refused(content)


@pytest.mark.filterwarnings('ignore::DeprecationWarning')        # pickletools' own
def test_every_cut_and_every_changed_byte_ends_in_a_value_or_a_refusal():
    value = [PLAIN[:30], np.arange(4.), np.str_('a'), collections.OrderedDict(a=1), collections.defaultdict(int)]
    for protocol in (0, 2, 4):
        content = pickle.dumps(value[1:], protocol)
        for i in range(len(content)):
            assert refused(content[:i])
            for byte in (0, content[i] ^ 1, content[i] ^ 0x80, ord('('), ord('R'), ord('b')):
                try:
                    unpickle.load(content[:i] + bytes([byte]) + content[i + 1:])
                except unpickle.Refused as e:
                    assert str(e).isprintable()


# ---------------------------------------------------------------------------- what would take forever

def within_a_second(content):
    started = time.perf_counter()
    try:
        return unpickle.load(content)
    finally:
        assert time.perf_counter() - started < 2


HALVES = b')' + b'2\x86' * 60                         # 60 levels of (half, half): DUP, TUPLE2


def test_shared_halves_take_no_time():
    value = within_a_second(HALVES + b'.')
    assert type(value) is tuple
    assert len(show(value)) < 100

    # as a key it would have to be hashed
    assert 'with the key' in refused(b'}' + HALVES + b'K\1s.')


def test_depth_is_no_problem():
    n = 200_000
    value = within_a_second(b']' * n + b'a' * (n - 1) + b'.')
    assert show(value) == '[[[...]]]'
    within_a_second(b')' + b'\x85' * n + b'.')
    assert 'with the key' in refused(b'})' + b'\x85' * n + b'K\1s.')


def test_what_contains_itself():
    value = within_a_second(b']q\1h\1a.')
    assert value[0] is value
    assert len(show(value)) < 100


@pytest.mark.parametrize('part', [
    b'c_codecs\nencode\nq\1' + b'X' + struct.pack('<I', 10 ** 5) + b'a' * 10 ** 5 + b'X\6\0\0\0latin1\x86q\2',
    b'ccollections\nOrderedDict\nq\1](' + b'K\1K\1\x86q\3' + b'h\3' * 10 ** 5 + b'e\x85q\2',
    ARRAY[:-3] + b'0' + SCALAR + b'q\1' + F4.replace(b'f4', b'S9999').replace(b'X\2', b'X\5')
    + b'C\xff' + bytes(255) + b'\x86q\2',
], ids=['encode', 'ordered', 'scalar'])
def test_repeating_one_part_costs_no_memory(part):
    """10,000 calls of a few bytes each, all with the same large argument."""
    refused(part + b'h\1h\2R' * 10_000 + b'.')


def test_arrays_of_one_string_cost_no_memory():
    raw = b'T' + struct.pack('<i', 10 ** 5) + b'a' * 10 ** 5
    array = ARRAY.replace(b'C\1b', b'U\1b') + b'J' + struct.pack('<i', 10 ** 5) + b'\x85' \
        + F4.replace(b'f4', b'i1') + b'\x89' + b'h\7tb'
    one = raw + b'q\7' + array
    assert unpickle.load(one + b'.').shape == (10 ** 5,)
    assert 'grow' in refused(one + array * 1000 + b'.')
