"""
The same model, faster at one token after the other. Such a token costs as much time as it takes to read all weights
once, and the CPU's kernels for a single row read them with one core, often against the order in memory.

    SplitLinear    each core has its own part of every matrix: the same numbers, up to rounding
    Int8Linear     8 bits a weight instead of 32: a quarter of the reading, slightly different numbers

Of a small model, or on a GPU, starting the many operations of a token costs more than the operations themselves:

    cast_linear       autocast's conversion of the weights, once instead of for each token: the same numbers
    compile_decoding  all operations of a token become one program

`prepare` does what helps on the model's device.
"""

from itertools import chain

import torch
import torch.nn as nn


class SplitLinear(nn.Module):
    """y = x W^T + b, computed as one product for each core: part p of W makes part p of y."""

    def __init__(self, linear):
        super().__init__()
        n_out, n_in = linear.weight.shape
        parts = torch.get_num_threads() if n_out % torch.get_num_threads() == 0 else 1
        weight = linear.weight.detach().view(parts, n_out // parts, n_in).mT    # (P, in, out/P)
        self.weight = weight.contiguous() if n_out > n_in else weight           # the longer side lies along the memory
        bias = weight.new_zeros(n_out) if linear.bias is None else linear.bias.detach()
        self.bias = bias.view(parts, 1, -1)                                     # (P, 1, out/P)
        self.beta = 0 if linear.bias is None else 1

    def forward(self, x):                                                       # (..., in)
        rows = x.flatten(0, -2).expand(len(self.weight), -1, -1)                # (P, n, in)
        y = torch.baddbmm(self.bias, rows, self.weight, beta=self.beta)         # (P, n, out/P); torch.compile would undo a bmm of one row
        return y.transpose(0, 1).reshape(*x.shape[:-1], -1)                     # (..., out)


class Int8Linear(nn.Module):
    """
    y = x W^T + b with W in 8 bits: row j is a scale t_j times integers from -127 to 127. So is every row i of x, with scale s_i,
    at the moment it comes: the products and their sums are exact integer arithmetic, y_ij = s_i t_j (sum of products) + b_j.
    """

    def __init__(self, linear):
        super().__init__()
        weight = linear.weight.detach()
        self.scale = weight.abs().amax(dim=1).clamp_min(1e-30) / 127            # (out,)
        self.weight = (weight / self.scale[:, None]).round().to(torch.int8)     # (out, in)
        self.bias = linear.bias

    def forward(self, x):                                                       # (..., in)
        rows = x.flatten(0, -2)                                                 # (n, in)
        scale = rows.abs().amax(dim=1, keepdim=True).clamp_min(1e-30) / 127     # (n, 1)
        y = torch._int_mm((rows / scale).round_().to(torch.int8), self.weight.t()) * (scale * self.scale)   # (n, out)
        y = y.view(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias


def replace_linear(model, kind):
    """
    Put a `kind` made of it, SplitLinear or Int8Linear, in place of every Linear of a model on the CPU, which from now on only predicts.
    Dropout does nothing then, but a call of it takes longer than an addition to the residual stream: it goes.
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, kind(child))
            elif isinstance(child, nn.Dropout):
                setattr(module, name, nn.Identity())
    return model


def cast_linear(model, dtype):
    """Hold the weights of every Linear in the dtype that autocast would convert them to. An embedding tied to one stays as it is."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            for name, p in module.named_parameters(recurse=False):
                setattr(module, name, nn.Parameter(p.detach().to(dtype), requires_grad=False))
    return model


class FixedCache:
    """
    What a compiled step sees of a KVCache: nothing in it changes its shape as it fills. Keys and values are those of all
    block_size places, the new token's place (1,) is a number in a tensor, and the mask hides the places behind it.
    """

    def __init__(self, layers, place):
        self.layers, self.place = layers, place

    def next(self, T):
        return self.place

    def layer(self, i):
        def remember(k, v):                                                     # (B, G, 1, D)
            k, v = (kept.index_copy_(2, self.place, x) for kept, x in zip(self.layers[i], (k, v)))
            return k, v, (torch.arange(k.size(2), device=k.device) <= self.place)[None]     # (1, block_size)
        return remember


def compile_decoding(model):
    """Compile the step of a single token, which on CUDA becomes one CUDA graph. Prompts are read as ever."""
    forward, device = model.forward, next(model.parameters()).device
    options = {'triton.cudagraphs': True} if device.type == 'cuda' else {'cpp_wrapper': True}     # both: no Python between two operations

    @torch.compile(fullgraph=True, dynamic=False, options=options)
    def step(idx, layers, place):
        return forward(idx, cache=FixedCache(layers, place))[0]

    def decode(idx, targets=None, cache=None):
        if cache is None:
            return forward(idx, targets)
        if cache.length and idx.size(1) == 1:
            return step(idx, cache.layers, torch.tensor([cache.next(1).start], device=device)), None
        out = forward(idx, targets, cache)
        for tensor in chain(*cache.layers):           # these stay where they are, which a CUDA graph must know
            torch._dynamo.mark_static_address(tensor, guard=False)
        return out

    model.forward = decode
    return model


def prepare(model, dtype, int8=False, compile=False):
    """A model that is on its device, to predict there under autocast to `dtype`, in 8 bits (on a CPU) and compiled if one asks for it."""
    if dtype != torch.float32 and not int8:
        cast_linear(model, dtype)
    if next(model.parameters()).device.type == 'cpu':
        replace_linear(model, Int8Linear if int8 else SplitLinear)
    return compile_decoding(model) if compile else model
