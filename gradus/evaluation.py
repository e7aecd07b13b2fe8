"""How good is a model: its mean loss over fixed windows of a text."""

import math

import numpy as np
import torch


@torch.no_grad()
def evaluate(model, tokens, batch_size, n, run, byte_lengths=None):
    """
    Mean loss in nats per token, and bits per byte (None without byte_lengths), over n of the non-overlapping windows
    of `tokens` (0: all of them), batch_size at a time. Every rank takes a share of the batches.

    byte_lengths (V,): how many bytes of text each id stands for. Leaves the model in training mode, if it was.
    """
    was_training = model.training
    model.eval()
    starts = tokens.eval_starts(n)
    starts = np.append(starts, np.full(-len(starts) % batch_size, len(tokens)))   # fill the last batch with nothing
    loss_sum, n_tokens, n_bytes = 0.0, 0, 0
    for batch in starts.reshape(-1, batch_size)[run.rank::run.world_size]:
        x, y = tokens.windows(batch)                                            # (B, T) each
        real = y[y >= 0]
        with run.autocast():
            _, loss = model(*run.put(x, y))
        loss_sum += loss.item() * len(real)
        n_tokens += len(real)
        n_bytes += int(byte_lengths[real].sum()) if byte_lengths is not None else 0
    model.train(was_training)
    loss_sum, n_tokens, n_bytes = run.sum(loss_sum, n_tokens, n_bytes)
    return loss_sum / n_tokens, loss_sum / math.log(2) / n_bytes if n_bytes else None
