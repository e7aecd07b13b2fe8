"""page/engine.js in node against PyTorch: the same logits, with and without a cache, in every dtype."""

import base64
import json
import os
import shutil
import subprocess
from dataclasses import asdict

import pytest
import torch
from test_model import KINDS, random_model

from gradus.inference import Int8Linear, replace_linear
from gradus.sampling import Sampler

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
    """A model as the engine reads it: header and base64 of the weights. int8: the matrices of each Linear."""
    data = b''
    tensors = {}
    for name, tensor in model.state_dict().items():
        entry = dict(dtype='f32', shape=list(tensor.shape), offset=len(data))
        if dtype == 'f16':
            entry['dtype'] = 'f16'
            tensor = tensor.half()
        if dtype == 'int8' and tensor.dim() == 2 and 'transformer.w' not in name:
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
