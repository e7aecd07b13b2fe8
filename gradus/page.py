"""What export.py --to=html puts into a page."""

from gradus.bpe import as_bpe
from gradus.js_regex import to_javascript


def spec_for_page(tokenizer):
    """
    Plain data from which page/tokenizer.js makes the tokenizer: that of `to_json`, except that kind gpt2 brings its
    tokens, as kind bpe, and that `pattern` is a JavaScript regular expression. Raises UserError.
    """
    spec = tokenizer.to_json()
    if spec['kind'] in ('byte', 'char'):
        return spec

    pairs = {key: spec[key] for key in ('separator', 'end_id') if key in spec}
    spec = {**as_bpe(spec), **pairs}
    spec.pop('chat_template', None)                   # a program, which a page cannot run
    return {**spec, 'pattern': to_javascript(spec['pattern'])}
