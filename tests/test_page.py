"""page/engine.js in node against PyTorch: the same logits, with and without a cache, in every dtype."""

import base64
import json
import os
import re
import shutil
import subprocess
from dataclasses import asdict

import pytest
import torch
from conftest import flags_of, run_main
from test_model import KINDS, random_model

import export
import train
from gradus import page, pretrained
from gradus.errors import UserError
from gradus.families import Weights
from gradus.inference import Int8Linear, replace_linear
from gradus.sampling import Sampler
from gradus.tokenizer import build_tokenizer
from model import GPT, GPTConfig

ENGINE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'page', 'engine.js')
IDS = [3, 1, 4, 1, 5, 9, 2, 6, 5]
SCRIPT = """
const {GPT, KVCache, Sampler, generate} = require(process.argv[1]);
const {models, ids} = JSON.parse(require('fs').readFileSync(0, 'utf-8'));
const results = {};
for (const [name, {header, data}] of Object.entries(models)) {
  const model = new GPT(header, Uint8Array.from(Buffer.from(data, 'base64')).buffer);
  const result = {all: Array.from(model.forward(ids, null, {all: true}))};
  if (header.config.mask === 'causal') {              // in three pieces: 4 tokens, 1, the rest
    const cache = new KVCache(header.config);
    result.cached = [[0, 4], [4, 5], [5, ids.length]].flatMap(
      ([from, to]) => Array.from(model.forward(ids.slice(from, to), cache, {all: true})));
  }
  const steps = generate(model, ids, new Sampler({temperature: 0}));
  results[name] = {logits: result, tokens: Array.from({length: 50}, () => steps.next().value)};
}
console.log(JSON.stringify(results));
"""


def pack(model, dtype):
    """A model as the engine reads it: header and base64 of the weights. int8: the matrices of each Linear,
    and the embedding that is one of them."""
    data = b''
    tensors = {}
    for name, tensor in model.state_dict().items():
        entry = dict(dtype='f32', shape=list(tensor.shape), offset=len(data))
        if dtype == 'f16':
            entry['dtype'] = 'f16'
            tensor = tensor.half()
        whole = ('wpe',) if model.config.tie_weights else ('wpe', 'wte')
        if dtype == 'int8' and tensor.dim() == 2 and not any(part in name for part in whole):
            linear = torch.nn.Linear(tensor.size(1), tensor.size(0), bias=False)
            linear.weight.data = tensor
            quantized = Int8Linear(linear)
            entry.update(dtype='int8', offset=len(data) + 4 * len(tensor), scales=len(data))
            data += quantized.scale.numpy().tobytes()
            tensor = quantized.weight
        data += tensor.numpy().tobytes()
        data += bytes(-len(data) % 4)
        tensors[name] = entry
    return dict(header=dict(config=asdict(model.config), tensors=tensors), data=base64.b64encode(data).decode())


def node_path():
    node = shutil.which('node')
    if node is None:
        pytest.skip('node is not installed')
    return node


def run_node(models):
    done = subprocess.run([node_path(), '-e', SCRIPT, ENGINE], input=json.dumps(dict(models=models, ids=IDS)),
                          capture_output=True, encoding='utf-8', timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@torch.no_grad()
def expected(model):
    idx = torch.tensor([IDS])
    return model(idx, idx)[0].flatten()


def test_logits_are_those_of_pytorch():
    models = {kind: random_model(kind).float() for kind in KINDS}
    results = run_node({kind: pack(model, 'f32') for kind, model in models.items()})
    for kind, model in models.items():
        for logits in results[kind]['logits'].values():
            torch.testing.assert_close(torch.tensor(logits), expected(model), atol=1e-4, rtol=1e-4, msg=kind)
        tokens = model.generate(torch.tensor([IDS]), 50)[0, len(IDS):].tolist()   # beyond block_size = 16
        assert results[kind]['tokens'] == tokens, kind
    # The comparison can fail: another kind's logits are not these.
    assert not torch.allclose(torch.tensor(results['gpt2']['logits']['all']), expected(models['rotary']), atol=1e-1)


@pytest.mark.parametrize('dtype', ['f16', 'int8'])
def test_smaller_dtypes_compute_what_pytorch_does(dtype):
    models = {kind: random_model(kind).float() for kind in ('gpt2', 'modern', 'rotary')}
    results = run_node({kind: pack(model, dtype) for kind, model in models.items()})
    for kind, model in models.items():
        exact = expected(model)
        model = replace_linear(model, Int8Linear) if dtype == 'int8' else model.half().float()
        got = torch.tensor(results[kind]['logits']['all'])
        torch.testing.assert_close(got, expected(model), atol=1e-3, rtol=1e-3, msg=kind)
        assert not torch.allclose(got, exact, atol=1e-5)      # the dtype does make a difference


def test_sampler_has_the_distribution_of_python():
    settings = [(1.0, 0, 1.0), (0.7, 5, 1.0), (1.5, 0, 0.6), (0.8, 3, 0.5), (1.0, 0, 0.0), (1.0, 2, 1.0)]
    logits = [0.5, 2.0, -1.0, 2.0, 0.0, 1.0, 1.0, -3.0]       # with ties
    script = """
    const {Sampler} = require(process.argv[1]);
    const {settings, logits} = JSON.parse(require('fs').readFileSync(0, 'utf-8'));
    console.log(JSON.stringify(settings.map(([temperature, topK, topP]) =>
      Array.from(new Sampler({temperature, topK, topP}).distribution(Float32Array.from(logits))))));
    """
    done = subprocess.run([node_path(), '-e', script, ENGINE], encoding='utf-8', capture_output=True, timeout=60,
                          input=json.dumps(dict(settings=settings, logits=logits)))
    assert done.returncode == 0, done.stderr
    for (temperature, k, p), got in zip(settings, json.loads(done.stdout), strict=True):
        probs = Sampler(temperature, k, p).distribution(torch.tensor([logits], dtype=torch.float64))[0]
        torch.testing.assert_close(torch.tensor(got, dtype=torch.float64), probs, atol=1e-9, rtol=0)
    assert got != json.loads(done.stdout)[0]                  # settings do make a difference


# ---------------------------------------------------------------------------- whole pages

PAGE_SCRIPT = """
const fs = require('fs');
const [folder, path, prompt, n] = process.argv.slice(1);
const {GPT, Sampler, generate} = require(folder + '/engine.js');
const {makeTokenizer} = require(folder + '/tokenizer.js');
const html = fs.readFileSync(path, 'utf-8');
const header = JSON.parse(/<script type="application\\/json" id="header">(.*?)<\\/script>/s.exec(html)[1]);
const pieces = Array.from(html.matchAll(/class="weights">(.*?)<\\/script>/gs), (m) => Buffer.from(m[1], 'base64'));
const bytes = Buffer.concat(pieces);
const buffer = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length);
const tokenizer = makeTokenizer(header.tokenizer);
const ids = tokenizer.prompt(tokenizer.encode(prompt));
const all = header.models.map(({tensors}) => {
  const model = new GPT({config: header.config, tensors}, buffer);
  const steps = generate(model, ids, new Sampler({temperature: 0}), tokenizer.nVocab);
  return Array.from({length: Number(n)}, () => steps.next().value);
});
console.log(JSON.stringify({tokens: all[all.length - 1], all, size: bytes.length, header}));
"""
BYTES = dict(block_size=64, vocab_size=256, n_layer=2, n_head=4, n_embd=32)


def written(tmp_path, dtype='f32', name='page.html', tokenizer=None, **config):
    """A model of random weights, and the path of its page."""
    torch.manual_seed(3)
    model = GPT(GPTConfig(**{**BYTES, **config})).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    spec = tokenizer or {'kind': 'byte'}
    found = pretrained.Pretrained('out/ckpt.pt', model.config, Weights(model.config, {
        name: (lambda tensor=tensor: tensor) for name, tensor in model.state_dict().items()}, 'out/ckpt.pt'),
        tokenizer=spec, about='out/ckpt.pt: iteration 5, best val loss 1.2')
    path = tmp_path / name
    page.write_gpt(str(path), found, build_tokenizer(spec), dtype)
    return model, path


def opened(path, prompt='Hi', n=20):
    done = subprocess.run([node_path(), '-e', PAGE_SCRIPT, os.path.dirname(ENGINE), str(path), prompt, str(n)],
                          capture_output=True, encoding='utf-8', timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize('config', [
    dict(),
    dict(pos='rotary', norm='rmsnorm', mlp='swiglu', n_kv_head=2, bias=False),
    dict(pos='rotary', norm='rmsnorm', mlp='swiglu', qk_norm=True, bias=False, tie_weights=False, head_dim=16),
], ids=['gpt2', 'llama', 'qwen3'])
def test_a_page_writes_what_sample_py_writes(config, tmp_path):
    """200 greedy tokens, which is three contexts."""
    model, path = written(tmp_path, **config)
    found = opened(path, n=200)
    prompt = torch.tensor([list(b'Hi')])
    assert found['tokens'] == model.generate(prompt, 200)[0, 2:].tolist()
    assert len(set(found['tokens'])) > 1              # not one token again and again
    assert found['header']['about'].startswith('iteration 5, best val loss 1.2, 0.0')


@pytest.mark.parametrize('tie_weights', [True, False])
def test_int8_is_our_int8(tie_weights, tmp_path):
    model, path = written(tmp_path, dtype='int8', tie_weights=tie_weights, pos='rotary', n_layer=4)
    exact = model.generate(torch.tensor([list(b'Hi')]), 200)[0, 2:].tolist()
    int8 = replace_linear(model, Int8Linear).generate(torch.tensor([list(b'Hi')]), 200)[0, 2:].tolist()
    assert opened(path, n=200)['tokens'] == int8
    assert int8 != exact


@pytest.mark.parametrize('dtype, bytes_each', [('f32', 4), ('f16', 2), ('int8', 1)])
def test_a_page_is_little_more_than_its_weights(dtype, bytes_each, tmp_path):
    model, path = written(tmp_path, dtype=dtype, n_embd=256, n_layer=4)
    code = sum(os.path.getsize(os.path.join(os.path.dirname(ENGINE), name)) for name in
               ('engine.js', 'tokenizer.js', 'worker.js', 'gpt.js', 'gpt.html', 'style.css'))
    assert path.stat().st_size - code < 1.4 * bytes_each * model.num_params()


def test_large_tensors_lie_in_several_elements(tmp_path, monkeypatch):
    monkeypatch.setattr(page, 'PIECE', 1200)
    model, path = written(tmp_path)
    assert path.read_text(encoding='utf-8').count('class="weights"') > 50
    assert opened(path)['tokens'] == model.generate(torch.tensor([list(b'Hi')]), 20)[0, 2:].tolist()


def test_texts_of_a_model_stay_texts(tmp_path):
    """A title and characters that would be HTML or a script elsewhere."""
    chars = [*'<script>"onerror=/&', '\u2028', '\u2029', *"abdefghjklm'x"]
    spec = {'kind': 'char', 'chars': list(dict.fromkeys(chars))}
    folder = tmp_path / '<script>alert(1)<'
    folder.mkdir()
    _, path = written(tmp_path, name=f'{folder.name}/page.html', tokenizer=spec, vocab_size=len(spec['chars']))
    html = path.read_text(encoding='utf-8')
    assert len(re.findall('<script', html)) == 3 + html.count('class="weights"')    # header, engine, page
    assert '\u2028' not in html and '\u2029' not in html
    assert opened(path, prompt='<script>')['header']['tokenizer']['chars'] == spec['chars']


def test_a_page_loads_nothing(tmp_path):
    _, path = written(tmp_path)
    html = path.read_text(encoding='utf-8')
    assert "default-src 'none'" in html
    assert not re.findall(r'(?:src|href)\s*=|https?:|import\s*\(|fetch\s*\(|XMLHttpRequest', html.split('<body>')[1])


def test_a_model_that_is_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(page, 'LIMIT', 1000)
    with pytest.raises(UserError, match='expected at most 750 in a page; use --dtype=int8, or --to=gguf'):
        written(tmp_path)
    assert os.listdir(tmp_path) == []


def test_export_writes_a_page(place):
    assert run_main(train, *flags_of(max_iters=2, eval_iters=1)).returncode == 0
    done = run_main(export, '--out_dir=out', '--to=html', '--dtype=f16')
    assert done.returncode == 0, done.stderr
    tokens = opened('out/model.html', prompt='a')['tokens']
    assert all(0 <= token < 10 for token in tokens)
    again = run_main(export, '--out_dir=out', '--to=html')
    assert (again.returncode, again.stderr) == (2, 'error: out/model.html: exists; give another --dest, or --force to '
                                                   'replace it\n')
    wrong = run_main(export, '--out_dir=out', '--to=html', '--dtype=q8_0')
    assert wrong.stderr.startswith('error: dtype=')


def test_a_page_has_the_models_of_earlier_iterations(place):
    """What train.py --keep_interval kept, in the order of the iterations, and each writes its own text."""
    assert run_main(train, *flags_of(max_iters=12, keep_interval=5, eval_iters=1)).returncode == 0
    assert run_main(export, '--out_dir=out', '--to=html', '--checkpoint=ckpt.pt').returncode == 0
    found = opened('out/model.html', prompt='a', n=30)
    assert [model['name'] for model in found['header']['models']] == [f'iteration {i}' for i in (0, 5, 10, 12)]
    for name, tokens in zip(('step-000000.pt', 'step-000005.pt', 'step-000010.pt', 'ckpt.pt'), found['all']):
        pretrained_model = pretrained.load_checkpoint(f'out/{name}')
        model = pretrained.build(pretrained_model).eval()
        start = pretrained.tokenizer_for(pretrained_model).encode('a')
        assert tokens == model.generate(torch.tensor([start]), 30)[0, 1:].tolist()
    assert found['all'][0] != found['all'][-1]
