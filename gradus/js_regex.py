"""
A tokenizer's regular expression for JavaScript. Ours are those of tiktoken, whose engine is Rust's fancy-regex.

    (?i:'t)|\\s++   ->   (?:'[tT])|(?:(?=(?<a1>\\p{White_Space}+))\\k<a1>)        with the flag u

What differs: what \\s, \\d, \\w and . match; (?i:...), (?>...) and possessive quantifiers, which JavaScript lacks; and
what may be escaped. We translate what tokenizers use and refuse the rest.
"""

import re
import unicodedata

from gradus.errors import UserError, show

ESCAPE = r'\\ (?: [pPxu]\{\w+\} | [pP]\w | x\w\w | u\w{4} | . )'
MEMBER = re.compile(rf'({ESCAPE} | .) (?: - ({ESCAPE} | .) )?', re.VERBOSE | re.DOTALL)      # of [...]
TOKEN = re.compile(rf'(?P<escape> {ESCAPE} )' + r"""
  | (?P<open>   \((?!\?) | \(\?(?:[:=!>]|i:) )
  | (?P<close>  \) )
  | (?P<repeat> (?P<times> [*+?] | \{\d+(?:,\d*)?\} ) (?P<how> [+?]? ) )
  | (?P<set>    \[ (?P<not> \^? ) (?P<members> \]? (?: \\. | [^\[\]\\] )* ) \] )
  | (?P<bar>    \| )
  | (?P<anchor> [\^$] )
  | (?P<dot>    \. )
  | (?P<char>   [^({\[\\] )
""", re.VERBOSE | re.DOTALL)

WORD = r'\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}'
CLASSES = {'s': r'\p{White_Space}', 'S': r'\P{White_Space}', 'd': r'\p{Nd}', 'D': r'\P{Nd}', 'w': WORD}
CONTROLS = {'n': '\n', 'r': '\r', 't': '\t', 'f': '\f', 'v': '\v'}
CATEGORIES = {'L', 'Lu', 'Ll', 'Lt', 'Lm', 'Lo', 'M', 'Mn', 'Mc', 'Me', 'N', 'Nd', 'Nl', 'No', 'Z', 'Zs', 'Zl', 'Zp',
              'P', 'Pc', 'Pd', 'Ps', 'Pe', 'Pi', 'Pf', 'Po', 'S', 'Sm', 'Sc', 'Sk', 'So', 'C', 'Cc', 'Cf', 'Co', 'Cn'}
SCRIPTS = {'Han', 'Hiragana', 'Katakana', 'Hangul', 'Latin', 'Greek', 'Cyrillic', 'Arabic', 'Hebrew', 'Thai'}
ALSO = {'s': '\u017f', 'k': '\u212a'}                 # long s and the Kelvin sign: the same letter in other case


def to_javascript(pattern):
    """The source of a JavaScript RegExp with the flag u that matches as `pattern` does. Raises UserError."""
    try:
        return _translated(pattern)
    except ValueError as e:
        raise UserError(f'the tokenizer has the pattern {show(pattern)}: {e}, which a page cannot have; '
                        'use another format') from e


def _translated(pattern):
    # Each open group has a list of what it holds; an item is all that a quantifier after it would repeat.
    groups = [('', [])]
    caseless = [False]
    captures = 0
    at = 0
    kind = None
    while at < len(pattern):
        before = kind
        token = TOKEN.match(pattern, at)
        if token is None:
            raise ValueError(f'{show(pattern[at:at + 4])} at position {at}')
        at = token.end()
        kind = token.lastgroup
        items = groups[-1][1]

        if kind == 'open':
            groups.append((token.group(), []))
            caseless.append(caseless[-1] or token.group() == '(?i:')
        elif kind == 'close':
            opened, inside = groups.pop()
            caseless.pop()
            if not groups:
                raise ValueError('a ) without (')
            captures += opened == '(?>'
            groups[-1][1].append(_group(opened, ''.join(inside), captures))
        elif kind == 'repeat':
            if not items or items[-1] in ('|', '^', '$') or items[-1].startswith(('(?=', '(?!')):
                raise ValueError(f'{show(token.group())} at position {token.start()}')
            item = items.pop()
            item = f'(?:{item})' if before == 'repeat' else item
            possessive = token['how'] == '+'
            captures += possessive
            item += token['times'] + ('' if possessive else token['how'])
            items.append(_atomic(item, captures) if possessive else item)
        else:
            items.append(_single(token, kind, caseless[-1]))

    if len(groups) > 1:
        raise ValueError('a ( without )')
    return ''.join(groups[0][1])


def _group(opened, inside, number):
    if opened == '(?>':
        return _atomic(inside, number)
    if opened in ('(', '(?i:'):
        opened = '(?:'                                # nothing refers to what it captures
    return f'{opened}{inside})'


def _atomic(inside, number):
    """What a lookahead found first is final: no other match is tried. A group of that number holds it."""
    return f'(?:(?=(?<a{number}>{inside}))\\k<a{number}>)'


def _single(token, kind, caseless):
    """What matches a character or a place."""
    if kind in ('bar', 'anchor'):
        return token.group()
    if kind == 'dot':
        return r'[^\n]'
    if kind == 'set':
        return f"[{token['not']}{_members(token['members'], caseless)}]"
    if token.group() == r'\W':
        return f'[^{WORD}]'
    found = _class_or_char(token.group(), caseless)
    if len(found) > 1:
        return f'[{found}]' if found == WORD else found
    cases = _cases(found) if caseless else found
    return _escaped(found) if len(cases) == 1 else f'[{cases}]'


def _members(text, caseless):
    """The inside of [...]."""
    if re.search('&&|--|~~', text):
        raise ValueError(f'the operator in [{text}]')
    out = ''
    for first, last in MEMBER.findall(text):
        first = _class_or_char(first, caseless)
        last = _class_or_char(last, caseless) if last else first
        if len(first) > 1 and first == last:
            out += first
            continue
        if len(first) > 1 or len(last) > 1 or first > last:
            raise ValueError(f'the range {show(first + "-" + last)}')
        out += _member(first) if first == last else f'{_member(first)}-{_member(last)}'
        if caseless:
            out += ''.join(_member(c) for code in range(ord(first), ord(last) + 1) for c in _cases(chr(code))[1:])
    return out


def _class_or_char(found, caseless):
    """One character, as it is, or the JavaScript of a class such as \\p{L}."""
    if found[0] != '\\':
        return found
    letter, rest = found[1], found[2:].strip('{}')
    if caseless and letter in 'pP':
        raise ValueError(f'{show(found)} in (?i:')
    if letter in CLASSES:
        return CLASSES[letter]
    if letter in CONTROLS:
        return CONTROLS[letter]
    if letter in 'pP' and rest in CATEGORIES:
        return f'\\{letter}{{{rest}}}'
    if letter in 'pP' and rest in SCRIPTS:
        return f'\\{letter}{{Script={rest}}}'
    if letter in 'xu' and re.fullmatch('[0-9a-fA-F]{1,6}', rest) and int(rest, 16) < 0x110000:
        return chr(int(rest, 16))
    if not letter.isalnum() and letter.isascii() and letter not in '<>':       # those are places in a text
        return letter
    raise ValueError(show(found))


def _cases(c):
    """A character, then the same letter in other cases."""
    if c.isascii():
        return c + (c.swapcase() + ALSO.get(c.lower(), '') if c.isalpha() else '')
    if unicodedata.category(c) in ('Lu', 'Ll', 'Lt'):
        raise ValueError(f'{show(c)} in (?i:')
    return c


def _escaped(c):
    if c in '^$\\.*+?()[]{}|/':
        return '\\' + c
    return c if c.isprintable() else f'\\u{{{ord(c):x}}}'


def _member(c):
    """A character inside [...]."""
    return '\\-' if c == '-' else _escaped(c)
