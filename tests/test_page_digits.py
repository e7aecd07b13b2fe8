"""The page of a digit network: page/network.js in node against PyTorch, mlp_mnist.backprop and read_picture."""

import base64
import json
import os
import re
import shutil
import subprocess
from html import unescape as html_text

import numpy as np
import pytest
import torch
from conftest import REPO, run_main

import export
import mlp_mnist
from gradus import checkpoint, digits, page
from gradus.errors import UserError
from model import GPT, MLP, GPTConfig
from plots.browser import chromium_path

KINDS = {
    'nielsen': dict(sizes=[784, 30, 10]),
    'deep': dict(sizes=[784, 40, 16, 10], activation='relu', cost='cross_entropy', dropout=0.5),
    'relu, quadratic': dict(sizes=[784, 12, 10], activation='relu'),
    'sigmoid, cross_entropy': dict(sizes=[784, 12, 10], cost='cross_entropy'),
    'no hidden layer': dict(sizes=[784, 10]),
}
NORM = dict(sizes=[784, 20, 12, 10], activation='relu', cost='cross_entropy', batch_norm=True)

# Reads a page as a browser does, and computes what the job on stdin asks for.
SCRIPT = """
const fs = require('fs');
const {Network, centered} = require(process.argv[1]);
const {html, images, digit, eta, drawings} = JSON.parse(fs.readFileSync(0, 'utf-8'));
const result = {};
if (html) {
  const header = JSON.parse(/<script type="application\\/json" id="header">(.*?)<\\/script>/s.exec(html)[1]);
  const bytes = Buffer.concat(Array.from(html.matchAll(/class="weights">(.*?)<\\/script>/gs),
    (match) => Buffer.from(match[1], 'base64')));
  const network = new Network(header, bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length));
  const layers = (x) => network.forward(x).a.map((a) => Array.from(a));
  Object.assign(result, {header, size: bytes.length, layers: images.map(layers)});
  const gradient = network.backprop(images[0], digit);
  result.weights = gradient.weights.map((w) => Array.from(w));
  result.biases = gradient.biases.map((b) => Array.from(b));
  result.image = Array.from(gradient.image);
  result.cost = network.costOf(images[0], digit);
  network.step(gradient, eta);
  result.learned = layers(images[0]);
  network.step(gradient, eta);
  network.forget();
  result.forgotten = layers(images[0]);
}
result.centered = (drawings ?? []).map(({ink, width}) => centered(Float64Array.from(ink), width))
  .map((image) => image && Array.from(image));
console.log(JSON.stringify(result));
"""


@pytest.fixture
def node():
    """Runs SCRIPT with a job; returns its answer."""
    path = shutil.which('node')
    if path is None:
        pytest.skip('node is not installed')

    def run(**job):
        done = subprocess.run([path, '-e', SCRIPT, str(REPO / 'page' / 'network.js')], input=json.dumps(job),
                              capture_output=True, encoding='utf-8', timeout=120)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)
    return run


def save_network(folder='run', seed=0, **args):
    """A network that has learned nothing, as the checkpoint of a run."""
    torch.manual_seed(seed)
    model = MLP(**args)
    for norm in model.norms:                          # as if it had seen images
        if isinstance(norm, torch.nn.BatchNorm1d):
            for values in (norm.running_mean, norm.bias.data, norm.weight.data):
                values.add_(torch.randn_like(values) * 0.5)
            norm.running_var.uniform_(0.2, 3)
    checkpoint.save(f'{folder}/ckpt.pt', dict(model=model.state_dict(), model_args=args, config={}, iter_num=7))
    return model.eval()


def write(folder='run'):
    """The text of the page of the run in the folder."""
    page.write_digits('page.html', f'{folder}/ckpt.pt', checkpoint.load(f'{folder}/ckpt.pt'))
    with open('page.html', encoding='utf-8') as f:
        return f.read()


def layers_of(model, images):
    """The activations of every layer, as hooks see them: (N, n_l) each."""
    seen = []
    hooks = [layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])) for layer in model.layers]
    with torch.no_grad():
        out, _ = model(images)
    for hook in hooks:
        hook.remove()
    return [*seen, out]


def close(found, expected, **tolerance):
    torch.testing.assert_close(torch.tensor(found).flatten(), expected.float().flatten(), **tolerance)


# ---------------------------------------------------------------------------- the network

@pytest.mark.parametrize('args', [*KINDS.values(), NORM], ids=[*KINDS, 'batch norm'])
def test_activations_are_those_of_pytorch(args, digits_place, node):
    """For 100 test images, all layers."""
    model = save_network(**args)
    images, _ = digits.read_digits('test')
    assert len(images) == 100
    found = node(html=write(), images=images.tolist(), digit=3, eta=0.1)
    for l, a in enumerate(layers_of(model, images)):
        close([layers[l] for layers in found['layers']], a, atol=1e-4, rtol=1e-4)

    # The comparison can fail: another network's activations are not these.
    other = layers_of(save_network(seed=1, **args), images)[-1]
    assert not torch.allclose(torch.tensor([layers[-1] for layers in found['layers']]), other, atol=1e-2)


@pytest.mark.parametrize('args', KINDS.values(), ids=KINDS)
def test_backprop_and_a_step_are_those_of_mlp_mnist(args, digits_place, node):
    model = save_network(**args)
    x = digits.read_digits('test')[0][:1]                                       # (1, 784)
    y = torch.zeros(10, 1)
    y[4] = 1
    found = node(html=write(), images=x.tolist(), digit=4, eta=0.05)

    weights, biases = mlp_mnist.weights_and_biases(model)
    kind = dict(activation=args.get('activation', 'sigmoid'), cost=model.cost)
    gradient = mlp_mnist.backprop(weights, biases, x.T, y, **kind)
    for name, expected in zip(('weights', 'biases'), gradient):
        for values, nabla in zip(found[name], expected, strict=True):
            assert (torch.tensor(values) - nabla.flatten()).norm() <= 1e-4 * nabla.norm()
            assert nabla.norm() > 0

    # The cost, and its gradient with respect to the image, against autograd.
    pixels = x.clone().requires_grad_()
    _, cost = model(pixels, torch.tensor([4]))
    cost.backward()
    assert found['cost'] == pytest.approx(cost.item(), rel=1e-4)
    assert (torch.tensor(found['image']) - pixels.grad[0]).norm() <= 1e-4 * pixels.grad.norm()

    # A step, and the way back.
    mlp_mnist.update_mini_batch(weights, biases, x.T, y, 0.05, **kind)
    close(found['learned'][-1], layers_of(model, x)[-1], atol=1e-4, rtol=1e-4)
    assert found['learned'] != found['layers'][0]
    assert found['forgotten'] == found['layers'][0]


@pytest.mark.parametrize('args, learns', [(KINDS['nielsen'], True), (NORM, False), (dict(sizes=[784, 400, 10]), False)])
def test_what_learns(args, learns, digits_place, node):
    save_network(**args)
    header = node(html=write(), images=[[0] * 784], digit=0, eta=0)['header']
    assert header['learns'] is learns
    assert header['batch_norm'] is args.get('batch_norm', False)


# ---------------------------------------------------------------------------- a drawing

def scribble(side, points, width):
    """Lines through points, drawn with a round brush: black on white, (side, side) from 0 to 255."""
    from PIL import Image, ImageDraw
    large = Image.new('L', (2 * side, 2 * side), 255)
    draw = ImageDraw.Draw(large)
    points = [(2 * x, 2 * y) for x, y in points]
    draw.line(points, fill=0, width=2 * width)
    for x, y in points:
        draw.ellipse((x - width, y - width, x + width, y + width), fill=0)
    return large.resize((side, side), Image.Resampling.BILINEAR)


DRAWINGS = [
    (560, [(130, 100), (420, 110), (260, 470)], 44),              # a 7
    (560, [(300, 60), (270, 333), (301, 500)], 30),               # a 1, far from the middle
    (300, [(40, 30), (140, 35), (150, 70), (45, 128), (160, 120)], 9),
    (200, [(20, 100), (171, 93)], 8),                             # flat
    (40, [(18, 17), (22, 19)], 3),                                # smaller than 20 x 20: enlarged
    (560, [(281, 277)], 16),                                      # a dot
]


def test_a_drawing_is_centered_as_a_picture_is(tmp_path, node):
    pytest.importorskip('PIL', reason='read_picture needs it: pip install pillow')
    expected, drawings = [], []
    for n, (side, points, width) in enumerate(DRAWINGS):
        picture = scribble(side, points, width)
        picture.save(tmp_path / f'{n}.png')
        expected.append(digits.read_picture(str(tmp_path / f'{n}.png')))
        ink = 1 - np.asarray(picture, dtype=np.float64) / 255
        drawings.append(dict(ink=ink.flatten().tolist(), width=side))
    empty = dict(ink=[0] * 100, width=10)
    found = node(drawings=[*drawings, empty])['centered']
    assert found.pop() is None
    for image, picture in zip(found, expected, strict=True):
        close(image, picture, atol=1e-4, rtol=0)
    assert not np.allclose(found[0], expected[1], atol=0.1)


# ---------------------------------------------------------------------------- the page

def test_a_page_is_complete(digits_place, node):
    """The run's name, size and accuracy, and the first test image of each digit, byte for byte."""
    save_network('out-mine', **KINDS['nielsen'])
    with open('out-mine/log.jsonl', 'w', encoding='utf-8') as f:
        f.write('{"iter": 6, "accuracy": 0.5}\n{"iter": 7, "accuracy": 0.9123}\n{"iter": 8, "accuracy": 0.6}\n')
    header = node(html=write('out-mine'), images=[[0] * 784], digit=0, eta=0)['header']
    assert header['title'] == 'out-mine'
    assert header['about'].startswith('784-30-10, sigmoid, quadratic cost, 23,860 weights and biases, '
                                      'test accuracy 91.23%, trained on 20')
    images, labels = digits.read_digits('test')
    assert [example['digit'] for example in header['examples']] == list(range(10))
    for example in header['examples']:
        first = (labels == example['digit']).nonzero()[0].item()
        assert list(base64.b64decode(example['pixels'])) == (images[first] * 255).round().int().tolist()


def test_without_mnist_there_are_no_examples(tmp_path, monkeypatch, node, capsys):
    monkeypatch.chdir(tmp_path)
    save_network(**KINDS['no hidden layer'])
    assert node(html=write(), images=[[0] * 784], digit=0, eta=0)['header']['examples'] == []
    assert 'the page will have no examples' in capsys.readouterr().err


def test_texts_stay_texts_and_nothing_is_loaded(digits_place, node):
    name = '<script>alert(1)<&\u2028'
    save_network(name, **KINDS['nielsen'])
    html = write(name)
    assert len(re.findall('<script', html)) == 2 + html.count('class="weights"')    # header, page
    assert 'alert(1)' in html and '\u2028' not in html
    assert node(html=html, images=[[0] * 784], digit=0, eta=0)['header']['title'].startswith('<script>alert(1)<&')
    assert "default-src 'none'" in html
    body = html.split('<body>')[1]
    assert not re.findall(r'(?:src|href)\s*=|https?:|import\s*\(|fetch\s*\(|XMLHttpRequest|innerHTML', body)


def test_export_writes_the_page_and_refuses_what_it_cannot(digits_place):
    save_network(**KINDS['nielsen'])
    done = run_main(export, '--out_dir=run', '--to=html', '--dest=digits.html')
    assert (done.returncode, done.stderr) == (0, '')
    assert done.stdout == f"digits.html: {os.path.join('run', 'ckpt.pt')}, as html\n"

    again = run_main(export, '--out_dir=run', '--to=html', '--dest=digits.html')
    assert again.returncode == 2 and 'digits.html: exists' in again.stderr
    half = run_main(export, '--out_dir=run', '--to=html', '--dest=half.html', '--dtype=f16')
    assert half.returncode == 2 and 'expected f32, the only one for a digit network' in half.stderr
    other = run_main(export, '--out_dir=run', '--to=safetensors', '--dest=x.safetensors')
    assert other.returncode == 2 and 'a digit network of mlp_mnist.py; expected a GPT' in other.stderr
    assert not os.path.exists('half.html') and not os.path.exists('x.safetensors')


@pytest.mark.parametrize('change, message', [
    (lambda state: state['model_args'].update(sizes=[784, 5, 10]), 'expected a digit network'),
    (lambda state: state['model_args'].update(sizes=7), 'expected a digit network'),
    (lambda state: state['model']['layers.0.bias'].fill_(float('nan')), 'a weight is not finite'),
])
def test_a_bad_checkpoint_is_one_line(change, message, digits_place):
    save_network(**KINDS['nielsen'])
    state = checkpoint.load('run/ckpt.pt')
    change(state)
    checkpoint.save('run/ckpt.pt', state)
    done = run_main(export, '--out_dir=run', '--to=html', '--dest=digits.html')
    assert done.returncode == 2 and message in done.stderr and done.stderr.count('\n') == 1
    assert not os.path.exists('digits.html')


def test_a_gpt_keeps_its_own_page(place):
    config = GPTConfig(block_size=8, vocab_size=256, n_layer=1, n_head=1, n_embd=8)
    state = dict(model=GPT(config).state_dict(), model_args=checkpoint.model_args(config), tokenizer={'kind': 'byte'})
    checkpoint.save('out/ckpt.pt', state)
    assert run_main(export, '--out_dir=out', '--to=html').returncode == 0
    with open('out/model.html', encoding='utf-8') as f:
        assert 'id="prompt"' in f.read()


# ---------------------------------------------------------------------------- in a browser

def open_in_chromium(path, tmp_path, fragment):
    """The document after its scripts have run, without them, and what the console says."""
    try:
        name = chromium_path()
    except UserError as e:
        pytest.skip(str(e))
    flags = ['--headless', '--no-sandbox', '--disable-gpu', '--no-first-run', '--disable-background-networking',
             '--disable-component-update', '--disable-sync', f'--user-data-dir={tmp_path / "profile"}',
             '--enable-logging=stderr', '--virtual-time-budget=5000', '--dump-dom']
    done = subprocess.run([name, *flags, f'{path.as_uri()}#{fragment}'], capture_output=True, encoding='utf-8',
                          timeout=120)
    html = re.sub('<script.*?</script>', '', done.stdout, flags=re.DOTALL)
    return html, [line for line in done.stderr.splitlines() if 'CONSOLE' in line]


@pytest.mark.slow
@pytest.mark.parametrize('args', [KINDS['deep'], NORM, KINDS['no hidden layer']], ids=['deep', 'norm', 'no hidden'])
def test_the_page_in_a_browser(args, digits_place, tmp_path):
    model = save_network('<script>x', **args)
    write('<script>x')
    images, labels = digits.read_digits('test')
    image = images[(labels == 4).nonzero()[0]]
    read = model(image)[0].argmax().item()

    html, console = open_in_chromium(tmp_path / 'page.html', tmp_path, 'example=4&truth=7&steps=1&neuron=1.2')
    assert console == []
    assert '<h1 id="title">&lt;script&gt;x</h1>' in html
    assert ('>Learned one step.' in html) is not args.get('batch_norm', False)
    assert ('before the step it was' in html) is not args.get('batch_norm', False)
    untouched, _ = open_in_chromium(tmp_path / 'page.html', tmp_path, 'example=4')
    assert f'<span id="answer">{read}</span>' in untouched
    assert f'A test image, labeled 4. The network reads a {read}, ' in untouched


# A hand at work: after each action, what the page says goes into its title. Made-up pointers cannot be captured,
# and virtual time does not wait for frames.
HAND = """
<script>
const drawing = $('drawing'), seen = [];
drawing.setPointerCapture = () => {};
window.requestAnimationFrame = (draw) => setTimeout(draw, 16);
window.cancelAnimationFrame = clearTimeout;
const box = drawing.getBoundingClientRect();
const pointer = (kind, x, y) => drawing.dispatchEvent(new PointerEvent(kind,
  {pointerId: 1, button: 0, clientX: box.left + x * box.width, clientY: box.top + y * box.height}));
const key = (target, name) => target.dispatchEvent(new KeyboardEvent('keydown', {key: name, bubbles: true}));
const ink = () => x.reduce((sum, value) => sum + value, 0) > 10;
const actions = [
  () => { pointer('pointerdown', 0.5, 0.2); pointer('pointermove', 0.52, 0.8); pointer('pointerup', 0.52, 0.8); },
  () => $('clear').click(),
  () => { pointer('pointerdown', 0.5, 0.2); pointer('pointerup', 0.5, 0.2); key(document, '3'); },   // at once
  () => $('clear').click(),
  () => { key(drawing, ' '); for (let n = 0; n < 9; n++) key(drawing, 'ArrowDown'); key(drawing, ' '); },
  () => { truthButtons[5].click(); $('step').click(); },
  () => $('forget').click(),
  () => { key($('network'), 'ArrowRight'); key($('network'), 'ArrowDown'); },
];
(async () => {
  for (const action of actions) {
    action();
    await new Promise((resolve) => setTimeout(resolve, 100));
    seen.push([ink(), $('said').textContent, $('cost').textContent, $('neuron-text').textContent]);
  }
  document.title = JSON.stringify(seen);
})();
</script>
"""


@pytest.mark.slow
def test_drawing_and_learning_by_hand(digits_place, tmp_path):
    save_network(**KINDS['nielsen'])
    path = tmp_path / 'page.html'
    path.write_text(write().replace('</body>', HAND + '</body>'), encoding='utf-8')
    html, console = open_in_chromium(path, tmp_path, '')
    assert console == []
    drawn, cleared, example, _, keys, learned, forgotten, neuron = json.loads(
        html_text(re.search('<title>(.*?)</title>', html)[1]))
    assert drawn[0] and drawn[1].startswith('The network reads a ')
    assert not cleared[0] and cleared[1].startswith('Draw a digit')
    assert example[0] and example[1].startswith('A test image, labeled 3. ')
    assert keys[0] and 'The network reads a ' in keys[1]
    assert learned[1].startswith('Learned one step. ')
    now, then = re.search(r'C = (\d+\.\d+); before the step it was (\d+\.\d+)', learned[2]).groups()
    assert float(now) < float(then)
    assert f'C = {then}. ' in forgotten[2]
    assert neuron[3].startswith('Neuron 2 of layer 2: activation ')


@pytest.mark.slow
def test_an_error_in_a_page_would_be_seen(tmp_path):
    """Negative control."""
    (tmp_path / 'page.html').write_text('<script>nonsense()</script>', encoding='utf-8')
    _, console = open_in_chromium(tmp_path / 'page.html', tmp_path, '')
    assert len(console) == 1 and 'nonsense' in console[0]
