"""
The same model, faster at training on a CPU.

RMSNorm, rotary positions and SwiGLU are a few multiplications for each number, but PyTorch computes them in dozens of
operations, and every one of them reads and writes memory again. Here each is one operation of a .cpp file, forward and
backward: the same numbers, up to rounding. So are attention, which PyTorch is slow at where heads are narrow, and
dropout, whose random numbers PyTorch draws one by one. What the .cpp files cannot do is left to model.py.

All of this is computed in float32. Under autocast, the products of matrices are bfloat16, which some processors compute
twice as fast; so what comes from a matrix or goes to one is bfloat16 too.
"""

import torch
import torch.nn as nn
from torch.autograd.function import once_differentiable

from gradus import kernel
from model import CausalSelfAttention, FeedForward


class RMSNorm(torch.autograd.Function):
    """
    y = weight x / sqrt(mean of x^2 + eps), for x (..., C), weight (C,). Zhang & Sennrich 2019, equation 4. dtype: of y,
    float32 or bfloat16; its gradient has the same.
    """

    @staticmethod
    def forward(ctx, x, weight, eps, dtype=torch.float32):
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return kernel.rms_norm(x, weight, eps, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, weight = ctx.saved_tensors
        C = weight.numel()
        dy = dy.contiguous()
        dx = torch.empty_like(x)
        dweight = weight.new_zeros(torch.get_num_threads(), C)                  # each core sums its own part
        kernel.load().rms_norm_backward(*kernel.pointers(x, weight, dy, dx, dweight), kernel.bits(dy), len(dweight),
                                        x.numel() // C, C, ctx.eps)
        return dx, dweight.sum(dim=0), None, None


class SplitHeads(torch.autograd.Function):
    """
    CausalSelfAttention.split: heads (B, T, H + 2G, D), float32 or bfloat16 -> q (B, H, T, D), k, v (B, G, T, D),
    float32; D is even. q_norm, k_norm: weights (D,), or None twice; cos, sin: (T, D/2), or None twice.
    """

    @staticmethod
    def forward(ctx, heads, q_norm, k_norm, cos, sin, H, eps):
        B, T, n, D = heads.shape
        G = (n - H) // 2
        ctx.save_for_backward(heads, q_norm, k_norm, cos, sin)
        ctx.sizes = B * T, T, H, G, D
        ctx.eps = eps
        q = heads.new_empty(B, T, H, D, dtype=torch.float32)
        k = heads.new_empty(B, T, G, D, dtype=torch.float32)
        v = heads.new_empty(B, T, G, D, dtype=torch.float32)
        kernel.load().split_heads(*kernel.pointers(heads, q_norm, k_norm, cos, sin, q, k, v), kernel.bits(heads),
                                  *ctx.sizes, eps)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx, dq, dk, dv):
        heads, q_norm, k_norm, cos, sin = ctx.saved_tensors
        dq, dk, dv = [d.transpose(1, 2).contiguous() for d in (dq, dk, dv)]     # (B, T, H or G, D)
        dheads = torch.empty_like(heads)
        dnorms = dq.new_zeros(2, torch.get_num_threads(), dq.size(-1))          # (2, cores, D), of q_norm and k_norm
        kernel.load().split_heads_backward(
            *kernel.pointers(heads, q_norm, k_norm, cos, sin, dq, dk, dv, dheads, *dnorms),
            kernel.bits(heads), dnorms.size(1), *ctx.sizes, ctx.eps)
        dnorms = dnorms.sum(dim=1) if q_norm is not None else (None, None)
        return dheads, *dnorms, None, None, None, None


def by_token(x):
    """x (B, H, T, D) -> (B T, H D), each token's heads side by side: without a copy if that is how they lie."""
    rows = x.transpose(1, 2).flatten(2).flatten(0, 1)
    return rows if rows.stride(1) == 1 else rows.contiguous()


class Attention(torch.autograd.Function):
    """
    softmax(Q K^T / sqrt(D) + mask) V, where each token sees itself and those before it. q (B, H, T, D), k, v (B, G, T,
    D) -> (B, H, T, D). dropout: of the weights, with what probability. FlashAttention: Dao et al. 2022.
    """

    @staticmethod
    def forward(ctx, q, k, v, dropout=0.0):
        B, H, T, D = q.shape
        G = k.size(1)
        q, k, v = map(by_token, (q, k, v))
        y = q.new_empty(B, T, H, D)
        log_sum = q.new_empty(B, H, T)
        ctx.sizes = q.stride(0), k.stride(0), v.stride(0), B, T, H, G, D
        ctx.dropout = dropout, draw_seed() if dropout else 0
        ctx.save_for_backward(q, k, v, y, log_sum)
        kernel.load().attention(*kernel.pointers(q, k, v, y, log_sum), *ctx.sizes, *ctx.dropout)
        return y.transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        q, k, v, y, log_sum = ctx.saved_tensors
        dy = dy.transpose(1, 2).contiguous()                                    # (B, T, H, D)
        B, T, H, G, D = ctx.sizes[3:]
        dq = torch.empty_like(y)
        dk, dv = q.new_empty(2, B, T, G, D)
        kernel.load().attention_backward(*kernel.pointers(q, k, v, y, log_sum, dy, dq, dk, dv), *ctx.sizes,
                                         *ctx.dropout)
        return dq.transpose(1, 2), dk.transpose(1, 2), dv.transpose(1, 2), None


class SwiGLU(torch.autograd.Function):
    """
    silu(gate) * up, for gate and up of one shape, float32 or bfloat16. Shazeer 2020, equation 6, between its matrices.
    """

    @staticmethod
    def forward(ctx, gate, up):
        ctx.save_for_backward(gate, up)
        y = torch.empty_like(gate)
        kernel.load().swiglu(*kernel.pointers(gate, up, y), kernel.bits(y), y.numel())
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        gate, up = ctx.saved_tensors
        dy = dy.contiguous()
        dgate, dup = torch.empty_like(gate), torch.empty_like(up)
        kernel.load().swiglu_backward(*kernel.pointers(gate, up, dy, dgate, dup), kernel.bits(dy), dy.numel())
        return dgate, dup


class Dropout(torch.autograd.Function):
    """
    Multiply each number of x by 0, with probability p, or else by 1 / (1 - p). x: float32 or bfloat16. Hinton et al.
    2012.
    """

    @staticmethod
    def forward(ctx, x, p):
        ctx.random = p, draw_seed()
        return drop(x, *ctx.random)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        return drop(dy.contiguous(), *ctx.random), None


def drop(x, p, seed):
    y = torch.empty_like(x)
    kernel.load().dropout(*kernel.pointers(x, y), kernel.bits(x), x.numel(), p, seed)
    return y


def draw_seed():
    """A number that decides what is dropped, so that nothing else must be remembered for backward."""
    return int(torch.randint(2 ** 62, ()))


# ---------------------------------------------------------------------------- the modules that use them

def matrix_dtype():
    """What the matrices of the model are multiplied in."""
    return torch.get_autocast_dtype('cpu') if torch.is_autocast_enabled('cpu') else torch.float32


def usual_attention(config):
    """Is it the attention that attention.cpp computes, and not one that asks what if?"""
    return (config.score, config.mask) == ('dot', 'causal')


class FusedRMSNorm(nn.RMSNorm):
    def forward(self, x):                                                       # (..., C)
        dtype = matrix_dtype()
        if dtype in kernel.NUMBERS and kernel.ready(x, self.weight):
            return RMSNorm.apply(x, self.weight, self.eps, dtype)
        return super().forward(x)


class FusedDropout(nn.Dropout):
    def forward(self, x):                                                       # of any shape
        if self.p and self.training and kernel.ready(x, dtype=x.dtype):
            return Dropout.apply(x, self.p)
        return super().forward(x)


class FusedAttention(CausalSelfAttention):
    def split(self, heads, angles=None):                                        # (B, T, H + 2G, D)
        c = self.config
        norms = (self.q_norm.weight, self.k_norm.weight) if c.qk_norm else ()
        known = c.head_width % 2 == 0 and (
            heads.dtype == torch.float32 or usual_attention(c) and torch.is_autocast_enabled('cpu'))
        if not known or not kernel.ready(heads, dtype=heads.dtype) or not kernel.ready(*norms, *(angles or ())):
            return super().split(heads, angles)
        if not (c.qk_norm or angles):                 # nothing to compute
            return super().split(heads.float())
        return SplitHeads.apply(heads, *(norms or (None, None)), *(angles or (None, None)), c.n_head, c.eps)

    def attend(self, q, k, v, mask=None):                                       # (B, H, T, D), (B, G, T, D) twice
        (B, H), G, cores = q.shape[:2], k.size(1), torch.get_num_threads()
        whole = mask is None and q.size(2) == k.size(2)                         # no cache
        if not (usual_attention(self.config) and whole and B * H >= cores and kernel.ready(q, k, v, contiguous=False)):
            return super().attend(q, k, v, mask)

        # In backward, one core takes all heads that share keys. Where that leaves others without work, each head gets
        # keys and values of its own.
        if B * G < cores:
            k, v = (x.repeat_interleave(H // G, dim=1) for x in (k, v))         # (B, H, T, D)
        return Attention.apply(q, k, v, self.config.dropout if self.training else 0.0)


class FusedFeedForward(FeedForward):                                            # SwiGLU only
    def forward(self, x):                                                       # (B, T, C)
        gate, up = self.c_gate(x), self.c_fc(x)                                 # (B, T, F)
        h = SwiGLU.apply(gate, up) if kernel.ready(gate, up, dtype=gate.dtype) else self.act(gate) * up
        return self.dropout(self.c_proj(h))


def fused_class(module):
    """The class that computes what this module does with the .cpp files; its own class if there is none."""
    kind = type(module)
    if kind is nn.RMSNorm:
        return FusedRMSNorm
    if kind is nn.Dropout:
        return FusedDropout
    if kind is CausalSelfAttention:
        return FusedAttention
    if kind is FeedForward and module.gated:
        return FusedFeedForward
    return kind


def use(model):
    """Let a model on the CPU compute with the .cpp files. Names and weights stay, so that checkpoints do not change."""
    if model.lm_head.weight.is_cpu:
        for module in model.modules():
            module.__class__ = fused_class(module)
    return model


def in_use(model):
    """Does the model compute with the .cpp files? Its last bits depend on it."""
    kinds = FusedRMSNorm, FusedDropout, FusedAttention, FusedFeedForward
    return any(isinstance(module, kinds) for module in model.modules()) and kernel.load() is not None
