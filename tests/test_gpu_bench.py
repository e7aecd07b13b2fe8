"""bench.py gpu: all its parts in miniature on the CPU; a part that fails or hangs does not stop the others."""

import os
import re
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from conftest import babble, run_script

from benchmarks import gpu, gpu_parts, step, step_profile
from gradus import checkpoint, corpus

# What bench.py needs of nanoGPT's model.py, around our own GPT. It stands in a folder of its own.
NANOGPT = """
from dataclasses import dataclass

import torch

import model


@dataclass
class GPTConfig:
    block_size: int = 1024
    vocab_size: int = 50304
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0
    bias: bool = True


class GPT(model.GPT):
    def __init__(self, config):
        print('number of parameters: as nanoGPT prints it')
        super().__init__(model.GPTConfig(**vars(config)))

    def get_num_params(self):
        return self.num_params()

    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type):
        return torch.optim.AdamW(self.parameters(), learning_rate, betas, weight_decay=weight_decay)

    def generate(self, idx, max_new_tokens, temperature=1.0, top_k=None):
        return super().generate(idx, max_new_tokens)
"""


@pytest.fixture
def nanogpt(tmp_path):
    """The path of what looks like a checkout of nanoGPT."""
    folder = tmp_path / 'nanoGPT'
    folder.mkdir()
    (folder / 'model.py').write_text(NANOGPT)
    (folder / 'train.py').write_text('')
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Work in a folder with a small data/shakespeare_char."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'text.txt').write_text(babble(5000))
    corpus.write_text('data/shakespeare_char', ['text.txt'], 'char')


def run_part(name, seconds, *options):
    """What gpu.run_part returns for these options of the command line."""
    before = sys.argv
    sys.argv = ['gpu', *options]
    try:
        return gpu.run_part(name, seconds, 'gpu.log')
    finally:
        sys.argv = before


# ---------------------------------------------------------------------------- everything

@pytest.mark.slow
def test_all_parts_run_in_miniature(here, nanogpt):
    ran = run_script('bench.py', 'gpu', '--against', nanogpt, '--device=cpu', '--miniature', '--loss=9',
                     '--minutes=4', '--out=out/gpu.md')
    assert ran.returncode == 0, ran.stdout + ran.stderr
    written = open('out/gpu.md', encoding='utf-8').read()
    assert written == ran.stdout                      # the same in the file as on the terminal

    for _, heading, _ in gpu.PARTS.values():
        assert f'### {heading}\n' in written
    assert '**' not in written                        # what failed would be bold
    assert re.search(r'\d+ files: \d+ skipped, \d+ deselected', written) or torch.cuda.is_available()
    assert re.search(r'- nanoGPT: [\d,]+ \([\d,]+ to [\d,]+\) tokens/s, \d', written)
    assert re.search(r'- seed 1337: 9.0 in \d+\.\d s; lowest \d\.\d+; \d+\.\d s from start to exit; \d', written)
    assert 'equal, bit for bit' in written
    assert re.search(r'\| tiny \| 3 \| 8 \| compiled \| [\d,]+ ', written)
    assert re.search(r'takes, on the CPU: \d+\.\d\d \(tiny, 1\), \d+\.\d\d \(tiny, 3\)', written)
    assert len(re.findall(r'^\| `', written, re.MULTILINE)) == 20               # ten rows of each profile
    assert 'number of parameters: as nanoGPT' in open('out/gpu.log', encoding='utf-8').read()


@pytest.mark.slow
def test_a_part_that_fails_is_one_line(here, nanogpt, capfd):
    (nanogpt / 'model.py').write_text(NANOGPT.replace('return torch.optim', "raise ValueError('broken')  #"))
    options = ('--against', str(nanogpt), '--device=cpu', '--miniature')
    assert run_part('step', 60, *options) == 'failed: ValueError: broken'
    assert run_part('versions', 60, *options) == ''                             # and the next one goes on
    assert 'torch' in capfd.readouterr().out


# ---------------------------------------------------------------------------- what can go wrong

@pytest.mark.slow
def test_a_part_that_hangs_is_ended_with_all_that_it_started(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'bench.py').write_text(
        'import subprocess, sys, time\n'
        'child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])\n'
        'open("child", "w").write(str(child.pid))\n'
        'open("gpu.md", "w").write("so far")\n'
        'import signal\n'
        'signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))\n'
        'try:\n'
        '    time.sleep(60)\n'
        'finally:\n'
        '    open("gpu.md", "a").write(", and no more")\n')
    monkeypatch.setattr(gpu, 'BENCH', str(tmp_path / 'bench.py'))
    began = time.monotonic()
    assert run_part('step', 2.0) == 'cut off after 2 s'
    assert time.monotonic() - began < 20
    assert (tmp_path / 'gpu.md').read_text() == 'so far, and no more'
    if hasattr(os, 'killpg'):
        assert not is_running(int((tmp_path / 'child').read_text()))


def is_running(pid):
    """Is this process alive? One that has ended, but whose parent has not noticed, is not."""
    for _ in range(50):
        try:
            os.kill(pid, 0)
            with open(f'/proc/{pid}/stat') as f:
                if f.read().rpartition(')')[2].split()[0] == 'Z':
                    return False
        except (ProcessLookupError, FileNotFoundError):
            return False
        time.sleep(0.1)
    return True


@pytest.mark.parametrize('log, expected', [
    ('Traceback ...\n  File "x.py"\ntorch.OutOfMemoryError: CUDA out of memory.\n  warnings.warn("leaked")\n',
     'torch.OutOfMemoryError: CUDA out of memory.'),
    ('error: out/ckpt.pt: not found\n', 'error: out/ckpt.pt: not found'),
    ('Killed\n\n', 'Killed'),
    ('', 'no output'),
])
def test_why_a_part_failed(log, expected):
    assert gpu.reason(log) == expected


def test_when_time_is_short_the_last_parts_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['gpu'])
    given = {}
    monkeypatch.setattr(gpu, 'run_part', lambda name, seconds, log: given.setdefault(name, seconds) and '')
    clock = iter([0, *(second for start in (0, 10, 50, 175, 176, 177, 178) for second in (start, start + 1))])
    monkeypatch.setattr(gpu.time, 'monotonic', lambda: next(clock))
    lines = []
    failed = gpu.run_all(SimpleNamespace(minutes=3, out='gpu.md'), lines.append)
    assert list(given) == ['versions', 'tests', 'step']                         # 5 s are left for shakespeare
    assert given['step'] == 130                       # and there were 130 for the step
    assert failed == ['shakespeare', 'resume', 'sampling', 'profile']
    assert '\n**profile: no time left**' in lines


def test_what_a_part_leaves_over_goes_to_the_others(monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['gpu'])
    given = []
    monkeypatch.setattr(gpu, 'run_part', lambda name, seconds, log: given.append(seconds) or '')
    assert gpu.run_all(SimpleNamespace(minutes=8, out='gpu.md'), lambda text='': None) == []
    assert given[-1] == pytest.approx(480, abs=1)     # the last one gets all, because the others took no time
    assert sum(minutes for _, _, minutes in gpu.PARTS.values()) == pytest.approx(8)


# ---------------------------------------------------------------------------- parts

def test_without_data_shakespeare_is_skipped_in_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = []
    gpu_parts.shakespeare(SimpleNamespace(), lines.append)
    assert len(lines) == 1 and 'python data/shakespeare_char/prepare.py' in lines[0]


def test_the_digest_sees_a_single_bit(tmp_path):
    path = str(tmp_path / 'ckpt.pt')
    weight, step = torch.ones(3), torch.tensor(5.0)

    def digest():
        checkpoint.save(path, dict(model={'w': weight}, model_args={}, optimizer=dict(state={0: {'step': step}})))
        return gpu_parts.digest(path)

    first = digest()
    assert digest() == first
    weight[1] = torch.nextafter(weight[1], torch.tensor(2.0))
    second = digest()
    step += 1
    assert len({first, second, digest()}) == 3


@pytest.mark.parametrize('gigabytes, expected', [(80, 32), (141, 32), (40, 16), (24, 8), (8, 4), (1, 1)])
def test_the_micro_batch_fits_the_memory(gigabytes, expected, monkeypatch):
    found = SimpleNamespace(total_memory=gigabytes * 1e9)
    monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda device: found)
    assert gpu_parts.micro_batch(torch.device('cuda', 0)) == expected
    assert gpu_parts.micro_batch(torch.device('cpu')) == 32


def row(key, device, own, count=2, annotation=False):
    """A row of the profiler; own: microseconds."""
    return SimpleNamespace(key=key, device_type=SimpleNamespace(name=device), count=count, self_cpu_time_total=1.0,
                           self_device_time_total=own, is_user_annotation=annotation)


def test_a_profile_counts_kernels_once(monkeypatch):
    rows = [row('aten::mm', 'CPU', 6000), row('gemm|kernel', 'CUDA', 6000), row('triton_norm', 'CUDA', 2000),
            row('Optimizer.step', 'CUDA', 8000, annotation=True), row('cudaLaunchKernel', 'CPU', 0, count=40),
            row('cuLaunchKernelEx', 'CPU', 0, count=20), row('cudaStreamSynchronize', 'CPU', 0, count=4)]
    monkeypatch.setattr(step_profile, 'profile_of', lambda side, n_steps: (0.005, rows))
    monkeypatch.setattr(step, 'about', lambda side: 'a GPT')
    lines = []
    step_profile.explain(SimpleNamespace(worker=SimpleNamespace(device=torch.device('cuda', 0))), 2, lines.append)
    text = '\n'.join(lines)
    assert '5.0 ms a step, 4.0 ms of them in kernels (80%)' in text
    assert '| `gemm/kernel` | 1 | 3.00 | 75.0% |' in text
    assert 'aten::mm' not in text and 'Optimizer' not in text
    assert '30 launches and 2.0 waits' in text
