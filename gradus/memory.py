"""
What a training step needs of memory, by formula: nothing is allocated to find out.

    weights, gradients, optimizer state     some bytes for each weight, the same in every step
    activations                             some bytes for each token: what forward computes and backward reads again
    logits                                  B T V numbers, several times: the largest tensors of a small model

They are not all there at the same time. `Step.peak` is the largest sum that is: where the loss is differentiated
(activations and logits), where the first layer is (all gradients), or in the optimizer. tests/test_memory.py compares
with what PyTorch keeps and allocates on a CPU with a C++ compiler: within 10%, mostly within 2%. On CUDA this has not
been measured.
"""

from collections import Counter
from dataclasses import dataclass

from gradus.accounting import n_params, param_table
from gradus.fused import usual_attention


@dataclass
class Step:
    """The memory of one training step on one device, in bytes."""
    weights: int                # float32, whatever the dtype of the matmuls
    gradients: int
    optimizer: int              # AdamW: two moments of each weight; Muon: one of each matrix of the blocks
    copies: int                 # of the matrices, in 16 bits: what autocast multiplies with
    activations: int            # what forward keeps for backward, without logits
    logits: int                 # logits, their log-softmax and their gradient, at their largest
    kept_logits: int            # the part of them that stays until the next step
    head: int                   # gradient of the unembedding, the first to be there
    scratch: int                # backward of one block: gradients of activations
    embedding: int              # gradients of the embedding that are added to one another
    update: int                 # Muon's: copies of the matrices that it orthogonalizes
    early: int                  # gradients that are there before backward: of earlier micro-batches
    buckets: int                # DDP's: the gradients once more, side by side, to be sent

    @property
    def peak(self):
        """The most that is allocated at one moment."""
        lasting = self.weights + self.optimizer + self.buckets
        last_layer = max(self.logits, self.kept_logits + self.head + max(self.kept_logits, self.scratch))
        at_loss = self.early + self.copies + self.activations + last_layer
        at_first_layer = self.gradients + self.kept_logits + self.embedding
        at_update = self.gradients + self.kept_logits + self.update
        return lasting + max(at_loss, at_first_layer, at_update)


# ---------------------------------------------------------------------------- what backward needs

def saved_by_block(config, width, device='cpu', compiled=False):
    """
    Bytes that one block keeps for backward, for each token. width: bytes of a number in a matmul, 4 or 2; device: cpu,
    cuda, mps; compiled: by torch.compile, which computes again what is cheap.
    """
    c = config
    q_size = c.n_head * c.head_width                                            # H D
    k_size = c.kv_heads * c.head_width                                          # G D
    eager_16 = width < 4 and not compiled             # autocast makes a 16-bit copy for each matmul
    in_kernel = _in_kernel(device, compiled)

    # What each norm reads, and what it hands to the matrices behind it.
    saved = 2 * (_saved_by_norm(c, 4 if c.residual else width, device, compiled) + width * c.n_embd)

    # Queries and keys with their norms.
    in_attention = in_kernel and (width == 4 or usual_attention(c))
    inner = 4 if in_attention else width              # bytes of a number in attention
    if c.qk_norm and not in_attention:
        saved += 4 * (c.n_head + c.kv_heads)          # 1 / rms
        if eager_16:
            saved += 4 * (q_size + k_size)            # norms compute in float32
        if eager_16 and device == 'cpu':
            saved += 4 * (q_size + k_size)            # normalized, before the weight

    # Attention: its output, then what it reads.
    saved += width * q_size
    if _fast_attention(c, device, in_attention):
        saved += inner * (q_size + 2 * k_size) + 4 * c.n_head
        if inner != width:
            saved += inner * q_size                   # the output, of which c_proj reads a copy
        if c.qk_norm or c.pos == 'rotary':            # queries and keys are new tensors, not views of c_attn's output
            saved += width * (q_size + k_size)
            if in_attention:
                saved += width * k_size               # so are values
            elif device == 'cpu':
                saved += width * q_size               # the output once more, its heads side by side
    else:
        saved += _saved_by_scores(c, width, device, in_attention)

    # Feed-forward: before and after the activation function, and the gate's product.
    arrays = {'gelu': 2, 'gelu_tanh': 2, 'relu': 1, 'sigmoid': 1, 'swiglu': 3 if compiled or in_kernel else 4}[c.mlp]
    saved += width * c.hidden * arrays
    if c.mlp == 'swiglu' and eager_16 and not (in_kernel and c.norm == 'rmsnorm'):
        saved += width * c.n_embd                     # the input of the second matrix

    return saved + 2 * _saved_by_dropout(c, width, device, in_kernel)


def _saved_by_norm(c, stream, device, compiled):
    """Its input, of `stream` bytes a number, and mean or size of each vector."""
    if c.norm == 'layernorm':
        return stream * c.n_embd + 8
    if c.norm == 'rmsnorm':
        return stream * c.n_embd + (0 if device == 'cpu' and not compiled else 4)
    return 0


def _saved_by_dropout(c, width, device, in_kernel):
    """The mask of C numbers, unless it is drawn again."""
    if not c.dropout or in_kernel:
        return 0
    return c.n_embd * (width if device == 'cpu' else 1)


def _in_kernel(device, compiled):
    """Are fused.py's operations used? They keep only their inputs."""
    return device == 'cpu' and not compiled


def _fast_attention(c, device, in_kernel):
    """Is there attention that never stores a T x T matrix? With dropout on the CPU, PyTorch has none."""
    return usual_attention(c) and (in_kernel or not (c.dropout and device == 'cpu'))


def _saved_by_scores(c, width, device, in_kernel):
    """Attention in steps: for each query a row of T weights (dropped out: three), and Q, K, V as they are used."""
    q_size = c.n_head * c.head_width
    rows = 3 if c.dropout else 1
    if usual_attention(c):                            # PyTorch's own steps compute in float32
        saved = 4 * (c.n_head * c.block_size * rows + 3 * q_size)
    else:
        saved = width * (c.n_head * c.block_size * rows + 3 * q_size)
        if width < 4 and device != 'cpu':
            saved += 4 * c.n_head * c.block_size      # there, softmax is float32
    if c.score == 'squared':
        saved += width * 2 * q_size
    if c.qk_norm and width == 4 or c.pos == 'rotary' and in_kernel or c.score == 'squared':
        saved += width * (q_size + 2 * c.kv_heads * c.head_width)               # c_attn's output
    return saved


def saved_outside_blocks(config, width, device='cpu', compiled=False):
    """The same of what is not in a block, without logits: ids and targets, the last norm and what it hands on."""
    c = config
    dropout = _saved_by_dropout(c, 4, device, _in_kernel(device, compiled))
    return 16 + _saved_by_norm(c, 4, device, compiled) + width * c.n_embd + dropout


def step(config, batch_size, optimizer='adamw', width=4, device='cpu', compiled=False, accumulate=False, ddp=False):
    """
    The `Step` of a model of this shape, batch_size sequences of block_size tokens at a time. accumulate: are gradients
    added up over several micro-batches? ddp: are they averaged over several processes? The other arguments are those of
    `saved_by_block`.
    """
    c = config
    tokens = batch_size * c.block_size
    counts = param_table(c)
    weights = 4 * n_params(c)

    # Blocks' matrices: Muon remembers one number for each, and autocast copies them.
    matrices = sum(counts[role] for role in ('Q', 'K', 'V', 'output', 'up', 'gate', 'down'))
    muon = optimizer == 'muon'
    state = 2 * weights - (4 * matrices if muon else 0)
    copies = 2 * (matrices + counts['unembedding']) if width < 4 else 0

    # Logits, log-softmax, the gradients of both; in 16 bits the log-softmax is float32 still.
    per_logit = 3 * width if compiled else 16 if width == 4 else 14
    logits = tokens * c.vocab_size
    embedding = 4 * c.vocab_size * c.n_embd

    saved = (c.n_layer * saved_by_block(c, width, device, compiled)
             + saved_outside_blocks(c, width, device, compiled))
    return Step(
        weights=weights,
        gradients=weights,
        optimizer=state,
        copies=copies,
        activations=tokens * saved,
        logits=logits * per_logit,
        kept_logits=logits * width,
        head=embedding,
        scratch=tokens * _scratch(c, width, device, _in_kernel(device, compiled)),
        embedding=embedding * (2 * c.tie_weights + accumulate),
        update=_muon_scratch(c, width) if muon else 0,
        early=weights if accumulate else 0,
        buckets=weights if ddp else 0,
    )


def step_of_run(cfg, config, worker):
    """The `Step` of train.py with these settings and this model, in this process."""
    rows = cfg.batch_size * cfg.gradient_accumulation_steps // worker.world_size
    return step(config, min(cfg.batch_size, rows), cfg.optimizer, worker.dtype.itemsize, worker.device.type,
                worker.compile, accumulate=rows > cfg.batch_size, ddp=worker.world_size > 1)


def _scratch(c, width, device, in_kernel):
    """Gradients in the backward pass of a block, for each token, less what it no longer needs."""
    in_feed_forward = width * c.hidden * (1 if c.mlp in ('gelu', 'gelu_tanh') else 2)
    if _fast_attention(c, device, in_kernel):
        return in_feed_forward
    return max(in_feed_forward, 4 * c.n_head * c.block_size - 2 * width * c.hidden)


def _muon_scratch(c, width):
    """
    What `optim.Muon` allocates beside its updates, which take the place of the gradients: for a stack of all matrices
    of one shape, copies and squares of them.
    """
    q_size, k_size = c.n_head * c.head_width, c.kv_heads * c.head_width
    shapes = [(q_size, c.n_embd), (k_size, c.n_embd), (k_size, c.n_embd), (c.n_embd, q_size), (c.hidden, c.n_embd)]
    if c.mlp == 'swiglu':
        shapes.append((c.hidden, c.n_embd))
    shapes.append((c.n_embd, c.hidden))

    most = 0
    for (rows, cols), n in Counter(shapes).items():
        stack = 4 * n * c.n_layer * rows * cols
        square = 4 * n * c.n_layer * min(rows, cols) ** 2
        copies = 3 * stack + 2 * square if width == 4 else 2.5 * stack
        most = max(most, round(copies))
    return most
