"""
One process or many: which device, which number format, and how processes add up what they know.

Under torchrun every process runs the same script with its own RANK. Each trains on its share of the
batch, DDP averages the gradients, and rank 0 alone prints and writes.
"""

import ctypes
import importlib.util
import os
import signal
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16, 'float16': torch.float16}

# Dense 16-bit tensor-core FLOP/s from the makers' data sheets, by a part of the device's name.
PEAK_FLOPS = {'V100': 125e12, 'A100': 312e12, 'A10G': 70e12, 'L40S': 362e12, 'L4': 121e12, 'H100 PCIe': 756e12, 'H100': 989e12,
              'H200': 989e12, 'B200': 2250e12, 'RTX 3090': 71e12, 'RTX 4090': 165e12}


class DeviceError(ValueError):
    """A device, dtype or number of processes that this machine does not have, in one line."""


def seed_of(*numbers):
    """One seed for torch out of several numbers, (seed, step, rank) say; neighbours give unrelated seeds."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


class Interrupt:
    """
    with Interrupt() as interrupt: the first SIGTERM or SIGINT (Ctrl-C) only sets `interrupt.signal`, so that what is being
    done can be finished and saved; a second one ends the program at once.
    """

    def __enter__(self):
        self.signal, self.before = 0, {}
        for number in (signal.SIGTERM, signal.SIGINT):
            self.before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number, frame):
        self.signal = number
        for each in self.before:
            signal.signal(each, signal.SIG_DFL)

    def __exit__(self, *error):
        for number, handler in self.before.items():
            signal.signal(number, handler)


@dataclass
class Run:
    """Where this process computes, and which of how many it is."""
    device: torch.device
    dtype: torch.dtype          # of the matmuls; weights stay float32
    compile: bool
    rank: int = 0
    world_size: int = 1
    note: str = ''              # what was chosen otherwise than asked, for the log

    @property
    def main(self):
        """Is this the process that prints and writes?"""
        return self.rank == 0

    @property
    def peak_flops(self):
        """What all devices together could compute in a second, in FLOP; 0 where that is not known."""
        if self.device.type != 'cuda' or self.dtype == torch.float32:
            return 0
        name = torch.cuda.get_device_name(self.device)
        return self.world_size * next((flops for part, flops in PEAK_FLOPS.items() if part in name), 0)

    def autocast(self):
        """The context in which a forward pass uses `dtype`."""
        return nullcontext() if self.dtype == torch.float32 else torch.autocast(self.device.type, self.dtype)

    def share(self, n):
        """This rank's part of n windows, as a slice. Raises DeviceError if they cannot be dealt out evenly."""
        if n % self.world_size:
            raise DeviceError(f'{n} sequences a step on {self.world_size} processes: expected batch_size * '
                              'gradient_accumulation_steps to be a multiple of the number of processes')
        each = n // self.world_size
        return slice(self.rank * each, (self.rank + 1) * each)

    def put(self, *tensors):
        """The tensors on this device; on CUDA the copy runs beside the computation."""
        if self.device.type == 'cuda':
            return [t.pin_memory().to(self.device, non_blocking=True) for t in tensors]
        return [t.to(self.device) for t in tensors]

    def sum(self, *values):
        """The values, numbers or tensors, added over all ranks: a float64 list (float32 on MPS)."""
        kind = torch.float32 if self.device.type == 'mps' else torch.float64
        total = torch.stack([torch.as_tensor(v, dtype=kind, device=self.device) for v in values])
        if self.world_size > 1:
            dist.all_reduce(total)
        return total.tolist()

    def machine(self):
        """What a run must find again to go on bit for bit."""
        return dict(torch=str(torch.__version__), device=self.device.type, dtype=str(self.dtype), compile=self.compile,
                    threads=torch.get_num_threads(), world_size=self.world_size)

    def differs(self, machine):
        """What is not as in `machine`, an earlier run's, in words; empty if nothing."""
        return ', '.join(f'{key}={machine[key]} (now {now})' for key, now in self.machine().items() if machine.get(key, now) != now)

    def barrier(self):
        if self.world_size > 1:
            dist.barrier()

    def close(self):
        if self.world_size > 1:
            dist.destroy_process_group()


def start(device='auto', dtype='auto', compile='auto', backend='auto'):
    """
    Join the process group, if torchrun started us, and choose what is 'auto': cuda, else mps, else cpu;
    bfloat16 where a GPU has it; compile on CUDA. Raises DeviceError for what this machine cannot do.
    """
    rank, world = int(os.environ.get('RANK', 0)), int(os.environ.get('WORLD_SIZE', 1))
    if device == 'auto':
        device = 'cuda' if torch.cuda.is_available() else 'mps' if torch.backends.mps.is_available() else 'cpu'
        device = 'cpu' if world > 1 and device == 'mps' else device
    try:
        chosen = torch.device(device)
    except RuntimeError as e:
        raise DeviceError(f'device={device}: expected auto, cpu, mps, cuda or cuda:N') from e
    if chosen.type == 'cuda':
        chosen = _cuda_device(chosen, world)
    elif chosen.type == 'mps' and not torch.backends.mps.is_available():
        raise DeviceError('device=mps: this machine has none; use --device=auto')
    elif chosen.type not in ('cpu', 'mps'):
        raise DeviceError(f'device={device}: expected auto, cpu, mps, cuda or cuda:N')
    if compile is True and chosen.type == 'cpu':
        _find_compiler()
    note = ''
    if dtype == 'auto':
        bf16 = chosen.type == 'cuda' and torch.cuda.is_bf16_supported()
        dtype = 'bfloat16' if bf16 else 'float16' if chosen.type == 'cuda' else 'float32'
    elif dtype == 'float16' and chosen.type != 'cuda':
        dtype, note = 'float32', f'float16 is for CUDA; using float32 on {chosen.type}'
    if world > 1:
        fitting = 'nccl' if chosen.type == 'cuda' else 'gloo'
        if backend == 'nccl' and fitting == 'gloo':
            raise DeviceError(f'backend=nccl on {chosen.type}: expected gloo; leave it at --backend=auto')
        # torch.distributed.nn takes the group for its default arguments when it is imported, as DDP does later on, and so keeps
        # gloo's threads alive until they abort the exiting process. Before there is a group it can take none.
        importlib.import_module('torch.distributed.nn')
        dist.init_process_group(fitting if backend == 'auto' else backend)
    if chosen.type == 'cpu':
        keep_memory()
    if chosen.type == 'cuda':
        torch.cuda.set_device(chosen)
        torch.set_float32_matmul_precision('high')    # TF32 where float32 is left
    if compile == 'auto':                             # Triton, which it needs, is not on every Windows
        compile = chosen.type == 'cuda' and importlib.util.find_spec('triton') is not None
    return Run(chosen, DTYPES[dtype], compile, rank, world, note)


def be_deterministic():
    """From now on the same computation gives the same bits, also where PyTorch has a faster way that does not promise it."""
    os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')                 # cuBLAS: read when its first matmul is made
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False


def _find_compiler():
    """On the CPU torch.compile writes C++."""
    from torch._inductor import cpp_builder, exc
    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler as e:
        raise DeviceError('compile=True: torch.compile needs a C++ compiler and found none; install g++ or clang, or name it in the '
                          'environment variable CXX, or leave out compile') from e


def keep_memory():
    """
    On Linux the C library gives memory back to the system after each step, which costs a page fault for every 4 KB of the
    next one: several percent of a small model's step. Tell it to keep what it has. Elsewhere this does nothing.
    """
    try:
        mallopt = ctypes.CDLL('libc.so.6').mallopt
    except (OSError, AttributeError):                 # not glibc
        return
    mallopt(-1, 2 ** 31 - 1)                          # M_TRIM_THRESHOLD: free memory that may stay, in bytes
    mallopt(-3, 2 ** 25)                              # M_MMAP_THRESHOLD: larger blocks come and go with the system; 32 MB is the most


def _cuda_device(device, world):
    """The CUDA device of this process: its own one under torchrun."""
    if not torch.cuda.is_available():
        raise DeviceError(f'device={device}: this machine has no CUDA (or this torch was built without it); use --device=auto')
    index = int(os.environ['LOCAL_RANK']) if world > 1 else device.index or 0
    if index >= torch.cuda.device_count():
        raise DeviceError(f'cuda:{index}: expected one of the {torch.cuda.device_count()} devices of this machine')
    return torch.device('cuda', index)
