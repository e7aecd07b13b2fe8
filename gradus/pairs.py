"""
Pairs of a prompt and its completion, such as a sentence and its translation: read them, make a dataset of them.

    prompt <tab> completion                      a line of a .tsv file
    {"prompt": "...", "completion": "..."}       a line of a .jsonl file

An example is the tokens of prompt, separator, completion and end of text; data.py makes batches of them. PyTorch is not
needed here.
"""

import hashlib
import json
from array import array

from tqdm import tqdm

from gradus import bpe, corpus, documents, preparation
from gradus.errors import UserError, show
from gradus.tokenizer import CharTokenizer, build_tokenizer

# Control characters of ASCII, made for this: start of text, end of text.
SEPARATOR, END = '\x02', '\x03'
# Bytes that no UTF-8 has.
SEPARATOR_BYTE, END_BYTE = 0xfe, 0xff
SPECIAL = ('<|endoftext|>', '<|separator|>')


# ---------------------------------------------------------------------------- reading

def read(paths):
    """(prompt, completion) of each line of .tsv or .jsonl files, gzipped or not. Raises UserError."""
    for path in paths:
        is_json = path.lower().removesuffix('.gz').endswith('.jsonl')
        parse = _from_json if is_json else _from_tsv
        for where, line in documents.lines(path):
            yield parse(line, where)


def _from_tsv(line, where):
    fields = line.split('\t')
    if len(fields) != 2:
        raise UserError(f'{where}: {len(fields)} columns; expected prompt, a tab, completion')
    return fields[0], fields[1]


def _from_json(line, where):
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as e:
        raise UserError(f'{where}: not JSON; expected {{"prompt": ..., "completion": ...}}') from e
    if not isinstance(record, dict):
        raise UserError(f'{where}: {show(record)}; expected {{"prompt": ..., "completion": ...}}')
    for name in ('prompt', 'completion'):
        if not isinstance(record.get(name), str):
            found = show(record[name]) if name in record else f"only {', '.join(map(show, record)) or 'nothing'}"
            raise UserError(f'{where}: {name} is missing or not a string: {found}; expected prompt and completion')
    return documents.whole_characters(record['prompt']), documents.whole_characters(record['completion'])


def as_tsv(pairs):
    """The content of a .tsv file, for texts without tabs and line ends."""
    return ''.join(f'{prompt}\t{completion}\n' for prompt, completion in pairs).encode()


def survey(pairs):
    """How many pairs there are, and their sha256, which tells one dataset from another."""
    digest = hashlib.sha256()
    n = 0
    for pair in pairs:
        digest.update(json.dumps(pair).encode())
        n += 1
    return n, digest.hexdigest()


def split(pairs, val_fraction):
    """('train' or 'val', prompt, completion) of each pair: those held out are spread evenly."""
    for i, pair in enumerate(pairs):
        yield 'val' if corpus.is_held_out(i, val_fraction) else 'train', *pair


# ---------------------------------------------------------------------------- tokenizers

def tokenizer_for(kind, texts, vocab_size=4096, separator=None):
    """
    A tokenizer that knows how a prompt ends and how a completion ends. Raises UserError.

    kind: char or bpe, learned from the `texts`; byte, gpt2, or the plain data of a model's own. separator: a text that
    ends prompts. By default it is a token of its own; a model's tokenizer, which has none, gets a newline.
    """
    if kind == 'char':
        chars = set(separator or '')
        for text in texts:
            chars.update(text)
        if used := chars & {SEPARATOR, END}:
            raise UserError(f'the pairs contain the character {show(min(used))}, which separates them; leave it out, '
                            'or use --tokenizer=byte')
        tokenizer = CharTokenizer([*sorted(chars), SEPARATOR, END])
        tokenizer.end_id = tokenizer.ids[END]
        own = SEPARATOR
    elif kind == 'byte' or kind == {'kind': 'byte'}:
        tokenizer = build_tokenizer({'kind': 'byte', 'separator': [SEPARATOR_BYTE], 'end_id': END_BYTE})
        own = None
    elif kind == 'bpe':
        tokenizer = build_tokenizer(bpe.train(texts, vocab_size, SPECIAL))
        own = SPECIAL[1]
    else:
        tokenizer = build_tokenizer(kind if isinstance(kind, dict) else {'kind': kind})
        own = None if tokenizer.separator else '\n'

    if separator or own:
        tokenizer.separator = tokenizer.encode(separator or own)
    if not tokenizer.separator:                       # a vocabulary without all bytes leaves out what it lacks
        raise UserError(f'--separator={show(separator or own)[1:-1]}: nothing is left of it in this tokenizer; '
                        'expected a text that it knows')
    if tokenizer.end_id is None:
        raise UserError('this tokenizer has no token for the end of a text, which completions need; '
                        'use --tokenizer=bpe, char, byte or gpt2')
    return tokenizer


# ---------------------------------------------------------------------------- writing

def write(folder, pairs, tokenizer, source, sha256, test=()):
    """
    Make a dataset of pairs, ('train' or 'val', prompt, completion) each, with a tokenizer of `tokenizer_for`.
    test: more pairs, which become test.tsv. Raises UserError.
    """
    index = {'train': array('q'), 'val': array('q')}  # where each example's completion begins, and where it ends
    n_tokens = {'train': 0, 'val': 0}

    def pieces():
        for part, prompt, completion in pairs:
            question = tokenizer.prompt(tokenizer.encode_ordinary(prompt))
            answer = [*tokenizer.encode_ordinary(completion), tokenizer.end_id]
            begin = n_tokens[part]
            n_tokens[part] += len(question) + len(answer)
            index[part].extend((begin + len(question), n_tokens[part]))
            yield part, question + answer

    extra = {'test.tsv': as_tsv(test)} if test else None
    preparation.write(folder, pieces(), tokenizer, source, sha256, index, extra)


def prepare(folder, files, kind, source, val_fraction=0.1, vocab_size=4096, separator=None):
    """
    Make a dataset of the pairs in .tsv and .jsonl files, which are read twice, a line at a time. kind, vocab_size and
    separator: as for `tokenizer_for`. Raises UserError.
    """
    corpus.check_fraction(val_fraction)
    if kind == 'bpe':
        bpe.check_training(vocab_size, SPECIAL)

    n, sha256 = survey(read(files))                   # which also finds what is wrong with the files
    held_out = int(n * val_fraction)
    if not 0 < held_out < n:
        raise UserError(f"{', '.join(files)}: {n:,} pairs, of which --val_fraction={val_fraction} holds out "
                        f'{held_out:,}; expected some to train on and some to hold out')

    texts = (text for pair in read(files) for text in pair)
    tokenizer = tokenizer_for(kind, texts, vocab_size, separator)
    pairs = tqdm(split(read(files), val_fraction), total=n, desc='encoding', unit=' pairs', leave=False, disable=None)
    write(folder, pairs, tokenizer, source, sha256)
