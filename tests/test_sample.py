"""sample.py as people use it: prompts, seeds, temperatures, the choice of checkpoint, and the output."""

import json
import math
import os
import shutil

import pytest
import torch
from conftest import prepare_babble, run_main, run_script, settings

import export
import sample
import train
from gradus import checkpoint, configurator, pretrained
from gradus.errors import UserError
from gradus.tokenizer import ByteTokenizer, build_tokenizer
from model import GPT, GPTConfig


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """The output folder of one short run, shared by all tests. Do not modify it: `run` hands out copies."""
    folder = tmp_path_factory.mktemp('trained')
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        prepare_babble()
        train.main(settings(max_iters=30, lr_decay_iters=30, dropout=0.0))
    return folder / 'out'


@pytest.fixture
def run(place, trained):
    """A working folder with a copy of the trained run in out/."""
    shutil.copytree(trained, 'out')
    return place


def generate(**changes):
    """Run sample.py in this process."""
    sample.main(sample.SampleConfig(device='cpu', **changes))


def texts(capsys, **changes):
    """The samples that sample.py prints with these settings."""
    capsys.readouterr()
    generate(**{**dict(start='ab', num_samples=3, max_new_tokens=40), **changes})
    parts = capsys.readouterr().out.split('---------------\n')[:-1]
    return [part.removesuffix('\n') for part in parts]


def test_same_seed_same_text(run, capsys):
    first = texts(capsys, seed=1)
    assert len(first) == 3
    assert len(set(first)) == 3
    assert all(len(t) == 42 and t.startswith('ab') for t in first)

    assert texts(capsys, seed=1) == first
    assert not set(first) & set(texts(capsys, seed=2))
    # a sample does not depend on how many others are drawn with it
    assert texts(capsys, seed=1, num_samples=1) == first[:1]


def test_temperatures(run, capsys):
    greedy = texts(capsys, temperature=0.0)
    assert len(set(greedy)) == 1
    assert texts(capsys, temperature=0.0, seed=5) == greedy
    assert texts(capsys, top_k=1) == greedy
    assert texts(capsys, temperature=1e-9) == greedy

    for temperature in (0.1, 1.0, 2.0, 50.0):
        assert len(set(texts(capsys, temperature=temperature, max_new_tokens=60))) > 1

    # at a huge temperature the ten characters are equally likely: about 400 of each
    wild = ''.join(texts(capsys, temperature=1e9, num_samples=40, max_new_tokens=100, start='', top_k=None))
    counts = [wild.count(c) for c in 'abcdefgh \n']
    assert 300 < min(counts)
    assert max(counts) < 500


def test_prompts(run, capsys):
    (run / 'p.txt').write_text('cab ')
    assert texts(capsys, start='FILE:p.txt', num_samples=1)[0].startswith('cab ')
    assert len(texts(capsys, start='', num_samples=1)[0]) == 40
    assert texts(capsys, start='abc', max_new_tokens=0, num_samples=1) == ['abc']

    longer_than_the_context = 'abcdefgh' * 10
    assert texts(capsys, start=longer_than_the_context, num_samples=1)[0].startswith(longer_than_the_context)


def test_a_long_prompt_is_cropped_with_a_notice(run, capsys):
    cropped = texts(capsys, start='hhhhhhhh' + 'abcd' * 4, temperature=0.0)[0]
    fitting = texts(capsys, start='abcd' * 4, temperature=0.0)[0]
    assert cropped[24:] == fitting[16:]

    generate(start='a' * 17, num_samples=1, max_new_tokens=1)
    assert 'the prompt has 17 tokens, the context 16: only the last ones are used' in capsys.readouterr().err


def test_the_best_checkpoint_is_taken_unless_told_otherwise(run, capsys):
    shutil.copy('out/ckpt.pt', 'out/other.pt')
    state = checkpoint.load('out/ckpt.pt')
    state['model'] = {k: torch.zeros_like(v) for k, v in state['model'].items()}       # ruin the last checkpoint
    checkpoint.save('out/ckpt.pt', state)

    good = texts(capsys, temperature=0.0)
    assert texts(capsys, temperature=0.0, checkpoint='ckpt.pt') != good
    assert texts(capsys, temperature=0.0, checkpoint='other.pt') == good

    (run / 'out/best.pt').unlink()
    assert texts(capsys, temperature=0.0) != good


def test_ids_beyond_the_tokenizer_are_never_drawn(run, capsys):
    """A padded vocabulary (such as GPT-2's, 50304 for 50257 tokens) has ids without a meaning."""
    state = checkpoint.load('out/best.pt')
    del state['tokenizer']['chars'][5:]
    checkpoint.save('out/best.pt', state)

    drawn = ''.join(texts(capsys, temperature=100.0, start='', top_k=None))
    assert set(drawn) <= set(state['tokenizer']['chars'])


def test_as_a_command(run, capsys):
    """A separate process prints exactly what a call in this process prints."""
    args = [
        '--out_dir=out',
        '--start=ab',
        '--num_samples=2',
        '--max_new_tokens=30',
        '--temperature=0.8',
        '--top_k=200',
        '--seed=1',
        '--device=cpu',
    ]
    done = run_script('sample.py', *args)
    capsys.readouterr()
    configurator.launch(sample.main, sample.SampleConfig, args)

    assert done.returncode == 0
    assert done.stdout == capsys.readouterr().out
    assert done.stdout.count('---------------') == 2


def test_from_a_folder_of_gpt2_weights(place, capsys, test_data, monkeypatch):
    pytest.importorskip('safetensors', reason='reading Hugging Face weights needs safetensors')
    transformers = pytest.importorskip('transformers', reason='transformers writes the model')
    monkeypatch.setenv('TIKTOKEN_CACHE_DIR', str(test_data / 'tiktoken'))
    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8, n_positions=32)
    transformers.GPT2LMHeadModel(config).save_pretrained('tiny')

    # sample from it
    capsys.readouterr()
    generate(init_from='tiny', start='Hello world', num_samples=1, max_new_tokens=5)
    assert capsys.readouterr().out.startswith('Hello world')

    # fine-tune it
    tuning = dict(block_size=16, out_dir='tuned', dataset='babble', sample_tokens=0)
    train.main(settings(**tuning, init_from='tiny', max_iters=2, eval_interval=2))
    state = checkpoint.load('tuned/ckpt.pt')
    assert state['model_args'] | dict(dropout=0) == dict(
        n_layer=1,
        n_head=2,
        n_embd=8,
        block_size=16,
        bias=True,
        vocab_size=50257,
        dropout=0,
        mlp='gelu_tanh',
    )

    # resume the fine-tuning
    train.main(settings(**tuning, init_from='resume', max_iters=3))
    assert checkpoint.load('tuned/ckpt.pt')['iter_num'] == 3


# ---------------------------------------------------------------------------- where a text ends

class Fake:
    """A model that emits prepared ids: `lines` has one list of ids for each sample."""
    transformer = torch.nn.ModuleDict(dict(wte=torch.nn.Embedding(1, 1)))
    config = GPTConfig(block_size=64, vocab_size=300)

    def __init__(self, *lines):
        self.lines = lines

    def stream(self, x, choose, n_vocab):
        for ids in zip(*self.lines):
            yield torch.tensor(ids)[:, None]


class NoSampler:
    logprobs = None


def written(lines, tokenizer=None, max_new_tokens=99, **how):
    """The Writings that result when a model emits these lines, each a text or a list of ids."""
    tokenizer = tokenizer or ByteTokenizer()
    lines = [tokenizer.encode(line) if isinstance(line, str) else line for line in lines]
    writings = [sample.Completion(tokenizer, **how) for _ in lines]
    sample.generate(Fake(*lines), [0], writings, NoSampler(), max_new_tokens, 256)
    return writings


@pytest.mark.parametrize('text, stop, expected', [
    ('one\n\ntwo', '\n\n', 'one'),
    ('one\ntwo', '\n\n', 'one\ntwo'),
    ('aab', 'aab', ''),
    ('xaaab', 'aab', 'xa'),
    ('ends with \n', '\n\n', 'ends with \n'),
    ('caf\u00e9 and', '\u00e9', 'caf'),
    ('all of it', '', 'all of it'),
])
def test_stop_may_span_tokens_and_is_not_shown(text, stop, expected):
    shown = []
    writing, = written([text], stop=stop, show=shown.append)

    assert writing.text == expected
    assert ''.join(shown) == expected
    assert writing.done
    assert not any(stop and stop[0] in part and part.endswith(stop) for part in shown)


def test_each_sample_stops_on_its_own_and_generation_ends_with_the_last():
    first, second = written(['one.two.three', 'seventeen.xx'], stop='.')
    assert (first.text, second.text) == ('one', 'seventeen')
    assert len(first.tokens) == 4
    assert len(second.tokens) == 10


def test_a_stop_within_one_token_cuts_off_the_rest_of_it(test_data, monkeypatch):
    monkeypatch.setenv('TIKTOKEN_CACHE_DIR', str(test_data / 'tiktoken'))
    bpe = build_tokenizer({'kind': 'gpt2'})

    ids = bpe.encode('a hundred thousand')
    assert [bpe.decode([i]) for i in ids] == ['a', ' hundred', ' thousand']
    assert written([ids], bpe, stop='dr')[0].text == 'a hun'

    end = [*bpe.encode('The end.'), bpe.end_id, *bpe.encode(' More')]
    assert written([end], bpe, end_id=bpe.end_id)[0].text == 'The end.'
    assert written([end], bpe)[0].text == 'The end.<|endoftext|> More'


def test_a_character_split_across_tokens_is_shown_once_complete():
    shown = []
    writing, = written(['na\u00efve \U0001f600!'], show=shown.append)
    assert writing.text == 'na\u00efve \U0001f600!'
    assert ''.join(shown) == 'na\u00efve \U0001f600!'
    assert '\U0001f600' in shown
    assert '\ufffd' not in writing.text
    assert len(writing.tokens) == 12                  # 6 ASCII characters, one of 2 bytes, one of 4

    # incomplete and invalid bytes are marked, not dropped
    broken, = written([[0x61, 0xf0, 0x9f]])
    assert broken.text == 'a\ufffd'
    wrong, = written([[0xff, 0x62]])
    assert wrong.text == '\ufffdb'


def test_end_to_end_a_stop_only_shortens_the_text(run, capsys):
    whole = texts(capsys, seed=4)
    assert any(' ' in t[2:] for t in whole)
    assert texts(capsys, seed=4, stop=' ') == [t[:2] + t[2:].split(' ')[0] for t in whole]
    assert texts(capsys, seed=4, stop='\\n') == [t[:2] + t[2:].split('\n')[0] for t in whole]


# ---------------------------------------------------------------------------- output

def test_json(run, capsys):
    plain = texts(capsys, seed=3)
    generate(start='ab', num_samples=3, max_new_tokens=40, seed=3, json=True, logprobs=True)
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    tokenizer = build_tokenizer(checkpoint.load('out/ckpt.pt')['tokenizer'])

    assert ['ab' + r['text'] for r in rows] == plain
    for row in rows:
        assert row['prompt'] == 'ab'
        assert tokenizer.decode(row['tokens']) == row['text']
        assert len(row['logprobs']) == 40

    # the log-probabilities are those of one forward pass over prompt and text, as far as the context of 16 reaches
    state = checkpoint.load('out/best.pt')
    model = pretrained.gpt_from_weights(state['model_args'], state['model']).eval()
    ids = torch.tensor([tokenizer.encode('ab') + rows[0]['tokens']])[:, :16]
    logits, _ = model(ids[:, :-1], ids[:, 1:])
    expected = logits.log_softmax(-1).gather(2, ids[:, 1:, None])[0, 1:, 0]
    torch.testing.assert_close(torch.tensor(rows[0]['logprobs'][:14]), expected, atol=1e-4, rtol=1e-4)


def test_a_pipe_gets_text_and_nothing_else(run, capfd):
    capfd.readouterr()
    generate(start='ab', num_samples=1, max_new_tokens=5)
    out, err = capfd.readouterr()

    assert out.startswith('ab')
    assert out.endswith('\n---------------\n')
    assert len(out) == len('ab12345\n---------------\n')
    assert 'best val loss' in err


def test_on_a_terminal_one_sample_streams(run, capsys, monkeypatch):
    piped = texts(capsys, num_samples=1, seed=2)[0]
    parts = []
    monkeypatch.setattr(sample.sys.stdout, 'isatty', lambda: True, raising=False)
    monkeypatch.setattr(sample, 'show', parts.append)
    generate(start='ab', num_samples=1, max_new_tokens=40, seed=2)

    assert ''.join(parts) == piped
    assert len(parts) == 41


def test_the_newest_run_is_taken_and_named(run, capsys):
    shutil.copytree('out', 'out-b')
    shutil.copytree('out', 'out-a')
    for age, folder in enumerate(('out-b', 'out', 'out-a')):
        for name in os.listdir(folder):
            os.utime(os.path.join(folder, name), (1e9 - age, 1e9 - age))
    os.makedirs('empty')

    capsys.readouterr()
    generate(num_samples=1, max_new_tokens=1)
    assert capsys.readouterr().err.startswith(f"{os.path.join('out-b', 'best.pt')}: iteration 30")

    for folder in ('out', 'out-a', 'out-b'):
        shutil.rmtree(folder)
    with pytest.raises(UserError, match='no run in this folder: expected .* train one'):
        generate()


# ---------------------------------------------------------------------------- interactive

@pytest.fixture
def type_lines(monkeypatch):
    """type_lines([...]) makes input() return these lines, then end of file."""
    def answer_with(lines):
        def answer(prompt):
            if not lines:
                raise EOFError
            return lines.pop(0)

        monkeypatch.setattr('builtins.input', answer)

    return answer_with


def test_interactive_continues_the_whole_conversation(run, capsys, monkeypatch, type_lines):
    type_lines(['ab', 'Q', 'cd', ''])
    real = sample.generate
    seen = []

    def record(model, ids, *rest):
        seen.append(ids)
        real(model, ids, *rest)

    monkeypatch.setattr(sample, 'generate', record)
    generate(interactive=True, max_new_tokens=6)
    out, err = capsys.readouterr()

    tokenizer = build_tokenizer(checkpoint.load('out/ckpt.pt')['tokenizer'])
    said = [tokenizer.decode(ids) for ids in seen]
    first = said[1][2:8]
    second = said[2][10:16]
    assert said[0] == 'ab'
    assert said[1] == f'ab{first}cd'
    assert said[2] == f'ab{first}cd{second}'
    assert out.startswith(f'{first}\n{second}\n')
    assert "error: character 'Q'" in err


def test_ctrl_c_ends_a_continuation_not_the_session(run, capsys, monkeypatch, type_lines):
    lines = ['ab', 'cd']
    type_lines(lines)
    real = GPT.stream

    def interrupted_once(self, *args):
        for n, new in enumerate(real(self, *args)):
            if n == 3 and lines:
                raise KeyboardInterrupt
            yield new

    monkeypatch.setattr(GPT, 'stream', interrupted_once)
    capsys.readouterr()
    generate(interactive=True, max_new_tokens=6)

    assert len(capsys.readouterr().out.split('\n')[0]) <= 3
    assert not lines


# ---------------------------------------------------------------------------- --eval

def test_eval_is_a_straight_loop(run, capsys):
    """The loss equals that of a plain loop over windows that do not overlap."""
    text = 'abc def gh ab cd ' * 9
    (run / 't.txt').write_text(text)
    capsys.readouterr()
    generate(eval='t.txt')

    state = checkpoint.load('out/best.pt')
    model = pretrained.gpt_from_weights(state['model_args'], state['model']).eval()
    ids = build_tokenizer(state['tokenizer']).encode(text)
    total = 0.0
    for start in range(0, len(ids) - 1, 16):
        x = torch.tensor([ids[start:start + 16]])
        y = torch.tensor([ids[start + 1:start + 17]])
        total += model(x[:, :y.size(1)], y)[1].item() * y.numel()
    loss = total / (len(ids) - 1)
    assert capsys.readouterr().out == (
        f't.txt: {len(ids) - 1:,} tokens predicted, loss {loss:.4f}, perplexity {math.exp(loss):.2f}, '
        f'{loss / math.log(2):.4f} bits per byte\n')

    (run / 't.txt').write_text('a')
    with pytest.raises(UserError, match='t.txt: 1 tokens; expected at least two'):
        generate(eval='t.txt')


@pytest.mark.parametrize('script', [sample, export])
def test_a_checkpoint_is_a_name_not_a_path(script, place):
    refused = run_main(script, '--out_dir=out', '--checkpoint=a/b.pt')
    assert refused.returncode == 2
    assert refused.stderr == 'error: checkpoint=a/b.pt: expected the name of a file in out_dir\n'
