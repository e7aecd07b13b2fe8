"""Reading documents: text, JSON lines, gzip, parquet; whole or damaged, ordinary or hostile."""

import gzip
import json
import os
import sys
from pathlib import Path

import pytest

from gradus import documents
from gradus.errors import UserError

hypothesis = pytest.importorskip('hypothesis', reason='it draws texts: pip install hypothesis')
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def read(*paths, **options):
    """The documents, whole."""
    found = []
    for begins, text in documents.read(paths, **options):
        if begins:
            found.append('')
        found[-1] += text
    return found


def write_lines(path, objects):
    content = ''.join(json.dumps(o) + '\n' for o in objects).encode()
    Path(path).write_bytes(gzip.compress(content) if path.endswith('.gz') else content)


# ---------------------------------------------------------------------------- files

@pytest.mark.skipif(os.name != 'posix', reason='pipes and links are different there')
def test_a_folder_stands_for_its_files():
    for name in ('b.txt', 'a/z.md', 'a/y', '.hidden', '.git/x.txt', 'a/.hidden/x', 'c.jsonl/inside.txt', 'd/train.bin'):
        Path('in', name).parent.mkdir(parents=True, exist_ok=True)
        Path('in', name).write_text(name)
    os.symlink('..', 'in/a/loop')
    os.symlink('b.txt', 'in/link')
    os.symlink('nowhere', 'in/broken')
    os.mkfifo('in/pipe')
    os.symlink('/dev/zero', 'in/zeros')

    expected = ['in/a/y', 'in/a/z.md', 'in/b.txt', 'in/c.jsonl/inside.txt', 'in/d/train.bin', 'in/link']
    assert documents.find(['in']) == expected
    assert documents.find(['in/b.txt', 'in'], skip={os.path.realpath('in/d/train.bin')}) == [
        'in/b.txt', *[name for name in expected if not name.endswith('bin')]]
    assert documents.find(['in/.hidden', 'in/link']) == ['in/.hidden', 'in/link']

    os.mkdir('empty')
    with pytest.raises(UserError, match='^empty: a folder without files to read$'):
        documents.find(['in', 'empty'])
    for name, message in (('in/pipe', 'a pipe'), ('in/zeros', 'a device'), ('missing', 'No such file')):
        with pytest.raises(UserError, match=f'^{name}: {message}'):
            documents.find([name])
        with pytest.raises(UserError, match=f'^{name}: {message}'):
            list(documents.read([name]))


# ---------------------------------------------------------------------------- text

@settings(max_examples=50, deadline=None)
@given(text=st.text(st.characters(exclude_categories=['Cs'])), size=st.integers(1, 9), zipped=st.booleans(),
       bom=st.booleans())
def test_text_is_read_as_it_is(text, size, zipped, bom):
    """However the blocks cut it: line ends, NUL, emoji."""
    path = 'x.gz' if zipped else 'x.txt'
    content = b'\xef\xbb\xbf' * bom + text.encode()
    Path(path).write_bytes(gzip.compress(content) if zipped else content)
    expected = text if bom else text.removeprefix('\ufeff')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, 'BLOCK', size)
        assert read(path) == [expected]
        assert all(len(text) <= size for _, text in documents.read([path]))


@settings(max_examples=200, deadline=None)
@given(content=st.binary(min_size=1, max_size=12) | st.text().map(lambda s: s.encode('utf-16')), size=st.integers(1, 9))
def test_the_place_that_is_not_utf8_is_named(content, size):
    Path('x.txt').write_bytes(content)
    Path('x.gz').write_bytes(gzip.compress(content))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, 'BLOCK', size)
        for path in ('x.txt', 'x.gz'):
            try:
                expected = content.decode()
            except UnicodeDecodeError as e:
                with pytest.raises(UserError, match=rf'^{path}: not UTF-8 text \(byte {e.start}\); convert it first$'):
                    read(path)
            else:
                assert read(path) == [expected.removeprefix('\ufeff')]


def test_a_damaged_gzip_is_one_line():
    good = gzip.compress(os.urandom(3000).hex().encode())
    damaged = good[:100] + bytes([good[100] ^ 255]) + good[101:]
    for content in (b'no gzip', good[:-20], damaged, good + b'garbage', good[:-8] + bytes(8)):
        Path('x.gz').write_bytes(content)
        with pytest.raises(UserError, match=r'^x.gz: (damaged|not UTF-8 text)'):
            read('x.gz')
    Path('x.gz').write_bytes(good + good)             # two members are a file, too
    assert len(read('x.gz')[0]) == 12_000


def test_progress_reaches_the_end():
    Path('a.txt').write_text('x' * 600_000)
    write_lines('b.jsonl', [{'text': 'abc'}] * 1000)
    write_lines('c.jsonl.gz', [{'text': 'abc'}] * 1000)
    files = ['a.txt', 'b.jsonl', 'c.jsonl.gz']
    steps = []
    list(documents.read(files, advance=steps.append))
    assert sum(steps) == documents.total_bytes(files)
    assert all(step >= 0 for step in steps)


# ---------------------------------------------------------------------------- JSON lines

@pytest.mark.parametrize('path', ['x.jsonl', 'X.JSONL.GZ', 'x.jsonl.gz'])
def test_json_lines(path):
    write_lines(path.replace('GZ', 'gz'), [{'text': 'a\nb', 'id': 1}, {'text': ''}, {'text': '\U0001f600\x00'}])
    if 'GZ' in path:
        os.rename(path.replace('GZ', 'gz'), path)
    assert read(path) == ['a\nb', '', '\U0001f600\x00']


def test_json_lines_that_are_unusual():
    """A byte-order mark, empty lines, no newline at the end, CRLF, half a character, another field, a long document."""
    Path('x.jsonl').write_bytes(b'\xef\xbb\xbf{"body": "1"}\r\n\r\n \n{"body": "\\ud83d!\\ud83d\\ude00"}\n'
                                b'{"body": "' + b'y' * 600_000 + b'", "text": 3}')
    assert read('x.jsonl', field='body') == ['1', '\ufffd!\U0001f600', 'y' * 600_000]
    assert max(len(text) for _, text in documents.read(['x.jsonl'], 'body')) == documents.BLOCK


@pytest.mark.parametrize('line, message', [
    (b'{"text": "a"', 'line 2 is not JSON .*; expected one object a line'),
    (b'[' * 100_000, 'line 2 is not JSON'),
    (b'{"text": ' + b'1' * 5000 + b'}', 'line 2'),
    (b'["a"]', r"line 2 is \['a'\]; expected an object"),
    (b'{"title": "a", "url": "b"}', "line 2: no field 'text'; choose one .*--field=NAME: title, url$"),
    (b'{}', "line 2: no field 'text'; .*: none$"),
    (b'{"\\u001b[31m": 1}', r'\\x1b\[31m$'),
    (json.dumps({str(i): 1 for i in range(30)}).encode(), '10, 11 and 18 more$'),
    (b'{"text": null}', "line 2: 'text' is None; expected a string"),
    (b'{"text": ["a"]}', "line 2: 'text' is .*; expected a string"),
    (b'{"text": "\xff"}', r'not UTF-8 text \(byte 27\)'),
])
def test_lines_that_are_wrong(line, message):
    Path('x.jsonl').write_bytes(b'{"text": "good"}\n' + line + b'\n')
    with pytest.raises(UserError, match=f'^x.jsonl: .*{message}'):
        read('x.jsonl')


def test_an_endless_line_is_not_held_in_memory(monkeypatch):
    monkeypatch.setattr(documents, 'MAX_LINE', 1000)
    with gzip.open('x.jsonl.gz', 'wb') as f:
        f.write(b'{"text": "a"}\n' + b' ' * 10 ** 7)
    with pytest.raises(UserError, match='^x.jsonl.gz: line 2 is longer than 1,000 bytes'):
        read('x.jsonl.gz')


# ---------------------------------------------------------------------------- parquet

@pytest.fixture
def write_parquet():
    pyarrow = pytest.importorskip('pyarrow', reason='it writes parquet files: pip install pyarrow')
    parquet = pytest.importorskip('pyarrow.parquet', reason='it writes parquet files: pip install pyarrow')

    def write(columns, path='x.parquet', **options):
        parquet.write_table(pyarrow.table(columns), path, **options)
    return write


def test_parquet(write_parquet, monkeypatch):
    texts = [f'{i} \U0001f600\n' * (i % 7) for i in range(500)]
    write_parquet({'id': range(500), 'text': texts}, row_group_size=64)
    assert read('x.parquet') == texts
    steps = []
    list(documents.read(['x.parquet'], advance=steps.append))
    assert sum(steps) == os.path.getsize('x.parquet')
    assert len(steps) > 10

    write_parquet({'id': [1], 'body.of it': ['a']}, compression='gzip')
    assert read('x.parquet', field='body.of it') == ['a']
    write_parquet({'text': []}, path='empty.parquet')
    with pytest.raises(UserError, match="^empty.parquet: 'text' is a column of null; expected strings"):
        read('empty.parquet')


def test_parquet_that_is_wrong(write_parquet, monkeypatch):
    write_parquet({'id': [1, 2], 'body': ['a', None]})
    with pytest.raises(UserError, match="^x.parquet: no field 'text'; choose one .*: id, body$"):
        read('x.parquet')
    with pytest.raises(UserError, match="^x.parquet: 'id' is a column of int64; expected strings"):
        read('x.parquet', field='id')
    with pytest.raises(UserError, match="^x.parquet: row 2: 'body' is None; expected a string"):
        read('x.parquet', field='body')

    write_parquet({'body': ['a', 'b']})
    content = Path('x.parquet').read_bytes()
    for damaged in (b'', b'PAR1', b'no parquet', content[:-30], content[:4] + b'\xff' * 40 + content[44:]):
        Path('x.parquet').write_bytes(damaged)
        with pytest.raises(UserError, match='^x.parquet: cannot be read as parquet'):
            read('x.parquet', field='body')

    monkeypatch.setitem(sys.modules, 'pyarrow', None)
    with pytest.raises(UserError, match='^x.parquet: parquet files are read with pyarrow; pip install pyarrow$'):
        read('x.parquet')
