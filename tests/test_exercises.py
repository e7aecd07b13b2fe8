"""The exercises' checks: the repo's own functions pass them, typical mistakes fail them in words that help."""

import importlib
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import REPO
from torch.nn import functional as F

import mlp_mnist
from exercises import checks
from gradus.sampling import Sampler
from model import attention_weights, sinusoidal

# ---------------------------------------------------------------------------- the repo's own functions as solutions

def feedforward(weights, biases, x):
    for w, b in zip(weights, biases):
        x = mlp_mnist.SIGMA['sigmoid'](w @ x + b)
    return x


def backprop(weights, biases, x, y):
    return mlp_mnist.backprop(weights, biases, x, y)


def update_mini_batch(weights, biases, x, y, eta, backprop):
    new = [t.clone() for t in weights], [t.clone() for t in biases]
    mlp_mnist.update_mini_batch(*new, x, y, eta)
    return new


def softmax(logits, T):
    return Sampler(temperature=T).distribution(logits.double())


def masked_softmax(scores):
    """scores as a product of queries and keys: Q = scores sqrt(T), K = 1."""
    T = len(scores)
    return attention_weights(scores[None, None] * T ** 0.5, torch.eye(T)[None, None])[0, 0]


def multi_head_attention(x, W_QKV, W_O, H):
    q, k, v = (t.unflatten(-1, (H, -1)).transpose(1, 2) for t in (x @ W_QKV.T).chunk(3, dim=-1))
    return (attention_weights(q, k) @ v).transpose(1, 2).flatten(2) @ W_O.T


def block(x, ln_1, attn, ln_2, mlp):
    x = x + attn(ln_1(x))
    return x + mlp(ln_2(x))


def adamw_step(w, g, m, v, t, eta, beta1, beta2, eps, lambda_):
    """torch's AdamW, put into the state before the step."""
    p = torch.nn.Parameter(w.clone())
    p.grad = g
    optimizer = torch.optim.AdamW([p], lr=eta, betas=(beta1, beta2), eps=eps, weight_decay=lambda_)
    optimizer.state[p] = dict(step=torch.tensor(t - 1.0), exp_avg=m.clone(), exp_avg_sq=v.clone())
    optimizer.step()
    return p.detach(), optimizer.state[p]['exp_avg'], optimizer.state[p]['exp_avg_sq']


def draw(logits, T, top_k, u):
    return checks.drawn(logits, T, top_k, u)


SOLUTIONS = dict(
    ex01_neuron=lambda w, x, b: torch.sigmoid(w @ x + b),
    ex02_feedforward=feedforward,
    ex03_backprop=backprop,
    ex04_update_mini_batch=update_mini_batch,
    ex05_softmax=softmax,
    ex06_positions=sinusoidal,
    ex07_attention=lambda Q, K, V: F.scaled_dot_product_attention(Q[None], K[None], V[None])[0],
    ex08_mask=masked_softmax,
    ex09_heads=multi_head_attention,
    ex10_block=block,
    ex11_adamw=adamw_step,
    ex12_sampling=draw,
)


@pytest.mark.parametrize('name', checks.EXERCISES)
def test_the_repos_own_functions_pass(name):
    _, check = checks.EXERCISES[name]
    check(SOLUTIONS[name])


@pytest.mark.parametrize('name', checks.EXERCISES)
def test_nothing_is_solved_yet(name):
    """Every file has its function, a task with shapes, and the place of the answer, which exists."""
    module = importlib.import_module(f'exercises.{name}')
    function, check = checks.EXERCISES[name]
    with pytest.raises(NotImplementedError):
        check(getattr(module, function))
    assert 'The answer: ' in module.__doc__
    assert f'exercises/{name}.py' in (REPO / 'LEARN.md').read_text(encoding='utf-8')


# ---------------------------------------------------------------------------- mistakes

def without_sigma_prime(weights, biases, x, y):
    return mlp_mnist.backprop(weights, biases, x, y, 'sigmoid', 'cross_entropy')


def mean_gradient(weights, biases, x, y):
    return [[t / x.size(1) for t in tensors] for tensors in backprop(weights, biases, x, y)]


def whole_step(weights, biases, x, y, eta, backprop):
    nabla_w, nabla_b = backprop(weights, biases, x, y)
    return [w - eta * nw for w, nw in zip(weights, nabla_w)], [b - eta * nb for b, nb in zip(biases, nabla_b)]


def in_place(weights, biases, x, y, eta, backprop):
    mlp_mnist.update_mini_batch(weights, biases, x, y, eta)
    return weights, biases


def naive_softmax(logits, T):
    e = (logits / T).exp()
    return e / e.sum(dim=-1, keepdim=True)


def halves(n, C):
    table = sinusoidal(n, C)
    return torch.cat((table[:, ::2], table[:, 1::2]), dim=1)


def upside_down(scores):
    return scores.masked_fill(torch.ones_like(scores).tril(-1).bool(), -torch.inf).softmax(-1)


def masked_afterwards(scores):
    return scores.softmax(-1).tril()


def heads_mixed_up(x, W_QKV, W_O, H):
    B, T, C = x.shape
    q, k, v = (t.reshape(B, H, T, C // H) for t in (x @ W_QKV.T).chunk(3, dim=-1))
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return y.transpose(1, 2).reshape(x.shape) @ W_O.T


def one_wide_head(x, W_QKV, W_O, H):
    return multi_head_attention(x, W_QKV, W_O, 1)


def post_norm(x, ln_1, attn, ln_2, mlp):
    x = ln_1(x + attn(x))
    return ln_2(x + mlp(x))


def old_x(x, ln_1, attn, ln_2, mlp):
    return x + attn(ln_1(x)) + mlp(ln_2(x))


def adam_with_l2(w, g, m, v, t, eta, beta1, beta2, eps, lambda_):
    return adamw_step(w, g + lambda_ * w, m, v, t, eta, beta1, beta2, eps, 0.0)


def uncorrected(w, g, m, v, t, eta, beta1, beta2, eps, lambda_):
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g ** 2
    return w - eta * lambda_ * w - eta * m / (v.sqrt() + eps), m, v


MISTAKES = [
    ('ex01_neuron', lambda w, x, b: w @ x + b, 'this is the sum z; expected sigma(z)'),
    ('ex01_neuron', lambda w, x, b: torch.sigmoid(w * x + b), 'has the shape (1,); expected ()'),
    ('ex01_neuron', lambda w, x, b: None, 'is there a return statement?'),
    ('ex01_neuron', lambda w, x, b: torch.sigmoid(w @ x + b).item(), 'is a float; expected a torch.Tensor of shape ()'),
    ('ex02_feedforward', lambda w, b, x: feedforward(w, b, x).T, 'has the shape (1, 2); expected (2, 1)'),
    ('ex02_feedforward', lambda w, b, x: w[-1] @ feedforward(w[:-1], b[:-1], x) + b[-1], 'no layer has its sigma'),
    ('ex02_feedforward', lambda w, b, x: feedforward(w, b, x) + 0.01, 'differs at [0, 0]: found'),
    ('ex03_backprop', without_sigma_prime, "sigma'(z^L) is missing in BP1"),
    ('ex03_backprop', mean_gradient, 'divided by m: expected the sum over the images'),
    ('ex03_backprop', lambda *a: backprop(*a)[0], 'expected the lists nabla_w and nabla_b'),
    ('ex04_update_mini_batch', whole_step, 'not divided by m'),
    ('ex04_update_mini_batch', in_place, 'the old weights or biases have changed'),
    ('ex05_softmax', lambda logits, T: (logits / T).softmax(dim=0), 'expected each row'),
    ('ex05_softmax', lambda logits, T: (logits * T).softmax(dim=-1), 'multiplied by T; expected a division'),
    ('ex05_softmax', naive_softmax, 'NaN for logits of 1000'),
    ('ex06_positions', halves, 'expected sin, cos, sin, cos'),
    ('ex06_positions', lambda n, C: sinusoidal(n, C).T, 'has the shape (2, 1); expected (1, 2)'),
    ('ex07_attention', lambda Q, K, V: (Q @ K.T).softmax(-1) @ V, 'the division by sqrt(D) is missing'),
    ('ex07_attention', lambda Q, K, V: (Q @ K.T / Q.size(1) ** 0.5).softmax(0) @ V, 'along the wrong axis'),
    ('ex08_mask', upside_down, 'the mask is upside down'),
    ('ex08_mask', masked_afterwards, 'each row must sum to 1: mask before the softmax'),
    ('ex09_heads', heads_mixed_up, 'tokens and heads are mixed up'),
    ('ex09_heads', one_wide_head, 'this is one head of width C'),
    ('ex10_block', post_norm, 'normalized after each sum'),
    ('ex10_block', old_x, 'the MLP reads the old x'),
    ('ex11_adamw', adam_with_l2, 'that is Adam with L2'),
    ('ex11_adamw', uncorrected, 'm and v are not corrected'),
    ('ex12_sampling', lambda logits, T, top_k, u: draw(logits, T, len(logits), u), 'it seems that top_k does nothing'),
    ('ex12_sampling', lambda logits, T, top_k, u: draw(logits, T and 1.0, top_k, u), 'it seems that T does nothing'),
    ('ex12_sampling', lambda logits, T, top_k, u: logits, 'has the shape (3,); expected one id'),
]


@pytest.mark.parametrize('name, solution, words', MISTAKES)
def test_a_mistake_is_named(name, solution, words):
    _, check = checks.EXERCISES[name]
    with pytest.raises(checks.Wrong) as e:
        check(solution)
    assert words in str(e.value)
    assert '\n' not in str(e.value)


# ---------------------------------------------------------------------------- as a learner runs them

@pytest.mark.slow
def test_pytest_tells_what_is_solved(tmp_path):
    """In a copy of the repo: nothing is solved; then one exercise is, and one is wrong."""
    for name in ('gradus', 'exercises'):
        shutil.copytree(REPO / name, tmp_path / name, ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('model.py', 'mlp_mnist.py', 'pyproject.toml'):
        shutil.copy(REPO / name, tmp_path)

    def ran():
        return subprocess.run([sys.executable, '-m', 'pytest', 'exercises'], cwd=tmp_path, capture_output=True,
                              text=True, encoding='utf-8', timeout=300)

    untouched = ran()
    assert untouched.returncode == 0
    assert '12 skipped' in untouched.stdout
    assert '0 of 12 solved; next: exercises/ex01_neuron.py' in untouched.stdout

    for name, answer in (('ex01_neuron', 'return 1 / (1 + torch.exp(-(w @ x + b)))'),
                         ('ex02_feedforward', 'return weights[0] @ x')):
        path = tmp_path / 'exercises' / f'{name}.py'
        text = path.read_text(encoding='utf-8')
        path.write_text(text.replace('raise NotImplementedError', answer), encoding='utf-8')
    partly = ran()
    assert partly.returncode == 1
    assert '1 of 12 solved; next: exercises/ex02_feedforward.py' in partly.stdout
    assert 'ex02_feedforward: a^L' in partly.stdout
    assert 'Traceback' not in partly.stdout and 'checks.py:' not in partly.stdout
