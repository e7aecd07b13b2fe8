"""Where a model comes from: folders, files and names, the weights in them, and the tokenizer that belongs to them."""

import json
import os
from dataclasses import asdict

import pytest
import torch
from conftest import prepare_babble, settings, sha256_of
from test_model import TINY, all_logits, every_kind, random_model, some_ids

import export
import train
from gradus import checkpoint, metadata, preparation, pretrained
from gradus.errors import UserError
from gradus.tokenizer import CharTokenizer
from model import GPT, GPTConfig


@pytest.fixture
def run(place):
    """A run in out/, with best.pt and ckpt.pt of different iterations."""
    train.main(settings(max_iters=4, eval_interval=2))
    state = checkpoint.load('out/ckpt.pt')
    checkpoint.save('out/best.pt', {**state, 'iter_num': 3})
    return state


def refused(source):
    with pytest.raises(UserError) as e:
        pretrained.load(source)
    assert '\n' not in str(e.value)
    return str(e.value)


# ---------------------------------------------------------------------------- sources

@pytest.mark.parametrize('source, path, iter_num', [
    ('out', 'out/best.pt', 3),
    ('out/', 'out/best.pt', 3),
    ('out/ckpt.pt', 'out/ckpt.pt', 4),
])
def test_a_run_and_its_files(run, source, path, iter_num):
    found = pretrained.load(source)
    assert os.path.normpath(found.source) == path
    assert found.iter_num == iter_num
    assert found.dataset == 'babble'
    assert found.about.startswith(f'{found.source}: iteration {iter_num}, best val loss ')
    assert found.tokenizer == metadata.read_meta('data/babble')['tokenizer']
    assert sha256_of(pretrained.build(found).state_dict()) == sha256_of(run['model'])


@pytest.mark.parametrize('source', ['nowhere', 'gtp2', '', 'a/b/c', './out'])
def test_a_source_that_does_not_exist_is_one_line(place, source):
    message = refused(source)
    assert message.startswith(f'init_from={source}: expected resume, gpt2')


def test_a_folder_with_neither_names_what_was_expected(place):
    os.makedirs('empty')
    message = refused('empty')
    assert message.startswith('init_from=empty: expected resume, gpt2')
    assert 'config.json' in message


def test_training_can_start_from_another_run(run, capsys):
    """The weights of best.pt, a new optimizer, iteration 0."""
    train.main(settings(max_iters=1, out_dir='tuned', init_from='out', learning_rate=0.0, min_lr=0.0, weight_decay=0.0))
    state = checkpoint.load('tuned/ckpt.pt')
    assert state['iter_num'] == 1
    assert sha256_of(state['model']) == sha256_of(run['model'])


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(run):
    text = 'abcdefghijklmnopqrstuvwxyz' * 10
    tokenizer = CharTokenizer.from_text(text)
    ids = [i % 3 for i in tokenizer.encode(text)]     # no id is out of range, so only the sizes can tell
    preparation.write('data/letters', [('train', ids), ('val', ids)], tokenizer, 'letters', '0')
    with pytest.raises(UserError, match='data/letters: a tokenizer of 26 tokens for a model of 10'):
        train.main(settings(max_iters=1, out_dir='tuned', init_from='out', dataset='letters'))
    assert not os.path.exists('tuned')


# ---------------------------------------------------------------------------- weights and config

@every_kind
def test_gpt_from_weights_round_trip(kind):
    model, idx = random_model(kind, dropout=0.3), some_ids(2, 6)
    again = pretrained.gpt_from_weights(asdict(model.config), model.state_dict(), dropout=0.1).double().eval()
    assert asdict(again.config) == {**asdict(model.config), 'dropout': 0.1}
    torch.testing.assert_close(all_logits(again, idx), all_logits(model, idx), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('wrong, named', [
    (dict(n_embd=32), 'wte.weight is (11, 16), expected (11, 32)'),
    (dict(n_layer=3), 'h.2.ln_1.weight is missing'),
    (dict(n_layer=1), 'unexpected tensor'),
    (dict(n_kv_head=2), 'size mismatch'),
    (dict(bias=False), 'unexpected tensor'),
    (dict(n_experts=8), 'n_experts'),
    (dict(mlp='elu'), "mlp='elu'"),
    (dict(n_inner=64.0), 'n_inner is 64.0, expected int'),
    (dict(rope_theta=torch.zeros(2)), 'rope_theta is <Tensor>, expected float'),
])
def test_weights_that_do_not_fit_are_refused_in_one_line(wrong, named):
    with pytest.raises(UserError) as e:
        pretrained.gpt_from_weights({**TINY, **wrong}, GPT(GPTConfig(**TINY)).state_dict())
    assert named in str(e.value)
    assert '\n' not in str(e.value)


def test_metadata_that_is_not_plain_is_one_line(run):
    pytest.importorskip('safetensors', reason="the format of the weights: pip install safetensors")
    checkpoint.save('out/best.pt', {**run, 'tokenizer': {'kind': [[]]}})
    with pytest.raises(UserError, match="^out/best.pt: tokenizer has 'kind': "):
        export.main(export.ExportConfig())
    assert 'model.safetensors' not in os.listdir('out')


# ---------------------------------------------------------------------------- tokenizers

def test_the_tokenizer_asked_for_wins_over_the_models_own(run):
    prepare_babble()
    os.makedirs('data/other')
    with open('data/other/meta.json', 'w', encoding='utf-8') as f:
        json.dump(dict(vocab_size=256, dtype='uint16', tokenizer={'kind': 'byte'}), f)

    found = pretrained.load('out')
    assert pretrained.find_tokenizer(found) == found.tokenizer
    assert pretrained.find_tokenizer(found, 'other') == {'kind': 'byte'}


def test_nanogpts_checkpoint_gets_the_tokenizer_of_its_dataset(run):
    """It names its dataset only; a name that is no folder in data/ is never opened as a path."""
    del run['tokenizer']
    checkpoint.save('nano.pt', run)
    expected = metadata.read_meta('data/babble')['tokenizer']
    assert pretrained.find_tokenizer(pretrained.load('nano.pt')) == expected

    run['config']['dataset'] = '../data/babble'
    checkpoint.save('nano.pt', run)
    with pytest.raises(UserError, match='nano.pt: no tokenizer in it, .*--dataset=NAME'):
        pretrained.find_tokenizer(pretrained.load('nano.pt'))
