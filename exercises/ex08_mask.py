"""
8. The mask: no token sees what comes after it.

The mask is added to the logits before the softmax; e^-inf = 0, so those tokens get no weight at all:

    softmax(Q K^T / sqrt(D) + M) V        M_ts = 0 if s <= t, -inf if s > t

Shapes: M (T, T), row t: who asks, column s: who is asked. M is 0 on the diagonal and below it.

Hint: a token sees itself. 0 * -inf is nan, so multiplying a matrix of zeros and ones by -inf fails.
Answer: model.py, `CausalSelfAttention.forward`: is_causal; `KVCache.update` builds one with tril.
"""



def mask(T):
    """T: number of tokens. Returns M (T, T), float32: 0 where a token may look, -inf where it may not."""
    raise NotImplementedError
