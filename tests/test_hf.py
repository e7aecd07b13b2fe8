"""hf.py against transformers: its GPT-2 and ours, with the same weights, say the same."""

import json
import os
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import settings, sha256_of

import export
import train
from gradus import checkpoint, hf
from model import GPT

SIZES = dict(n_layer=2, n_head=3, n_embd=12, n_positions=10, vocab_size=17)


def hf_gpt2(folder, **changes):
    """A GPT2LMHeadModel with every weight random, saved to `folder`."""
    transformers = pytest.importorskip('transformers', reason='the outsider to compare with: pip install transformers')
    pytest.importorskip('safetensors', reason='the format of the weights: pip install safetensors')
    torch.manual_seed(3)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**{**SIZES, 'bos_token_id': 0, 'eos_token_id': 0, **changes})).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.4).add_(0.5 if p.dim() == 1 else 0.0)
    model.save_pretrained(folder)
    return model


def config_with(folder, **changes):
    """A folder with our sizes in config.json, and one tensor that is no GPT-2 in model.safetensors."""
    safetensors = pytest.importorskip('safetensors.torch', reason='the format of the weights: pip install safetensors')
    (folder / 'config.json').write_text(json.dumps({'model_type': 'gpt2', **SIZES, **changes}), encoding='utf-8')
    safetensors.save_file({'x': torch.zeros(1)}, folder / 'model.safetensors')
    return str(folder)


def assert_same(theirs, source):
    """Our GPT with the weights in `source` has the logits of `theirs`; returns it."""
    model = GPT.from_state(*hf.load_gpt2(str(source))).eval()
    idx = torch.randint(17, (3, 10), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(model(idx, idx)[0], theirs(idx).logits, atol=1e-4, rtol=1e-4)
    return model


def error_of(source):
    with pytest.raises(hf.InteropError) as e:
        hf.load_gpt2(str(source))
    assert '\n' not in str(e.value) and str(source) in str(e.value)
    return str(e.value)


@pytest.mark.parametrize('changes', [
    dict(activation_function='gelu_new'), dict(activation_function='gelu'), dict(activation_function='gelu_pytorch_tanh'),
    dict(activation_function='relu'), dict(n_inner=20), dict(n_inner=48), dict(tie_word_embeddings=False),
], ids=lambda d: '-'.join(map(str, *d.items())))
def test_logits_are_those_of_transformers(changes, tmp_path):
    assert_same(hf_gpt2(tmp_path, **changes), tmp_path)


def test_config_is_ours(tmp_path):
    hf_gpt2(tmp_path, n_inner=20, tie_word_embeddings=False, activation_function='gelu')
    assert hf.load_gpt2(str(tmp_path))[0] == dict(n_layer=2, n_head=3, n_embd=12, block_size=10, vocab_size=17, bias=True,
                                                       mlp='gelu', n_inner=20, tie_weights=False)


@pytest.mark.parametrize('name, asked', [('gpt2', 'openai-community/gpt2'), ('some/one', 'some/one')])
def test_the_hubs_own_file(name, asked, tmp_path, monkeypatch):
    """It leaves the prefix out and stores the causal mask; `h.0.attn.bias` is one, `h.0.attn.c_attn.bias` is not."""
    theirs = hf_gpt2(tmp_path)
    from safetensors.torch import load_file, save_file
    weights = {n.removeprefix('transformer.'): t for n, t in load_file(tmp_path / 'model.safetensors').items()}
    for i in range(2):
        weights[f'h.{i}.attn.bias'] = torch.ones(10, 10).tril()[None, None]
        weights[f'h.{i}.attn.masked_bias'] = torch.tensor(-1e4)
    save_file(weights, tmp_path / 'model.safetensors')
    calls = []

    def hf_hub_download(repo_id, filename):
        calls.append((repo_id, filename))
        return str(tmp_path / filename)
    monkeypatch.setitem(sys.modules, 'huggingface_hub', SimpleNamespace(hf_hub_download=hf_hub_download))
    assert_same(theirs, name)
    assert calls == [(asked, 'config.json'), (asked, 'model.safetensors')]


def test_tied_weights_stay_one_matrix(tmp_path):
    model = assert_same(hf_gpt2(tmp_path), tmp_path)
    assert model.transformer.wte.weight is model.lm_head.weight
    model = assert_same(hf_gpt2(tmp_path, tie_word_embeddings=False), tmp_path)
    assert not torch.equal(model.transformer.wte.weight, model.lm_head.weight)


@pytest.mark.parametrize('name', ['config.json', 'model.safetensors'])
def test_file_missing(name, tmp_path):
    source = config_with(tmp_path)
    (tmp_path / name).unlink()
    message = error_of(source)
    assert str(tmp_path / name) in message and 'config.json and model.safetensors' in message


@pytest.mark.parametrize('name', ['config.json', 'model.safetensors'])
@pytest.mark.parametrize('damage', [lambda b: b[:len(b) // 2], lambda b: b'\xff' * len(b), lambda b: b''], ids=['cut', 'noise', 'empty'])
def test_file_damaged(name, damage, tmp_path):
    source = config_with(tmp_path)
    (tmp_path / name).write_bytes(damage((tmp_path / name).read_bytes()))
    assert 'cannot be read' in error_of(source)


@pytest.mark.parametrize('changes, named', [
    (dict(model_type='llama'), 'llama; expected gpt2'),
    (dict(activation_function='silu'), 'activation_function=silu'),
    (dict(layer_norm_epsilon=1e-6), 'layer_norm_epsilon=1e-06'),
    (dict(scale_attn_by_inverse_layer_idx=True), 'scale_attn_by_inverse_layer_idx=True'),
    (dict(scale_attn_weights=False), 'scale_attn_weights=False'),
])
def test_other_architecture(changes, named, tmp_path):
    assert named in error_of(config_with(tmp_path, **changes))


def test_config_without_a_size(tmp_path):
    source = config_with(tmp_path)
    (tmp_path / 'config.json').write_text('{"model_type": "gpt2", "n_layer": 2}', encoding='utf-8')
    assert 'n_head' in error_of(source)


def test_weights_of_something_else(tmp_path):
    with pytest.raises(ValueError, match='transformer.wte.weight') as e:
        GPT.from_state(*hf.load_gpt2(config_with(tmp_path)))
    assert '\n' not in str(e.value)


def test_hub_out_of_reach(monkeypatch):
    pytest.importorskip('safetensors', reason='the format of the weights: pip install safetensors')
    hub = pytest.importorskip('huggingface_hub', reason='what downloads: pip install huggingface_hub')

    def hf_hub_download(*args, **kwargs):
        raise OSError('no network\nand a second line')
    monkeypatch.setattr(hub, 'hf_hub_download', hf_hub_download)
    assert 'could not be downloaded (OSError); give a folder' in error_of('gpt2-xl')


@pytest.mark.parametrize('module, command', [
    ('safetensors.torch', 'pip install safetensors huggingface_hub'), ('huggingface_hub', 'pip install huggingface_hub')])
def test_missing_package_is_named_with_its_command(module, command, monkeypatch):
    if module == 'huggingface_hub':
        pytest.importorskip('safetensors', reason='the format of the weights: pip install safetensors')
    monkeypatch.setitem(sys.modules, module, None)
    assert command in error_of('gpt2')


@pytest.mark.parametrize('tied', [True, False])
def test_weights_to_share_are_those_of_the_run(place, tied, capsys):
    safetensors = pytest.importorskip('safetensors', reason='the format of the weights: pip install safetensors')
    train.main(settings(max_iters=2, tie_weights=tied))
    export.main(export.ExportConfig())
    assert sorted(os.listdir('out')) == sorted(['ckpt.pt', 'log.jsonl', 'model.safetensors'] + ['best.pt'] * os.path.exists('out/best.pt'))
    state = checkpoint.load('out/best.pt' if os.path.exists('out/best.pt') else 'out/ckpt.pt')
    with safetensors.safe_open('out/model.safetensors', 'pt') as f:
        assert sha256_of({name: f.get_tensor(name) for name in f.keys()}) == sha256_of(state['model'])
        assert json.loads(f.metadata()['model_args']) == state['model_args'] and json.loads(f.metadata()['tokenizer']) == state['tokenizer']
    with pytest.raises(hf.InteropError, match='^no/such/folder/x: could not be written [^\n]*$'):
        export.main(export.ExportConfig(file='no/such/folder/x'))


def test_export_without_safetensors(place, monkeypatch):
    train.main(settings(max_iters=1))
    monkeypatch.setitem(sys.modules, 'safetensors.torch', None)
    with pytest.raises(hf.InteropError, match='pip install safetensors'):
        export.main(export.ExportConfig())
