"""plots/attention.py: the weights are those that the model uses, words are found or explained, every size is drawn."""

import glob

import pytest
import torch
from test_model import KINDS, every_kind, random_model, some_ids

from gradus import checkpoint, configurator
from gradus.errors import UserError
from gradus.tokenizer import ByteTokenizer, CharTokenizer
from model import GPT, GPTConfig
from plots import attention, figures

PIZZA = 'The pizza came out of the oven and it tasted good.'
CHARS = CharTokenizer('\n !$,.:_abcdefghijklmnopqrstuvwxyz')


def write_model(path, tokenizer=CHARS, seed=3, **config):
    """A checkpoint of a random GPT with this tokenizer."""
    torch.manual_seed(seed)
    sizes = dict(block_size=64, vocab_size=tokenizer.n_vocab, n_layer=2, n_head=2, n_embd=16)
    model = GPT(GPTConfig(**{**sizes, **config}))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=0.3)
    state = dict(model=model.state_dict(), model_args=checkpoint.model_args(model.config), iter_num=0,
                 tokenizer=tokenizer.to_json())
    checkpoint.save(str(path), state)
    return model.eval()


def draw(picture, path, *args):
    """Run a picture with the model in `path`."""
    picture.main(configurator.load(picture.Settings, [f'--init_from={path}', *args]))


def refused(picture, path, *args):
    with pytest.raises(UserError) as e:
        draw(picture, path, *args)
    assert '\n' not in str(e.value)
    return str(e.value)


@pytest.fixture
def small(tmp_path, monkeypatch):
    """The name of a checkpoint of a model of characters, in the current folder."""
    monkeypatch.chdir(tmp_path)
    write_model('small.pt')
    return 'small.pt'


# ---------------------------------------------------------------------------- the weights

@every_kind
def test_the_weights_are_those_that_the_model_uses(kind):
    """Weights times values, through c_proj, are what the model's own attention gives; rows sum to 1."""
    model, ids = random_model(kind), some_ids(9).tolist()
    outputs = []
    for block in model.transformer.h:
        block.attn.register_forward_hook(lambda _, args, output: outputs.append(output[0]))

    layers = attention.attention(model, ids)

    assert len(layers) == len(outputs) == model.config.n_layer
    for block, (weights, values), output in zip(model.transformer.h, layers, outputs):
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(model.config.n_head, 9).double())
        values = values.repeat_interleave(model.config.n_head // model.config.kv_heads, dim=0)   # (H, T, D)
        heads = (weights @ values).transpose(0, 1).flatten(1)                   # (T, H D)
        torch.testing.assert_close(block.attn.c_proj(heads), output, atol=1e-5, rtol=1e-5)
        shifted = (weights.roll(1, dims=1) @ values).transpose(0, 1).flatten(1)
        assert (block.attn.c_proj(shifted) - output).abs().max() > 1e-3         # negative control: other rows


@pytest.mark.parametrize('kind, hidden', [('gpt2', 'upper'), ('other half', 'lower'), ('no mask', 'none')])
def test_who_sees_whom(kind, hidden):
    weights = attention.weights_of(random_model(kind), some_ids(9).tolist())
    assert KINDS[kind].get('mask', 'causal') in ('causal', 'other_half', 'none')
    assert bool(weights.triu(1).any()) == (hidden != 'upper')
    assert bool(weights.tril(-1).any()) == (hidden != 'lower')


def test_no_hook_stays():
    model = random_model()
    attention.attention(model, [1, 2])
    with pytest.raises(ValueError):
        attention.attention(model, [1] * 17)          # beyond the context
    assert not any(block.attn._forward_pre_hooks for block in model.transformer.h)


def test_what_comes_later_changes_nothing_before():
    """The row of a token is the same whatever follows it, with a causal mask; without one it is not."""
    for kind, same in (('modern', True), ('no mask', False)):
        model = random_model(kind)
        a, b = (attention.weights_of(model, [3, 1, 4, 1, 5, *end]) for end in ([9, 2], [6, 8]))
        assert torch.equal(a[:, :, :5], b[:, :, :5]) == same


def test_a_model_that_computes_nan(small):
    model = random_model()
    with torch.no_grad():
        model.transformer.wte.weight[3] = float('nan')
    with pytest.raises(UserError, match='NaN'):
        attention.weights_of(model, [3, 1])


# ---------------------------------------------------------------------------- words

TOKENS = [b'The', b' cat', b' saw', b' the', b' cat', b'n', b'ip', b'.', b' ', b'#2']


@pytest.mark.parametrize('word, place', [
    ('saw', 2), (' saw', 2), ('The', 0), ('the', 3), ('cat#1', 1), ('cat#2', 4), ('.', 7), ('#2', 9), (' ', 8),
])
def test_a_word_that_is_there(word, place):
    assert attention.find(TOKENS, word, 'query') == place


@pytest.mark.parametrize('word, message', [
    ('cat', 'query=cat: cat occurs 2 times; expected cat#1, cat#2'),
    ('cat#3', 'query=cat#3: cat occurs 2 times; expected cat#1, cat#2'),
    ('catnip', 'query=catnip: 3 tokens here, ␣cat n ip; expected one of them'),
    ('dog', "query='dog': not in the text; expected one of its tokens: The ␣cat ␣saw"),
    ('cat#' + '9' * 5000, "query='cat#9999"),
    ('', "query='': not in the text"),
])
def test_a_word_that_is_not(word, message):
    with pytest.raises(UserError) as e:
        attention.find(TOKENS, word, 'query')
    assert str(e.value).startswith(message)


@pytest.mark.parametrize('args, message', [
    (['--start='], "start='': expected a text"),
    (['--start=' + 'a' * 65], 'start: 65 tokens; expected at most 64, the context'),
    (['--start=abc', '--layer=2'], 'layer=2: expected between 0 and 1'),
    (['--start=abc', '--head=-1'], 'head=-1: expected between 0 and 1'),
    (['--start=abc', '--query=a'], "query='a', keys='': expected both"),
    (['--start=abc', '--against=abd'], 'expected both'),
    (['--start=abc', '--query=a', '--keys=b'], 'keys=b: it comes after a'),
    (['--start=abc', '--query=c', '--keys=a', '--against=ac!c'], 'query=c: c occurs 2 times'),
    (['--start=ABC'], "character 'A'"),
])
def test_what_cannot_be_drawn_is_one_line(args, message, small):
    pytest.importorskip('matplotlib')
    assert message in refused(attention, small, *args)


def test_too_many_tokens_to_draw(small, monkeypatch):
    pytest.importorskip('matplotlib')
    monkeypatch.setattr(attention, 'MOST_WEIGHTS', 2 * 2 * 30 ** 2)
    assert '31 tokens; expected at most 30, whose weights fit' in refused(attention, small, '--start=' + 'a' * 31)
    draw(attention, small, '--start=' + 'a' * 30)


# ---------------------------------------------------------------------------- tables and pictures

def test_the_table_has_the_weights(small, capsys):
    pytest.importorskip('matplotlib')
    draw(attention, small, '--start=abcd', '--query=d', '--keys=a,c', '--top=1', '--against=bacd')
    lines = capsys.readouterr().out.splitlines()
    model = GPT(GPTConfig(block_size=64, vocab_size=CHARS.n_vocab, n_layer=2, n_head=2, n_embd=16)).eval()
    model.load_state_dict(checkpoint.load(small)['model'])
    first, second = (attention.weights_of(model, CHARS.encode(text)) for text in ('abcd', 'bacd'))

    layer, head = divmod(first[:, :, 3, 2].argmax().item(), 2)
    best = lines[lines.index('most to c:') + 1]
    assert best.startswith(f'layer {layer:2}, head {head:2}')
    numbers = [float(word) for word in best.split()[4:]]
    a, b = first[layer, head, 3].tolist(), second[layer, head, 3].tolist()
    expected = [a[0], a[2], a[0], b[1], b[2], b[0], b[1] - a[0], b[2] - a[2]]
    assert numbers == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize('config, length', [
    (dict(n_layer=1, n_head=1), 1),
    (dict(n_layer=1, n_head=1, block_size=200), 200),
    (dict(n_layer=12, n_head=12, n_embd=24, pos='rotary'), 20),
    (dict(mask='none'), 2),
])
def test_every_size_is_drawn(config, length, tmp_path, monkeypatch):
    pytest.importorskip('matplotlib')
    monkeypatch.chdir(tmp_path)
    write_model('m.pt', **config)
    draw(attention, 'm.pt', '--start=' + ('ab $x$_' * length)[:length], '--out=x.png')
    assert (tmp_path / 'x.png').read_bytes().startswith(b'\x89PNG')


@pytest.mark.filterwarnings('error')                  # a letter that the font lacks would be a warning
def test_any_text_is_drawn(tmp_path, monkeypatch, capsys):
    pytest.importorskip('matplotlib')
    monkeypatch.chdir(tmp_path)
    write_model('bytes.pt', ByteTokenizer())
    draw(attention, 'bytes.pt', '--start=$x^$ \t\\n日é\x00', '--query=x', '--keys=$#1', '--out=x.svg')
    drawn = (tmp_path / 'x.svg').read_text(encoding='utf-8')
    for label in ('>$<', '>^<', '>␣<', '>↵<', '>⇥<', r'>\xe6<', r'>\x00<'):
        assert label in drawn, label


def test_labels():
    pytest.importorskip('matplotlib')
    assert figures.token_label(b' it') == '␣it'
    assert figures.token_label('日'.encode()) == '日'
    assert figures.token_label(b'\xe6\x97') == r'\xe6\x97'
    assert figures.token_label(b'\x1b[0m\xc2\x85') == r'\x1b[0m\x85'
    assert figures.token_label(b' ' * 99) == '␣' * 15 + '…'
    assert figures.drawable('日 é $') == r'\u65e5 é \$'


def test_the_head_chosen():
    """Without a query: the head that looks far; with layer and head: that one."""
    weights = torch.eye(5).expand(2, 3, 5, 5).clone()
    weights[1, 2, 4] = torch.tensor([0.0, 1, 0, 0, 0])
    looked = attention.Looked([b'a'] * 5, weights)
    assert attention.choose(attention.Settings(), looked) == (1, 2)
    assert attention.choose(attention.Settings(layer=0, head=1), looked) == (0, 1)
    weights[0, 1, 3] = torch.tensor([0, 0, 1.0, 0, 0])
    looked = attention.Looked([b'a'] * 5, weights, query=3, keys=(2,))
    assert attention.choose(attention.Settings(), looked) == (0, 1)
    assert attention.choose(attention.Settings(layer=1), looked)[0] == 1


@pytest.mark.slow
def test_a_real_model_looks_from_it_to_the_pizza(tmp_path, monkeypatch, capsys):
    """docs/pizza.md's table. The row of `it` is exactly the same whatever comes after it."""
    pytest.importorskip('matplotlib')
    pytest.importorskip('gguf', reason='it reads the weights: pip install gguf')
    from test_llama_cpp import smollm2
    monkeypatch.chdir(tmp_path)
    path = smollm2()
    draw(attention, path, f'--start={PIZZA}', '--against=The pizza came out of the oven and it was hot.',
         '--query=it', '--keys=pizza,oven')
    out = capsys.readouterr().out
    best = out.split('most to ␣pizza:\n')[1].splitlines()[0].split()
    assert best[:4] == ['layer', '13,', 'head', '8']
    assert float(best[4]) > 0.7 and float(best[5]) < 0.05
    assert best[-2:] == ['0.000', '0.000']
    assert glob.glob('attention.png')
