"""gradus/hf.py and export.py: our GPT-2 and that of transformers, with the same weights, give the same logits."""

import json
import os
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import settings, sha256_of

import export
import train
from gradus import checkpoint, hf, pretrained
from gradus.errors import UserError
from model import GPTConfig

SIZES = dict(n_layer=2, n_head=3, n_embd=12, n_positions=10, vocab_size=17)


def need_safetensors():
    """Skip the test unless the package is installed; return it."""
    return pytest.importorskip('safetensors', reason='the format of the weights: pip install safetensors')


def hf_gpt2(folder, **changes):
    """A GPT2LMHeadModel in which every weight is random, saved to `folder`."""
    transformers = pytest.importorskip('transformers', reason='the reference implementation: pip install transformers')
    need_safetensors()
    torch.manual_seed(3)
    config = transformers.GPT2Config(**{**SIZES, 'bos_token_id': 0, 'eos_token_id': 0, **changes})
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.4).add_(0.5 if p.dim() == 1 else 0.0)
    model.save_pretrained(folder)
    return model


def config_with(folder, **changes):
    """A folder with a valid config.json, and with a model.safetensors whose only tensor is not one of GPT-2's."""
    need_safetensors()
    from safetensors.torch import save_file
    config = {'model_type': 'gpt2', **SIZES, **changes}
    (folder / 'config.json').write_text(json.dumps(config), encoding='utf-8')
    save_file({'x': torch.zeros(1)}, folder / 'model.safetensors')
    return str(folder)


def assert_same(theirs, source):
    """Check that our GPT with the weights in `source` has the logits of `theirs`; return it."""
    model = pretrained.build(pretrained.load(str(source))).eval()
    idx = torch.randint(17, (3, 10), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(model(idx, idx)[0], theirs(idx).logits, atol=1e-4, rtol=1e-4)
    return model


def error_of(source):
    """The message with which `source` is refused: one line that names it."""
    with pytest.raises(UserError) as e:
        hf.load(str(source))
    message = str(e.value)
    assert '\n' not in message
    assert str(source) in message
    return message


# ---------------------------------------------------------------------------- reading GPT-2

@pytest.mark.parametrize('changes', [
    dict(activation_function='gelu_new'),
    dict(activation_function='gelu'),
    dict(activation_function='gelu_pytorch_tanh'),
    dict(activation_function='relu'),
    dict(n_inner=20),
    dict(n_inner=48),
    dict(tie_word_embeddings=False),
], ids=lambda d: '-'.join(map(str, *d.items())))
def test_logits_are_those_of_transformers(changes, tmp_path):
    assert_same(hf_gpt2(tmp_path, **changes), tmp_path)


def test_config_is_ours(tmp_path):
    hf_gpt2(tmp_path, n_inner=20, tie_word_embeddings=False, activation_function='gelu')
    assert pretrained.load(str(tmp_path)).config == GPTConfig(
        n_layer=2,
        n_head=3,
        n_embd=12,
        block_size=10,
        vocab_size=17,
        bias=True,
        mlp='gelu',
        n_inner=20,
        tie_weights=False,
    )


@pytest.mark.parametrize('name, asked', [('gpt2', 'openai-community/gpt2'), ('some/one', 'some/one')])
def test_the_hubs_own_file(name, asked, tmp_path, monkeypatch):
    """
    The file on the Hub has no prefix and stores the causal masks: `h.0.attn.bias` is one of them,
    `h.0.attn.c_attn.bias` is a weight.
    """
    theirs = hf_gpt2(tmp_path)

    # rewrite the file in the Hub's form
    from safetensors.torch import load_file, save_file
    weights = {n.removeprefix('transformer.'): t for n, t in load_file(tmp_path / 'model.safetensors').items()}
    for i in range(2):
        weights[f'h.{i}.attn.bias'] = torch.ones(10, 10).tril()[None, None]
        weights[f'h.{i}.attn.masked_bias'] = torch.tensor(-1e4)
    save_file(weights, tmp_path / 'model.safetensors')

    # stand in for the download
    calls = []

    def hf_hub_download(repo_id, filename):
        calls.append((repo_id, filename))
        return str(tmp_path / filename)

    monkeypatch.setitem(sys.modules, 'huggingface_hub', SimpleNamespace(hf_hub_download=hf_hub_download))

    assert_same(theirs, name)
    assert calls == [(asked, 'config.json'), (asked, 'model.safetensors'), (asked, 'tokenizer.json')]


def test_shards_on_the_hub(tmp_path, monkeypatch):
    """A model of several shards has no model.safetensors, which the Hub tells by an error of its own."""
    errors = pytest.importorskip('huggingface_hub.errors', reason='its errors: pip install huggingface_hub')
    theirs = hf_gpt2(tmp_path)
    theirs.save_pretrained(tmp_path / 'many', max_shard_size='5KB')
    assert not (tmp_path / 'many' / 'model.safetensors').exists()

    class Absent(errors.EntryNotFoundError):
        def __init__(self):
            pass

    def hf_hub_download(repo_id, filename):
        if not (tmp_path / 'many' / filename).exists():
            raise Absent
        return str(tmp_path / 'many' / filename)

    monkeypatch.setitem(sys.modules, 'huggingface_hub', SimpleNamespace(hf_hub_download=hf_hub_download))
    assert_same(theirs, 'some/one')


def test_tied_weights_stay_one_matrix(tmp_path):
    model = assert_same(hf_gpt2(tmp_path), tmp_path)
    assert model.transformer.wte.weight is model.lm_head.weight

    model = assert_same(hf_gpt2(tmp_path, tie_word_embeddings=False), tmp_path)
    assert not torch.equal(model.transformer.wte.weight, model.lm_head.weight)


# ---------------------------------------------------------------------------- files that cannot be read

@pytest.mark.parametrize('name', ['config.json', 'model.safetensors'])
def test_file_missing(name, tmp_path):
    source = config_with(tmp_path)
    (tmp_path / name).unlink()
    message = error_of(source)
    assert str(tmp_path / name) in message
    assert 'config.json and model.safetensors' in message


DAMAGES = dict(
    cut=lambda content: content[:len(content) // 2],
    noise=lambda content: b'\xff' * len(content),
    empty=lambda content: b'',
)


@pytest.mark.parametrize('name', ['config.json', 'model.safetensors'])
@pytest.mark.parametrize('damage', DAMAGES.values(), ids=DAMAGES.keys())
def test_file_damaged(name, damage, tmp_path):
    source = config_with(tmp_path)
    path = tmp_path / name
    path.write_bytes(damage(path.read_bytes()))
    assert 'cannot be read' in error_of(source)


@pytest.mark.parametrize('changes, named', [
    (dict(model_type='mamba'), "'mamba'; expected gpt2, llama, qwen3"),
    (dict(activation_function='silu'), "activation_function='silu'"),
    (dict(scale_attn_by_inverse_layer_idx=True), 'scale_attn_by_inverse_layer_idx=True'),
    (dict(scale_attn_weights=False), 'scale_attn_weights=False'),
])
def test_other_architecture(changes, named, tmp_path):
    assert named in error_of(config_with(tmp_path, **changes))


def test_two_names_for_one_tensor(tmp_path):
    """With and without the prefix: which of them would be the model's?"""
    source = config_with(tmp_path)
    from safetensors.torch import save_file
    tensor = torch.zeros(1)
    save_file({'wte.weight': tensor, 'transformer.wte.weight': tensor + 1}, tmp_path / 'model.safetensors')
    assert "two tensors are called 'transformer.wte.weight'" in error_of(source)


def test_a_byte_order_mark_before_config_json(tmp_path):
    theirs = hf_gpt2(tmp_path)
    path = tmp_path / 'config.json'
    path.write_bytes(b'\xef\xbb\xbf' + path.read_bytes())
    assert_same(theirs, tmp_path)


def test_config_without_a_size(tmp_path):
    source = config_with(tmp_path)
    (tmp_path / 'config.json').write_text('{"model_type": "gpt2", "n_layer": 2}', encoding='utf-8')
    assert 'n_embd is None' in error_of(source)


def test_weights_of_something_else(tmp_path):
    assert 'no tensor transformer.h.0.attn.c_attn.bias' in error_of(config_with(tmp_path))


def test_hub_out_of_reach(monkeypatch):
    need_safetensors()
    hub = pytest.importorskip('huggingface_hub', reason='it downloads from the Hub: pip install huggingface_hub')

    def hf_hub_download(*args, **kwargs):
        raise OSError('no network\nand a second line')

    monkeypatch.setattr(hub, 'hf_hub_download', hf_hub_download)
    assert 'could not be downloaded (OSError); give a folder' in error_of('gpt2-xl')


@pytest.mark.parametrize('module, command', [
    ('safetensors', 'pip install safetensors huggingface_hub'),
    ('huggingface_hub', 'pip install huggingface_hub'),
])
def test_missing_package_is_named_with_its_command(module, command, monkeypatch):
    if module == 'huggingface_hub':
        need_safetensors()
    monkeypatch.setitem(sys.modules, module, None)
    assert command in error_of('gpt2')


# ---------------------------------------------------------------------------- export.py

@pytest.mark.parametrize('tied', [True, False])
def test_exported_weights_are_those_of_the_run(place, tied, capsys):
    safetensors = need_safetensors()
    train.main(settings(max_iters=2, tie_weights=tied))
    export.main(export.ExportConfig())

    files = ['ckpt.pt', 'log.jsonl', 'model.safetensors']
    source = 'out/ckpt.pt'
    if os.path.exists('out/best.pt'):
        files.append('best.pt')
        source = 'out/best.pt'
    assert sorted(os.listdir('out')) == sorted(files)

    state = checkpoint.load(source)
    with safetensors.safe_open('out/model.safetensors', 'pt') as f:
        assert sha256_of({name: f.get_tensor(name) for name in f.keys()}) == sha256_of(state['model'])
        assert json.loads(f.metadata()['model_args']) == state['model_args']
        assert json.loads(f.metadata()['tokenizer']) == state['tokenizer']

    with pytest.raises(UserError, match='^no/such/folder/x: could not be written [^\n]*$'):
        export.main(export.ExportConfig(dest='no/such/folder/x'))


def test_the_packages_that_a_format_needs(place, monkeypatch):
    """safetensors are written without one. To read them, or to write GGUF or ONNX, one must be installed."""
    train.main(settings(max_iters=1))
    for module in ('safetensors', 'gguf', 'onnxscript'):
        monkeypatch.setitem(sys.modules, module, None)
    export.main(export.ExportConfig())
    with pytest.raises(UserError, match='pip install safetensors'):
        pretrained.load('out/model.safetensors')
    with pytest.raises(UserError, match='pip install gguf'):
        export.main(export.ExportConfig(to='gguf'))
    with pytest.raises(UserError, match='pip install onnx onnxscript'):
        export.main(export.ExportConfig(to='onnx'))
    assert not [name for name in os.listdir('out') if 'gguf' in name or 'onnx' in name or 'tmp' in name]
