"""
Read documents from files of any size: plain text, JSON lines, both also compressed with gzip, and parquet.

    for begins, text in read(find(['notes/', 'web.jsonl.gz']), field='text'):

A text file is one document. In JSON lines and parquet, each line or row is one, and `field` names its text. Long
documents come in several pieces, so that memory holds one piece at a time; `begins` marks the first of each document.
"""

import codecs
import contextlib
import gzip
import io
import json
import os
import re
import stat
import zlib

from gradus.errors import UserError, one_line, printable, show
from gradus.files import require_file

BLOCK = 2 ** 18                                       # bytes to read at a time, and characters of a piece
MAX_LINE = 2 ** 27                                    # bytes of one line of JSON
BOM = '\ufeff'                                        # some editors put it at the start of a file
SURROGATE = re.compile('[\ud800-\udfff]')


# ---------------------------------------------------------------------------- files

def find(paths, skip=()):
    """
    The files in `paths`. A folder stands for all regular files in it and below, sorted, except for hidden ones and
    those whose real path is in `skip`. Links to folders are not followed. Raises UserError.
    """
    files = []
    for path in paths:
        if not os.path.isdir(path):
            require_file(path)
            files.append(path)
            continue
        inside = sorted(file for file in _walk(path) if os.path.realpath(file) not in skip)
        if not inside:
            raise UserError(f'{path}: a folder without files to read')
        files += inside
    return files


def _walk(folder):
    def refuse(e):
        raise UserError(f'{e.filename}: cannot be read ({e.strerror})') from e

    for above, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith('.')]
        for name in names:
            path = os.path.join(above, name)
            if not name.startswith('.') and _is_regular(path):
                yield path


def _is_regular(path):
    """Is it a regular file, or a link to one?"""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return False


def total_bytes(files):
    """How much there is to read. Raises UserError unless all are regular files."""
    for path in files:
        require_file(path)
    return sum(os.path.getsize(path) for path in files)


# ---------------------------------------------------------------------------- documents

def read(files, field='text', advance=None):
    """
    Yield (begins, text) for each piece of each document; `begins` is true for the first piece of a document. `advance`
    is called with the number of bytes read since the last call. Raises UserError.
    """
    for path in files:
        require_file(path)
        at = 0
        for begins, text, position in _pieces(path, field):
            if advance and position > at:
                advance(position - at)
                at = position
            yield begins, text[:BLOCK]
            for i in range(BLOCK, len(text), BLOCK):
                yield False, text[i:i + BLOCK]
        if advance:
            advance(os.path.getsize(path) - at)


def _pieces(path, field):
    """Yield (begins, text, position in the file)."""
    name = path.lower()
    if name.endswith('.parquet'):
        yield from _parquet(path, field)
        return
    with _reading(path), open(path, 'rb') as raw:
        file = _unzipped(path, raw)
        if name.removesuffix('.gz').endswith('.jsonl'):
            pieces = _json_lines(path, file, field)
        else:
            pieces = _text(path, file)
        for begins, text in pieces:
            yield begins, text, raw.tell()


def _unzipped(path, raw):
    """What an open file holds, which may be compressed."""
    return io.BufferedReader(gzip.GzipFile(fileobj=raw), BLOCK) if path.lower().endswith('.gz') else raw


@contextlib.contextmanager
def _reading(path):
    """Errors of the operating system and of gzip become a UserError about `path`."""
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as e:
        raise UserError(f'{path}: damaged, or not compressed with gzip ({one_line(e)})') from e
    except OSError as e:
        raise UserError(f'{path}: {e.strerror or one_line(e)}; expected a file to read') from e


def _text(path, file):
    decoder = codecs.getincrementaldecoder('utf-8')()
    offset = 0                                        # where the next block starts
    started = False
    while True:
        block = file.read(BLOCK)
        pending = len(decoder.getstate()[0])          # bytes of a character that the last block cut in two
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as e:
            raise _not_utf8(path, offset - pending + e.start) from e
        if text and not started:
            text = text.removeprefix(BOM)
            started = True
        if text or offset == 0:
            yield offset == 0, text
        if not block:
            return
        offset += len(block)


def _not_utf8(path, offset):
    return UserError(f'{path}: not UTF-8 text (byte {offset}); convert it first')


# ---------------------------------------------------------------------------- JSON lines

def lines(path):
    """
    (where, text) of each line of a file, gzipped or not, that is not empty; `where` names it in errors. Raises
    UserError.
    """
    require_file(path)
    with _reading(path), open(path, 'rb') as raw:
        for number, text in _lines(path, _unzipped(path, raw)):
            yield f'{path}: line {number}', text.rstrip('\r\n')


def _json_lines(path, file, field):
    for number, text in _lines(path, file):
        yield True, _text_of(f'{path}: line {number}', text, field)


def _lines(path, file):
    """(number, text) of each line that is not empty."""
    offset = 0
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            raise UserError(f'{path}: line {number} is longer than {MAX_LINE:,} bytes; expected shorter ones')
        try:
            text = line.decode('utf-8')
        except UnicodeDecodeError as e:
            raise _not_utf8(path, offset + e.start) from e
        offset += len(line)
        if number == 1:
            text = text.removeprefix(BOM)
        if text and not text.isspace():
            yield number, text


def _text_of(where, line, field):
    """The text in one line of JSON. Raises UserError."""
    try:
        document = json.loads(line)
    except (ValueError, RecursionError) as e:
        raise UserError(f'{where} is not JSON ({one_line(e, limit=100)}); expected one object a line') from e
    if type(document) is not dict:
        raise UserError(f'{where} is {show(document)}; expected an object with the field {show(field)}')
    if field not in document:
        raise _no_field(where, field, document)
    text = document[field]
    if type(text) is not str:
        raise UserError(f'{where}: {show(field)} is {show(text)}; expected a string; --field=NAME chooses another')
    return whole_characters(text)


def whole_characters(text):
    """A string of JSON without lone surrogates such as "\\ud800", which UTF-8 cannot encode."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return SURROGATE.sub('\ufffd', text)


def _no_field(where, field, names):
    listed = ', '.join(printable(str(name))[:40] for name in list(names)[:12]) or 'none'
    more = f' and {len(names) - 12} more' if len(names) > 12 else ''
    return UserError(f'{where}: no field {show(field)}; choose one of those there with --field=NAME: {listed}{more}')


# ---------------------------------------------------------------------------- parquet

def parquet_rows(files, field='text'):
    """How many rows parquet files have together, after a look at their ends alone. Raises UserError."""
    rows = 0
    for path in files:
        with _open_parquet(path, field) as file:
            rows += file.metadata.num_rows
    return rows


def parquet_texts(files, field='text'):
    """The documents in parquet files, each in one piece. Raises UserError."""
    for path in files:
        for _, text, _ in _parquet(path, field):
            yield text


def _parquet(path, field):
    size = os.path.getsize(path)
    row = 0
    with _open_parquet(path, field) as file:
        rows = max(1, file.metadata.num_rows)
        for batch in file.iter_batches(batch_size=_batch_size(file, field), columns=[field], use_threads=False):
            for text in batch.column(0):
                row += 1
                text = text.as_py()
                if type(text) is not str:
                    raise UserError(f'{path}: row {row}: {show(field)} is {show(text)}; expected a string')
                yield True, text, size * row // rows


@contextlib.contextmanager
def _open_parquet(path, field):
    """A parquet file that has strings in the column `field`. Whatever pyarrow raises about it becomes a UserError."""
    try:
        from pyarrow import parquet
    except ImportError as e:
        raise UserError(f'{path}: parquet files are read with pyarrow; pip install pyarrow') from e
    require_file(path)
    with _reading_parquet(path), parquet.ParquetFile(path, buffer_size=BLOCK) as file:
        names = file.schema_arrow.names
        if field not in names:
            raise _no_field(path, field, names)
        kind = str(file.schema_arrow.field(field).type)
        if 'string' not in kind:
            raise UserError(f'{path}: {show(field)} is a column of {kind}; expected strings; --field=NAME chooses '
                            'another')
        yield file


def _batch_size(file, field):
    """How many rows make a few megabytes of text."""
    groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
    columns = [group.column(i) for group in groups for i in range(group.num_columns)]
    size = sum(column.total_uncompressed_size for column in columns if column.path_in_schema == field)
    return int(min(max(1, 2 ** 22 * file.metadata.num_rows // max(1, size)), 10_000))


@contextlib.contextmanager
def _reading_parquet(path):
    try:
        yield
    except (UserError, GeneratorExit):
        raise
    except Exception as e:                            # pyarrow's own, OSError, and UnicodeDecodeError
        raise UserError(f'{path}: cannot be read as parquet ({one_line(e, limit=160)})') from e
