"""Pairs of prompt and completion: read, batched, masked, trained on, completed."""

import gzip
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import babble

import train
from gradus import beam, bpe, data, evaluation, metadata, pairs, parallel, preparation
from gradus.errors import UserError
from gradus.tokenizer import ByteTokenizer, build_tokenizer
from model import GPT, GPTConfig

ADDITIONS = [(f'{a}+{b}', str(a + b)) for a in range(20) for b in range(20)]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def prepare(examples=ADDITIONS, kind='char', folder='data/sums', val_fraction=0.1, **options):
    texts = [text for pair in examples for text in pair]
    tokenizer = pairs.tokenizer_for(kind, texts, **options)
    pairs.write(folder, pairs.split(examples, val_fraction), tokenizer, 'sums', '')
    return tokenizer


def opened(block_size=16, folder='data/sums'):
    meta = metadata.read_meta(folder)
    return data.open_dataset(folder, meta, meta['vocab_size'], block_size)


# ---------------------------------------------------------------------------- reading

def test_files_of_pairs():
    Path('a.tsv').write_text('Hund\tdog\n\nzwei Katzen\ttwo cats\n', encoding='utf-8')
    record = json.dumps({'prompt': 'x\ty\n', 'completion': 'é\u2028', 'more': 1})
    with gzip.open('b.jsonl.gz', 'wt', encoding='utf-8') as f:
        f.write(record + '\n')
    assert list(pairs.read(['a.tsv', 'b.jsonl.gz'])) == [('Hund', 'dog'), ('zwei Katzen', 'two cats'),
                                                         ('x\ty\n', 'é\u2028')]


@pytest.mark.parametrize('name, line, error', [
    ('a.tsv', 'no tab', '1 column'),
    ('a.tsv', 'a\tb\tc', '3 columns'),
    ('a.jsonl', '{"prompt": "x"', 'not JSON'),
    ('a.jsonl', '["x", "y"]', 'expected {"prompt"'),
    ('a.jsonl', '{"prompt": "x", "answer": "y"}', "completion is missing or not a string: only 'prompt', 'answer'"),
    ('a.jsonl', '{"prompt": 3, "completion": "y"}', 'prompt is missing or not a string: 3'),
])
def test_lines_that_are_no_pairs(name, line, error):
    good = 'a\tb' if name == 'a.tsv' else '{"prompt": "", "completion": ""}'
    Path(name).write_text(f'{good}\n{line}\n', encoding='utf-8')
    with pytest.raises(UserError, match=f'^{name}: line 2: ') as e:
        list(pairs.read([name]))
    assert error in str(e.value)


def test_half_a_character_of_json():
    Path('a.jsonl').write_text('{"prompt": "x \\ud800", "completion": "\\ud83d\\ude00 \\udfff"}\n')
    assert list(pairs.read(['a.jsonl'])) == [('x \ufffd', '\U0001f600 \ufffd')]


def test_pairs_held_out_are_spread_evenly():
    parts = [part for part, *_ in pairs.split(ADDITIONS, 0.1)]
    assert parts.count('val') == 40
    assert all(parts[i:i + 10].count('val') == 1 for i in range(0, 400, 10))


# ---------------------------------------------------------------------------- tokens

@pytest.mark.parametrize('kind', ['char', 'byte', 'bpe', 'gpt2'])
def test_an_example_is_prompt_separator_completion_end(kind, request):
    if kind == 'gpt2':
        request.getfixturevalue('gpt2')
    if kind == 'bpe':
        pytest.importorskip('tokenizers', reason='it trains a vocabulary: pip install tokenizers')
    examples = [('Ein Hund läuft.', 'A dog runs.'), ('', 'nothing'), ('Stille', '')] * 5
    tokenizer = prepare(examples, kind, vocab_size=270)
    again = build_tokenizer(metadata.read_meta('data/sums')['tokenizer'])
    assert again.to_json() == tokenizer.to_json()
    assert (list(again.separator), again.end_id) == (list(tokenizer.separator), tokenizer.end_id)

    split = opened(64).train
    for i, (prompt, completion) in enumerate(examples[:9]):
        ids = split.prompt(i)
        n = len(again.separator)
        assert again.decode(ids[:-n]) == prompt
        assert ids[-n:] == list(again.separator)
        if kind != 'gpt2':                            # it has no separator of its own, but a newline
            assert not set(again.separator) & set(again.encode_ordinary(prompt + completion))

        x, y = split.windows([i])
        targets = y[y >= 0].tolist()
        assert again.decode(targets[:-1]) == completion
        assert targets[-1] == again.end_id
        assert x[0].tolist() == ids + targets[:-1]


def test_a_separator_of_ones_own():
    tokenizer = prepare(kind='char', separator=' = ')
    assert tokenizer.decode(tokenizer.separator) == ' = '
    assert tokenizer.decode(opened().train.prompt(0)) == '0+0 = '


def test_a_text_with_the_separators_character():
    with pytest.raises(UserError, match=r"the character '\\x02', which separates them; .*--tokenizer=byte"):
        pairs.tokenizer_for('char', ['a\x02b'])


def test_a_tokenizer_without_end():
    with pytest.raises(UserError, match='no token for the end of a text'):
        pairs.tokenizer_for({'kind': 'char', 'chars': ['a', '\n']}, ['a'])


def test_a_separator_that_the_vocabulary_lacks():
    spec = dict(kind='bpe', tokens=['a', '<end>'], special=[1], start=[], end_id=1, pattern=bpe.GPT2)
    with pytest.raises(UserError, match=r'--separator=\\n: nothing is left of it'):
        pairs.tokenizer_for(spec, [])
    assert pairs.tokenizer_for(spec, [], separator='aa').separator == [0, 0]


# ---------------------------------------------------------------------------- rows

def test_rows_hold_one_example_each_and_mask_its_prompt():
    tokenizer = prepare()
    split = opened().train
    kept = [pair for i, pair in enumerate(ADDITIONS) if i % 10 != 9]
    x, y = split.windows([5, 300, 21])
    for row, i in enumerate([5, 300, 21]):
        prompt, completion = kept[i]
        ids = tokenizer.encode(prompt) + tokenizer.separator + tokenizer.encode(completion) + [tokenizer.end_id]
        n = len(prompt)
        targets = [-1] * n + ids[n + 1:]
        assert x[row].tolist()[:len(ids) - 1] == ids[:-1]
        assert y[row].tolist()[:len(targets)] == targets
        assert (y[row, len(targets):] == -1).all()
    assert x.shape[1] == max(len(kept[i][0]) + len(kept[i][1]) + 1 for i in (5, 300, 21))


def test_no_example_sees_another():
    """Changing all other examples of a batch changes nothing for this one; padding changes nothing either."""
    prepare()
    split = opened().train
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=16, vocab_size=16, n_layer=2, n_head=2, n_embd=16)).eval()

    def logits(examples):
        x, y = split.windows(examples)
        return model(x, y)[0][0][y[0] >= 0]

    alone = logits([7])
    torch.testing.assert_close(logits([7, 350, 12]), alone)
    torch.testing.assert_close(logits([7, 1, 2]), alone)
    # negative control: of plain tokens, where examples follow one another, they do
    x, y = split.tokens.windows([0])
    other = x.clone()
    other[0, 0] += 1
    assert not torch.allclose(model(x, y)[0][0, -1], model(other, y)[0][0, -1])


def test_batches_depend_on_seed_and_step_alone():
    prepare()
    for order in data.ORDERS:
        first = [opened().train.batch_starts(3, step, 8, order).tolist() for step in range(100)]
        split = opened().train
        assert [split.batch_starts(3, step, 8, order).tolist() for step in reversed(range(100))] == first[::-1]
        assert [split.batch_starts(4, step, 8, order).tolist() for step in range(100)] != first


def test_an_epoch_visits_every_example_once_in_batches_of_similar_length():
    prepare([('x' * (i % 50), '') for i in range(400)], val_fraction=0.1)
    split = opened(64).train
    n = 7
    epoch = [split.batch_starts(1, step, n, 'shuffled') for step in range(360 // n)]
    visited = np.concatenate(epoch)
    assert len(set(visited)) == len(visited) == 360 // n * n

    padding = [split.lengths[b].max() * n - split.lengths[b].sum() for b in epoch]
    batches = np.split(np.random.permutation(visited), len(epoch))
    shuffled = [split.lengths[b].max() * n - split.lengths[b].sum() for b in batches]
    assert sum(padding) < sum(shuffled) / 5
    # long and short batches alternate
    assert np.abs(np.diff([split.lengths[b].max() for b in epoch])).mean() > 5
    # the next epoch has another order
    assert (split.batch_starts(1, 360 // n, n, 'shuffled') != epoch[0]).any()


def test_more_rows_than_examples():
    prepare(ADDITIONS[:20], val_fraction=0.5)
    for order in data.ORDERS:
        assert sorted(set(opened().train.batch_starts(0, 3, 25, order))) == list(range(10)) or order == 'random'


def test_evaluation_sees_every_example_once():
    prepare()
    val = opened().val
    assert sorted(val.eval_starts(0)) == list(range(40))
    assert sorted(val.eval_starts(1000)) == list(range(40))
    assert len(set(val.eval_starts(10))) == 10
    x, y = val.windows([3, len(val)])                 # beyond the last: a row of padding
    assert (x[1] == 0).all() and (y[1] == -1).all() and (y[0] >= 0).any()


def test_bits_per_byte_count_the_bytes_of_completions():
    """A model that finds every token equally likely needs log2(V) bits for each, also for the ends."""
    tokenizer = prepare([(f'{i}', 'é' * (i % 5)) for i in range(100)], 'byte', val_fraction=0.5)
    dataset = opened()
    model = GPT(GPTConfig(block_size=16, vocab_size=256, n_layer=1, n_head=1, n_embd=4))
    torch.nn.init.zeros_(model.lm_head.weight)
    worker = parallel.Worker(torch.device('cpu'), torch.float32, False)
    loss, bits = evaluation.evaluate(model, dataset.val, 8, 0, worker, dataset.byte_lengths)
    assert tokenizer.n_vocab == 256 and loss == pytest.approx(math.log(256))
    n_bytes = sum(2 * (i % 5) for i in range(1, 100, 2))
    assert bits == pytest.approx(8 * (n_bytes + 50) / n_bytes)


# ---------------------------------------------------------------------------- damage

def test_pairs_longer_than_the_context():
    prepare([*ADDITIONS[:50], ('x' * 30, 'y'), ('x' * 40, 'y')], val_fraction=0.04)
    with pytest.raises(UserError, match='train.pairs.bin: 2 of 50 pairs are longer than the context block_size=16: '
                                        'the first is number 49 with 32 tokens; expected --block_size=42 or more'):
        opened(16)
    opened(42)


def test_damaged_indexes():
    prepare()
    path = Path('data/sums/train.pairs.bin')
    good = path.read_bytes()
    index = np.frombuffer(good, dtype='<i8')
    for bad in (b'', good[:-8], good[:-16], good + good[:16], good + b'abc'):
        path.write_bytes(bad)
        with pytest.raises(UserError, match='train.pairs.bin: [0-9,]+ bytes; expected 16 for each of 360 examples'):
            opened()
    for at, value in ((0, -5), (0, 10 ** 9), (1, 0), (10, 3), (-1, 10 ** 12), (-1, index[-1] - 1)):
        bad = index.copy()
        bad[at] = value
        path.write_bytes(bad.tobytes())
        with pytest.raises(UserError, match='train.pairs.bin: does not fit the tokens beside it'):
            opened()
    path.unlink()
    with pytest.raises(UserError, match='train.pairs.bin: No such file'):
        opened()


@pytest.mark.parametrize('key', ['train_pairs', 'val_pairs'])
def test_both_splits_have_pairs_or_none(key):
    prepare()
    path = Path('data/sums/meta.json')
    meta = json.loads(path.read_text())
    del meta[key]
    path.write_text(json.dumps(meta))
    with pytest.raises(UserError, match=f'meta.json: no {key}; expected a number of pairs, as'):
        opened()


def test_an_ordinary_dataset_in_the_same_folder_leaves_no_pairs():
    prepare()
    pieces = preparation.splits([list(b'abc' * 20)], [list(b'abc' * 20)])
    preparation.write('data/sums', pieces, ByteTokenizer(), '', '')
    assert isinstance(opened().train, data.Tokens)
    assert not Path('data/sums/train.pairs.bin').exists()


# ---------------------------------------------------------------------------- training

class Masked(data.Tokens):
    """Windows in which some targets do not count."""

    def windows(self, starts):
        x, y = super().windows(starts)
        at = torch.from_numpy(starts)[:, None] + torch.arange(self.block_size)
        y[at ** 2 % 11 < torch.from_numpy(starts)[:, None] % 11] = -1           # many in one window, few in another
        return x, y


def step_of(tokens, **settings):
    """Loss and gradients of one step, as the optimizer sees them."""
    cfg = replace(train.TrainConfig(), **{'gradient_accumulation_steps': 1, 'block_size': 16, 'grad_clip': 0.0,
                                          **settings})
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=16, vocab_size=256, n_layer=1, n_head=2, n_embd=16))
    found = {}

    class Spy(torch.optim.SGD):
        def step(self, *args, **kwargs):
            found.update({name: p.grad.clone() for name, p in model.named_parameters()})
    optimizer = Spy(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler('cpu', enabled=False)
    worker = parallel.Worker(torch.device('cpu'), torch.float32, False)
    loss, _, taken = train.train_step(model, optimizer, scaler, tokens, 3, cfg, worker)
    assert taken
    return loss, found


def masked_tokens():
    return Masked.from_ids(np.frombuffer(babble().encode(), dtype=np.uint8).astype(np.int64), 256, 16)


def test_micro_batches_are_weighted_by_the_targets_that_count():
    """One batch of 8 is the same as 8 of 1, whose means are over different numbers of targets."""
    whole_loss, whole = step_of(masked_tokens(), batch_size=8, gradient_accumulation_steps=1)
    loss, parts = step_of(masked_tokens(), batch_size=1, gradient_accumulation_steps=8)
    torch.testing.assert_close(loss, whole_loss)
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name])


def test_a_micro_batch_without_targets():
    class Half(Masked):
        def windows(self, starts):
            x, y = data.Tokens.windows(self, starts)
            y[torch.from_numpy(starts % 2 == 0)] = -1
            return x, y

    tokens = Half.from_ids(masked_tokens().ids, 256, 16)
    whole_loss, whole = step_of(tokens, batch_size=8, gradient_accumulation_steps=1)
    loss, parts = step_of(tokens, batch_size=1, gradient_accumulation_steps=8)
    assert len({s % 2 for s in tokens.batch_starts(1337, 3, 8)}) == 2           # or this tests nothing
    torch.testing.assert_close(loss, whole_loss)
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name])


def test_equal_to_plain_training_when_nothing_is_masked():
    """With empty prompts, an example's separator is only an input and everything else a target: a window of text."""
    text = babble(16 * 16, seed=3).replace('\n', ' ')
    rows = [text[i:i + 15] for i in range(0, len(text) - 15, 15)]
    prepare([('', row) for row in rows], 'byte', val_fraction=0.1)
    split = opened(16).train

    plain = data.Tokens.from_ids(split.tokens.ids, 256, 16)
    plain.batch_starts = lambda *args: split.begins[split.batch_starts(*args)]
    for settings in (dict(batch_size=8), dict(batch_size=2, gradient_accumulation_steps=4)):
        loss, gradients = step_of(split, **settings)
        plain_loss, plain_gradients = step_of(plain, **settings)
        assert loss == plain_loss
        assert all(torch.equal(gradients[name], plain_gradients[name]) for name in gradients)

    # negative control: with something masked they differ
    plain.__class__ = Masked
    assert step_of(plain, batch_size=8)[0] != loss


# ---------------------------------------------------------------------------- beam search

def tiny(seed=0, **shape):
    torch.manual_seed(seed)
    config = GPTConfig(**{**dict(block_size=12, vocab_size=6, n_layer=2, n_head=2, n_embd=16, pos='rotary'), **shape})
    model = GPT(config).eval()
    with torch.no_grad():
        for p in model.parameters():                  # livelier than at the start of training
            p.mul_(4 if p.dim() > 1 else 1)
    return model


def test_one_beam_is_greedy_search():
    for seed in range(5):
        model = tiny(seed)
        prompts = torch.tensor([[1, 2, 3], [0, 0, 4]])
        found = beam.search(model, prompts, 5, 9, 6)
        for prompt, ids in zip(prompts, found):
            greedy = model.generate(prompt[None], 9)[0, 3:].tolist()
            assert ids == (greedy[:greedy.index(5)] if 5 in greedy else greedy)


def log_probability(model, prompt, ids):
    """Of a completion and its end."""
    sequence = torch.tensor([[*prompt, *ids]])
    logits, _ = model(sequence[:, :-1], sequence[:, 1:])
    return logits[0].log_softmax(-1).gather(1, sequence[0, 1:, None])[len(prompt) - 1:].sum().item()


def test_all_beams_find_the_most_likely_completion():
    """With enough beams, it is the one that trying all of them finds."""
    import itertools
    model = tiny(1, vocab_size=4)
    prompt = [0, 1]
    best = max(((log_probability(model, prompt, [*ids, 3]) / (n + 1), list(ids))
                for n in range(4) for ids in itertools.product(range(3), repeat=n)), key=lambda scored: scored[0])
    # 60 beams hold all beginnings of up to three tokens
    assert beam.search(model, torch.tensor([prompt]), 3, 4, 4, beams=60)[0] == best[1]


def test_a_search_with_a_model_that_computes_nan():
    model = tiny()
    with torch.no_grad():
        model.lm_head.weight[3] = float('nan')
    with pytest.raises(UserError, match='the model computes NaN'):
        beam.search(model, torch.tensor([[1, 2]]), 0, 4, 5, beams=3)


def test_rows_of_a_search_do_not_disturb_one_another():
    model = tiny(2)
    prompts = torch.tensor([[1, 2], [3, 4], [0, 5]])
    together = beam.search(model, prompts, 5, 8, 6, beams=3)
    assert together == [beam.search(model, prompt[None], 5, 8, 6, beams=3)[0] for prompt in prompts]


def test_completions_come_in_the_order_of_their_prompts():
    tokenizer = prepare()
    model = tiny(3, vocab_size=tokenizer.n_vocab)
    prompts = [[1, 2, 3], [1], [4, 5, 6], [2], [3] * 5]
    texts = beam.complete(model, prompts, tokenizer, 20, beams=2, rows=4)
    assert texts == [beam.complete(model, [prompt], tokenizer, 20, beams=2)[0] for prompt in prompts]
    assert max(map(len, beam.complete(model, prompts, tokenizer, 1, beams=2))) <= 1
    assert any(texts)
