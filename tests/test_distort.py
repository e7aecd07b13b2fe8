"""Digits, changed before they are learned: distorted as other hands might have written them, or made harder to read."""

from unittest.mock import Mock

import torch
from torch.nn import functional as F

import mlp_mnist
from gradus import digits, parallel
from model import MLP

# ---------------------------------------------------------------------------- distortions

def distorted(images, strength, seed=0, basis=None):
    torch.manual_seed(seed)
    return digits.distort(images, strength, digits.distortion_basis() if basis is None else basis)


def test_distortions_grow_with_their_strength():
    torch.manual_seed(1)
    images = F.interpolate(torch.rand(50, 1, 7, 7), size=(28, 28)).flatten(1)
    torch.testing.assert_close(distorted(images, 0.0), images, rtol=0, atol=1e-5)

    changes = [float((distorted(images, strength) - images).abs().mean()) for strength in (0.1, 0.3, 1.0)]
    assert 1e-3 < changes[0] < changes[1] < changes[2]

    found = distorted(images, 1.0)
    assert found.shape == images.shape
    assert found.min() >= 0
    assert found.max() <= 1 + 1e-6
    assert (found - images).abs().amax(dim=1).min() > 0.05
    assert not torch.equal(found, distorted(images, 1.0, seed=1))


def test_affine_distortions_match_torchs(monkeypatch):
    """Without the bumps, pixels come from where F.affine_grid says, for some matrix of which no entry is too large."""
    basis = digits.distortion_basis()
    grid = F.affine_grid(torch.eye(3)[None, :2], (1, 1, 28, 28), align_corners=False)
    torch.testing.assert_close(basis[:2].view(2, 28, 28), grid[0].permute(2, 0, 1), rtol=0, atol=1e-6)

    # Bumps of equal height shift the whole image.
    torch.testing.assert_close(basis[3:].sum(dim=0), torch.ones(784), rtol=0, atol=1e-5)
    basis[3:] = 0

    # Distort images, and keep the grid that says where their pixels come from.
    grid_sample = Mock(wraps=F.grid_sample)
    monkeypatch.setattr(F, 'grid_sample', grid_sample)
    images = torch.rand(20, 1, 28, 28)
    found = distorted(images.flatten(1), 1.0, basis=basis)
    found_grid = grid_sample.call_args.args[1]                                  # (20, 28, 28, 2)

    # Solve for the matrices.
    positions = basis[:3].T.expand(20, 784, 3)
    matrices = torch.linalg.lstsq(positions, found_grid.view(20, 784, 2)).solution.mT       # (20, 2, 3)
    assert matrices[:, :, 2].abs().max() < 0.121
    assert matrices.std(dim=0).min() > 0.02

    grid = F.affine_grid(matrices, images.shape, align_corners=False)
    torch.testing.assert_close(found_grid, grid, rtol=0, atol=1e-5)
    expected = grid_sample(images, grid, mode='bicubic', align_corners=False).clamp(0, 1)
    torch.testing.assert_close(found, expected.flatten(1), rtol=0, atol=1e-4)


# ---------------------------------------------------------------------------- adversarial training

CPU = parallel.Worker(torch.device('cpu'), torch.float32, compile=False)


def test_no_direction_raises_the_cost_as_fast_as_the_one_that_make_harder_finds():
    torch.manual_seed(1)
    model = MLP((784, 32, 10), 'relu', 'cross_entropy')
    x = 0.3 + 0.4 * torch.rand(50, 784)               # far enough from 0 and 1
    y = torch.randint(10, (50,))

    def rise(changed):
        """By how much each image's cost grew."""
        with torch.no_grad():
            before, after = (-model(images)[0].gather(1, y[:, None]).log()[:, 0] for images in (x, changed))
        return after - before                         # (50,)

    harder = mlp_mnist.make_harder(model, x, y, 0.1, CPU)
    torch.testing.assert_close((harder - x).norm(dim=1), torch.full((50,), 0.1))
    for _ in range(10):
        random = x + 0.1 * F.normalize(torch.randn_like(x))
        assert (rise(harder) > 3 * rise(random)).all()

    # The direction: BP2, one step further back than `backprop` goes. All biases are 0.
    w1, w2 = (layer.weight.detach() for layer in model.layers)                  # (32, 784), (10, 32)
    z = x @ w1.T                                                                # (50, 32)
    delta = ((z.relu() @ w2.T).softmax(dim=1) - F.one_hot(y, 10)) @ w2 * (z > 0)
    torch.testing.assert_close(harder, x + 0.1 * F.normalize(delta @ w1))

    # What is given stays as it is: the image, and the gradients of the weights.
    assert not harder.requires_grad
    assert not x.requires_grad
    assert all(p.grad is None for p in model.parameters())


def test_harder_images_are_images():
    torch.manual_seed(1)
    model = MLP((784, 32, 10), 'relu', 'cross_entropy')
    x = torch.rand(50, 784).round()
    harder = mlp_mnist.make_harder(model, x, torch.randint(10, (50,)), 2.0, CPU)
    assert harder.min() == 0
    assert harder.max() == 1
    assert 0.5 < (harder - x).norm(dim=1).min()
    assert (harder - x).norm(dim=1).max() <= 2
