"""
nanoGPT's files work here: a checkpoint, a dataset and a meta.pkl in its layout, built below.

The checkpoint comes from a separate, plain GPT-2 with nanoGPT's parameter names, so that names, transposes and
optimizer order are compared with something that is not our model.
"""

import math
import os
import pickle

import numpy as np
import pytest
import torch
from conftest import REPO, babble, run_main, settings
from torch import nn
from torch.nn import functional as F

import sample
import train
from gradus import checkpoint, pretrained
from gradus.errors import UserError
from gradus.nanogpt import write_nanogpt
from model import GPT, GPTConfig

SIZES = dict(n_layer=2, n_head=2, n_embd=16, block_size=8, bias=True, vocab_size=10, dropout=0.0)


class Reference(nn.Module):
    """GPT-2 as a bare list of named parameters, in the order in which nanoGPT registers them."""

    def __init__(self, n_layer, n_head, n_embd, block_size, bias, vocab_size, dropout):
        super().__init__()
        self.n_layer = n_layer
        self.n_head = n_head
        torch.manual_seed(7)
        C = n_embd

        shapes = {
            'transformer.wte.weight': (vocab_size, C),
            'transformer.wpe.weight': (block_size, C),
        }
        for i in range(n_layer):
            h = f'transformer.h.{i}.'
            shapes |= {
                h + 'ln_1.weight': (C,),
                h + 'ln_1.bias': (C,),
                h + 'attn.c_attn.weight': (3 * C, C),
                h + 'attn.c_attn.bias': (3 * C,),
                h + 'attn.c_proj.weight': (C, C),
                h + 'attn.c_proj.bias': (C,),
                h + 'ln_2.weight': (C,),
                h + 'ln_2.bias': (C,),
                h + 'mlp.c_fc.weight': (4 * C, C),
                h + 'mlp.c_fc.bias': (4 * C,),
                h + 'mlp.c_proj.weight': (C, 4 * C),
                h + 'mlp.c_proj.bias': (C,),
            }
        shapes |= {
            'transformer.ln_f.weight': (C,),
            'transformer.ln_f.bias': (C,),
        }
        self.p = {}
        for name, shape in shapes.items():
            if bias or not name.endswith('.bias'):
                self.p[name] = nn.Parameter(torch.randn(shape) * 0.3)

    def parameters(self):
        return iter(self.p.values())

    def norm(self, x, name):
        return F.layer_norm(x, x.shape[-1:], self.p[name + '.weight'], self.p.get(name + '.bias'), 1e-5)

    def linear(self, x, name):
        return F.linear(x, self.p[name + '.weight'], self.p.get(name + '.bias'))

    def attention(self, x, name):
        B, T, C = x.shape
        qkv = self.linear(x, name + '.c_attn').split(C, dim=2)
        q, k, v = (t.view(B, T, self.n_head, -1).transpose(1, 2) for t in qkv)
        future = torch.ones(T, T).triu(1).bool()
        scores = (q @ k.transpose(2, 3) / math.sqrt(q.size(-1))).masked_fill(future, -math.inf)
        y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(B, T, C)
        return self.linear(y, name + '.c_proj')

    def mlp(self, x, name):
        return self.linear(F.gelu(self.linear(x, name + '.c_fc')), name + '.c_proj')

    def forward(self, idx):
        T = idx.size(1)
        x = self.p['transformer.wte.weight'][idx] + self.p['transformer.wpe.weight'][:T]
        for i in range(self.n_layer):
            h = f'transformer.h.{i}.'
            x = x + self.attention(self.norm(x, h + 'ln_1'), h + 'attn')
            x = x + self.mlp(self.norm(x, h + 'ln_2'), h + 'mlp')
        return self.norm(x, 'transformer.ln_f') @ self.p['transformer.wte.weight'].T


@pytest.fixture
def chars(tmp_path, monkeypatch):
    """A working folder with nanoGPT's form of a dataset, data/chars/{train.bin, val.bin, meta.pkl}; its characters."""
    monkeypatch.chdir(tmp_path)
    text = babble(3000)
    chars = sorted(set(text))
    stoi = {c: i for i, c in enumerate(chars)}
    ids = np.array([stoi[c] for c in text], dtype=np.uint16)

    os.makedirs('data/chars')
    ids[:2700].tofile('data/chars/train.bin')
    ids[2700:].tofile('data/chars/val.bin')
    with open('data/chars/meta.pkl', 'wb') as f:
        pickle.dump(dict(vocab_size=len(chars), itos=dict(enumerate(chars)), stoi=stoi), f)
    return chars


@pytest.fixture(params=[True, False], ids=['bias', 'no-bias'])
def nanogpt(request, chars):
    """The same folder as nanoGPT leaves it after a run: out/ckpt.pt at iteration 3. The model, optimizer and sizes."""
    sizes = {**SIZES, 'bias': request.param, 'vocab_size': len(chars)}
    model = Reference(**sizes)
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [dict(params=decayed, weight_decay=0.1), dict(params=others, weight_decay=0.0)]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99))

    # train for three steps
    x = torch.randint(len(chars), (4, 8))
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(x).flatten(0, 1), x.flatten()).backward()
        optimizer.step()

    # save as a compiled nanoGPT does
    weights = {'_orig_mod.' + k: v.detach() for k, v in model.p.items()}
    weights['_orig_mod.lm_head.weight'] = weights['_orig_mod.transformer.wte.weight']
    state = dict(
        model=weights,
        optimizer=optimizer.state_dict(),
        model_args=sizes,
        iter_num=3,
        best_val_loss=torch.tensor(2.5),
        config=dict(dataset='chars', out_dir='out', learning_rate=1e-3),
    )
    os.mkdir('out')
    torch.save(state, 'out/ckpt.pt')
    return model, optimizer, sizes


def resumed(sizes, **changes):
    """The settings with which that run is resumed here."""
    gpt2 = dict(pos='learned', mlp='gelu', n_kv_head=0, dataset='chars', init_from='resume')
    model_args = {k: v for k, v in sizes.items() if k != 'vocab_size'}
    return settings(**{**gpt2, **model_args, **changes})


def test_its_checkpoint_gives_the_same_logits(nanogpt):
    reference, _, sizes = nanogpt
    state = checkpoint.load('out/ckpt.pt')
    ours = pretrained.gpt_from_weights(state['model_args'], state['model']).eval()
    x = torch.randint(sizes['vocab_size'], (3, 8))

    logits, _ = ours(x, x)
    assert torch.allclose(logits, reference(x), atol=1e-5)
    assert not torch.allclose(logits, reference(x.flip(1)), atol=1e-2)


def test_its_run_is_continued_with_its_moments(nanogpt):
    """One more step here equals one more step there: weights, moments and step count all end up in the right place."""
    reference, optimizer, sizes = nanogpt

    # one step here
    cfg = resumed(
        sizes,
        max_iters=4,
        decay_lr=False,
        learning_rate=1e-3,
        beta2=0.99,
        batch_size=3,
        gradient_accumulation_steps=1,
        grad_clip=0.0,
        weight_decay=0.1,
    )
    train.main(cfg)
    after = checkpoint.load('out/ckpt.pt')['model']

    # one step there, on the same batch
    tokens = train.data.Tokens('data/chars/train.bin', np.dtype('<u2'), sizes['vocab_size'], 8)
    x, y = tokens.windows(tokens.batch_starts(cfg.seed, 3, 3))
    optimizer.zero_grad()
    F.cross_entropy(reference(x).flatten(0, 1), y.flatten()).backward()
    before = {k: v.clone() for k, v in reference.p.items()}
    optimizer.step()

    for name, expected in reference.p.items():
        same = (after[name] - expected).abs() < 1e-6
        if name.endswith('c_attn.bias'):              # the keys' part shifts all scores alike: rounding noise
            same[16:32] = True
        assert same.all(), name
        assert not torch.equal(after[name], before[name]), name


def test_its_checkpoint_is_sampled(nanogpt, capsys):
    sample.main(sample.SampleConfig(start='abc', num_samples=2, max_new_tokens=20, device='cpu'))
    out, err = capsys.readouterr()

    assert err == 'out/ckpt.pt: iteration 3, best val loss 2.5000\n'
    for part in out.split('---------------')[:2]:
        text = part.strip('\n')
        assert text.startswith('abc')
        assert len(text) > 10
        assert set(text) <= set('abcdefgh \n')


def test_the_dataset_named_in_a_checkpoint_is_never_a_path(nanogpt, capsys):
    """A name that is not in the listing of data/ is refused, even if the path that it spells exists."""
    state = torch.load('out/ckpt.pt', weights_only=True)
    for name in ('../data/chars', 'chars/../chars', os.path.abspath('data/chars'), None, ['chars']):
        state['config']['dataset'] = name
        torch.save(state, 'out/ckpt.pt')
        with pytest.raises(UserError, match='--dataset=NAME'):
            sample.main(sample.SampleConfig(device='cpu'))

    # the user may name it
    sample.main(sample.SampleConfig(device='cpu', dataset='chars', num_samples=1, max_new_tokens=1))


def test_our_gpt2_style_checkpoint_has_its_layout(nanogpt):
    """Everything that nanoGPT's sample.py touches, with the names and shapes of its own checkpoint."""
    _, _, sizes = nanogpt
    theirs = torch.load('out/ckpt.pt', weights_only=True)
    train.main(resumed(sizes, out_dir='ours', init_from='scratch', max_iters=2))
    ours = torch.load('ours/ckpt.pt', weights_only=True)

    assert set(theirs) <= set(ours)
    assert ours['model_args'] == sizes

    our_shapes = {k: v.shape for k, v in ours['model'].items()}
    their_shapes = {k.removeprefix('_orig_mod.'): v.shape for k, v in theirs['model'].items()}
    assert our_shapes == their_shapes

    def parameter_groups(state):
        return [group['params'] for group in state['optimizer']['param_groups']]

    def moment_shapes(state):
        return {k: v['exp_avg'].shape for k, v in state['optimizer']['state'].items()}

    assert parameter_groups(ours) == parameter_groups(theirs)
    assert moment_shapes(ours) == moment_shapes(theirs)


def test_its_readme_commands_run(chars):
    """The flags of its README's CPU recipe, over its config, as a command."""
    ran = run_main(
        train,
        REPO / 'config/train_shakespeare_char.py',
        '--device=cpu',
        '--compile=False',
        '--eval_iters=2',
        '--log_interval=1',
        '--block_size=8',
        '--batch_size=2',
        '--n_layer=1',
        '--n_head=2',
        '--n_embd=8',
        '--max_iters=3',
        '--lr_decay_iters=3',
        '--dropout=0.0',
        '--dataset=chars',
        '--out_dir=out-chars',
    )
    assert ran.returncode == 0, ran.stderr
    printed = [line.split(':')[0] for line in ran.stdout.splitlines() if line.startswith(('step', 'iter'))]
    assert printed == ['step 0', 'iter 0', 'iter 1', 'iter 2', 'step 3']


# ---------------------------------------------------------------------------- a model as its files

def a_model(**changes):
    """The `Pretrained` model of a GPT in which every weight is random."""
    torch.manual_seed(3)
    tokenizer = changes.pop('tokenizer', {'kind': 'char', 'chars': list('abcdefghij')})
    dataset = changes.pop('dataset', 'chars')
    config = GPTConfig(**{**SIZES, **changes})
    model = GPT(config)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.3).add_(0.5 if p.dim() == 1 else 0.0)
    return pretrained.Pretrained('out/best.pt', config, model.state_dict(), tokenizer, '', 7, dataset), model.eval()


@pytest.mark.parametrize('bias', [True, False])
def test_a_written_model_is_its_own(bias, tmp_path):
    """A plain unpickler reads it, the separate GPT-2 has its weights and our logits, its optimizer takes the state."""
    found, model = a_model(bias=bias)
    assert write_nanogpt(str(tmp_path / 'new'), found) == 'chars'
    state = torch.load(tmp_path / 'new/ckpt.pt', weights_only=True)
    with open(tmp_path / 'new/meta.pkl', 'rb') as f:
        meta = pickle.load(f)

    # all that its sample.py looks at
    assert state['model_args'] == {**SIZES, 'bias': bias}
    assert state['config'] == {'dataset': 'chars'}
    assert [meta['stoi'][c] for c in 'aj'] == [0, 9]
    assert ''.join(meta['itos'][i] for i in (9, 0)) == 'ja'

    # the weights: no name missing, none left over
    reference = Reference(**state['model_args'])
    weights = dict(state['model'])
    assert torch.equal(weights.pop('lm_head.weight'), weights['transformer.wte.weight'])
    assert list(weights) == list(reference.p)
    for name, p in reference.p.items():
        p.data.copy_(weights[name])
    idx = torch.randint(10, (3, 8))
    with torch.no_grad():
        torch.testing.assert_close(reference(idx), model(idx, idx)[0], atol=1e-5, rtol=1e-5)

    # what its train.py resumes with
    parts = ([p for p in reference.parameters() if p.dim() >= 2], [p for p in reference.parameters() if p.dim() < 2])
    optimizer = torch.optim.AdamW([dict(params=part) for part in parts])
    optimizer.load_state_dict(state['optimizer'])
    assert [group['weight_decay'] for group in optimizer.param_groups] == [0.1, 0.0]
    reference(idx).square().mean().backward()
    optimizer.step()
    assert (state['iter_num'], state['best_val_loss']) == (7, 1e9)


def test_a_written_model_is_read_here_as_well(tmp_path):
    found, _ = a_model()
    write_nanogpt(str(tmp_path), found)
    again = pretrained.load(str(tmp_path))
    assert again.config == found.config
    assert all(torch.equal(again.weights[name], found.weights[name]) for name in found.weights)


class ReadOnce(dict):
    """Weights that count how often each was read, and have one of the tied matrix's two names."""

    def __init__(self, weights):
        super().__init__(weights)
        del self['lm_head.weight']
        self.n_read = dict.fromkeys(self, 0)

    def __getitem__(self, name):
        self.n_read[name] += 1
        return super().__getitem__(name)


def test_each_weight_is_read_once(tmp_path):
    found, _ = a_model()
    found.weights = ReadOnce(found.weights)
    write_nanogpt(str(tmp_path), found)
    assert set(found.weights.n_read.values()) == {1}


def test_gpt2_tokens_need_no_meta_file(tmp_path):
    """And no dataset is named: the one of that name there may have other tokens."""
    found, _ = a_model(tokenizer={'kind': 'gpt2'})
    assert write_nanogpt(str(tmp_path), found) is None
    assert os.listdir(tmp_path) == ['ckpt.pt']
    assert 'dataset' not in torch.load(tmp_path / 'ckpt.pt', weights_only=True)['config']


@pytest.mark.parametrize('dataset', ['../chars', '/etc', '', None, '.', 'a/b', 'a\n'])
def test_a_dataset_that_is_no_name_gets_one(dataset, tmp_path):
    assert write_nanogpt(str(tmp_path), a_model(dataset=dataset)[0]) == 'gradus'


@pytest.mark.parametrize('changes, named', [
    (dict(pos='rotary'), 'pos=rotary: nanoGPT knows only pos=learned'),
    (dict(pos='sinusoidal', mlp='relu'), 'pos=sinusoidal: '),
    (dict(norm='rmsnorm'), 'norm=rmsnorm: nanoGPT knows only norm=layernorm'),
    (dict(mlp='gelu_tanh'), 'mlp=gelu_tanh: nanoGPT knows only mlp=gelu;'),
    (dict(qk_norm=True), 'qk_norm=True: nanoGPT knows only qk_norm=False'),
    (dict(n_kv_head=1), 'n_kv_head=1: nanoGPT knows only n_kv_head=2'),
    (dict(tie_weights=False), 'tie_weights=False: nanoGPT knows only tie_weights=True'),
    (dict(n_inner=20), 'n_inner=20: nanoGPT knows only n_inner=64'),
    (dict(head_dim=4), 'head_dim=4: nanoGPT knows only head_dim=8'),
    (dict(norm_eps=1e-6), 'norm_eps=1e-06: nanoGPT knows only norm_eps=1e-05'),
    (dict(tokenizer={'kind': 'byte'}), 'tokenizer=byte: nanoGPT knows only characters'),
    (dict(tokenizer=None), 'tokenizer=None: '),
])
def test_a_model_that_it_cannot_be(changes, named, tmp_path):
    with pytest.raises(UserError, match=r'^out/best.pt: [^\n]*$') as e:
        write_nanogpt(str(tmp_path), a_model(**changes)[0])
    assert named in str(e.value)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize('spelled_out', [dict(n_kv_head=2), dict(n_inner=64), dict(head_dim=8), dict(norm_eps=1e-5),
                                         dict(rope_theta=5.0)])
def test_a_default_that_is_spelled_out_changes_nothing(spelled_out, tmp_path):
    write_nanogpt(str(tmp_path), a_model(**spelled_out)[0])


@pytest.mark.parametrize('name', ['ckpt.pt', 'meta.pkl'])
def test_no_file_is_replaced(name, tmp_path):
    (tmp_path / name).write_text('a run')
    with pytest.raises(UserError, match=f'{name} exists already; give another folder'):
        write_nanogpt(str(tmp_path), a_model()[0])
    assert os.listdir(tmp_path) == [name]
    assert (tmp_path / name).read_text() == 'a run'
