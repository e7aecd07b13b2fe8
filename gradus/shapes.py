"""Networks without values: the names and shapes of their tensors, which cost no memory and no time."""

from contextlib import contextmanager
from dataclasses import replace

import torch
from torch.overrides import TorchFunctionMode

from model import GPT

RANDOM = ('normal_', 'uniform_', 'kaiming_normal_', 'kaiming_uniform_')         # of tensors, and of torch.nn.init


class _SkipRandom(TorchFunctionMode):
    """
    Leaves out random initial values. A tensor without memory has none, but the first call would import torch.compile's
    machinery: 800 modules, about a second.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function.__name__ in RANDOM:
            return None
        return function(*args, **(kwargs or {}))


@contextmanager
def shapes_only():
    """What is made in this context has tensors without memory, whatever sizes a file claims."""
    with torch.device('meta'), _SkipRandom():
        yield


def empty_gpt(config):
    """
    A GPT with parameters that have no memory yet, and without tables of positions: computing these would import the
    same as random values. Once its parameters are loaded, init_tables makes it complete.
    """
    with shapes_only():
        model = GPT(replace(config, pos='learned' if config.pos == 'learned' else 'none'))
    model.config.pos = config.pos
    return model
