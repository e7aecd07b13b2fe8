"""benchmarks/plan.py and gradus/forecast.py: published runs, what a run here would need, what train.py says of it."""

import re
import shlex
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import REPO, flags_of, read_log, run_main, run_script, settings

import train
from benchmarks import plan
from gradus import accounting, configurator, forecast, memory
from gradus.errors import UserError

SMALL = ['--device=cpu', '--block_size=16', '--batch_size=4', '--n_layer=1', '--n_head=2', '--n_embd=16',
         '--gradient_accumulation_steps=1', '--max_iters=7', '--lr_decay_iters=7', '--warmup_iters=1',
         '--eval_interval=3', '--eval_iters=2']
GPT3 = ['--n_layer=96', '--n_head=96', '--n_embd=12288', '--block_size=2048', '--bias=True', '--batch_size=1',
        '--gradient_accumulation_steps=1536', '--max_iters=95368', '--lr_decay_iters=95368']


def planned(capsys, *args):
    """What the plan prints."""
    plan.plan(configurator.load(plan.PlanConfig, [*map(str, args)], train))
    return capsys.readouterr().out


def number(text, pattern):
    return float(re.search(pattern, text)[1].replace(',', ''))


# ---------------------------------------------------------------------------- published runs

def test_nanogpt_124m_on_8_a100(capsys, tmp_path, monkeypatch):
    """
    nanoGPT's README: 135 ms for 12 sequences of 1024 tokens on one A100 (bench.py, compiled), and "about 4 days" on
    eight, while its config says 5. The MFU follows from the first figure, the days from the plan.
    """
    monkeypatch.chdir(tmp_path)
    config = plan.shape(train.TrainConfig(), None, 50304)
    flops = accounting.flops_per_token(SimpleNamespace(config=config))
    mfu = 12 * 1024 * flops / 0.135 / 312e12
    assert 0.2 < mfu < 0.3
    text = planned(capsys, REPO / 'config/train_gpt2.py', '--gpus=8', '--gpu=a100', f'--mfu={mfu}')
    assert '124.4M parameters on 8 x a100' in text and 'openwebtext is not prepared' in text
    assert 3.9 < number(text, r'\(--mfu\): ([\d.]+) days') < 5.1
    assert number(text, r'([\d,]+) tokens/s') == pytest.approx(8 * 12 * 1024 / 0.135, rel=1e-3)

    # Its batch_size fits, on the smaller A100 too.
    text = planned(capsys, REPO / 'config/train_gpt2.py', '--gpus=8', '--gpu=a100-40gb')
    assert number(text, r'ddp: (\d+)') >= 12


def test_gpt3(capsys, tmp_path, monkeypatch):
    """Brown et al. 2020, table D.1: 174,600 million weights, 300 billion tokens, 3.14e23 FLOP."""
    monkeypatch.chdir(tmp_path)
    text = planned(capsys, *GPT3, '--gpus=1024', '--gpu=v100')
    assert '174.6B parameters' in text and 'this run has 300B' in text
    assert number(text, r'([\d.e+]+) FLOP') == pytest.approx(3.14e23, rel=0.1)
    assert 'ddp: none fits' in text

    half = planned(capsys, *GPT3, '--n_layer=48', '--gpus=1024')                # negative control
    assert number(half, r'([\d.e+]+) FLOP') != pytest.approx(3.14e23, rel=0.1)


@pytest.mark.parametrize('name, n_params', [('gpt2', 124_439_808), ('gpt2-medium', 354_823_168),
                                            ('gpt2-large', 774_030_080), ('gpt2-xl', 1_557_611_200)])
def test_openai_s_sizes(name, n_params):
    """As Hugging Face counts them, without loading any."""
    assert plan.n_params(plan.shape(train.TrainConfig(init_from=name), None, 65)) == n_params


def test_zero_divides_what_lasts(tmp_path):
    """ZeRO (Rajbhandari et al. 2020), figure 1: 7.5 billion weights, 120 GB; 1.9 GB on each of 64 GPUs."""
    cfg = plan.PlanConfig(n_layer=36, n_head=32, n_embd=4096, gpus=64)
    config = plan.shape(cfg, None, 50304)
    assert plan.n_params(config) == pytest.approx(7.5e9, rel=0.02)
    steps = plan.ddp(cfg, config, 1), plan.fsdp(cfg, config, 1)
    lasting = [step.weights + step.gradients + step.optimizer for step in steps]
    assert lasting == pytest.approx([120e9, 1.9e9], rel=0.03)


# ---------------------------------------------------------------------------- this machine

def test_a_run_here(place, capsys):
    text = planned(capsys, *SMALL, '--dataset=babble')
    assert text.count('step of 1 x 4 sequences') == 3
    assert 'it fits' in text and 'together:' in text and 'Chinchilla' in text
    assert 'not prepared' not in text
    found = re.search(r'^(\S+) parameters', text)[1].replace(',', '')
    assert int(found) == 10 * 16 + 16 * 16 + 12 * 16 ** 2 + 3 * 16              # babble has 10 characters

    # Without the dataset it says what it assumes, and can be told better.
    text = planned(capsys, *SMALL, '--dataset=elsewhere')
    assert 'data/elsewhere is not prepared' in text and '50,304' in text
    text = planned(capsys, *SMALL, '--dataset=elsewhere', '--vocab_size=10', '--eval_iters=0')
    assert f'{found[0]},{found[1:]} parameters' in text and 'not counted' in text


def test_its_evaluations_are_those_of_the_run(place, capsys):
    for max_iters in (6, 7):
        flags = [*SMALL, '--dataset=babble', f'--max_iters={max_iters}', '--sample_tokens=0']
        assert run_main(train, *flags).returncode == 0
        evaluations = sum('val_loss' in record for record in read_log('out'))
        assert plan.number_of_evaluations(settings(max_iters=max_iters, eval_interval=3)) == evaluations
    text = planned(capsys, *SMALL, '--dataset=babble')
    assert '4 evaluations of 4 batches' in text       # at 0, 3, 6 and the end; two batches of each split


def test_what_does_not_fit_is_not_tried(place, capsys, monkeypatch):
    monkeypatch.setattr(plan, 'Ours', None)
    monkeypatch.setattr(plan, 'available', lambda device: 10_000)
    text = planned(capsys, *SMALL, '--dataset=babble')
    assert 'does not fit' in text and 'batch_size that fits: 0' in text and 'step of' not in text

    monkeypatch.setattr(plan, 'available', lambda device: None)
    with pytest.raises(TypeError):                    # not known: tried
        planned(capsys, *SMALL, '--dataset=babble')


def test_largest_batch():
    for limit in (0, 1, 2, 3, 7, 8, 1000):
        assert plan.largest_batch(lambda n, limit=limit: n <= limit) == limit


def clock(monkeypatch, *seconds):
    """Steps that take 10 s for each micro-batch and 1 s for the optimizer; or as given, then Ctrl-C."""
    given = iter(seconds)

    def take(step, side, n):
        if not seconds:
            return 10 * side.cfg.gradient_accumulation_steps + 1
        value = next(given, None)
        if value is None:
            raise KeyboardInterrupt
        return value
    monkeypatch.setattr(plan, 'seconds_of', take)


@pytest.mark.parametrize('n', [1, 2, 3, 40])
def test_the_time_of_a_step_of_many_micro_batches(n, monkeypatch):
    clock(monkeypatch)
    side = SimpleNamespace(cfg=settings(gradient_accumulation_steps=n))
    assert plan.time_of_step(side) == pytest.approx(10 * n + 1)
    assert side.cfg.gradient_accumulation_steps == n


@pytest.mark.parametrize('n, seconds, expected', [(1, [9, 5, 7], 6), (1, [9], None), (1, [], None),
                                                  (40, [9, 5], 200), (40, [9, 5, 8], 5 + 39 * 3)])
def test_ctrl_c_uses_what_was_measured(n, seconds, expected, monkeypatch):
    clock(monkeypatch, *(seconds or [None]))
    assert plan.time_of_step(SimpleNamespace(cfg=settings(gradient_accumulation_steps=n))) == expected


@pytest.mark.parametrize('flag, message', [
    ('--gpu=h1000', "gpu='h1000': expected one of a100"),
    ('--gpus=-1', 'gpus=-1: expected'),
    ('--mfu=2', 'mfu=2.0: expected'),
    ('--dtype=float32', 'dtype=float32: the peaks'),
    ('--n_head=7', 'n_embd=768, n_head=7'),
])
def test_errors(flag, message, place, capsys):
    with pytest.raises(UserError, match=re.escape(message)):
        planned(capsys, '--gpus=8', flag)


@pytest.mark.slow
def test_the_command(place):
    found = run_script('bench.py', 'plan', *SMALL, '--dataset=babble')
    assert found.returncode == 0, found.stderr
    assert 'together:' in found.stdout
    wrong = run_script('bench.py', 'plan', *SMALL, '--batchsize=4')
    assert (wrong.returncode, wrong.stderr.count('\n')) == (2, 1)
    assert 'batch_size' in wrong.stderr
    text = run_script('bench.py', 'plan', '--help').stdout
    assert '--gpus=0' in text and 'three steps are measured' in text


# ---------------------------------------------------------------------------- what train.py says

def test_a_run_that_does_not_fit(place, monkeypatch):
    """A warning, once, before the first step; and the same run, bit for bit."""
    quiet = run_main(train, *flags_of(max_iters=3, out_dir='quiet'))
    assert 'fit' not in quiet.stderr
    monkeypatch.setattr(forecast, 'available', lambda device: 10_000)
    warned = run_main(train, *flags_of(max_iters=3))
    assert warned.returncode == 0
    assert warned.stderr.count('will not fit') == 1 and 'python bench.py plan --' in warned.stderr
    assert [r['loss'] for r in read_log('out') if 'loss' in r] == [r['loss'] for r in read_log('quiet') if 'loss' in r]

    # Not known, or just enough: silence.
    monkeypatch.setattr(forecast, 'available', lambda device: None)
    assert 'fit' not in run_main(train, *flags_of(max_iters=3)).stderr


def test_it_warns_only_when_it_is_certain(place, monkeypatch, capsys):
    cfg = settings()
    worker = SimpleNamespace(device=torch.device('cpu'), dtype=torch.float32, compile=False, world_size=1)
    model = SimpleNamespace(config=plan.shape(cfg, None, 9))
    step = memory.step_of_run(cfg, model.config, worker)
    dataset = SimpleNamespace(train=SimpleNamespace())
    needed = step.peak - step.weights
    for free, says in ((needed, False), (0.95 * needed, False), (0.85 * needed, True)):
        monkeypatch.setattr(forecast, 'available', lambda device, free=free: free)
        forecast.warn_if_too_large(cfg, worker, model, dataset, resumed=False)
        assert ('will not fit' in capsys.readouterr().err) == says

    # Pairs shorter than the context need less, and processes that share the memory say nothing.
    pairs = SimpleNamespace(train=SimpleNamespace(lengths=torch.tensor([2, 3])))
    forecast.warn_if_too_large(cfg, worker, model, pairs, resumed=False)
    worker.world_size = 2
    forecast.warn_if_too_large(cfg, worker, model, dataset, resumed=False)
    assert capsys.readouterr().err == ''


@pytest.mark.parametrize('log_interval', [1, 2, 7, 10])
@pytest.mark.parametrize('first', [0, 15])
def test_a_long_run_is_announced_once(log_interval, first):
    """Of steps that take a minute after a first one that compiles for an hour: once, and with the right time."""
    said = []
    worker = SimpleNamespace(print=said.append)
    cfg = settings(max_iters=10_000, log_interval=log_interval)
    for max_iters, times in ((10_000, 1), (100, 0)):
        said.clear()
        steps = []
        for it in range(first, 60):
            steps.append(60 if it > first else 3600)
            if it % log_interval == 0:
                forecast.note_if_long(cfg, worker, it - first, max_iters - it - 1, sum(steps) / len(steps))
                steps.clear()
        assert len(said) == times
    forecast.note_if_long(cfg, worker, log_interval + 3, 9_999, 60)
    assert '9,999 more steps of 60 s take 6.9 days' in said[0]


def test_train_announces_it(place, monkeypatch):
    monkeypatch.setattr(forecast, 'DAY', 1e-9)
    found = run_main(train, *flags_of(max_iters=9, log_interval=1, dataset='babble'))
    assert found.stdout.count('more steps') == 1
    line = next(line for line in found.stdout.splitlines() if 'more steps' in line)
    command = line.split('to see more: ')[1]
    assert shlex.split(command)[:3] == ['python', 'bench.py', 'plan']
    cfg = configurator.load(plan.PlanConfig, shlex.split(command)[3:], train)   # it can be typed as it is
    assert (cfg.dataset, cfg.max_iters) == ('babble', 9)


# ---------------------------------------------------------------------------- how much memory there is

def machine(root, available, limit=None, used=0, cached=0, inside='/job'):
    """The files of a Linux machine with this memory in kB, and of a control group in bytes."""
    (root / 'proc/self').mkdir(parents=True)
    (root / 'proc/meminfo').write_text(f'MemTotal:  99999999 kB\nMemFree:    123 kB\nMemAvailable:   {available} kB\n')
    (root / 'proc/self/cgroup').write_text(f'0::{inside}/step\n')
    folder = root / ('sys/fs/cgroup' + inside)
    (folder / 'step').mkdir(parents=True)
    (folder / 'step/memory.max').write_text('max\n')
    if limit:
        (folder / 'memory.max').write_text(f'{limit}\n')
        (folder / 'memory.current').write_text(f'{used}\n')
        (folder / 'memory.stat').write_text(f'anon 5\ninactive_file {cached}\n')


def test_memory_on_linux(tmp_path):
    machine(tmp_path / 'plain', 8_000_000)
    assert forecast._available_on_linux(str(tmp_path / 'plain')) == 8_000_000 * 1024
    machine(tmp_path / 'limited', 8_000_000, limit=10 ** 9, used=3 * 10 ** 8, cached=10 ** 8)
    assert forecast._available_on_linux(str(tmp_path / 'limited')) == 8 * 10 ** 8
    machine(tmp_path / 'container', 8_000_000, limit=10 ** 9, inside='')
    assert forecast._available_on_linux(str(tmp_path / 'container')) == 10 ** 9
    with pytest.raises(FileNotFoundError):            # which `available` turns into None
        forecast._available_on_linux(str(tmp_path / 'nowhere'))


def test_memory_on_macos():
    text = ('Mach Virtual Memory Statistics: (page size of 16384 bytes)\n'
            'Pages free:                  1000.\n'
            'Pages active:                9999.\n'
            'Pages inactive:               200.\n'
            'Pages speculative:             30.\n'
            'Pages purgeable:                4.\n')
    assert forecast._available_on_macos(text) == 16384 * 1234
    assert forecast._available_on_macos('no such command') is None


def test_memory_here():
    """A number where it can be known, None for a device that has none."""
    free = forecast.available(torch.device('cpu'))
    assert sys.platform not in ('linux', 'darwin') or 0 < free < 2 ** 50
    assert forecast.available(torch.device('meta')) is None


def test_times_in_words():
    assert [forecast.in_words(s) for s in (0.0123, 5, 45, 150, 9000, 200_000)] == [
        '0.012 s', '5 s', '45 s', '2.5 minutes', '2.5 hours', '2.3 days']
