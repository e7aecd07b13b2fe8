"""plot.py digits: what it draws is what the network has and does."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_main

import mlp_mnist
from gradus import checkpoint
from gradus import digits as mnist
from model import GPT, MLP, GPTConfig
from plots import digits

pytest.importorskip('matplotlib')

PICTURES = {'weights.png', 'misread.png', 'activations.png'}
KINDS = [dict(sizes=[784, 16, 16, 10]),
         dict(sizes=[784, 40, 10], activation='relu', cost='cross_entropy', batch_norm=True, dropout=0.5),
         dict(sizes=[784, 10])]


@pytest.fixture
def place(digits_place):
    return digits_place


def save_network(folder='run', seed=0, config=None, **args):
    """A network that has learned nothing, as the checkpoint of a run."""
    torch.manual_seed(seed)
    model = MLP(**args)
    checkpoint.save(f'{folder}/ckpt.pt', dict(model=model.state_dict(), model_args=args, config=config or {}))
    return model.eval()


def plot(*args):
    """What `python plot.py digits ...` returns, from a call in this process."""
    return run_main(digits, '--device=cpu', *args)


@pytest.mark.parametrize('args', KINDS, ids=['sigmoid', 'relu', 'no hidden layer'])
def test_the_three_pictures_are_drawn(args, place):
    save_network(**args)
    done = plot('--out_dir=run', '--image=test:7')
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    assert {path.name for path in Path('run').iterdir()} == PICTURES | {'ckpt.pt'}
    for name in PICTURES:
        assert Path('run', name).read_bytes().startswith(b'\x89PNG')
        assert f'{name}: drawn' in done.stdout


@pytest.mark.parametrize('args', KINDS, ids=['sigmoid', 'relu', 'no hidden layer'])
def test_activations_are_those_of_the_network(args, place):
    """Compared with what hooks see."""
    model = save_network(**args)
    image = torch.rand(784)
    seen = []
    for layer in model.layers[1:]:
        layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0]))
    with torch.no_grad():
        output = model(image[None])[0][0]
    hidden, seen[:] = [*seen], []

    layers, z = digits.activations_of(model, image)

    assert [len(a) for a in layers] == args['sizes']
    for found, expected in zip(layers, [image, *hidden, output], strict=True):
        assert torch.equal(found, expected)
    squashed = z.softmax(dim=0) if model.cost == 'cross_entropy' else z.sigmoid()
    torch.testing.assert_close(squashed, output)


def test_mosaic():
    images = torch.rand(5, 784)
    canvas, places = digits.mosaic(images, columns=3, below=9)
    assert canvas.shape == (2 * 37, 3 * 32)
    for image, (top, left) in zip(images, places, strict=True):
        assert np.array_equal(canvas[top:top + 28, left:left + 28], image.view(28, 28))
    assert np.isfinite(canvas).sum() == 5 * 784


@pytest.fixture
def drawn(monkeypatch):
    """The figures, by file name, instead of files."""
    figures = {}
    monkeypatch.setattr(digits.figures, 'save', lambda figure, path: figures.update({Path(path).name: figure}))
    return figures


def test_misread_images_with_the_most_confident_first(drawn):
    images = torch.rand(40, 784)
    truth = torch.arange(40) % 10
    outputs = torch.zeros(40, 10)
    outputs[range(40), truth] = 0.5                   # all are right, but for four
    confidence = {3: 0.6, 11: 0.9, 25: 0.7, 32: 0.8}
    for n, value in confidence.items():
        outputs[n, (truth[n] + 1) % 10] = value

    digits.draw_misread('misread.png', 'test', images, truth, outputs)

    axes = drawn['misread.png'].axes[0]
    assert [text.get_text() for text in axes.texts] == ['1 → 2', '2 → 3', '5 → 6', '3 → 4']
    canvas = np.asarray(axes.images[0].get_array())
    for column, n in enumerate((11, 32, 25, 3)):
        assert np.array_equal(canvas[:28, 32 * column:32 * column + 28], images[n].view(28, 28))
    assert axes.get_title(loc='left').startswith('4 of 40 test images misread\n')


def test_at_most_100_are_drawn_and_none_if_none_is_misread(drawn, capsys):
    truth = torch.zeros(300, dtype=torch.long)
    digits.draw_misread('misread.png', 'test', torch.rand(300, 784), truth, torch.eye(10)[truth + 1])
    assert len(drawn['misread.png'].axes[0].texts) == 100
    title = drawn['misread.png'].axes[0].get_title(loc='left')
    assert '300 of 300 test images misread, the most confident 100' in title

    drawn.clear()
    digits.draw_misread('misread.png', 'test', torch.rand(300, 784), truth, torch.eye(10)[truth])
    assert not drawn
    assert 'none of the 300 test images was misread' in capsys.readouterr().out


@pytest.mark.parametrize('n', [1, 3, 16, 30, 256])
def test_weights_are_centered_at_zero(n, drawn):
    weights = torch.randn(n, 784) + 0.5
    digits.draw_weights('weights.png', weights)
    axes, scale = drawn['weights.png'].axes
    low, high = axes.images[0].get_clim()
    assert low == -high < 0
    assert scale.get_xlabel() == 'weight of a pixel'
    assert np.array_equal(np.asarray(axes.images[0].get_array())[:28, :28], weights[0].view(28, 28))
    assert np.isfinite(np.asarray(axes.images[0].get_array())).sum() == min(n, 100) * 784


def test_the_colors_of_weights_grow_lighter():
    """So that positive and negative differ in black and white."""
    from matplotlib.colors import LinearSegmentedColormap
    colors = LinearSegmentedColormap.from_list('', digits.DIVERGING)(np.linspace(0, 1, 50))[:, :3]
    lightness = colors @ [0.299, 0.587, 0.114]
    assert (np.diff(lightness) > 0).all()
    swapped = LinearSegmentedColormap.from_list('', ['#08306b', '#ffffff', '#67000d'])(np.linspace(0, 1, 50))[:, :3]
    assert not (np.diff(swapped @ [0.299, 0.587, 0.114]) > 0).all()             # negative control


def test_misread_is_about_the_images_that_the_run_was_evaluated_on(place, drawn):
    args = dict(sizes=[784, 16, 10])
    model = save_network(config=dict(evaluate='rest', n_train=150), **args)
    save_network('other', **args)
    titles = []
    for folder in ('run', 'other'):
        assert plot(f'--out_dir={folder}').returncode == 0
        titles.append(drawn['misread.png'].axes[0].get_title(loc='left'))

    for title, kind, split, first in zip(titles, ('held-out training', 'test'), ('train', 'test'), (150, 0)):
        images, labels = (x[first:] for x in mnist.read_digits(split))
        wrong = int((model(images)[0].argmax(dim=1) != labels).sum())
        assert title.startswith(f'{wrong} of {len(images)} {kind} images misread')


def test_an_image_file_of_any_name(place, drawn):
    Image = pytest.importorskip('PIL.Image')
    pixels = np.full((60, 60), 255, dtype=np.uint8)
    pixels[10:50, 28:34] = 0
    Image.fromarray(pixels).save('$1$_{.png')
    save_network(sizes=[784, 16, 10])
    done = plot('--out_dir=run', '--image=$1$_{.png')
    assert done.returncode == 0, done.stderr
    drawn['activations.png'].canvas.draw()
    assert 'it is' not in drawn['activations.png'].axes[-1].get_title(loc='left')


@pytest.mark.parametrize('args, expected', [
    ('--out_dir=none', 'none/ckpt.pt: not found'),
    ('--out_dir=gpt', 'gpt/ckpt.pt: a GPT; expected a digit network'),
    ('--out_dir=rest', 'rest/ckpt.pt: n_train: expected int, found None'),
    ('--out_dir=huge', 'huge/ckpt.pt: an activation is not finite'),
    ('--out_dir=run --image=test:100', 'test:100: expected test:0 to test:99'),
    ('--out_dir=run --image=no.png', 'no.png: not found'),
    ('--out_dir=run', 'plot.py needs matplotlib; pip install matplotlib'),
])
def test_refused_in_one_line(args, expected, place, monkeypatch):
    save_network(sizes=[784, 10])
    save_network('rest', config=dict(evaluate='rest'), sizes=[784, 10])
    shape = dict(n_layer=1, n_head=1, n_embd=8, block_size=8, bias=True, vocab_size=10, dropout=0.0)
    checkpoint.save('gpt/ckpt.pt', dict(model=GPT(GPTConfig(**shape)).state_dict(), model_args=shape))
    huge = {name: torch.full_like(p, 3e38) for name, p in MLP([784, 10]).state_dict().items()}
    checkpoint.save('huge/ckpt.pt', dict(model=huge, model_args=dict(sizes=[784, 10], cost='cross_entropy')))
    if 'pip' in expected:
        monkeypatch.setitem(sys.modules, 'matplotlib', None)

    done = plot(*args.split())

    assert done.returncode == 2
    assert done.stderr.count('\n') == 1
    assert expected in done.stderr
    assert not list(Path().glob('*/*.png'))


def test_training_says_how_to_draw_and_a_new_run_moves_the_pictures_aside(place, monkeypatch):
    monkeypatch.setattr(digits.figures, 'save', lambda figure, path: Path(path).touch())
    args = ('--device=cpu', '--n_train=200', '--sizes=784-16-10', '--mini_batch_size=20', '--epochs=1', '--distort=0')
    done = run_main(mlp_mnist, *args)
    assert 'python plot.py digits --out_dir=out-mnist\n' in done.stdout
    assert not {path.name for path in Path('out-mnist').iterdir()} & PICTURES

    assert plot('--out_dir=out-mnist').returncode == 0
    run_main(mlp_mnist, *args)
    assert PICTURES <= {path.name for path in Path('out-mnist-1').iterdir()}
    assert not {path.name for path in Path('out-mnist').iterdir()} & PICTURES
