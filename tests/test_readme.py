"""Every command of README.md, in its order, in a fresh copy of the repo, as a new user would type it; only smaller."""

import importlib.util
import re
import runpy
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import REPO, babble

import mlp_mnist

SMALLER = ['--max_iters=4', '--eval_interval=2', '--eval_iters=1', '--block_size=16', '--n_layer=1', '--n_head=2', '--n_embd=8', '--batch_size=2',
           '--gradient_accumulation_steps=1', '--lr_decay_iters=4', '--warmup_iters=0', '--sample_tokens=20', '--device=cpu']
SMALLER_DIGITS = ['--epochs=1', '--n_train=500', '--mini_batch_size=50', '--device=cpu']
ELSEWHERE = ('pip install', 'gpt2', 'openwebtext', 'python -m pytest')            # network, hours, or this very suite


def commands():
    """(line, runnable here?) for each line of the sh blocks."""
    blocks = re.findall(r'```sh\n(.*?)```', (REPO / 'README.md').read_text(encoding='utf-8'), flags=re.DOTALL)
    return [(line, not any(word in line for word in ELSEWHERE)) for block in blocks for line in block.splitlines()]


@pytest.mark.slow
def test_commands_run_in_order(tmp_path, test_data):
    place = tmp_path / 'repo'
    for folder in ('config', 'data', 'gradus'):
        shutil.copytree(REPO / folder, place / folder, ignore=shutil.ignore_patterns('*.bin', '*-ubyte', 'meta.*', 'input.txt', '__pycache__'))
    for script in (*REPO.glob('*.py'), REPO / 'README.md'):
        shutil.copy(script, place)
    for name in ('notes.txt', 'letters.txt'):
        (place / name).write_text(babble(3000))
    shutil.copy(test_data / 'tinyshakespeare/input.txt', place / 'data/shakespeare_char/input.txt')      # stand in for the downloads
    subprocess.run([sys.executable, place / 'data/mnist/prepare.py', '--source', test_data / 'mnist'], check=True, timeout=300)
    pixels = np.full((100, 80, 3), 255, dtype=np.uint8)
    pixels[20:80, 36:44] = 0                          # a one
    (place / 'digit.png').write_bytes(mlp_mnist.png(pixels))
    ran = []
    for line, here in commands():
        words = shlex.split(line.split(' > ')[0], comments=True)
        if not here or words[0] != 'python':
            continue
        if words[1] == 'train.py':                    # the two of "A run" stay one run: 600 iterations become 2, 900 become 4
            words = [w for w in words if not w.startswith('--max_iters')] + SMALLER + ['--max_iters=2'] * ('--max_iters=600' in line)
        if words[1] == 'mlp_mnist.py' and '--predict' not in line:
            words += SMALLER_DIGITS
        if 'digit.png' in line and importlib.util.find_spec('PIL') is None:
            continue
        if words[1] == 'sample.py':
            words += ['--max_new_tokens=10', '--device=cpu']
        result = subprocess.run([sys.executable, *words[1:]], cwd=place, capture_output=True, stdin=subprocess.DEVNULL, text=True, encoding='utf-8',
                                timeout=300)
        assert result.returncode == 0, f'{line}\n{result.stderr}'
        ran.append((line, result.stdout))
    out = dict(ran)
    assert len(ran) >= 9
    resumed = next(stdout for line, stdout in ran if 'init_from=resume' in line)
    assert 'step 4:' in resumed and 'step 0:' not in resumed
    first = out['python train.py config/quickstart.py']
    assert 'preparing data' in first and 'step 4: train loss' in first and 'more samples: python sample.py --out_dir=out-quickstart' in first
    assert next(stdout for line, stdout in ran if '--start="def "' in line).count('---------------\n') == 3


@pytest.mark.parametrize('line', [line for line, here in commands() if not here])
def test_commands_that_run_elsewhere_name_what_is_there(line):
    for word in shlex.split(line, comments=True):
        if word.endswith(('.py', '.txt')):
            assert (REPO / word).exists(), word


def test_every_name_in_the_tree_and_the_tables_exists():
    text = (REPO / 'README.md').read_text(encoding='utf-8')
    for path in re.findall(r'`((?:\w+/)*\w+\.(?:py|md))`', text):
        assert any(REPO.rglob(path.split('/')[-1])) or path == 'prepare.py', path
    for path, name in re.findall(r'`(test_\w+\.py)::(\w+)`', text):
        assert f'\ndef {name}(' in (REPO / 'tests' / path).read_text(encoding='utf-8'), name
    keys = (REPO / 'train.py').read_text(encoding='utf-8')
    table = text.split('The keys that matter first:')[1].split('\n\n')[1]
    for key in re.findall(r'`(\w+)`', '\n'.join(row.split('|')[1] for row in table.splitlines()[2:])):
        assert f'\n    {key}: ' in keys, key


@pytest.mark.parametrize('name', sorted(p.stem.replace('_', '-') for p in (REPO / 'benchmarks').glob('*.py') if p.stem != 'paired'))
def test_every_benchmark_starts_and_is_listed(name, monkeypatch, capsys):
    bench = runpy.run_path(str(REPO / 'bench.py'))
    monkeypatch.setattr(sys, 'argv', ['bench.py', name, '--help'])
    with pytest.raises(SystemExit) as e:
        bench['main']()
    assert not e.value.code and 'usage:' in capsys.readouterr().out and f'python bench.py {name} ' in bench['__doc__']
