"""The manual backpropagation against autograd, finite differences, and a loop over single images and neurons."""

import math

import pytest
import torch

from mlp_mnist import backprop, update_mini_batch, weights_and_biases
from model import MLP

SIZES = {2: [7, 4], 3: [7, 5, 4], 4: [7, 6, 5, 4], 5: [7, 6, 3, 5, 4]}           # by the number of layers
EVERY = pytest.mark.parametrize('depth, activation, cost', [
    (depth, activation, cost)
    for depth in SIZES
    for activation in ('sigmoid', 'relu')
    for cost in ('quadratic', 'cross_entropy')
])


def network(depth, activation, cost, m=6, seed=0):
    """A network in float64, m random images as rows, and their digits."""
    torch.manual_seed(seed)
    model = MLP(SIZES[depth], activation, cost).double()
    for layer in model.layers:                        # the initial biases of 0 would hide mistakes
        torch.nn.init.normal_(layer.bias)
    x = torch.rand(m, SIZES[depth][0], dtype=torch.float64)
    digits = torch.randint(SIZES[depth][-1], (m,))
    return model, x, digits


def one_hot(model, digits):
    return torch.eye(model.layers[-1].out_features, dtype=torch.float64)[digits]


def by_hand(model, x, digits, activation, cost):
    """nabla_w, nabla_b of the mini-batch, in the order of the layers."""
    return backprop(*weights_and_biases(model), x.T, one_hot(model, digits).T, activation, cost)


@EVERY
def test_equals_autograd(depth, activation, cost):
    model, x, digits = network(depth, activation, cost)
    nabla_w, nabla_b = by_hand(model, x, digits, activation, cost)
    model(x, digits)[1].backward()                    # the mean over the images; the manual one is the sum

    assert len(nabla_w) == len(nabla_b) == depth - 1
    for layer, nw, nb in zip(model.layers, nabla_w, nabla_b):
        assert nw.abs().max() > 1e-4
        torch.testing.assert_close(nw / len(x), layer.weight.grad, rtol=1e-10, atol=1e-14)
        torch.testing.assert_close(nb[:, 0] / len(x), layer.bias.grad, rtol=1e-10, atol=1e-14)


@EVERY
def test_equals_central_differences(depth, activation, cost):
    model, x, digits = network(depth, activation, cost)
    nabla_w, nabla_b = by_hand(model, x, digits, activation, cost)

    h = 1e-5
    for layer, nw, nb in zip(model.layers, nabla_w, nabla_b):
        for parameter, nabla in ((layer.weight, nw), (layer.bias, nb)):
            flat = parameter.data.view(-1)
            for i in range(flat.numel()):
                costs = []
                for change in (h, -h):
                    flat[i] += change
                    with torch.no_grad():
                        costs.append(float(model(x, digits)[1]) * len(x))
                    flat[i] -= change
                difference = (costs[0] - costs[1]) / (2 * h)
                assert difference == pytest.approx(float(nabla.view(-1)[i]), rel=1e-5, abs=1e-7)


ACTIVATION = {
    'sigmoid': lambda z: 1 / (1 + math.exp(-z)),
    'relu': lambda z: max(z, 0.0),
}
DERIVATIVE = {
    'sigmoid': lambda z: math.exp(-z) / (1 + math.exp(-z)) ** 2,
    'relu': lambda z: float(z > 0),
}


def output_error(zs, digit, cost):
    """The derivative of one image's cost with respect to each weighted input of the last layer."""
    if cost == 'quadratic':
        delta = []
        for j, z in enumerate(zs):
            a = 1 / (1 + math.exp(-z))
            delta.append((a - (j == digit)) * math.exp(-z) / (1 + math.exp(-z)) ** 2)
        return delta
    total = sum(math.exp(z) for z in zs)
    return [math.exp(z) / total - (j == digit) for j, z in enumerate(zs)]


def one_image(weights, biases, x, digit, activation, cost):
    """The gradients of one image in plain Python: lists of numbers, every sum written out."""
    act, derivative = ACTIVATION[activation], DERIVATIVE[activation]

    # Forward.
    zs, acts = [], [x]
    for n, (w, b) in enumerate(zip(weights, biases)):
        zs.append([sum(w_jk * a_k for w_jk, a_k in zip(row, acts[-1])) + b_j for row, b_j in zip(w, b)])
        if n < len(weights) - 1:
            acts.append([act(z) for z in zs[-1]])

    # Backward.
    delta = output_error(zs[-1], digit, cost)
    nabla_w, nabla_b = [], []
    for n in range(len(weights) - 1, -1, -1):
        nabla_b.append(delta)
        nabla_w.append([[d * a for a in acts[n]] for d in delta])
        if n:
            errors = []
            for k in range(len(acts[n])):
                total = sum(weights[n][j][k] * delta[j] for j in range(len(delta)))
                errors.append(total * derivative(zs[n - 1][k]))
            delta = errors
    return nabla_w[::-1], nabla_b[::-1]


@EVERY
def test_equals_a_loop_over_the_images(depth, activation, cost):
    model, x, digits = network(depth, activation, cost)
    nabla_w, nabla_b = by_hand(model, x, digits, activation, cost)

    weights = [layer.weight.tolist() for layer in model.layers]
    biases = [layer.bias.tolist() for layer in model.layers]
    single = []
    for image, digit in zip(x.tolist(), digits.tolist()):
        single.append(one_image(weights, biases, image, digit, activation, cost))

    for n in range(depth - 1):
        expected_w = sum(torch.tensor(w[n], dtype=torch.float64) for w, _ in single)
        expected_b = sum(torch.tensor(b[n], dtype=torch.float64) for _, b in single)
        torch.testing.assert_close(nabla_w[n], expected_w, rtol=1e-10, atol=1e-13)
        torch.testing.assert_close(nabla_b[n][:, 0], expected_b, rtol=1e-10, atol=1e-13)


@EVERY
def test_a_hundred_manual_and_autograd_steps_end_in_the_same_weights(depth, activation, cost):
    by_autograd, x, digits = network(depth, activation, cost, m=100)
    manual, _, _ = network(depth, activation, cost, m=100)
    start = [p.detach().clone() for p in manual.parameters()]
    optimizer = torch.optim.SGD(by_autograd.parameters(), lr=0.5)
    y = one_hot(manual, digits)

    for step in range(100):
        batch = torch.arange(step, step + 10) % 100
        by_autograd(x[batch], digits[batch])[1].backward()
        optimizer.step()
        optimizer.zero_grad()
        update_mini_batch(*weights_and_biases(manual), x[batch].T, y[batch].T, 0.5, activation, cost)

    for ours, theirs, before in zip(manual.parameters(), by_autograd.parameters(), start):
        assert (before - theirs).abs().max() > 1e-3         # something was learned
        assert (ours - theirs).abs().max() < 1e-10


def test_a_wrong_gradient_would_be_noticed():
    """Negative control: the gradients of the other cost, or of the other activation, are far from autograd's."""
    model, x, digits = network(4, 'sigmoid', 'quadratic')
    model(x, digits)[1].backward()

    for wrong in (('sigmoid', 'cross_entropy'), ('relu', 'quadratic')):
        nabla_w, _ = by_hand(model, x, digits, *wrong)
        assert (nabla_w[0] / len(x) - model.layers[0].weight.grad).abs().max() > 1e-4
