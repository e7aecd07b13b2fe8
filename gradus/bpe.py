"""
Byte-pair encodings: train one on a text, and convert those of other programs, which consist of a pattern that cuts a
text into pieces, and a list of merges.

tiktoken merges by ranks, the order of ids; others by a list of pairs. Either is found from the other here.
"""

import hashlib
import json
import re
import sys

from gradus.errors import UserError, show
from gradus.tokenizer import LETTERS, build_tokenizer, bytes_to_letters, letters_to_bytes

# The patterns that cut a text into pieces, by the name that llama.cpp has for them.
CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
MODERN = CONTRACTIONS + (r'|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+')
PATTERNS = {
    'gpt-2': GPT2,
    'smollm': r'\p{N}|' + GPT2.replace(r' ?\p{N}+|', '').replace(r'(?!\S)', r'(?![^\s\p{N}])'),    # digits come first
    'llama-bpe': MODERN.replace('DIGITS', r'\p{N}{1,3}'),
    'qwen2': MODERN.replace('DIGITS', r'\p{N}'),
}
WHOLE = r'[\s\S]+'                                    # a text is one piece
CUT = re.compile(r'[^\W_][ \n]')                      # a letter or digit, then a space or newline
MAX_EFFORT = 10 ** 8                                  # sum of squared lengths of tokens whose merges are searched
MAX_LENGTH = 64                                       # bytes of a token that we learn
MAX_WORDS = 4 * 10 ** 6                               # bytes of distinct words; training takes 100 times as much memory
WORD = re.compile(r'\w+|[^\w\s]+')
LONG = 1000                                           # cut words longer than this for training
RUN = re.compile(rf'(?<!\S)\S{{{LONG},}}|(?<!\s)\s{{{LONG},}}')
GPT2_SHA256 = 'e35a33a0b2250c932ffdafc4c3a3552aef0cc7af7a11e9ebfddf1d2a6517371f'    # of GPT-2's tokens, one a line


def last_cut(text, start=0):
    """
    The last place after `start` where a text can be cut without changing its tokens; 0 if there is none. That is
    between a letter or digit and a space or newline: all PATTERNS begin a new piece there, whatever follows.
    """
    end = len(text)
    width = 2 ** 10
    while end > start:
        begin = max(start, end - width)
        found = [match.start() + 1 for match in CUT.finditer(text, begin, end)]
        if found:
            return found[-1]
        if begin == start:
            break
        end = begin + 1                               # the letter may be here, and its space in the last window
        width *= 8
    return 0


# ---------------------------------------------------------------------------- training

def train(texts, vocab_size, special=('<|endoftext|>',)):
    """
    Plain data of kind bpe, with up to `vocab_size` tokens: all bytes, the merges learned from `texts` (an iterable of
    strings that together fit in memory), and the `special` tokens, the first of which marks the end of a text. Texts
    with little variety give fewer tokens. The same texts always give the same tokens. Raises UserError.
    """
    check_training(vocab_size, special)
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)    # GPT-2's pattern
    trainer = trainers.BpeTrainer(vocab_size=vocab_size - len(special), initial_alphabet=LETTERS,
                                  max_token_length=MAX_LENGTH, show_progress=sys.stderr.isatty())
    trained.train_from_iterator(_in_short_runs(_sample(list(texts))), trainer)

    found = json.loads(trained.to_str())['model']
    tokens = sorted(found['vocab'], key=found['vocab'].get)
    n = len(tokens)
    check_merges(tokens, set(), found['merges'])
    return dict(kind='bpe', tokens=[*tokens, *special], special=list(range(n, n + len(special))), start=[],
                end_id=n, pattern=GPT2)


def _sample(texts):
    """
    The texts until their distinct words take as much memory as training may use. They come in an order in which any
    first part is spread evenly over all of them: by halves, then quarters, and so on.
    """
    words = set()
    size = 0
    for i in sorted(range(len(texts)), key=lambda i: f'{i:040b}'[::-1]):
        yield texts[i]
        for word in set(WORD.findall(texts[i])) - words:
            words.add(word)
            size += len(word.encode('utf-8', 'replace'))
        if size > MAX_WORDS:
            break


def _in_short_runs(texts):
    """The same texts, with very long words and runs of spaces cut: training takes time quadratic in their length."""
    for text in texts:
        done = 0
        for match in RUN.finditer(text):
            yield text[done:match.start()]
            run = match.group()
            yield from (run[i:i + LONG] for i in range(0, len(run), LONG))
            done = match.end()
        yield text[done:]


def check_training(vocab_size, special=('<|endoftext|>',)):
    """Raise UserError if `train` cannot work; better before reading the text than after it."""
    least = 256 + len(special)
    if not least <= vocab_size <= 2 ** 20:
        raise UserError(f'--vocab_size={vocab_size}: expected {least} to {2 ** 20:,} tokens; '
                        f"the first {least} are all bytes and {', '.join(special)}")
    try:
        import tokenizers  # noqa: F401
    except ImportError as e:
        raise UserError('training a BPE tokenizer needs the package tokenizers; pip install tokenizers') from e


# ---------------------------------------------------------------------------- merges

def merges_of(tokens):
    """
    The pairs whose merge makes each of `tokens`, byte strings in the order of learning: what is left of a token when
    all earlier merges are done. Raises UserError if that is not a pair.
    """
    if sum(len(token) ** 2 for token in tokens) > MAX_EFFORT:
        raise UserError(f'{len(tokens):,} tokens of up to {max(map(len, tokens)):,} bytes; expected shorter ones')
    ranks = {token: rank for rank, token in enumerate(tokens)}
    merges = []
    for rank, token in enumerate(tokens):
        parts = [token[i:i + 1] for i in range(len(token))]
        while len(parts) > 2:
            found = [ranks.get(a + b, rank) for a, b in zip(parts, parts[1:])]
            first = min(found)
            if first >= rank:
                raise UserError(f'token {show(bytes_to_letters(token))} cannot be made by merging two others')
            i = found.index(first)
            parts[i:i + 2] = [parts[i] + parts[i + 1]]
        if len(parts) == 2:
            merges.append((bytes_to_letters(parts[0]), bytes_to_letters(parts[1])))
    return merges


def check_merges(tokens, special, merges):
    """
    Raise UserError unless merging by the order of ids, as tiktoken does, is the same as merging by this list of pairs.

    The list must have, in the order of ids, the pair of `merges_of` for each token. It may have more pairs: no other
    two parts of a token are ever neighbours.
    """
    known = {token for i, token in enumerate(tokens) if token is not None and i not in special}
    for a, b in merges:
        if not known.issuperset((a, b, a + b)):
            raise UserError(f'merge {show(a)} {show(b)}: expected two tokens that make a third')

    listed = set(map(tuple, merges))
    expected = merges_in(dict(tokens=tokens, special=special))
    for a, b in expected:
        if (a, b) not in listed:
            raise UserError(f'token {show(a + b)}: expected a merge that makes it of {show(a)} and {show(b)}')
    needed = set(expected)
    if [pair for pair in map(tuple, merges) if pair in needed] != expected:
        raise UserError('merges: expected those that make a token in the order of their ids')


def as_bpe(spec):
    """The plain data of kind bpe that does what a tokenizer of kind byte, gpt2 or bpe does."""
    if spec['kind'] == 'byte':
        return dict(kind='bpe', tokens=list(LETTERS), special=[], start=[], end_id=None, pattern=WHOLE)
    if spec['kind'] == 'gpt2':
        bpe = build_tokenizer(spec).bpe
        tokens = [bytes_to_letters(bpe.decode_single_token_bytes(i)) for i in range(bpe.eot_token)]
        return dict(kind='bpe', tokens=[*tokens, '<|endoftext|>'], special=[bpe.eot_token], start=[],
                    end_id=bpe.eot_token, pattern=GPT2)
    return spec


def simplest(spec):
    """Plain data of kind gpt2 if this is GPT-2's tokenizer, else the same."""
    listed = '\n'.join(token or '' for token in spec['tokens'])
    known = hashlib.sha256(listed.encode('utf-8', 'replace')).hexdigest() == GPT2_SHA256
    same = (spec['special'], spec['start'], spec['pattern'], spec.get('end_id')) == ([50256], [], GPT2, 50256)
    return {'kind': 'gpt2'} if known and same else spec


def merges_in(spec):
    """The pairs of letters that make the tokens of plain data of kind bpe."""
    special = set(spec['special'])
    ordinary = [letters_to_bytes(t) for i, t in enumerate(spec['tokens']) if t is not None and i not in special]
    return merges_of(ordinary)


def check_chars(spec):
    """Raise UserError unless each token of kind char is one character of Unicode."""
    for c in spec['chars']:
        if len(c) != 1 or '\ud800' <= c <= '\udfff':
            raise UserError(f"the tokenizer's {show(c)}: expected one character, which other programs can have")
