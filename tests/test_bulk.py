"""Datasets of gigabytes, in miniature: data/openwebtext/prepare.py, data/fineweb_edu/prepare.py and what they share."""

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from conftest import REPO, limited, run_script, small_disk

from gradus import bulk, corpus
from gradus.errors import UserError, exit_on_error
from gradus.metadata import read_meta

END = 50256


def module_of(name):
    """data/<name>/prepare.py as a module, whose constants a test may change."""
    spec = importlib.util.spec_from_file_location(f'prepare_{name}', REPO / 'data' / name / 'prepare.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(monkeypatch, capsys):
    """Run one of these modules with arguments: exit code, stdout, stderr."""
    def main(module, *args):
        capsys.readouterr()
        monkeypatch.setattr(sys, 'argv', ['prepare.py', *map(str, args)])
        code = 0
        try:
            with exit_on_error():
                module.main()
        except SystemExit as e:
            code = e.code
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return main


@pytest.fixture
def openwebtext(monkeypatch):
    monkeypatch.setattr(sys, 'path', list(sys.path))
    return module_of('openwebtext')


@pytest.fixture
def fineweb(monkeypatch):
    monkeypatch.setattr(sys, 'path', list(sys.path))
    return module_of('fineweb_edu')


def texts_of(n, first=0):
    """Documents of which the number is a token at the end, and a text that looks like a special token."""
    return [f'Hello <|endoftext|> {i}' for i in range(first, first + n)]


def write_parquet(path, texts, column='text'):
    pa = pytest.importorskip('pyarrow', reason='the library that reads parquet files: pip install pyarrow')
    from pyarrow import parquet

    parquet.write_table(pa.table({'id': list(range(len(texts))), column: texts}), path, row_group_size=700)
    return path


def documents_of(path, tokenizer):
    """The texts in a token file."""
    ids = np.fromfile(path, dtype='<u2')
    assert ids[-1] == END
    return [tokenizer.decode(part.tolist()) for part in np.split(ids, np.flatnonzero(ids == END) + 1)[:-1]]


def with_ends(texts):
    return [text + '<|endoftext|>' for text in texts]


def assert_refused(ran, *parts):
    assert ran.code == 2
    assert ran.err.startswith('error: ')
    assert ran.err.count('\n') == 1
    for part in parts:
        assert part in ran.err


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# ---------------------------------------------------------------------------- which documents are held out

@pytest.mark.parametrize('n', [2, 1999, 2000, 2001, 12_345])
def test_held_out_are_those_of_datasets(n, openwebtext):
    datasets = pytest.importorskip('datasets', reason='the package that nanoGPT splits with: pip install datasets')
    real = datasets.Dataset.from_dict({'i': range(n)}).train_test_split(test_size=0.0005, seed=2357, shuffle=True)
    assert openwebtext.held_out(n) == set(real['test']['i'])


@pytest.mark.slow
def test_held_out_are_those_of_datasets_for_all_of_openwebtext(openwebtext):
    datasets = pytest.importorskip('datasets', reason='the package that nanoGPT splits with: pip install datasets')
    n = openwebtext.DOCUMENTS
    all_documents = datasets.Dataset.from_dict({'i': np.arange(n)})
    real = all_documents.train_test_split(test_size=0.0005, seed=2357, shuffle=True)
    assert openwebtext.held_out(n) == set(real['test']['i'])
    assert len(real['test']) == 4007


# ---------------------------------------------------------------------------- OpenWebText

def stand_in_for_datasets(monkeypatch, texts):
    """The package datasets, which streams `texts`, or raises them."""
    def load_dataset(name, split, streaming):
        assert (name, split, streaming) == ('Skylion007/openwebtext', 'train', True)
        if isinstance(texts, Exception):
            raise texts
        return SimpleNamespace(iter=batches)

    def batches(batch_size):
        for i in range(0, len(texts), batch_size):
            yield {'text': texts[i:i + batch_size]}

    module = ModuleType('datasets')
    module.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, 'datasets', module)


def test_openwebtext_is_streamed(openwebtext, run, gpt2, monkeypatch):
    monkeypatch.setattr(openwebtext, 'DOCUMENTS', 4500)
    monkeypatch.setattr(openwebtext, 'TOKENS', 4500 * 10)
    stand_in_for_datasets(monkeypatch, texts_of(4500))
    ran = run(openwebtext, '--out', 'd')
    assert (ran.code, ran.err) == (0, '')
    assert ran.out.startswith('OpenWebText: download 24.2 GB, about 0.04 million tokens, 0.1 MB on disk; about 1 min')

    held_out = openwebtext.held_out(4500)
    assert len(held_out) == 3
    expected = dict(train=[], val=[])
    for i, text in enumerate(texts_of(4500)):
        expected['val' if i in held_out else 'train'].append(text)
    for split, texts in expected.items():
        assert documents_of(f'd/{split}.bin', gpt2) == with_ends(texts)
    assert read_meta('d')['source'] == 'Skylion007/openwebtext'


def test_openwebtext_of_another_size_is_not_written(openwebtext, run, gpt2, monkeypatch):
    monkeypatch.setattr(openwebtext, 'TOKENS', 1000)
    stand_in_for_datasets(monkeypatch, texts_of(2500))
    ran = run(openwebtext, '--out', 'd')
    assert_refused(ran, 'the text has 2,500 documents; expected 8,013,769', 'nothing was written')
    assert os.listdir('d') == []


def test_openwebtext_from_parquet_files(openwebtext, run, gpt2, monkeypatch):
    """In the order of their names, whatever the order of the arguments."""
    write_parquet('a.parquet', texts_of(1300))
    write_parquet('b.parquet', texts_of(1200, first=1300))
    ran = run(openwebtext, '--input', 'b.parquet', 'a.parquet', '--out', 'd')
    assert (ran.code, ran.err) == (0, '')
    assert '2,500 documents of 8,013,769: not those that nanoGPT holds out' in ran.out
    held_out = sorted(openwebtext.held_out(2500))
    assert documents_of('d/val.bin', gpt2) == with_ends(texts_of(2500)[i] for i in held_out)

    monkeypatch.setattr(openwebtext, 'DOCUMENTS', 2500)
    monkeypatch.setattr(openwebtext, 'TOKENS', 1000)
    ran = run(openwebtext, '--input', 'a.parquet', 'b.parquet', '--out', 'e')
    assert 'not those' not in ran.out
    assert Path('e/val.bin').read_bytes() == Path('d/val.bin').read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize('name', ['openwebtext', 'fineweb_edu'])
def test_as_a_process(name, test_data):
    write_parquet('a.parquet', texts_of(2500))
    env = {'TIKTOKEN_CACHE_DIR': str(test_data / 'tiktoken')}
    ran = run_script(f'data/{name}/prepare.py', '--input', 'a.parquet', '--out', 'd', env=env)
    assert (ran.returncode, ran.stderr) == (0, '')
    assert len(np.fromfile('d/val.bin', dtype='<u2')) > 10


def test_openwebtext_without_package_or_network(openwebtext, run, gpt2, monkeypatch):
    monkeypatch.setattr(openwebtext, 'TOKENS', 1000)
    monkeypatch.setitem(sys.modules, 'datasets', None)
    assert_refused(run(openwebtext, '--out', 'd'), 'pip install datasets', '--input FILE.parquet')
    stand_in_for_datasets(monkeypatch, ConnectionError('no\nnetwork'))
    assert_refused(run(openwebtext, '--out', 'd'), 'ConnectionError: no network', '--input FILE.parquet')


# ---------------------------------------------------------------------------- FineWeb-Edu

def test_fineweb_from_parquet_files(fineweb, run, gpt2):
    write_parquet('1.parquet', texts_of(1500))
    write_parquet('2.parquet', texts_of(1500, first=1500))
    ran = run(fineweb, '--input', '1.parquet', '2.parquet', '--out', 'd')
    assert (ran.code, ran.err) == (0, '')

    texts = texts_of(3000)
    held_out = [texts.pop(i) for i in (2999, 1999, 999)][::-1]
    assert documents_of('d/train.bin', gpt2) == with_ends(texts)
    assert documents_of('d/val.bin', gpt2) == with_ends(held_out)
    assert read_meta('d')['source'] == 'HuggingFaceFW/fineweb-edu: 1.parquet, 2.parquet'


def test_fineweb_is_downloaded(fineweb, run, gpt2, monkeypatch):
    """With a stand-in for the hub: only what is not in the cache yet counts as a download."""
    hub = pytest.importorskip('huggingface_hub', reason='downloads from Hugging Face: pip install huggingface_hub')
    asked = []

    def hf_hub_download(repo, name, repo_type):
        assert (repo, repo_type) == ('HuggingFaceFW/fineweb-edu', 'dataset')
        asked.append(name)
        return write_parquet(f'{len(asked)}.parquet', texts_of(1000))

    monkeypatch.setattr(hub, 'hf_hub_download', hf_hub_download)
    monkeypatch.setattr(hub, 'try_to_load_from_cache', lambda repo, name, repo_type: 'here' if '001' in name else None)
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: SimpleNamespace(free=10 ** 12))
    ran = run(fineweb, '--shards=3', '--out', 'd')
    assert (ran.code, ran.err) == (0, '')
    assert asked == [f'sample/10BT/00{i}_00000.parquet' for i in range(3)]
    assert 'download 4.3 GB, about 2.26 billion tokens, 4.5 GB on disk (and 4.3 GB of downloads)' in ran.out
    assert len(documents_of('d/val.bin', gpt2)) == 3
    assert read_meta('d')['source'] == 'HuggingFaceFW/fineweb-edu sample/10BT, 3 of 14 files'

    def fails(*args, **kwargs):
        raise ConnectionError('no\nnetwork')

    monkeypatch.setattr(hub, 'hf_hub_download', fails)
    assert_refused(run(fineweb, '--out', 'e'), '000_00000.parquet: download failed (ConnectionError: no network); ')


@pytest.mark.parametrize('package', ['huggingface_hub', 'pyarrow'])
def test_fineweb_without_packages(package, fineweb, run, gpt2, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    assert_refused(run(fineweb, '--out', 'd'), package, 'pip install huggingface_hub pyarrow')
    Path('x.parquet').touch()
    if package == 'pyarrow':
        assert_refused(run(fineweb, '--input', 'x.parquet', '--out', 'd'), 'pip install pyarrow')
    assert not os.path.exists('d')


@pytest.mark.parametrize('shards', ['0', '15', '-1', 'many', '1.5', '', '\x1b'])
def test_how_many_files(shards, fineweb, run, gpt2):
    assert_refused(run(fineweb, f'--shards={shards}', '--out', 'd'), 'expected a number of files from 1 to 14')


def test_damaged_parquet_files(fineweb, run, gpt2):
    """Whatever is wrong is said before a file has its name; what a footer shows, before anything is written."""
    good = write_parquet('good.parquet', texts_of(1000))
    content = Path(good).read_bytes()
    Path('cut.parquet').write_bytes(content[:-100])
    Path('empty.parquet').write_bytes(b'')
    Path('text.parquet').write_text('some text ' * 100)
    os.mkdir('folder.parquet')
    write_parquet('column.parquet', texts_of(1000), column='content')
    write_parquet('numbers.parquet', list(range(1000)))
    write_parquet('few.parquet', texts_of(9))
    for name, *message in [('cut', 'cannot be read as parquet'),
                           ('empty', 'cannot be read as parquet'),
                           ('text', 'cannot be read as parquet'),
                           ('folder', 'a folder; expected a file'),
                           ('missing', 'No such file'),
                           ('column', "no field 'text'; choose one of those there with --field=NAME: id, content"),
                           ('numbers', "'text' is a column of int64; expected strings"),
                           ('few', '9 documents; expected at least 1,000')]:
        assert_refused(run(fineweb, '--input', f'{name}.parquet', '--out', 'd'), f'{name}.parquet: ', *message)
        assert not os.path.exists('d')

    # found on the way
    write_parquet('none.parquet', [*texts_of(1500), None])
    broken = bytearray(content)
    broken[len(content) // 8:len(content) // 2] = bytes(len(content) // 2 - len(content) // 8)
    Path('broken.parquet').write_bytes(broken)
    for name, message in [('none', "row 1501: 'text' is None; expected a string"),
                          ('broken', 'cannot be read as parquet')]:
        assert_refused(run(fineweb, '--input', good, f'{name}.parquet', '--out', 'd'), f'{name}.parquet: {message}')
        assert os.listdir('d') == []


def test_the_text_may_be_in_another_column(fineweb, openwebtext, run, gpt2):
    write_parquet('a.parquet', texts_of(1000), column='content')
    for script in (fineweb, openwebtext):
        ran = run(script, '--input', 'a.parquet', '--field=content', '--out', 'd')
        assert (ran.code, ran.err) == (0, '')
        assert len(documents_of('d/train.bin', gpt2)) == 999


# ---------------------------------------------------------------------------- room

def test_too_little_room_is_said_first(fineweb, openwebtext, run, gpt2, monkeypatch):
    """Nothing is downloaded then. Downloads and tokens are added up if they share a disk."""
    pytest.importorskip('huggingface_hub', reason='it lists the files: pip install huggingface_hub')
    pytest.importorskip('pyarrow', reason='it writes parquet files: pip install pyarrow')
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    monkeypatch.setattr(fineweb, 'downloads_of', lambda n: [('.', 2_152_000_000)])
    monkeypatch.setattr(fineweb, 'download', lambda n: pytest.fail('downloads'))
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: SimpleNamespace(free=3_000_000_000))
    assert_refused(run(fineweb, '--out', 'd'), '3.0 GB free; expected 3.7 GB; make room, or choose another folder')
    stand_in_for_datasets(monkeypatch, AssertionError('streams'))
    assert_refused(run(openwebtext, '--out', 'd'), 'd: 3.0 GB free; expected 18.1 GB; make room')
    assert os.listdir('d') == []


def test_each_disk_has_its_own_room(monkeypatch):
    os.mkdir('out')
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: SimpleNamespace(free=100))
    monkeypatch.setattr(os, 'stat', lambda path: SimpleNamespace(st_dev=path.endswith('out')))
    monkeypatch.setattr(os.path, 'exists', lambda path: not path.endswith('below'))
    bulk.require_space([('out', 90), ('cache', 60), ('cache', 40)])
    with pytest.raises(UserError, match='^out/below: '):
        bulk.require_space([('out', 90), ('cache', 60), ('out/below', 11)])


def test_a_disk_that_fills_up_meanwhile(fineweb, run, gpt2, monkeypatch):
    write_parquet('a.parquet', texts_of(3000))
    monkeypatch.setattr(bulk, 'require_space', lambda needs: None)
    with small_disk('small', 16_384):
        ran = run(fineweb, '--input', 'a.parquet', '--out', 'small/d')
        assert_refused(ran, 'could not be written (No space left on device); make room')
        assert os.listdir('small/d') == []
    with limited('RLIMIT_FSIZE', 8192):
        ran = run(fineweb, '--input', 'a.parquet', '--out', 'd')
    assert_refused(ran, 'could not be written (File too large); choose another folder with --out')


def test_folders_that_cannot_be(fineweb, openwebtext, run, gpt2):
    write_parquet('a.parquet', texts_of(1000))
    Path('file').write_text('mine')
    for script in (fineweb, openwebtext):
        for out in ('/proc/x', 'file', 'file/below', 'x' * 300, 'a\0b'):
            ran = run(script, '--input', 'a.parquet', '--out', out)
            assert_refused(ran)
            assert 'make room' not in ran.err
    assert Path('file').read_text() == 'mine'


# ---------------------------------------------------------------------------- encoding

def test_documents_keep_their_order_and_few_are_read_ahead(gpt2, monkeypatch):
    """Two documents a task; the threads of a two-core machine hold four tasks, and one more is being made."""
    monkeypatch.setattr(corpus, 'CHUNK', 30)
    monkeypatch.setattr(corpus, 'n_cores', lambda: 2)
    read = []

    def texts():
        for text in texts_of(400):
            read.append(text)
            yield text

    ids = []
    for used, (split, part) in enumerate(bulk.encoded(texts(), gpt2, 400, lambda i: False), start=1):
        assert split == 'train'
        assert len(read) <= 2 * (used + 4)
        ids += part.tolist()
    assert ids == [i for text in texts_of(400) for i in [*gpt2.encode_ordinary(text), END]]


def test_an_empty_document_is_an_end(gpt2):
    pieces = bulk.encoded(['a', '', 'b', ''], gpt2, 4, lambda i: i > 1)
    assert {split: ids.tolist() for split, ids in pieces} == {'train': [64, END, END], 'val': [65, END, END]}


def test_a_stream_that_is_abandoned_ends_its_threads(gpt2):
    import threading

    before = threading.active_count()
    pieces = bulk.encoded(texts_of(10_000), gpt2, 10_000, lambda i: False)
    next(pieces)
    assert threading.active_count() > before
    pieces.close()
    assert threading.active_count() == before


def test_this_machines_speed(gpt2):
    assert 1e4 < bulk.tokens_per_second(gpt2) < 1e10
