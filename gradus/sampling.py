"""
From what the model predicts to the token that is taken.

    logits (B, V)  ->  repetition penalty  ->  temperature  ->  top_k  ->  top_p  ->  min_p  ->  ids (B, 1), drawn

Everything is computed in double precision on the CPU, so that the same seed gives the same text on every device. Each row
has a random generator of its own: what it draws depends on its seed alone, not on the rows beside it.
"""

import math

import torch


def penalize(logits, ids, penalty):
    """What was said already becomes less likely: logits of ids (B, T) seen are divided by `penalty`, negative ones multiplied. Keskar et al. 2019."""
    seen = logits.gather(1, ids)                                                # (B, T)
    return logits.scatter(1, ids, torch.where(seen > 0, seen / penalty, seen * penalty))


def keep_top_k(logits, k):
    """Only the k likeliest stay, and those as likely as the last of them. Fan et al. 2018."""
    smallest = logits.topk(k).values[:, -1:]                                    # (B, 1)
    return logits.masked_fill(logits < smallest, -math.inf)


def keep_top_p(probs, p):
    """The fewest of the likeliest that together have a probability of at least p. Holtzman et al. 2020."""
    ordered, ids = probs.sort(dim=-1, descending=True, stable=True)             # (B, V)
    drop = ordered.cumsum(dim=-1) - ordered >= p      # enough is reached before these
    drop[:, 0] = False                                                          # p = 0
    return probs.masked_fill(drop.scatter(1, ids, drop), 0.0)


def keep_min_p(probs, p):
    """Those that are at least p times as likely as the likeliest. Nguyen et al. 2024."""
    return probs.masked_fill(probs < p * probs.amax(dim=-1, keepdim=True), 0.0)


class Sampler:
    """
    Called with logits (B, V) and the ids so far (B, T), it returns the next ids (B, 1).

    temperature: 0 takes the likeliest, below 1 the likely become likelier, above 1 all become alike; top_k (None or 0), top_p (1),
    min_p (0) and repetition_penalty (1) do nothing at the values in brackets; seeds: one for each row.
    logprobs=True: `self.logprobs` (B, 1) holds the log-probability of each id taken, by the model alone.
    """

    AHEAD = 256                                       # random numbers are drawn in blocks of so many

    def __init__(self, temperature=1.0, top_k=None, top_p=1.0, min_p=0.0, repetition_penalty=1.0, seeds=(0,), logprobs=False):
        self.temperature, self.top_k, self.top_p, self.min_p = temperature, top_k, top_p, min_p
        self.penalty, self.keep_logprobs, self.logprobs = repetition_penalty, logprobs, None
        self.generators, self.drawn = [torch.Generator().manual_seed(seed) for seed in seeds], 0

    def __call__(self, logits, ids):
        device, logits = logits.device, logits.cpu().double()                   # (B, V)
        weighed = logits if self.penalty == 1 else penalize(logits, ids.cpu(), self.penalty)
        new = weighed.argmax(dim=-1, keepdim=True) if self.temperature == 0 else self.draw(weighed)
        if self.keep_logprobs:
            self.logprobs = logits.log_softmax(dim=-1).gather(1, new)           # (B, 1)
        return new.to(device)

    def draw(self, logits):
        logits = (logits - logits.amax(dim=-1, keepdim=True)) / self.temperature  # at most 0: no overflow
        if self.top_k and self.top_k < logits.size(-1):
            logits = keep_top_k(logits, self.top_k)
        probs = logits.softmax(dim=-1)                                          # (B, V)
        if self.top_p < 1:
            probs = keep_top_p(probs, self.top_p)
        if self.min_p:
            probs = keep_min_p(probs, self.min_p)
        # A number u from 0 to 1 falls on one of the pieces, as long as the probabilities, that make up a line.
        ends = probs.cumsum(dim=-1)                                             # (B, V)
        return torch.searchsorted(ends, self.uniform() * ends[:, -1:], right=True)   # (B, 1)

    def uniform(self):
        """The next random number of each row: (B, 1), at least 0 and less than 1."""
        if self.drawn % self.AHEAD == 0:
            numbers = [torch.rand(self.AHEAD, generator=g, dtype=torch.float64) for g in self.generators]
            self.numbers = torch.stack(numbers) * (1 - 1e-12)   # (B, AHEAD); times any sum, still less than the sum
        self.drawn += 1
        return self.numbers[:, (self.drawn - 1) % self.AHEAD, None]
