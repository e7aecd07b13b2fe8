"""gradus/onnx_file.py: onnxruntime computes our logits from the file alone."""

import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import REPO, snapshot

from gradus import checkpoint, onnx_file
from gradus.errors import UserError
from gradus.pretrained import Pretrained
from model import GPT, GPTConfig

MODERN = dict(pos='rotary', norm='rmsnorm', mlp='swiglu', qk_norm=True, n_kv_head=2, bias=False, tie_weights=False)
KINDS = {
    'gpt2': dict(),
    'vaswani': dict(pos='sinusoidal', mlp='relu', bias=False),
    'others': dict(mlp='gelu_tanh', norm_eps=1e-3, tie_weights=False, n_inner=20),
    'modern': MODERN,
    'wide-heads': {**MODERN, 'head_dim': 6, 'n_kv_head': 1, 'rope_theta': 500.0, 'bias': True, 'tie_weights': True},
    'shortest': dict(block_size=1),
    'short': dict(MODERN, block_size=2),
}


@pytest.fixture
def onnxruntime():
    """The package, or a skipped test."""
    for name in ('onnx', 'onnxscript'):
        pytest.importorskip(name, reason=f'it writes the file: pip install {name}')
    return pytest.importorskip('onnxruntime', reason='the reference implementation: pip install onnxruntime')


def a_model(**changes):
    """(Pretrained, GPT): a small model in which every weight is random."""
    torch.manual_seed(3)
    config = GPTConfig(**{**dict(block_size=9, vocab_size=23, n_layer=2, n_head=4, n_embd=16), **changes})
    model = GPT(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.4).add_(0.5 if p.dim() == 1 else 0.0)
    return Pretrained('out/ckpt.pt', config, model.state_dict(), {'kind': 'byte'}, 'a model', iter_num=7), model


FAST = ('modern',)


@pytest.mark.parametrize('kind', [pytest.param(k, marks=[] if k in FAST else [pytest.mark.slow]) for k in KINDS])
@pytest.mark.slow
def test_onnxruntime_has_our_logits(kind, onnxruntime, tmp_path):
    found, model = a_model(**KINDS[kind])
    path = str(tmp_path / 'model.onnx')
    onnx_file.write_onnx(path, found)

    session = onnxruntime.InferenceSession(path)
    size = model.config.block_size
    for B, T in ((1, 1), (4, 1), (1, size), (3, size), (2, max(1, size - 1)), (1, min(2, size))):
        idx = torch.randint(23, (B, T))
        logits, = session.run(['logits'], {'input_ids': idx.numpy()})
        with torch.no_grad():
            expected, _ = model(idx, idx)
        assert logits.shape == (B, T, 23)
        torch.testing.assert_close(torch.from_numpy(logits), expected, atol=1e-4, rtol=0)
        assert expected.std() > 0.3                   # or any logits would do

    # one token too many
    onnxruntime.set_default_logger_severity(4)
    with pytest.raises(Exception, match='axis|shape|dim'):
        session.run(['logits'], {'input_ids': torch.zeros(1, size + 1, dtype=torch.int64).numpy()})


COMMAND = """
from gradus import onnx_file, pretrained
onnx_file.write_onnx('model.onnx', pretrained.load('ckpt.pt'))
"""


@pytest.mark.slow
def test_a_command_prints_nothing_and_what_else_is_in_its_file(onnxruntime, tmp_path):
    """Metadata, a tied matrix once, and nothing about this machine."""
    found, model = a_model(vocab_size=5000, n_layer=1)
    args = checkpoint.model_args(found.config)
    torch.save(dict(model=found.weights, model_args=args, tokenizer={'kind': 'byte'}, iter_num=7), tmp_path / 'ckpt.pt')
    env = {**os.environ, 'PYTHONPATH': str(REPO)}
    ran = subprocess.run([sys.executable, '-c', COMMAND], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (ran.stdout, ran.stderr, ran.returncode) == ('', '', 0)
    assert sorted(os.listdir(tmp_path)) == ['ckpt.pt', 'model.onnx']
    path = tmp_path / 'model.onnx'

    metadata = onnxruntime.InferenceSession(str(path)).get_modelmeta().custom_metadata_map
    assert GPTConfig(**json.loads(metadata['model_args'])) == found.config
    assert json.loads(metadata['tokenizer']) == {'kind': 'byte'}
    assert json.loads(metadata['iter_num']) == 7

    content = path.read_bytes()
    n = sum(4 * p.numel() for p in model.parameters())
    assert n < len(content) < 1.3 * n
    for folder in (os.path.dirname(torch.__file__), str(REPO), os.getcwd()):
        assert folder.encode() not in content


@pytest.mark.slow
def test_a_failed_write_leaves_the_old_file(onnxruntime, tmp_path, monkeypatch):
    path = tmp_path / 'model.onnx'
    path.write_bytes(b'old')
    monkeypatch.setattr(os, 'fsync', lambda descriptor: (_ for _ in ()).throw(OSError(28, 'No space left on device')))
    with pytest.raises(UserError, match='could not be written'):
        onnx_file.write_onnx(str(path), a_model()[0])
    assert snapshot(tmp_path) == {'model.onnx': b'old'}


def test_a_model_that_no_onnx_file_can_hold(onnxruntime, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file, 'LIMIT', 10_000)
    with pytest.raises(UserError, match=r'bytes of float32 weights; expected at most 10,000, [^\n]*$'):
        onnx_file.write_onnx(str(tmp_path / 'model.onnx'), a_model()[0])
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize('module', ['onnx_ir', 'onnxscript'])
def test_missing_package_is_named_with_its_command(module, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match='pip install onnx onnxscript'):
        onnx_file.write_onnx(str(tmp_path / 'model.onnx'), a_model()[0])
