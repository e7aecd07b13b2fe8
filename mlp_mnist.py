"""
Read handwritten digits: a plain neural network on MNIST.

    python mlp_mnist.py                               train, on whatever this machine has
    python mlp_mnist.py config/mnist_nielsen.py       the network of Nielsen's book, backpropagation by hand
    python mlp_mnist.py --predict=digit.png           try it on a picture of yours, or on --predict=test:1234

A digit is 784 numbers from 0 to 1. Every layer turns the activations of the one before into its own, and the last one
has ten, one for each digit. Learning means moving every weight a little against the gradient of the cost,
w -> w - eta dC/dw; `backprop` finds the whole gradient in one walk back through the layers. A GPT learns the same way.
"""

import math
import os
import shlex
import time
from dataclasses import asdict, dataclass

import gradus  # noqa: F401  first: Ctrl-C during the slow imports below is one line

# isort: split
import torch
from torch.nn import functional as F
from tqdm import tqdm

from gradus import checkpoint, configurator, digits, optim, parallel
from gradus.errors import UserError
from gradus.log import Log
from gradus.run_folder import RunFolder
from model import MLP


@dataclass
class MnistConfig:
    # files
    out_dir: str = 'out-mnist'        # folder of the run: ckpt.pt, log.jsonl
    init_from: str = 'scratch'        # scratch, or resume (out_dir's ckpt.pt)
    predict: str = ''                 # do not train; read this image file (pip install pillow), or test:N, a test image
    # data
    n_train: int = 60000              # train on the first N of the 60,000 training images
    evaluate: str = 'test'            # test: the 10,000 test images; rest: the other training images, to tune settings
    distort: float = 0.5              # strength of random distortions of the images; 0 = off, 1 = strong
    adversarial: float = 0.0          # then change each image by a vector of this length that raises its cost; 0 = off
    # network; model.py explains each field
    sizes: str = '784-256-256-10'     # neurons in each layer, pixels first, digits last
    activation: str = 'relu'          # of the hidden layers: sigmoid, relu
    cost: str = 'cross_entropy'       # cross_entropy (with softmax outputs), quadratic (with sigmoid outputs)
    batch_norm: bool = False
    dropout: float = 0.0
    # training
    backprop: str = 'autograd'        # autograd, or manual: the function below (needs optimizer='sgd')
    optimizer: str = 'adamw'          # sgd, adamw
    epochs: int = 10                  # passes over the training images
    mini_batch_size: int = 200        # images in a step
    eta: float = 3e-3                 # peak learning rate
    warmup_iters: int = 0             # steps of linear warm-up
    cooldown: float = 1.0             # fraction of the run, at its end, in which eta decays linearly to 0; 0 = constant
    weight_decay: float = 0.0
    # system
    seed: int = 1337
    device: str = 'auto'              # auto, cpu, cuda, cuda:N, mps
    dtype: str = 'float32'            # of the matmuls: float32, bfloat16, auto


# ---------------------------------------------------------------------------- backpropagation by hand

SIGMA = {'sigmoid': torch.sigmoid, 'relu': lambda z: z.clamp(min=0)}
# sigma'(z), written with a = sigma(z), which is known already: e^-z / (1 + e^-z)^2 is a (1 - a).
SIGMA_PRIME = {'sigmoid': lambda a: a - a * a, 'relu': lambda a: (a > 0).to(a.dtype)}


def backprop(weights, biases, x, y, activation='sigmoid', cost='quadratic'):
    """
    The gradient of the cost with respect to every weight and bias, summed over m images, without autograd.

    weights: w^l (n_l, n_{l-1}) and biases: b^l (n_l, 1), lists over the layers l = 2..L; x (n_1, m): an image in each
    column; y (n_L, m): 1 for its digit, else 0. Returns lists nabla_w, nabla_b, shaped like weights, biases.
    Nielsen 2015, chapter 2, equations BP1 to BP4, for all images at once: each column of z, a, delta is one image.
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
    else:                                             # for softmax and cross-entropy, BP1 simplifies to:
        delta = torch.softmax(z, dim=0) - y           # delta^L = a^L - y                               (n_L, m)

    # From the last layer to the first. The sums over the images hide in sum() and in the matrix product.
    nabla_w, nabla_b = [], []
    for l in reversed(range(len(weights))):           # weights[l] leads from the activations a[l] to the next layer
        nabla_b.insert(0, delta.sum(dim=1, keepdim=True))   # BP3: dC/db_j = delta_j                    (n_l, 1)
        nabla_w.insert(0, delta @ a[l].T)             # BP4: dC/dw_jk = a_k delta_j                     (n_l, n_{l-1})
        if l > 0:                                     # BP2: delta^l = ((w^{l+1})^T delta^{l+1}) * sigma'(z^l)
            delta = (weights[l].T @ delta) * sigma_prime(a[l])                 #                        (n_l, m)
    return nabla_w, nabla_b


def update_mini_batch(weights, biases, x, y, eta, activation='sigmoid', cost='quadratic'):
    """One step of gradient descent, in place, along the mini-batch's mean gradient. Arguments as in `backprop`."""
    nabla_w, nabla_b = backprop(weights, biases, x, y, activation, cost)
    m = x.size(1)
    for w, b, nw, nb in zip(weights, biases, nabla_w, nabla_b):
        w.sub_(nw, alpha=eta / m)                     # w -> w - eta/m sum dC/dw                        (n_l, n_{l-1})
        b.sub_(nb, alpha=eta / m)                     # b -> b - eta/m sum dC/db                        (n_l, 1)


def weights_and_biases(model):
    """The w^l (n_l, n_{l-1}) and b^l (n_l, 1) of an `MLP`: views, so changing them changes the model."""
    weights = [layer.weight.detach() for layer in model.layers]
    biases = [layer.bias.detach()[:, None] for layer in model.layers]
    return weights, biases


# ---------------------------------------------------------------------------- training

def check(cfg):
    """Raise UserError for settings that make no sense. Returns the number of neurons in each layer."""
    configurator.check_out_dir(cfg.out_dir)
    configurator.check_range(cfg, n_train=(1, 60000), epochs=(1, None), mini_batch_size=(1, None), eta=(0, 1e30),
                             distort=(0, None), adversarial=(0, None), dropout=(0, 0.999999), cooldown=(0, 1),
                             warmup_iters=(0, None), weight_decay=(0, 1e6), seed=(0, 2 ** 63))
    configurator.check_choice(cfg, init_from=('scratch', 'resume'), evaluate=('test', 'rest'),
                              activation=('sigmoid', 'relu'), cost=('quadratic', 'cross_entropy'),
                              backprop=('manual', 'autograd'), optimizer=('sgd', 'adamw'),
                              dtype=('auto', *parallel.DTYPES))
    sizes = check_sizes(cfg.sizes)
    if cfg.eta == 0:
        raise UserError('eta=0.0: expected more than 0, otherwise nothing is learned')
    if cfg.mini_batch_size > cfg.n_train:
        raise UserError(f'mini_batch_size={cfg.mini_batch_size}: expected at most n_train={cfg.n_train}, '
                        'the number of training images')
    plain = cfg.optimizer == 'sgd' and cfg.dtype == 'float32'
    extras = cfg.adversarial or cfg.batch_norm or cfg.dropout or cfg.weight_decay
    if cfg.backprop == 'manual' and (extras or not plain):
        raise UserError('backprop=manual: expected optimizer=sgd, dtype=float32, '
                        'and no adversarial, batch_norm, dropout or weight_decay')
    if cfg.batch_norm and 1 in (cfg.mini_batch_size, cfg.n_train % cfg.mini_batch_size):
        raise UserError(f'batch_norm=True: n_train={cfg.n_train} and mini_batch_size={cfg.mini_batch_size} '
                        'leave a last batch of one image')
    return sizes


def check_sizes(text):
    """'784-30-10' as [784, 30, 10]. Raises UserError."""
    sizes = text.split('-')
    numbers = len(sizes) > 1 and all(n.isdecimal() and int(n) for n in sizes)
    if not (numbers and sizes[0] == '784' and sizes[-1] == '10'):
        raise UserError(f'sizes={text}: expected 784 pixels first and 10 digits last, as in 784-30-10')
    sizes = [int(n) for n in sizes]
    if sum((n_in + 1) * n_out for n_in, n_out in zip(sizes, sizes[1:])) > 10 ** 9:
        raise UserError(f'sizes={text}: expected at most a billion weights')
    return sizes


def load_images(cfg, worker):
    """The images (N, 784) and digits (N,) to train on, and those to evaluate on, on the device. Raises UserError."""
    images, labels = worker.to_device(*digits.read_digits('train'))
    hold_out = cfg.evaluate == 'rest'
    limit = len(images) - 1 if hold_out else len(images)      # leave at least one to evaluate on
    if cfg.n_train > limit:
        raise UserError(f'n_train={cfg.n_train}: expected at most {limit} of the {len(images)} training images')
    train = images[:cfg.n_train], labels[:cfg.n_train]
    if hold_out:
        unseen = images[cfg.n_train:], labels[cfg.n_train:]
    else:
        unseen = worker.to_device(*digits.read_digits('test'))
    return train, unseen


def check_same_run(cfg, args, state, path):
    """Raise UserError unless the settings are those of the run in the checkpoint `state`."""
    found = dict(state['model_args'])
    wanted = dict(args)
    for key in ('optimizer', 'n_train', 'mini_batch_size'):
        found[key] = state.get('config', {}).get(key)
        wanted[key] = getattr(cfg, key)
    if found != wanted:
        raise UserError(f'{path} has {found}, but the settings say {wanted}; resume with the config of that run')


@torch.no_grad()
def evaluate(model, images, labels, worker):
    """The mean cost over the images (N, 784), and their activations (N, 10)."""
    model.eval()
    cost, activations = 0.0, []
    for x, y in zip(images.split(2000), labels.split(2000)):
        with worker.autocast():
            a, mean = model(x, y)
        cost += mean.item() * len(x) / len(images)
        activations.append(a)
    model.train()
    return cost, torch.cat(activations)


def make_harder(model, x, y, length, worker):
    """
    The images x (m, 784), each changed by a vector of that length in the direction in which its cost grows fastest;
    pixels stay from 0 to 1. Goodfellow et al. 2015, "Explaining and harnessing adversarial examples", but with the
    gradient's direction instead of the signs of its numbers.
    """
    x = x.detach().requires_grad_()
    with worker.autocast():
        _, cost = model(x, y)
    gradient, = torch.autograd.grad(cost, x)                                    # (m, 784): dC/dx, not dC/dw
    return (x + length * F.normalize(gradient)).clamp(0, 1).detach()


def train_epoch(model, optimizer, images, labels, epoch, cfg, worker, bar):
    """
    One epoch: every image once. The order, the distortions and dropout are a function of (seed, epoch).
    Returns the number of steps so far and the last learning rate.
    """
    torch.manual_seed(parallel.seed_from(cfg.seed, epoch))
    weights, biases = weights_and_biases(model)
    one_hot = torch.eye(10, device=worker.device)
    basis = digits.distortion_basis().to(worker.device)
    batches = torch.randperm(len(images)).to(worker.device).split(cfg.mini_batch_size)
    n_steps = cfg.epochs * len(batches)

    for step, batch in enumerate(batches, start=epoch * len(batches)):
        eta = optim.learning_rate_at(step, cfg.eta, 0.0, cfg.warmup_iters, n_steps, 'linear', cfg.cooldown)
        x = images.index_select(0, batch)                                       # (m, 784)
        y = labels.index_select(0, batch)                                       # (m,)
        if cfg.distort:
            x = digits.distort(x, cfg.distort, basis)
        if cfg.adversarial:
            x = make_harder(model, x, y, cfg.adversarial, worker)
        if cfg.backprop == 'manual':                  # each image and each one-hot digit is a column
            columns = one_hot.index_select(0, y).T                              # (10, m)
            update_mini_batch(weights, biases, x.T, columns, eta, cfg.activation, cfg.cost)
        else:
            optim.set_step(optimizer, step, eta)
            with worker.autocast():
                _, cost = model(x, y)
            cost.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        bar.update()
    return step + 1, eta


def train(cfg, sizes, worker, folder):
    # Load everything, and find what is wrong before anything is written.
    (images, labels), unseen = load_images(cfg, worker)
    path = os.path.join(cfg.out_dir, 'ckpt.pt')
    resume = cfg.init_from == 'resume'
    args = dict(sizes=sizes, activation=cfg.activation, cost=cfg.cost, batch_norm=cfg.batch_norm, dropout=cfg.dropout)

    # The model.
    state = {}
    if resume:
        state = checkpoint.load_run(path, repair=True)
        check_same_run(cfg, args, state, path)
        model = digits.build(args, path, state['model'])
    else:
        torch.manual_seed(cfg.seed)
        model = MLP(**args)
    model.to(worker.device)

    # The optimizer.
    if cfg.optimizer == 'sgd':
        optimizer = optim.SGD(optim.param_groups(model, cfg.weight_decay), lr=cfg.eta)
    else:
        optimizer = optim.build(model, 'adamw', cfg.weight_decay, cfg.eta, (0.9, 0.99))
    if resume:
        optim.load_state(optimizer, state, path)

    # Where to start.
    first_epoch = state.get('epoch', 0)
    best_cost = state.get('best_val_loss', math.inf)
    if first_epoch >= cfg.epochs:
        print(f'{path} has seen {first_epoch} epochs already; raise --epochs to continue')
        return

    # Nothing has been written to the run's folder until here.
    folder.start(resume)
    steps_per_epoch = math.ceil(cfg.n_train / cfg.mini_batch_size)
    log = Log(cfg.out_dir, first_epoch * steps_per_epoch + 1)
    n_params = sum(p.numel() for p in model.parameters())
    print(f'{cfg.sizes}: {n_params:,} weights and biases, {worker.device.type}; {cfg.n_train:,} training images, '
          f'{cfg.mini_batch_size} in each of {steps_per_epoch:,} mini-batches')
    if cfg.mini_batch_size * n_params < 2e6:
        torch.set_num_threads(1)                      # too little work to benefit from several threads
    measure = 'test accuracy' if cfg.evaluate == 'test' else 'accuracy on the rest'
    bar = tqdm(total=cfg.epochs * steps_per_epoch, initial=first_epoch * steps_per_epoch, unit='step',
               dynamic_ncols=True)
    start_time = time.perf_counter() - state.get('elapsed_s', 0.0)

    with bar, torch.inference_mode(cfg.backprop == 'manual'):
        for epoch in range(first_epoch, cfg.epochs):
            step, eta = train_epoch(model, optimizer, images, labels, epoch, cfg, worker, bar)

            # Evaluate.
            cost, activations = evaluate(model, *unseen, worker)
            if not math.isfinite(cost):
                raise UserError(f'epoch {epoch + 1}: the cost is {cost}; lower --eta (now {cfg.eta})')
            accuracy = (activations.argmax(dim=1) == unseen[1]).float().mean().item()
            best_cost = min(best_cost, cost)

            # Log and save.
            elapsed = time.perf_counter() - start_time
            tqdm.write(f'epoch {epoch + 1}: cost {cost:.4f}, {measure} {accuracy:.2%}, {elapsed:.1f} s')
            log.write(iter=step, epoch=epoch + 1, cost=cost, accuracy=accuracy, lr=eta, elapsed_s=round(elapsed, 3))
            folder.save('ckpt.pt', dict(
                model=model.state_dict(), optimizer=optimizer.state_dict(), model_args=args, iter_num=step,
                epoch=epoch + 1, best_val_loss=best_cost, config=asdict(cfg), elapsed_s=elapsed))

    log.close()
    print(f'saved {path}')
    out_dir = shlex.quote(cfg.out_dir)
    print(f'what it learned and misread: python plot.py digits --out_dir={out_dir}')
    print(f'try it: python mlp_mnist.py --out_dir={out_dir} --predict=test:1234')


# ---------------------------------------------------------------------------- prediction

def predict(cfg, worker):
    """Draw the digit in the terminal, as the network sees it, and print the ten activations."""
    path = os.path.join(cfg.out_dir, 'ckpt.pt')
    state = checkpoint.load(path)
    model = digits.build(state['model_args'], path, state['model']).to(worker.device).eval()
    image, truth = load_image(cfg.predict)

    digits.print_digit(image)
    with torch.no_grad():
        activations, _ = model(image[None].to(worker.device))                   # (1, 10)
    activations = activations[0].tolist()
    for digit, activation in enumerate(activations):
        print(f'{digit}  {activation:.4f}  {"█" * round(40 * activation)}')
    answer = activations.index(max(activations))
    known = '' if truth is None else f', and it is {truth}'
    print(f'read as {answer}{known}')


def load_image(source):
    """The image (784,) that `source` names, an image file or test:N, and its digit, None if unknown."""
    if not source.startswith('test:'):
        return digits.read_picture(source), None
    images, labels = digits.read_digits('test')
    n = source.removeprefix('test:')
    if not n.isdecimal() or int(n) >= len(images):
        raise UserError(f'{source}: expected test:0 to test:{len(images) - 1}')
    return images[int(n)], int(labels[int(n)])


def main(cfg):
    sizes = check(cfg)
    worker = parallel.init(cfg.device, cfg.dtype, compile=False)
    if cfg.predict:
        predict(cfg, worker)
    else:
        with RunFolder(cfg.out_dir) as folder:
            train(cfg, sizes, worker, folder)


if __name__ == '__main__':
    configurator.launch(main, MnistConfig, lower='--mini_batch_size or --sizes')
