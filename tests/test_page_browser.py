"""A GPT's page in Chromium, as a reader uses it: what it shows is what PyTorch computes. No request, no error."""

import math
import os
import subprocess
import sys

import pytest
import torch
from conftest import flags_of, run_main
from test_page import written

import export
import train
from gradus.errors import UserError
from plots.attention import attention
from plots.browser import browser, chromium_path, wait

REPO = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def chromium():
    pytest.importorskip('playwright')
    try:
        chromium_path()
    except UserError as e:
        pytest.skip(str(e))
    with browser() as driver:
        yield driver


@pytest.fixture
def open_page(chromium):
    """A function that opens a file without a network; afterwards nothing was requested, and the console is empty."""
    context = chromium.new_context(offline=True)
    seen = []

    def open_page(path):
        tab = context.new_page()
        tab.set_default_timeout(30_000)
        tab.on('console', lambda message: seen.append(message.text))
        tab.on('pageerror', lambda error: seen.append(str(error)))
        tab.on('dialog', lambda dialog: seen.append(dialog.message))
        tab.on('request', lambda request: seen.append(request.url))
        tab.goto(path.absolute().as_uri())
        wait(tab)
        seen[:] = [text for text in seen if not text.startswith(('blob:', path.absolute().as_uri()))]
        return tab

    open_page.seen = seen
    yield open_page
    context.close()
    assert [text for text in seen if not text.startswith('blob:')] == []


def write_text(tab, prompt='Hi', n=30, **settings):
    """Let the page continue a text; returns the texts of its tokens, those of the prompt too."""
    for name, value in dict(prompt=prompt, max=n, temperature=0, **settings).items():
        tab.fill(f'#{name}', str(value))
    tab.click('#go')
    wait(tab)
    return tab.locator('#text span').all_text_contents()


ASCII = {'kind': 'char', 'chars': [chr(n) for n in range(32, 127)] + ['\n']}


def model_of_characters(tmp_path, **config):
    return written(tmp_path, tokenizer=ASCII, vocab_size=96, **config)


def encode(text):
    return [ASCII['chars'].index(c) for c in text]


@torch.no_grad()
def probabilities(model, ids):
    return model(torch.tensor([ids]))[0][0, -1].softmax(0)


@pytest.mark.parametrize('config', [
    dict(),
    dict(pos='rotary', norm='rmsnorm', mlp='swiglu', n_kv_head=2, bias=False),
    dict(pos='rotary', norm='rmsnorm', mlp='swiglu', qk_norm=True, bias=False, tie_weights=False, head_dim=16),
    dict(mask='none'),
], ids=['gpt2', 'llama', 'qwen3', 'no mask'])
def test_text_alternatives_and_attention(config, tmp_path, open_page):
    model, path = model_of_characters(tmp_path, **config)
    tab = open_page(path)
    texts = write_text(tab, n=200)                    # three contexts
    ids = model.generate(torch.tensor([encode('Hi')]), 200)[0].tolist()
    assert ''.join(texts) == ''.join(ASCII['chars'][i] for i in ids)

    # Click: what else was likely there.
    tab.locator('#text span').nth(20).click()
    tab.wait_for_selector('#likely button')
    probs = probabilities(model, ids[:20])
    rows = tab.locator('#likely button').all()
    shown = [float(row.locator('span').nth(1).text_content()) for row in rows]
    assert shown == pytest.approx(probs.topk(10).values.tolist(), abs=6e-4)

    # Another one is taken, and the page goes on from there.
    second = probs.topk(2).indices[1].item()
    rows[1].click()
    wait(tab)
    other = model.generate(torch.tensor([[*ids[:20], second]]), 200)[0].tolist()
    assert ''.join(tab.locator('#text span').all_text_contents()) == ''.join(ASCII['chars'][i] for i in other)

    # Point: where the first head of the first layer looks.
    tab.locator('#text span').nth(10).hover()
    tab.wait_for_selector('#heads button')
    tab.locator('#heads button').first.click()
    assert tab.locator('#heads button').count() == model.config.n_layer * model.config.n_head
    weights = attention(model, other[:11])[0][0][0, -1]                         # of layer 0, head 0, last token
    most = tab.locator('#heads button').first.get_attribute('title')
    assert most.startswith('layer 0, head 0: ')
    value, token = most.removeprefix('layer 0, head 0: ').split(' to token ')
    assert float(value) == pytest.approx(weights.max().item(), abs=6e-3)
    assert weights[int(token)] == pytest.approx(weights.max().item(), abs=1e-4)


def test_surprise_and_parts_switched_off(tmp_path, open_page):
    model, path = model_of_characters(tmp_path)
    text = 'The quick brown fox jumps over the lazy dog. ' * 3        # three windows of 64
    tab = open_page(path)
    tab.fill('#prompt', text)
    tab.click('#score')
    wait(tab)

    ids, bits = encode(text), []
    for start in range(0, len(ids) - 1, 64):
        window = torch.tensor([ids[start:start + 64]])
        targets = torch.tensor(ids[start + 1:start + 65])
        with torch.no_grad():
            logits = model(window, window)[0][0, :len(targets)]
        bits += (torch.nn.functional.cross_entropy(logits, targets, reduction='none') / math.log(2)).tolist()
    titles = [span.get_attribute('title') for span in tab.locator('#text span').all()]
    assert titles[0] is None
    assert [float(title.removesuffix(' bits')) for title in titles[1:]] == pytest.approx(bits, abs=6e-3)
    mean = float(tab.inner_text('#status').split()[0])
    assert mean == pytest.approx(sum(bits) / len(bits), abs=6e-4)

    tab.fill('#off', '0, 1.2')
    tab.click('#score')
    wait(tab)
    assert abs(float(tab.inner_text('#status').split()[0]) - mean) > 1e-2


def test_tokens_that_would_be_scripts(tmp_path, open_page):
    """Shown as text, in the text, among the alternatives and in the title."""
    bad = '<script>alert(1)</script>"onerror=alert(1)'
    spec = {'kind': 'char', 'chars': sorted(set(bad))}
    folder = tmp_path / '<img src=x onerror=alert(1)>'
    folder.mkdir()
    _, path = written(tmp_path, name=f'{folder.name}/page.html', tokenizer=spec, vocab_size=len(spec['chars']))
    tab = open_page(path)
    texts = write_text(tab, prompt=bad, n=20)
    assert ''.join(texts).startswith(bad)
    tab.locator('#text span').nth(5).click()
    tab.wait_for_selector('#likely button')
    assert tab.locator('#text script, #likely script, #heads script').count() == 0


def test_stop_and_errors(tmp_path, open_page):
    _, path = model_of_characters(tmp_path)
    tab = open_page(path)
    tab.fill('#max', '1000000')
    tab.click('#go')
    tab.wait_for_selector('#text span:nth-child(20)')
    tab.click('#stop')
    wait(tab)
    assert 20 <= tab.locator('#text span').count() < 1_000_000

    tab.fill('#prompt', 'é')                          # a character that the model does not have
    tab.click('#go')
    tab.wait_for_selector('#status.error')
    assert 'é' in tab.inner_text('#status')


def test_by_keyboard_alone(tmp_path, open_page):
    _, path = model_of_characters(tmp_path)
    tab = open_page(path)
    tab.focus('#prompt')
    tab.keyboard.type('To be')
    tab.keyboard.press('Control+Enter')
    tab.wait_for_selector('#text span:nth-child(100)')
    wait(tab)
    for _ in range(30):
        tab.keyboard.press('Tab')
        if tab.locator('#text span:focus').count():
            break
    for key in ('ArrowRight', 'ArrowRight', 'ArrowRight', 'ArrowLeft', 'Enter'):
        tab.keyboard.press(key)
    tab.wait_for_selector('#likely button')
    assert tab.inner_text('#likelytitle') == 'Likely in the place of ␣'


def test_the_slider_goes_through_a_run(place, open_page, tmp_path):
    assert run_main(train, *flags_of(max_iters=12, keep_interval=5, eval_iters=1)).returncode == 0
    assert run_main(export, '--out_dir=out', '--to=html', '--checkpoint=ckpt.pt').returncode == 0
    tab = open_page(tmp_path / 'out' / 'model.html')
    last = write_text(tab, prompt='a')
    assert tab.inner_text('#when') == 'iteration 12'
    tab.focus('#time')
    tab.keyboard.press('Home')
    wait(tab)
    assert tab.inner_text('#when') == 'iteration 0'
    assert tab.locator('#text span').all_text_contents() != last


def test_an_error_would_be_seen(tmp_path, open_page):
    """Negative control: a page that throws, and one that asks for something."""
    path = tmp_path / 'bad.html'
    path.write_text('<button id="go"></button><img src="http://example.com/x.png"><script>nonsense()</script>',
                    encoding='utf-8')
    open_page(path)
    assert any('nonsense' in text for text in open_page.seen)
    assert any('example.com' in text for text in open_page.seen)
    open_page.seen.clear()


def test_a_screenshot(tmp_path, chromium):
    pytest.importorskip('matplotlib')
    from PIL import Image
    _, path = model_of_characters(tmp_path)

    def shoot(*settings):
        command = [sys.executable, 'plot.py', 'screenshot', f'--page={path}', '--start=Hi', '--tokens=20', *settings]
        return subprocess.run(command, capture_output=True, encoding='utf-8', cwd=REPO, timeout=120)

    out = tmp_path / 'x.png'
    assert shoot('--click=5', '--width=500', f'--out={out}').returncode == 0
    image = Image.open(out)
    assert image.size[0] == 500 and len(image.getcolors(256)) > 10
    wrong = shoot('--click=22', f'--out={out}')
    assert wrong.returncode == 2
    assert wrong.stderr == 'error: click=22: the page has 22 tokens; expected a smaller number\n'
