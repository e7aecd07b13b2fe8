"""
Read handwritten digits: a network of plain neurons on MNIST.

    python mlp_mnist.py                               train, on whatever this machine has
    python mlp_mnist.py config/mnist_nielsen.py       the network of Nielsen's book, backpropagation by hand
    python mlp_mnist.py --predict=digit.png           try it on a picture of yours, or on --predict=test:1234

A digit is 784 numbers from 0 to 1. Every layer turns the activations of the one before into its own, and the last one
has ten, one for each digit. To learn is to move every weight a little against the slope of the cost, w -> w - eta dC/dw;
`backprop` finds all those slopes in one walk back through the layers. A GPT learns in the same way.
"""

import math
import os
import struct
import time
import zlib
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from gradus import checkpoint, configurator, data, optim, parallel
from model import MLP, ModelError


@dataclass
class MnistConfig:
    # what goes where
    out_dir: str = 'out-mnist'        # folder of the run: ckpt.pt, log.jsonl, misread.png
    init_from: str = 'scratch'        # scratch, or resume (out_dir's ckpt.pt)
    predict: str = ''                 # do not train, but read this image file (pip install pillow), or test:N, the N-th test image
    # data
    n_train: int = 60000              # learn from the first so many of the 60,000 training images
    evaluate: str = 'test'            # test: the 10,000 test images; rest: the training images left out, to choose settings with
    distort: float = 0.5              # turn, slant, stretch, shift and bend the images, anew each time; 0 = not at all, 1 = as much as is wise
    # network; model.py tells what each means
    sizes: str = '784-256-256-10'     # neurons in each layer, pixels first, digits last
    activation: str = 'relu'          # of the hidden layers: sigmoid, relu
    cost: str = 'cross_entropy'       # cross_entropy (with softmax outputs), quadratic (with sigmoid outputs)
    batch_norm: bool = False
    dropout: float = 0.0
    # learning
    backprop: str = 'autograd'        # who finds the slopes: autograd, or manual, the function below (needs optimizer='sgd')
    optimizer: str = 'adamw'          # sgd, adamw
    epochs: int = 10                  # times that every image is seen
    mini_batch_size: int = 200        # images for each step
    eta: float = 3e-3                 # the learning rate, at its highest
    warmup_iters: int = 0             # steps, at the beginning, over which eta rises to that
    cooldown: float = 1.0             # the share of the run, at its end, over which eta falls to 0 in a straight line; 0 = constant
    weight_decay: float = 0.0
    # machine
    seed: int = 1337
    device: str = 'auto'              # auto, cpu, cuda, cuda:N, mps
    dtype: str = 'float32'            # of the matmuls: float32, bfloat16, auto


ERRORS = (ModelError, data.DataError, checkpoint.CheckpointError, parallel.DeviceError)
FILES = {'train': ('train-images-idx3-ubyte', 'train-labels-idx1-ubyte'), 'test': ('t10k-images-idx3-ubyte', 't10k-labels-idx1-ubyte')}


# ---------------------------------------------------------------------------- backpropagation by hand

SIGMA = {'sigmoid': torch.sigmoid, 'relu': lambda z: z.clamp(min=0)}
# sigma'(z), written with a = sigma(z), which is at hand already: e^-z / (1 + e^-z)^2 is a (1 - a).
SIGMA_PRIME = {'sigmoid': lambda a: a - a * a, 'relu': lambda a: (a > 0).to(a.dtype)}


def backprop(weights, biases, x, y, activation='sigmoid', cost='quadratic'):
    """
    The slope of the cost in every weight and bias, summed over the m images of a mini-batch, without autograd.

    weights: w^l (n_l, n_{l-1}) and biases: b^l (n_l, 1), lists over the layers l = 2..L; x (n_1, m): an image in each column;
    y (n_L, m): 1 for its digit, else 0. Returns the lists nabla_w, nabla_b, in the shapes of weights, biases.
    Nielsen 2015, chapter 2, equations BP1 to BP4, for all images at once: a column of z, a, delta is what the book has for one.
    """
    sigma, sigma_prime = SIGMA[activation], SIGMA_PRIME[activation]

    # Feedforward: remember the activations of every layer.
    a = [x]                                           # a^1 = x                                         (n_1, m)
    for w, b in zip(weights[:-1], biases[:-1]):
        z = w @ a[-1] + b                             # z^l = w^l a^{l-1} + b^l                         (n_l, m)
        a.append(sigma(z))                            # a^l = sigma(z^l)                                (n_l, m)
    z = weights[-1] @ a[-1] + biases[-1]              # z^L = w^L a^{L-1} + b^L                         (n_L, m)

    # BP1, the error of the output: delta^L = grad_a C * sigma'(z^L). With C = |y - a|^2 / 2, grad_a C is a - y.
    if cost == 'quadratic':
        out = torch.sigmoid(z)                        # a^L = sigma(z^L)                                (n_L, m)
        delta = (out - y) * (out - out * out)         # delta^L = (a^L - y) * sigma'(z^L)               (n_L, m)
    else:                                             # for C = -ln of a softmax, dC/dz^L is that simple:
        delta = torch.softmax(z, dim=0) - y           # delta^L = a^L - y                               (n_L, m)

    # From the last layer to the first. The sums over the images hide in sum() and in the matrix product.
    nabla_w, nabla_b = [], []
    for l in reversed(range(len(weights))):           # weights[l] leads from the activations a[l] to the layer after them
        nabla_b.insert(0, delta.sum(dim=1, keepdim=True))   # BP3: dC/db_j = delta_j                    (n_l, 1)
        nabla_w.insert(0, delta @ a[l].T)             # BP4: dC/dw_jk = a_k delta_j                     (n_l, n_{l-1})
        if l > 0:                                     # BP2: delta^l = ((w^{l+1})^T delta^{l+1}) * sigma'(z^l)
            delta = (weights[l].T @ delta) * sigma_prime(a[l])                 #                        (n_l, m)
    return nabla_w, nabla_b


def update_mini_batch(weights, biases, x, y, eta, activation='sigmoid', cost='quadratic'):
    """One step of gradient descent, in place, along the mean slope of the mini-batch. Arguments as in `backprop`."""
    nabla_w, nabla_b = backprop(weights, biases, x, y, activation, cost)
    m = x.size(1)
    for w, b, nw, nb in zip(weights, biases, nabla_w, nabla_b):
        w.sub_(nw, alpha=eta / m)                     # w -> w - eta/m sum dC/dw                        (n_l, n_{l-1})
        b.sub_(nb, alpha=eta / m)                     # b -> b - eta/m sum dC/db                        (n_l, 1)


def weights_and_biases(model):
    """The w^l (n_l, n_{l-1}) and b^l (n_l, 1) of an `MLP`: views, so whoever changes them changes the model."""
    return [layer.weight.detach() for layer in model.layers], [layer.bias.detach()[:, None] for layer in model.layers]


# ---------------------------------------------------------------------------- data

def read_digits(split):
    """The images (N, 784), float32 from 0 to 1, and digits (N,), int64, of 'train' or 'test'. Raises DataError."""
    folder = os.path.join('data', 'mnist')
    data.prepare(folder, FILES[split][1])
    images, digits = (data.read_idx(os.path.join(folder, name)) for name in FILES[split])
    if images.shape[1:] != (28, 28) or digits.shape != images.shape[:1] or digits.max() > 9:
        raise data.DataError(f'data/mnist: images {images.shape} and labels {digits.shape} of {split}: expected (N, 28, 28) and (N,), labels 0 to 9')
    return torch.from_numpy(images).flatten(1).float() / 255, torch.from_numpy(digits).long()


def pixel_basis():
    """
    What the distortions of an image are mixed from, on its 28 x 28 pixels: (28, 784). Three rows for affine ones, x and y
    from -1 to 1 and 1 itself; 25 rows for elastic ones, each a smooth bump around one point of a grid of 5 x 5.
    """
    at = (torch.arange(28) + 0.5) / 14 - 1
    bumps = F.interpolate(torch.eye(25).view(25, 1, 5, 5), size=(28, 28), mode='bicubic', align_corners=True)
    return torch.cat((at.expand(1, 28, 28), at[:, None].expand(1, 28, 28), torch.ones(1, 28, 28), bumps[:, 0])).flatten(1)


def distorted(images, strength, basis):
    """
    The images (m, 784) as other hands might have written them: each turned, slanted, stretched, shifted (affine) and bent
    (elastic; Simard et al. 2003) by chance. Every pixel asks where in the original it comes from: one matrix product tells.
    """
    m, device = len(images), images.device

    def upto(limit):
        return (torch.rand(m, device=device) * 2 - 1) * limit * strength        # (m,), from -limit to limit

    angle, slant, wide, high = upto(0.2), upto(0.2), upto(0.12).exp(), upto(0.12).exp()
    cos, sin = angle.cos(), angle.sin()
    affine = torch.stack((wide * cos, high * (slant * cos - sin), upto(0.08),
                          wide * sin, high * (slant * sin + cos), upto(0.08)), dim=1).view(m, 2, 3)
    elastic = torch.randn(m, 2, 25, device=device) * 0.07 * strength
    where = torch.cat((affine, elastic), dim=2) @ basis                         # (m, 2, 784): x and y of each pixel's origin
    pixels = F.grid_sample(images.view(m, 1, 28, 28), where.view(m, 2, 28, 28).permute(0, 2, 3, 1), align_corners=False)
    return pixels.view(m, 784)


# ---------------------------------------------------------------------------- training

def check(cfg):
    """Raise ConfigError for values that make no sense; returns the neurons of each layer."""
    configurator.own_folder(cfg.out_dir)
    configurator.in_range(cfg, n_train=(1, 60000), epochs=(1, None), mini_batch_size=(1, None), eta=(0, None), distort=(0, None), dropout=(0, 0.999999),
                          cooldown=(0, 1), warmup_iters=(0, None), weight_decay=(0, None), seed=(0, 2 ** 63))
    configurator.one_of(cfg, init_from=('scratch', 'resume'), evaluate=('test', 'rest'), activation=('sigmoid', 'relu'), cost=('quadratic', 'cross_entropy'),
                        backprop=('manual', 'autograd'), optimizer=('sgd', 'adamw'), dtype=('auto', *parallel.DTYPES))
    sizes = cfg.sizes.split('-')
    if not (len(sizes) > 1 and all(n.isdecimal() and int(n) for n in sizes) and sizes[0] == '784' and sizes[-1] == '10'):
        raise configurator.ConfigError(f'sizes={cfg.sizes}: expected 784 pixels first and 10 digits last, as in 784-30-10')
    if sum((int(a) + 1) * int(b) for a, b in zip(sizes, sizes[1:])) > 10 ** 9:
        raise configurator.ConfigError(f'sizes={cfg.sizes}: expected at most a billion weights')
    if cfg.eta == 0:
        raise configurator.ConfigError('eta=0.0: expected more than 0, or nothing is learned')
    if cfg.mini_batch_size > cfg.n_train:
        raise configurator.ConfigError(f'mini_batch_size={cfg.mini_batch_size}: expected at most n_train={cfg.n_train}, the images to learn from')
    if cfg.backprop == 'manual' and (cfg.optimizer != 'sgd' or cfg.batch_norm or cfg.dropout or cfg.weight_decay or cfg.dtype != 'float32'):
        raise configurator.ConfigError('backprop=manual: expected optimizer=sgd, dtype=float32, and no batch_norm, dropout or weight_decay')
    if cfg.batch_norm and 1 in (cfg.mini_batch_size, cfg.n_train % cfg.mini_batch_size):
        raise configurator.ConfigError(f'batch_norm=True: n_train={cfg.n_train} and mini_batch_size={cfg.mini_batch_size} leave a last batch of one image')
    return [int(n) for n in sizes]


@torch.no_grad()
def evaluate(model, images, digits, run):
    """The mean cost over the images (N, 784), and their activations (N, 10)."""
    model.eval()
    cost, activations = 0.0, []
    for x, y in zip(images.split(2000), digits.split(2000)):
        with run.autocast():
            a, mean = model(x, y)
        cost += mean.item() * len(x) / len(images)
        activations.append(a)
    model.train()
    return cost, torch.cat(activations)


def build(args, source, weights):
    """The MLP that `args` describe, with the weights of the checkpoint `source`."""
    try:
        with torch.device('meta'):                    # where sizes that are not those of the weights cost no memory
            MLP(**args).load_state_dict(weights, assign=True)
        model = MLP(**args)
        model.load_state_dict(weights)
    except (ModelError, TypeError, RuntimeError) as e:
        raise ModelError(f"{source}: expected a digit network of mlp_mnist.py: {' '.join(str(e).split())[:200]}") from e
    return model


def learn(model, optimizer, images, digits, epoch, cfg, run, bar):
    """One epoch: every image once, in an order that is, like distortions and dropout, a function of (seed, epoch). Returns the steps taken so far and eta."""
    torch.manual_seed(parallel.seed_of(cfg.seed, epoch))
    (weights, biases), one_hot, basis = weights_and_biases(model), torch.eye(10, device=run.device), pixel_basis().to(run.device)
    batches = torch.randperm(len(images)).to(run.device).split(cfg.mini_batch_size)
    for step, batch in enumerate(batches, start=epoch * len(batches)):
        eta = optim.learning_rate_at(step, cfg.eta, 0.0, cfg.warmup_iters, cfg.epochs * len(batches), 'linear', cfg.cooldown)
        x, y = images.index_select(0, batch), digits.index_select(0, batch)     # (m, 784), (m,)
        if cfg.distort:
            x = distorted(x, cfg.distort, basis)
        if cfg.backprop == 'manual':                  # an image becomes a column, a digit a column with one 1
            update_mini_batch(weights, biases, x.T, one_hot.index_select(0, y).T, eta, cfg.activation, cfg.cost)
        else:
            for group in optimizer.param_groups:
                group['lr'] = eta
            with run.autocast():
                _, cost = model(x, y)
            cost.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        bar.update()
    return step + 1, eta


def train(cfg, sizes, run):
    images, digits = run.put(*read_digits('train'))
    if cfg.n_train > len(images) - (cfg.evaluate == 'rest'):
        raise configurator.ConfigError(f"n_train={cfg.n_train}: expected at most {len(images)}, the training images in data/mnist"
                                       f"{', less those to evaluate on' if cfg.evaluate == 'rest' else ''}")
    unseen = [t[cfg.n_train:] for t in (images, digits)] if cfg.evaluate == 'rest' else run.put(*read_digits('test'))
    images, digits = images[:cfg.n_train], digits[:cfg.n_train]
    path = os.path.join(cfg.out_dir, 'ckpt.pt')
    args = dict(sizes=sizes, activation=cfg.activation, cost=cfg.cost, batch_norm=cfg.batch_norm, dropout=cfg.dropout)
    torch.manual_seed(cfg.seed)
    model, state = MLP(**args), {}
    if cfg.init_from == 'resume':
        state = checkpoint.load(path)
        has, wanted = state['model_args'], args
        for key in ('optimizer', 'n_train', 'mini_batch_size'):
            has, wanted = {**has, key: state.get('config', {}).get(key)}, {**wanted, key: getattr(cfg, key)}
        if has != wanted:
            raise checkpoint.CheckpointError(f'{path} has {has}, but the settings say {wanted}; resume with the config of that run')
        model = build(args, path, state['model'])
    model.to(run.device)
    if cfg.optimizer == 'sgd':
        optimizer = torch.optim.SGD(optim.param_groups(model, cfg.weight_decay), lr=cfg.eta)
    else:
        optimizer = optim.build(model, 'adamw', cfg.weight_decay, cfg.eta, (0.9, 0.99))
    first, best_cost, elapsed_before = state.get('epoch', 0), state.get('best_val_loss', math.inf), state.get('elapsed_s', 0.0)
    if state:
        try:
            optim.load_state(optimizer, state['optimizer'])
        except (KeyError, ValueError, TypeError) as e:
            raise checkpoint.CheckpointError(f'{path}: no optimizer state to resume from ({e})') from e
        if first >= cfg.epochs:
            print(f'{path} has seen {first} epochs already; raise --epochs to go on')
            return
    checkpoint.open_run(cfg.out_dir, resumed=bool(state))
    steps_per_epoch = math.ceil(cfg.n_train / cfg.mini_batch_size)
    log = checkpoint.Log(os.path.join(cfg.out_dir, 'log.jsonl'), first * steps_per_epoch + 1)
    n_params = sum(p.numel() for p in model.parameters())
    print(f'{cfg.sizes}: {n_params:,} weights and biases, {run.device.type}; '
          f'{cfg.n_train:,} images to learn from, {cfg.mini_batch_size} in each of {steps_per_epoch:,} mini-batches')
    if cfg.mini_batch_size * n_params < 2e6:
        torch.set_num_threads(1)                      # so little work is done sooner alone than shared out
    measure = 'test accuracy' if cfg.evaluate == 'test' else 'accuracy on the rest'
    began = time.perf_counter()
    with torch.inference_mode(cfg.backprop == 'manual'), tqdm(
            total=cfg.epochs * steps_per_epoch, initial=first * steps_per_epoch, unit='step', dynamic_ncols=True) as bar:
        for epoch in range(first, cfg.epochs):
            step, eta = learn(model, optimizer, images, digits, epoch, cfg, run, bar)
            cost, activations = evaluate(model, *unseen, run)
            if not math.isfinite(cost):
                raise ModelError(f'epoch {epoch + 1}: the cost is {cost}; expected a number: lower --eta, now {cfg.eta}')
            accuracy = (activations.argmax(dim=1) == unseen[1]).float().mean().item()
            elapsed, best_cost = elapsed_before + time.perf_counter() - began, min(best_cost, cost)
            tqdm.write(f'epoch {epoch + 1}: cost {cost:.4f}, {measure} {accuracy:.2%}, {elapsed:.1f} s')
            log.write(iter=step, epoch=epoch + 1, cost=cost, accuracy=accuracy, lr=eta, elapsed_s=round(elapsed, 3))
            checkpoint.save(path, dict(
                model=model.state_dict(), optimizer=optimizer.state_dict(), model_args=args, iter_num=step, epoch=epoch + 1,
                best_val_loss=best_cost, config=configurator.plain(cfg), elapsed_s=elapsed))
    log.close()
    print(f'saved {path}')
    draw_misread(os.path.join(cfg.out_dir, 'misread.png'), unseen[0].cpu(), unseen[1].cpu(), activations.cpu())
    print(f'try it: python mlp_mnist.py --out_dir={cfg.out_dir} --predict=test:1234')


# ---------------------------------------------------------------------------- looking at digits

# Each digit as five rows of three, to write under the pictures.
GLYPHS = ('111101101101111', '010110010010111', '111001111100111', '111001111001111', '101101111001001',
          '111100111001111', '111100111101111', '111001001001001', '111101111101111', '111101111001111')


def draw_misread(path, images, digits, activations):
    """
    A PNG of up to 100 misread images, the most confident mistakes first; under each the digit that it is, in green,
    and the one that was read, in red.
    """
    confidence, guesses = activations.max(dim=1)
    wrong = (guesses != digits).nonzero().flatten()
    wrong = wrong[confidence[wrong].argsort(descending=True)][:100].tolist()
    if not wrong:
        print('nothing was misread')
        return
    tile = 80                                         # pixels: 56 for the digit, below it 20 for the labels, and some air
    canvas = np.zeros((-(-len(wrong) // 10) * tile, 10 * tile, 3), dtype=np.uint8)
    for n, i in enumerate(wrong):
        top, left = n // 10 * tile + 2, n % 10 * tile + 12
        ink = (images[i].view(28, 28) * 255).byte().numpy().repeat(2, axis=0).repeat(2, axis=1)
        canvas[top:top + 56, left:left + 56] = ink[:, :, None]
        for digit, colour, at in ((digits[i], (80, 220, 80), left + 12), (guesses[i], (255, 80, 80), left + 35)):
            glyph = np.array([int(bit) for bit in GLYPHS[digit]], dtype=np.uint8).reshape(5, 3).repeat(3, axis=0).repeat(3, axis=1)
            canvas[top + 58:top + 73, at:at + 9] = glyph[:, :, None] * np.array(colour, dtype=np.uint8)
    with data.replacing(path) as f:
        f.write(png(canvas))
    print(f'{path}: {len(wrong)} of the {int((guesses != digits).sum())} misread images; green: what it is, red: what was read')


def png(pixels):
    """The bytes of a PNG file of pixels (height, width, 3), uint8. PNG specification, sections 5 and 11."""
    def chunk(kind, data):
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

    height, width, _ = pixels.shape
    rows = b''.join(b'\0' + row.tobytes() for row in pixels)                    # 0: the row as it is
    return (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0))
            + chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b''))


def read_picture(path):
    """
    An image file as MNIST would hold it: (784,), from 0, the paper, to 1, the ink. The digit is cut out, scaled into a box
    of 20 x 20 pixels, and laid with its centre of mass into the middle of 28 x 28. Raises DataError.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as e:
        raise configurator.ConfigError('--predict of an image file needs Pillow; pip install pillow, or use --predict=test:N') from e
    try:
        with Image.open(path) as image:
            image = ImageOps.exif_transpose(image).convert('RGBA')              # as a camera was held
            image.thumbnail((1000, 1000))
            alpha = np.asarray(image.getchannel('A'), dtype=np.float32)
            transparent = np.median(alpha) < 128                                # then what is opaque is ink, whatever its colour
            grey = 255 - alpha if transparent else np.asarray(image.convert('L'), dtype=np.float32)
    except FileNotFoundError as e:
        raise data.DataError(f'{path}: not found; expected an image file, or test:N') from e
    except Exception as e:                            # Pillow raises a dozen types for damaged files
        raise data.DataError(f'{path}: cannot be read as an image ({type(e).__name__}); expected a PNG, JPEG, ... of one digit') from e
    edge = np.concatenate((grey[0], grey[-1], grey[:, 0], grey[:, -1]))
    ink = np.abs(grey - np.median(edge))              # however light the paper and dark the ink, or the other way round
    if ink.max() < 16:
        raise data.DataError(f'{path}: one colour everywhere; expected a digit, dark on light or light on dark')
    ink = ink / ink.max()
    ink[ink < 0.2] = 0                                # the grain of the paper
    rows, columns = ink.any(axis=1).nonzero()[0], ink.any(axis=0).nonzero()[0]
    digit = ink[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]
    scale = 20 / max(digit.shape)
    size = [max(1, round(n * scale)) for n in digit.shape]
    digit = F.interpolate(torch.from_numpy(digit)[None, None], size=size, mode='bilinear', antialias=True)[0, 0]
    digit = digit / digit.max()
    centre = [float((digit.sum(dim=1 - d) * (torch.arange(size[d]) + 0.5)).sum() / digit.sum()) for d in (0, 1)]   # of mass: row, column
    top, left = (math.ceil(min(max(14 - c, 0), 28 - n)) for c, n in zip(centre, size))
    image = torch.zeros(28, 28)
    image[top:top + size[0], left:left + size[1]] = digit
    return image.flatten()


def predict(cfg, run):
    """Draw the digit in the terminal, as the network sees it, and print the ten activations."""
    path = os.path.join(cfg.out_dir, 'ckpt.pt')
    state = checkpoint.load(path)
    model = build(state['model_args'], path, state['model']).to(run.device).eval()
    truth = ''
    if cfg.predict.startswith('test:'):
        images, digits = read_digits('test')
        n = cfg.predict.removeprefix('test:')
        if not n.isdecimal() or int(n) >= len(images):
            raise configurator.ConfigError(f'predict={cfg.predict}: expected test:0 to test:{len(images) - 1}')
        image, truth = images[int(n)], f', and it is {digits[int(n)]}'
    else:
        image = read_picture(cfg.predict)
    inked = image.view(28, 28) > 0.4
    for upper, lower in zip(inked[::2], inked[1::2]):
        print(''.join(' ▄▀█'[2 * u + l] for u, l in zip(upper.int().tolist(), lower.int().tolist())).rstrip())
    with torch.no_grad():
        activations = model(image[None].to(run.device))[0][0].tolist()
    for digit, activation in enumerate(activations):
        print(f'{digit}  {activation:.4f}  {"█" * round(40 * activation)}')
    print(f'read as {activations.index(max(activations))}{truth}')


def main(cfg):
    sizes = check(cfg)
    run = parallel.start(cfg.device, cfg.dtype, compile=False)
    if cfg.predict:
        predict(cfg, run)
    else:
        train(cfg, sizes, run)


if __name__ == '__main__':
    configurator.run(main, MnistConfig, ERRORS)
