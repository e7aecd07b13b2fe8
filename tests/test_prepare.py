"""data/prepare.py: own files of all kinds, its options, what it says when something is wrong."""

import gzip
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import REPO, read_terminal
from test_prepare_scripts import assert_one_line, run_here  # noqa: F401

from gradus.metadata import read_meta
from gradus.tokenizer import build_tokenizer


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def prepare(run_here):  # noqa: F811
    def run(*args, out='d'):
        return run_here('data/prepare.py', *args, *([f'--out={out}'] if out else []))
    return run


def text_in(folder, split):
    meta = read_meta(folder)
    ids = np.fromfile(Path(folder, f'{split}.bin'), dtype=meta['dtype']).tolist()
    return build_tokenizer(meta['tokenizer']).decode(ids)


def write_lines(path, texts, field='text'):
    Path(path).write_text(''.join(json.dumps({field: text}) + '\n' for text in texts))


def test_all_kinds_of_files_together(prepare):
    pyarrow = pytest.importorskip('pyarrow', reason='it writes parquet files: pip install pyarrow')
    parquet = pytest.importorskip('pyarrow.parquet', reason='it writes parquet files: pip install pyarrow')
    os.makedirs('folder/below')
    Path('folder/2.txt').write_bytes(b'\xef\xbb\xbf' + '二\r\n\0'.encode())
    Path('folder/below/1.txt.gz').write_bytes(gzip.compress('😀'.encode()))
    write_lines('lines.jsonl', ['a', 'b'])
    Path('zipped.jsonl.gz').write_bytes(gzip.compress(b'{"text": "c"}\n'))
    parquet.write_table(pyarrow.table({'text': ['e', 'f']}), 'rows.parquet')
    Path('long.txt').write_text('long ' * 50)

    ran = prepare('folder', 'lines.jsonl', 'zipped.jsonl.gz', 'rows.parquet', 'long.txt', '--val_fraction=0.5')
    assert (ran.returncode, ran.stderr) == (0, '')
    whole = '\n'.join(['二\r\n\0', '😀', 'a', 'b', 'c', 'e', 'f', 'long ' * 50])
    assert text_in('d', 'train') == whole[:len(whole) // 2]
    assert text_in('d', 'train') + text_in('d', 'val') == whole
    assert read_meta('d')['source'] == 'folder, lines.jsonl, zipped.jsonl.gz, rows.parquet, long.txt'


def test_options(prepare):
    write_lines('x.jsonl', [f'document {i} of many' for i in range(200)], field='body')
    ran = prepare('x.jsonl', '--field=body', '--val_fraction=0.25', '--tokenizer=byte')
    assert ran.returncode == 0, ran.stderr
    assert text_in('d', 'val').startswith('document 3 of many\ndocument 7 of many\n')
    assert text_in('d', 'val').count('\n') == 49


def test_a_tokenizer_of_its_own(prepare):
    pytest.importorskip('tokenizers', reason='it trains a vocabulary: pip install tokenizers')
    write_lines('x.jsonl', [f'document {i} of many' for i in range(200)])
    ran = prepare('x.jsonl', '--tokenizer=bpe', '--vocab_size=300')
    assert ran.returncode == 0, ran.stderr
    assert read_meta('d')['vocab_size'] == 300
    between = '<|endoftext|>'
    assert text_in('d', 'val').split(between) == [f'document {i} of many' for i in range(9, 200, 10)]
    assert text_in('d', 'train').count(between) == 179


def test_a_model_s_tokenizer(prepare):
    """One that has <|endoftext|> of its own; the model is what training on that dataset gives."""
    pytest.importorskip('tokenizers', reason='it trains a vocabulary: pip install tokenizers')
    from gradus import checkpoint
    from model import GPT, GPTConfig

    Path('x.txt').write_text('the cat sat on the mat. ' * 50)
    Path('y.txt').write_text('the dog. ' * 50)
    assert prepare('x.txt', '--tokenizer=bpe', '--vocab_size=280').returncode == 0
    tokenizer = read_meta('d')['tokenizer']
    config = GPTConfig(n_layer=1, n_head=1, n_embd=8, block_size=8, vocab_size=len(tokenizer['tokens']))
    state = dict(model=GPT(config).state_dict(), model_args=vars(config), iter_num=0, tokenizer=tokenizer)
    checkpoint.save('out/ckpt.pt', state)

    ran = prepare('x.txt', 'y.txt', '--tokenizer=out', out='tuned')
    assert ran.returncode == 0, ran.stderr
    assert read_meta('tuned')['tokenizer'] == tokenizer
    assert text_in('tuned', 'train').split('<|endoftext|>')[0] == 'the cat sat on the mat. ' * 50


@pytest.mark.parametrize('args, message', [
    (['--val_fraction=0'], '--val_fraction=0.0: expected a number between 0 and 1'),
    (['--val_fraction=1'], '--val_fraction=1.0: '),
    (['--val_fraction=nan'], '--val_fraction=nan: '),
    (['--val_fraction=1e-30'], '--val_fraction=1e-30: holds out 0 of 1,000 characters'),
    (['--val_fraction=a tenth'], '--val_fraction=a tenth: expected a number'),
    (['--tokenizer=bpe', '--vocab_size=256'], '--vocab_size=256: expected 257 to'),
    (['--tokenizer=bpe', '--vocab_size=many'], '--vocab_size=many: expected an integer'),
    (['--tokenizer=bpe', f'--vocab_size={10 ** 9}'], '--vocab_size=1000000000: expected 257 to'),
    (['--vocab_size=512'], '--vocab_size=512: a tokenizer of kind char has a vocabulary of its own; '),
    (['--tokenizer=words'], 'expected char, byte, bpe, gpt2, or a model'),
    (['short.txt'], 'short.txt'),
    (['bad.jsonl'], 'bad.jsonl: line 2 is not JSON'),
    (['bad.jsonl.gz'], 'bad.jsonl.gz: damaged'),
    (['bad.txt.gz'], 'bad.txt.gz: not UTF-8 text (byte 5)'),
    (['other.jsonl'], "other.jsonl: line 1: no field 'text'; choose one of those there with --field=NAME: body"),
    (['missing.parquet'], 'missing.parquet: No such file'),
    (['bad.parquet'], 'bad.parquet: cannot be read as parquet'),
])
def test_what_is_wrong_is_one_line(args, message, prepare):
    pytest.importorskip('tokenizers', reason='it trains a vocabulary: pip install tokenizers')
    pytest.importorskip('pyarrow', reason='it writes parquet files: pip install pyarrow')
    Path('good.txt').write_text('some text ' * 100)
    Path('short.txt').write_text('short')
    Path('bad.jsonl').write_text('{"text": "a"}\n{"text": \n')
    Path('bad.jsonl.gz').write_text('{"text": "a"}\n')
    Path('bad.txt.gz').write_bytes(gzip.compress(b'text \xff'))
    Path('bad.parquet').write_bytes(b'PAR1')
    write_lines('other.jsonl', ['a'], field='body')
    if args[0].startswith('--'):
        args = ['good.txt', *args]
    ran = prepare(*args)
    assert_one_line(ran, message)
    assert not os.path.exists('d')


@pytest.mark.skipif(os.name != 'posix', reason='pipes are different there')
def test_names_that_lie(prepare):
    """A folder, a pipe and a device with the names of files."""
    os.mkdir('x.jsonl')
    Path('x.jsonl/a.txt').write_text('some text ' * 50)
    assert prepare('x.jsonl').returncode == 0
    os.mkfifo('pipe.parquet')
    assert_one_line(prepare('pipe.parquet', '--overwrite'), 'pipe.parquet: a pipe; expected a file')
    os.symlink('/dev/zero', 'zeros.jsonl.gz')
    assert_one_line(prepare('zeros.jsonl.gz', '--overwrite'), 'zeros.jsonl.gz: a device; expected a file')


def test_packages_that_are_missing(prepare, monkeypatch):
    Path('x.txt').write_text('some text ' * 50)
    Path('x.parquet').write_bytes(b'PAR1')
    for package, args in (('tokenizers', ['x.txt', '--tokenizer=bpe']), ('pyarrow', ['x.parquet'])):
        monkeypatch.setitem(sys.modules, package, None)
        assert_one_line(prepare(*args), f'pip install {package}')


def test_a_folder_that_holds_its_own_dataset(prepare):
    """The dataset among its sources: it is not read the next time, and nothing else is overwritten."""
    os.makedirs('books/below')
    Path('books/a.txt').write_text('first text ' * 50)
    Path('books/below/b.txt').write_text('second text ' * 50)
    for _ in range(2):
        ran = prepare('books', '--tokenizer=byte', out='books')
        assert ran.returncode == 0, ran.stderr
        Path('books/val.bin.1.tmp').write_bytes(b'\xff')
    assert text_in('books', 'train') + text_in('books', 'val') == 'first text ' * 50 + '\n' + 'second text ' * 50
    assert_one_line(prepare('books/a.txt', out='books'), 'holds other files (below)', '--overwrite')


@pytest.mark.slow
def test_progress_on_a_terminal():
    """It is shown while it runs; elsewhere, nothing is."""
    fcntl = pytest.importorskip('fcntl', reason='needs POSIX locks')
    import pty
    import termios

    Path('x.txt').write_text('some text ' * 3_000_000)
    command = [sys.executable, str(REPO / 'data/prepare.py'), 'x.txt', '--tokenizer=byte', '--out=d']
    assert subprocess.run(command, check=True, capture_output=True).stderr == b''

    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack('HHHH', 24, 80, 0, 0))
    child = subprocess.Popen(command, stderr=slave, stdout=subprocess.DEVNULL)
    os.close(slave)
    shown = read_terminal(master).decode()
    os.close(master)
    assert child.wait() == 0
    assert 'reading:' in shown
    assert 'encoding:' in shown
    assert '30.0M' in shown
