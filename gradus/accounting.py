"""What a GPT costs: its weights by their role, and the arithmetic of a training step."""

from math import prod


def sizes(config):
    """
    The numbers that decide how many weights a GPT has, by the names that 3Blue1Brown gives them. n_norms and n_biases:
    all weights of norms, and all biases, in one layer.
    """
    c = config
    n_norms = 0 if c.norm == 'none' else 2 * c.n_embd
    if c.qk_norm:
        n_norms += 2 * c.head_width

    n_biases = (c.n_head + 2 * c.kv_heads) * c.head_width + c.n_embd            # of W_Q, W_K, W_V, W_O
    n_biases += c.hidden * (2 if c.mlp == 'swiglu' else 1) + c.n_embd           # of W_up, W_gate, W_down
    if c.norm == 'layernorm':
        n_biases += 2 * c.n_embd

    return dict(d_embed=c.n_embd, n_vocab=c.vocab_size, n_context=c.block_size, n_layers=c.n_layer,
                n_heads=c.n_head, n_kv_heads=c.kv_heads, d_query=c.head_width, d_value=c.head_width,
                n_neurons=c.hidden, n_norms=n_norms, n_biases=n_biases)


def param_formulas(config):
    """
    {role: (formula, matrices)}: how many weights have this role, as products and sums of the names in `sizes`, and in
    how many matrices, counting those of each head separately, as 3Blue1Brown does. Norms and biases are no matrices.
    A role that this GPT does not have has the formula '0'.
    """
    c = config
    kv = 'n_heads' if c.kv_heads == c.n_head else 'n_kv_heads'
    bias = 'n_biases * n_layers' + (c.norm == 'layernorm') * ' + d_embed'
    learned = c.pos == 'learned'
    gated = c.mlp == 'swiglu'
    return {
        'embedding': ('d_embed * n_vocab', 1),
        'Q': ('d_query * d_embed * n_heads * n_layers', c.n_head * c.n_layer),
        'K': (f'd_query * d_embed * {kv} * n_layers', c.kv_heads * c.n_layer),
        'V': (f'd_value * d_embed * {kv} * n_layers', c.kv_heads * c.n_layer),
        'output': ('d_embed * d_value * n_heads * n_layers', c.n_layer),
        'up': ('n_neurons * d_embed * n_layers', c.n_layer),
        'gate': ('n_neurons * d_embed * n_layers', c.n_layer) if gated else ('0', 0),
        'down': ('d_embed * n_neurons * n_layers', c.n_layer),
        'unembedding': ('n_vocab * d_embed', 1),
        'position': ('d_embed * n_context', 1) if learned else ('0', 0),
        'norm': ('n_norms * n_layers' + (c.norm != 'none') * ' + d_embed', 0),
        'bias': (bias if c.bias else '0', 0),
    }


def evaluate(formula, numbers):
    """The value of a formula of `param_formulas`: a sum of products of names in `numbers` and of integers."""
    terms = [term.split(' * ') for term in formula.split(' + ')]
    return sum(prod(numbers[name] if name in numbers else int(name) for name in term) for term in terms)


def param_table(config):
    """{role: number of weights}. A tied matrix counts in both its roles: the sum is num_params() + V C then."""
    numbers = sizes(config)
    return {role: evaluate(formula, numbers) for role, (formula, _) in param_formulas(config).items()}


def n_params(config):
    """How many weights a GPT has; a tied matrix counts once, as in GPT.num_params."""
    table = param_table(config)
    return sum(table.values()) - (table['embedding'] if config.tie_weights else 0)


def flops_per_token(model):
    """Forward and backward, T = block_size: 6 per weight and 12 L H D T for attention. PaLM paper, appendix B."""
    c = model.config
    weights = sum(n for kind, n in param_table(c).items() if kind not in ('embedding', 'position'))
    return 6 * weights + 12 * c.n_layer * c.n_head * c.head_width * c.block_size
