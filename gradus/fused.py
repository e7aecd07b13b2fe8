"""
The same model, faster at training on a CPU.

RMSNorm, rotary positions and SwiGLU are a few multiplications for each number, but PyTorch computes them in dozens of
operations, and every one of them reads and writes memory again. Here each is one operation of kernel.cpp, forward and
backward: the same numbers, up to rounding. What kernel.cpp cannot do is left to model.py.
"""

import torch
import torch.nn as nn
from torch.autograd.function import once_differentiable

from gradus import kernel
from model import CausalSelfAttention, FeedForward


class RMSNorm(torch.autograd.Function):
    """y = weight x / sqrt(mean of x^2 + eps), for x (..., C), weight (C,). Zhang & Sennrich 2019, equation 4."""

    @staticmethod
    def forward(ctx, x, weight, eps):
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return kernel.rms_norm(x, weight, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, weight = ctx.saved_tensors
        C = weight.numel()
        dy = dy.contiguous()
        dx = torch.empty_like(x)
        dweight = weight.new_zeros(torch.get_num_threads(), C)                  # each core sums its own part
        kernel.load().rms_norm_backward(*kernel.pointers(x, weight, dy, dx, dweight), x.numel() // C, C, len(dweight),
                                        ctx.eps)
        return dx, dweight.sum(dim=0), None


class SplitHeads(torch.autograd.Function):
    """
    CausalSelfAttention.split: heads (B, T, H + 2G, D) -> q (B, H, T, D), k, v (B, G, T, D). q_norm, k_norm: weights
    (D,), or None twice; cos, sin: (T, D/2), or None twice.
    """

    @staticmethod
    def forward(ctx, heads, q_norm, k_norm, cos, sin, H, eps):
        B, T, n, D = heads.shape
        G = (n - H) // 2
        ctx.save_for_backward(heads, q_norm, k_norm, cos, sin)
        ctx.sizes = B * T, T, H, G, D
        ctx.eps = eps
        q = heads.new_empty(B, T, H, D)
        k = heads.new_empty(B, T, G, D)
        v = heads.new_empty(B, T, G, D)
        kernel.load().split_heads(*kernel.pointers(heads, q_norm, k_norm, cos, sin, q, k, v), *ctx.sizes, eps)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx, dq, dk, dv):
        heads, q_norm, k_norm, cos, sin = ctx.saved_tensors
        dq, dk, dv = [d.transpose(1, 2).contiguous() for d in (dq, dk, dv)]     # (B, T, H or G, D)
        dheads = torch.empty_like(heads)
        dnorms = heads.new_zeros(2, torch.get_num_threads(), heads.size(-1))    # (2, cores, D), of q_norm and k_norm
        kernel.load().split_heads_backward(
            *kernel.pointers(heads, q_norm, k_norm, cos, sin, dq, dk, dv, dheads, *dnorms),
            *ctx.sizes, dnorms.size(1), ctx.eps)
        dnorms = dnorms.sum(dim=1) if q_norm is not None else (None, None)
        return dheads, *dnorms, None, None, None, None


class SwiGLU(torch.autograd.Function):
    """silu(gate) * up, for gate and up of one shape. Shazeer 2020, equation 6, between its matrices."""

    @staticmethod
    def forward(ctx, gate, up):
        ctx.save_for_backward(gate, up)
        y = torch.empty_like(gate)
        kernel.load().swiglu(*kernel.pointers(gate, up, y), gate.numel())
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        gate, up = ctx.saved_tensors
        dy = dy.contiguous()
        dgate, dup = torch.empty_like(gate), torch.empty_like(up)
        kernel.load().swiglu_backward(*kernel.pointers(gate, up, dy, dgate, dup), gate.numel())
        return dgate, dup


# ---------------------------------------------------------------------------- the modules that use them

class FusedRMSNorm(nn.RMSNorm):
    def forward(self, x):                                                       # (..., C)
        if kernel.ready(x, self.weight):
            return RMSNorm.apply(x, self.weight, self.eps)
        return super().forward(x)


class FusedAttention(CausalSelfAttention):
    def split(self, heads, angles=None):                                        # (B, T, H + 2G, D)
        c = self.config
        norms = (self.q_norm.weight, self.k_norm.weight) if c.qk_norm else ()
        if not kernel.ready(heads, *norms, *(angles or ())):
            return super().split(heads, angles)
        return SplitHeads.apply(heads, *(norms or (None, None)), *(angles or (None, None)), c.n_head, c.eps)


class FusedFeedForward(FeedForward):                                            # SwiGLU only
    def forward(self, x):                                                       # (B, T, C)
        gate, up = self.c_gate(x), self.c_fc(x)                                 # (B, T, F)
        h = SwiGLU.apply(gate, up) if kernel.ready(gate, up) else self.act(gate) * up
        return self.dropout(self.c_proj(h))


def fused_class(module):
    """The class that computes what this module does with kernel.cpp; its own class if there is none."""
    kind = type(module)
    if kind is nn.RMSNorm:
        return FusedRMSNorm
    if kind is CausalSelfAttention and (module.config.qk_norm or module.config.pos == 'rotary'):
        return FusedAttention
    if kind is FeedForward and module.gated:
        return FusedFeedForward
    return kind


def use(model):
    """Let a model on the CPU compute with kernel.cpp. Names and weights stay, so that checkpoints do not change."""
    if model.lm_head.weight.is_cpu:
        for module in model.modules():
            module.__class__ = fused_class(module)
    return model


def in_use(model):
    """Does the model compute with kernel.cpp? Its last bits depend on it."""
    kinds = FusedRMSNorm, FusedAttention, FusedFeedForward
    return any(isinstance(module, kinds) for module in model.modules()) and kernel.load() is not None
