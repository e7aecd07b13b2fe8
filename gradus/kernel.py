"""
The functions of the .cpp files in this folder, compiled for this processor at their first use; the user's cache folder
keeps the result. Each returns None where it cannot help: without a C++ compiler, in a program for torch.compile, or for
tensors other than contiguous float32 on the CPU. Then the caller computes the same with PyTorch.

The compiler is the command in the environment variable CXX, else c++. `CXX= python sample.py ...` does without.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import subprocess
import tempfile
from functools import lru_cache

import torch
import torch.nn as nn

HERE = os.path.dirname(os.path.abspath(__file__))
CACHE = os.path.join(os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache'), 'gradus')

# Each file with its own options. kernel.cpp rounds as PyTorch does: no product and sum in one (contract).
SOURCES = {
    'kernel.cpp': ['-ffp-contract=off'],
    'heads.cpp': ['-ffp-contract=fast'],
    'attention.cpp': ['-ffp-contract=fast'],
    'linear.cpp': ['-ffp-contract=fast'],
}
HEADERS = ['vector.h']

# All instructions of this processor.
COMPILE = ['-O3', '-std=c++17', '-fno-math-errno', '-fno-trapping-math', '-fPIC']
# The objects are linked without an OpenMP library. They find the one that PyTorch has loaded, and share its threads.
LINK = ['-shared']
if platform.system() == 'Darwin':
    COMPILE += ['-mcpu=native' if platform.machine() == 'arm64' else '-march=native', '-Xclang', '-fopenmp']
    LINK += ['-undefined', 'dynamic_lookup']
else:
    COMPILE += ['-march=native', '-fopenmp']


# ---------------------------------------------------------------------------- the file

def run(*arguments):
    """Run the compiler; what it writes to stdout. Raises OSError, ValueError (CXX) or SubprocessError."""
    command = shlex.split(os.environ.get('CXX', 'c++'))
    if not command:
        raise FileNotFoundError('CXX is empty')
    return subprocess.run([*command, *arguments], stdin=subprocess.DEVNULL, capture_output=True, check=True,
                          timeout=120).stdout


def key():
    """What the compiled file depends on: the sources, the options, the compiler and this processor's instructions."""
    source = b''
    for name in [*SOURCES, *HEADERS]:
        with open(os.path.join(HERE, name), 'rb') as f:
            source += f.read()
    macros = run(*COMPILE, '-dM', '-E', '-x', 'c++', os.devnull)      # such as __VERSION__ and __AVX512VNNI__
    return digest(source + macros + repr((SOURCES, COMPILE, LINK)).encode())


def digest(content):
    return hashlib.sha256(content).hexdigest()[:16]


def find(prefix):
    """The path of the compiled file, whose name is the prefix and its own digest; None if there is none, or damaged."""
    for name in os.listdir(CACHE):
        if name.startswith(prefix):
            path = os.path.join(CACHE, name)
            with open(path, 'rb') as f:
                if name == f'{prefix}{digest(f.read())}.so':
                    return path
    return None


def build(prefix):
    """Compile; returns the path. Several processes may do so at once: each renames a complete file of its own."""
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        objects = []
        for name, options in SOURCES.items():
            objects.append(os.path.join(folder, f'{name}.o'))
            run(*COMPILE, *options, '-c', os.path.join(HERE, name), '-o', objects[-1])
        library = os.path.join(folder, 'kernel.so')
        run(*LINK, *objects, '-o', library)
        with open(library, 'rb') as f:
            path = os.path.join(CACHE, f'{prefix}{digest(f.read())}.so')
        os.replace(library, path)
    return path


@lru_cache(maxsize=1)
def load():
    """The library that they become; None where it cannot be compiled, kept or loaded."""
    try:
        prefix = f'kernel-{key()}-'
        os.makedirs(CACHE, exist_ok=True)
        library = ctypes.CDLL(find(prefix) or build(prefix))
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    library.attention.argtypes = [pointer] * 5 + [size] * 8 + [ctypes.c_float, ctypes.c_uint64]
    library.attention_backward.argtypes = [pointer] * 9 + [size] * 8 + [ctypes.c_float, ctypes.c_uint64]
    library.dropout.argtypes = [pointer] * 2 + [size] * 2 + [ctypes.c_float, ctypes.c_uint64]
    library.int8_linear.argtypes = [pointer] * 6 + [size] * 3
    library.attend.argtypes = [pointer] * 8 + [size] * 6 + [ctypes.c_float]
    library.linear.argtypes = [pointer] * 4 + [size] * 3
    library.rms_norm.argtypes = [pointer] * 3 + [size] * 3 + [ctypes.c_float]
    library.rms_norm_backward.argtypes = [pointer] * 5 + [size] * 4 + [ctypes.c_float]
    library.split_heads.argtypes = [pointer] * 8 + [size] * 6 + [ctypes.c_float]
    library.split_heads_backward.argtypes = [pointer] * 11 + [size] * 7 + [ctypes.c_float]
    library.swiglu.argtypes = [pointer] * 3 + [size] * 2
    library.swiglu_backward.argtypes = [pointer] * 5 + [size] * 2
    return library


# ---------------------------------------------------------------------------- its functions

MAX_ROWS = 16                                         # with more, PyTorch's product of matrices is faster
NUMBERS = torch.float32, torch.bfloat16               # what T in kernel.cpp can be


def ready(*tensors, contiguous=True, dtype=torch.float32):
    """Is the library there, and are all of the tensors what it can read?"""
    if torch.compiler.is_compiling() or dtype not in NUMBERS:
        return False
    for t in tensors:
        if t.dtype != dtype or not t.is_cpu or contiguous and not t.is_contiguous():
            return False
    return load() is not None


def bits(x):
    """How many bits each number of x has, which says what T is."""
    return 8 * x.element_size()


def pointers(*tensors):
    return [None if t is None else t.data_ptr() for t in tensors]


def pack(weight):
    """W (out, in) as `linear` reads it: (out / 16, in, 16), filled up with zeros."""
    n_out, n_in = weight.shape
    return nn.functional.pad(weight, (0, 0, 0, -n_out % 16)).view(-1, 16, n_in).mT.contiguous()


def linear(x, packed, bias, n_out):
    """y = x W^T + b. x (..., in), packed: pack(W), bias (out,) or None. Returns y (..., out)."""
    n_in = packed.size(1)
    if not ready(x, packed) or x.size(-1) != n_in:
        return None
    y = x.new_empty(*x.shape[:-1], n_out)
    load().linear(*pointers(x, packed, bias, y), x.numel() // n_in, n_in, n_out)
    return y


def int8_linear(x, weight, scale, row_sum, bias):
    """
    y = x W^T + b. x (..., in); weight (out, in) int8, whose row j is to be multiplied by scale[j] and has the sum
    row_sum[j], int32; bias (out,) or None. Returns y (..., out).
    """
    n_out, n_in = weight.shape
    n = x.numel() // n_in
    floats = (x, scale) if bias is None else (x, scale, bias)
    if n > MAX_ROWS or n_in > 2 ** 16 or not ready(*floats):          # beyond 2^16, a sum may exceed 32 bits
        return None
    if weight.dtype != torch.int8 or row_sum.dtype != torch.int32 or not weight.is_contiguous() or x.size(-1) != n_in:
        return None
    y = x.new_empty(*x.shape[:-1], n_out)
    load().int8_linear(*pointers(x, weight, scale, row_sum, bias, y), n, n_in, n_out)
    return y


def attend(heads, norms, eps, angles, keys, values, length):
    """
    Attention of one new token in each of B texts. heads (B, H + 2 G, D): its queries, keys and values, which may be
    changed; norms: weights (D,) of the RMSNorm of queries and of keys, with eps, or (); angles: cos and sin (1, D / 2),
    which rotate queries and keys, or (); keys, values (B, G, S, D): a cache, whose row length - 1 gets those of the new
    token, which sees the first `length` rows. Returns (B, H, D).
    """
    B, G, S, D = keys.shape
    H = heads.size(1) - 2 * G
    if not ready(heads, keys, values, *norms, *angles) or not 0 < length <= S or D % 2:
        return None
    if heads.shape != (B, H + 2 * G, D) or values.shape != keys.shape or H % G:
        return None
    if any(w.numel() != D for w in norms) or any(a.numel() != D // 2 for a in angles):
        return None
    q_norm, k_norm = norms or (None, None)
    cos, sin = angles or (None, None)
    y = heads.new_empty(B, H, D)
    load().attend(*pointers(heads, q_norm, k_norm, cos, sin, keys, values, y), B, H, G, D, S, length, eps)
    return y


def rms_norm(x, weight, eps, dtype=torch.float32):
    """y = weight x / sqrt(mean of x^2 + eps), the mean over the last dimension of x (..., C). dtype: of y."""
    C = weight.numel()
    if not ready(x, weight) or x.size(-1) != C:
        return None
    y = torch.empty_like(x, dtype=dtype)
    load().rms_norm(*pointers(x, weight, y), bits(y), x.numel() // C, C, eps)
    return y
