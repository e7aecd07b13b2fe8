"""
From the model's prediction to the next token.

    logits (B, V)  ->  repetition penalty  ->  temperature  ->  top_k  ->  top_p  ->  min_p  ->  ids (B, 1), drawn

Everything is computed in double precision on the CPU, so that the same seed gives the same text on every device. Each
row has its own random generator: what it draws depends on its seed alone, not on the rows beside it.
"""

import math
from copy import deepcopy

import torch

from gradus import inference
from gradus.errors import UserError, on_screen

NOT_FINITE = 'the model computes NaN or infinity: its weights are too large; use another checkpoint'


def in_double(logits):
    """The logits in double precision on the CPU. Raises UserError if the model computes NaN or infinity."""
    logits = logits.cpu().double()
    if logits.isnan().any() or (logits == math.inf).any():
        raise UserError(NOT_FINITE)
    return logits


def penalize_repetition(logits, ids, penalty):
    """Divide the logits of ids (B, T) already seen by `penalty`, multiply negative ones. Keskar et al. 2019."""
    seen = logits.gather(1, ids)                                                # (B, T)
    penalized = torch.where(seen > 0, seen / penalty, seen * penalty)
    return logits.scatter(1, ids, penalized)


def keep_top_k(logits, k):
    """Keep the k most likely ids, and ties with the last of them. Fan et al. 2018."""
    smallest = logits.topk(k).values[:, -1:]                                    # (B, 1)
    return logits.masked_fill(logits < smallest, -math.inf)


def keep_top_p(probs, p):
    """Keep the fewest most likely ids that together reach probability p. Holtzman et al. 2020."""
    ordered, ids = probs.sort(dim=-1, descending=True, stable=True)             # (B, V)
    drop = ordered.cumsum(dim=-1) - ordered >= p      # the ids before this one already reach p
    drop[:, 0] = False                                # p = 0 keeps one
    return probs.masked_fill(drop.scatter(1, ids, drop), 0.0)


def keep_min_p(probs, p):
    """Keep the ids at least p times as likely as the most likely one. Nguyen et al. 2024."""
    return probs.masked_fill(probs < p * probs.amax(dim=-1, keepdim=True), 0.0)


class Sampler:
    """
    Called with logits (B, V) and the ids so far (B, T), returns the next ids (B, 1).

    temperature: 0 takes the most likely id, below 1 sharpens the distribution, above 1 flattens it. top_k (None or 0),
    top_p (1), min_p (0) and repetition_penalty (1) do nothing at the values in brackets. seeds: one for each row.
    logprobs=True: after each call, `self.logprobs` (B, 1) holds each id's log-probability, before any of these.
    """

    AHEAD = 256                                       # random numbers are drawn in blocks of this size

    def __init__(self, temperature=1.0, top_k=None, top_p=1.0, min_p=0.0, repetition_penalty=1.0, seeds=(0,),
                 logprobs=False):
        self.temperature = temperature
        self.top_k = top_k
        self.top_p = top_p
        self.min_p = min_p
        self.repetition_penalty = repetition_penalty
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.drawn = 0
        self.keep_logprobs = logprobs
        self.logprobs = None

    def __call__(self, logits, ids):
        device = logits.device
        logits = in_double(logits)                                              # (B, V)
        adjusted = logits
        if self.repetition_penalty != 1:
            adjusted = penalize_repetition(logits, ids.cpu(), self.repetition_penalty)
        if self.temperature == 0:
            new = adjusted.argmax(dim=-1, keepdim=True)                         # (B, 1)
        else:
            new = self.draw(adjusted)
        if self.keep_logprobs:
            self.logprobs = logits.log_softmax(dim=-1).gather(1, new)           # (B, 1)
        return new.to(device)

    def distribution(self, logits):
        """
        How likely each id is to be drawn: probabilities (B, V) from logits (B, V) in double precision. Those of the ids
        that top_p or min_p leave out are 0, so that the rest may sum to less than 1.
        """
        if self.temperature == 0:
            return torch.zeros_like(logits).scatter(1, logits.argmax(dim=-1, keepdim=True), 1.0)
        logits = (logits - logits.amax(dim=-1, keepdim=True)) / self.temperature  # at most 0: no overflow
        if self.top_k and self.top_k < logits.size(-1):
            logits = keep_top_k(logits, self.top_k)
        probs = logits.softmax(dim=-1)                                          # (B, V)
        if self.top_p < 1:
            probs = keep_top_p(probs, self.top_p)
        if self.min_p:
            probs = keep_min_p(probs, self.min_p)
        return probs

    def draw(self, logits):
        """Ids (B, 1) drawn from logits (B, V)."""
        # Inverse CDF: the first id whose cumulative probability exceeds u.
        cdf = self.distribution(logits).cumsum(dim=-1)                          # (B, V)
        return torch.searchsorted(cdf, self.uniform() * cdf[:, -1:], right=True)  # (B, 1)

    def uniform(self):
        """The next random number of each row: (B, 1), at least 0 and less than 1."""
        if self.drawn % self.AHEAD == 0:
            numbers = [torch.rand(self.AHEAD, generator=g, dtype=torch.float64) for g in self.generators]
            self.numbers = torch.stack(numbers) * (1 - 1e-12)   # (B, AHEAD); so that u * sum < sum after rounding
        column = self.drawn % self.AHEAD
        self.drawn += 1
        return self.numbers[:, column, None]


def show_sample(model, dataset, cfg, worker):
    """
    Print cfg.sample_tokens tokens of a model in training, always of the same start and seed. Returns their text, '' if
    it cannot be shown. Changes nothing: torch's own random state stays, and the model goes back to training mode.
    """
    if dataset.tokenizer is None or not cfg.sample_tokens:
        return ''
    was_training = model.training
    if worker.device.type == 'cpu':                   # a copy that generates faster
        model = inference.prepare(deepcopy(model), torch.float32)
    start = torch.tensor([dataset.sample_start()], device=worker.device)        # (1, T)
    sampler = Sampler(temperature=0.8, top_k=200, seeds=[cfg.seed])
    try:
        with worker.autocast():
            ids = model.eval().generate(start, cfg.sample_tokens, sampler, dataset.tokenizer.n_vocab)
    except UserError as e:                            # the next evaluation stops the run, if it has to stop
        worker.print(f'no sample: {e}')
        return ''
    finally:
        model.train(was_training)
    text = dataset.sample_text(ids[0].tolist())
    worker.print(f'a sample:\n---------------\n{on_screen(text)}\n---------------')
    return text
