"""
What is right? Each check calls a solution with random tensors of several shapes and compares with the repo's own code,
or with PyTorch's. It raises `Wrong`, in words that help, or returns nothing.
"""

import torch
from torch.nn import functional as F

import mlp_mnist
from gradus.sampling import Sampler
from model import MLP, Block, CausalSelfAttention, GPTConfig, attention_weights, sinusoidal


class Wrong(Exception):
    """What is wrong with a solution, and what was expected."""


def require(condition, message):
    if not condition:
        raise Wrong(message)


def compare(found, expected, what, mistakes=()):
    """
    Raise Wrong unless the tensors are equal, up to rounding. mistakes: pairs (tensor, message): what a typical mistake
    would give, and what to say of it.
    """
    require(found is not None, f'{what} is None: is there a return statement?')
    shape = tuple(expected.shape)
    require(isinstance(found, torch.Tensor),
            f'{what} is a {type(found).__name__}; expected a torch.Tensor of shape {shape}')
    require(tuple(found.shape) == shape, f'{what} has the shape {tuple(found.shape)}; expected {shape}')
    require(found.is_floating_point(), f'{what} is of {found.dtype}; expected floating-point numbers')
    found = found.detach().to(expected.dtype)
    if torch.allclose(found, expected, rtol=1e-4, atol=1e-5):
        return

    for mistake, message in mistakes:
        if mistake.shape == found.shape and torch.allclose(found, mistake, rtol=1e-4, atol=1e-5, equal_nan=True):
            raise Wrong(f'{what}: {message}')
    differs = ~torch.isclose(found, expected, rtol=1e-4, atol=1e-5)
    at = tuple(differs.nonzero()[0].tolist())
    place = f' at {list(at)}' if at else ''
    raise Wrong(f'{what} differs{place}: found {found[at]:.5g}, expected {expected[at]:.5g} '
                f'({int(differs.sum())} of {differs.numel()} numbers differ)')


def compare_lists(found, expected, what, mistakes=()):
    """The same for lists of tensors; mistakes: pairs (list, message)."""
    require(found is not None, f'{what} is None: is there a return statement?')
    require(isinstance(found, (list, tuple)), f'{what} is a {type(found).__name__}; expected a list of tensors')
    require(len(found) == len(expected), f'{what} has {len(found)} tensors; expected {len(expected)}')
    for i, (ours, theirs) in enumerate(zip(found, expected)):
        compare(ours, theirs, f'{what}[{i}]', [(tensors[i], message) for tensors, message in mistakes])


def several(found, n, what):
    """`found` as n results. Raises Wrong if it is something else."""
    require(found is not None, f'the result is None: expected {what}; is there a return statement?')
    require(isinstance(found, (list, tuple)) and len(found) == n,
            f'the result is a {type(found).__name__}; expected {what}: return {n} values, separated by commas')
    return found


def numbers(*shape, seed=0, size=1.0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))) * size


# ---------------------------------------------------------------------------- digits

def network(sizes, seed=0):
    """The weights and biases of an MLP (lists), as `mlp_mnist.backprop` takes them."""
    weights = [numbers(n_out, n_in, seed=seed) for n_in, n_out in zip(sizes, sizes[1:])]
    biases = [numbers(n, 1, seed=seed + 1) for n in sizes[1:]]
    return weights, biases


def check_neuron(neuron):
    for n in (1, 3, 784):
        w, x, b = numbers(n, seed=1, size=n ** -0.5), numbers(n, seed=2), numbers(seed=3)
        one = MLP((n, 1))
        with torch.no_grad():
            one.layers[0].weight.copy_(w[None])
            one.layers[0].bias.copy_(b[None])
            expected = one(x[None])[0][0, 0]
        z = w @ x + b
        mistakes = [(z, 'this is the sum z; expected sigma(z), the sum squeezed into the range from 0 to 1'),
                    (torch.sigmoid(w @ x), 'the bias b is missing'),
                    (torch.sigmoid(-z), 'the sign is wrong: sigma(z) has e to the power of minus z')]
        compare(neuron(w, x, b), expected, 'the activation', mistakes)


def check_feedforward(feedforward):
    for sizes, m in (((3, 2), 1), ((4, 3, 2), 5), ((5, 4, 4, 3), 2)):
        weights, biases = network(sizes)
        x = numbers(sizes[0], m, seed=5).sigmoid()
        model = MLP(sizes)
        with torch.no_grad():
            for layer, w, b in zip(model.layers, weights, biases):
                layer.weight.copy_(w)
                layer.bias.copy_(b[:, 0])
            expected = model(x.T)[0].T
        z = x
        for w, b in zip(weights, biases):
            z = w @ z + b
        mistakes = [(z, 'no layer has its sigma'), (x, 'this is the input x')]
        compare(feedforward(weights, biases, x), expected, 'a^L', mistakes)


def digits(sizes, m):
    x = numbers(sizes[0], m, seed=5).sigmoid()
    y = F.one_hot(torch.arange(m) % sizes[-1], sizes[-1]).T.float()
    return x, y


def check_backprop(backprop):
    for sizes, m in (((3, 2), 1), ((4, 3, 2), 5), ((5, 4, 4, 3), 2)):
        weights, biases = network(sizes)
        x, y = digits(sizes, m)
        nabla_w, nabla_b = mlp_mnist.backprop(weights, biases, x, y, 'sigmoid', 'quadratic')
        other_w, other_b = mlp_mnist.backprop(weights, biases, x, y, 'sigmoid', 'cross_entropy')
        found = several(backprop(weights, biases, x, y), 2, 'the lists nabla_w and nabla_b')
        for ours, theirs, other, what in zip(found, (nabla_w, nabla_b), (other_w, other_b), ('nabla_w', 'nabla_b')):
            mistakes = [([t / m for t in theirs], 'divided by m: expected the sum over the images, not their mean'),
                        ([-t for t in theirs], 'the sign is wrong: BP1 has a^L - y, not y - a^L'),
                        ([2 * t for t in theirs], 'twice too large: C has a factor 1/2, so its derivative is a^L - y'),
                        (other, "sigma'(z^L) is missing in BP1")]
            compare_lists(ours, theirs, what, mistakes)


def check_update_mini_batch(update_mini_batch):
    def backprop(weights, biases, x, y):
        return mlp_mnist.backprop(weights, biases, x, y, 'sigmoid', 'quadratic')

    for sizes, m, eta in (((3, 2), 1, 1.0), ((4, 3, 2), 5, 3.0)):
        weights, biases = network(sizes)
        x, y = digits(sizes, m)
        before = [t.clone() for t in (*weights, *biases)]
        new_w, new_b = [[t.clone() for t in tensors] for tensors in (weights, biases)]
        mlp_mnist.update_mini_batch(new_w, new_b, x, y, eta)

        found = several(update_mini_batch(weights, biases, x, y, eta, backprop), 2, 'the new weights and biases')
        require(all(torch.equal(a, b) for a, b in zip(before, (*weights, *biases))),
                'the old weights or biases have changed: expected new tensors (w - ..., not w -= ...)')
        for ours, old, new, what in zip(found, (weights, biases), (new_w, new_b), ('weights', 'biases')):
            mistakes = [([a + m * (b - a) for a, b in zip(old, new)], 'not divided by m, the number of images'),
                        ([2 * a - b for a, b in zip(old, new)], 'uphill: expected minus eta times the gradient'),
                        (old, 'unchanged')]
            compare_lists(ours, new, what, mistakes)


# ---------------------------------------------------------------------------- text

def check_softmax(softmax):
    for B, V, T in ((1, 3, 1.0), (4, 5, 0.5), (2, 7, 2.0), (3, 3, 1.0)):
        logits = numbers(B, V, size=3.0)
        expected = torch.softmax(logits / T, dim=-1)
        mistakes = [(torch.softmax(logits / T, dim=0), 'each column sums to 1; expected each row: sum over dim=-1'),
                    (torch.softmax(logits / T, dim=0).T, 'transposed'),
                    (torch.softmax(logits * T, dim=-1), 'multiplied by T; expected a division'),
                    (torch.softmax(logits, dim=-1), 'T is missing'),
                    ((logits / T).exp(), 'not divided by the sum: each row must sum to 1')]
        compare(softmax(logits, T), expected, 'the probabilities', mistakes)
    large = torch.tensor([[1000.0, 999.0, -1000.0]])
    nan = torch.full_like(large, torch.nan)
    nan[0, 2] = 0
    mistakes = [(nan, 'NaN for logits of 1000: e^1000 is infinite; subtract the largest logit of each row first')]
    compare(softmax(large, 1.0), torch.softmax(large, dim=-1), 'the probabilities', mistakes)


def check_positions(positions):
    for n, C in ((1, 2), (10, 8), (50, 64)):
        expected = sinusoidal(n, C)
        swapped = expected.view(n, -1, 2).flip(-1).flatten(1)
        halves = torch.cat((expected[:, ::2], expected[:, 1::2]), dim=1)
        i = torch.arange(C // 2).float()
        angle = torch.arange(n).float()[:, None] / 10000 ** (i / C)
        half_exponent = torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1)
        mistakes = [(halves, 'all sines stand before all cosines; expected sin, cos, sin, cos, ...'),
                    (swapped, 'sine and cosine are swapped: even columns are sines'),
                    (half_exponent, 'the exponent is i / C; expected 2i / C')]
        compare(positions(n, C), expected, 'PE', mistakes)


def check_attention(attention):
    for T, S, D, E in ((1, 1, 4, 4), (3, 5, 8, 2), (6, 6, 16, 16)):
        Q, K, V = numbers(T, D, seed=1), numbers(S, D, seed=2), numbers(S, E, seed=3)
        expected = F.scaled_dot_product_attention(Q[None], K[None], V[None])[0]
        scores = Q @ K.T
        mistakes = [(scores.softmax(-1) @ V, 'the division by sqrt(D) is missing'),
                    ((scores / D).softmax(-1) @ V, 'divided by D; expected sqrt(D)'),
                    ((scores / D ** 0.5).softmax(0) @ V, 'softmax along the wrong axis: each row must sum to 1'),
                    ((scores / D ** 0.5) @ V, 'the softmax is missing')]
        compare(attention(Q, K, V), expected, 'the answers', mistakes)


def check_masked_softmax(masked_softmax):
    for T in (1, 2, 6):
        q, k = numbers(1, 1, T, 4, seed=1), numbers(1, 1, T, 4, seed=2)
        scores = (q @ k.mT)[0, 0] / 2
        expected = attention_weights(q, k)[0, 0]
        lower = torch.ones(T, T).tril().bool()
        mistakes = [(scores.masked_fill(lower.T.logical_not(), -torch.inf).softmax(-1),
                     'the mask is upside down: token i must see itself and the tokens before it'),
                    (scores.masked_fill(~lower.tril(-1), -torch.inf).softmax(-1),
                     'the diagonal is masked, too: a token sees itself'),
                    (scores.softmax(-1).masked_fill(~lower, 0.0),
                     'each row must sum to 1: mask before the softmax, with minus infinity'),
                    (scores.masked_fill(~lower, 0.0).softmax(-1), 'masked with 0; expected minus infinity'),
                    (scores.softmax(-1), 'there is no mask')]
        compare(masked_softmax(scores), expected, 'the weights', mistakes)


def check_multi_head_attention(multi_head_attention):
    for B, T, C, H in ((1, 1, 4, 1), (2, 5, 8, 2), (1, 6, 12, 3)):
        attn = CausalSelfAttention(GPTConfig(block_size=8, vocab_size=5, n_layer=1, n_head=H, n_embd=C, bias=False))
        x = numbers(B, T, C)
        W_QKV, W_O = numbers(3 * C, C, seed=1, size=0.5), numbers(C, C, seed=2, size=0.5)
        with torch.no_grad():
            attn.c_attn.weight.copy_(W_QKV)
            attn.c_proj.weight.copy_(W_O)
            expected = attn(x)
        q, k, v = (x @ W_QKV.T).split(C, dim=-1)
        parts = [t.view(B, T, H, -1).transpose(1, 2) for t in (q, k, v)]
        mixed = [t.reshape(B, H, T, -1) for t in (q, k, v)]
        every = F.scaled_dot_product_attention(*parts)
        y = F.scaled_dot_product_attention(*parts, is_causal=True)
        one_head = F.scaled_dot_product_attention(q, k, v, is_causal=True)

        def joined(heads, W_O=W_O, shape=x.shape):
            return heads.transpose(1, 2).reshape(shape) @ W_O.T

        mistakes = [(joined(every), 'there is no mask'),
                    (one_head @ W_O.T, 'this is one head of width C; expected H heads of width C / H'),
                    (joined(y, torch.eye(C)), 'W_O is missing'),
                    (joined(F.scaled_dot_product_attention(*mixed, is_causal=True)),
                     'tokens and heads are mixed up: view as (B, T, H, D) first, then transpose'),
                    (y.reshape(x.shape) @ W_O.T, 'mixed up on the way back: transpose(1, 2) first, then reshape')]
        compare(multi_head_attention(x, W_QKV, W_O, H), expected, 'the result', mistakes)


@torch.no_grad()
def check_block(block):
    torch.manual_seed(0)
    theirs = Block(GPTConfig(block_size=8, vocab_size=5, n_layer=1, n_head=2, n_embd=8))
    ln_1, attn, ln_2, mlp = theirs.ln_1, theirs.attn, theirs.ln_2, theirs.mlp
    for p in theirs.parameters():
        p.normal_(std=0.5)
    for B, T in ((1, 1), (2, 5)):
        x = numbers(B, T, 8)
        after = x + attn(ln_1(x))
        normed_after = ln_1(x + attn(x))
        mistakes = [(mlp(ln_2(attn(ln_1(x)))), 'nothing is added to x: expected x + ..., twice'),
                    (after + mlp(ln_2(x)), 'the MLP reads the old x; expected x after attention'),
                    (x + mlp(ln_2(after)), 'what attention added is lost: the second sum begins with the new x'),
                    (ln_2(normed_after + mlp(normed_after)),
                     'normalized after each sum, as in 2017; expected before attention and before the MLP'),
                    (after, 'the MLP is missing')]
        compare(block(x, ln_1, attn, ln_2, mlp), theirs(x), 'the result', mistakes)


def check_adamw_step(adamw_step):
    eta, beta1, beta2, eps, decay = 0.1, 0.9, 0.95, 1e-8, 0.3
    for shape in ((), (4,), (3, 2)):
        theirs = torch.nn.Parameter(numbers(*shape, seed=1))
        optimizer = torch.optim.AdamW([theirs], lr=eta, betas=(beta1, beta2), eps=eps, weight_decay=decay)
        w, m, v = theirs.detach().clone(), torch.zeros(shape), torch.zeros(shape)
        for t in (1, 2, 3):
            theirs.grad = g = numbers(*shape, seed=t + 10)
            optimizer.step()
            state = optimizer.state[theirs]
            wanted = [theirs.detach(), state['exp_avg'], state['exp_avg_sq']]

            found = several(adamw_step(w, g, m, v, t, eta, beta1, beta2, eps, decay), 3, 'w, m and v')
            with_decay = beta1 * m + (1 - beta1) * (g + decay * w)
            compare(found[1], wanted[1], f'm after step {t}', [
                (with_decay, 'the weight decay is part of the gradient here: that is Adam with L2, without the W')])
            compare(found[2], wanted[2], f'v after step {t}', [
                (beta2 * v + (1 - beta2) * g, 'v is the mean of the squares of the gradients')])

            m_new, v_new = wanted[1:]
            decayed = eta * decay * w
            step = eta * m_new / (1 - beta1 ** t) / ((v_new / (1 - beta2 ** t)).sqrt() + eps)
            compare(found[0], wanted[0], f'w after step {t}', [
                (w - decayed - eta * m_new / (v_new.sqrt() + eps), 'm and v are not corrected: divide by 1 - beta^t'),
                (w - step, 'the weight decay is missing'),
                (w - step - decay * w, 'the weight decay is not multiplied by the learning rate'),
                (w + step - decayed, 'uphill: expected minus the step')])
            w, m, v = (tensor.clone() for tensor in wanted)


def check_draw(draw):
    for V, T, top_k in ((3, 1.0, 3), (7, 0.5, 7), (7, 2.0, 3), (7, 0.0, 7), (5, 1.0, 1)):
        logits = numbers(V, size=2.0)
        for u in (0.0, 0.2, 0.5, 0.8, 0.999):
            expected = drawn(logits, T, top_k, u)
            found = draw(logits.clone(), T, top_k, u)
            require(found is not None, 'the result is None: is there a return statement?')
            if isinstance(found, torch.Tensor):
                require(found.numel() == 1, f'the result has the shape {tuple(found.shape)}; expected one id')
                found = found.item()
            case = f'V={V}, T={T}, top_k={top_k}, u={u}'
            require(found == int(found), f'{case}: found {found}; expected an id, a whole number')
            if found == expected:
                continue
            if T and found == drawn(logits, T, V, u):
                raise Wrong(f'{case}: found {found}, expected {expected}: it seems that top_k does nothing')
            if T and found == drawn(logits, 1.0, top_k, u):
                raise Wrong(f'{case}: found {found}, expected {expected}: it seems that T does nothing')
            raise Wrong(f'{case}: found {int(found)}, expected {expected}')


def drawn(logits, T, top_k, u):
    """The id that the repo's Sampler draws if its random number is u."""
    sampler = Sampler(temperature=T, top_k=top_k)
    sampler.uniform = lambda: torch.tensor([[u]], dtype=torch.float64)
    return sampler(logits[None], torch.zeros(1, 1, dtype=torch.int64)).item()


# The file of each exercise, the function in it, and its check; in the order of LEARN.md.
EXERCISES = {
    'ex01_neuron': ('neuron', check_neuron),
    'ex02_feedforward': ('feedforward', check_feedforward),
    'ex03_backprop': ('backprop', check_backprop),
    'ex04_update_mini_batch': ('update_mini_batch', check_update_mini_batch),
    'ex05_softmax': ('softmax', check_softmax),
    'ex06_positions': ('positions', check_positions),
    'ex07_attention': ('attention', check_attention),
    'ex08_mask': ('masked_softmax', check_masked_softmax),
    'ex09_heads': ('multi_head_attention', check_multi_head_attention),
    'ex10_block': ('block', check_block),
    'ex11_adamw': ('adamw_step', check_adamw_step),
    'ex12_sampling': ('draw', check_draw),
}
