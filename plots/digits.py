"""
Draw what a digit network has learned, into its folder:

    weights.png         which pixels each neuron of the first layer looks for
    misread.png         the images that it misreads, the most confident mistakes first
    activations.png     the activations of all its layers for one image, a^1 to a^L

    python plot.py digits --out_dir=out-mnist --image=test:1234
"""

import math
import os
from dataclasses import dataclass

import torch

import mlp_mnist
from gradus import checkpoint, configurator, digits, parallel
from gradus.errors import UserError, one_line
from plots import figures


@dataclass
class Settings:
    out_dir: str = 'out-mnist'        # folder of a run of mlp_mnist.py; the pictures are written there
    image: str = 'test:0'             # for activations.png: test:N, a test image, or an image file of a digit
    device: str = 'auto'              # auto, cpu, cuda, cuda:N, mps


# From dark to light, so that the signs also differ in black and white; 0 is gray.
DIVERGING = ['#0b2545', '#1b6ca8', '#9a9a9a', '#f2a65a', '#fff3d6']
MOST = 100                                            # images in a picture
GAP = 4                                               # pixels between two images
LONGEST_COLUMN = 32                                   # neurons; more are drawn as a map


# ---------------------------------------------------------------------------- many images in one

def mosaic(images, columns, below):
    """
    Images (N, 784) side by side, `columns` in a row, as one array; NaN in the gaps. below: pixels to leave free under
    each image, for a label. Also returns where the images are: N pairs (top, left).
    """
    rows = math.ceil(len(images) / columns)
    canvas = torch.full((rows * (28 + below), columns * (28 + GAP)), math.nan)
    places = []
    for n, image in enumerate(images):
        top = n // columns * (28 + below)
        left = n % columns * (28 + GAP)
        canvas[top:top + 28, left:left + 28] = image.view(28, 28)
        places.append((top, left))
    return canvas.numpy(), places


def new_mosaic(title, images, columns, below, foot, **style):
    """
    A figure of `mosaic`: the figure, its axes, what is drawn in them, and the places of the images. Every pixel of an
    image is a square of whole pixels. foot: inches to leave free at the bottom.
    """
    canvas, places = mosaic(images, columns, below)
    rows, cells = (0.01 * (2 if len(images) > 30 else 3) * n for n in canvas.shape)        # inches; 0.01 is a pixel
    width = max(cells, 4.0) + 0.2
    height = rows + foot + 0.5
    figure = figures.new_figure(width, height)
    figure.set_layout_engine('none')                  # everything has its place
    axes = figure.add_axes((0.1 / width, foot / height, cells / width, rows / height))
    drawn = axes.imshow(canvas, **style)
    axes.set_axis_off()
    axes.set_title(title, loc='left')
    return figure, axes, drawn, places


# ---------------------------------------------------------------------------- the three pictures

def draw_weights(path, weights):
    """weights (n_2, 784): the weights of each neuron in the first layer, as an image."""
    from matplotlib.colors import LinearSegmentedColormap

    shown = weights[:MOST]
    n = len(shown)
    which = f'the {n}' if n == len(weights) else f'the first {n} of the {len(weights):,}'
    title = (f'{which} neurons of the first layer, and their weights:\n'
             'light, where ink excites the neuron; dark, where it inhibits it')

    # A few extreme weights are cut off, so that the others can be told apart.
    limit = float(shown.abs().flatten().kthvalue(math.ceil(0.995 * shown.numel())).values) or 1.0
    colors = LinearSegmentedColormap.from_list('diverging', DIVERGING, N=33)
    columns = max((c for c in range(5, 11) if n % c == 0), default=min(n, 10))
    figure, axes, drawn, _ = new_mosaic(title, shown, columns, below=GAP, foot=0.6, cmap=colors,
                                        vmin=-limit, vmax=limit)

    width, height = figure.get_size_inches()
    scale = figure.add_axes((0.2 / width, 0.45 / height, 3.8 / width, 0.1 / height))
    figure.colorbar(drawn, cax=scale, orientation='horizontal', extend='both', label='weight of a pixel')
    figures.save(figure, path)


def draw_misread(path, kind, images, truth, activations):
    """Of images (N, 784) of this kind: their digits (N,) and the output activations for them (N, 10)."""
    confidence, read = activations.max(dim=1)
    wrong = (read != truth).nonzero().flatten()
    shown = wrong[confidence[wrong].argsort(descending=True, stable=True)][:MOST]
    if not len(shown):
        print(f'no {os.path.basename(path)}: none of the {len(images):,} {kind} images was misread')
        return

    many = f', the most confident {len(shown)}' if len(shown) < len(wrong) else ''
    title = f'{len(wrong):,} of {len(images):,} {kind} images misread{many}\nwhat it is → what was read'
    figure, axes, _, places = new_mosaic(title, images[shown], min(10, len(shown)), below=9, foot=0, cmap='gray_r',
                                         vmin=0, vmax=1)
    for i, (top, left) in zip(shown.tolist(), places):
        axes.text(left + 14, top + 28, f'{truth[i]} → {read[i]}', ha='center', va='top', fontsize=8)
    figures.save(figure, path)


def draw_activations(path, layers, z, name, truth):
    """layers: the activations [a^1 (784,), ..., a^L (10,)] for the image `name`; z (10,), the inputs of the last."""
    hidden = layers[1:-1]
    widths = [2.2, *[1.0 if len(a) <= LONGEST_COLUMN else 2.2 for a in hidden], 2.6]
    figure = figures.new_figure(sum(widths) + 0.4 * len(widths), 5)
    image_axes, *hidden_axes, output_axes = figure.subplots(1, len(layers), width_ratios=widths)

    # The image. Its pixels are the activations of the first layer.
    image_axes.imshow(layers[0].view(28, 28).numpy(), cmap='gray_r', vmin=0, vmax=1)
    image_axes.set_title('$a^1$: ' + figures.drawable(one_line(name, limit=18)))
    image_axes.set_axis_off()

    for l, (axes, a) in enumerate(zip(hidden_axes, hidden), start=2):
        draw_layer(figure, axes, a)
        axes.set_title(f'$a^{{{l}}}$')

    # The outputs.
    output = layers[-1].tolist()
    answer = output.index(max(output))
    output_axes.barh(range(10), output, color=['#1b6ca8' if d == answer else '#9a9a9a' for d in range(10)])
    for digit, (a, z_j) in enumerate(zip(output, z.tolist())):
        output_axes.text(1.04, digit, f'{a:.4f}   $z$ = {z_j:.1f}', va='center', fontsize=8)
    output_axes.set_axisbelow(True)
    output_axes.set(xlim=(0, 1), ylim=(9.6, -0.6), yticks=range(10), xlabel='activation', ylabel='digit')
    known = '' if truth is None else f', it is {truth}'
    output_axes.set_title(f'$a^{{{len(layers)}}}$: read as {answer}{known}', loc='left')
    figures.save(figure, path)


def draw_layer(figure, axes, a):
    """A hidden layer's activations (n,): a column with its numbers, or a map if there are too many."""
    n = len(a)
    column = n <= LONGEST_COLUMN
    columns = 1 if column else math.ceil(math.sqrt(n))
    cells = torch.full((math.ceil(n / columns) * columns,), math.nan)
    cells[:n] = a
    top = max(float(a.max()), 1.0)
    drawn = axes.imshow(cells.view(-1, columns).numpy(), cmap='gray_r', vmin=0, vmax=top,
                        aspect='auto' if column else 'equal')
    axes.grid(False)
    if column:
        for j, value in enumerate(a.tolist()):
            axes.text(0, j, f'{value:.2f}', ha='center', va='center', fontsize=7,
                      color='white' if value > top / 2 else 'black')
        axes.set(xticks=[], yticks=range(n))
        axes.tick_params(labelsize=7)
        axes.set_xlabel(f'{n} neurons')
    else:
        axes.set(xticks=[], yticks=[])
        axes.set_xlabel(f'{n} neurons, {columns} in a row')
        figure.colorbar(drawn, ax=axes, location='bottom', fraction=0.05).set_label('activation')


# ---------------------------------------------------------------------------- what they need

@torch.no_grad()
def activations_of(model, image):
    """All activations [a^1, ..., a^L] of the `MLP` for an image (784,), and z^L (10,)."""
    a = [image[None]]                                                           # a^1 (1, 784)
    for layer, norm in zip(model.layers, model.norms):
        a.append(model.act(norm(layer(a[-1]))))                                 # a^l (1, n_l)
    z = model.layers[-1](a[-1])                                                 # z^L (1, 10)
    a.append(model(image[None])[0])                                             # a^L (1, 10)
    return [a_l[0].cpu() for a_l in a], z[0].cpu()


def evaluation_images(config, path, worker):
    """
    What the run with this `config` was evaluated on, the test images if it does not say: what kind of images they are,
    the images (N, 784) and their digits (N,). Raises UserError, which names the checkpoint `path`.
    """
    if config.get('evaluate') != 'rest':
        return 'test', *worker.to_device(*digits.read_digits('test'))
    n_train = configurator.convert(config.get('n_train'), int, f'{path}: n_train')
    cfg = mlp_mnist.MnistConfig(n_train=n_train, evaluate='rest')
    configurator.check_range(cfg, n_train=(1, 60000))
    return 'held-out training', *mlp_mnist.load_images(cfg, worker)[1]


def main(cfg):
    # Find what is wrong before anything is computed.
    figures.require_matplotlib()
    path = os.path.join(cfg.out_dir, 'ckpt.pt')
    state = checkpoint.load(path)
    worker = parallel.init(cfg.device, 'float32', compile=False)
    model = digits.build(state['model_args'], path, state['model']).to(worker.device)
    image, truth = mlp_mnist.load_image(cfg.image)
    kind, images, labels = evaluation_images(state.get('config', {}), path, worker)

    # Compute.
    _, outputs = mlp_mnist.evaluate(model, images, labels, worker)
    layers, z = activations_of(model.eval(), image.to(worker.device))
    if not all(a.isfinite().all() for a in (outputs, z, *layers)):
        raise UserError(f'{path}: an activation is not finite; train again with a lower --eta')

    # Draw.
    draw_weights(os.path.join(cfg.out_dir, 'weights.png'), model.layers[0].weight.detach().cpu())
    draw_misread(os.path.join(cfg.out_dir, 'misread.png'), kind, images.cpu(), labels.cpu(), outputs.cpu())
    draw_activations(os.path.join(cfg.out_dir, 'activations.png'), layers, z, os.path.basename(cfg.image), truth)
