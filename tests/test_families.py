"""families.py, hf.py and gguf_file.py: what we write is what transformers computes, and what we read back."""

import json
import os
import struct
import warnings

import pytest
import torch
from conftest import sha256_of

from gradus import checkpoint, families, gguf_file, hf, pretrained
from gradus.errors import UserError
from gradus.tokenizer import build_tokenizer
from model import GPT, GPTConfig

BYTES = {'kind': 'byte'}
SIZES = dict(block_size=16, vocab_size=261, n_layer=2, n_head=4, n_embd=16)
LLAMA = dict(pos='rotary', norm='rmsnorm', mlp='swiglu', bias=False)
KINDS = {
    'gpt2': dict(mlp='gelu_tanh'),
    'gpt2-plain': dict(mlp='gelu_tanh', bias=False, tie_weights=False, n_inner=20, norm_eps=1e-6, vocab_size=257),
    'llama': dict(LLAMA, n_kv_head=2, rope_theta=50.0, norm_eps=1e-5),
    'llama-bias': dict(LLAMA, n_kv_head=1, bias=True, tie_weights=False, head_dim=6),
    'qwen3': dict(LLAMA, n_kv_head=2, qk_norm=True, tie_weights=False, head_dim=6, n_inner=24),
    'qwen3-tied': dict(LLAMA, qk_norm=True, vocab_size=256, n_head=2),
}
every_kind = pytest.mark.parametrize('kind', KINDS)


def random_model(kind, **changes):
    """A GPT in which every weight is random: a bias of 0 or a norm weight of 1 could hide a mistake."""
    torch.manual_seed(1)
    model = GPT(GPTConfig(**{**SIZES, **KINDS[kind], **changes})).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.3).add_(0.5 if p.dim() == 1 else 0.0)
    return model


def write_hf(model, folder, spec=BYTES):
    os.makedirs(folder, exist_ok=True)
    hf.write_folder(str(folder), model.config, model.state_dict(), spec, build_tokenizer(spec), 'test')
    return str(folder)


def write_gguf(model, path, spec=BYTES, dtype='f32'):
    pytest.importorskip('gguf', reason='the format of llama.cpp: pip install gguf')
    gguf_file.write(str(path), model.config, model.state_dict(), spec, 'test', dtype)
    return str(path)


def read_back(source):
    pytest.importorskip('safetensors', reason='the format of the weights: pip install safetensors')
    return pretrained.load(source)


@torch.no_grad()
def logits_of(model, idx):
    return model(idx, idx)[0]


def some_ids(*shape):
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(1))


def refused(source):
    if os.path.isdir(source):
        pytest.importorskip('safetensors', reason='the format of the weights: pip install safetensors')
    with pytest.raises(UserError) as e:
        pretrained.build(pretrained.load(str(source)))
    assert '\n' not in str(e.value)
    assert str(source) in str(e.value)
    return str(e.value)


# ---------------------------------------------------------------------------- out, and in again

@every_kind
def test_transformers_computes_the_same(kind, tmp_path):
    """Without a warning, the same logits, and the same greedy text."""
    transformers = pytest.importorskip('transformers', reason='the outsider: pip install transformers')
    model = random_model(kind)
    folder = write_hf(model, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert type(theirs).__name__ == families.family_of(model.config, '').hf_class
    idx = some_ids(3, 16)
    with torch.no_grad():
        torch.testing.assert_close(theirs(idx).logits, logits_of(model, idx), atol=1e-4, rtol=1e-4)

    ids = tokenizer('Hé!', return_tensors='pt')['input_ids']
    assert ids[0].tolist() == list('Hé!'.encode())
    greedy = theirs.generate(ids, max_new_tokens=10, do_sample=False)
    assert greedy.tolist() == model.generate(ids, 10, n_vocab=256).tolist()


@every_kind
@pytest.mark.parametrize('format', ['hf', 'gguf', 'safetensors'])
def test_out_and_in_again_is_the_same(kind, format, tmp_path):
    model = random_model(kind)
    if format == 'hf':
        source = write_hf(model, tmp_path)
    elif format == 'gguf':
        source = write_gguf(model, tmp_path / 'm.gguf')
    else:
        source = str(tmp_path / 'm.safetensors')
        hf.write_safetensors(source, families.shapes(model.config), model.state_dict().items(),
                             model_args=checkpoint.model_args(model.config), tokenizer=BYTES)
    found = read_back(source)
    assert found.config == model.config
    assert sha256_of(pretrained.build(found).state_dict()) == sha256_of(model.state_dict())
    assert build_tokenizer(pretrained.find_tokenizer(found)).encode('é\0') == list('é\0'.encode())


def test_one_weight_changes_what_is_read(tmp_path):
    """Negative control of the comparison above."""
    model = random_model('qwen3')
    before = sha256_of(model.state_dict())
    with torch.no_grad():
        model.transformer.h[1].attn.c_attn.weight[-1, -1] += 1
    assert sha256_of(pretrained.build(read_back(write_hf(model, tmp_path))).state_dict()) != before


@pytest.mark.parametrize('dtype, close', [('f16', 5e-3), ('q8_0', 5e-2)])
def test_smaller_types_are_close(dtype, close, tmp_path):
    model = random_model('llama', n_embd=64, n_inner=64)
    read = pretrained.build(read_back(write_gguf(model, tmp_path / 'm.gguf', dtype=dtype)))
    idx = some_ids(2, 16)
    difference = (logits_of(read, idx).log_softmax(-1) - logits_of(model, idx).log_softmax(-1)).abs()
    assert 0 < difference.mean() < close


def test_gguf_is_what_the_package_gguf_reads(tmp_path):
    gguf = pytest.importorskip('gguf', reason='the outsider: pip install gguf')
    model = random_model('gpt2')
    reader = gguf.GGUFReader(write_gguf(model, tmp_path / 'm.gguf'))
    keys, stored = gguf_file.read_header(str(tmp_path / 'm.gguf'))
    assert keys == {key: field.contents() for key, field in reader.fields.items() if not key.startswith('GGUF.')}
    assert {name: tensor.start for name, tensor in stored.items()} == {t.name: t.data_offset for t in reader.tensors}


def test_shards(tmp_path):
    transformers = pytest.importorskip('transformers', reason='it writes shards: pip install transformers')
    model = random_model('llama')
    theirs = transformers.AutoModelForCausalLM.from_pretrained(write_hf(model, tmp_path / 'one'))
    theirs.save_pretrained(tmp_path / 'many', max_shard_size='20KB')
    shards = sorted(tmp_path.glob('many/model-0*.safetensors'))
    assert len(shards) > 2
    read = pretrained.build(read_back(str(tmp_path / 'many')))
    assert sha256_of(read.state_dict()) == sha256_of(model.state_dict())

    shards[1].unlink()
    assert shards[1].name in refused(tmp_path / 'many')


def test_a_tied_head_that_is_stored_nevertheless(tmp_path):
    safetensors = pytest.importorskip('safetensors.torch', reason='it writes the file: pip install safetensors')
    model = random_model('llama')
    path = os.path.join(write_hf(model, tmp_path), 'model.safetensors')
    weights = safetensors.load_file(path)
    weights['lm_head.weight'] = weights['model.embed_tokens.weight'].clone()
    safetensors.save_file(weights, path)
    assert sha256_of(pretrained.build(read_back(str(tmp_path))).state_dict()) == sha256_of(model.state_dict())


@every_kind
def test_shapes_are_those_of_the_model(kind):
    model = random_model(kind, n_layer=3)
    expected = [(name, tensor.shape) for name, tensor in model.state_dict().items()]
    assert list(families.shapes(model.config).items()) == expected


def test_a_model_without_head(tmp_path):
    transformers = pytest.importorskip('transformers', reason='it writes the file: pip install transformers')
    model = random_model('qwen3-tied')
    theirs = transformers.AutoModel.from_pretrained(write_hf(model, tmp_path / 'whole'))
    theirs.save_pretrained(tmp_path / 'base')
    read = pretrained.build(read_back(str(tmp_path / 'base')))
    assert sha256_of(read.state_dict()) == sha256_of(model.state_dict())


def test_integers_are_no_weights(tmp_path):
    safetensors = pytest.importorskip('safetensors.torch', reason='it writes the file: pip install safetensors')
    path = os.path.join(write_hf(random_model('llama'), tmp_path), 'model.safetensors')
    weights = safetensors.load_file(path)
    weights['model.layers.1.mlp.up_proj.weight'] = weights['model.layers.1.mlp.up_proj.weight'].to(torch.int8)
    safetensors.save_file(weights, path)
    assert 'up_proj.weight is of torch.int8; expected floating-point weights' in refused(tmp_path)


def test_half_precision_is_read_as_float32(tmp_path):
    transformers = pytest.importorskip('transformers', reason='it writes bfloat16: pip install transformers')
    model = random_model('qwen3')
    theirs = transformers.AutoModelForCausalLM.from_pretrained(write_hf(model, tmp_path / 'full'))
    theirs.to(torch.bfloat16).save_pretrained(tmp_path / 'half')
    read = pretrained.build(read_back(str(tmp_path / 'half')))
    for name, p in read.state_dict().items():
        assert torch.equal(p, model.state_dict()[name].bfloat16().float())


# ---------------------------------------------------------------------------- what no family has

@pytest.mark.parametrize('changes, message', [
    (dict(norm='rmsnorm'), 'the nearest is gpt2, but for norm=rmsnorm (it has layernorm)'),
    (dict(LLAMA, mlp='gelu'), 'the nearest is llama, but for mlp=gelu (it has swiglu)'),
    (dict(pos='sinusoidal'), 'the nearest is gpt2, but for pos=sinusoidal (it has learned)'),
    (dict(n_kv_head=2), 'the nearest is gpt2, but for n_kv_head=2 (it has 0)'),
    (dict(LLAMA, qk_norm=True, bias=True), 'qk_norm=True (it has False)'),
])
def test_a_shape_that_no_family_has(changes, message):
    with pytest.raises(UserError) as e:
        families.family_of(GPTConfig(**{**SIZES, **changes}), 'out/ckpt.pt')
    assert str(e.value).startswith('out/ckpt.pt: ')
    assert message in str(e.value)


def test_sizes_that_mean_the_same(tmp_path):
    config = GPTConfig(**SIZES, n_kv_head=4, n_inner=64, head_dim=4, norm_eps=1e-5)
    assert families.simplified(config) == GPTConfig(**SIZES)
    assert families.family_of(config, '') is families.GPT2


@pytest.mark.parametrize('changes, message', [
    (dict(rope_scaling={'type': 'linear', 'factor': 2.0}), 'rope_scaling='),
    (dict(rope_parameters={'rope_type': 'llama3', 'rope_theta': 5e5}), 'rope_parameters='),
    (dict(hidden_act='gelu'), "hidden_act='gelu' is not supported"),
    (dict(sliding_window=4096), 'sliding_window=4096 is not supported'),
    (dict(layer_types=['sliding_attention']), 'layer_types='),
    (dict(layer_types=7), 'layer_types=7'),
    (dict(rope_parameters=7), 'rope_parameters=7'),
    (dict(rope_parameters={'type': 'linear', 'factor': 4.0, 'rope_theta': 1e4}), 'rope_parameters='),
    (dict(rope_parameters={'full_attention': {'rope_theta': 7.0}}), 'rope_parameters='),
    (dict(is_causal=False), 'is_causal=False is not supported'),
    (dict(rms_norm_eps=0.0), 'norm_eps=0'),
    (dict(head_dim=0), 'head_dim=0'),
    (dict(num_key_value_heads=0), 'n_kv_head=0'),
    (dict(mlp_bias=True), 'attention_bias=False but mlp_bias=True is not supported'),
    (dict(model_type='mixtral'), "'mixtral'; expected gpt2, llama, qwen3"),
    (dict(quantization_config={'bits': 4}), 'quantization_config='),
    (dict(num_hidden_layers=3), 'no tensor model.layers.2.'),
    (dict(num_hidden_layers=1), "tensor 'model.layers.1."),
    (dict(num_hidden_layers=10 ** 6), '1000000 layers'),
    (dict(num_hidden_layers=10 ** 9), 'n_layer=1000000000'),
    (dict(intermediate_size=32), '_proj.weight is (64, 16), expected (32, 16)'),
    (dict(num_attention_heads=0), 'n_head=0'),
    (dict(hidden_size='16'), "hidden_size is '16' in config.json; expected int"),
    (dict(rms_norm_eps=None, rope_theta='x', rope_parameters=None), "rope_theta is 'x'"),
])
def test_a_config_json_that_we_cannot_be(changes, message, tmp_path):
    folder = write_hf(random_model('llama'), tmp_path)
    path = tmp_path / 'config.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    assert message in refused(folder)


@pytest.mark.parametrize('index', [{}, {'weight_map': 7}, {'weight_map': {'x': '../../etc/passwd'}},
                                   {'weight_map': {'x': 5}}])
def test_a_hostile_index(index, tmp_path):
    write_hf(random_model('llama'), tmp_path)
    (tmp_path / 'model.safetensors').unlink()
    (tmp_path / 'model.safetensors.index.json').write_text(json.dumps(index))
    assert 'weight_map' in refused(tmp_path) or 'names' in refused(tmp_path)


# ---------------------------------------------------------------------------- GGUF files of others

def test_every_cut_of_a_gguf_is_one_line(tmp_path):
    content = open(write_gguf(random_model('llama', n_layer=1), tmp_path / 'm.gguf'), 'rb').read()
    cut = tmp_path / 'cut.gguf'
    for n in [*range(0, 200), *range(200, len(content), 997), len(content) - 33]:
        cut.write_bytes(content[:n])
        refused(cut)


@pytest.mark.parametrize('at', [8, 16, 24])
@pytest.mark.parametrize('number', [2 ** 63, 2 ** 40, 2 ** 64 - 1])
def test_absurd_counts_cost_nothing(at, number, tmp_path):
    """Tensors, keys, and the length of the first key."""
    path = tmp_path / 'm.gguf'
    content = bytearray(open(write_gguf(random_model('llama', n_layer=1), path), 'rb').read())
    content[at:at + 8] = struct.pack('<Q', number)
    path.write_bytes(content)
    assert 'announced' in refused(path)


def rewritten(path, old, new):
    content = path.read_bytes()
    assert content.count(old) >= 1
    path.write_bytes(content.replace(old, new, 1))
    return path


def test_a_gguf_of_something_else(tmp_path):
    path = tmp_path / 'm.gguf'
    write_gguf(random_model('llama', n_layer=1), path)
    key = b'general.architecture' + struct.pack('<IQ', 8, 5)
    assert "general.architecture is 'mamba'" in refused(rewritten(path, key + b'llama', key + b'mamba'))
    path.write_bytes(b'not a gguf file at all')
    assert 'expected GGUF' in refused(path)
    assert 'not found' in refused(tmp_path / 'none.gguf') or 'No such file' in refused(tmp_path / 'none.gguf')


def test_keys_that_we_do_not_have(tmp_path):
    gguf = pytest.importorskip('gguf', reason='it writes the file: pip install gguf')
    out = gguf.GGUFWriter(str(tmp_path / 'm.gguf'), 'llama')
    out.add_uint32('llama.expert_count', 8)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    assert 'llama.expert_count=8 is not supported' in refused(tmp_path / 'm.gguf')


def test_a_tensor_beyond_the_end(tmp_path):
    path = tmp_path / 'm.gguf'
    write_gguf(random_model('llama', n_layer=1), path)
    name = b'token_embd.weight' + struct.pack('<IQ', 2, 16)
    rewritten(path, name + struct.pack('<Q', 261), name + struct.pack('<Q', 2 ** 50))
    assert 'claims' in refused(path)


@pytest.mark.parametrize('dims', [(16, 0), (0, 261), (0, 2 ** 64 - 1)])
def test_a_tensor_without_numbers(dims, tmp_path):
    path = tmp_path / 'm.gguf'
    write_gguf(random_model('llama', tie_weights=False), path)
    rewritten(path, b'token_embd.weight' + struct.pack('<IQQ', 2, 16, 261),
              b'token_embd.weight' + struct.pack('<IQQ', 2, *dims))
    assert "'token_embd.weight' has the shape" in refused(path)


def test_numbers_too_large_give_no_warning(tmp_path):
    path = write_gguf(random_model('llama', n_embd=32), tmp_path / 'm.gguf', dtype='q8_0')
    _, stored = gguf_file.read_header(path)
    with open(path, 'r+b') as f:
        f.seek(stored['token_embd.weight'].start)
        f.write(struct.pack('<e', float('inf')))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert 'NaN or infinity' in refused(path)
