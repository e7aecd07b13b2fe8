"""The training loop: bit-exact resume, evaluation, gradient accumulation, and what a run prints and writes."""

import math
import os
import sys
import types
from dataclasses import replace

import pytest
import torch
from conftest import prepare_babble, read_log, settings, sha256_of, snapshot
from torch.nn import functional as F

import train
from gradus import checkpoint, data, evaluation, metadata, optim, parallel, pretrained
from gradus.errors import UserError
from model import GPT

GPT2_STYLE = dict(pos='learned', mlp='gelu', n_kv_head=0)
RUINOUS = dict(learning_rate=3.0, min_lr=3.0)         # these make any model worse


def trained(out_dir, which='ckpt.pt'):
    """Hashes of a run's weights and of its optimizer's tensors."""
    state = checkpoint.load(os.path.join(out_dir, which))
    return sha256_of(state['model']), sha256_of(state['optimizer']['state'])


@pytest.fixture(scope='module')
def plain_run(tmp_path_factory):
    """The hashes of a run with settings() as they are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp('plain_run'))
        prepare_babble()
        train.main(settings())
        return trained('out')


# ---------------------------------------------------------------------------- resume

@pytest.mark.parametrize('changes', [
    {},
    dict(optimizer='muon', data_order='shuffled', qk_norm=True),
], ids=['adamw', 'muon'])
def test_resume_is_bit_exact(place, changes):
    """60 iterations in one go equal 25 iterations, a resume between two evaluations, and 35 more."""
    whole = settings(max_iters=60, out_dir='whole', eval_interval=20, **changes)
    train.main(whole)

    train.main(replace(whole, out_dir='parts', max_iters=25, sample_tokens=5))
    train.main(replace(whole, out_dir='parts', init_from='resume'))

    assert trained('whole') == trained('parts')
    assert read_log('whole') == read_log('parts')


def test_resume_from_a_save_between_evaluations(place):
    """After a crash the log has lines beyond the checkpoint, the last one cut short. They are written again."""
    whole = settings(max_iters=60, out_dir='whole', checkpoint_interval=25, eval_interval=40)
    train.main(whole)

    # Crash after iteration 33, with the checkpoint of iteration 25.
    train.main(replace(whole, out_dir='dies', max_iters=33))
    os.replace('dies/ckpt.pt.prev', 'dies/ckpt.pt')
    os.remove('dies/best.pt')
    assert checkpoint.load('dies/ckpt.pt')['iter_num'] == 25
    with open('dies/log.jsonl', 'a') as f:
        f.write('{"iter": 33, "lo')

    train.main(replace(whole, out_dir='dies', init_from='resume'))

    assert trained('dies') == trained('whole')
    assert read_log('dies') == read_log('whole')
    best_weights = checkpoint.load('dies/best.pt')['model']
    assert sha256_of(best_weights) == sha256_of(checkpoint.load('whole/best.pt')['model'])


def test_resume_comparison_can_fail(place, monkeypatch):
    """Negative control: the hashes differ if dropout is not reseeded, or if one bit of one moment differs."""
    whole = settings(max_iters=30, out_dir='whole')
    train.main(whole)

    train.main(replace(whole, out_dir='parts', max_iters=15))
    monkeypatch.setattr(train, 'seed_step', lambda cfg, step, rank: None)
    train.main(replace(whole, out_dir='parts', init_from='resume'))
    assert trained('whole')[0] != trained('parts')[0]

    state = checkpoint.load('whole/ckpt.pt')
    before = sha256_of(state['optimizer'])
    moment = state['optimizer']['state'][0]['exp_avg']
    moment.view(torch.int32)[0, 0] ^= 1
    assert sha256_of(state['optimizer']) != before


@pytest.mark.slow
def test_resume_is_bit_exact_when_compiled(place):
    """With two threads, which must not race for the embedding's gradient."""
    whole = settings(max_iters=12, out_dir='whole', compile=True, eval_interval=6)
    first_part = replace(whole, out_dir='parts', max_iters=7)
    second_part = replace(whole, out_dir='parts', init_from='resume')

    torch.set_num_threads(2)
    try:
        for cfg in (whole, first_part, second_part):
            torch._dynamo.reset()                     # as in a new process
            train.main(cfg)
    finally:
        torch.set_num_threads(1)
        torch.use_deterministic_algorithms(False)

    assert trained('whole') == trained('parts')


def test_evaluation_does_not_disturb_training(place, plain_run):
    train.main(settings(eval_interval=3, eval_iters=1, log_interval=7, checkpoint_interval=4))
    assert trained('out') == plain_run


def test_seed_changes_everything(place, plain_run):
    train.main(settings(seed=2))
    assert trained('out')[0] != plain_run[0]


def test_resuming_a_finished_run_changes_nothing(place, capsys):
    train.main(settings())
    before = snapshot('out')

    train.main(settings(init_from='resume'))

    assert snapshot('out') == before
    assert 'raise --max_iters' in capsys.readouterr().out


# ---------------------------------------------------------------------------- the step

def one_step(cfg, **changes):
    """All weights after one step of plain SGD from the same start, with the loss and the gradient norm."""
    cfg = replace(cfg, **changes)
    run = parallel.init('cpu')
    meta = metadata.read_meta('data/babble')
    model, _ = train.build_model(cfg, run, meta)
    tokens = data.Tokens('data/babble/train.bin', meta['dtype'], meta['vocab_size'], cfg.block_size)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scaler = torch.amp.GradScaler('cpu', enabled=False)

    loss, norm, _ = train.train_step(model, optimizer, scaler, tokens, 5, cfg, run)

    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    return weights, float(loss), float(norm)


def test_accumulation_equals_one_big_batch(place):
    cfg = settings(dropout=0.0, grad_clip=0.0)
    big, loss, norm = one_step(cfg, batch_size=12, gradient_accumulation_steps=1)

    for batch_size, n in ((4, 3), (1, 12), (6, 2)):
        small, small_loss, small_norm = one_step(cfg, batch_size=batch_size, gradient_accumulation_steps=n)
        assert (small - big).abs().max() < 1e-6
        assert abs(small_loss - loss) < 1e-6
        assert abs(small_norm - norm) < 1e-5

    # Negative control: one window less gives another gradient.
    other, _, _ = one_step(cfg, batch_size=11, gradient_accumulation_steps=1)
    assert (other - big).abs().max() > 1e-4


def test_gradient_clipping(place):
    free, _, norm = one_step(settings(dropout=0.0, grad_clip=0.0))
    clipped, _, norm_before = one_step(settings(dropout=0.0, grad_clip=norm / 4))
    start, _, _ = one_step(settings(dropout=0.0, grad_clip=1e-12))

    assert norm_before == pytest.approx(norm, rel=1e-5)
    assert torch.allclose((clipped - start) * 4, free - start, atol=1e-5)


def test_train_temperature_is_that_of_the_training_loss_only(place):
    cfg = settings(dropout=0.0, eval_iters=0, gradient_accumulation_steps=1)
    cold = replace(cfg, train_temperature=0.01)
    model, _, plain_losses = evaluated(cfg)
    tokens = data.Tokens('data/babble/train.bin', metadata.read_meta('data/babble')['dtype'], 10, cfg.block_size)
    x, y = tokens.windows(tokens.batch_starts(cfg.seed, 5, cfg.batch_size))
    logits, loss = model(x, y)
    cold_loss = F.cross_entropy(100 * logits.flatten(0, 1), y.flatten()).item()

    assert one_step(cfg)[1] == pytest.approx(loss.item(), abs=1e-5)
    assert one_step(cold)[1] == pytest.approx(cold_loss, abs=1e-5)
    assert abs(cold_loss - loss.item()) > 1e-2
    assert evaluated(cold)[2] == plain_losses


def test_model_args_are_nanogpts_seven_unless_the_model_is_not_gpt2(place):
    seven = dict(n_layer=2, n_head=4, n_embd=32, block_size=16, bias=False, vocab_size=10, dropout=0.1)

    gpt2_style = pretrained.config_of(settings(**GPT2_STYLE), 10)
    assert checkpoint.model_args(gpt2_style) == seven

    modern = pretrained.config_of(settings(), 10)
    assert checkpoint.model_args(modern) == {**seven, 'pos': 'rotary', 'mlp': 'swiglu', 'n_kv_head': 2}


# ---------------------------------------------------------------------------- evaluation

def losses(model, tokens, cfg, byte_lengths=None):
    n_windows = cfg.eval_iters * cfg.batch_size
    return evaluation.evaluate(model, tokens, cfg.batch_size, n_windows, parallel.init('cpu'), byte_lengths)


def evaluated(cfg, split='val'):
    """A new model, the tokens of a split, and the model's losses on them with 3 bytes per character."""
    run = parallel.init('cpu')
    meta = metadata.read_meta('data/babble')
    model, _ = train.build_model(cfg, run, meta)
    tokens = data.Tokens(f'data/babble/{split}.bin', meta['dtype'], meta['vocab_size'], cfg.block_size)
    lengths = torch.full((meta['vocab_size'],), 3)
    return model, tokens, losses(model, tokens, cfg, lengths)


def test_whole_split_is_measured_token_by_token(place):
    """eval_iters=0 against a simple loop over every window of val.bin, including the short last one."""
    model, tokens, (loss, bits) = evaluated(settings(eval_iters=0, block_size=13, batch_size=7))
    ids = torch.tensor(tokens.ids.astype('int64'))

    model.eval()
    total = 0.0
    count = 0
    for start in range(0, len(ids) - 1, 13):
        x = ids[start:start + 13]
        y = ids[start + 1:start + 14]
        logits, _ = model(x[None, :len(y)], y[None])
        total += F.cross_entropy(logits[0], y, reduction='sum').item()
        count += len(y)

    assert count == len(ids) - 1
    assert (len(ids) - 1) % 13, 'the last window is not short'
    assert loss == pytest.approx(total / count, abs=1e-5)
    assert bits == pytest.approx(loss / math.log(2) / 3, rel=1e-6)


def test_some_windows_are_fixed_and_spread(place):
    cfg = settings(eval_iters=2, batch_size=5)
    model, tokens, first = evaluated(cfg)

    # The windows do not depend on the random state.
    torch.rand(3)
    assert losses(model, tokens, cfg)[0] == first[0]

    starts = tokens.eval_starts(10)
    assert len(set(starts)) == 10
    assert all(s % 16 == 0 for s in starts)
    assert starts[-1] > len(tokens) * 0.8

    many = losses(model, tokens, replace(cfg, eval_iters=10 ** 6))[0]
    whole = losses(model, tokens, replace(cfg, eval_iters=0))[0]
    assert many == whole != first[0]


def test_eval_only_works_at_any_iteration_and_writes_nothing(place, capsys):
    train.main(settings(max_iters=7, eval_interval=7))
    line = [s for s in capsys.readouterr().out.splitlines() if s.startswith('step 7:')][0]
    before = snapshot('out')

    train.main(settings(init_from='resume', eval_only=True, max_iters=7))
    assert line in capsys.readouterr().out
    assert snapshot('out') == before

    train.main(settings(out_dir='other', eval_only=True))
    assert 'step 0:' in capsys.readouterr().out
    assert not os.path.exists('other')


def test_reported_loss_perplexity_and_bits(place, capsys):
    train.main(settings(max_iters=0, eval_iters=0))

    record = read_log('out')[0]
    loss = record['val_loss']
    bits = record['val_bits_per_byte']
    assert record['iter'] == 0
    assert loss == pytest.approx(math.log(13), abs=0.3)
    assert bits == pytest.approx(loss / math.log(2))              # one byte per character
    assert f'perplexity {math.exp(loss):.2f}, {bits:.4f} bits per byte' in capsys.readouterr().out


# ---------------------------------------------------------------------------- what a run leaves behind

def test_log_has_what_plots_need(place):
    train.main(settings(max_iters=6, eval_interval=3, log_interval=2))

    log = read_log('out', times=True)
    is_evaluation = [(r['iter'], 'val_loss' in r) for r in log]
    assert is_evaluation == [(0, True), (0, False), (0, False), (2, False), (3, True), (3, False), (4, False),
                             (6, True)]
    assert {'iter', 'train_loss', 'val_loss', 'lr', 'tokens', 'elapsed_s'} <= set(log[0])
    assert {'iter', 'lr', 'tokens', 'update_ratio'} == set(log[1]) == set(log[5])
    assert {'iter', 'loss', 'lr', 'tokens', 'elapsed_s', 'tokens_per_s', 'grad_norm'} <= set(log[2])
    assert [r['tokens'] for r in log] == [0, 128, 128, 384, 384, 512, 640, 768]
    assert log[2]['lr'] == pytest.approx(1e-2 / 5)


def test_training_learns(place):
    train.main(settings(max_iters=150, lr_decay_iters=150, dropout=0.0, eval_interval=50))

    val_losses = [r['val_loss'] for r in read_log('out') if 'val_loss' in r]
    assert val_losses[-1] < 2.1 < val_losses[0] - 0.2
    assert val_losses == sorted(val_losses, reverse=True)


def test_best_weights_are_kept_when_the_last_are_worse(place):
    train.main(settings(max_iters=40, eval_interval=20))
    good = checkpoint.load('out/best.pt')

    train.main(settings(init_from='resume', max_iters=60, eval_interval=20, **RUINOUS))

    best = checkpoint.load('out/best.pt')
    last = checkpoint.load('out/ckpt.pt')
    assert sha256_of(best['model']) == sha256_of(good['model']) != sha256_of(last['model'])
    assert (best['iter_num'], last['iter_num']) == (40, 60)
    assert 'optimizer' not in best
    assert last['best_val_loss'] == best['best_val_loss'] == good['best_val_loss']


def test_always_save_checkpoint_false_saves_only_improvements_and_the_end(place, capsys):
    train.main(settings(max_iters=4, eval_interval=1, warmup_iters=0, always_save_checkpoint=False, **RUINOUS))

    evaluations = [r for r in read_log('out') if 'val_loss' in r]
    best = math.inf
    saves = 0
    for r in evaluations:
        saves += r['val_loss'] < best and r['iter'] > 0
        best = min(best, r['val_loss'])
    saves += evaluations[-1]['val_loss'] > best                   # the last state is saved in any case
    assert capsys.readouterr().out.count('saved') == saves


def test_an_old_run_is_moved_aside(place, capsys):
    for _ in range(3):
        train.main(settings(max_iters=2))

    runs = sorted(d for d in os.listdir('.') if d.startswith('out'))
    assert runs == ['out', 'out-1', 'out-2']
    assert all(checkpoint.load(f'{d}/ckpt.pt')['iter_num'] == 2 for d in runs)
    assert 'is now in out-2' in capsys.readouterr().out


def test_a_folder_without_a_run_is_used_as_it_is(place):
    os.mkdir('out')
    (place / 'out/notes.txt').write_text('mine')

    train.main(settings(max_iters=1))

    assert (place / 'out/notes.txt').read_text() == 'mine'
    assert os.path.exists('out/ckpt.pt')
    assert not os.path.exists('out-1')


def test_zero_iterations(place):
    train.main(settings(max_iters=0))
    assert checkpoint.load('out/ckpt.pt')['iter_num'] == 0


def test_ends_with_a_sample_and_the_command_for_more(place, capsys):
    train.main(settings(max_iters=2, sample_tokens=50))

    out = capsys.readouterr().out
    sample = out.split('---------------')[1]
    assert len(sample) >= 50
    assert set(sample) <= set('abcdefgh \n')
    assert out.rstrip().endswith('python sample.py --out_dir=out')


# ---------------------------------------------------------------------------- wandb, vocabulary, dtype, optimizer

def test_wandb_is_optional_and_gets_the_log(place, monkeypatch):
    calls = []
    fake = types.SimpleNamespace(
        init=lambda **kwargs: calls.append(kwargs['name']),
        log=lambda entry, step: calls.append(step),
        finish=lambda: calls.append('finish'),
    )

    monkeypatch.setitem(sys.modules, 'wandb', fake)
    train.main(settings(max_iters=2, wandb_log=True, wandb_run_name='mine'))
    assert calls == ['mine', *(r['iter'] for r in read_log('out')), 'finish']

    monkeypatch.setitem(sys.modules, 'wandb', None)
    with pytest.raises(UserError, match='pip install wandb'):
        train.main(settings(max_iters=2, wandb_log=True))


@pytest.mark.parametrize('vocab_size, expected', [(65, 65), (3001, 3001), (50257, 50304), (50304, 50304)])
def test_only_gpt2s_vocabulary_is_padded(vocab_size, expected):
    meta = dict(vocab_size=vocab_size, tokenizer={})
    model, _ = train.build_model(settings(n_embd=8, n_layer=1), parallel.init('cpu'), meta)
    assert model.config.vocab_size == expected


def test_dtype_bfloat16_on_cpu_trains_too(place):
    train.main(settings(max_iters=3, dtype='bfloat16'))

    assert all(math.isfinite(r['loss']) for r in read_log('out') if 'loss' in r)
    weights = checkpoint.load('out/ckpt.pt')['model']
    assert all(t.dtype == torch.float32 for t in weights.values())


def test_optimizer_settings_come_from_the_config_on_resume(place):
    train.main(settings(max_iters=3))
    train.main(settings(max_iters=5, init_from='resume', weight_decay=0.7, beta2=0.5))

    groups = checkpoint.load('out/ckpt.pt')['optimizer']['param_groups']
    assert [g['weight_decay'] for g in groups] == [0.7, 0.0]
    assert groups[0]['betas'] == (0.9, 0.5)


def test_a_gpt2_style_run_has_the_parameters_of_gpt2_only(place):
    cfg = settings(max_iters=1, **GPT2_STYLE)
    train.main(cfg)

    state = checkpoint.load('out/ckpt.pt')
    assert {'model', 'optimizer', 'model_args', 'iter_num', 'best_val_loss', 'config'} <= set(state)
    assert set(state['model_args']) == set(checkpoint.NANOGPT_MODEL_ARGS)
    assert all(type(v) in (str, int, float, bool, type(None)) for v in state['config'].values())
    pretrained.gpt_from_weights(state['model_args'], state['model'])

    model = GPT(pretrained.config_of(cfg, state['model_args']['vocab_size']))
    saved_sizes = [len(g['params']) for g in state['optimizer']['param_groups']]
    assert saved_sizes == [len(g['params']) for g in optim.param_groups(model, 0.1)]
