"""
A tokenizer in other programs' formats: Hugging Face's tokenizer.json, and the vocabulary inside a GGUF file.

Both are read as plain data of kind bpe (see tokenizer.py) if they are byte-level BPE, and written for all our kinds:

    byte   BPE without merges: 256 tokens          gpt2   its merges, found again from tiktoken's ranks
    char   BPE without merges in tokenizer.json; in GGUF, whose pieces are bytes, merges build each character
"""

import json

from gradus.bpe import GPT2, PATTERNS, WHOLE, as_bpe, check_chars, check_merges, merges_in, simplest
from gradus.errors import UserError, show
from gradus.tokenizer import BYTE_OF, LETTERS, bytes_to_letters, check_spec, letters_to_bytes

FUSE = {'type': 'Fuse'}                               # the decoder of kind char
ALIASES = {'gpt2': 'gpt-2', 'llama3': 'llama-bpe', 'llama-v3': 'llama-bpe'}
NEVER = ['\xff', '\xfe']                              # letters of bytes that no UTF-8 text has


# ---------------------------------------------------------------------------- tokenizer.json

def from_hf(tokenizer, config):
    """
    Plain data of kind bpe, gpt2 or char from the contents of tokenizer.json and tokenizer_config.json. Raises
    UserError, which names the field, if it is not byte-level BPE as we know it, nor what `to_hf` makes of kind char.
    """
    def part(of, key, kind, default):
        found = of.get(key)
        found = default if found is None else found
        if type(found) is not kind:
            raise UserError(f'{key} is {show(found)} in tokenizer.json; expected {kind.__name__}')
        return found

    model = part(tokenizer, 'model', dict, {})
    if model.get('type', 'BPE') != 'BPE' or model.get('byte_fallback'):
        raise UserError(f"model is {show(model.get('type'))} in tokenizer.json; expected byte-level BPE")
    for key in ('continuing_subword_prefix', 'end_of_word_suffix', 'dropout'):
        if model.get(key):
            raise UserError(f'{key} is {show(model[key])} in tokenizer.json; expected none')

    # Tokens.
    vocab = part(model, 'vocab', dict, {})
    added = part(tokenizer, 'added_tokens', list, [])
    by_id = {}
    for token, i in vocab.items():
        _put(by_id, i, token)
    special = []
    for entry in added:
        if type(entry) is not dict or type(entry.get('content')) is not str:
            raise UserError(f'added_tokens has {show(entry)} in tokenizer.json; expected content and id')
        for key in ('lstrip', 'rstrip', 'single_word'):
            if entry.get(key):
                raise UserError(f"{key} of {show(entry['content'])} is {show(entry[key])} in tokenizer.json; "
                                'expected false')
        _put(by_id, entry.get('id'), entry['content'])
        special.append(entry['id'])
    tokens = [by_id.get(i) for i in range(max(by_id, default=-1) + 1)]

    # Merges.
    merges = []
    for merge in part(model, 'merges', list, []):
        pair = merge.split(' ') if type(merge) is str else merge
        if type(pair) is not list or len(pair) != 2 or not all(type(p) is str for p in pair):
            raise UserError(f'merges has {show(merge)} in tokenizer.json; expected two tokens')
        merges.append(pair)

    if tokenizer.get('decoder') == FUSE and tokenizer.get('pre_tokenizer') is None and not merges and not added:
        spec = dict(kind='char', chars=tokens)
        check_spec(spec)
        check_chars(spec)
        return spec
    if model.get('unk_token') and not set(vocab).issuperset(LETTERS):
        raise UserError(f"unk_token is {show(model['unk_token'])} in tokenizer.json; expected none, or all 256 bytes")

    spec = dict(kind='bpe', tokens=tokens, special=sorted(set(special)), start=_start(tokenizer, tokens),
                end_id=_end_id(config, tokens), pattern=_pattern(tokenizer.get('pre_tokenizer')))
    if normalizer := _normalizer(tokenizer.get('normalizer')):
        spec['normalizer'] = normalizer
    if type(config.get('chat_template')) is str:
        spec['chat_template'] = config['chat_template']
    check_spec(spec)
    check_merges(tokens, set(special), merges)
    return simplest(spec)


def _put(by_id, i, token):
    if type(i) is not int or not 0 <= i < 2 ** 20 or by_id.get(i, token) != token:
        raise UserError(f'token {show(token)} has the id {show(i)}; expected an id of its own below {2 ** 20:,}')
    by_id[i] = token


def _id_of(token, tokens):
    """The id of a special token as tokenizer_config.json names it, or None."""
    if isinstance(token, dict):
        token = token.get('content')
    return tokens.index(token) if type(token) is str and token in tokens else None


def _end_id(config, tokens):
    """That of eos_token, else eos_token_id, of which there may be several; None if there is no such token."""
    i = _id_of(config.get('eos_token'), tokens)
    if i is None:
        i = config.get('eos_token_id')
        i = i[0] if isinstance(i, list) and i else i
    return i if type(i) is int and 0 <= i < len(tokens) and tokens[i] is not None else None


def _normalizer(found):
    if found is None or found == {'type': 'Sequence', 'normalizers': []}:
        return None
    if found == {'type': 'NFC'}:
        return 'NFC'
    raise UserError(f'normalizer is {show(found)} in tokenizer.json; expected none or NFC')


def _pattern(found):
    """The one regular expression that cuts a text as a pre_tokenizer does."""
    steps = found.get('pretokenizers') if isinstance(found, dict) and found.get('type') == 'Sequence' else [found]
    steps = [step for step in steps if isinstance(step, dict)] if isinstance(steps, list) else []
    kinds = [step.get('type') for step in steps]
    if kinds and kinds[-1] == 'ByteLevel' and not steps[-1].get('add_prefix_space'):
        by_regex = steps[-1].get('use_regex', True)
        if kinds == ['ByteLevel']:
            return GPT2 if by_regex else WHOLE
        if kinds == ['Digits', 'ByteLevel'] and steps[0].get('individual_digits') and by_regex:
            return PATTERNS['smollm']
        if kinds == ['Split', 'ByteLevel'] and not by_regex and steps[0].get('behavior') == 'Isolated' \
                and not steps[0].get('invert') and isinstance(steps[0].get('pattern'), dict) \
                and type(steps[0]['pattern'].get('Regex')) is str:
            return _without_gaps(steps[0]['pattern']['Regex'])
    raise UserError(f'pre_tokenizer is {show(found)} in tokenizer.json; expected ByteLevel, alone or after Digits or '
                    'Split')


def _without_gaps(pattern):
    """
    The pattern, extended by what Split does with text between two matches: it is a piece, too; tiktoken drops it.
    """
    if pattern in (*PATTERNS.values(), WHOLE):
        return pattern
    rest = r'|(?:(?!{})[\s\S])+'
    original = pattern[:(len(pattern) - len(rest) + 2) // 2]
    if pattern == original + rest.replace('{}', original):                     # we wrote it
        return pattern
    return pattern + rest.replace('{}', pattern)


def _start(tokenizer, tokens):
    """The ids that the post_processor puts before a text."""
    found = tokenizer.get('post_processor')
    steps = found.get('processors') if isinstance(found, dict) and found.get('type') == 'Sequence' else [found]
    start = []
    for step in steps if isinstance(steps, list) else [found]:
        if step is None or isinstance(step, dict) and step.get('type') == 'ByteLevel':
            continue
        single = step.get('single') if isinstance(step, dict) and step.get('type') == 'TemplateProcessing' else None
        names = [next(iter(entry.items()), (None, None)) for entry in single] \
            if isinstance(single, list) and all(isinstance(entry, dict) for entry in single) else []
        if not names or names[-1][0] != 'Sequence' or any(kind != 'SpecialToken' for kind, _ in names[:-1]):
            raise UserError(f'post_processor is {show(found)} in tokenizer.json; expected ByteLevel, or a template of '
                            'special tokens before the text')
        for _, value in names[:-1]:
            i = _id_of(value.get('id') if isinstance(value, dict) else None, tokens)
            listed = step.get('special_tokens')
            said = listed.get(value['id']) if i is not None and isinstance(listed, dict) else None
            if i is None or not isinstance(said, dict) or said.get('ids') != [i]:
                raise UserError(f'post_processor names {show(value)} in tokenizer.json; expected a token and its id')
            start.append(i)
    return start


def to_hf(spec, vocab_size):
    """
    ({file name: text}, notes): the files that transformers' AutoTokenizer reads, and sentences on what they cannot
    express. spec: plain data of any kind. Raises UserError.
    """
    if spec['kind'] == 'char':
        check_chars(spec)
        model = _bpe_model({c: i for i, c in enumerate(spec['chars'])}, [])
        files = _hf_files(model, decoder=FUSE)
        return files, ['tokenizer.json leaves out characters that the training text does not have']

    spec = as_bpe(spec)
    tokens = spec['tokens']
    special = set(spec['special'])
    vocab = {token: i for i, token in enumerate(tokens) if token is not None}
    added = [dict(id=i, content=tokens[i], single_word=False, lstrip=False, rstrip=False, normalized=False,
                  special=True) for i in sorted(special)]
    byte_level = dict(type='ByteLevel', add_prefix_space=False, trim_offsets=True, use_regex=spec['pattern'] == GPT2)
    pre_tokenizer = byte_level
    if not byte_level['use_regex']:
        split = dict(type='Split', pattern={'Regex': spec['pattern']}, behavior='Isolated', invert=False)
        pre_tokenizer = dict(type='Sequence', pretokenizers=[split, byte_level])
    more = dict(added_tokens=added, pre_tokenizer=pre_tokenizer, decoder=byte_level)
    if spec.get('normalizer'):
        more['normalizer'] = dict(type=spec['normalizer'])
    if spec['start']:
        before = [{'SpecialToken': dict(id=tokens[i], type_id=0)} for i in spec['start']]
        more['post_processor'] = dict(
            type='TemplateProcessing',
            single=[*before, {'Sequence': dict(id='A', type_id=0)}],
            pair=[*before, {'Sequence': dict(id='A', type_id=0)}, *before, {'Sequence': dict(id='B', type_id=1)}],
            special_tokens={tokens[i]: dict(id=tokens[i], ids=[i], tokens=[tokens[i]]) for i in spec['start']},
        )
    config = {}
    if spec.get('end_id') is not None:
        config['eos_token'] = tokens[spec.get('end_id')]
        config['bos_token'] = tokens[spec['start'][0] if spec['start'] else spec.get('end_id')]
    if spec.get('chat_template'):
        config['chat_template'] = spec['chat_template']
    return _hf_files(_bpe_model(vocab, merges_in(spec)), config=config, **more), []


def _bpe_model(vocab, merges):
    return dict(type='BPE', dropout=None, unk_token=None, continuing_subword_prefix=None, end_of_word_suffix=None,
                fuse_unk=False, byte_fallback=False, ignore_merges=False, vocab=vocab, merges=list(map(list, merges)))


def _hf_files(model, config=(), **more):
    parts = dict.fromkeys(('truncation', 'padding', 'normalizer', 'pre_tokenizer', 'post_processor', 'decoder'))
    tokenizer = {'version': '1.0', **parts, 'added_tokens': [], **more, 'model': model}
    config = dict(tokenizer_class='PreTrainedTokenizerFast', clean_up_tokenization_spaces=False, **dict(config))
    return {'tokenizer.json': json.dumps(tokenizer, ensure_ascii=False),
            'tokenizer_config.json': json.dumps(config, indent=2) + '\n'}


# ---------------------------------------------------------------------------- GGUF

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5    # types of tokens


def to_gguf(spec, vocab_size):
    """
    ({key: value}, notes): the keys below tokenizer.ggml of a GGUF file with vocab_size tokens, and sentences on what
    they cannot express. spec: plain data of any kind. Raises UserError.
    """
    notes = []
    if spec['kind'] == 'char':
        check_chars(spec)
        tokens = [bytes_to_letters(c.encode()) for c in spec['chars']]
        merges = _char_merges(tokens)
        special, start, end_id = set(), [], None
        pre = 'gpt-2'
        notes.append('llama.cpp leaves out characters that the training text does not have')
    else:
        pre = 'gpt-2' if spec['kind'] == 'byte' else None
        spec = as_bpe(spec)
        pre = pre or next((name for name, pattern in PATTERNS.items() if pattern == spec['pattern']), None)
        if pre is None or spec.get('normalizer'):
            what = f"normalizer {spec.get('normalizer')}" if pre else f"pattern {show(spec['pattern'])}"
            if not (pre == 'qwen2' and spec.get('normalizer') == 'NFC'):
                raise UserError(f"the tokenizer's {what}: expected one that llama.cpp has: {', '.join(PATTERNS)}")
            notes.append('llama.cpp does not normalize Unicode (NFC) as this tokenizer does')
        tokens = spec['tokens']
        merges = merges_in(spec)
        special, start, end_id = set(spec['special']), spec['start'], spec.get('end_id')

    types = [UNUSED if t is None else CONTROL if i in special else NORMAL for i, t in enumerate(tokens)]
    tokens = [f'<|unused_{i}|>' if t is None else t for i, t in enumerate(tokens)]
    for i in range(len(tokens), vocab_size):
        tokens.append(f'<|unused_{i}|>')
        types.append(UNUSED)
    if end_id is None:                                # llama.cpp must have one
        end_id = _least_likely(tokens, types)
        if types[end_id] == NORMAL and spec['kind'] == 'char':
            notes.append(f"llama.cpp takes {show(spec['chars'][end_id])} for the end of a text; --ignore-eos avoids it")
    found = dict(model='gpt2', pre=pre, tokens=tokens, token_type=types,
                 merges=[' '.join(pair) for pair in merges or [NEVER]],
                 bos_token_id=start[0] if start else end_id, eos_token_id=end_id, add_bos_token=bool(start))
    if len(start) > 1:
        raise UserError(f'the tokenizer puts {len(start)} tokens before a text; llama.cpp knows one')
    return found, notes


def _char_merges(tokens):
    """The pairs of letters whose merge makes each character of its bytes, from left to right."""
    pairs = {(token[:n], token[n]) for token in tokens for n in range(1, len(token))}
    return sorted(pairs, key=lambda pair: (len(pair[0]), pair))


def _least_likely(tokens, types):
    """The id of a token that texts hardly use: an unused one, else a rare byte, else a rare character."""
    common = set(map(LETTERS.__getitem__, b'\n\r\t .,;:!?\'"-()')) | set(map(chr, range(128)))
    common -= set('$&^~|`\\@#{}<>_*+=%')
    for wanted in (lambda i: types[i] == UNUSED, lambda i: BYTE_OF.get(tokens[i], 0) > 247,
                   lambda i: tokens[i] not in common):
        if found := [i for i in range(len(tokens)) if wanted(i)]:
            return found[-1]
    return len(tokens) - 1


def from_gguf(fields):
    """
    Plain data of kind bpe, gpt2 or char from a GGUF file's keys. Raises UserError if its vocabulary is not byte-level
    BPE as we know it, nor what `to_gguf` makes of kind char.
    """
    def value(key, kind, default=None):
        found = fields.get(f'tokenizer.ggml.{key}', default)
        if type(found) is not kind:
            raise UserError(f'tokenizer.ggml.{key} is {show(found)}; expected {kind.__name__}')
        return found

    model = fields.get('tokenizer.ggml.model')
    if model != 'gpt2':
        raise UserError(f'tokenizer.ggml.model is {show(model)}; expected gpt2, which is byte-level BPE')
    pre = value('pre', str, 'default')
    pre = ALIASES.get(pre, pre)
    if pre not in PATTERNS:
        raise UserError(f"tokenizer.ggml.pre is {show(pre)}; expected one of {', '.join(PATTERNS)}")
    tokens = value('tokens', list)
    types = value('token_type', list, [NORMAL] * len(tokens))
    if len(types) != len(tokens):
        raise UserError(f'tokenizer.ggml.token_type has {len(types)} entries; expected {len(tokens)}')
    special = [i for i, kind in enumerate(types) if kind in (CONTROL, USER_DEFINED)]
    tokens = [None if kind == UNUSED else token for token, kind in zip(tokens, types)]
    while tokens and tokens[-1] is None:              # padding
        tokens.pop()

    bos, eos = (fields.get(f'tokenizer.ggml.{key}_token_id') for key in ('bos', 'eos'))
    starts = value('add_bos_token', bool, pre == 'llama-bpe') and bos is not None
    spec = dict(kind='bpe', tokens=tokens, special=special, start=[bos] if starts else [],
                end_id=eos if eos in special else None, pattern=PATTERNS[pre])
    if type(fields.get('tokenizer.chat_template')) is str:
        spec['chat_template'] = fields['tokenizer.chat_template']
    check_spec(spec)                                  # before the tokens are used
    merges = [merge.split(' ') if type(merge) is str else [] for merge in value('merges', list)]
    if bad := [merge for merge in merges if len(merge) != 2]:
        raise UserError(f'tokenizer.ggml.merges has {show(bad[0])}; expected two tokens')
    known = {token for token in tokens if token is not None}
    merges = [merge for merge in merges if merge != NEVER or ''.join(merge) in known]

    # Kind char: its merges pass through bytes that are no tokens.
    if None not in tokens and not special:
        chars = [letters_to_bytes(token).decode('utf-8', 'replace') for token in tokens]
        single = all(len(c) == 1 for c in chars) and [bytes_to_letters(c.encode()) for c in chars] == tokens
        if single and list(map(tuple, merges)) == _char_merges(tokens):
            return dict(kind='char', chars=chars)
    check_merges(tokens, set(special), merges)
    return simplest(spec)
