"""
Beam search: look for the most likely completion.

Taking the most likely token each time is greedy: it misses a likely sentence that begins with an unlikely word. Beam
search follows the n most likely beginnings side by side.
"""

import math

import torch

from gradus.errors import UserError
from gradus.sampling import NOT_FINITE
from model import KVCache


@torch.inference_mode()
def search(model, prompts, end_id, max_new_tokens, n_vocab, beams=1, length_penalty=1.0):
    """
    Complete each of `prompts` (B, T): B lists of ids, without end_id. One beam is greedy search. The search for a
    prompt is over when `beams` completions have ended; what has not ended after max_new_tokens, or at the end of the
    context, is cut there.

    The best completion is the one with the highest log-probability divided by n ** length_penalty, n being its number
    of tokens: each token makes a completion less likely, so 0 prefers short ones. Wu et al. 2016, section 7. Raises
    UserError if the model computes NaN, or has no causal mask.
    """
    if model.config.mask != 'causal':
        raise UserError(f'mask={model.config.mask}: expected a model with a causal mask for beam search; use --beams=0')
    B, T = prompts.shape
    cache = KVCache(model.config)
    unread = prompts.repeat_interleave(beams, dim=0)                            # (B n, T)
    tokens = prompts.new_empty((B, beams, 0))                                   # the beams
    scores = torch.full((B, beams), -math.inf, device=prompts.device)           # their log-probabilities
    scores[:, 0] = 0.0                                # at first, the beams of a prompt are all the same: follow one
    first_row = torch.arange(B, device=prompts.device)[:, None] * beams         # (B, 1)
    ended = [[] for _ in range(B)]                    # (score, ids) of completions

    for length in range(1, min(max_new_tokens, model.config.block_size - T) + 1):
        # Every beam with every next token: the 2n most likely, so that n are left if n of them end here.
        logits, _ = model(unread, cache=cache)                                  # (B n, 1, V)
        logprobs = logits[:, -1, :n_vocab].float().log_softmax(dim=-1).view(B, beams, -1)
        if logprobs.isnan().any():
            raise UserError(NOT_FINITE)
        candidates = (scores[:, :, None] + logprobs).flatten(1)                 # (B, n V)
        top, flat = candidates.topk(min(2 * beams, candidates.size(1)))         # (B, 2n) each
        parents = flat // n_vocab
        new = flat % n_vocab
        ends = new == (-1 if end_id is None else end_id)

        # Completions that end among the n most likely ones.
        for b, rank in ends[:, :beams].nonzero().tolist():
            if len(ended[b]) < beams and top[b, rank] > -math.inf:
                score = top[b, rank].item() / length ** length_penalty
                ended[b].append((score, tokens[b, parents[b, rank]].tolist()))
        if all(len(found) == beams for found in ended):
            break

        # The n most likely others go on.
        scores, kept = top.masked_fill(ends, -math.inf).topk(beams)             # (B, n) each
        parents = parents.gather(1, kept)
        new = new.gather(1, kept)
        earlier = tokens.gather(1, parents[:, :, None].expand(-1, -1, length - 1))
        tokens = torch.cat((earlier, new[:, :, None]), dim=2)                   # (B, n, length)
        rows = (first_row + parents).flatten()
        cache.layers = [[keys[rows], values[rows]] for keys, values in cache.layers]
        unread = new.view(-1, 1)                                                # (B n, 1)

    return [max(found)[1] if found else beam[0].tolist() for found, beam in zip(ended, tokens)]


def complete(model, prompts, tokenizer, max_new_tokens, beams=1, progress=iter, rows=64):
    """
    Complete lists of ids by `search`, prompts of the same length side by side, `rows` beams at a time. Returns texts in
    the order of the prompts. progress: wraps the iterable of what is done together.
    """
    of_length = {}
    for i, ids in enumerate(prompts):
        of_length.setdefault(len(ids), []).append(i)
    at_once = max(rows // beams, 1)
    groups = [same[i:i + at_once] for same in of_length.values() for i in range(0, len(same), at_once)]

    device = model.transformer.wte.weight.device
    texts = [''] * len(prompts)
    for group in progress(groups):
        batch = torch.tensor([prompts[i] for i in group], device=device)        # (B, T)
        found = search(model, batch, tokenizer.end_id, max_new_tokens, tokenizer.n_vocab, beams)
        for i, ids in zip(group, found):
            texts[i] = tokenizer.decode(ids)
    return texts
