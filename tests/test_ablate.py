"""benchmarks/ablate.py and speedrun.py: what they say of differences, and that no run is made twice or lost."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import REPO, flags_of, read_log, run_main, run_script

import train
from benchmarks import ablate, paired, runs, speedrun
from gradus.errors import UserError

# Tables of any textbook: the t within which 95% and 99% lie, by degrees of freedom.
T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 9: 2.262, 10: 2.228, 29: 2.045, 120: 1.980}
T_99 = {1: 63.657, 2: 9.925, 3: 5.841, 4: 4.604, 9: 3.250, 30: 2.750}
# Student's own example (1908): hours of sleep that two drugs gained the same ten patients. R documents t.test(paired):
# t = -4.0621, df = 9, p = 0.002833 (two-sided), interval -2.4598858 to -0.7001142, mean -1.58.
DRUG_1 = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
DRUG_2 = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
SLEEP = [a - b for a, b in zip(DRUG_1, DRUG_2)]

BASE = """
dataset = 'babble'
device = 'cpu'
block_size = 16
batch_size = 4
gradient_accumulation_steps = 1
n_layer = 1
n_head = 2
n_embd = 8
learning_rate = 1e-2
warmup_iters = 5
max_iters = 30
lr_decay_iters = 60
min_lr = 0
"""


# ---------------------------------------------------------------------------- statistics

@pytest.mark.parametrize('coverage, known', [(0.95, T_95), (0.99, T_99)])
def test_t_quantiles_are_those_of_the_tables(coverage, known):
    assert {df: round(paired.t_quantile(df, coverage), 3) for df in known} == known


@pytest.mark.parametrize('df', [1, 2, 3, 4, 7, 8])
def test_the_probability_is_the_integral_of_the_density(df):
    """Student's density, (1 + x^2 / df)^(-(df + 1) / 2) up to a factor, summed over a fine grid; x = tan(angle)."""
    angle = (np.arange(200_000) + 0.5) / 200_000 * np.pi / 2
    density = (1 + np.tan(angle) ** 2 / df) ** (-(df + 1) / 2) / np.cos(angle) ** 2
    for t in (0.1, 1, 3):
        within = density[np.tan(angle) < t].sum() / density.sum()
        assert paired.student(t, df) == pytest.approx(within, abs=1e-5)


def test_students_own_example():
    assert paired.interval(SLEEP) == pytest.approx((-1.58, -2.4598858, -0.7001142), abs=1e-7)
    assert paired.p_below_0(SLEEP) == pytest.approx(0.002833 / 2, abs=1e-6)
    assert paired.p_below_0([-d for d in SLEEP]) == pytest.approx(1 - 0.002833 / 2, abs=1e-6)


def test_no_effect_is_found_as_often_as_promised():
    """5% of the tests of nothing say p < 0.05, and 95% of the intervals hold the truth."""
    samples = np.random.default_rng(0).standard_normal((2000, 5)).tolist()
    assert np.mean([paired.p_below_0(sample) < 0.05 for sample in samples]) == pytest.approx(0.05, abs=0.015)
    covered = [low < 0 < high for _, low, high in map(paired.interval, samples)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)


def test_equal_differences_have_no_spread():
    assert paired.interval([0.5, 0.5]) == (0.5, 0.5, 0.5)
    assert paired.p_below_0([-0.5, -0.5]) == 0 and paired.p_below_0([0.0, 0.0]) == 1


# ---------------------------------------------------------------------------- the table

def rows(*losses, iterations=30, seconds=10.0):
    return [dict(loss=loss, iterations=iterations, seconds=seconds) for loss in losses]


def test_differences_are_told_apart_or_not():
    """By pairs: the losses of both variants overlap with the base's, but one is lower for every seed."""
    base = rows(2.0, 2.2, 2.4)
    assert ablate.difference(rows(1.9, 2.11, 2.29), base).startswith('-0.1000 (-0.12')
    assert 'not told apart' not in ablate.difference(rows(1.9, 2.11, 2.29), base)
    assert ablate.difference(rows(2.3, 1.9, 2.1), base).endswith('**not told apart**')
    assert ablate.difference(base, base).endswith('**not told apart**')
    assert ablate.difference(rows(1.9), rows(2.0)) == '-0.1000; one seed, no interval'


def test_the_table_says_what_diverged_and_what_took_another_time():
    found = {'base': rows(2.0, 2.1), 'a=1|2': rows(1.9, None), 'b=1': rows(1.9, 2.0, seconds=11.5)}
    lines = ablate.table(found, ablate.Budget(seconds=10)).splitlines()[2:]
    assert lines[0] == '| base | 2.0500 | 2.0000 to 2.1000 |  | 30 | 10.0 |'
    assert lines[1] == r'| `a=1\|2` | diverged in 1 of 2 |  |  | 30 |  |'
    assert lines[2].endswith('| 30 | 11.5, **not equal time** |')
    assert 'not equal time' not in ablate.table(found, ablate.Budget(steps=30))
    assert 'the base diverged' in ablate.table({'base': rows(2.0, None), 'b=1': rows(1.9, 2.0)}, ablate.Budget())


# ---------------------------------------------------------------------------- settings

@pytest.mark.parametrize('text, steps, seconds', [
    ('300steps', 300, 0), ('7 steps', 7, 0), ('10s', 0, 10), ('0.5s', 0, 0.5),
])
def test_budgets(text, steps, seconds):
    assert ablate.Budget.parse(text) == ablate.Budget(steps, seconds)


@pytest.mark.parametrize('text', [
    '10', '10x', 's', '0s', '0steps', '1.5steps', '-3s', 'nan s', '1e5steps', '9' * 400 + 's',
])
def test_budgets_that_are_none(text):
    with pytest.raises(UserError, match='expected a number of iterations'):
        ablate.Budget.parse(text)


def test_changes_are_arguments_of_train():
    assert ablate.flags_of('n_layer=6  --n_embd=160') == ['--n_layer=6', '--n_embd=160']
    assert ablate.flags_of('config/other.py "out_dir=a b"') == ['config/other.py', '--out_dir=a b']
    with pytest.raises(UserError, match='No closing quotation'):
        ablate.flags_of('a="')


@pytest.fixture
def here(place, monkeypatch):
    """Work beside data/babble and base.py, with a fake train.py and evaluation. Returns the runs that were made."""
    (place / 'base.py').write_text(BASE)
    made = []

    def train_once(cfg, folder):
        made.append((cfg, folder))
        os.makedirs(folder, exist_ok=True)
        if cfg.learning_rate > 100:
            return None
        step = 0.01 * cfg.n_layer                     # seconds; and half a second for the rest
        return [(it, (it + 1) * step + 0.5) for it in range(0, cfg.max_iters, 10)] + [
            (cfg.max_iters, cfg.max_iters * step + 0.5)]

    def val_loss(path, folder, device):
        cfg = made[-1][0]
        return 2 + cfg.seed / 1e4 + (0.1 if cfg.pos == 'rotary' else 0.0)

    monkeypatch.setattr(runs, 'train_once', train_once)
    monkeypatch.setattr(runs, 'val_loss', val_loss)
    return made


def run_ablate(monkeypatch, *args):
    monkeypatch.setattr(sys, 'argv', ['ablate', 'base.py', *args])
    ablate.main()


def test_a_budget_of_steps(here, monkeypatch, capsys):
    run_ablate(monkeypatch, '--budget=4steps', '--change=pos=rotary', '--seeds=2', '--n_head=1')
    assert [(cfg.seed, cfg.pos) for cfg, _ in here] == [(1337, 'learned'), (1337, 'rotary'), (1338, 'learned'),
                                                        (1338, 'rotary')]
    assert {(cfg.max_iters, cfg.lr_decay_iters, cfg.warmup_iters, cfg.n_head) for cfg, _ in here} == {(4, 4, 0, 1)}
    out, err = capsys.readouterr()
    assert '| `pos=rotary` | 2.2338 | 2.2337 to 2.2338 | +0.1000 (+0.1000 to +0.1000) | 4 | 0.5 |' in out
    assert out.count('| base |') == 1 and 'one seed, no interval' in err        # the early table


def test_without_a_budget_the_config_decides(here, monkeypatch, capsys):
    run_ablate(monkeypatch, '--change=max_iters=20', '--seeds=1')
    assert [(cfg.max_iters, cfg.lr_decay_iters, cfg.warmup_iters) for cfg, _ in here] == [(30, 60, 5), (20, 60, 5)]


def test_equal_time_means_fewer_steps_for_the_slower(here, monkeypatch, capsys):
    """Ten seconds, half a second of which are no steps: 950 steps of 10 ms or 475 of 20 ms."""
    run_ablate(monkeypatch, '--budget=10s', '--change=n_layer=2', '--seeds=2')
    whole = [cfg for cfg, folder in here if 'step-time' not in folder]
    assert [(cfg.n_layer, cfg.max_iters, cfg.lr_decay_iters) for cfg in whole] == [(1, 950, 950), (2, 475, 475)] * 2
    layers = [cfg.n_layer for cfg, folder in here if 'step-time' in folder]
    assert layers == [1, 2] * (1 + runs.ROUNDS)       # interleaved
    assert '| 475 | 10.0 |' in capsys.readouterr().out

    # A variant that is added later is measured beside the base; the machine is twice as slow by now.
    made = len(here)
    quick = runs.train_once
    monkeypatch.setattr(runs, 'train_once', lambda *args: [(it, 2 * s) for it, s in quick(*args)])
    run_ablate(monkeypatch, '--budget=10s', '--change=n_layer=2', '--change=n_layer=5', '--seeds=2')
    whole = [cfg for cfg, folder in here[made:] if 'step-time' not in folder]
    assert [(cfg.n_layer, cfg.max_iters) for cfg in whole] == [(5, 190)] * 2
    assert {cfg.n_layer for cfg, folder in here[made:] if 'step-time' in folder} == {1, 5}


def test_nothing_is_trained_twice_and_a_kill_loses_one_run(here, monkeypatch, capsys):
    args = ['--change=pos=rotary', '--change=learning_rate=1000', '--seeds=3']
    fake = runs.train_once

    def killed(cfg, folder):
        if len(here) == 4:
            raise KeyboardInterrupt
        return fake(cfg, folder)

    monkeypatch.setattr(runs, 'train_once', killed)
    with pytest.raises(KeyboardInterrupt):
        run_ablate(monkeypatch, *args)
    monkeypatch.setattr(runs, 'train_once', fake)
    with open('out-ablate/results.jsonl', 'a') as f:
        f.write('{"key": "half a li')                 # what a kill leaves behind

    run_ablate(monkeypatch, *args)
    assert len(here) == 9 and len({runs.key_of(cfg, 1) for cfg, _ in here}) == 9
    first = capsys.readouterr().out
    run_ablate(monkeypatch, *args)
    assert len(here) == 9 and capsys.readouterr().out == first
    assert 'diverged in 3 of 3' in first
    assert os.listdir('out-ablate') == ['results.jsonl']

    run_ablate(monkeypatch, *args[:1], '--seeds=4', '--keep')                   # another seed: two more runs
    assert len(here) == 11 and len(os.listdir('out-ablate')) == 3


def test_what_makes_another_run(place):
    cfg = train.TrainConfig(dataset='babble')
    keys = {runs.key_of(cfg, 1), runs.key_of(cfg, 2), runs.key_of(train.TrainConfig(dataset='babble', seed=1), 1)}
    with open('data/babble/meta.json', 'a') as f:
        f.write(' ')                                  # another text
    assert len(keys | {runs.key_of(cfg, 1)}) == 4
    cfg.out_dir = 'elsewhere'
    assert len(keys | {runs.key_of(cfg, 1)}) == 4


def test_results_of_other_code_are_pointed_out(here, monkeypatch, capsys):
    run_ablate(monkeypatch, '--seeds=1')
    assert 'another state of' not in capsys.readouterr().err
    monkeypatch.setattr(runs, 'code_digest', lambda: 'other')
    run_ablate(monkeypatch, '--seeds=1')
    assert 'another state of' in capsys.readouterr().err


def test_one_table_for_each_dataset(here, monkeypatch, capsys):
    shutil.copytree('data/babble', 'data/other')
    run_ablate(monkeypatch, '--datasets=babble,other', '--change=pos=none', '--seeds=2')
    out = capsys.readouterr().out
    assert out.index('data/babble') < out.index('data/other') and out.count('| base |') == 2
    assert [cfg.dataset for cfg, _ in here] == ['babble', 'babble', 'other', 'other'] * 2


def test_a_change_may_be_a_file(here, monkeypatch, capsys):
    """What stands beside the changes holds for it as well; what stands in the change comes last."""
    with open('other.py', 'w', encoding='utf-8') as f:
        f.write("pos = 'rotary'\nmax_iters = 99\nn_layer = 3\nn_head = 4\ndataset = 'missing'\n")
    run_ablate(monkeypatch, '--change=n_head=1 other.py', '--seeds=1', '--max_iters=20')
    assert [(cfg.pos, cfg.max_iters, cfg.n_layer, cfg.n_head, cfg.dataset) for cfg, _ in here] == [
        ('learned', 20, 1, 2, 'babble'), ('rotary', 20, 3, 1, 'babble')]


@pytest.mark.parametrize('args, message', [
    (['--change=n_lyer=3'], '--n_lyer: unknown key; did you mean n_layer?'),
    (['--n_layer=no'], 'expected int'),
    (['--change=nothing.py'], 'no such config file'),
    (['--change=  '], 'expected key=value'),
    (['--budget=long'], '--budget=long: expected'),
    (['--datasets=missing'], 'data/missing: no such dataset'),
    (['--seeds=0'], 'expected at least 1'),
    (['--jobs=0'], '--jobs=0: expected'),
    (['--jobs=2', '--budget=10s'], 'expected --jobs=1'),
    (['--change=seed=3'], 'expected --seeds=N'),
    (['--out=base.py'], 'base.py'),
    (['--dataset=babble'], 'expected --datasets=A,B'),
    (['--budget=3steps', '--max_iters=9'], 'expected no --budget'),
])
def test_errors_come_before_the_first_run(args, message, here, monkeypatch):
    monkeypatch.setattr(ablate, 'cores_here', lambda: [0, 1])
    with pytest.raises(UserError) as e:
        run_ablate(monkeypatch, '--change=pos=rotary', *args)
    assert message in str(e.value) and '\n' not in str(e.value)
    assert not here and not os.path.exists('out-ablate')


def test_one_seed_is_said_to_be_too_few(here, monkeypatch, capsys):
    run_ablate(monkeypatch, '--seeds=1')
    assert 'no intervals' in capsys.readouterr().err


# ---------------------------------------------------------------------------- speedrun

def times(*seconds, val=1.87):
    return [dict(seconds=s, val=val) for s in seconds]


def test_a_record_is_faster_in_almost_every_pair():
    record = times(9.0, 9.5, 8.9, 9.2, 12.0)
    faster = times(8.0, 8.4, 8.0, 8.3, 10.7)
    assert speedrun.verdict(faster, record, 1.88).endswith('**A record**: 8.68 s.')
    assert 'p is not below 0.05' in speedrun.verdict(record, faster, 1.88)
    assert 'p is not below 0.05' in speedrun.verdict(record, record, 1.88)
    lucky = times(5.0, 9.6, 9.0, 9.3, 12.1)           # the mean is lower by 0.7 s, but that is one run
    assert 'p is not below 0.05' in speedrun.verdict(lucky, record, 1.88)


def test_a_record_reaches_the_loss():
    record = times(9.0, 9.5, 8.9, 9.2, 12.0, val=1.9)
    faster = times(8.0, 8.4, 8.0, 8.3, 10.7, val=1.881)
    text = speedrun.verdict(faster, record, 1.88)
    assert text.endswith('**Not a record**: its mean loss is not 1.88 or less.')
    assert 'The record itself does not reach 1.88 here' in text
    assert 'its mean loss' in speedrun.verdict(faster, record, float('nan'))


def test_candidate_and_record_take_turns(monkeypatch):
    commands = []

    def measure_run(run, out_dir, dataset):
        commands.append(run)
        return dict(seconds=1.0, val=1.8), ''

    monkeypatch.setattr(speedrun, 'measure_run', measure_run)
    found = speedrun.measure(dict(candidate=('here', ['a.py']), record=('there', ['b.py'])))
    assert {side: len(runs) for side, runs in found.items()} == dict(candidate=5, record=5)
    places = [place for place, _ in commands]
    assert places == ['here', 'there'] + ['here', 'there', 'there', 'here'] * 2 + ['here', 'there']
    seeds = [command[-1] for _, command in commands[2:]]
    assert seeds == [f'--seed={seed}' for seed in range(1437, 1442) for _ in range(2)]


@pytest.mark.parametrize('setting', ['dataset=shakespeare', 'init_from=gpt2', 'device=cuda', 'eval_only=True'])
def test_the_rules_of_a_config(setting):
    speedrun.check_config([str(REPO / 'config/shakespeare_char_cpu.py')])
    with pytest.raises(UserError, match='the rules say'):
        speedrun.check_config([str(REPO / 'config/shakespeare_char_cpu.py'), f'--{setting}'])


@pytest.mark.skipif(not hasattr(os, 'sched_getaffinity'), reason='this system does not tell')
def test_the_rules_of_the_machine(monkeypatch, capsys):
    monkeypatch.setattr(os, 'getloadavg', lambda: (3.0, 0, 0))
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: {4, 7})
    speedrun.check_machine()
    assert 'something else runs' in capsys.readouterr().err
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: {0, 1, 2})
    with pytest.raises(UserError, match='3 cores; the rules say 2'):
        speedrun.check_machine()


def test_the_rules_of_the_text(tmp_path, monkeypatch, test_data):
    prepared = tmp_path / 'data/shakespeare_char'
    with pytest.raises(UserError, match='prepare.py'):
        speedrun.check_text(str(tmp_path))
    source = test_data / 'tinyshakespeare/input.txt'
    prepared.mkdir(parents=True)
    assert run_script('data/shakespeare_char/prepare.py', '--input', source, '--out', prepared).returncode == 0
    speedrun.check_text(str(tmp_path))
    with open(prepared / 'val.bin', 'ab') as f:
        f.write(b'\0\0')
    with pytest.raises(UserError, match='not tiny Shakespeare'):
        speedrun.check_text(str(tmp_path))


# ---------------------------------------------------------------------------- whole runs

def test_the_loss_is_that_of_the_last_weights_over_the_whole_split(place):
    """As train.py itself reports it with eval_iters=0."""
    flags = flags_of(eval_iters=0, max_iters=2, batch_size=64, gradient_accumulation_steps=1)
    assert run_main(train, *flags).returncode == 0
    reported = read_log('out')[-1]['val_loss']
    assert paired.val_loss('out/ckpt.pt', 'data/babble') == pytest.approx(reported, abs=1e-6)


@pytest.mark.slow
def test_end_to_end(place):
    """Equal steps, one run at a time and two side by side; then equal time."""
    (place / 'base.py').write_text(BASE)
    args = ['ablate', 'base.py', '--change=optimizer=muon learning_rate=0.02', '--budget=20steps']
    ran = run_script('bench.py', *args, '--seeds=2')
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count('| 20 |') == 2
    losses = losses_in('out-ablate')
    assert len(set(losses.values())) == 4

    if len(runs.cores_here()) > 1:                    # one thread each way, so the same bits
        ran = run_script('bench.py', *args, '--seeds=1', '--jobs=2', '--out=out-beside')
        assert ran.returncode == 0, ran.stderr
        beside = losses_in('out-beside')
        assert len(beside) == 2 and beside.items() <= losses.items()

    ran = run_script('bench.py', *args[:2], '--seeds=1', '--budget=1s', '--out=out-time')
    assert ran.returncode == 0, ran.stderr
    with open('out-time/results.jsonl', encoding='utf-8') as f:
        timed, trained = map(json.loads, f)
    assert trained['iterations'] == timed['iterations'] and 'Budget: 1 s of training each' in ran.stdout


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == 'win32', reason='process groups')
def test_ctrl_c_in_the_middle_of_a_run(place):
    """The run is saved, the next call finishes it, and the result is that of a run that was not stopped."""
    (place / 'base.py').write_text(BASE)
    args = ['ablate', 'base.py', '--seeds=1', '--budget=1000steps']
    command = [sys.executable, str(REPO / 'bench.py'), *args]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    log_file = f'out-ablate/base-babble-1337-{key_prefix()}/log.jsonl'
    while not os.path.exists(log_file) or os.path.getsize(log_file) < 500:
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert 'interrupted' in err and 'Traceback' not in err
    assert os.path.exists(log_file.replace('log.jsonl', 'ckpt.pt')) and not os.path.exists('out-ablate/results.jsonl')

    assert run_script('bench.py', *args).returncode == 0
    assert run_script('bench.py', *args, '--out=out-whole').returncode == 0
    assert losses_in('out-ablate') == losses_in('out-whole')


def key_prefix():
    cfg = ablate.settings_of(['base.py'], 'babble', ablate.Budget(steps=1000))
    return runs.key_of(cfg, 1)[:6]


def losses_in(folder):
    with open(f'{folder}/results.jsonl', encoding='utf-8') as f:
        return {record['key']: record['loss'] for record in map(json.loads, f)}
