"""How far a training step moves the weights, by kind of matrix: about a thousandth of their size is usual for AdamW."""

import torch
from torch.nn.utils import get_total_norm


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
