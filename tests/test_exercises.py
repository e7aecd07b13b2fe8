"""The exercises: the repo's own functions solve them all, and a wrong solution gets the message that helps."""

import importlib
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mlp_mnist
from exercises import checks
from model import SCORES, attention_weights, sinusoidal

REPO = Path(__file__).resolve().parents[1]


# ---------------------------------------------------------------------------- solutions, from the repo and torch

def neuron(w, x, b):
    return feedforward([w[None]], [b.view(1, 1)], x[:, None])[0, 0]


def feedforward(weights, biases, x):
    for w, b in zip(weights, biases):
        x = torch.sigmoid(torch.nn.functional.linear(x.T, w, b[:, 0])).T
    return x


def softmax(x, T):
    return torch.softmax(x / T, dim=1)


def attention(Q, K, V):
    return attention_weights(Q[None, None], K[None, None], mask='none')[0, 0] @ V


def masked_weights(S):
    return S.masked_fill(torch.ones_like(S).triu(1) > 0, -math.inf).softmax(dim=-1)


def multi_head(x, W_Q, W_K, W_V, W_O, H):
    q, k, v = ((x @ w).unflatten(-1, (H, -1)).transpose(1, 2) for w in (W_Q, W_K, W_V))
    return (attention_weights(q, k) @ v).transpose(1, 2).flatten(2) @ W_O


def block(x, ln_1, attn, ln_2, mlp):
    x = x + attn(ln_1(x))
    return x + mlp(ln_2(x))


def adam_step(w, g, m, v, t, eta, beta1, beta2, eps, weight_decay, kind=torch.optim.AdamW):
    p = torch.nn.Parameter(w.clone())
    p.grad = g.clone()
    optimizer = kind([p], lr=eta, betas=(beta1, beta2), eps=eps, weight_decay=weight_decay)
    optimizer.state[p] = dict(step=torch.tensor(t - 1.0), exp_avg=m.clone(), exp_avg_sq=v.clone())
    optimizer.step()
    return p.detach(), optimizer.state[p]['exp_avg'], optimizer.state[p]['exp_avg_sq']


def draw(x, T, k, u):
    return checks.GivenNumber(T, k, u).id(x)


SOLUTIONS = {
    'ex01_neuron': neuron,
    'ex02_feedforward': feedforward,
    'ex03_backprop': mlp_mnist.backprop,
    'ex04_update_mini_batch': mlp_mnist.update_mini_batch,
    'ex05_softmax': softmax,
    'ex06_positions': sinusoidal,
    'ex07_attention': attention,
    'ex08_mask': masked_weights,
    'ex09_heads': multi_head,
    'ex10_block': block,
    'ex11_adamw': adam_step,
    'ex12_sampling': draw,
}


@pytest.mark.parametrize('name', checks.EXERCISES)
def test_solution_passes(name):
    checks.EXERCISES[name][1](SOLUTIONS[name])


@pytest.mark.parametrize('name', checks.EXERCISES)
def test_untouched_is_unsolved(name):
    """Nobody commits a solution. If you have solved one in this folder, this test fails; that is fine."""
    function, check = checks.EXERCISES[name]
    module = importlib.import_module(f'exercises.{name}')
    with pytest.raises(NotImplementedError):
        check(getattr(module, function))


# ---------------------------------------------------------------------------- wrong solutions

def no_change(weights, biases, x, y, eta):
    weights = [w - eta for w in weights]


def not_divided(weights, biases, x, y, eta):
    mlp_mnist.update_mini_batch(weights, biases, x, y, eta * x.size(1))


def mean_backprop(weights, biases, x, y):
    return [[n / x.size(1) for n in nabla] for nabla in mlp_mnist.backprop(weights, biases, x, y)]


def reversed_backprop(weights, biases, x, y):
    return [nabla[::-1] for nabla in mlp_mnist.backprop(weights, biases, x, y)]


def mixed_heads(x, W_Q, W_K, W_V, W_O, H):
    q, k, v = ((x @ w).view(x.size(0), H, x.size(1), -1) for w in (W_Q, W_K, W_V))
    return (attention_weights(q, k) @ v).transpose(1, 2).flatten(2) @ W_O


def post_norm(x, ln_1, attn, ln_2, mlp):
    x = ln_1(x + attn(x))
    return ln_2(x + mlp(x))


def l2_step(*args):
    return adam_step(*args, kind=torch.optim.Adam)


def place_in_top_k(x, T, k, u):
    return draw(x[x.topk(k).indices], T, k, u)


WRONG = [
    ('ex01_neuron', lambda w, x, b: w @ x + b, 'a, for n = 3: found', 'sigma is missing'),
    ('ex01_neuron', lambda w, x, b: torch.sigmoid(w * x + b), 'found the shape (3,), expected ()', 'sum is missing'),
    ('ex02_feedforward', lambda w, b, x: None, 'found None, expected a tensor of shape (2, 5)', 'return missing'),
    ('ex02_feedforward', lambda w, b, x: w[0] @ x.T, 'your code stopped at line', 'RuntimeError'),
    ('ex03_backprop', mean_backprop, ', for layer l = 3', 'do not divide by m'),
    ('ex03_backprop', reversed_backprop, 'found the shape (4, 3), expected (2, 4)', 'in reverse order'),
    ('ex03_backprop', lambda w, b, x, y: b[:1], 'found 1 value(s), expected two lists', ''),
    ('ex04_update_mini_batch', no_change, 'w^l[0, 0], for layer l = 2: found', 'w has not changed'),
    ('ex04_update_mini_batch', not_divided, 'found', 'not divided by m'),
    ('ex05_softmax', lambda x, T: softmax(x.T, T).T, 'wrong axis', 'each row must sum to 1; row 0 sums to'),
    ('ex05_softmax', lambda x, T: (x / T).exp() / (x / T).exp().sum(1, keepdim=True), 'found NaN', 'subtract'),
    ('ex05_softmax', lambda x, T: x.tolist(), 'found the type list, expected a tensor', ''),
    ('ex06_positions', lambda n, C: sinusoidal(n, C).unflatten(1, (-1, 2)).mT.flatten(1), 'PE', 'must alternate'),
    ('ex06_positions', lambda n, C: sinusoidal(C, n), 'found the shape (6, 5), expected (5, 6)', ''),
    ('ex07_attention', lambda Q, K, V: (Q @ K.T).softmax(-1) @ V, 'V)[0, 0], for T = 3, D = 4', 'sqrt(D) is forgotten'),
    ('ex07_attention', lambda Q, K, V: SCORES['dot'](Q, K).softmax(dim=0) @ V, 'found', 'wrong axis'),
    ('ex08_mask', lambda S: masked_weights(S.flip(0, 1)).flip(0, 1), 'found', 'mask upside down'),
    ('ex08_mask', lambda S: S.softmax(dim=-1).tril(), 'before the softmax', 'each row must sum to 1'),
    ('ex09_heads', mixed_heads, 'MultiHead(x)', 'mixes tokens'),
    ('ex09_heads', lambda x, q, k, v, o, H: multi_head(x, q, k, v, torch.eye(len(o)), H), 'found', 'W_O is missing'),
    ('ex10_block', post_norm, 'found', 'post-norm'),
    ('ex10_block', lambda x, n1, attn, n2, mlp: mlp(n2(attn(n1(x)))), 'found', 'residual is missing'),
    ('ex10_block', lambda x, n1, attn, n2, mlp: x.add_(attn(n1(x))), 'changed its argument number 1', ''),
    ('ex11_adamw', l2_step, 'step t = 1', 'weight decay is added to the gradient'),
    ('ex11_adamw', lambda *args: adam_step(*args)[0], 'expected three tensors', ''),
    ('ex12_sampling', lambda x, T, k, u: draw(x, T, len(x), u), 'expected', 'top-k is missing'),
    ('ex12_sampling', place_in_top_k, 'expected', 'place'),
    ('ex12_sampling', lambda x, T, k, u: 1.0, 'found the type float', ''),
]


@pytest.mark.parametrize('name, solution, found, hint', WRONG)
def test_wrong_solution_is_explained(name, solution, found, hint):
    with pytest.raises(checks.Wrong) as e:
        checks.EXERCISES[name][1](solution)
    assert found in str(e.value)
    assert hint in str(e.value)
    assert len(str(e.value).splitlines()) <= 3


# ---------------------------------------------------------------------------- python -m pytest exercises

@pytest.mark.slow
def test_command(tmp_path):
    for file in REPO.glob('*.py'):
        shutil.copy(file, tmp_path)
    for folder in ('exercises', 'gradus'):
        shutil.copytree(REPO / folder, tmp_path / folder, ignore=shutil.ignore_patterns('__pycache__'))
    shutil.copy(REPO / 'pyproject.toml', tmp_path)
    command = [sys.executable, '-m', 'pytest', '-p', 'no:cacheprovider', 'exercises']

    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, encoding='utf-8')
    assert result.returncode == 0, result.stdout
    assert '12 skipped' in result.stdout
    assert '0 of 12 solved; next: exercises/ex01_neuron.py' in result.stdout

    solved = tmp_path / 'exercises/ex01_neuron.py'
    source = solved.read_text(encoding='utf-8')
    solved.write_text(source.replace('raise NotImplementedError', 'return torch.sigmoid(w @ x + b)'), encoding='utf-8')
    wrong = tmp_path / 'exercises/ex05_softmax.py'
    source = wrong.read_text(encoding='utf-8')
    wrong.write_text(source.replace('raise NotImplementedError', 'return x.softmax(dim=1)'), encoding='utf-8')
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, encoding='utf-8')
    assert result.returncode == 1
    assert '1 of 12 solved; next: exercises/ex02_feedforward.py' in result.stdout
    said = result.stdout.partition('short test summary')[0]    # which repeats it, where the variable CI is set
    assert said.count('the temperature T is missing') == 1
    assert 'During handling' not in result.stdout
    assert 'Traceback' not in result.stdout and 'def test_exercise' not in result.stdout
