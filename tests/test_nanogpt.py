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
from conftest import REPO, babble, run_script, settings
from torch import nn
from torch.nn import functional as F

import sample
import train
from gradus import checkpoint, pretrained
from gradus.errors import UserError

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
    ran = run_script(
        'train.py',
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
