"""model.py against independent references: plain Python loops, transformers, torch's flop counter, hand counts."""

import math
import warnings

import pytest
import torch
from reference_gpt import reference_logits, wave
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from gradus import accounting
from gradus.sampling import Sampler
from model import GPT, GPTConfig, KVCache, attention_weights, sinusoidal

TINY = dict(block_size=16, vocab_size=11, n_layer=2, n_head=4, n_embd=16)
KINDS = {
    'gpt2': {},
    'openai': dict(mlp='gelu_tanh', bias=False, tie_weights=False),
    'vaswani': dict(pos='sinusoidal', mlp='relu', n_embd=15, n_head=3, tie_weights=False),
    'mixed': dict(norm='rmsnorm', qk_norm=True, n_kv_head=2, n_inner=20),
    'rotary': dict(pos='rotary', mlp='swiglu', n_kv_head=1),
    'modern': dict(pos='rotary', norm='rmsnorm', mlp='swiglu', qk_norm=True, n_kv_head=2, bias=False,
                   tie_weights=False, rope_theta=50.0, n_inner=24),
    # What if?
    'squared': dict(score='squared', n_kv_head=2),
    'reversed': dict(score='reversed', pos='none', mlp='sigmoid'),
    'unscaled': dict(score='unscaled', residual=False),
    'no norm': dict(norm='none'),
    'other half': dict(mask='other_half'),
    'no mask': dict(mask='none', pos='rotary'),
}
every_kind = pytest.mark.parametrize('kind', KINDS)
causal_kinds = pytest.mark.parametrize('kind', [kind for kind in KINDS if 'mask' not in KINDS[kind]])


@pytest.fixture(autouse=True, scope='module')
def one_thread():
    """With matrices this small, threads only wait for each other, and on a busy machine they wait for minutes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def random_model(kind='gpt2', **changes):
    """A GPT in float64 with every weight random: a bias of 0 or a norm weight of 1 could hide a mistake."""
    torch.manual_seed(7)
    model = GPT(GPTConfig(**{**TINY, **KINDS[kind], **changes})).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.4).add_(0.5 if p.dim() == 1 else 0.0)
    return model


def some_ids(*shape, seed=1):
    return torch.randint(TINY['vocab_size'], shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def all_logits(model, idx):
    return model(idx, idx)[0]


@pytest.mark.parametrize('groups', [1, 2, 4])
def test_attention_weights_are_those_of_torch(groups):
    q, k, v = (torch.randn(2, heads, 9, 8, generator=torch.Generator().manual_seed(heads)) for heads in (4, groups, 1))
    weights = attention_weights(q, k)
    values = v.expand(-1, groups, -1, -1)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, values, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(weights @ v, expected)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 4, 9))
    assert not weights.triu(1).any()

    last = attention_weights(q[:, :, -2:], k)         # the queries of the last two tokens only
    torch.testing.assert_close(last, weights[:, :, -2:])


@every_kind
def test_forward_matches_the_plain_loops(kind):
    model, idx, targets = random_model(kind), some_ids(2, 9), some_ids(2, 9, seed=2)
    targets[0, 3] = targets[1, 0] = -1                # ignored by the loss

    logits, loss = model(idx, targets)

    expected = torch.stack([reference_logits(model, row.tolist()) for row in idx])
    torch.testing.assert_close(logits, expected, atol=1e-6, rtol=1e-6)
    nats = []
    for row, target in zip(expected.flatten(0, 1), targets.flatten()):
        if target != -1:
            nats.append(math.log(sum(math.exp(a) for a in row)) - row[target])
    assert loss.item() == pytest.approx(float(sum(nats)) / 16, abs=1e-6)


@pytest.mark.parametrize('width', [6, 7])
def test_sinusoidal_table(width):
    expected = torch.tensor([[wave(pos, j, width) for j in range(width)] for pos in range(50)])
    torch.testing.assert_close(sinusoidal(50, width), expected, atol=1e-5, rtol=0)


def in_transformers_names(model):
    """The weights of a modern model under the names that transformers gives them."""
    ours = model.state_dict()
    theirs = {
        'lm_head.weight': ours['lm_head.weight'],
        'model.norm.weight': ours['transformer.ln_f.weight'],
        'model.embed_tokens.weight': ours['transformer.wte.weight'],
    }
    names = {
        'self_attn.o_proj': 'attn.c_proj', 'input_layernorm': 'ln_1', 'post_attention_layernorm': 'ln_2',
        'mlp.gate_proj': 'mlp.c_gate', 'mlp.up_proj': 'mlp.c_fc', 'mlp.down_proj': 'mlp.c_proj',
    }
    if model.config.qk_norm:
        names.update({'self_attn.q_norm': 'attn.q_norm', 'self_attn.k_norm': 'attn.k_norm'})
    for i in range(model.config.n_layer):
        for name, our_name in names.items():
            theirs[f'model.layers.{i}.{name}.weight'] = ours[f'transformer.h.{i}.{our_name}.weight']
        qkv = ours[f'transformer.h.{i}.attn.c_attn.weight']
        for kind, rows in zip('qkv', (qkv[:16], qkv[16:24], qkv[24:32])):
            theirs[f'model.layers.{i}.self_attn.{kind}_proj.weight'] = rows
    return theirs


@pytest.mark.parametrize('family, qk_norm', [('Qwen3', True), ('Llama', False)])
def test_modern_block_matches_transformers(family, qk_norm):
    hf = pytest.importorskip('transformers', reason='the reference to compare with: pip install transformers')
    model = random_model('modern', qk_norm=qk_norm).float()
    c = model.config
    config = getattr(hf, family + 'Config')(
        vocab_size=c.vocab_size, hidden_size=c.n_embd, intermediate_size=c.n_inner, num_hidden_layers=c.n_layer,
        num_attention_heads=c.n_head, num_key_value_heads=c.n_kv_head, head_dim=c.n_embd // c.n_head,
        rms_norm_eps=1e-6, rope_theta=c.rope_theta, tie_word_embeddings=False, attention_bias=False)
    other = getattr(hf, family + 'ForCausalLM')(config).eval()
    other.load_state_dict(in_transformers_names(model))

    idx = some_ids(3, 16)
    with torch.no_grad():
        torch.testing.assert_close(all_logits(model, idx), other(idx).logits, atol=1e-4, rtol=1e-4)


def test_autocast_normalizes_queries_in_full_precision():
    model, idx = random_model('modern').float(), some_ids(2, 9)
    seen = []
    model.transformer.h[0].attn.q_norm.register_forward_hook(lambda module, args, out: seen.append(args[0].dtype))

    with warnings.catch_warnings(), torch.autocast('cpu', torch.bfloat16):
        warnings.simplefilter('error')                # torch warns if weights and input differ in dtype
        model(idx, idx)[1].backward()

    assert seen == [torch.float32]


@causal_kinds
def test_no_token_sees_what_comes_after_it(kind):
    model, idx = random_model(kind), some_ids(1, 10)
    before = all_logits(model, idx)

    for t in range(10):
        changed = idx.clone()
        changed[0, t] = (idx[0, t] + 1) % TINY['vocab_size']
        moved = ((all_logits(model, changed) - before).abs() > 1e-9).any(dim=-1)[0]     # (T,)
        assert not moved[:t].any()
        assert moved[t:].all()


def test_without_targets_only_the_last_logits_are_returned():
    model, idx = random_model('modern'), some_ids(3, 7)
    logits, loss = model(idx)

    assert loss is None
    assert logits.shape == (3, 1, 11)
    torch.testing.assert_close(logits[:, 0], all_logits(model, idx)[:, -1])


def test_temperature_divides_the_logits():
    model, idx = random_model('modern'), some_ids(3, 7)
    targets = idx.roll(-1, dims=1)
    plain, _ = model(idx, targets)
    logits, loss = model(idx, targets, temperature=0.5)

    torch.testing.assert_close(logits, 2 * plain)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(2 * plain.flatten(0, 1), targets.flatten()))


# Initialization, parameter names, counts.

def test_initial_weights():
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=64, vocab_size=500, n_layer=8, n_head=4, n_embd=64, n_kv_head=2, mlp='swiglu'))
    for name, p in model.named_parameters():
        if p.dim() == 1:
            assert (p == (0.0 if name.endswith('bias') else 1.0)).all()
        else:
            expected = 0.005 if 'c_proj' in name else 0.02                      # 0.02 / sqrt(2 * 8)
            assert p.std().item() == pytest.approx(expected, rel=0.05)
            assert abs(p.mean()) < expected / 10

    idx = torch.randint(500, (4, 64))
    assert model(idx, idx.roll(-1, 1))[1].item() == pytest.approx(math.log(500), abs=0.05)


def test_parameter_names_and_their_order_are_nanogpts():
    sizes = dict(block_size=8, vocab_size=11, n_layer=3, n_head=2, n_embd=4)
    names = ['transformer.wte.weight', 'transformer.wpe.weight']
    for i in range(3):
        for part in ('ln_1', 'attn.c_attn', 'attn.c_proj', 'ln_2', 'mlp.c_fc', 'mlp.c_proj'):
            names += [f'transformer.h.{i}.{part}.weight', f'transformer.h.{i}.{part}.bias']
    names += ['transformer.ln_f.weight', 'transformer.ln_f.bias', 'lm_head.weight']

    assert list(GPT(GPTConfig(**sizes)).state_dict()) == names
    assert list(GPT(GPTConfig(**sizes, bias=False)).state_dict()) == [n for n in names if not n.endswith('bias')]
    for pos, buffers in (('sinusoidal', ['pe']), ('rotary', ['cos', 'sin'])):     # fixed tables are not stored
        model = GPT(GPTConfig(**sizes, pos=pos))
        assert list(model.state_dict()) == [n for n in names if 'wpe' not in n]
        assert [n for n, _ in model.named_buffers()] == buffers


def test_gpt3_counted_by_role():
    with torch.device('meta'):
        model = GPT(GPTConfig(
            n_layer=96, n_embd=12288, n_head=96, vocab_size=50257, block_size=2048, tie_weights=False))
    table = accounting.param_table(model.config)

    square, wide, words = 14_495_514_624, 57_982_058_496, 617_558_016
    expected = dict(
        embedding=words, Q=square, K=square, V=square, output=square, up=wide, down=wide, unembedding=words)
    assert {kind: table[kind] for kind in expected} == expected
    assert sum(table[kind] for kind in expected) == 175_181_291_520
    assert sum(table.values()) == model.num_params()


def test_gpt2_has_124_million_weights():
    with torch.device('meta'):
        model = GPT(GPTConfig(vocab_size=50257))
    assert model.num_params() == 124_439_808
    assert sum(accounting.param_table(model.config).values()) == model.num_params() + 50257 * 768


def test_param_table_of_a_modern_model():
    model = GPT(GPTConfig(**{**TINY, **KINDS['modern'], 'bias': True}))
    assert accounting.param_table(model.config) == dict(
        embedding=11 * 16, position=0, unembedding=11 * 16,
        Q=2 * 16 * 16, K=2 * 16 * 8, V=2 * 16 * 8, output=2 * 16 * 16,
        up=2 * 16 * 24, gate=2 * 16 * 24, down=2 * 24 * 16,
        norm=2 * (2 * 16 + 2 * 4) + 16, bias=2 * (32 + 16 + 24 + 24 + 16))
    assert sum(accounting.param_table(model.config).values()) == model.num_params()
    assert GPT(GPTConfig(**{**TINY, 'mlp': 'swiglu', 'n_embd': 60})).config.hidden == 192    # 160, rounded up to 64s


@pytest.mark.parametrize('kind', ['openai', 'vaswani', 'modern'])
def test_flops_match_torchs_count(kind):
    model, idx = random_model(kind), some_ids(3, 16)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(idx, idx)[1].backward()

    table = accounting.param_table(model.config)      # torch counts matrix products only
    products = accounting.flops_per_token(model) - 6 * (table['norm'] + table['bias'])
    assert products == counter.get_total_flops() / idx.numel()


@pytest.mark.parametrize('pos', ['learned', 'sinusoidal', 'rotary'])
def test_crop_block_size(pos):
    model, idx = random_model(pos=pos), some_ids(2, 12)
    before = all_logits(model, idx[:, :8])

    model.crop_block_size(8)

    torch.testing.assert_close(all_logits(model, idx[:, :8]), before)
    assert model.config.block_size == KVCache(model.config).size == 8
    if pos == 'learned':
        assert model.state_dict()['transformer.wpe.weight'].shape == (8, 16)
        assert model.transformer.wpe.weight.requires_grad
    with pytest.raises(ValueError, match='block_size=8'):
        model(idx)
    with pytest.raises(ValueError, match='block_size=9'):
        model.crop_block_size(9)


@pytest.mark.parametrize('wrong, named', [
    (dict(block_size=0), 'block_size=0'), (dict(vocab_size=-1), 'vocab_size=-1'), (dict(n_layer=0), 'n_layer=0'),
    (dict(n_head=1.5), 'n_head=1.5'), (dict(n_embd='16'), "n_embd='16'"), (dict(n_embd=18), 'n_embd=18, n_head=4'),
    (dict(dropout=1.0), 'dropout=1.0'), (dict(dropout=-0.1), 'dropout=-0.1'),
    (dict(n_kv_head=3), 'n_kv_head=3'), (dict(n_kv_head=8), 'n_kv_head=8'), (dict(n_kv_head=-2), 'n_kv_head=-2'),
    (dict(n_inner=-1), 'n_inner=-1'), (dict(pos='rotary', n_embd=12), 'n_embd / n_head = 3'),
    (dict(pos='alibi'), "pos='alibi'"), (dict(norm='batch'), "norm='batch'"), (dict(mlp='elu'), "mlp='elu'"),
    (dict(score='cosine'), "score='cosine'"), (dict(mask='half'), "mask='half'"),
])
def test_an_invalid_shape_is_refused_in_one_line(wrong, named):
    with pytest.raises(ValueError) as e:
        GPTConfig(**{**TINY, **wrong})
    assert named in str(e.value)
    assert 'expected' in str(e.value)
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('place', range(4), ids=['embedding', 'attention', 'feed-forward', 'attention weights'])
def test_dropout_only_in_training(place):
    model, idx = random_model(dropout=0.5), some_ids(2, 8)
    torch.testing.assert_close(all_logits(model, idx), all_logits(random_model(dropout=0.0), idx))

    # Leave dropout on in one place only.
    block = model.transformer.h[0]
    sites = [model.transformer.drop, block.attn.resid_dropout, block.mlp.dropout]
    for m in model.modules():
        if isinstance(m, torch.nn.Dropout) and m not in sites[place:place + 1]:
            m.p = 0.0
    model.config.dropout = 0.5 if place == 3 else 0.0

    model.train()
    assert not torch.equal(all_logits(model, idx), all_logits(model, idx))


# Generation.

@every_kind
def test_greedy_decoding_is_the_same_with_and_without_a_cache(kind):
    model, prompt = random_model(kind), some_ids(3, 5)
    expected = prompt
    for _ in range(12):                               # up to 17 tokens: the model never reads the last one
        expected = torch.cat((expected, all_logits(model, expected[:, -16:])[:, -1:].argmax(-1)), dim=1)

    assert torch.equal(model.generate(prompt, 12), expected)


def test_no_cache_without_a_causal_mask():
    """There, the keys of a token change with the tokens after it."""
    model = random_model('no mask')
    with pytest.raises(ValueError, match='mask=none: expected causal'):
        model(some_ids(1, 3), cache=KVCache(model.config))


@causal_kinds
def test_a_prompt_can_be_read_in_chunks(kind):
    model, idx = random_model(kind), some_ids(3, 16)
    cache = KVCache(model.config)

    chunks = [model(part, part, cache=cache)[0] for part in idx.split([1, 2, 1, 5, 7], dim=1)]

    torch.testing.assert_close(torch.cat(chunks, dim=1), all_logits(model, idx), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match='17 tokens'):
        model(idx[:, :1], cache=cache)


@pytest.mark.parametrize('kind', ['gpt2', 'vaswani', 'modern'])
@pytest.mark.parametrize('size, length', [(8, 5), (8, 20), (7, 7), (1, 1), (1, 3)])
def test_past_the_context_the_newer_half_is_read_again(kind, size, length):
    model, seen, read = random_model(kind, block_size=size), [], []
    hook = model.lm_head.register_forward_hook(lambda module, args, out: seen.append(out[:, -1]))
    other = model.transformer.wte.register_forward_hook(lambda module, args, out: read.append(out.size(1)))
    ids = model.generate(some_ids(2, length), 25, Sampler(seeds=(1, 2)))
    hook.remove()
    other.remove()

    start = max(0, length - size)
    for t, logits in zip(range(length, length + 25), seen, strict=True):
        if t - start > size:
            start = t - math.ceil(size / 2)
        torch.testing.assert_close(logits, all_logits(model, ids[:, start:t])[:, -1], atol=1e-6, rtol=1e-6)
    assert sum(read) <= size + 2 * 25                 # at most two read per token generated, at any context size
