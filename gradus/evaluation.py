"""How good is a model: its mean loss over fixed windows of a text, or how well it completes pairs."""

import math

import numpy as np
import torch


def estimate_loss(model, dataset, cfg, worker):
    """The losses over fixed windows of both splits, as train.py logs them; cfg: its settings."""
    n = cfg.eval_iters * cfg.batch_size
    train_loss, _ = evaluate(model, dataset.train, cfg.batch_size, n, worker)
    val_loss, bits = evaluate(model, dataset.val, cfg.batch_size, n, worker, dataset.byte_lengths)
    losses = dict(train_loss=train_loss, val_loss=val_loss)
    if bits:
        losses['val_bits_per_byte'] = bits
    return losses


@torch.no_grad()
def evaluate(model, tokens, batch_size, n, worker, byte_lengths=None):
    """
    Mean loss in nats per token, and bits per byte (None without byte_lengths), over n of the non-overlapping windows
    of `tokens` (0: all of them), batch_size at a time, divided among the processes.

    byte_lengths (V,): how many bytes of text each id stands for. A model in training mode is returned to it.
    """
    was_training = model.training
    model.eval()

    # The windows, in batches; the last batch is padded with windows beyond the end, which hold no targets.
    starts = tokens.eval_starts(n)
    padding = np.full(-len(starts) % batch_size, len(tokens))
    batches = np.append(starts, padding).reshape(-1, batch_size)

    losses = []                                       # read at the end, so that a GPU never waits for the next batch
    counts = []                                       # of the targets in each batch
    n_bytes = 0
    for batch in batches[worker.rank::worker.world_size]:
        x, y = tokens.windows(batch)                                            # (B, T) each
        real = y[y >= 0]
        with worker.autocast():
            _, loss = model(*worker.to_device(x, y))
        losses.append(loss)
        counts.append(len(real))
        if byte_lengths is not None:
            n_bytes += int(byte_lengths[real].sum())

    model.train(was_training)
    loss_sum = 0.0
    for loss, n_targets in zip(losses, counts):
        loss_sum += loss.item() * n_targets
    loss_sum, n_tokens, n_bytes = worker.sum(loss_sum, sum(counts), n_bytes)
    bits_per_byte = loss_sum / math.log(2) / n_bytes if n_bytes else None
    return loss_sum / n_tokens, bits_per_byte


def score_texts(texts, wanted):
    """How many of the texts are exactly the wanted ones, and BLEU (Papineni et al. 2002), in words."""
    exact = sum(text == other for text, other in zip(texts, wanted)) / len(wanted)
    try:
        from sacrebleu.metrics import BLEU
    except ImportError:
        return f'exact match {exact:.2%}, BLEU needs sacrebleu: pip install sacrebleu'
    metric = BLEU()
    score = metric.corpus_score(texts, [wanted]).format(score_only=True)
    return f'exact match {exact:.2%}, {score} BLEU ({metric.get_signature()})'  # comparable: Post 2018
