"""
The checks behind `python -m pytest exercises`: each compares an answer with the repo's own function, or torch's.

A check takes the learner's function and raises `Wrong` with a message for the learner. Larger shapes come first,
because the edge cases (one image, one token) hide mistakes that have a name.
"""

import copy
import importlib
import math
import traceback

import torch
from torch.nn import functional as F

import mlp_mnist
from gradus.sampling import Sampler
from model import MLP, Block, CausalSelfAttention, GPTConfig, sinusoidal


class Wrong(Exception):
    """What is wrong with an answer, in words for a learner."""


class Unsolved(Exception):
    """The function still raises the NotImplementedError that it came with."""


def run(name):
    """Check exercise `name`, such as ex01_neuron. Raises Unsolved or Wrong."""
    function_name, check = EXERCISES[name]
    try:
        module = importlib.import_module(f'exercises.{name}')
    except Exception as e:                            # a file that a learner is just writing: anything can happen
        raise Wrong(f'the file cannot be imported: {in_one_line(e, name)}') from e
    if not hasattr(module, function_name):
        raise Wrong(f'the function {function_name} is missing; keep its name')
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            check(getattr(module, function_name))
    except (Wrong, Unsolved):
        raise
    except Exception as e:
        if type(e) is NotImplementedError and not e.args:      # torch's own carry a message
            raise Unsolved from e
        raise Wrong(f'your code stops with {in_one_line(e, name)}') from e


def in_one_line(error, name):
    """'ValueError: words (line 12)', with the last line inside the exercise's file."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if name in frame.filename]
    where = f' (line {lines[-1]})' if lines else ''
    words = str(error).strip().splitlines() or ['']
    return f'{type(error).__name__}: {words[0]}{where}'


# ---------------------------------------------------------------------------- comparing

def call(function, *args):
    """function(*args), given copies. Raises Wrong if it changes an argument."""
    given = copy.deepcopy(args)
    result = function(*given)
    for before, after in zip(tensors(args), tensors(given)):
        if not torch.equal(before, after):
            raise Wrong(f'an argument of shape {tuple(before.shape)} was changed in place; compute a new tensor instead')
    return result


def tensors(values):
    """All tensors in the arguments, also those in lists."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list):
            yield from value


def compare(what, found, expected, mistakes=()):
    """Raise Wrong unless found is expected, up to rounding. mistakes: pairs (what a known mistake gives, its name)."""
    check_form(what, found, expected)
    found = found.detach()
    if close(found, expected).all():
        return

    index = tuple((~close(found, expected)).nonzero()[0].tolist())
    place = f'{what}[{", ".join(map(str, index))}]' if index else what
    message = f'{place} is {found[index].item():.6g}, expected {expected[index].item():.6g}'
    names = [name for wrong, name in mistakes if wrong.shape == found.shape and close(found, wrong).all()]
    raise Wrong(f'{message}\n{names[0]}' if names else message)


def check_form(what, found, expected):
    """Raise Wrong unless found is a tensor with the shape and dtype of expected."""
    shape = tuple(expected.shape)
    if found is None:
        raise Wrong(f'{what}: None was returned; does every path through your function end with return?')
    if not isinstance(found, torch.Tensor):
        raise Wrong(f'{what}: {type(found).__name__} returned, expected a torch tensor of shape {shape}')
    if found.shape != expected.shape:
        turned = found.dim() == 2 and tuple(found.T.shape) == shape
        hint = '\nRows and columns are swapped: a .T too many or too few.' if turned else ''
        raise Wrong(f'{what}: shape {tuple(found.shape)}, expected {shape}{hint}')
    if found.dtype != expected.dtype:
        raise Wrong(f'{what}: dtype {found.dtype}, expected {expected.dtype}')


def close(a, b):
    return torch.isclose(a, b, rtol=1e-4, atol=1e-6)


def returned(result, *names):
    """The result, if it is a tuple or list of as many values as names; else Wrong."""
    if result is None:
        raise Wrong(f'None was returned, expected {", ".join(names)}; does your function end with return?')
    if not isinstance(result, (tuple, list)) or len(result) != len(names):
        raise Wrong(f'{type(result).__name__} returned, expected {len(names)} values: {", ".join(names)}')
    return result


# ---------------------------------------------------------------------------- the digit network

def network(sizes, m):
    """A random MLP of sigmoids as the repo builds it, its weights and biases, m images and their digits as columns."""
    model = MLP(sizes).requires_grad_(False)
    weights, biases = mlp_mnist.weights_and_biases(model)
    x = torch.rand(sizes[0], m)                                                 # (n_1, m)
    y = torch.eye(sizes[-1])[:, torch.randint(sizes[-1], (m,))]                 # (n_L, m)
    return model, weights, biases, x, y


NETWORKS = [((5, 4, 3), 6), ((7, 6, 5, 4), 3), ((4, 3), 2), ((5, 4, 3), 1)]     # sizes, m


def check_neuron(neuron):
    for n in (5, 3, 1):
        model = MLP((n, 1)).requires_grad_(False)
        layer, a = model.layers[0], torch.rand(n)
        w, b = layer.weight[0], layer.bias[0]
        z = layer(a)[0]
        compare('the activation', call(neuron, w, b, a), model(a[None])[0][0, 0], [
            (z, 'That is z. Sigma is missing.'),
            (torch.sigmoid(z - b), 'The bias b is missing.'),
            (torch.sigmoid(z - b) + b, 'The bias b belongs inside sigma.'),
            (torch.sigmoid(-z), 'The sign of z is wrong: sigma(z) = 1 / (1 + e^-z).'),
        ])


def check_feedforward(feedforward):
    for sizes, m in NETWORKS:
        model, weights, biases, x, _ = network(sizes, m)
        expected = model(x.T)[0].T                                              # (n_L, m)
        compare('a^L', call(feedforward, weights, biases, x), expected, [
            (torch.logit(expected), 'The last layer needs its sigma too.'),
            (MLP_without_biases(model, x), 'The biases are missing.'),
        ])


def MLP_without_biases(model, x):
    model = copy.deepcopy(model)
    for layer in model.layers:
        layer.bias.zero_()
    return model(x.T)[0].T


def check_backprop(backprop):
    for sizes, m in NETWORKS:
        model, weights, biases, x, y = network(sizes, m)
        found_w, found_b = returned(call(backprop, weights, biases, x, y), 'nabla_w', 'nabla_b')
        expected_w, expected_b = mlp_mnist.backprop(weights, biases, x, y)
        for name, found in (('nabla_w', found_w), ('nabla_b', found_b)):
            if not isinstance(found, (list, tuple)) or len(found) != len(weights):
                raise Wrong(f'{name}: expected a list of {len(weights)}, one tensor for each layer with weights')
            check_order(name, found, weights if name == 'nabla_w' else biases)

        # From the last layer back, as the algorithm goes: the first mistake is the one that causes the others.
        error = (model(x.T)[0].T - y).sum(dim=1, keepdim=True)                  # (n_L, 1)
        for l in reversed(range(len(weights))):
            last = l == len(weights) - 1
            if not last:
                hint = 'The layer after it is right, so BP1 is. Look at BP2: w transposed, times sigma\'(z^l).'
            else:
                hint = 'This is the last layer: look at BP1 and BP3.'
            for name, found, expected in (('nabla_b', found_b[l], expected_b[l]), ('nabla_w', found_w[l], expected_w[l])):
                mistakes = [
                    (expected / m, 'That is the mean over the images; return the sum.'),
                    (-expected, 'The sign is wrong: delta^L has a^L - y, not y - a^L.'),
                ]
                if last and name == 'nabla_b':
                    mistakes.append((error, 'BP1: sigma\'(z^L) is missing.'))
                named(f'{name}[{l}]', found, expected, mistakes, hint if name == 'nabla_b' else
                      'nabla_b of this layer is right, so delta is. Look at BP4: delta^l (a^{l-1})^T.')


def check_order(name, found, parameters):
    """Raise Wrong if the list goes from the last layer to the first."""
    shapes = [getattr(tensor, 'shape', None) for tensor in found]
    wanted = [tensor.shape for tensor in parameters]
    if shapes == wanted[::-1] != wanted:
        raise Wrong(f'{name}: the layers are in reverse order; expected the first layer first')


def named(what, found, expected, mistakes, hint):
    """compare, with a hint where no known mistake was recognized."""
    try:
        compare(what, found, expected, mistakes)
    except Wrong as e:
        raise e if '\n' in str(e) else Wrong(f'{e}\n{hint}') from None


def check_update_mini_batch(update_mini_batch):
    for sizes, m in NETWORKS:
        _, weights, biases, x, y = network(sizes, m)
        before, sums = copy.deepcopy(weights + biases), mlp_mnist.backprop(weights, biases, x, y)
        expected_w, expected_b = copy.deepcopy((weights, biases))
        mlp_mnist.update_mini_batch(expected_w, expected_b, x, y, 0.5)
        owned = weights + biases                      # the tensors, whatever the answer does with the lists
        update_mini_batch(weights, biases, x, y, 0.5, mlp_mnist.backprop)

        if all(torch.equal(old, new) for old, new in zip(before, owned)):
            raise Wrong('no weight has changed. w = w - ... makes a new tensor; w -= ... changes the one that was given')
        names = [f'weights[{l}]' for l in range(len(weights))] + [f'biases[{l}]' for l in range(len(biases))]
        for name, old, new, expected, nabla in zip(names, before, owned, expected_w + expected_b, sums[0] + sums[1]):
            compare(name, new, expected, [
                (old - 0.5 * nabla, '1/m is missing: backprop returns the sum over the images, the step needs the mean.'),
                (old + 0.5 / m * nabla, 'The sign is wrong: this climbs. Gradient descent subtracts.'),
                (old - nabla / m, 'eta is missing.'),
                (old, 'It has not changed at all.'),
            ])


# ---------------------------------------------------------------------------- the parts of a GPT

def check_softmax(softmax):
    for m, V, tau in ((4, 6, 0.7), (3, 5, 1.0), (5, 3, 2.5), (1, 4, 0.5), (2, 1, 1.0)):
        z = 3 * torch.randn(m, V)
        p = call(softmax, z, tau)
        expected = torch.softmax(z / tau, dim=1)
        check_form('p', p, expected)
        check_rows_sum_to_1(p, z / tau)
        compare('p', p, expected, [
            (torch.softmax(z, dim=1), 'The temperature is missing.'),
            (torch.softmax(z * tau, dim=1), 'Divide by the temperature, do not multiply.'),
        ])
    z = torch.tensor([[1000.0, 999.0, 0.0], [-1000.0, -1001.0, -2000.0]])
    p = call(softmax, z, 1.0)
    if p.isnan().any():
        raise Wrong('large logits give nan: e^1000 is infinite. Subtract the maximum of each row before exp.')
    compare('p of large logits', p, torch.softmax(z, dim=1),
            [(p, 'Subtract the maximum of each row, not that of all rows.')])


def check_rows_sum_to_1(p, z):
    sums = p.detach().sum(dim=1)
    if not close(sums, torch.ones(len(p))).all():
        row = (~close(sums, torch.ones(len(p)))).nonzero()[0].item()
        axis = close(p.detach(), torch.softmax(z, dim=0)).all()
        hint = '\nThe softmax goes over the wrong axis: use the last one, dim=1.' if axis else ''
        raise Wrong(f'the rows must sum to 1; row {row} sums to {sums[row].item():.6g}{hint}')


def check_positions(positions):
    for n, C in ((6, 8), (10, 4), (1, 6), (3, 2)):
        expected = sinusoidal(n, C)
        sines, cosines = expected[:, 0::2], expected[:, 1::2]
        compare('PE', positions(n, C), expected, [
            (torch.cat((sines, cosines), dim=1), 'Sines and cosines alternate: even columns and odd columns, not two halves.'),
            (torch.stack((cosines, sines), dim=2).flatten(1), 'Sine and cosine are swapped: sines in the even columns.'),
            (sinusoidal(n + 1, C)[1:], 'Positions count from 0.'),
            (sinusoidal(n, 2 * C)[:, :C], 'The exponent is 2i/C, not i/C: the waves are too fast.'),
        ])


def check_attention(attention):
    for T, D in ((5, 4), (3, 8), (7, 2), (1, 4)):
        q, k, v = 2 * torch.randn(3, T, D)
        logits = q @ k.T / math.sqrt(D)                                         # (T, T), for the mistakes only
        compare('Attention(Q, K, V)', call(attention, q, k, v), F.scaled_dot_product_attention(q, k, v), [
            (F.scaled_dot_product_attention(q, k, v, scale=1.0), 'sqrt(D) is missing.'),
            (F.scaled_dot_product_attention(q, k, v, scale=1 / D), 'Divide by sqrt(D), not by D.'),
            (F.scaled_dot_product_attention(q, k, v, scale=1 / math.sqrt(T)), 'D is the width, not the number of tokens.'),
            (logits.softmax(dim=0) @ v, 'The softmax goes over the wrong axis: over the keys, dim=-1.'),
            (F.scaled_dot_product_attention(k, q, v), 'Q and K are swapped: rows are queries, Q K^T.'),
            (F.scaled_dot_product_attention(q, k, v, is_causal=True), 'That has a mask; the mask is exercise 8.'),
            (logits @ v, 'The softmax is missing.'),
        ])


def check_mask(mask):
    for T in (4, 7, 2, 1):
        M = mask(T)
        expected = torch.nn.Transformer.generate_square_subsequent_mask(T)      # (T, T), torch's own
        if isinstance(M, torch.Tensor) and M.dtype == torch.bool:
            raise Wrong('M: true and false; expected numbers that can be added to logits: 0 and -inf')
        if isinstance(M, torch.Tensor) and M.is_floating_point() and M.isnan().any():
            raise Wrong('M has nan: 0 * -inf is nan. Fill in -inf instead, for example with masked_fill.')
        compare('M', M, expected, [
            (expected.T, 'The mask is upside down: every token sees only what comes after it.'),
            (torch.full((T, T), -math.inf).triu(), 'The diagonal is masked: a token must see itself.'),
            (torch.ones(T, T).tril(), 'Ones and zeros: expected 0 where a token may look, and -inf elsewhere.'),
            (torch.zeros(T, T), 'Nothing is masked.'),
        ])


def check_heads(heads):
    for B, T, H, D in ((2, 5, 3, 4), (1, 4, 2, 6), (3, 1, 2, 2), (2, 4, 1, 4)):
        C = H * D
        attn = CausalSelfAttention(GPTConfig(n_head=H, n_embd=C, bias=False)).requires_grad_(False)
        torch.nn.init.normal_(attn.c_attn.weight, std=0.7)                      # larger: differences show
        x, w_qkv, w_o = torch.randn(B, T, C), attn.c_attn.weight.clone(), attn.c_proj.weight.clone()
        found = call(heads, x, w_qkv, w_o, H)
        check_form('the output', found, x)

        changed = x.clone()
        changed[:, -1] += 1
        if T > 1 and not close(found.detach(), call(heads, changed, w_qkv, w_o, H).detach())[:, :-1].all():
            raise Wrong('the first tokens change when only the last one does: they see the future.\n'
                        'The mask is missing or upside down, or the heads were split with view(B, H, T, D).')
        compare('the output', found, attn(x), known_mistakes(attn, x, H, D))


def known_mistakes(attn, x, H, D):
    """What the repo's attention gives with other weights, or as one head; and the mistakes that are the same."""
    C = H * D
    def with_weights(q_scale=1.0, w_o=attn.c_proj.weight, n_head=H):
        other = CausalSelfAttention(GPTConfig(n_head=n_head, n_embd=C, bias=False)).requires_grad_(False)
        other.c_attn.weight.copy_(attn.c_attn.weight)
        other.c_attn.weight[:C] *= q_scale
        other.c_proj.weight.copy_(w_o)
        return other(x)
    return [
        (with_weights(w_o=torch.eye(C)), 'W_O is missing: the output of the heads must be mixed.'),
        (with_weights(w_o=attn.c_proj.weight.T), 'W_O is the wrong way round: x W_O^T.'),
        (with_weights(q_scale=math.sqrt(D)), 'sqrt(D) is missing.'),
        (with_weights(q_scale=math.sqrt(D / C)), 'Divide by sqrt(D), the width of a head, not by sqrt(C).'),
        (with_weights(n_head=1), 'That is one single head of width C.'),
    ]


def check_block(block):
    for B, T, C in ((2, 4, 6), (1, 3, 4), (3, 1, 2)):
        part = Block(GPTConfig(n_head=2, n_embd=C)).requires_grad_(False)
        for p in part.parameters():                   # unlike a fresh block's: every part matters
            torch.nn.init.normal_(p)
        ln_1, attn, ln_2, mlp = part.ln_1, part.attn, part.ln_2, part.mlp
        x = torch.randn(B, T, C)
        half = x + attn(ln_1(x))
        normed = ln_1(x) + attn(ln_1(x))
        post = ln_1(x + attn(x))
        compare('the output', call(lambda x: block(x, ln_1, attn, ln_2, mlp), x), part(x), [
            (ln_2(post + mlp(post)), 'That normalizes after adding, as in 2017. GPT-2 normalizes first.'),
            (mlp(ln_2(attn(ln_1(x)))), 'The residual connections are missing: add each part to x.'),
            (half, 'The second half is missing: the feed-forward network.'),
            (half + mlp(ln_2(x)), 'MLP must read the x that attention has changed already.'),
            (x + mlp(ln_2(half)), 'The second half must add to the x of the first half.'),
            (normed + mlp(ln_2(normed)), 'Add to the plain x, not to its normalized copy.'),
            (half + mlp(half), 'LN_2 is missing.'),
        ])


# ---------------------------------------------------------------------------- learning and writing

def check_adamw(adamw_step):
    eta, betas, eps = 0.1, (0.9, 0.99), 1e-8
    for shape, decay in (((3, 4), 0.5), ((5,), 0.1), ((2, 2), 0.0), ((1,), 0.5)):
        start = torch.randn(shape)
        right = torch.optim.AdamW([start.clone()], eta, betas, eps, weight_decay=decay)
        coupled = torch.optim.Adam([start.clone()], eta, betas, eps, weight_decay=decay)
        w, m, v = start, torch.zeros(shape), torch.zeros(shape)
        for t in (1, 2, 3):
            before, g = w, torch.randn(shape)
            expected, other = (step(optimizer, g) for optimizer in (right, coupled))
            state = right.state[right.param_groups[0]['params'][0]]
            w, m, v = returned(adamw_step(*copy.deepcopy((w, g, m, v)), t, eta, *betas, eps, decay), 'w', 'm', 'v')

            # The gradient of Adam holds the decay, so its m differs too: this goes first.
            for found, adams in ((w, other), (m, coupled.state[coupled.param_groups[0]['params'][0]]['exp_avg'])):
                if decay and isinstance(found, torch.Tensor) and found.shape == adams.shape and close(found, adams).all():
                    raise Wrong('weight decay was added to the gradient. In AdamW it is decoupled: w shrinks on its own.')
            compare(f'm after step {t}', m, state['exp_avg'], [
                (state['exp_avg'] / (1 - betas[0] ** t), 'That is m_hat; return m.')])
            compare(f'v after step {t}', v, state['exp_avg_sq'], [
                (state['exp_avg_sq'] / (1 - betas[1] ** t), 'That is v_hat; return v.'),
                (state['exp_avg'] ** 2, 'v is the mean of g^2, not the square of m.')])
            shrunk = before - eta * decay * before
            move = expected - shrunk
            compare(f'w after step {t}', w, expected, [
                (shrunk - eta * m / (v.sqrt() + eps), 'm_hat and v_hat are missing: divide by 1 - beta^t.'),
                (before + move, 'Weight decay is missing.'),
                (before - decay * before + move, 'Weight decay must be multiplied by eta.'),
                (shrunk - move, 'The sign is wrong: subtract.'),
            ])


def step(optimizer, g):
    """The weights after a step of torch's optimizer with the gradient g."""
    w = optimizer.param_groups[0]['params'][0]
    w.grad = g.clone()
    optimizer.step()
    return w.clone()


def draws(logits, tau, k, numbers):
    """The ids that the repo's sampler draws with the random numbers."""
    sampler = Sampler(temperature=tau, top_k=k)
    ids = []
    for u in numbers:
        sampler.uniform = lambda u=u: torch.tensor([[u]], dtype=torch.float64)
        ids.append(sampler(logits[None], torch.zeros(1, 1, dtype=torch.int64)).item())
    return ids


def check_sample(sample):
    numbers = [0.0, *torch.rand(30, dtype=torch.float64).tolist(), 0.999]
    for V, tau, k in ((8, 0.7, 3), (8, 2.0, 0), (6, 1.0, 4), (5, 0.0, 0), (5, 1.0, 1), (4, 1.0, 9), (1, 1.0, 0)):
        logits = torch.randn(V)
        logits[0] = -4.0                              # u = 0 must not pick an id that top_k dropped
        found = [as_id(call(sample, logits, tau, k, u), V) for u in numbers]
        expected = draws(logits, tau, k, numbers)
        if found == expected:
            continue

        ordered = logits.sort(descending=True).values
        mistakes = [
            (draws(logits, tau, 0, numbers), 'top_k is missing.'),
            (draws(logits, 1.0, k, numbers), 'The temperature is missing.'),
            (draws(logits, 1 / tau if tau else 1.0, k, numbers), 'Divide by the temperature, do not multiply.'),
            (draws(ordered, tau, k, numbers), 'That is a rank in the sorted order, not the id of the token.'),
            ([logits.argmax().item()] * len(numbers), 'That is always the most likely id; use u.'),
        ]
        i = [a == b for a, b in zip(found, expected)].index(False)
        if tau == 0:
            name = 'Temperature 0 means the most likely id.'
        elif numbers[i] == 0.0 and found[1:] == expected[1:]:
            name = 'That id has probability 0: take the first cumulative sum > u, not >= u.'
        else:
            name = next((name for ids, name in mistakes if ids == found), '')
        message = f'tau={tau}, k={k}, u={numbers[i]:.4f}: id {found[i]}, expected {expected[i]}'
        raise Wrong(f'{message}\n{name}'.strip())


def as_id(result, V):
    """An int, or a tensor with one integer, as an id below V; else Wrong."""
    if result is None:
        raise Wrong('None was returned; does every path through your function end with return?')
    if isinstance(result, torch.Tensor) and result.numel() == 1 and not result.is_floating_point():
        result = result.item()
    if type(result) is not int:
        raise Wrong(f'{type(result).__name__} returned, expected one id, an int')
    if not 0 <= result < V:
        raise Wrong(f'id {result}: expected 0 to {V - 1}')
    return result


# By file, in the order in which to solve them: the function, and its check.
EXERCISES = {
    'ex01_neuron': ('neuron', check_neuron),
    'ex02_feedforward': ('feedforward', check_feedforward),
    'ex03_backprop': ('backprop', check_backprop),
    'ex04_update_mini_batch': ('update_mini_batch', check_update_mini_batch),
    'ex05_softmax': ('softmax', check_softmax),
    'ex06_positions': ('positions', check_positions),
    'ex07_attention': ('attention', check_attention),
    'ex08_mask': ('mask', check_mask),
    'ex09_heads': ('heads', check_heads),
    'ex10_block': ('block', check_block),
    'ex11_adamw': ('adamw_step', check_adamw),
    'ex12_sampling': ('sample', check_sample),
}
