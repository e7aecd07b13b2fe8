"""
Two networks in one file: the MLP that reads digits, as a warm-up, and a decoder-only GPT.

    pixels (B, 784)   ->  layers of neurons                                      ->  activations (B, 10)
    token ids (B, T)  ->  vectors (B, T, C)  ->  n_layer blocks  ->  logits (B, T, V)

In the GPT, tokens become vectors (embedding). In each block, the vector of a token gathers information from the tokens
before it (attention), then is processed on its own (feed-forward: an MLP). Finally each vector is compared with every
token of the vocabulary (unembedding). That is all.

Shape letters used at the right margin:

    B  sequences in a batch               H  query heads                   n_head
    T  tokens in a sequence               G  key/value heads (<= H)        n_kv_head
    C  width of a token's vector  n_embd  D  width of a head               head_dim or C / H
    V  tokens in the vocabulary           F  hidden width of feed-forward  n_inner

Parameter names and defaults are nanoGPT's and GPT-2's, so that checkpoints are interchangeable. Needs torch alone.
"""

import math
from dataclasses import dataclass
from itertools import islice

import torch
import torch.nn as nn
from torch.nn import functional as F


class MLP(nn.Module):
    """
    A multilayer perceptron: a^l = act(w^l a^{l-1} + b^l). Nielsen 2015, equation 25.

    sizes: neurons in each layer, such as (784, 30, 10); activation: of the hidden layers, sigmoid or relu; cost: what
    the output activations mean, and the cost C of one example (y is 1 for the right digit, else 0). Raises ValueError.

        quadratic       a = sigmoid(z), ten independent numbers      C = |y - a|^2 / 2     Nielsen 2015, equation 26
        cross_entropy   a = softmax(z), ten that sum to 1            C = -ln a of the right digit, as in the GPT
    """

    def __init__(self, sizes, activation='sigmoid', cost='quadratic', batch_norm=False, dropout=0.0):
        super().__init__()
        if not all(isinstance(n, int) and n > 0 for n in sizes) or len(sizes) < 2:
            raise ValueError(f'sizes={sizes}: expected the number of neurons of two layers or more')
        if activation not in ('sigmoid', 'relu') or cost not in ('quadratic', 'cross_entropy'):
            raise ValueError(f'{activation}, {cost}: expected sigmoid or relu, and quadratic or cross_entropy')
        self.cost = cost
        self.act = torch.sigmoid if activation == 'sigmoid' else F.relu
        self.layers = nn.ModuleList(nn.Linear(n_in, n_out) for n_in, n_out in zip(sizes, sizes[1:]))
        self.norms = nn.ModuleList(nn.BatchNorm1d(n) if batch_norm else nn.Identity() for n in sizes[1:-1])
        self.dropout = nn.Dropout(dropout)

        for layer in self.layers:
            if activation == 'sigmoid':               # N(0, 1): Nielsen's first choice
                nn.init.normal_(layer.weight)
                nn.init.normal_(layer.bias)
            else:                                     # keeps the scale of activations across layers: He et al. 2015
                nn.init.kaiming_normal_(layer.weight, nonlinearity='relu')
                nn.init.zeros_(layer.bias)

    def forward(self, a, targets=None):
        """
        a (B, n_1) from 0 to 1; targets (B,) digits. Returns the output activations (B, n_L) and the mean cost, or
        None without targets.
        """
        for layer, norm in zip(self.layers, self.norms):
            a = self.dropout(self.act(norm(layer(a))))                          # (B, n_l)
        z = self.layers[-1](a).to(self.layers[-1].weight.dtype)                 # (B, n_L), full precision from here on
        a = z.sigmoid() if self.cost == 'quadratic' else z.softmax(dim=1)

        if targets is None:
            return a, None
        if self.cost == 'cross_entropy':
            return a, F.cross_entropy(z, targets)     # -ln a, from z without rounding errors
        y = F.one_hot(targets, a.size(1))                                       # (B, n_L)
        return a, (y - a).square().sum(dim=1).mean() / 2


@dataclass
class GPTConfig:
    """The shape of a GPT. The first seven fields are nanoGPT's; the rest default to GPT-2."""

    block_size: int = 1024     # context length: how many tokens the model sees at once
    vocab_size: int = 50304    # GPT-2's vocabulary, padded to a multiple of 64 for faster matmuls
    n_layer: int = 12          # blocks, one after the other
    n_head: int = 12           # attention heads: questions that a token can ask at the same time
    n_embd: int = 768          # width of a token's vector
    dropout: float = 0.0       # fraction of activations zeroed in training: 0 for pretraining, 0.1+ for little data
    bias: bool = True          # in Linear and LayerNorm, as in GPT-2; without is as good and faster
    pos: str = 'learned'       # how positions are encoded: learned, sinusoidal, rotary, none
    norm: str = 'layernorm'    # layernorm, rmsnorm (no mean, no bias: cheaper), none
    mlp: str = 'gelu'          # gelu, gelu_tanh (OpenAI's GPT-2 weights), relu, swiglu, sigmoid
    qk_norm: bool = False      # normalize queries and keys: keeps attention logits bounded
    n_kv_head: int = 0         # key/value heads, each shared by a group of query heads; 0 = n_head
    tie_weights: bool = True   # one matrix serves as embedding and unembedding
    rope_theta: float = 10000.0  # base of the rotary wavelengths
    n_inner: int = 0           # hidden width of feed-forward; 0 = 4 C, for swiglu 8/3 C (as many weights)
    head_dim: int = 0          # width of a head; 0 = C / H
    norm_eps: float = 0.0      # added to the variance in a norm; 0 = 1e-5 for layernorm, 1e-6 for rmsnorm
    score: str = 'dot'         # of a query and a key: dot, or to ask what if: squared, reversed, unscaled
    mask: str = 'causal'       # whom a token sees: causal, or to ask what if: other_half, none
    residual: bool = True      # add to the residual stream; False, to ask what if: replace it

    def __post_init__(self):
        """Raises ValueError for a shape that cannot be built."""
        sizes = dict(block_size=1, vocab_size=1, n_layer=1, n_head=1, n_embd=1, n_kv_head=0, n_inner=0, head_dim=0)
        for name, lowest in sizes.items():
            value = getattr(self, name)
            if not isinstance(value, int) or not lowest <= value <= 2 ** 20:
                raise ValueError(f'{name}={value!r}: expected an integer of {lowest} or more, at most {2 ** 20:,}')
        for name, kinds in dict(pos=POSITIONS, norm=NORMS, mlp=ACTIVATIONS, score=SCORES, mask=MASKS).items():
            if getattr(self, name) not in kinds:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected one of {', '.join(kinds)}")
        for name in ('dropout', 'norm_eps'):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f'{name}={getattr(self, name)}: expected at least 0 and less than 1')
        if self.n_embd % self.n_head and not self.head_dim:
            raise ValueError(f'n_embd={self.n_embd}, n_head={self.n_head}: expected n_embd to be a multiple of n_head')
        if self.n_head % self.kv_heads:
            raise ValueError(f'n_head={self.n_head}, n_kv_head={self.n_kv_head}: '
                             'expected n_head to be a multiple of n_kv_head')
        if self.pos == 'rotary' and (self.head_width % 2 or not 0 < self.rope_theta < math.inf):
            raise ValueError(f'head_dim or n_embd / n_head = {self.head_width}, rope_theta={self.rope_theta}: '
                             'expected an even head width and a positive theta')

    @property
    def head_width(self):
        return self.head_dim or self.n_embd // self.n_head

    @property
    def kv_heads(self):
        return self.n_kv_head or self.n_head

    @property
    def eps(self):
        return self.norm_eps or (1e-5 if self.norm == 'layernorm' else 1e-6)

    @property
    def hidden(self):
        if self.mlp == 'swiglu':                      # three matrices instead of two: 2/3 of the width each
            return self.n_inner or math.ceil(8 * self.n_embd / 3 / 64) * 64
        return self.n_inner or 4 * self.n_embd


POSITIONS = ('learned', 'sinusoidal', 'rotary', 'none')
NORMS = {
    'layernorm': lambda c: nn.LayerNorm(c.n_embd, eps=c.eps, bias=c.bias),
    'rmsnorm': lambda c: nn.RMSNorm(c.n_embd, eps=c.eps),
    'none': lambda c: nn.Identity(),
}
ACTIVATIONS = {
    'gelu': F.gelu,
    'gelu_tanh': lambda x: F.gelu(x, approximate='tanh'),
    'relu': F.relu,
    'swiglu': F.silu,
    'sigmoid': torch.sigmoid,
}
SCORES = {
    'dot': lambda q, k: q @ k.mT / math.sqrt(q.size(-1)),
    'squared': lambda q, k: q.square() @ k.square().mT / math.sqrt(q.size(-1)),
    'reversed': lambda q, k: -q @ k.mT / math.sqrt(q.size(-1)),
    'unscaled': lambda q, k: q @ k.mT,
}
MASKS = {
    'causal': torch.tril,             # each token sees itself and the tokens before it
    'other_half': torch.triu,         # itself and the tokens after it
    'none': lambda every, _: every,
}


def sinusoidal(n, width):
    """PE[pos, 2i] = sin(pos / 10000^(2i/C)), PE[pos, 2i+1] = cos(same). Vaswani et al. 2017, section 3.5."""
    pos = torch.arange(n).float()[:, None]                                      # (n, 1)
    rate = 10000.0 ** (-torch.arange(0, width, 2).float() / width)              # (C/2,)
    pe = torch.stack((torch.sin(pos * rate), torch.cos(pos * rate)), dim=-1)    # (n, C/2, 2)
    return pe.flatten(1)[:, :width]                                             # (n, C)


def rotary(n, width, theta):
    """Cosine and sine of the angle pos * theta^(-2i/D). Su et al. 2021, equation 15; (n, D/2) each."""
    rate = theta ** (-torch.arange(0, width, 2).float() / width)                # (D/2,)
    angle = torch.arange(n).float()[:, None] * rate                             # (n, D/2)
    return angle.cos(), angle.sin()


def rotate(x, cos, sin):
    """Rotate the pairs (x[i], x[i + D/2]) by their position's angle, so that q . k depends on distance only."""
    a, b = x.chunk(2, dim=-1)                                                   # (B, H, T, D/2) each
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1).type_as(x)  # (B, H, T, D)


def attention_weights(q, k, score='dot', mask='causal', visible=None):
    """
    softmax(Q K^T / sqrt(D) + mask), step by step: how much each of T queries takes from each of S keys. q (B, H, T, D),
    k (B, G, S, D); the queries are the last T of S tokens, unless visible (T, S) says who sees whom. Returns
    (B, H, T, S); each row sums to 1.
    """
    k = k.repeat_interleave(q.size(1) // k.size(1), dim=1)                      # (B, H, S, D)
    if visible is None:
        T, S = q.size(2), k.size(2)
        visible = MASKS[mask](torch.ones(T, S, dtype=torch.bool, device=q.device), S - T)
    scores = SCORES[score](q, k).masked_fill(~visible, -math.inf)               # (B, H, T, S)
    return scores.softmax(dim=-1)


class CausalSelfAttention(nn.Module):
    """
    Each token asks a question (its query, Q). Each earlier token offers a description of itself (its key, K). The
    answer is the mean of what those tokens hold (their values, V), weighted by how well query and key match:

        Attention(Q, K, V) = softmax(Q K^T / sqrt(D) + mask) V        Vaswani et al. 2017, equation 1

    The mask is minus infinity above the diagonal: no token sees what comes after it.
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.widths = [n * config.head_width for n in (config.n_head, config.kv_heads, config.kv_heads)]
        self.c_attn = nn.Linear(config.n_embd, sum(self.widths), bias=config.bias)  # W_Q, W_K, W_V, stacked
        self.c_proj = nn.Linear(self.widths[0], config.n_embd, bias=config.bias)    # mixes the heads: W_O
        self.resid_dropout = nn.Dropout(config.dropout)
        if config.qk_norm:
            self.q_norm = nn.RMSNorm(config.head_width, eps=config.eps)
            self.k_norm = nn.RMSNorm(config.head_width, eps=config.eps)

    def split(self, heads, angles=None):
        """heads (B, T, H + 2G, D) -> queries (B, H, T, D), keys (B, G, T, D), both ready to be compared, and values."""
        c = self.config
        q, k, v = heads.transpose(1, 2).split((c.n_head, c.kv_heads, c.kv_heads), dim=1)
        if c.qk_norm:
            q = self.q_norm(q.type_as(self.q_norm.weight)).type_as(v)
            k = self.k_norm(k.type_as(self.k_norm.weight)).type_as(v)
        if angles is not None:
            q, k = rotate(q, *angles), rotate(k, *angles)
        return q, k, v

    def attend(self, q, k, v, mask=None):
        """`attention_weights` of q and k, times v: (B, H, T, D). One fast operation for all heads if there is one."""
        c = self.config
        dropout = c.dropout if self.training else 0.0
        if (c.score, c.mask) == ('dot', 'causal'):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None and q.size(2) > 1,
                                                  dropout_p=dropout, enable_gqa=c.kv_heads != c.n_head)
        v = v.repeat_interleave(c.n_head // c.kv_heads, dim=1)                  # (B, H, S, D)
        return F.dropout(attention_weights(q, k, c.score, c.mask, mask), dropout) @ v

    def forward(self, x, angles=None, cache=None, layer=0):
        """(B, T, C) -> (B, T, C). angles: rotate q and k; cache: a `KVCache` in which this is layer `layer`."""
        B, T, C = x.shape
        heads = self.c_attn(x).view(B, T, -1, self.config.head_width)           # (B, T, H + 2G, D)
        q, k, v = self.split(heads, angles)                                     # (B, H, T, D), (B, G, T, D) twice

        mask = None
        if cache is not None:
            k, v, mask = cache.update(layer, k, v)                              # (B, G, S, D), S >= T; (T, S)

        y = self.attend(q, k, v, mask)                                          # (B, H, T, D)
        y = y.transpose(1, 2).reshape(B, T, -1)                                 # heads side by side: (B, T, H D)
        return self.resid_dropout(self.c_proj(y))


class FeedForward(nn.Module):
    """
    Each token on its own: widen, apply a nonlinearity, narrow.  y = W_down act(W_up x).
    SwiGLU gates one projection with another (Shazeer 2020, equation 6):  y = W_down (silu(W_gate x) * W_up x).
    """

    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, config.hidden, bias=config.bias)
        self.gated = config.mlp == 'swiglu'
        if self.gated:
            self.c_gate = nn.Linear(config.n_embd, config.hidden, bias=config.bias)
        self.c_proj = nn.Linear(config.hidden, config.n_embd, bias=config.bias)
        self.act = ACTIVATIONS[config.mlp]
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x):                                                       # (B, T, C)
        if self.gated:
            h = self.act(self.c_gate(x)) * self.c_fc(x)                         # (B, T, F)
        else:
            h = self.act(self.c_fc(x))
        return self.dropout(self.c_proj(h))                                     # (B, T, C)


class Block(nn.Module):
    """Two updates of the residual stream: from the tokens so far (attention), then each on its own (feed-forward)."""

    def __init__(self, config):
        super().__init__()
        self.residual = config.residual
        self.ln_1 = NORMS[config.norm](config)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = NORMS[config.norm](config)
        self.mlp = FeedForward(config)

    def forward(self, x, angles=None, cache=None, layer=0):                     # (B, T, C)
        if not self.residual:
            return self.mlp(self.ln_2(self.attn(self.ln_1(x), angles, cache, layer)))
        x = x + self.attn(self.ln_1(x), angles, cache, layer)
        return x + self.mlp(self.ln_2(x))


def greedy(logits, ids):
    """The simplest way to choose the next ids (B, 1): argmax of logits (B, V). gradus/sampling.py has others."""
    return logits.argmax(dim=-1, keepdim=True)


class GPT(nn.Module):
    """GPT-2 (Radford et al. 2019) by default; the fields of `GPTConfig` turn it into its descendants."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.transformer = nn.ModuleDict(dict(wte=nn.Embedding(config.vocab_size, config.n_embd)))
        if config.pos == 'learned':
            self.transformer['wpe'] = nn.Embedding(config.block_size, config.n_embd)
        self.transformer['drop'] = nn.Dropout(config.dropout)
        self.transformer['h'] = nn.ModuleList([Block(config) for _ in range(config.n_layer)])
        self.transformer['ln_f'] = NORMS[config.norm](config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tie_weights:
            self.transformer.wte.weight = self.lm_head.weight
        self.init_tables()
        self.init_weights()

    def init_tables(self):
        """Fixed tables of positions: computed, never trained, never stored."""
        c = self.config
        if c.pos == 'sinusoidal':
            self.register_buffer('pe', sinusoidal(c.block_size, c.n_embd), persistent=False)
        if c.pos == 'rotary':
            cos, sin = rotary(c.block_size, c.head_width, c.rope_theta)
            self.register_buffer('cos', cos, persistent=False)
            self.register_buffer('sin', sin, persistent=False)

    @torch.no_grad()
    def init_weights(self):
        """Everything N(0, 0.02), biases 0, norms 1; what writes to the residual stream is scaled down with depth."""
        for name, p in self.named_parameters():
            if name.endswith('bias'):
                nn.init.zeros_(p)
            elif p.dim() == 1:
                nn.init.ones_(p)
            elif name.endswith('c_proj.weight'):      # 2 n_layer of them add up: GPT-2 paper, section 2.3
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * self.config.n_layer))
            else:
                nn.init.normal_(p, std=0.02)

    def forward(self, idx, targets=None, cache=None, temperature=1.0):
        """
        idx (B, T) int64 ids; targets (B, T), the same shifted by one, -1 where there is nothing to learn.

        With targets: logits (B, T, V), divided by temperature, and their mean cross-entropy in nats per token. Without:
        logits (B, 1, V) of the last token, which is all that generation needs, and None. With a `KVCache`, idx
        continues the tokens that the cache has seen. Raises ValueError beyond block_size.
        """
        T = idx.size(1)
        c = self.config
        positions = cache.advance(T) if cache else slice(T)
        if T > c.block_size:
            raise ValueError(f'{T} tokens: expected at most block_size={c.block_size}')
        if cache and c.mask != 'causal':              # the past would change with every new token
            raise ValueError(f'mask={c.mask}: expected causal, to use a cache')

        # Embed: what each token is, and where it is.
        x = self.transformer.wte(idx)                                           # (B, T, C)
        angles = None
        if c.pos == 'learned':
            x = x + self.transformer.wpe.weight[positions]                      # (T, C), for every sequence
        elif c.pos == 'sinusoidal':                   # scaled as in section 3.4, otherwise PE drowns the words
            x = x * math.sqrt(c.n_embd) + self.pe[positions]
        elif c.pos == 'rotary':
            angles = self.cos[positions], self.sin[positions]                   # (T, D/2) each
        x = self.transformer.drop(x)

        # Blocks.
        for layer, block in enumerate(self.transformer.h):
            x = block(x, angles, cache, layer)                                  # (B, T, C)
        x = self.transformer.ln_f(x)

        # Unembed, and compare with the targets.
        if targets is None:
            return self.lm_head(x[:, -1:]), None                                # (B, 1, V)
        logits = self.lm_head(x if temperature == 1 else x / temperature)       # (B, T, V)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)
        return logits, loss

    def crop_block_size(self, block_size):
        """Drop the positions from block_size on, to use a shorter context. Raises ValueError for a longer one."""
        if block_size > self.config.block_size:
            raise ValueError(f'block_size={block_size}: expected at most {self.config.block_size}, the model\'s own')
        self.config.block_size = block_size
        if self.config.pos == 'learned':
            self.transformer.wpe.weight = nn.Parameter(self.transformer.wpe.weight[:block_size].detach().clone())

    def num_params(self):
        """Number of weights; a tied matrix counts once."""
        return sum(p.numel() for p in self.parameters())

    def generate(self, idx, max_new_tokens, choose=greedy, n_vocab=None):
        """Extend idx (B, T) by max_new_tokens, as `stream` makes them: (B, T + new)."""
        return torch.cat((idx, *islice(self.stream(idx, choose, n_vocab), max_new_tokens)), dim=1)

    @torch.inference_mode()
    def stream(self, idx, choose=greedy, n_vocab=None):
        """
        Extend idx (B, T), endlessly: each step yields the next ids (B, 1), which choose(logits (B, V), ids (B, T'))
        picks. Ids >= n_vocab are padding and never chosen. Call eval() first.

        When the context is full, its newer half is processed again. So every token sees at least half a context, and
        is processed twice at most. Dropping only the oldest token would mean processing the whole context again for
        each new one, because from layer 2 on, cached keys and values depend on all earlier tokens.
        """
        size = self.config.block_size
        cache = KVCache(self.config) if self.config.mask == 'causal' else None
        unread = idx[:, -size:]                                                 # (B, T')
        while True:
            if cache is None:
                unread = idx[:, -size:]
            elif cache.length + unread.size(1) > size:
                cache.length = 0
                unread = idx[:, -((size + 1) // 2):]
            logits, _ = self(unread, cache=cache)                               # (B, 1, V)
            unread = choose(logits[:, -1, :n_vocab], idx)                       # (B, 1)
            idx = torch.cat((idx, unread), dim=1)
            yield unread


class KVCache:
    """
    Keys and values of the tokens seen so far: two tensors (B, G, block_size, D) a layer, the first `length` positions
    in use. Under a causal mask the past never changes, so a new token costs one row instead of a whole window.
    """

    def __init__(self, config):
        self.size = config.block_size
        self.layers = [None] * config.n_layer
        self.length = 0

    def advance(self, T):
        """Reserve the positions of T new tokens and return them as a slice. Raises ValueError if there is no room."""
        self.positions = slice(self.length, self.length + T)
        if self.positions.stop > self.size:
            raise ValueError(f'{self.positions.stop} tokens: expected at most block_size={self.size}')
        self.length = self.positions.stop
        return self.positions

    def update(self, layer, k, v):
        """
        Store k, v (B, G, T, D) of the new tokens in layer `layer`. Returns the keys and values of all tokens
        (B, G, length, D), and a mask (T, length) of who sees whom, None where no mask is needed.
        """
        if self.layers[layer] is None:
            self.layers[layer] = [x.new_zeros(*x.shape[:2], self.size, x.size(3)) for x in (k, v)]
        keys, values = self.layers[layer]
        keys[:, :, self.positions] = k
        values[:, :, self.positions] = v

        T, S = k.size(2), self.length
        mask = None
        if 1 < T < S:                                 # new tokens see all old ones, and the new ones up to themselves
            mask = torch.ones(T, S, dtype=torch.bool, device=k.device).tril(S - T)
        return keys[:, :, :S], values[:, :, :S], mask
