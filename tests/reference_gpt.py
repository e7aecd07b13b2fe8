"""
model.py's GPT written a second time, for tests to compare with: plain Python loops, one vector and one head at a time.
"""

import cmath
import math

import torch


def normed(x, w, name, kind):
    if kind == 'none':
        return x
    mean = sum(x) / len(x) if kind == 'layernorm' else 0
    eps = 1e-5 if kind == 'layernorm' else 1e-6
    size = torch.sqrt(sum((a - mean) ** 2 for a in x) / len(x) + eps)
    return (x - mean) / size * w[name + '.weight'] + w.get(name + '.bias', 0)


def linear(x, w, name):
    return torch.stack([(row * x).sum() for row in w[name + '.weight']]) + w.get(name + '.bias', 0)


def rotated(x, pos, theta):
    """Each pair (x[i], x[i + D/2]) as a complex number, rotated by the angle pos * theta^(-2i/D)."""
    half = len(x) // 2
    angles = [pos * theta ** (-2 * i / len(x)) for i in range(half)]
    z = [complex(a, b) * cmath.exp(1j * angle) for a, b, angle in zip(x[:half], x[half:], angles)]
    return torch.tensor([a.real for a in z] + [a.imag for a in z]).double()


ACT = {
    'gelu': lambda a: a * (1 + torch.erf(a / 2 ** 0.5)) / 2,
    'gelu_tanh': lambda a: a * (1 + torch.tanh((2 / math.pi) ** 0.5 * (a + 0.044715 * a ** 3))) / 2,
    'relu': lambda a: torch.where(a > 0, a, 0.0),
    'swiglu': lambda a: a / (1 + torch.exp(-a)),
    'sigmoid': lambda a: 1 / (1 + torch.exp(-a)),
}


def compared(q, k, kind):
    """The attention score of a query and a key."""
    if kind == 'squared':
        return sum(a * a * b * b for a, b in zip(q, k)) / len(q) ** 0.5
    dot = sum(a * b for a, b in zip(q, k))
    return {'dot': dot / len(q) ** 0.5, 'reversed': -dot / len(q) ** 0.5, 'unscaled': dot}[kind]


def seen_from(t, n, mask):
    """The positions among n that the token at t looks at."""
    return {'causal': range(t + 1), 'other_half': range(t, n), 'none': range(n)}[mask]


def embedded(w, c, token, pos):
    x = w['transformer.wte.weight'][token]
    if c.pos == 'learned':
        x = x + w['transformer.wpe.weight'][pos]
    if c.pos == 'sinusoidal':
        x = x * c.n_embd ** 0.5 + torch.tensor([wave(pos, j, c.n_embd) for j in range(c.n_embd)])
    return x


def attended(w, c, h, xs):
    """What attention adds to each x of the list xs; h is the prefix of the block's names."""
    D = c.n_embd // c.n_head
    groups = c.n_kv_head or c.n_head
    qkv = [linear(normed(x, w, h + 'ln_1', c.norm), w, h + 'attn.c_attn') for x in xs]
    answers = [[] for _ in xs]
    for head in range(c.n_head):
        group = head // (c.n_head // groups)
        qs, ks, vs = ([a.split(D)[i] for a in qkv] for i in (head, c.n_head + group, c.n_head + groups + group))
        if c.qk_norm:
            qs = [normed(q, w, h + 'attn.q_norm', 'rmsnorm') for q in qs]
            ks = [normed(k, w, h + 'attn.k_norm', 'rmsnorm') for k in ks]
        if c.pos == 'rotary':
            qs = [rotated(q, t, c.rope_theta) for t, q in enumerate(qs)]
            ks = [rotated(k, t, c.rope_theta) for t, k in enumerate(ks)]
        for t, q in enumerate(qs):
            scores = {i: math.exp(compared(q, ks[i], c.score)) for i in seen_from(t, len(ks), c.mask)}
            answers[t].append(sum(s * vs[i] for i, s in scores.items()) / sum(scores.values()))
    return [linear(torch.cat(a), w, h + 'attn.c_proj') for a in answers]


def fed_forward(w, c, h, x):
    """What the feed-forward layer adds to x."""
    y = normed(x, w, h + 'ln_2', c.norm)
    up = linear(y, w, h + 'mlp.c_fc')
    if c.mlp == 'swiglu':
        inner = ACT['swiglu'](linear(y, w, h + 'mlp.c_gate')) * up
    else:
        inner = ACT[c.mlp](up)
    return linear(inner, w, h + 'mlp.c_proj')


def reference_logits(model, ids):
    """Logits (T, V) of one list of ids."""
    w, c = model.state_dict(), model.config
    xs = [embedded(w, c, token, pos) for pos, token in enumerate(ids)]
    for layer in range(c.n_layer):
        h = f'transformer.h.{layer}.'
        xs = [c.residual * x + change for x, change in zip(xs, attended(w, c, h, xs))]
        xs = [c.residual * x + fed_forward(w, c, h, x) for x in xs]
    return torch.stack([linear(normed(x, w, 'transformer.ln_f', c.norm), w, 'lm_head') for x in xs])


def wave(pos, j, width):
    angle = pos / 10000 ** ((j - j % 2) / width)
    return math.cos(angle) if j % 2 else math.sin(angle)
