"""
nanoGPT's files work here: a checkpoint, a dataset and a meta.pkl with its very layout, built below.

The checkpoint comes from a separate, straight GPT-2 in nanoGPT's key layout, so that names, transposes and
optimizer order are compared with something that is not our model.
"""

import math
import os
import pickle

import numpy as np
import pytest
import torch
from conftest import babble, run_script, settings
from torch import nn
from torch.nn import functional as F

import sample
import train
from gradus import checkpoint
from model import GPT

SIZES = dict(n_layer=2, n_head=2, n_embd=16, block_size=8, bias=True, vocab_size=10, dropout=0.0)


class Reference(nn.Module):
    """GPT-2 as a bare list of named parameters, in the order in which nanoGPT registers them."""

    def __init__(self, n_layer, n_head, n_embd, block_size, bias, vocab_size, dropout):
        super().__init__()
        self.n_layer, self.n_head = n_layer, n_head
        torch.manual_seed(7)
        C = n_embd
        shapes = {'transformer.wte.weight': (vocab_size, C), 'transformer.wpe.weight': (block_size, C)}
        for i in range(n_layer):
            h = f'transformer.h.{i}.'
            shapes |= {h + 'ln_1.weight': (C,), h + 'ln_1.bias': (C,), h + 'attn.c_attn.weight': (3 * C, C), h + 'attn.c_attn.bias': (3 * C,),
                       h + 'attn.c_proj.weight': (C, C), h + 'attn.c_proj.bias': (C,), h + 'ln_2.weight': (C,), h + 'ln_2.bias': (C,),
                       h + 'mlp.c_fc.weight': (4 * C, C), h + 'mlp.c_fc.bias': (4 * C,), h + 'mlp.c_proj.weight': (C, 4 * C),
                       h + 'mlp.c_proj.bias': (C,)}
        shapes |= {'transformer.ln_f.weight': (C,), 'transformer.ln_f.bias': (C,)}
        self.p = {name: nn.Parameter(torch.randn(shape) * 0.3) for name, shape in shapes.items() if bias or not name.endswith('.bias')}

    def parameters(self):
        return iter(self.p.values())

    def forward(self, idx):
        p, (B, T) = self.p, idx.shape
        x = p['transformer.wte.weight'][idx] + p['transformer.wpe.weight'][:T]
        C = x.size(-1)

        def norm(x, name):
            return F.layer_norm(x, (C,), p[name + '.weight'], p.get(name + '.bias'), 1e-5)

        def linear(x, name):
            return F.linear(x, p[name + '.weight'], p.get(name + '.bias'))
        for i in range(self.n_layer):
            h = f'transformer.h.{i}.'
            q, k, v = (t.view(B, T, self.n_head, -1).transpose(1, 2) for t in linear(norm(x, h + 'ln_1'), h + 'attn.c_attn').split(C, dim=2))
            scores = (q @ k.transpose(2, 3) / math.sqrt(q.size(-1))).masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf)
            x = x + linear((scores.softmax(-1) @ v).transpose(1, 2).reshape(B, T, C), h + 'attn.c_proj')
            x = x + linear(F.gelu(linear(norm(x, h + 'ln_2'), h + 'mlp.c_fc')), h + 'mlp.c_proj')
        return norm(x, 'transformer.ln_f') @ p['transformer.wte.weight'].T


@pytest.fixture(params=[True, False], ids=['bias', 'no-bias'])
def nanogpt(request, tmp_path, monkeypatch):
    """A working folder as nanoGPT leaves it: data/chars/{train.bin, val.bin, meta.pkl} and out/ckpt.pt at iteration 3."""
    monkeypatch.chdir(tmp_path)
    text = babble(3000)
    chars = sorted(set(text))
    stoi = {c: i for i, c in enumerate(chars)}
    os.makedirs('data/chars')
    ids = np.array([stoi[c] for c in text], dtype=np.uint16)
    ids[:2700].tofile('data/chars/train.bin')
    ids[2700:].tofile('data/chars/val.bin')
    with open('data/chars/meta.pkl', 'wb') as f:
        pickle.dump(dict(vocab_size=len(chars), itos=dict(enumerate(chars)), stoi=stoi), f)
    sizes = {**SIZES, 'bias': request.param, 'vocab_size': len(chars)}
    model = Reference(**sizes)
    groups = [dict(params=[p for p in model.parameters() if p.dim() >= 2], weight_decay=0.1),
              dict(params=[p for p in model.parameters() if p.dim() < 2], weight_decay=0.0)]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99))
    x = torch.randint(len(chars), (4, 8))
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(x).flatten(0, 1), x.flatten()).backward()
        optimizer.step()
    weights = {'_orig_mod.' + k: v.detach() for k, v in model.p.items()}          # as a compiled nanoGPT writes them
    weights['_orig_mod.lm_head.weight'] = weights['_orig_mod.transformer.wte.weight']
    os.mkdir('out')
    torch.save(dict(model=weights, optimizer=optimizer.state_dict(), model_args=sizes, iter_num=3, best_val_loss=torch.tensor(2.5),
                    config=dict(dataset='chars', out_dir='out', learning_rate=1e-3)), 'out/ckpt.pt')
    return model, optimizer, sizes


def resumed(sizes, **changes):
    """The settings with which that run goes on here."""
    gpt2 = dict(pos='learned', mlp='gelu', n_kv_head=0, dataset='chars', init_from='resume')
    return settings(**{**gpt2, **{k: v for k, v in sizes.items() if k != 'vocab_size'}, **changes})


def test_its_checkpoint_gives_the_same_logits(nanogpt):
    reference, _, sizes = nanogpt
    state = checkpoint.load('out/ckpt.pt')
    ours = GPT.from_state(state['model_args'], state['model']).eval()
    x = torch.randint(sizes['vocab_size'], (3, 8))
    logits, _ = ours(x, x)
    assert torch.allclose(logits, reference(x), atol=1e-5)
    assert not torch.allclose(logits, reference(x.flip(1)), atol=1e-2)


def test_its_run_is_continued_with_its_moments(nanogpt):
    """One more step here equals one more step there: weights, moments and step count all arrive in the right place."""
    reference, optimizer, sizes = nanogpt
    cfg = resumed(sizes, max_iters=4, decay_lr=False, learning_rate=1e-3, beta2=0.99, batch_size=3, gradient_accumulation_steps=1,
                  grad_clip=0.0, weight_decay=0.1)
    train.main(cfg)
    tokens = train.data.Tokens('data/chars/train.bin', np.dtype('<u2'), sizes['vocab_size'], 8)
    x, y = tokens.windows(tokens.batch_starts(cfg.seed, 3, 3))
    optimizer.zero_grad()
    F.cross_entropy(reference(x).flatten(0, 1), y.flatten()).backward()
    before = {k: v.clone() for k, v in reference.p.items()}
    optimizer.step()
    after = checkpoint.load('out/ckpt.pt')['model']
    for name, expected in reference.p.items():
        same = (after[name] - expected).abs() < 1e-6
        if name.endswith('c_attn.bias'):              # a key's bias shifts all scores alike: its gradient is rounding noise
            same[16:32] = True
        assert same.all(), name
        assert not torch.equal(after[name], before[name]), name


def test_its_checkpoint_is_sampled(nanogpt, capsys):
    sample.main(sample.SampleConfig(start='abc', num_samples=2, max_new_tokens=20, device='cpu'))
    out, err = capsys.readouterr()
    assert err == 'out/ckpt.pt: iteration 3, best val loss 2.5000\n'
    texts = [t.strip('\n') for t in out.split('---------------')[:2]]
    assert all(t.startswith('abc') and len(t) > 10 and set(t) <= set('abcdefgh \n') for t in texts)


def test_the_dataset_named_in_a_checkpoint_is_never_a_path(nanogpt, capsys):
    """A name that is not in the listing of data/ leads nowhere, though the path that it spells exists."""
    state = torch.load('out/ckpt.pt', weights_only=True)
    for name in ('../data/chars', 'chars/../chars', os.path.abspath('data/chars'), None, ['chars']):
        state['config']['dataset'] = name
        torch.save(state, 'out/ckpt.pt')
        with pytest.raises(checkpoint.CheckpointError, match='--dataset=NAME'):
            sample.main(sample.SampleConfig(device='cpu'))
    sample.main(sample.SampleConfig(device='cpu', dataset='chars', num_samples=1, max_new_tokens=1))    # said by the user


def test_our_gpt2_style_checkpoint_has_its_layout(nanogpt):
    """Everything that nanoGPT's sample.py touches, with the very names and shapes of its own checkpoint."""
    _, _, sizes = nanogpt
    theirs = torch.load('out/ckpt.pt', weights_only=True)
    train.main(resumed(sizes, out_dir='ours', init_from='scratch', max_iters=2))
    ours = torch.load('ours/ckpt.pt', weights_only=True)
    assert set(theirs) <= set(ours) and ours['model_args'] == sizes
    assert {k: v.shape for k, v in ours['model'].items()} == {k.removeprefix('_orig_mod.'): v.shape for k, v in theirs['model'].items()}
    assert [g['params'] for g in ours['optimizer']['param_groups']] == [g['params'] for g in theirs['optimizer']['param_groups']]
    assert {k: v['exp_avg'].shape for k, v in ours['optimizer']['state'].items()} == \
        {k: v['exp_avg'].shape for k, v in theirs['optimizer']['state'].items()}


def test_its_readme_commands_run(nanogpt):
    """The flags of its README's CPU recipe, over its config, as a subprocess."""
    config = os.path.join(os.path.dirname(train.__file__), 'config', 'train_shakespeare_char.py')
    flags = '--device=cpu --compile=False --eval_iters=2 --log_interval=1 --block_size=8 --batch_size=2 --n_layer=1 --n_head=2 --n_embd=8 ' \
            '--max_iters=3 --lr_decay_iters=3 --dropout=0.0 --dataset=chars --out_dir=out-chars'
    ran = run_script('train.py', config, *flags.split())
    assert ran.returncode == 0, ran.stderr
    assert [line.split(':')[0] for line in ran.stdout.splitlines() if line.startswith(('step', 'iter'))] == \
        ['step 0', 'iter 0', 'iter 1', 'iter 2', 'step 3']
