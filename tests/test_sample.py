"""sample.py as people use it: prompts, seeds, temperatures, which checkpoint, what it prints."""

import re
import shutil

import pytest
import torch
from conftest import run_script, settings

import checkpoint
import sample
import train


@pytest.fixture
def run(place):
    """A working folder with a short run in out/."""
    train.main(settings(max_iters=30, lr_decay_iters=30, dropout=0.0))
    return place


def texts(capsys, **changes):
    """The samples that these settings print."""
    capsys.readouterr()
    sample.main(sample.SampleConfig(**{**dict(device='cpu', start='ab', num_samples=3, max_new_tokens=40), **changes}))
    out = capsys.readouterr().out
    body = re.sub(r'\A.*best val loss [\d.]+\n(the prompt has .*\n)?', '', out)
    return [t.removesuffix('\n') for t in body.split('---------------\n')[:-1]]


def test_same_seed_same_text(run, capsys):
    first = texts(capsys, seed=1)
    assert len(first) == 3 and len(set(first)) == 3 and all(len(t) == 42 and t.startswith('ab') for t in first)
    assert texts(capsys, seed=1) == first and not set(first) & set(texts(capsys, seed=2))
    assert texts(capsys, seed=1, num_samples=1) == first[:1]                      # a sample depends on its seed, not on its neighbours


def test_temperatures(run, capsys):
    greedy = texts(capsys, temperature=0.0)
    assert len(set(greedy)) == 1 and greedy == texts(capsys, temperature=0.0, seed=5) == texts(capsys, top_k=1)
    assert texts(capsys, temperature=1e-9) == greedy
    for temperature in (0.1, 1.0, 2.0, 50.0):
        assert len(set(texts(capsys, temperature=temperature, max_new_tokens=60))) > 1
    wild = ''.join(texts(capsys, temperature=1e9, num_samples=40, max_new_tokens=100, start='', top_k=None))
    counts = [wild.count(c) for c in 'abcdefgh \n']
    assert 300 < min(counts) and max(counts) < 500                                # all ten alike, 400 each


def test_prompts(run, capsys):
    open('p.txt', 'w').write('cab ')
    assert texts(capsys, start='FILE:p.txt', num_samples=1)[0].startswith('cab ')
    assert len(texts(capsys, start='', num_samples=1)[0]) == 40
    assert texts(capsys, start='abc', max_new_tokens=0, num_samples=1) == ['abc']
    long = 'abcdefgh' * 10
    assert texts(capsys, start=long, num_samples=1)[0].startswith(long)           # longer than the context of 16


def test_a_long_prompt_is_cropped_and_that_is_said(run, capsys):
    assert texts(capsys, start='hhhhhhhh' + 'abcd' * 4, temperature=0.0)[0][24:] == texts(capsys, start='abcd' * 4, temperature=0.0)[0][16:]
    sample.main(sample.SampleConfig(device='cpu', start='a' * 17, num_samples=1, max_new_tokens=1))
    assert 'the prompt has 17 tokens, the context 16: only its end counts' in capsys.readouterr().out


def test_the_best_checkpoint_is_taken_unless_told_otherwise(run, capsys):
    shutil.copy('out/ckpt.pt', 'out/other.pt')
    state = checkpoint.load('out/ckpt.pt')
    state['model'] = {k: torch.zeros_like(v) for k, v in state['model'].items()}  # the last state is ruined
    checkpoint.save('out/ckpt.pt', state)
    good = texts(capsys, temperature=0.0)
    assert texts(capsys, temperature=0.0, checkpoint='ckpt.pt') != good == texts(capsys, temperature=0.0, checkpoint='other.pt')
    (run / 'out/best.pt').unlink()
    assert texts(capsys, temperature=0.0) != good


def test_ids_beyond_the_tokenizer_are_never_drawn(place, capsys):
    """A padded vocabulary (as GPT-2's 50304 for 50257 tokens) has ids that mean nothing."""
    train.main(settings(max_iters=1))
    state = checkpoint.load('out/best.pt')
    del state['tokenizer']['chars'][5:]
    checkpoint.save('out/best.pt', state)
    assert set(''.join(texts(capsys, temperature=100.0, start='', top_k=None))) <= set(state['tokenizer']['chars'])


def test_as_a_command(run):
    args = ['--out_dir=out', '--start=ab', '--num_samples=2', '--max_new_tokens=30', '--temperature=0.8', '--top_k=200', '--seed=1', '--device=cpu']
    first, second = run_script('sample.py', *args), run_script('sample.py', *args)
    assert first.returncode == 0 and first.stdout == second.stdout and first.stdout.count('---------------') == 2


def test_from_a_folder_of_gpt2_weights(place, capsys, test_data, monkeypatch):
    pytest.importorskip('safetensors', reason='reading Hugging Face weights needs safetensors')
    transformers = pytest.importorskip('transformers', reason='transformers writes the model')
    monkeypatch.setenv('TIKTOKEN_CACHE_DIR', str(test_data / 'tiktoken'))
    transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8, n_positions=32)).save_pretrained('tiny')
    capsys.readouterr()
    sample.main(sample.SampleConfig(init_from='tiny', start='Hello world', num_samples=1, max_new_tokens=5, device='cpu'))
    assert capsys.readouterr().out.startswith('Hello world')
    train.main(settings(init_from='tiny', block_size=16, max_iters=2, eval_interval=2, out_dir='tuned', dataset='babble', sample_tokens=0))
    state = checkpoint.load('tuned/ckpt.pt')
    assert state['model_args'] | dict(dropout=0) == dict(n_layer=1, n_head=2, n_embd=8, block_size=16, bias=True, vocab_size=50257, dropout=0,
                                                         mlp='gelu_tanh')
    train.main(settings(init_from='resume', block_size=16, max_iters=3, out_dir='tuned', dataset='babble', sample_tokens=0))
    assert checkpoint.load('tuned/ckpt.pt')['iter_num'] == 3
