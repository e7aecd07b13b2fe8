"""
The same model, faster at generating one token after another.

On a CPU a token costs as much time as it takes to read all weights once. The standard kernels for a single row read
them with one core, often against their order in memory:

    PackedLinear   linear.cpp reads them from front to back, with all cores: the same numbers, up to rounding
    SplitLinear    without linear.cpp: each core gets its own part of every matrix, with PyTorch's kernels
    Int8Linear     8 bits a weight instead of 32: a quarter of the memory traffic, slightly different numbers
    FastAttention, FastRMSNorm    one operation of kernel.cpp instead of many: the same numbers, up to rounding

For a small model, or on a GPU, launching a token's many operations costs more than the operations themselves:

    cast_linear       autocast's conversion of the weights, once instead of for each token: the same numbers
    compile_decoding  all operations of a token become one program

`prepare` applies what helps on the model's device.
"""

from itertools import chain

import torch
import torch.nn as nn

from gradus import kernel
from gradus.fused import usual_attention
from model import CausalSelfAttention, KVCache


class PackedLinear(nn.Module):
    """y = x W^T + b, with W in the order in which linear.cpp reads it."""

    def __init__(self, linear):
        super().__init__()
        self.n_out = linear.out_features
        self.weight = kernel.pack(linear.weight.detach())                       # (out / 16, in, 16)
        self.bias = linear.bias

    def forward(self, x):                                                       # (..., in)
        return kernel.linear(x.contiguous(), self.weight, self.bias, self.n_out)  # (..., out)


class SplitLinear(nn.Module):
    """y = x W^T + b, computed as one product for each core: part p of W makes part p of y."""

    def __init__(self, linear):
        super().__init__()
        n_out, n_in = linear.weight.shape
        cores = torch.get_num_threads()
        parts = cores if n_out % cores == 0 else 1
        weight = linear.weight.detach().view(parts, n_out // parts, n_in).mT    # (P, in, out/P)
        if n_out > n_in:                              # the longer side lies along memory
            weight = weight.contiguous()
        has_bias = linear.bias is not None
        bias = linear.bias.detach() if has_bias else weight.new_zeros(n_out)
        self.weight = weight
        self.bias = bias.view(parts, 1, -1)                                     # (P, 1, out/P)
        self.beta = 1 if has_bias else 0

    def forward(self, x):                                                       # (..., in)
        rows = x.flatten(0, -2).expand(len(self.weight), -1, -1)                # (P, n, in)
        # baddbmm, because torch.compile turns a bmm of one row into a slow sum of products.
        y = torch.baddbmm(self.bias, rows, self.weight, beta=self.beta)         # (P, n, out/P)
        return y.transpose(0, 1).reshape(*x.shape[:-1], -1)                     # (..., out)


def quantize_rows(matrix):
    """Each row of a matrix (n, m) as integers from -127 to 127, (n, m), times a scale, (n,)."""
    scale = matrix.abs().amax(dim=1).clamp_min(1e-30) / 127                     # (n,)
    return (matrix / scale[:, None]).round().to(torch.int8), scale


class Int8Linear(nn.Module):
    """
    y = x W^T + b with W in 8 bits: row j is a scale t_j times integers from -127 to 127. Each row i of x is quantized
    on the fly, with scale s_i, so products and sums are exact integer arithmetic:

        y_ij = s_i t_j (sum of products) + b_j
    """

    def __init__(self, linear):
        super().__init__()
        weight = linear.weight.detach()
        self.weight, self.scale = quantize_rows(weight)                         # (out, in), (out,)
        self.row_sum = self.weight.sum(dim=1, dtype=torch.int32)                # (out,), for the kernel
        self.bias = linear.bias

    def forward(self, x):                                                       # (..., in)
        y = kernel.int8_linear(x, self.weight, self.scale, self.row_sum, self.bias)
        if y is not None:                             # the same numbers, faster
            return y
        rows = x.flatten(0, -2)                                                 # (n, in)
        scale = rows.abs().amax(dim=1, keepdim=True).clamp_min(1e-30) / 127     # (n, 1)
        quantized = (rows / scale).round_().to(torch.int8)                      # (n, in)
        y = torch._int_mm(quantized, self.weight.t()) * (scale * self.scale)    # (n, out)
        y = y.view(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias


class Int8Embedding(nn.Module):
    """The rows of an Int8Linear as vectors: the embedding of a model whose unembedding is the same matrix."""

    def __init__(self, linear):
        super().__init__()
        self.weight = linear.weight                                             # (V, C)
        self.scale = linear.scale                                               # (V,)

    def forward(self, idx):                                                     # (...)
        return self.weight[idx] * self.scale[idx, None]                         # (..., C)


def replace_linear(model, kind):
    """
    Replace every Linear of a GPT on the CPU by a `kind` (PackedLinear, SplitLinear or Int8Linear) built from it; a
    matrix in 8 bits that is the embedding, too, is kept only once. The model can no longer be trained. Dropout, which
    does nothing in eval mode but costs more than a residual addition, is removed.
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, kind(child))
            elif isinstance(child, nn.Dropout):
                setattr(module, name, nn.Identity())
    if kind is Int8Linear and model.config.tie_weights:
        model.transformer.wte = Int8Embedding(model.lm_head)
    return model


class FastRMSNorm(nn.Module):
    """RMSNorm in one pass instead of ten operations: the same numbers, up to rounding."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm
        self.weight = norm.weight

    def forward(self, x):                                                       # (..., C)
        y = kernel.rms_norm(x, self.weight, self.norm.eps)
        return self.norm(x) if y is None else y


class FastAttention(nn.Module):
    """CausalSelfAttention; for one new token, what happens between its two matrices is one operation."""

    def __init__(self, attention):
        super().__init__()
        self.plain = attention
        c = attention.config
        self.usual = usual_attention(c)
        self.norms = (attention.q_norm.weight, attention.k_norm.weight) if c.qk_norm else ()

    def forward(self, x, angles=None, cache=None, layer=0):                     # (B, T, C)
        y = None
        if self.usual and x.size(1) == 1 and type(cache) is KVCache and cache.layers[layer]:
            c = self.plain.config
            heads = self.plain.c_attn(x).view(len(x), -1, c.head_width)         # (B, H + 2G, D)
            y = kernel.attend(heads, self.norms, c.eps, angles or (), *cache.layers[layer], cache.length)
        if y is None:
            return self.plain(x, angles, cache, layer)
        return self.plain.resid_dropout(self.plain.c_proj(y.view(len(x), 1, -1)))


def use_kernel(model):
    """Replace every RMSNorm and attention of a model on the CPU by those that use kernel.cpp."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.RMSNorm):
                setattr(module, name, FastRMSNorm(child))
            elif isinstance(child, CausalSelfAttention):
                setattr(module, name, FastAttention(child))
    return model


def cast_linear(model, dtype):
    """Store the weights of every Linear in the dtype that autocast would convert them to; embeddings stay."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            for name, p in module.named_parameters(recurse=False):
                setattr(module, name, nn.Parameter(p.detach().to(dtype), requires_grad=False))
    return model


class FixedCache:
    """
    A KVCache as a compiled step sees it: no shape changes as it fills. Keys and values are those of all block_size
    positions, the new token's position (1,) is a number in a tensor, and the mask hides the positions after it.
    """

    def __init__(self, layers, position):
        self.layers = layers
        self.position = position

    def advance(self, T):
        return self.position

    def update(self, layer, k, v):                                              # (B, G, 1, D)
        keys, values = self.layers[layer]
        keys = keys.index_copy_(2, self.position, k)                            # (B, G, block_size, D)
        values = values.index_copy_(2, self.position, v)
        mask = torch.arange(keys.size(2), device=k.device) <= self.position     # (block_size,)
        return keys, values, mask[None]


def compile_decoding(model):
    """Compile the step of a single token; on CUDA it becomes one CUDA graph. Prompts are still read eagerly."""
    forward = model.forward
    device = model.transformer.wte.weight.device
    if device.type == 'cuda':                         # both options: no Python between two operations
        options = {'triton.cudagraphs': True}
    else:
        options = {'cpp_wrapper': True}

    @torch.compile(fullgraph=True, dynamic=False, options=options)
    def step(idx, layers, position):
        return forward(idx, cache=FixedCache(layers, position))[0]

    def decode(idx, targets=None, cache=None):
        if cache is None:
            return forward(idx, targets)
        if cache.length and idx.size(1) == 1:
            position = torch.tensor([cache.advance(1).start], device=device)
            return step(idx, cache.layers, position), None
        out = forward(idx, targets, cache)
        for tensor in chain(*cache.layers):           # tell the CUDA graph that these stay where they are
            torch._dynamo.mark_static_address(tensor, guard=False)
        return out

    model.forward = decode
    return model


def prepare(model, dtype, int8=False, compile=False):
    """
    Make a model on its device fast at generating under autocast to `dtype`; int8: with 8-bit weights (CPU only);
    compile: with a compiled step. Returns the model, which can no longer be trained.
    """
    on_cpu = model.transformer.wte.weight.device.type == 'cpu'
    if dtype != torch.float32 and not int8:
        cast_linear(model, dtype)
    if on_cpu:
        with_kernel = dtype == torch.float32 and kernel.load() is not None
        kind = Int8Linear if int8 else PackedLinear if with_kernel and not compile else SplitLinear
        replace_linear(model, kind)
        if with_kernel:
            use_kernel(model)
    return compile_decoding(model) if compile else model
