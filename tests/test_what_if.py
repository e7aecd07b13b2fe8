"""config/what_if/: each config changes one thing, trains, writes text, and is told apart by everything else."""

import shutil
from dataclasses import asdict

import pytest
import torch
from conftest import REPO, flags_of, read_log, run_main

import export
import sample
import train
from gradus import configurator

NAMES = sorted(path.stem for path in (REPO / 'config/what_if').glob('*.py') if path.stem != 'base')
SMALL = ['--dataset=babble', '--block_size=16', '--n_layer=2', '--n_embd=16', '--max_iters=4', '--lr_decay_iters=4',
         '--warmup_iters=1', '--eval_interval=4', '--eval_iters=2', '--sample_tokens=0']


@pytest.fixture
def here(place):
    """The configs read base.py from the current folder."""
    shutil.copytree(REPO / 'config/what_if', 'config/what_if')
    return place


def settings_of(name):
    return asdict(configurator.load(train.TrainConfig, [f'config/what_if/{name}.py']))


@pytest.mark.parametrize('name', NAMES)
def test_a_what_if_changes_one_thing(name, here):
    base, changed = settings_of('base'), settings_of(name)
    different = {key for key in base if base[key] != changed[key]}
    assert len(different) == 2 and 'out_dir' in different
    assert changed['out_dir'] == f"out-what-if-{name.replace('_', '-')}"


@pytest.mark.parametrize('name', NAMES)
def test_a_what_if_trains_resumes_and_writes_text(name, here):
    flags = [f'config/what_if/{name}.py', *SMALL, '--out_dir=out']
    assert run_main(train, *flags, '--max_iters=2').returncode == 0
    resumed = run_main(train, *flags, '--init_from=resume')
    assert resumed.returncode == 0, resumed.stderr
    assert [r['iter'] for r in read_log('out') if 'val_loss' in r] == [0, 4]

    text = run_main(sample, '--out_dir=out', '--num_samples=2', '--max_new_tokens=20', '--device=cpu')
    assert text.returncode == 0, text.stderr
    assert text.stdout.count('---------------') == 2


def test_without_a_mask_the_answer_leaks(here):
    """Where each token sees the next one, the loss falls to almost nothing; with a mask it does not."""
    losses = {}
    for mask in ('causal', 'none', 'other_half'):
        flags = flags_of(out_dir=f'out-{mask}', mask=mask, block_size=8, n_layer=1, dropout=0.0, optimizer='muon',
                         learning_rate=0.02, gradient_accumulation_steps=1, batch_size=32, max_iters=200,
                         lr_decay_iters=200, eval_interval=200, eval_iters=0)
        assert run_main(train, *flags).returncode == 0
        losses[mask] = read_log(f'out-{mask}')[-1]['val_loss']
    assert losses['none'] < losses['causal'] / 2
    assert losses['other_half'] < losses['causal'] / 2


@pytest.mark.parametrize('field, value', [('score', 'squared'), ('mask', 'none'), ('residual', False),
                                          ('norm', 'none'), ('pos', 'none'), ('mlp', 'sigmoid')])
@pytest.mark.parametrize('to', ['hf', 'gguf', 'nanogpt'])
def test_no_other_program_knows_them(to, field, value, here):
    pytest.importorskip({'hf': 'safetensors', 'gguf': 'gguf', 'nanogpt': 'torch'}[to])
    plain = dict(pos='learned', mlp='gelu', n_kv_head=0, dropout=0.0, max_iters=1, eval_iters=1)
    assert run_main(train, *flags_of(**{**plain, field: value})).returncode == 0
    refused = run_main(export, '--out_dir=out', f'--to={to}')
    assert refused.returncode == 2
    assert f'{field}={value}' in refused.stderr and refused.stderr.count('\n') == 1


def test_what_needs_a_causal_mask_says_so(here):
    assert run_main(train, *flags_of(mask='none', max_iters=1, eval_iters=1)).returncode == 0
    beams = run_main(sample, '--out_dir=out', '--beams=2', '--max_new_tokens=5', '--device=cpu')
    assert (beams.returncode, beams.stderr.count('\n')) == (2, 2)               # the first line names the model
    assert 'mask=none: expected a model with a causal mask' in beams.stderr

    pytest.importorskip('onnxscript')
    refused = run_main(export, '--out_dir=out', '--to=onnx')
    assert refused.returncode == 2
    assert 'mask=none: an ONNX file needs mask=causal' in refused.stderr


@pytest.mark.slow
def test_a_what_if_as_onnx(here):
    """The graph has the other score, too."""
    runtime = pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    assert run_main(train, *flags_of(score='squared', residual=False, max_iters=3, eval_iters=1)).returncode == 0
    assert run_main(export, '--out_dir=out', '--to=onnx', '--dest=model.onnx').returncode == 0
    from gradus import pretrained
    model = pretrained.build(pretrained.load('out')).eval()
    ids = torch.randint(model.config.vocab_size, (2, 9))
    logits, = runtime.InferenceSession('model.onnx').run(None, {'input_ids': ids.numpy()})
    expected = model(ids, ids)[0].detach()
    torch.testing.assert_close(torch.from_numpy(logits), expected, atol=1e-4, rtol=1e-4)
    plain = pretrained.build(pretrained.load('out'))
    plain.config.score = 'dot'
    assert not torch.allclose(plain.eval()(ids, ids)[0], expected, atol=1e-4)
