"""Networks without values: the names and shapes of their tensors, which cost no memory and no time."""

from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode

RANDOM = ('normal_', 'uniform_', 'kaiming_normal_', 'kaiming_uniform_')         # of tensors, and of torch.nn.init


class _SkipValues(TorchFunctionMode):
    """
    Leaves out functions that only compute values. For a tensor without memory PyTorch's own versions of these are
    written in Python, and the first call imports torch.compile's machinery: 800 modules, about a second.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function.__name__ in RANDOM:
            return None
        if function is torch.arange:                  # this and the next are for the tables of positions
            return torch.empty(len(range(*args)))
        if function is torch.Tensor.__rpow__:         # number ** tensor
            return torch.empty_like(args[0])
        return function(*args, **(kwargs or {}))


@contextmanager
def shapes_only():
    """A network that is made in this context has tensors without memory, whatever sizes a file claims."""
    with torch.device('meta'), _SkipValues():
        yield
