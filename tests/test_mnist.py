"""Digits: training with mlp_mnist.py, pictures, and the error messages."""

import os
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPO, idx, read_log, run_main, run_script, sha256_of

import mlp_mnist
from gradus import checkpoint, configurator, digits
from gradus.digits import FILES
from gradus.errors import UserError
from mlp_mnist import MnistConfig
from model import GPT, MLP, GPTConfig


@pytest.fixture
def place(digits_place):
    return digits_place


BASE = [
    '--device=cpu', '--n_train=200', '--sizes=784-16-10', '--mini_batch_size=20',
    '--epochs=2', '--eta=3e-3', '--distort=0',
]
ALL_AT_ONCE = dict(dropout=0.2, distort=0.5, adversarial=0.5, batch_norm=True)


def settings(**changes):
    return replace(configurator.load(MnistConfig, BASE), **changes)


def hashes(out_dir):
    """Hashes of the weights and of the optimizer's tensors in a run's folder."""
    state = checkpoint.load(os.path.join(out_dir, 'ckpt.pt'))
    return sha256_of(state['model']), sha256_of(state['optimizer']['state'])


@torch.no_grad()
def activations_of(images):
    """The activations of the network in out-mnist/ckpt.pt, computed without mlp_mnist.py."""
    state = checkpoint.load('out-mnist/ckpt.pt')
    model = MLP(**state['model_args'])
    model.load_state_dict(state['model'])
    return model.eval()(images)[0]


# ---------------------------------------------------------------------------- training

def test_a_run_learns_and_leaves_its_files(place, capsys):
    mlp_mnist.main(settings(epochs=8, eta=1e-2, dropout=0.2, batch_norm=True))

    # What it prints and logs.
    printed = [float(a) for a in re.findall(r'test accuracy (\d+\.\d\d)%', capsys.readouterr().out)]
    log = read_log('out-mnist')
    assert printed == [round(100 * r['accuracy'], 2) for r in log]
    assert [(r['epoch'], r['iter']) for r in log] == [(n, 10 * n) for n in range(1, 9)]
    assert 80 < printed[-1] <= 99                     # one of the 100 labels is wrong
    assert log[-1]['cost'] < log[0]['cost']

    # The checkpoint reaches the accuracy of the log.
    images, labels = digits.read_digits('test')
    right = activations_of(images).argmax(dim=1) == labels
    assert float(right.float().mean()) == pytest.approx(log[-1]['accuracy'])
    assert not right[0]


def test_evaluate_rest_never_looks_at_the_test_images(place, capsys):
    cfg = settings(n_train=150, evaluate='rest')
    mlp_mnist.main(replace(cfg, out_dir='a'))

    # Without the test images everything stays the same.
    for name in FILES['test']:
        Path('data/mnist', name).write_bytes(b'')
    mlp_mnist.main(replace(cfg, out_dir='b'))
    out = capsys.readouterr().out
    assert read_log('a') == read_log('b')
    assert 'test accuracy' not in out
    assert out.count('accuracy on the rest') == 4

    # The labels of the rest change the accuracy, and not the weights.
    labels_file = Path('data/mnist', FILES['train'][1])
    labels = digits.read_idx(labels_file)
    labels[150:] = (labels[150:] + 1) % 10
    labels_file.write_bytes(idx(labels))
    mlp_mnist.main(replace(cfg, out_dir='c'))
    assert hashes('c') == hashes('a')
    assert read_log('c') != read_log('a')


def test_a_run_is_a_function_of_its_settings_and_moves_an_older_one_aside(place):
    for seed in (1, 1, 2):
        mlp_mnist.main(settings(out_dir='out', seed=seed, **ALL_AT_ONCE))

    assert hashes('out-1') == hashes('out-2') != hashes('out')
    assert read_log('out-1') == read_log('out-2')


@pytest.mark.parametrize('key', ALL_AT_ONCE)
def test_each_of_these_changes_what_is_learned(key, place):
    mlp_mnist.main(settings(out_dir='with', **ALL_AT_ONCE))
    mlp_mnist.main(settings(out_dir='without', **{**ALL_AT_ONCE, key: 0}))
    assert hashes('with')[0] != hashes('without')[0]


@pytest.mark.parametrize('changes', [
    pytest.param(ALL_AT_ONCE, id='autograd'),
    pytest.param(dict(backprop='manual', optimizer='sgd', distort=0.5), id='manual'),
])
def test_resume_is_bit_exact(changes, place):
    """4 epochs at once equal 2, a crash that leaves half a line in the log, and 2 more; another resume adds nothing."""
    whole = settings(epochs=4, cooldown=0.0, out_dir='whole', **changes)
    mlp_mnist.main(whole)
    mlp_mnist.main(replace(whole, out_dir='parts', epochs=2))
    assert hashes('whole')[0] != hashes('parts')[0]
    with open('parts/log.jsonl', 'a') as f:
        f.write('{"iter": 30, "co')

    for _ in range(2):
        mlp_mnist.main(replace(whole, out_dir='parts', init_from='resume'))
        assert hashes('whole') == hashes('parts')
        assert read_log('whole') == read_log('parts')


@pytest.mark.parametrize('activation, cost, eta', [('sigmoid', 'quadratic', 3.0), ('relu', 'cross_entropy', 0.1)])
def test_manual_and_autograd_training_agree(activation, cost, eta, place):
    cfg = settings(activation=activation, cost=cost, eta=eta, optimizer='sgd', distort=0.5)
    torch.manual_seed(cfg.seed)
    start = MLP([784, 16, 10], activation, cost).state_dict()

    for backprop in ('manual', 'autograd'):
        mlp_mnist.main(replace(cfg, backprop=backprop, out_dir=backprop))

    manual, autograd = (checkpoint.load(f'{name}/ckpt.pt')['model'] for name in ('manual', 'autograd'))
    for name, before in start.items():
        assert (manual[name] - before).abs().max() > 1e-2
        torch.testing.assert_close(manual[name], autograd[name], rtol=0, atol=1e-4)


# ---------------------------------------------------------------------------- pictures

def test_predict_prints_the_activations(place, capsys):
    mlp_mnist.main(settings(**ALL_AT_ONCE))
    images, labels = digits.read_digits('test')

    for n in (0, 3, 99):
        capsys.readouterr()
        mlp_mnist.main(settings(predict=f'test:{n}'))
        lines = capsys.readouterr().out.splitlines()
        activations = activations_of(images[n:n + 1])[0].tolist()
        printed = [re.match(r'(\d)  (\d\.\d{4})', line).groups() for line in lines[-11:-1]]
        assert printed == [(str(d), f'{a:.4f}') for d, a in enumerate(activations)]
        assert lines[-1] == f'read as {np.argmax(activations)}, and it is {labels[n]}'

    # From the command line, with --key=value and with --key value.
    configurator.launch(mlp_mnist.main, MnistConfig, ['--predict=test:99', '--device=cpu'])
    assert capsys.readouterr().out.splitlines() == lines
    assert run_main(mlp_mnist, '--predict', 'test:99', '--device=cpu').stdout.splitlines() == lines


def drawing(size=(400, 400), corner=(120, 80), height=240, ink='black', paper='white', grain=0):
    """A picture of a 4, drawn by Pillow."""
    Image, ImageDraw = pytest.importorskip('PIL.Image'), pytest.importorskip('PIL.ImageDraw')
    image = Image.new('RGBA', (size[0] * 4, size[1] * 4), paper)                # four times too large, for smooth edges
    for line in (((0.3, 0), (0, 0.6), (0.6, 0.6)), ((0.45, 0.3), (0.45, 1))):
        points = [(4 * (corner[0] + height * x), 4 * (corner[1] + height * y)) for x, y in line]
        ImageDraw.Draw(image).line(points, ink, round(4 * 0.12 * height))
    noise = np.random.default_rng(0).integers(-grain, grain + 1, (size[1], size[0], 1)) * np.array([1, 1, 1, 0])
    return Image.fromarray((np.asarray(image.resize(size, Image.LANCZOS)) + noise).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize('changes', [
    dict(ink='white', paper='black'),
    dict(ink='white', paper=(255, 255, 255, 0)),
    dict(paper=(255, 255, 255, 0)),
    dict(paper=(0, 0, 0, 0)),
    dict(ink='navy', paper='beige'),
    dict(size=(300, 500), corner=(10, 350), height=130),
    dict(size=(1600, 1200), corner=(800, 300), height=700),
    dict(ink='#303030', paper='#d0d0d0', grain=10),
], ids=lambda changes: ' '.join(changes))
def test_a_picture_is_read_the_same_on_any_paper_in_any_place(changes, tmp_path):
    drawing().convert('L').save(tmp_path / 'plain.png')
    drawing(**changes).save(tmp_path / 'x.png')

    plain, image = (digits.read_picture(str(tmp_path / name)) for name in ('plain.png', 'x.png'))

    assert image.shape == (784,)
    assert image.min() == 0
    assert 0.9 < image.max() <= 1
    assert (image - plain).abs().mean() < 0.02 < 0.1 < image.mean()
    ink = image.view(28, 28).numpy()
    rows, columns = (np.flatnonzero(ink.sum(axis=axis)) for axis in (1, 0))
    assert np.ptp(rows) + 1 == rows.size == 20 > np.ptp(columns) + 1
    for axis in (1, 0):
        assert 13.4 < (ink.sum(axis=axis) * (np.arange(28) + 0.5)).sum() / ink.sum() < 15.1


def test_mnists_own_digits_are_read_back_nearly_unchanged(mnist):
    images, same_place = digits.read_digits('test')[0][:50].view(50, 28, 28), 0
    shifts = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]

    for image in images:
        pytest.importorskip('PIL.Image').fromarray((255 - image * 255).round().byte().numpy()).save('x.png')
        found = digits.read_picture('x.png').view(28, 28)
        distances = [float((found.roll(shift, (0, 1)) - image).abs().mean()) for shift in shifts]
        assert min(distances) < 0.01
        same_place += distances[4] == min(distances)

    assert same_place > 40                            # MNIST's centres of mass lie between 14 and 15


# ---------------------------------------------------------------------------- errors

MANUAL = ('backprop=manual: expected optimizer=sgd, dtype=float32, '
          'and no adversarial, batch_norm, dropout or weight_decay')
WRONG_SETTINGS = [
    *[(f'--sizes={sizes}', f'sizes={sizes}: expected 784')
      for sizes in ('784-30', '30-10', '784-0-10', '784-x-10', '784--10', '784', '')],
    ('--sizes=784-99999999-10', 'at most a billion'),
    ('--eta=0', 'eta=0.0: '), ('--eta=-1', 'eta=-1.0: '), ('--eta=nan', 'eta=nan: '),
    ('--mini_batch_size=0', 'mini_batch_size=0: '),
    ('--mini_batch_size=201', 'mini_batch_size=201: expected at most n_train=200'),
    ('--epochs=-1', 'epochs=-1: '), ('--dropout=1', 'dropout=1.0: '), ('--seed=-1', 'seed=-1: '),
    ('--distort=-1', 'distort=-1.0: '), ('--adversarial=-1', 'adversarial=-1.0: '), ('--cooldown=2', 'cooldown=2.0: '),
    ('--n_train=0', 'n_train=0: '), ('--n_train=201', 'n_train=201: '), ('--n_train=70000', 'n_train=70000: '),
    ('--n_train=60000 --evaluate=rest', 'n_train=60000: '), ('--evaluate=rest', 'n_train'),
    ('--evaluate=train', "evaluate='train'"),
    ('--cost=hinge', "cost='hinge': expected one of quadratic, cross_entropy"),
    ('--activation=tanh', "activation='tanh': expected one of sigmoid"),
    ('--optimizer=lbfgs', "optimizer='lbfgs': expected one of sgd, adamw"),
    ('--init_from=gpt2', "init_from='gpt2': "), ('--device=tpu9', 'device=tpu9: '),
    ('--backprop=manual --optimizer=adamw', MANUAL),
    *[(f'--backprop=manual --optimizer=sgd --{key}', MANUAL)
      for key in ('dtype=bfloat16', 'adversarial=0.5', 'batch_norm=True', 'dropout=0.1', 'weight_decay=0.1')],
    ('--batch_norm=True --mini_batch_size=199', 'last batch of one image'),
    ('--batch_norm=True --mini_batch_size=1', 'batch_norm'),
    ('--eta=1e30 --optimizer=sgd', 'the cost is nan; '),
]
WRONG_FILES = [
    ('--out_dir=', 'out_dir='), ('--out_dir=.', 'out_dir='), ('--out_dir=text.png', 'out_dir='),
    ('--init_from=resume', 'out-mnist/ckpt.pt: not found'),
    *[(f'--init_from=resume --out_dir=run --{key}', 'run/ckpt.pt has ')
      for key in ('n_train=100', 'mini_batch_size=10', 'optimizer=sgd', 'sizes=784-8-10')],
    ('--init_from=resume --out_dir=gpt', 'gpt/ckpt.pt has '),
    ('--init_from=resume --out_dir=weights', 'optimizer'),
    ('--init_from=resume --out_dir=broken', 'broken/ckpt.pt: damaged'),
    ('--predict=test:1 --out_dir=broken', 'broken/ckpt.pt: damaged'),
    ('--predict=test:1', 'out-mnist/ckpt.pt: not found'),
    ('--predict=test:1 --out_dir=gpt', 'gpt/ckpt.pt: a GPT; expected a digit network'),
    ('--predict=test:1 --out_dir=small', 'small/ckpt.pt: sizes=[100, 10]; expected 784 pixels'),
    *[(f'--predict=test:{n} --out_dir=run', f'test:{n}: expected test:0 to test:99')
      for n in ('100', '10000', '-1', 'x', '', '²')],
    ('--predict=no.png --out_dir=run', 'no.png: not found'),
    ('--predict=text.png --out_dir=run', 'text.png: cannot be read as an image'),
    ('--predict=data --out_dir=run', 'data: cannot be read as an image'),
    ('--predict=blank.png --out_dir=run', 'blank.png: one color'),
    ('--predict=blank.png --out_dir=run', 'pip install pillow'),
]


@pytest.fixture(scope='module')
def made_runs(tmp_path_factory):
    """A folder for the runs that every refusal starts from: filled when they are first needed."""
    return tmp_path_factory.mktemp('runs')


@pytest.fixture
def runs(place, made_runs):
    """
    run: a run; gpt: a GPT's checkpoint; small: not MNIST's sizes; weights: no optimizer state; broken: a damaged file;
    text.png: no image.
    """
    if not os.listdir(made_runs):
        make_runs(made_runs)
    shutil.copytree(made_runs, '.', dirs_exist_ok=True)


def make_runs(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, 'PIL', None)       # training needs no Pillow
        argv = [*BASE, '--out_dir=run']
        configurator.launch(mlp_mnist.main, MnistConfig, argv)
    shutil.move('run', folder / 'run')

    state = checkpoint.load(str(folder / 'run/ckpt.pt'))
    shape = dict(n_layer=1, n_head=1, n_embd=8, block_size=8, bias=True, vocab_size=10, dropout=0.0)
    contents = {
        'gpt': dict(model=GPT(GPTConfig(**shape)).state_dict(), model_args=shape),
        'weights': {key: state[key] for key in ('model', 'model_args')},
        'small': dict(model=MLP([100, 10]).state_dict(), model_args=dict(sizes=[100, 10])),
        'broken': state,
    }
    for name, content in contents.items():
        os.mkdir(folder / name)
        checkpoint.save(str(folder / name / 'ckpt.pt'), content)
    broken = folder / 'broken/ckpt.pt'
    os.truncate(broken, os.path.getsize(broken) - 1000)
    (folder / 'text.png').write_text('no image')


def contents_outside(*folders):
    return {path: path.read_bytes() for path in Path().rglob('*') if path.is_file() and path.parent.name not in folders}


@pytest.mark.parametrize('args, expected', WRONG_SETTINGS + WRONG_FILES)
def test_refused_in_one_line(args, expected, runs, capsys, monkeypatch):
    """Exit code 2, one line on stderr, all files unchanged (except the log of a run that failed while it ran)."""
    if 'pillow' in expected:
        monkeypatch.setitem(sys.modules, 'PIL', None)
    elif '.png' in expected or 'data:' in expected:
        pytest.importorskip('PIL.Image').new('L', (50, 50), 255).save('blank.png')
    before = contents_outside()
    capsys.readouterr()

    with pytest.raises(SystemExit) as e:
        configurator.launch(mlp_mnist.main, MnistConfig, [*BASE, *args.split()])

    lines = [line for line in capsys.readouterr().err.splitlines() if line and 'step/s' not in line]
    assert e.value.code == 2, lines
    assert len(lines) == 1, lines
    assert lines[0].startswith('error: '), lines
    assert expected in lines[0], lines
    assert contents_outside('out-mnist') == before


# ---------------------------------------------------------------------------- settings

def load(*argv):
    return configurator.load(MnistConfig, argv)


def test_key_and_value_as_two_arguments():
    config = str(REPO / 'config/mnist_3b1b.py')
    assert load('--epochs', '3') == load('--epochs=3') != load()
    assert load('--eta', '-1', '--batch_norm', 'True').eta == -1
    assert load('--predict', 'a=b.png').predict == 'a=b.png'

    as_two = load('--predict', 'x.png', config)
    assert as_two == load(config, '--predict=x.png') == replace(load(config), predict='x.png')

    for argv in (['--epochs'], ['--epochs', '--eta=1'], ['--eta=1', config, '--epochs']):
        with pytest.raises(UserError, match=r'^--epochs: expected --key=value.*$'):
            load(*argv)


def test_the_network_of_3blue1brown_has_13002_weights_and_biases():
    cfg = load(str(REPO / 'config/mnist_3b1b.py'))
    model = MLP(mlp_mnist.check(cfg), cfg.activation, cfg.cost, cfg.batch_norm)
    assert sum(p.numel() for p in model.parameters()) == 13_002


# ---------------------------------------------------------------------------- the real MNIST

@pytest.mark.slow
def test_two_epochs_of_the_defaults_pass_97_percent(mnist):
    mlp_mnist.main(MnistConfig(epochs=2, device='cpu'))
    assert read_log('out-mnist')[-1]['accuracy'] > 0.97


@pytest.mark.slow
def test_the_network_of_nielsens_book_is_as_accurate_as_in_the_book(mnist):
    """95.42% in the book; seeds change it by half a percent."""
    done = run_script('mlp_mnist.py', REPO / 'config/mnist_nielsen.py', '--device=cpu', env={'OMP_NUM_THREADS': '1'})
    printed = [float(a) for a in re.findall(r'test accuracy (\d+\.\d\d)%', done.stdout)]
    assert done.returncode == 0, done.stderr[-500:]
    assert len(printed) == 30, done.stderr[-500:]
    assert 94.3 < printed[-1] < 95.9, done.stderr[-500:]
