"""
One process or many: which device, which dtype, and how processes communicate.

Under torchrun every process runs the same script with its own RANK. Each trains on its shard of the batch, DDP
averages the gradients, and rank 0 alone prints and writes.
"""

import ctypes
import importlib.util
import os
import platform
import sys
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

from gradus import fused
from gradus.errors import RankError, UserError, one_line, show, warn

DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16, 'float16': torch.float16}

# Settings that each process may have of its own: names that hold the time, for example.
MAY_DIFFER = ('out_dir', 'device', 'wandb_project', 'wandb_run_name')

# Dense 16-bit tensor-core FLOP/s from the vendors' data sheets, by a part of the device's name.
PEAK_FLOPS = {
    'V100': 125e12,
    'A100': 312e12,
    'A10G': 70e12,
    'L40S': 362e12,
    'L4': 121e12,
    'H100 PCIe': 756e12,
    'H100': 989e12,
    'H200': 989e12,
    'B200': 2250e12,
    'RTX 3090': 71e12,
    'RTX 4090': 165e12,
}


def seed_from(*numbers):
    """One seed for torch from several numbers, such as (seed, step, rank); neighbors give unrelated seeds."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


@dataclass
class Worker:
    """This process: where it computes, and which of how many it is."""
    device: torch.device
    dtype: torch.dtype          # of the matmuls; weights stay float32
    compile: bool
    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self):
        """Is this the process that prints and writes?"""
        return self.rank == 0

    def print(self, text):
        """Print above the progress bar, on the main process only."""
        if self.is_main:
            tqdm.write(text)
            sys.stdout.flush()

    @property
    def peak_flops(self):
        """FLOP/s of all devices together at their best; 0 if unknown."""
        if self.device.type != 'cuda' or self.dtype == torch.float32:
            return 0
        name = torch.cuda.get_device_name(self.device)
        return self.world_size * next((flops for part, flops in PEAK_FLOPS.items() if part in name), 0)

    def autocast(self):
        """The context in which a forward pass uses `dtype`."""
        return nullcontext() if self.dtype == torch.float32 else torch.autocast(self.device.type, self.dtype)

    def shard(self, n):
        """This rank's part of n sequences, as a slice. Raises UserError if they cannot be divided evenly."""
        if n % self.world_size:
            raise UserError(f'{n} sequences a step on {self.world_size} processes: expected batch_size * '
                            'gradient_accumulation_steps to be a multiple of the number of processes')
        each = n // self.world_size
        return slice(self.rank * each, (self.rank + 1) * each)

    def to_device(self, *tensors):
        """The tensors on this device; on CUDA the copy overlaps with computation."""
        if self.device.type == 'cuda':
            return [t.pin_memory().to(self.device, non_blocking=True) for t in tensors]
        return [t.to(self.device) for t in tensors]

    def place(self, model):
        """The model on this device, with the fastest operations there; torch.compile makes its own."""
        model = model.to(self.device)
        return model if self.compile else fused.use(model)

    def distribute(self, model):
        """The model, wrapped in DDP if there are several processes."""
        if self.world_size == 1:
            return model
        from torch.nn.parallel import DistributedDataParallel
        return DistributedDataParallel(model, device_ids=[self.device] if self.device.type == 'cuda' else None)

    def sum(self, *values):
        """The values, numbers or tensors, summed over all ranks: a list of floats (float64; float32 on MPS)."""
        if self.world_size == 1 and not any(isinstance(v, torch.Tensor) for v in values):
            return [float(v) for v in values]         # no need to wait for a GPU
        kind = torch.float32 if self.device.type == 'mps' else torch.float64
        total = torch.stack([torch.as_tensor(v, dtype=kind, device=self.device) for v in values])
        if self.world_size > 1:
            dist.all_reduce(total)
        return total.tolist()

    def max(self, value):
        """The largest integer `value` over all ranks."""
        if self.world_size == 1:
            return value
        largest = torch.tensor(value, device=self.device)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return largest.item()

    def gather(self, value):
        """The `value` of every rank, a list; any plain data."""
        if self.world_size == 1:
            return [value]
        values = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    @contextmanager
    def together(self):
        """
        A block that succeeds on all ranks or on none: after it, the first rank's UserError is raised on every rank.
        Nothing in the block may communicate.
        """
        error = None
        try:
            yield
        except UserError as e:
            error = e
        if error and self.world_size == 1:
            raise error
        for rank, message in enumerate(self.gather(error and str(error))):
            if message:
                raise UserError(message if rank == 0 else f'rank {rank}: {message}') from error

    def require_same(self, cfg, **values):
        """Raise UserError on every rank unless all ranks have the same settings and the same `values`."""
        settings = {name: value for name, value in asdict(cfg).items() if name not in MAY_DIFFER}
        everyone = self.gather(settings | values)
        for rank, theirs in enumerate(everyone):
            for name, value in everyone[0].items():
                if theirs[name] != value:
                    raise UserError(f'rank {rank} has {name}={show(theirs[name])}, rank 0 has {name}={show(value)}; '
                                    'start all processes with the same settings and data')

    def environment(self, model, dataset):
        """What must stay the same for a resumed run to continue bit for bit."""
        return dict(torch=str(torch.__version__), device=self.device.type, dtype=str(self.dtype), compile=self.compile,
                    kernel=fused.in_use(model), threads=torch.get_num_threads(), world_size=self.world_size,
                    data=dataset.fingerprint)

    def close(self):
        if self.world_size > 1:
            dist.destroy_process_group()


def changes(before, now):
    """How two environments differ, in words; empty if they do not. A value that was not recorded is no difference."""
    found = []
    for key, value in now.items():
        if before.get(key, value) != value:
            found.append(f'{key}={one_line(before[key], limit=60)} (now {one_line(value, limit=60)})')
    return ', '.join(found)


def init(device='auto', dtype='auto', compile='auto', backend='auto'):
    """
    The `Worker` of this process, after joining the process group if torchrun started it. 'auto' chooses cuda, else mps,
    else cpu; bfloat16 where a GPU has it; compile on CUDA. Raises UserError for what this machine cannot do.
    """
    rank, world_size = _place()
    device = _choose_device(device, world_size)
    dtype = _choose_dtype(dtype, device)
    if compile is True and device.type == 'cpu':
        _require_cpp_compiler()
    if compile == 'auto':                             # Triton, which it needs, is not available on every Windows
        compile = device.type == 'cuda' and importlib.util.find_spec('triton') is not None

    if world_size > 1:
        _join_process_group(device, backend)
    if device.type == 'cpu':
        _keep_freed_memory()
    if device.type == 'cuda':
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision('high')    # TF32 for what is left in float32
    return Worker(device, DTYPES[dtype], compile, rank, world_size)


def _place():
    """The rank of this process and how many there are, as torchrun says in the environment. Raises UserError."""
    numbers = {}
    for name, default in (('RANK', 0), ('WORLD_SIZE', 1), ('LOCAL_RANK', 0)):
        text = os.environ.get(name, str(default))
        if not (text.isdecimal() and len(text) < 10):
            raise UserError(f'the environment has {name}={show(text)}; expected a number, as torchrun sets it; '
                            f'to train in one process: unset {name}')
        numbers[name] = int(text)
    if numbers['RANK'] >= numbers['WORLD_SIZE']:
        raise RankError(f"the environment has RANK={numbers['RANK']}, WORLD_SIZE={numbers['WORLD_SIZE']}; expected a "
                        'rank below the size, as torchrun sets them; to train in one process: unset RANK WORLD_SIZE')
    if numbers['WORLD_SIZE'] > 1 and 'MASTER_ADDR' not in os.environ:
        raise UserError(f"the environment has WORLD_SIZE={numbers['WORLD_SIZE']} but no MASTER_ADDR; start with "
                        'torchrun, which sets both; to train in one process: unset RANK WORLD_SIZE')
    return numbers['RANK'], numbers['WORLD_SIZE']


def _choose_device(name, world_size):
    """The torch.device that `name` means on this machine."""
    if name == 'auto':
        if torch.cuda.is_available():
            name = 'cuda'
        elif torch.backends.mps.is_available() and world_size == 1:
            name = 'mps'
        else:
            name = 'cpu'
    try:
        device = torch.device(name)
    except RuntimeError as e:
        raise UserError(f'device={name}: expected auto, cpu, mps, cuda or cuda:N') from e

    if device.type == 'cuda':
        return _cuda_device(device, world_size)
    if device.type == 'mps' and not torch.backends.mps.is_available():
        raise UserError('device=mps: this machine has none; use --device=auto')
    if device.type not in ('cpu', 'mps'):
        raise UserError(f'device={name}: expected auto, cpu, mps, cuda or cuda:N')
    return device


def _cuda_device(device, world_size):
    """The CUDA device of this process: its own one under torchrun."""
    if not torch.cuda.is_available():
        raise UserError(f'device={device}: this machine has no CUDA (or this torch was built without it); '
                        'use --device=auto')
    index = device.index or 0
    if world_size > 1:
        index = int(os.environ.get('LOCAL_RANK', 0))
    if index >= torch.cuda.device_count():
        raise RankError(f'cuda:{index}: expected one of the {torch.cuda.device_count()} devices of this machine')
    return torch.device('cuda', index)


def _choose_dtype(name, device):
    """The name of a dtype for `device`; a warning if it is not the one that was asked for."""
    if name == 'auto':
        if device.type != 'cuda':
            return 'float32'
        return 'bfloat16' if torch.cuda.is_bf16_supported() else 'float16'
    if name == 'float16' and device.type != 'cuda':
        warn(f'float16 is for CUDA; using float32 on {device.type}')
        return 'float32'
    if name == 'bfloat16' and device.type == 'cpu' and not has_bfloat16():
        warn('this CPU has no instructions for bfloat16; using float32, which is faster here')
        return 'float32'
    return name


def has_bfloat16():
    """Can this CPU multiply bfloat16 numbers? Others convert them one by one."""
    if platform.machine().lower() in ('x86_64', 'amd64'):
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _join_process_group(device, backend):
    default = 'nccl' if device.type == 'cuda' else 'gloo'
    if backend == 'nccl' and default == 'gloo':
        raise UserError(f'backend=nccl on {device.type}: expected gloo; leave it at --backend=auto')
    # When torch.distributed.nn is imported, as DDP does later on, it stores the current process group in default
    # arguments. That keeps gloo's threads alive until they abort the exiting process. Imported before there is a
    # group, it stores none.
    importlib.import_module('torch.distributed.nn')
    try:
        dist.init_process_group(default if backend == 'auto' else backend)
    except (RuntimeError, ValueError) as e:
        raise RankError(f'the processes cannot find each other ({one_line(e, limit=160)}); start with torchrun') from e


def set_deterministic():
    """From now on the same computation gives the same bits, even where PyTorch has a faster way that does not."""
    os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')                 # cuBLAS reads it at its first matmul
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False


def _require_cpp_compiler():
    """On the CPU torch.compile generates C++."""
    from torch._inductor import cpp_builder, exc
    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler as e:
        raise UserError('compile=True: torch.compile needs a C++ compiler and found none; install g++ or clang, or '
                        'name it in the environment variable CXX, or leave out compile') from e


def _keep_freed_memory():
    """
    On Linux the C library returns freed memory to the system after each step, which costs a page fault for every 4 KB
    of the next one: several percent of a small model's step. Tell it to keep the memory. Elsewhere this does nothing.
    """
    try:
        mallopt = ctypes.CDLL('libc.so.6').mallopt
    except (OSError, AttributeError):                 # not glibc
        return
    mallopt(-1, 2 ** 31 - 1)                          # M_TRIM_THRESHOLD: free memory to keep, in bytes
    mallopt(-3, 2 ** 25)                              # M_MMAP_THRESHOLD: larger blocks bypass the heap; 32 MB at most
