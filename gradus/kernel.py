"""
int8.cpp, compiled for this processor at its first use; the user's cache folder keeps it for later processes. Without a
C++ compiler there is no kernel, and whoever would call it computes the same with PyTorch.

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

SOURCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'int8.cpp')
CACHE = os.path.join(os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache'), 'gradus')

# All instructions of this processor, but the same rounding as PyTorch: no product and sum in one (contract).
COMPILE = ['-O3', '-ffp-contract=off', '-fno-math-errno', '-fno-trapping-math', '-fPIC']
# The object is linked without an OpenMP library. It finds the one that PyTorch has loaded, and so shares its threads.
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
    """What the compiled file depends on: the source, the options, the compiler and this processor's instructions."""
    with open(SOURCE, 'rb') as f:
        source = f.read()
    macros = run(*COMPILE, '-dM', '-E', '-x', 'c++', os.devnull)      # such as __VERSION__ and __AVX512VNNI__
    return digest(source + macros + repr((COMPILE, LINK)).encode())


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
        made = [os.path.join(folder, name) for name in ('int8.o', 'int8.so')]
        run(*COMPILE, '-c', SOURCE, '-o', made[0])
        run(*LINK, made[0], '-o', made[1])
        with open(made[1], 'rb') as f:
            path = os.path.join(CACHE, f'{prefix}{digest(f.read())}.so')
        os.replace(made[1], path)
    return path


@lru_cache(maxsize=1)
def load():
    """The function int8_linear of int8.cpp; None where it cannot be compiled, kept or loaded."""
    try:
        prefix = f'int8-{key()}-'
        os.makedirs(CACHE, exist_ok=True)
        function = ctypes.CDLL(find(prefix) or build(prefix)).int8_linear
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    function.argtypes = [ctypes.c_void_p] * 7 + [ctypes.c_int64] * 3
    function.restype = None
    return function


# ---------------------------------------------------------------------------- the function

MAX_ROWS = 16                                         # with more, PyTorch's product of matrices is faster


def int8_linear(x, weight, scale, bias):
    """
    y = x W^T + b. x (n, in) float32; weight (out, in) int8, whose row j is to be multiplied by scale[j]; bias (out,) or
    None. Returns y (n, out), or None if the kernel is not there, or not made for these tensors.
    """
    n, n_in = x.shape
    floats = [x, scale] if bias is None else [x, scale, bias]
    function = load() if n <= MAX_ROWS and n_in <= 2 ** 16 else None            # beyond, a sum may exceed 32 bits
    if function is None or weight.dtype != torch.int8 or not weight.is_contiguous():
        return None
    if not all(t.dtype == torch.float32 and t.is_cpu and t.is_contiguous() for t in floats):
        return None
    q = torch.empty(n, n_in, dtype=torch.int16)
    scales = torch.empty(n)
    y = torch.empty(n, len(weight))
    function(x.data_ptr(), weight.data_ptr(), scale.data_ptr(), None if bias is None else bias.data_ptr(),
             q.data_ptr(), scales.data_ptr(), y.data_ptr(), n, n_in, len(weight))
    return y
