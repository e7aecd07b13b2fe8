"""Watching a run learn: its samples, how far steps move the weights, TensorBoard and Weights & Biases."""

import json
import math
import os
import pickle
import shutil
import struct
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import flags_of, prepare_babble, read_log, run_script, settings, sha256_of
from test_pairs_end_to_end import prepare as prepare_pairs
from test_parallel import losses, train_here, train_two

import train
from gradus import checkpoint, mirrors, parallel, pretrained, sampling, updates
from gradus.errors import UserError
from gradus.tokenizer import build_tokenizer
from model import GPT, GPTConfig

OFTEN = dict(sample_interval=5, sample_tokens=12)


def trained(out_dir='out'):
    state = checkpoint.load(os.path.join(out_dir, 'ckpt.pt'))
    return sha256_of([state['model'], state['optimizer']])


def samples(out_dir='out'):
    return {r['iter']: r['sample'] for r in read_log(out_dir) if 'sample' in r}


@pytest.fixture(scope='module')
def plain_run(tmp_path_factory):
    """The hash of a run with settings(), without samples."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp('plain_run'))
        prepare_babble()
        train.main(settings())
        return trained()


# ---------------------------------------------------------------------------- samples

def test_samples_do_not_disturb_the_run(place, plain_run):
    train.main(settings(**OFTEN))
    assert trained() == plain_run
    assert list(samples()) == [0, 5, 10, 15, 20]


def test_that_comparison_can_fail(place, plain_run, monkeypatch):
    """Negative control: a sample that forgets to go back to training mode turns dropout off."""
    monkeypatch.setattr(train, 'show_sample', lambda model, *rest: str(model.eval()))
    train.main(settings(**OFTEN))
    assert trained() != plain_run


def text_of(path, tokens):
    """What the model in a checkpoint writes, one token at a time and without a cache."""
    state = checkpoint.load(path)
    model = pretrained.gpt_from_weights(state['model_args'], state['model'], path).eval()
    letters = build_tokenizer(state['tokenizer'])
    sampler = sampling.Sampler(temperature=0.8, top_k=200, seeds=[1337])
    ids = torch.tensor([[letters.start_id]])
    with torch.no_grad():
        for _ in range(tokens):
            ids = torch.cat((ids, sampler(model(ids)[0][:, -1], ids)), dim=1)
    return letters.decode(ids[0, 1:].tolist())


def test_samples_are_what_the_model_writes_at_that_iteration(place, capsys):
    train.main(settings(max_iters=30, sample_interval=15, eval_interval=15, sample_tokens=15))
    printed = capsys.readouterr().out
    found = samples()
    assert list(found) == [0, 15, 30]
    assert found[30] == text_of('out/ckpt.pt', 15)
    assert found[15] == text_of('out/ckpt.pt.prev', 15) != found[30]
    assert [printed.count(f'---\n{text}\n---') for text in found.values()] == [1, 1, 1]
    assert printed.count('a sample:') == 3


def test_a_last_sample_that_is_not_due_is_shown_but_not_logged(place, capsys):
    train.main(settings(max_iters=7, **OFTEN))
    assert list(samples()) == [0, 5]
    out = capsys.readouterr().out
    assert out.count('a sample:') == 3
    assert out.index('done:') < out.rindex('a sample:')


@pytest.mark.parametrize('stop', [10, 12, 20])
def test_a_resumed_run_has_each_sample_once(place, stop):
    """Stopped where a sample is due, where none is, and where an evaluation is due too."""
    whole = settings(max_iters=25, out_dir='whole', **OFTEN)
    train.main(whole)
    train.main(replace(whole, out_dir='parts', max_iters=stop))
    train.main(replace(whole, out_dir='parts', init_from='resume'))
    assert read_log('parts') == read_log('whole')
    assert list(samples('parts')) == [0, 5, 10, 15, 20, 25]


def test_a_crash_after_the_checkpoint_leaves_no_sample_twice(place):
    whole = settings(max_iters=25, out_dir='whole', checkpoint_interval=10, **OFTEN)
    train.main(whole)
    train.main(replace(whole, out_dir='dies', max_iters=17))
    os.replace('dies/ckpt.pt.prev', 'dies/ckpt.pt')               # of iteration 10; the log goes on to 17
    train.main(replace(whole, out_dir='dies', init_from='resume'))
    assert read_log('dies') == read_log('whole')


def test_pairs_are_shown_with_their_prompt(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('sums.tsv').write_text(''.join(f'{a}+{b}\t{a + b}\n' for a in range(20) for b in range(20)))
    prepare_pairs('sums.tsv', out='data/babble')
    train.main(settings(max_iters=5, **OFTEN))
    prompts = {text.partition('\n')[0] for text in samples().values()}
    assert list(samples()) == [0, 5]
    assert len(prompts) == 1
    assert '+' in prompts.pop()


def test_without_a_tokenizer_there_are_no_samples(place, capsys):
    os.remove('data/babble/meta.json')
    Path('data/babble/meta.pkl').write_bytes(pickle.dumps({'vocab_size': 10, 'itos': {0: b'a'}}))
    train.main(settings(max_iters=5, **OFTEN))
    printed = capsys.readouterr()
    assert 'a sample' not in printed.out
    assert printed.err.count('no text can be shown') == 1
    assert samples() == {}


def test_bfloat16(place):
    cfg = settings(max_iters=10, dtype='bfloat16', n_layer=1)
    train.main(cfg)
    train.main(replace(cfg, out_dir='watched', **OFTEN))
    assert trained('watched') == trained('out')
    assert list(samples('watched')) == [0, 5, 10]


def small_model(**changes):
    torch.manual_seed(0)
    return GPT(GPTConfig(**dict(block_size=8, vocab_size=7, n_layer=2, n_head=2, n_embd=8, dropout=0.5) | changes))


def test_a_model_of_nan_writes_nothing_and_stays_in_training_mode(capsys):
    letters = SimpleNamespace(tokenizer=SimpleNamespace(n_vocab=7), sample_start=lambda: [0],
                              sample_text=lambda ids: str(ids))
    cfg = SimpleNamespace(sample_tokens=5, seed=1)
    model = small_model()
    before = torch.get_rng_state()

    assert len(sampling.show_sample(model, letters, cfg, parallel.init('cpu'))) == len(str([0] * 6))
    model.lm_head.weight.data.fill_(math.nan)
    assert sampling.show_sample(model, letters, cfg, parallel.init('cpu')) == ''

    assert 'no sample: the model computes NaN' in capsys.readouterr().out
    assert all(m.training for m in model.modules())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
def test_two_processes(place):
    """The first one alone samples, and both go on."""
    train_here('one')
    out = train_two('two', '--sample_interval=10', '--sample_tokens=8')
    assert list(samples('two')) == [0, 10, 20]
    assert out.count('a sample:') == 3
    found = [(n, loss) for n, loss in losses('two') if loss is not None]
    assert found == [(n, pytest.approx(loss, abs=1e-4)) for n, loss in losses('one')]


# ---------------------------------------------------------------------------- how far a step moves the weights

def kinds_of(weights):
    """{kind: all its weights in one vector}, of a checkpoint with tied matrices and rotary positions."""
    parts = {'embedding': ['wte.weight'], 'attention': ['c_attn.weight', 'attn.c_proj.weight'],
             'mlp': ['c_fc.weight', 'c_gate.weight', 'mlp.c_proj.weight']}
    return {kind: np.concatenate([w.double().numpy().ravel() for name, w in weights.items()
                                  if name.endswith(tuple(ends))]) for kind, ends in parts.items()}


@pytest.mark.parametrize('optimizer', ['adamw', 'muon'])
def test_update_ratios_are_those_between_two_checkpoints(place, optimizer):
    train.main(settings(max_iters=11, eval_interval=10, checkpoint_interval=1, log_interval=3, optimizer=optimizer))
    records = [r for r in read_log('out') if 'update_ratio' in r]
    assert [r['iter'] for r in records] == [0, 10]

    before = kinds_of(torch.load('out/ckpt.pt.prev', weights_only=True)['model'])
    after = kinds_of(torch.load('out/ckpt.pt', weights_only=True)['model'])
    expected = {kind: np.linalg.norm(after[kind] - before[kind]) / np.linalg.norm(before[kind]) for kind in before}
    assert records[1]['update_ratio'] == pytest.approx(expected, rel=1e-4)
    assert records[0]['update_ratio'] != pytest.approx(expected, rel=0.1)       # negative control: another step


def test_looking_does_not_change_training(place, plain_run, monkeypatch):
    monkeypatch.setattr(train, 'copy_matrices', lambda model: {})
    train.main(settings())
    assert trained() == plain_run
    assert not any('update_ratio' in r for r in read_log('out'))


def test_a_step_that_was_not_taken_has_no_ratio(place, monkeypatch):
    step = train.train_step
    monkeypatch.setattr(train, 'train_step', lambda *a: (*step(*a)[:2], False))
    train.main(settings(max_iters=2, eval_interval=1, skip_nonfinite=5))
    assert [r['iter'] for r in read_log('out') if 'skipped' in r] == [0, 1]
    assert not any('update_ratio' in r for r in read_log('out'))


@pytest.mark.parametrize('changes, kinds', [
    (dict(), ['embedding', 'position', 'attention', 'mlp']),
    (dict(tie_weights=False, pos='rotary', norm='rmsnorm', mlp='swiglu', qk_norm=True),
     ['embedding', 'attention', 'mlp', 'unembedding']),
])
def test_every_matrix_has_one_kind(changes, kinds):
    model = small_model(**changes)
    copies = updates.copy_matrices(model)
    assert list(copies) == kinds
    matrices = [p for p in model.parameters() if p.dim() == 2]
    assert sum(len(c) for c in copies.values()) == len(matrices)

    # They are copies: what happens to the model does not reach them.
    with torch.no_grad():
        for p in matrices:
            p.mul_(1.25)
    ratios = updates.update_ratios(copies, model)
    assert ratios == pytest.approx(dict.fromkeys(kinds, 0.25), rel=1e-5)


# ---------------------------------------------------------------------------- TensorBoard

def events(folder='out'):
    """What TensorBoard's own reader finds: {name: [(step, value)]} of scalars, and the same of texts."""
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    reader = EventAccumulator(os.path.join(folder, 'tensorboard'), dict(scalars=0, tensors=0)).Reload()
    tags = reader.Tags()
    scalars = {tag: [(e.step, e.value) for e in reader.Scalars(tag)] for tag in tags['scalars']}
    texts = {tag: [(e.step, e.tensor_proto.string_val[0].decode()) for e in reader.Tensors(tag)]
             for tag in tags['tensors']}
    return scalars, texts


def scalars_of(records):
    """The same from log.jsonl."""
    found = {}
    for record in records:
        flat = {f'update_ratio/{kind}': value for kind, value in record.get('update_ratio', {}).items()} | record
        for name, value in flat.items():
            if type(value) in (int, float) and name != 'iter':
                found.setdefault(name, []).append((record['iter'], pytest.approx(value, rel=1e-6)))
    return found


WITH_TENSORBOARD = dict(tensorboard_log=True, n_layer=1, eval_iters=1, **OFTEN)


def test_tensorboard_has_every_number_and_text_of_the_log(place):
    pytest.importorskip('tensorboard')
    train.main(settings(max_iters=11, eval_interval=10, log_interval=3, **WITH_TENSORBOARD))
    scalars, texts = events()
    assert scalars == scalars_of(read_log('out', times=True))
    assert {'loss', 'val_loss', 'grad_norm', 'tokens_per_s', 'update_ratio/attention'} <= set(scalars)

    [shown] = texts.values()
    assert [(step, text.replace('\n    ', '\n')[4:]) for step, text in shown] == list(samples().items())


def test_tensorboard_shows_a_resumed_run_as_one(place):
    """The checkpoint is of iteration 10, which was evaluated; the events went on to 14."""
    pytest.importorskip('tensorboard')
    cfg = settings(max_iters=14, eval_interval=5, **WITH_TENSORBOARD)
    train.main(cfg)
    os.replace('out/ckpt.pt.prev', 'out/ckpt.pt')
    assert checkpoint.load('out/ckpt.pt')['iter_num'] == 10
    train.main(replace(cfg, max_iters=20, init_from='resume'))

    scalars, _ = events()
    expected = scalars_of(read_log('out', times=True))
    for name in ('val_loss', 'loss', 'update_ratio/mlp'):
        assert dict(scalars[name]) == dict(expected[name])
        steps = [step for step, _ in scalars[name]]
        assert [step for step in steps if step != 10] == [step for step, _ in expected[name] if step != 10]
        assert steps.count(10) <= 2                   # the step was taken twice, with the same result


def test_an_old_run_takes_its_events_along(place):
    pytest.importorskip('tensorboard')
    train.main(settings(max_iters=3, **WITH_TENSORBOARD))
    old = events()
    train.main(settings(max_iters=2, **WITH_TENSORBOARD))
    assert events('out-1') == old
    assert [step for step, _ in events()[0]['loss']] == [0, 1]

    # A run that ended before its first checkpoint: its logs stay, under other names.
    os.remove('out/ckpt.pt')
    os.remove('out/best.pt')
    train.main(settings(max_iters=1, **WITH_TENSORBOARD))
    assert {'log-1.jsonl', 'tensorboard-1', 'log.jsonl', 'tensorboard'} <= set(os.listdir('out'))
    assert [step for step, _ in events()[0]['loss']] == [0]


def test_without_tensorboard(place, monkeypatch):
    monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', None)
    with pytest.raises(UserError, match='^tensorboard_log=True needs tensorboard; pip install tensorboard, or use'):
        train.main(settings(max_iters=1, tensorboard_log=True))
    assert not os.path.exists('out')


def test_events_that_cannot_be_written_do_not_stop_a_run(tmp_path, capsys, monkeypatch):
    pytest.importorskip('tensorboard')
    monkeypatch.setattr(threading, 'excepthook', lambda args: None)             # TensorBoard's thread dies of it
    board = mirrors.TensorBoard(tmp_path)
    board.log(dict(iter=0, loss=1.0), 0)
    shutil.rmtree(tmp_path / 'tensorboard')
    for step in range(50):
        board.log(dict(iter=step, loss=1.0), step)
    board.close()
    assert capsys.readouterr().err.count('warning: ') == 1


# ---------------------------------------------------------------------------- Weights & Biases

def wandb_records(path):
    """The records in an offline run's file: LevelDB's log format, of protocol buffers, after seven bytes."""
    from wandb.proto import wandb_internal_pb2
    content = path.read_bytes()
    position = 7
    record = b''
    while position + 7 <= len(content):
        room = 2 ** 15 - position % 2 ** 15           # no header crosses the border of a block
        if room < 7:
            position += room
            continue
        length, kind = struct.unpack_from('<HB', content, position + 4)
        record += content[position + 7:position + 7 + length]
        position += 7 + length
        if kind in (1, 4):                            # the whole record, or its last part
            message = wandb_internal_pb2.Record()
            message.ParseFromString(record)
            yield message
            record = b''


@pytest.mark.slow
def test_wandb_offline_gets_the_log_and_the_settings(place):
    """The real package, without a network. A resumed run is a run of its own there."""
    pytest.importorskip('wandb')
    env = dict(WANDB_MODE='offline', WANDB_DIR=str(place), WANDB_SILENT='true')
    flags = dict(wandb_log=True, wandb_project='words', wandb_run_name='first', eval_interval=5, **OFTEN)
    for changes in (dict(max_iters=10), dict(max_iters=15, init_from='resume')):
        ran = run_script('train.py', *flags_of(**flags, **changes), env=env)
        assert ran.returncode == 0, ran.stderr

    log = read_log('out', times=True)
    steps = []
    for path in sorted(place.glob('wandb/offline-run-*/*.wandb'), key=os.path.getmtime):
        records = list(wandb_records(path))
        run = next(r.run for r in records if r.WhichOneof('record_type') == 'run')
        config = {item.key: json.loads(item.value_json) for item in run.config.update}
        assert (run.project, run.display_name) == ('words', 'first')
        assert (config['n_embd'], config['dropout'], config['pos']) == (32, 0.1, 'rotary')

        for history in (r.history for r in records if r.WhichOneof('record_type') == 'history'):
            row = {'.'.join(item.nested_key) or item.key: json.loads(item.value_json) for item in history.item}
            steps.append(row['iter'])
            of_this_step = {}
            for record in log:
                if record['iter'] == row['iter']:
                    of_this_step |= record
            for name in {'loss', 'val_loss', 'grad_norm', 'sample'} & set(row):
                assert row[name] == of_this_step[name]
            assert 'loss' in row or row['iter'] in (10, 15)
    assert steps == [*range(11), *range(10, 16)]


def test_wandb_that_cannot_start_is_one_line(monkeypatch):
    def init(**_):
        raise RuntimeError('No API key configured.\nUse `wandb login` to log in.')
    monkeypatch.setitem(sys.modules, 'wandb', SimpleNamespace(init=init))
    with pytest.raises(UserError, match='wandb_log=True: No API key configured. Use `wandb login` to log in.; use'):
        mirrors.start(settings(wandb_log=True), 0)
