"""What a GPT costs: its weights by their role, and the arithmetic of a step; and how far a step moves them."""

import torch
from torch.nn.utils import get_total_norm


def param_table(model):
    """{role: number of weights}. A tied matrix counts in both its roles: the sum is num_params() + V C then."""
    kinds = {'bias': 'bias', 'ln_': 'norm', '_norm': 'norm', 'wte': 'embedding', 'wpe': 'position', 'c_fc': 'up',
             'attn.c_proj': 'output', 'c_gate': 'gate', 'mlp.c_proj': 'down', 'lm_head': 'unembedding'}
    table = dict.fromkeys((*kinds.values(), 'Q', 'K', 'V'), 0)
    for name, p in model.named_parameters(remove_duplicate=False):
        if name.endswith('c_attn.weight'):
            for kind, rows in zip('QKV', model.transformer.h[0].attn.widths):
                table[kind] += rows * p.size(1)
        else:
            kind = next(kind for part, kind in kinds.items() if part in name)
            table[kind] += p.numel()
    return table


def flops_per_token(model):
    """Forward and backward, T = block_size: 6 per weight and 12 L H D T for attention. PaLM paper, appendix B."""
    c = model.config
    weights = sum(n for kind, n in param_table(model).items() if kind not in ('embedding', 'position'))
    return 6 * weights + 12 * c.n_layer * c.n_head * c.head_width * c.block_size


def matrices(model):
    """{kind: embeddings and matrices}. A tied matrix is an embedding. No biases, no norms."""
    kinds = {'wte': 'embedding', 'wpe': 'position', '.attn.': 'attention', '.mlp.': 'mlp', 'lm_head': 'unembedding'}
    found = {}
    for name, p in model.named_parameters():
        if p.dim() == 2:
            kind = next(kind for part, kind in kinds.items() if part in name)
            found.setdefault(kind, []).append(p.detach())
    return found


def copy_matrices(model):
    """`matrices`, copied to the CPU."""
    return {kind: [p.to('cpu', copy=True) for p in of_kind] for kind, of_kind in matrices(model).items()}


def update_ratios(before, model):
    """{kind: norm of the change of all its weights since `before`, a `copy_matrices`, divided by their norm then}"""
    ratios = {}
    for kind, now in matrices(model).items():
        changes = [(new.cpu() - old).norm() for old, new in zip(before[kind], now)]
        ratios[kind] = (torch.stack(changes).norm() / get_total_norm(before[kind])).item()
    return ratios
