"""
What the exercises are compared with: the repo's own functions, or torch.

`check_exNN(solution)` calls a solution on random inputs of several shapes. It returns nothing if all results are right,
and raises `Wrong` with a message for the learner if one is not. An unsolved exercise raises NotImplementedError.
"""

import copy
import math
import traceback

import torch
from torch.nn import functional as F

import mlp_mnist
from gradus.sampling import Sampler
from model import MLP, SCORES, Block, CausalSelfAttention, GPTConfig, attention_weights, sinusoidal


class Wrong(Exception):
    """A result is not what the exercise asks for; the message says how it differs."""


# ---------------------------------------------------------------------------- how results are compared

def call(solution, *args, in_place=False):
    """What solution(*args) returns. Raises Wrong if it raises an error, or changes args although not in_place."""
    before = copy.deepcopy(args)
    try:
        result = solution(*args)
    except Exception as e:
        if isinstance(e, NotImplementedError) and not e.args:
            raise                                     # untouched; torch's own NotImplementedErrors have a message
        frames = traceback.extract_tb(e.__traceback__)[1:2]   # after this one: the solution's own
        where = f'line {frames[0].lineno}' if frames else 'its call'
        raise Wrong(f'your code stopped at {where}: {type(e).__name__}: {e}') from None
    if not in_place:
        for i, (old, new) in enumerate(zip(before, args)):
            if isinstance(old, torch.Tensor) and not torch.equal(old, new):
                raise Wrong(f'your function changed its argument number {i + 1}; make a new tensor instead')
    return result


def close(a, b):
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-5, equal_nan=True)


def compare(found, expected, what, mistakes=()):
    """Raise Wrong unless the tensors agree. mistakes: pairs of a wrong result and what to say if found is that."""
    shape = tuple(expected.shape)
    if found is None:
        raise Wrong(f'{what}: found None, expected a tensor of shape {shape}; is the return missing?')
    if not isinstance(found, torch.Tensor):
        raise Wrong(f'{what}: found the type {type(found).__name__}, expected a tensor of shape {shape}')
    hint = ''
    for wrong, explanation in mistakes:
        if close(found.to(wrong.dtype), wrong) and not close(wrong, expected):
            hint = f'\n{explanation}'
            break
    if found.shape != expected.shape:
        raise Wrong(f'{what}: found the shape {tuple(found.shape)}, expected {shape}{hint}')
    found = found.detach().to(expected.dtype)
    differs = ~torch.isclose(found, expected, rtol=1e-3, atol=1e-5)
    if differs.any():
        at = tuple(differs.nonzero()[0].tolist())
        place = f'[{", ".join(map(str, at))}]' if at else ''
        name, comma, case = what.partition(', for ')
        numbers = f'found {found[at].item():.6g}, expected {expected[at].item():.6g}'
        raise Wrong(f'{name}{place}{comma}{case}: {numbers}{hint}')


def compare_rows(found, expected, what, mistakes):
    """Like `compare`; the message also says which row does not sum to 1."""
    try:
        compare(found, expected, what, mistakes)
    except Wrong as e:
        if isinstance(found, torch.Tensor) and found.shape == expected.shape:
            for row, total in enumerate(found.sum(dim=-1).tolist()):
                if not abs(total - 1) < 1e-3:         # also if it is NaN
                    raise Wrong(f'{e}\neach row must sum to 1; row {row} sums to {total:.6g}') from None
        raise


def check_list(found, expected, what):
    """Raise Wrong unless found is a list as long as expected."""
    if not isinstance(found, (list, tuple)):
        raise Wrong(f'{what}: found the type {type(found).__name__}, expected a list of {len(expected)} tensors')
    if len(found) != len(expected):
        raise Wrong(f'{what}: found {len(found)} tensors, expected {len(expected)}, one for each layer but the first')


def check_tuple(found, n, what):
    """Raise Wrong unless found is n values."""
    if found is None:
        raise Wrong(f'found None, expected {what}; is the return missing?')
    if not isinstance(found, (list, tuple)):
        raise Wrong(f'found the type {type(found).__name__}, expected {what}')
    if len(found) != n:
        raise Wrong(f'found {len(found)} value(s), expected {what}')


# ---------------------------------------------------------------------------- the digit network

SIZES = ((3, 4, 2), (5, 3), (4, 6, 5, 3), (1, 1, 1))
IMAGES = (5, 3, 1, 2)


def digit_networks():
    """Networks with (model, weights, biases, x (n_1, m), y (n_L, m))."""
    torch.manual_seed(1)
    for sizes, m in zip(SIZES, IMAGES):
        model = MLP(sizes)
        weights, biases = mlp_mnist.weights_and_biases(model)
        x = torch.rand(sizes[0], m)
        y = F.one_hot(torch.randint(sizes[-1], (m,)), sizes[-1]).T.float()
        yield model, weights, biases, x, y


@torch.no_grad()
def check_ex01(solution):
    torch.manual_seed(1)
    for n in (3, 1, 784):
        model = MLP((n, 1))
        w, b = model.layers[0].weight[0], model.layers[0].bias[0]
        x = torch.rand(n)
        expected = model(x[None])[0][0, 0]
        z = w @ x + b
        compare(call(solution, w, x, b), expected, f'a, for n = {n}', [
            (z, 'this is z = w . x + b; sigma is missing'),
            (torch.sigmoid(w * x + b), 'w * x is one product for each input; their sum is missing'),
            (torch.sigmoid(w @ x), 'the bias b is missing'),
        ])


@torch.no_grad()
def check_ex02(solution):
    for model, weights, biases, x, _ in digit_networks():
        expected = model(x.T)[0].T
        no_last_sigma = torch.logit(expected)
        no_bias = x
        for w in weights:
            no_bias = torch.sigmoid(w @ no_bias)
        compare(call(solution, weights, biases, x), expected, f'a^L, for {len(weights) + 1} layers', [
            (no_last_sigma, 'this is z^L; the last layer needs sigma too'),
            (no_bias, 'the biases are missing'),
            (expected.T, 'an image is a column here, not a row'),
        ])


@torch.no_grad()
def check_ex03(solution):
    for _, weights, biases, x, y in digit_networks():
        expected_w, expected_b = mlp_mnist.backprop(weights, biases, x, y)
        m = x.size(1)
        found = call(solution, weights, biases, x, y)
        check_tuple(found, 2, 'two lists, nabla_w and nabla_b')
        for kind, lists, expected in zip('wb', found, (expected_w, expected_b)):
            check_list(lists, expected, f'nabla_{kind}')
            for l in reversed(range(len(expected))):  # the last layer first, as in backpropagation
                right = expected[l]
                compare(lists[l], right, f'nabla_{kind}, for layer l = {l + 2}', [
                    (right / m, 'return the sum over the images; do not divide by m here'),
                    (-right, 'the sign is wrong: delta^L is (a^L - y) * sigma\'(z^L)'),
                    (right.T, 'this is the transpose'),
                    (right.flatten(), 'keep the column: sum(dim=1, keepdim=True)'),
                    (expected[-1 - l], 'the list is in reverse order: the last layer belongs at its end'),
                ])


@torch.no_grad()
def check_ex04(solution):
    eta = 3.0
    for _, weights, biases, x, y in digit_networks():
        nabla_w, nabla_b = mlp_mnist.backprop(weights, biases, x, y)
        old = copy.deepcopy((weights, biases))
        expected = copy.deepcopy(old)
        mlp_mnist.update_mini_batch(*expected, x, y, eta)
        tensors = copy.deepcopy(old)
        lists = [list(kind) for kind in tensors]
        call(solution, *lists, x, y, eta, in_place=True)

        for kind, olds, founds, rights, nablas in zip('wb', old, tensors, expected, (nabla_w, nabla_b)):
            for l, (before, found, right, nabla) in enumerate(zip(olds, founds, rights, nablas)):
                compare(found, right, f'{kind}^l, for layer l = {l + 2}', [
                    (before, f'{kind} has not changed: change the tensors in the list, as in {kind} -= ...'),
                    (before - eta * nabla, 'not divided by m: the step is eta / m times the sum'),
                    (2 * before - right, 'the sign is wrong: go against the gradient'),
                ])


# ---------------------------------------------------------------------------- the parts of a GPT

@torch.no_grad()
def check_ex05(solution):
    torch.manual_seed(5)
    for shape, T in (((2, 4), 0.5), ((3, 3), 1.0), ((1, 1), 2.0), ((2, 5), 1.5)):
        x = torch.randn(shape)
        compare_rows(call(solution, x, T), (x / T).softmax(dim=1), f'p, for T = {T}', [
            ((x / T).softmax(dim=0), 'softmax along the wrong axis: each row is a distribution, so sum over dim=1'),
            (x.softmax(dim=1), 'the temperature T is missing'),
            ((x * T).softmax(dim=1), 'x is divided by T, not multiplied by it'),
            ((x / T).exp(), 'e^{x/T} is not divided by its sum'),
        ])
    x = torch.tensor([[1000.0, 999.0], [-1000.0, -1001.0]])
    found = call(solution, x, 1.0)
    if isinstance(found, torch.Tensor) and found.isnan().any():
        raise Wrong('p: found NaN for logits of 1000 or -1000; subtract the largest logit of each row before e^x')
    compare(found, x.softmax(dim=1), 'p, for large logits')


@torch.no_grad()
def check_ex06(solution):
    for n, C in ((5, 6), (1, 2), (64, 32)):
        expected = sinusoidal(n, C)
        sines, cosines = expected[:, 0::2], expected[:, 1::2]
        halves = torch.cat((sines, cosines), dim=1)
        swapped = torch.stack((cosines, sines), dim=2).flatten(1)
        compare(call(solution, n, C), expected, f'PE, for n = {n}, C = {C}', [
            (halves, 'sine and cosine must alternate: sine in the even columns, cosine in the odd ones'),
            (swapped, 'sine belongs in the even columns, cosine in the odd ones'),
            (expected.T, 'a row for each position, please: this is the transpose'),
        ])


@torch.no_grad()
def check_ex07(solution):
    torch.manual_seed(7)
    for T, D in ((3, 4), (4, 4), (1, 2), (6, 1)):
        Q, K, V = torch.randn(3, T, D)
        expected = attention_weights(Q[None, None], K[None, None], mask='none')[0, 0] @ V
        S = Q @ K.T
        compare(call(solution, Q, K, V), expected, f'Attention(Q, K, V), for T = {T}, D = {D}', [
            (S.softmax(dim=-1) @ V, 'sqrt(D) is forgotten: divide Q K^T by it'),
            ((S / D).softmax(dim=-1) @ V, 'divided by D instead of sqrt(D)'),
            ((S / math.sqrt(T)).softmax(dim=-1) @ V, 'divided by sqrt(T); D is the width, Q.size(-1)'),
            ((S / math.sqrt(D)).softmax(dim=0) @ V, 'softmax along the wrong axis: each row must sum to 1, dim=-1'),
            ((S.T / math.sqrt(D)).softmax(dim=-1) @ V, 'this is K Q^T; queries are the rows: Q K^T'),
            (S / math.sqrt(D) @ V, 'the softmax is missing'),
            ((S / math.sqrt(D)).softmax(dim=-1), 'these are the weights; their product with V is missing'),
        ])


@torch.no_grad()
def check_ex08(solution):
    torch.manual_seed(8)
    for T in (4, 2, 1, 9):
        Q, K = torch.randn(2, 1, 1, T, 5)
        S = SCORES['dot'](Q, K)[0, 0]
        compare_rows(call(solution, S), attention_weights(Q, K)[0, 0], f'weights, for T = {T}', [
            (attention_weights(Q, K, mask='other_half')[0, 0], 'mask upside down: j > i is what to mask'),
            (S.softmax(dim=-1), 'no mask: a token sees the tokens after it'),
            (S.softmax(dim=-1).tril(), 'the mask comes before the softmax, not after it'),
            (S.tril().softmax(dim=-1), 'masked scores must be -infinity, not 0: e^0 is 1'),
            (S.masked_fill(torch.ones(T, T).triu() > 0, -math.inf).softmax(dim=-1),
             'a token sees itself: the diagonal is not masked'),
        ])


@torch.no_grad()
def check_ex09(solution):
    torch.manual_seed(9)
    for B, T, H, D in ((2, 3, 2, 4), (1, 4, 4, 1), (2, 5, 1, 3), (1, 1, 3, 2)):
        C = H * D
        attn = CausalSelfAttention(GPTConfig(n_head=H, n_embd=C, bias=False))
        attn.c_attn.weight.normal_()
        W_Q, W_K, W_V = (w.T.contiguous() for w in attn.c_attn.weight.split(C))
        W_O = attn.c_proj.weight.T.contiguous()
        x = torch.randn(B, T, C)

        Q, K, V = x @ W_Q, x @ W_K, x @ W_V
        cut, cut_wrong = [[z.view(B, T, H, D).transpose(1, 2) for z in (Q, K, V)],
                          [z.view(B, H, T, D) for z in (Q, K, V)]]
        heads = attention_weights(*cut[:2]) @ cut[2]
        mixed = attention_weights(*cut_wrong[:2]) @ cut_wrong[2]
        unmasked = attention_weights(*cut[:2], mask='none') @ cut[2]
        one_head = attention_weights(Q[:, None], K[:, None])[:, 0] @ V
        found = call(solution, x, W_Q, W_K, W_V, W_O, H)
        compare(found, attn(x), f'MultiHead(x), for B, T, C = {B}, {T}, {C} and H = {H}', [
            (side_by_side(unmasked) @ W_O, 'the causal mask is missing'),
            (side_by_side(heads), 'W_O is missing'),
            (mixed.reshape(B, T, C) @ W_O, 'view(B, H, T, D) mixes tokens: view(B, T, H, D).transpose(1, 2) does not'),
            (side_by_side(mixed) @ W_O, 'view(B, H, T, D) mixes tokens: view(B, T, H, D).transpose(1, 2) does not'),
            (heads.reshape(B, T, C) @ W_O, 'transpose back before you put the heads side by side'),
            (one_head @ W_O, 'this is one head of width C; cut Q, K and V into H heads'),
        ])


def side_by_side(heads):
    """(B, H, T, D) -> (B, T, H D)"""
    return heads.transpose(1, 2).flatten(2)


@torch.no_grad()
def check_ex10(solution):
    torch.manual_seed(10)
    for B, T, C in ((2, 3, 4), (1, 1, 2), (2, 5, 8)):
        b = Block(GPTConfig(n_head=2, n_embd=C))
        for norm in (b.ln_1, b.ln_2):
            norm.weight.normal_()
            norm.bias.normal_()
        x = torch.randn(B, T, C)
        h = x + b.attn(b.ln_1(x))
        after = b.ln_1(x + b.attn(x))
        compare(call(solution, x, b.ln_1, b.attn, b.ln_2, b.mlp), b(x), f'x, for B, T, C = {B}, {T}, {C}', [
            (b.ln_2(after + b.mlp(after)), 'norm after the sum (post-norm); GPT-2 has it before attention and MLP'),
            (b.mlp(b.ln_2(b.attn(b.ln_1(x)))), 'the residual is missing: add to x instead of replacing it'),
            (h + b.mlp(b.ln_2(x)), 'the MLP gets the old x; give it the x that attention has changed'),
            (x + b.mlp(b.ln_2(h)), 'what attention found is missing from the sum'),
            (x + b.attn(x) + b.mlp(x + b.attn(x)), 'the norms are missing'),
            (h, 'the MLP is missing'),
        ])


# ---------------------------------------------------------------------------- learning and writing

@torch.no_grad()
def check_ex11(solution):
    torch.manual_seed(11)
    for shape, decay in (((2, 3), 0.5), ((1, 1), 0.0), ((4, 2), 0.1)):
        start = torch.randn(shape)
        settings = dict(lr=0.1, betas=(0.8, 0.9), eps=0.01, weight_decay=decay)
        numbers = (0.1, 0.8, 0.9, 0.01, decay)        # eta, beta1, beta2, eps, weight_decay
        p, l2 = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
        adamw, adam = torch.optim.AdamW([p], **settings), torch.optim.Adam([l2], **settings)
        m = v = torch.zeros(shape)

        for t in (1, 2, 3):
            w, g = p.detach().clone(), torch.randn(shape)
            l2.copy_(w)
            p.grad, l2.grad = g.clone(), g.clone()
            adamw.step()
            adam.step()
            state = adamw.state[p]
            found = call(solution, w, g, m, v, t, *numbers)
            check_tuple(found, 3, 'three tensors, the new w, m and v')
            m, v = state['exp_avg'].clone(), state['exp_avg_sq'].clone()
            compare(found[1], m, f'm, for step t = {t}', [
                (m / (1 - 0.8 ** t), 'this is m^; return m'),
                (adam.state[l2]['exp_avg'], 'weight decay is added to the gradient; it belongs to the step of w alone'),
            ])
            compare(found[2], v, f'v, for step t = {t}', [(v / (1 - 0.9 ** t), 'this is v^; return v')])
            decayed = w * (1 - 0.1 * decay)
            m_hat, v_hat = m / (1 - 0.8 ** t), v / (1 - 0.9 ** t)
            compare(found[0], p.detach(), f'w, for step t = {t}', [
                (l2.detach(), 'weight decay is added to the gradient; apply it to the weight'),
                (decayed - 0.1 * m / (v.sqrt() + 0.01), 'm and v are not corrected: use m^ and v^'),
                (decayed - 0.1 * m_hat / (v_hat + 0.01).sqrt(), 'eps is inside the square root; add it to sqrt(v^)'),
                (w - 0.1 * m_hat / (v_hat.sqrt() + 0.01), 'weight decay is missing'),
                (w * (1 - decay) - 0.1 * m_hat / (v_hat.sqrt() + 0.01), 'weight decay has to be multiplied by eta too'),
            ])


class GivenNumber(Sampler):
    """The repo's sampler, with a given random number u instead of its own."""

    def __init__(self, T, k, u):
        super().__init__(temperature=T, top_k=k)
        self.u = u

    def uniform(self):
        return torch.tensor([[self.u]], dtype=torch.float64)

    def id(self, x):
        return self(x[None], None).item()


@torch.no_grad()
def check_ex12(solution):
    torch.manual_seed(12)
    cases = [(5, 0.5, 3, u) for u in (0.1, 0.35, 0.6, 0.85, 0.97, 0.0)]
    cases += [(8, 2.0, 8, u) for u in (0.05, 0.3, 0.7)] + [(8, 1.0, 1, 0.4), (1, 1.0, 1, 0.5), (6, 0, 6, 0.9)]
    cases += [(50, 1.5, 10, u) for u in torch.rand(20).tolist()]
    for V, T, k, u in cases:
        x = torch.randn(V, dtype=torch.float64)
        if u == 0.0:
            x[0] = -3.0                               # the first token is not in the top k
        found = call(solution, x, T, k, u)
        compare_id(found, x, T, k, u)


def compare_id(found, x, T, k, u):
    """Raise Wrong unless found is the id that the repo's sampler draws."""
    V = len(x)
    what = f'id, for V = {V}, T = {T}, k = {k}, u = {u:.3g}'
    if found is None:
        raise Wrong(f'{what}: found None, expected a whole number; is the return missing?')
    if isinstance(found, torch.Tensor) and found.numel() != 1:
        raise Wrong(f'{what}: found the shape {tuple(found.shape)}, expected one number, shape ()')
    found = found.item() if isinstance(found, torch.Tensor) else found
    if not isinstance(found, int):
        raise Wrong(f'{what}: found the type {type(found).__name__}, expected a whole number')
    expected = GivenNumber(T, k, u).id(x)
    if found == expected:
        return
    hint = ''
    kept = x.topk(k).indices
    place = GivenNumber(T, k, u).id(x[kept])          # its place among the k most likely
    if T and found == GivenNumber(T, V, u).id(x):
        hint = '\ntop-k is missing: keep only the k largest logits'
    elif found not in kept.tolist():
        hint = '\nthis token is not among the k most likely; is it `> u`, and its place in x that you return?'
    elif found in (place, kept[place].item()):
        hint = '\nkeep the tokens in their order, and return the place in x, not the place among the k largest'
    elif T and found == GivenNumber(1 / T, k, u).id(x):
        hint = '\nthe logits are divided by T, not multiplied by it'
    elif T and found == GivenNumber(1.0, k, u).id(x):
        hint = '\nthe temperature T is missing'
    raise Wrong(f'{what}: found {found}, expected {expected}{hint}')


# The name of each file, its function, and its check.
EXERCISES = {
    'ex01_neuron': ('neuron', check_ex01),
    'ex02_feedforward': ('feedforward', check_ex02),
    'ex03_backprop': ('backprop', check_ex03),
    'ex04_update_mini_batch': ('update_mini_batch', check_ex04),
    'ex05_softmax': ('softmax', check_ex05),
    'ex06_positions': ('positions', check_ex06),
    'ex07_attention': ('attention', check_ex07),
    'ex08_mask': ('masked_weights', check_ex08),
    'ex09_heads': ('multi_head', check_ex09),
    'ex10_block': ('block', check_ex10),
    'ex11_adamw': ('adamw_step', check_ex11),
    'ex12_sampling': ('draw', check_ex12),
}
