"""What other people's files and habits are, in sample.py and --init_from: prompts, weights, tokenizers, newest runs."""

import contextlib
import json
import os
import pickle
import sys
from pathlib import Path

import pytest
import torch
from conftest import flags_of, read_terminal, run_main, settings, sha256_of, write_digits

import export
import mlp_mnist
import sample
import train
from gradus import checkpoint, configurator, pretrained
from gradus.errors import UserError
from gradus.tokenizer import CharTokenizer
from model import GPT, GPTConfig


@pytest.fixture
def run(place):
    """A run in out/, and its checkpoint."""
    train.main(settings(max_iters=2))
    for name in ('best.pt', 'best.pt.prev'):
        if os.path.exists(f'out/{name}'):
            os.remove(f'out/{name}')
    return checkpoint.load('out/ckpt.pt')


def output(capsys, **changes):
    capsys.readouterr()
    few = dict(device='cpu', out_dir='out', num_samples=1, max_new_tokens=5)
    sample.main(sample.SampleConfig(**{**few, **changes}))
    return capsys.readouterr().out


def char_model(chars):
    """A run in out/ whose text has these characters only."""
    config = GPTConfig(block_size=8, vocab_size=len(chars), n_layer=1, n_head=1, n_embd=8)
    os.makedirs('out', exist_ok=True)
    checkpoint.save('out/ckpt.pt', dict(model=GPT(config).state_dict(), model_args=checkpoint.model_args(config),
                                        tokenizer=CharTokenizer(chars).to_json()))


# ---------------------------------------------------------------------------- prompts

def test_the_default_prompt_works_for_a_text_without_line_ends(place, capsys):
    char_model('abc')
    assert len(output(capsys).split('\n---')[0]) == 5
    with pytest.raises(UserError, match=r"character '\\n' at position 1"):
        output(capsys, start='a\n')


def test_start_unescapes_line_ends_as_stop_does(run, capsys):
    assert output(capsys, start='a\\nb').startswith('a\nb')
    assert output(capsys, start='a\\nb') == output(capsys, start='a\nb')


@pytest.mark.parametrize('content', [b'ab\r\nc\rd', b'\xef\xbb\xbfab\nc\nd'])
def test_prompt_files_of_other_systems(run, capsys, content):
    Path('prompt.txt').write_bytes(content)
    assert output(capsys, start='FILE:prompt.txt') == output(capsys, start='ab\nc\nd')
    Path('plain.txt').write_bytes(b'ab\nc\nd')
    losses = [output(capsys, eval=name).split(':')[1] for name in ('prompt.txt', 'plain.txt')]
    assert losses[0] == losses[1]


def test_a_byte_order_mark_that_the_model_knows_stays(place, capsys):
    """As in nanoGPT: it is a character of the training text."""
    char_model('ab\n\ufeff')
    Path('prompt.txt').write_bytes(b'\xef\xbb\xbfab')
    assert output(capsys, start='FILE:prompt.txt').startswith('\ufeffab')


def test_line_ends_that_the_model_knows_stay(place, capsys):
    """A text of Windows that was prepared here keeps its line ends, and so does the text to evaluate."""
    char_model('ab\r\n')
    Path('prompt.txt').write_bytes(b'a\r\nb')
    assert output(capsys, start='FILE:prompt.txt').startswith('a\r\nb')
    assert '4 tokens' not in output(capsys, eval='prompt.txt')
    assert '3 tokens' in output(capsys, eval='prompt.txt')


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='needs pipes')
def test_a_prompt_file_that_is_a_pipe_is_one_line(run, capsys):
    os.mkfifo('pipe')
    for changes in (dict(start='FILE:pipe'), dict(eval='pipe')):
        with pytest.raises(UserError, match='^pipe: a pipe; expected a file'):
            output(capsys, **changes)


@pytest.mark.skipif(sys.platform != 'linux', reason='needs terminals')
def test_a_terminal_gets_no_escapes_and_a_file_gets_every_byte(place, capsys):
    import pty

    char_model(['\x1b[2J', '\x9b1m'])
    assert '\x1b[2J' in output(capsys) or '\x9b1m' in output(capsys)

    master, slave = pty.openpty()
    flags = ['--out_dir=out', '--num_samples=1', '--max_new_tokens=20', '--device=cpu']
    with os.fdopen(slave, 'w') as terminal, contextlib.redirect_stdout(terminal):
        configurator.launch(sample.main, sample.SampleConfig, flags)
    seen = read_terminal(master)
    os.close(master)
    assert rb'\x1b[2J' in seen
    assert b'\x1b' not in seen


# ---------------------------------------------------------------------------- which run

def test_the_newest_gpt_not_the_newest_digits(run, capsys, monkeypatch):
    write_digits()
    mlp_mnist.main(mlp_mnist.MnistConfig(device='cpu', n_train=200, epochs=1, sizes='784-10', mini_batch_size=50))
    assert checkpoint.run_folders()[0].endswith('out-mnist')
    assert output(capsys, out_dir='') == output(capsys)


def test_a_damaged_newest_run_is_not_passed_over(run, capsys):
    os.rename('out', 'older')
    train.main(settings(max_iters=2))
    os.truncate('out/ckpt.pt', 1000)
    with pytest.raises(UserError, match='out/.*damaged'):
        for name in ('best.pt', 'best.pt.prev', 'ckpt.pt.prev'):
            if os.path.exists(f'out/{name}'):
                os.remove(f'out/{name}')
        output(capsys, out_dir='')


def test_no_gpt_here(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match='no run in this folder'):
        output(capsys, out_dir='')


# ---------------------------------------------------------------------------- weights

def test_tied_weights_may_have_one_name(run, capsys):
    expected = output(capsys)
    config = GPTConfig(**run['model_args'])
    assert config.tie_weights
    del run['model']['lm_head.weight']
    checkpoint.save('out/ckpt.pt', run)
    assert output(capsys) == expected
    train.main(settings(max_iters=3, init_from='resume'))

    run['model_args']['tie_weights'] = False          # negative control
    checkpoint.save('out/ckpt.pt', run)
    with pytest.raises(UserError, match='lm_head.weight is missing'):
        output(capsys)


@pytest.mark.parametrize('dropout', [None, 1, 'no'])
def test_the_dropout_of_a_fork_does_not_matter(run, capsys, dropout):
    expected = output(capsys)
    run['model_args']['dropout'] = dropout
    checkpoint.save('out/ckpt.pt', run)
    assert output(capsys) == expected


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_weights_that_are_not_finite_are_said(run, capsys, value):
    run['model']['transformer.h.0.attn.c_attn.weight'][0, 0] = value
    checkpoint.save('out/ckpt.pt', run)
    expected = "out/ckpt.pt: 'transformer.h.0.attn.c_attn.weight' holds NaN or infinity"
    with pytest.raises(UserError, match=expected):
        output(capsys)
    with pytest.raises(UserError, match=expected):
        train.main(settings(max_iters=3, init_from='resume'))
    with pytest.raises(UserError, match=expected):
        export.main(export.ExportConfig())


def test_weights_too_large_to_compute_with_are_said(run, capsys):
    for name, tensor in run['model'].items():
        if 'mlp' in name or 'ln_' in name:
            tensor *= 1e37
    checkpoint.save('out/ckpt.pt', run)
    with pytest.raises(UserError, match='the model computes NaN or infinity'):
        output(capsys)
    Path('text.txt').write_text('abc abc abc')
    with pytest.raises(UserError, match='text.txt: the loss is nan: the model computes NaN'):
        output(capsys, eval='text.txt')


def test_sizes_that_a_pretrained_model_ignores_are_said(run, capsys):
    modern = dict(max_iters=2, init_from='out', out_dir='new')
    train.main(settings(**modern))
    assert 'ignored' not in capsys.readouterr().err

    train.main(settings(**modern, n_layer=4, qk_norm=True))
    err = capsys.readouterr().err
    assert 'warning: the model is out; ignored: n_layer=4 (it has 2), qk_norm=True (it has False)' in err
    assert checkpoint.load('new/ckpt.pt')['model_args']['n_layer'] == 2


def test_a_run_resumes_with_the_context_of_its_model_only(run):
    """The settings in the checkpoint say what the command says, but the model is another one."""
    model = GPT(GPTConfig(**run['model_args']))
    model.load_state_dict(run['model'])
    run['model_args']['block_size'] = 4
    checkpoint.save('out/ckpt.pt', run)
    with pytest.raises(UserError, match='has block_size=4, but the settings say block_size=16'):
        train.main(settings(max_iters=3, init_from='resume'))


# ---------------------------------------------------------------------------- datasets without characters

def test_ids_without_characters_train_and_resume_but_show_no_text(place, capsys):
    """nanoGPT needs vocab_size alone to train."""
    os.remove('data/babble/meta.json')
    itos = {i: bytes([i]) for i in range(10)}
    Path('data/babble/meta.pkl').write_bytes(pickle.dumps({'vocab_size': 10, 'itos': itos}))
    train.main(settings(max_iters=2))
    assert 'data/babble/meta.pkl: itos holds bytes' in capsys.readouterr().err
    train.main(settings(max_iters=4, init_from='resume'))
    assert checkpoint.load('out/ckpt.pt')['iter_num'] == 4

    with pytest.raises(UserError, match='^data/babble/meta.pkl: itos holds bytes; .*no text can be shown'):
        output(capsys)


def test_the_closing_hint_can_be_pasted(place):
    ran = run_main(train, *flags_of(max_iters=1, out_dir="a b'c"))
    hint = ran.stdout.splitlines()[-1]
    assert hint.startswith('more samples: python sample.py ')
    import shlex
    assert shlex.split(hint)[-1] == "--out_dir=a b'c"


def test_a_whole_model_through_other_names(run):
    """Prefixes of DDP and torch.compile, half precision, no training state."""
    state = {f'_orig_mod.module.{name}': tensor.half() for name, tensor in run['model'].items()}
    torch.save(dict(model=state, model_args=run['model_args'], best_val_loss=torch.tensor(1.5)), 'other.pt')
    found = pretrained.load('other.pt')
    assert '1.5000' in found.about
    expected = {name: tensor.half().float() for name, tensor in run['model'].items()}
    assert sha256_of(pretrained.build(found).state_dict()) == sha256_of(expected)


# ---------------------------------------------------------------------------- values of other people's checkpoints

@pytest.mark.parametrize('value', [0, 1])
def test_nanogpt_keeps_bias_as_its_config_wrote_it(run, capsys, value):
    """bias = 0 in a config file of nanoGPT is 0 in its checkpoint."""
    run['model_args']['bias'] = value
    weights = GPT(GPTConfig(**{**run['model_args'], 'bias': bool(value)})).state_dict()
    checkpoint.save('out/ckpt.pt', {**run, 'model': weights})
    assert pretrained.load('out').config.bias is bool(value)
    assert output(capsys)

    run['model_args']['bias'] = 2
    checkpoint.save('out/ckpt.pt', {**run, 'model': weights})
    with pytest.raises(UserError, match='bias is 2, expected bool'):
        output(capsys)


@pytest.mark.parametrize('name, value, shown', [
    ('rope_theta', float('nan'), 'nan'),
    ('rope_theta', float('inf'), 'inf'),
    ('n_layer', 10 ** 400, '<int of 1,329 bits>'),
    ('n_inner', -10 ** 400, '<int of 1,329 bits>'),
    ('mlp', 3, '3'),
], ids=['NaN', 'infinity', 'large', 'negative', 'type'])
def test_an_absurd_size_is_shown_short(run, name, value, shown):
    run['model_args'][name] = value
    checkpoint.save('out/ckpt.pt', run)
    with pytest.raises(UserError, match=f'^out/ckpt.pt: .*{name} is {shown}, expected (float|int|str)$'):
        pretrained.load('out')


@pytest.mark.parametrize('changes, expected', [
    (dict(tokenizer={'kind': 'char', 'chars': [1, 2]}), r'out/ckpt.pt: tokenizer of kind char with chars \[1, 2\]: .*'),
    (dict(tokenizer={'kind': 'magic'}), r"out/ckpt.pt: tokenizer \{'kind': 'magic'\}: .*"),
    (dict(tokenizer=None, config={}), 'out/ckpt.pt: no tokenizer in it, and no name of its dataset; .*'),
    (dict(tokenizer=None, config=dict(dataset='\x1b[1m' * 999)), 'out/ckpt.pt: no tokenizer in it, and no data/.x1b.*'),
])
def test_the_file_of_a_bad_tokenizer_is_named(run, changes, expected, capsys):
    checkpoint.save('out/ckpt.pt', {**run, **changes})
    with pytest.raises(UserError, match=f'^{expected}--dataset=NAME') as e:
        output(capsys)
    assert len(str(e.value)) < 300

    assert output(capsys, dataset='babble')           # the way out that the error names


def test_a_loss_that_was_never_measured_is_not_shown(run, capsys):
    del run['best_val_loss']
    checkpoint.save('out/ckpt.pt', run)
    assert pretrained.load('out').about == 'out/ckpt.pt: iteration 2'
    run['best_val_loss'] = float('nan')
    checkpoint.save('out/ckpt.pt', run)
    assert pretrained.load('out').about == 'out/ckpt.pt: iteration 2, best val loss nan'


def test_what_0_means_is_not_ignored(run, capsys):
    """n_head is 4 and n_kv_head 2; n_inner=0 means 128 for this swiglu."""
    found = pretrained.load('out').config
    assert (found.kv_heads, found.hidden, found.n_inner) == (2, 128, 0)
    assert pretrained.ignored_settings(settings(n_inner=128), found) == ''
    assert pretrained.ignored_settings(settings(n_inner=129), found) == 'n_inner=129 (it has 0)'


def test_json_on_a_terminal_is_json_without_control_characters(run, capsys, monkeypatch):
    text = 'é \x1b[31m \x9b \x7f \u202e "quoted" \\'
    for is_terminal in (False, True):
        monkeypatch.setattr(sys.stdout, 'isatty', lambda answer=is_terminal: answer, raising=False)
        line = sample.as_json(dict(text=text))
        assert json.loads(line) == dict(text=text)
        assert line.isprintable() == is_terminal
        assert 'é' in line
