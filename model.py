"""
Two networks in one file: the MLP that reads digits, as a warm-up, and a decoder-only GPT.

    pixels (B, 784)   ->  layers of neurons                                      ->  activations (B, 10)
    token ids (B, T)  ->  vectors (B, T, C)  ->  n_layer blocks  ->  logits (B, T, V)

In the GPT words become numbers (embedding), the numbers of a token look at those of the tokens before
it (attention), every token thinks for itself (feed-forward: an MLP), and the last vector of each token is
compared with every word of the vocabulary (unembedding). Nothing else happens.

Shape letters used at the right margin:

    B  sequences in a batch               H  query heads                   n_head
    T  tokens in a sequence               G  key/value heads (<= H)        n_kv_head
    C  width of a token's vector  n_embd  D  width of a head               C / H
    V  words in the vocabulary            F  hidden width of feed-forward  n_inner

Parameter names and defaults are nanoGPT's and GPT-2's, so that checkpoints are exchangeable.
"""

import math
from dataclasses import dataclass
from itertools import islice

import torch
import torch.nn as nn
from torch.nn import functional as F


class ModelError(ValueError):
    """A shape that cannot be built, or weights that do not fit it, in one line."""


class MLP(nn.Module):
    """
    Layers of neurons, each a weighted sum of all those before it, bent: a^l = act(w^l a^{l-1} + b^l). Nielsen 2015, equation 25.
    sizes: neurons in each layer, (784, 30, 10) say; activation: of the hidden layers, sigmoid or relu; cost: what the
    last activations mean, and what wrong ones cost (y is 1 for the right digit, else 0). Raises ModelError.

        quadratic       a = sigmoid(z), ten numbers of their own     C = |y - a|^2 / 2     Nielsen 2015, equation 26
        cross_entropy   a = softmax(z), ten shares that sum to 1     C = -ln a of the right one, as in the GPT
    """

    def __init__(self, sizes, activation='sigmoid', cost='quadratic', batch_norm=False, dropout=0.0):
        super().__init__()
        if not all(isinstance(n, int) and n > 0 for n in sizes) or len(sizes) < 2:
            raise ModelError(f'sizes={sizes}: expected the neurons of two layers or more')
        if activation not in ('sigmoid', 'relu') or cost not in ('quadratic', 'cross_entropy'):
            raise ModelError(f'activation={activation}, cost={cost}: expected sigmoid or relu, and quadratic or cross_entropy')
        self.cost, self.act = cost, torch.sigmoid if activation == 'sigmoid' else F.relu
        self.layers = nn.ModuleList(nn.Linear(n_in, n_out) for n_in, n_out in zip(sizes, sizes[1:]))
        self.norms = nn.ModuleList(nn.BatchNorm1d(n) if batch_norm else nn.Identity() for n in sizes[1:-1])
        self.dropout = nn.Dropout(dropout)
        for layer in self.layers:
            if activation == 'sigmoid':               # N(0, 1): Nielsen's first choice
                nn.init.normal_(layer.weight)
                nn.init.normal_(layer.bias)
            else:                                     # activations keep their size from layer to layer: He et al. 2015
                nn.init.kaiming_normal_(layer.weight, nonlinearity='relu')
                nn.init.zeros_(layer.bias)

    def forward(self, a, targets=None):
        """a (B, n_1) from 0 to 1, targets (B,) digits: the last activations (B, n_L), and with targets the mean cost."""
        for layer, norm in zip(self.layers, self.norms):
            a = self.dropout(self.act(norm(layer(a))))                          # (B, n_l)
        z = self.layers[-1](a).to(self.layers[-1].weight.dtype)                 # (B, n_L), in full precision from here on
        a = z.sigmoid() if self.cost == 'quadratic' else z.softmax(dim=1)
        if targets is None or self.cost == 'cross_entropy':
            return a, None if targets is None else F.cross_entropy(z, targets)  # the same as -ln a, without rounding
        y = F.one_hot(targets, a.size(1))                                       # (B, n_L)
        return a, (y - a).square().sum(dim=1).mean() / 2


@dataclass
class GPTConfig:
    """The shape of a GPT. The first seven fields are nanoGPT's; the rest default to GPT-2."""

    block_size: int = 1024     # the context: how many tokens the model sees at once
    vocab_size: int = 50304    # GPT-2's vocabulary, padded to a multiple of 64 for faster matmuls
    n_layer: int = 12          # blocks, one after the other
    n_head: int = 12           # heads: questions that a token can ask at the same time
    n_embd: int = 768          # width of a token's vector
    dropout: float = 0.0       # share of activations zeroed in training: 0 for pretraining, 0.1+ for little data
    bias: bool = True          # in Linear and LayerNorm, as GPT-2; without is as good and faster
    pos: str = 'learned'       # where a token's place comes from: learned, sinusoidal, rotary
    norm: str = 'layernorm'    # layernorm, rmsnorm (no mean, no bias: cheaper)
    mlp: str = 'gelu'          # gelu, gelu_tanh (OpenAI's GPT-2 weights), relu, swiglu
    qk_norm: bool = False      # normalise queries and keys: attention logits cannot grow
    n_kv_head: int = 0         # key/value heads shared by groups of query heads; 0 = n_head
    tie_weights: bool = True   # one matrix serves as embedding and unembedding
    rope_theta: float = 10000.0  # longest wavelength of the rotary angles
    n_inner: int = 0           # hidden width of feed-forward; 0 = 4 C, for swiglu 8/3 C (equal weights)

    def __post_init__(self):
        """Raises ModelError for a shape that cannot be built."""
        for name in ('block_size', 'vocab_size', 'n_layer', 'n_head', 'n_embd'):
            value = getattr(self, name)
            if not isinstance(value, int) or not 1 <= value <= 2 ** 20:
                raise ModelError(f'{name}={value!r}: expected an integer of 1 or more, at most {2 ** 20:,}')
        for name, kinds in (('pos', POSITIONS), ('norm', NORMS), ('mlp', ACTIVATIONS)):
            if getattr(self, name) not in kinds:
                raise ModelError(f"{name}={getattr(self, name)!r}: expected one of {', '.join(kinds)}")
        if not 0 <= self.dropout < 1:
            raise ModelError(f'dropout={self.dropout}: expected at least 0 and less than 1')
        if self.n_embd % self.n_head:
            raise ModelError(f'n_embd={self.n_embd}, n_head={self.n_head}: expected n_embd to be a multiple of n_head')
        if self.n_kv_head < 0 or self.n_inner < 0:
            raise ModelError(f'n_kv_head={self.n_kv_head}, n_inner={self.n_inner}: expected 0 (automatic) or more')
        if self.n_kv_head and self.n_head % self.n_kv_head:
            raise ModelError(f'n_head={self.n_head}, n_kv_head={self.n_kv_head}: expected n_head to be a multiple of n_kv_head')
        if self.pos == 'rotary' and (self.head_dim % 2 or self.rope_theta <= 0):
            raise ModelError(f'n_embd / n_head = {self.head_dim}, rope_theta={self.rope_theta}: expected an even head width and a positive theta')

    @property
    def head_dim(self):
        return self.n_embd // self.n_head

    @property
    def kv_heads(self):
        return self.n_kv_head or self.n_head

    @property
    def hidden(self):
        if self.mlp == 'swiglu':                      # three matrices instead of two: 2/3 of the width each
            return self.n_inner or math.ceil(8 * self.n_embd / 3 / 64) * 64
        return self.n_inner or 4 * self.n_embd


POSITIONS = ('learned', 'sinusoidal', 'rotary')
NORMS = {
    'layernorm': lambda c: nn.LayerNorm(c.n_embd, bias=c.bias),
    'rmsnorm': lambda c: nn.RMSNorm(c.n_embd, eps=1e-6),
}
ACTIVATIONS = {
    'gelu': F.gelu,
    'gelu_tanh': lambda x: F.gelu(x, approximate='tanh'),
    'relu': F.relu,
    'swiglu': F.silu,
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
    """Turn the pairs (x[i], x[i + D/2]) by their position's angle, so that q . k depends on distance only."""
    a, b = x.chunk(2, dim=-1)                                                   # (B, H, T, D/2) each
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1).type_as(x)  # (B, H, T, D)


class CausalSelfAttention(nn.Module):
    """
    Each token asks (Q), every token before it shows what it is (K), and the answer is the
    mean of what they hold (V), weighted by how well question and description agree:

        Attention(Q, K, V) = softmax(Q K^T / sqrt(D) + mask) V        Vaswani et al. 2017, equation 1

    The mask is minus infinity above the diagonal: no token sees what comes after it.
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        q_width, kv_width = config.n_embd, config.kv_heads * config.head_dim
        self.widths = (q_width, kv_width, kv_width)
        self.c_attn = nn.Linear(config.n_embd, sum(self.widths), bias=config.bias)  # W_Q, W_K, W_V, stacked
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)     # mixes the heads: W_O
        self.resid_dropout = nn.Dropout(config.dropout)
        if config.qk_norm:
            self.q_norm = nn.RMSNorm(config.head_dim, eps=1e-6)
            self.k_norm = nn.RMSNorm(config.head_dim, eps=1e-6)

    def forward(self, x, angles=None, remember=None):
        """(B, T, C) -> (B, T, C). `angles` turn q and k; `remember` swaps k, v for all seen so far, with a mask."""
        B, T, C = x.shape
        c = self.config
        heads = self.c_attn(x).view(B, T, -1, c.head_dim).transpose(1, 2)       # (B, H + 2G, T, D)
        q, k, v = heads.split((c.n_head, c.kv_heads, c.kv_heads), dim=1)        # (B, H, T, D), (B, G, T, D) twice
        if c.qk_norm:
            q, k = (norm(x.type_as(norm.weight)).type_as(v) for norm, x in ((self.q_norm, q), (self.k_norm, k)))
        if angles is not None:
            q, k = rotate(q, *angles), rotate(k, *angles)
        mask = None
        if remember is not None:
            k, v, mask = remember(k, v)                                         # (B, G, S, D), S >= T; (T, S)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None and T > 1,
                                           dropout_p=c.dropout if self.training else 0.0,
                                           enable_gqa=c.kv_heads != c.n_head)   # (B, H, T, D)
        y = y.transpose(1, 2).reshape(B, T, C)                                  # heads side by side
        return self.resid_dropout(self.c_proj(y))


class FeedForward(nn.Module):
    """
    Each token by itself: widen, bend, narrow.  y = W_down act(W_up x);
    SwiGLU lets a second projection open and close the first (Shazeer 2020, equation 6):
    y = W_down (silu(W_gate x) * W_up x).
    """

    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, config.hidden, bias=config.bias)
        if config.mlp == 'swiglu':
            self.c_gate = nn.Linear(config.n_embd, config.hidden, bias=config.bias)
        self.c_proj = nn.Linear(config.hidden, config.n_embd, bias=config.bias)
        self.act, self.gated = ACTIVATIONS[config.mlp], config.mlp == 'swiglu'
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x):                                                       # (B, T, C)
        h = self.act(self.c_gate(x)) * self.c_fc(x) if self.gated else self.act(self.c_fc(x))  # (B, T, F)
        return self.dropout(self.c_proj(h))                                     # (B, T, C)


class Block(nn.Module):
    """Two corrections to the residual stream: what the other tokens say, then what the token makes of it."""

    def __init__(self, config):
        super().__init__()
        self.ln_1 = NORMS[config.norm](config)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = NORMS[config.norm](config)
        self.mlp = FeedForward(config)

    def forward(self, x, angles=None, remember=None):                           # (B, T, C)
        x = x + self.attn(self.ln_1(x), angles, remember)
        return x + self.mlp(self.ln_2(x))


def likeliest(logits, ids):
    """The simplest choice of the next ids (B, 1): argmax of logits (B, V). sampling.py has others."""
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
        # Fixed tables: computed, never trained, never stored.
        if config.pos == 'sinusoidal':
            self.register_buffer('pe', sinusoidal(config.block_size, config.n_embd), persistent=False)
        if config.pos == 'rotary':
            cos, sin = rotary(config.block_size, config.head_dim, config.rope_theta)
            self.register_buffer('cos', cos, persistent=False)
            self.register_buffer('sin', sin, persistent=False)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self):
        """Everything N(0, 0.02), biases 0, norms 1; what writes to the residual stream is damped by its depth."""
        for name, p in self.named_parameters():
            if name.endswith('bias'):
                nn.init.zeros_(p)
            elif p.dim() == 1:
                nn.init.ones_(p)
            elif name.endswith('c_proj.weight'):      # 2 n_layer of them add up: GPT-2 paper, section 2.3
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * self.config.n_layer))
            else:
                nn.init.normal_(p, std=0.02)

    def forward(self, idx, targets=None, cache=None):
        """
        idx (B, T) int64 ids; targets (B, T), the same shifted by one, -1 where there is nothing to learn.

        With targets: logits (B, T, V) and the mean cross-entropy in nats per token.
        Without: logits (B, 1, V) of the last token, which is all that generation needs, and None.
        With a `KVCache`, idx continues the tokens that the cache has seen.
        """
        T, c = idx.size(1), self.config
        at = cache.next(T) if cache else slice(T)     # the positions of idx
        if T > c.block_size:
            raise ValueError(f'{T} tokens: expected at most block_size={c.block_size}')
        x = self.transformer.wte(idx)                                           # (B, T, C)
        angles = None
        if c.pos == 'learned':
            x = x + self.transformer.wpe.weight[at]                             # (T, C), for every sequence
        elif c.pos == 'sinusoidal':                   # scaled as in section 3.4, else PE drowns the words
            x = x * math.sqrt(c.n_embd) + self.pe[at]
        else:
            angles = self.cos[at], self.sin[at]
        x = self.transformer.drop(x)
        for i, block in enumerate(self.transformer.h):
            x = block(x, angles, cache.layer(i) if cache else None)             # (B, T, C)
        x = self.transformer.ln_f(x)
        if targets is None:
            return self.lm_head(x[:, -1:]), None                                # (B, 1, V)
        logits = self.lm_head(x)                                                # (B, T, V)
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)

    @classmethod
    def from_state(cls, model_args, weights, source='checkpoint', **overrides):
        """
        The GPT that a checkpoint describes: model_args for `GPTConfig` (overrides win), weights {name: tensor}.
        Raises ModelError, which names `source`, where the two do not fit together.
        """
        try:
            config = GPTConfig(**{**model_args, **overrides})
            if config.n_layer > max(1000, len(weights)):
                raise ModelError(f'n_layer={config.n_layer} for {len(weights)} tensors')
            sizes = {'wte': (config.vocab_size, config.n_embd), f'h.{config.n_layer - 1}.mlp.c_fc': (config.hidden, config.n_embd)}
            if config.pos == 'learned':
                sizes['wpe'] = config.block_size, config.n_embd
            for name, size in sizes.items():          # absurd sizes must not cost memory
                found = weights.get(f'transformer.{name}.weight')
                if found is None or found.shape != size:
                    raise ModelError(f"transformer.{name}.weight is {'missing' if found is None else tuple(found.shape)}, expected {size}")
            model = cls(config)
            model.load_state_dict(weights)
        except (ModelError, TypeError, AttributeError, RuntimeError) as e:
            raise ModelError(f"{source}: model_args and weights do not fit: {' '.join(str(e).split())[:300]}") from e
        return model

    def crop_block_size(self, block_size):
        """Forget the positions from block_size on, to train or sample a model with a shorter context."""
        if block_size > self.config.block_size:
            raise ModelError(f'block_size={block_size}: expected at most {self.config.block_size}, the context of the weights')
        self.config.block_size = block_size
        if self.config.pos == 'learned':
            self.transformer.wpe.weight = nn.Parameter(self.transformer.wpe.weight[:block_size].detach().clone())

    def num_params(self, non_embedding=False):
        """Weights held; a tied matrix counts once. non_embedding leaves out position embeddings, as nanoGPT prints it."""
        n = sum(p.numel() for p in self.parameters())
        return n - self.transformer.wpe.weight.numel() if non_embedding and self.config.pos == 'learned' else n

    def param_table(self):
        """
        {kind of matrix: weights}, the way one counts them on paper: by role. A tied matrix has two
        roles and is listed in both, so tied models sum to num_params() plus one embedding.
        """
        table = dict.fromkeys(('embedding', 'position', 'Q', 'K', 'V', 'output', 'up', 'gate', 'down',
                               'norm', 'bias', 'unembedding'), 0)
        kinds = {'wte': 'embedding', 'wpe': 'position', 'attn.c_proj': 'output', 'c_fc': 'up',
                 'c_gate': 'gate', 'mlp.c_proj': 'down', 'lm_head': 'unembedding'}
        for name, p in self.named_parameters(remove_duplicate=False):
            if name.endswith('bias'):
                table['bias'] += p.numel()
            elif p.dim() == 1:
                table['norm'] += p.numel()
            elif 'c_attn' in name:
                for kind, rows in zip('QKV', self.transformer.h[0].attn.widths):
                    table[kind] += rows * p.size(1)
            else:
                table[next(kind for part, kind in kinds.items() if part in name)] += p.numel()
        return table

    def flops_per_token(self):
        """Forward and backward, T = block_size: 6 per weight and 12 L C T for attention. PaLM paper, appendix B."""
        c = self.config
        table = self.param_table()
        weights = sum(n for kind, n in table.items() if kind not in ('embedding', 'position'))
        return 6 * weights + 12 * c.n_layer * c.n_embd * c.block_size

    def generate(self, idx, max_new_tokens, choose=likeliest, n_vocab=None):
        """Continue idx (B, T) by max_new_tokens, as `stream` makes them: (B, T + new)."""
        return torch.cat((idx, *islice(self.stream(idx, choose, n_vocab), max_new_tokens)), dim=1)

    @torch.inference_mode()
    def stream(self, idx, choose=likeliest, n_vocab=None):
        """
        Continue idx (B, T) for as long as one asks: each time the next ids (B, 1), which choose(logits (B, V), ids (B, T'))
        takes from the model's prediction; ids from n_vocab on are padding and never shown to it. Call eval() before.

        When the context is full, the newer half of it is read again and generation goes on from there: every token
        sees at least half a context, and reads two tokens at most. To drop only the oldest would mean to read a whole context for each
        token, since what layer 2 knows of a token depends on the tokens before it, dropped ones included.
        """
        size, cache = self.config.block_size, KVCache(self.config)
        unread = idx[:, -size:]                                                 # (B, T')
        while True:
            if cache.length + unread.size(1) > size:
                cache.length, unread = 0, idx[:, -((size + 1) // 2):]
            logits, _ = self(unread, cache=cache)                               # (B, 1, V)
            unread = choose(logits[:, -1, :n_vocab], idx)                       # (B, 1)
            idx = torch.cat((idx, unread), dim=1)
            yield unread


class KVCache:
    """
    Keys and values of the tokens seen so far: for each layer two tensors (B, G, block_size, D), of which `length` tokens are in use.
    The past never changes under a causal mask, so a new token costs one row instead of a window.
    """

    def __init__(self, config):
        self.size, self.layers, self.length = config.block_size, [None] * config.n_layer, 0

    def next(self, T):
        """Make place for T new tokens: their positions. Raises ValueError where there is none."""
        self.at = slice(self.length, self.length + T)
        if self.at.stop > self.size:
            raise ValueError(f'{self.at.stop} tokens: expected at most block_size={self.size}')
        self.length = self.at.stop
        return self.at

    def layer(self, i):
        """What layer i calls with the k, v (B, G, T, D) of new tokens, to get those of all (B, G, length, D), and who sees whom (T, length)."""
        def remember(k, v):
            if self.layers[i] is None:
                self.layers[i] = [x.new_zeros(*x.shape[:2], self.size, x.size(3)) for x in (k, v)]
            for kept, x in zip(self.layers[i], (k, v)):
                kept[:, :, self.at] = x
            T, S, mask = k.size(2), self.length, None
            if 1 < T < S:                             # new tokens see all old ones and the new ones before them
                mask = torch.ones(T, S, dtype=torch.bool, device=k.device).tril(S - T)
            return *(kept[:, :, :S] for kept in self.layers[i]), mask
        return remember
