"""sample.py as people use it: prompts, seeds, temperatures, which checkpoint, what it prints."""

import json
import math
import os
import shutil

import pytest
import torch
from conftest import prepare_babble, run_script, settings

import sample
import train
from gradus import checkpoint, data
from gradus.tokenizer import ByteTokenizer, from_json
from model import GPT, GPTConfig


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A short run, made once."""
    folder, here = tmp_path_factory.mktemp('trained'), os.getcwd()
    os.chdir(folder)
    prepare_babble()
    train.main(settings(max_iters=30, lr_decay_iters=30, dropout=0.0))
    os.chdir(here)
    return folder / 'out'


@pytest.fixture
def run(place, trained):
    """A working folder with a copy of it in out/."""
    shutil.copytree(trained, 'out')
    return place


def texts(capsys, **changes):
    """The samples that these settings print."""
    capsys.readouterr()
    sample.main(sample.SampleConfig(**{**dict(device='cpu', start='ab', num_samples=3, max_new_tokens=40), **changes}))
    return [t.removesuffix('\n') for t in capsys.readouterr().out.split('---------------\n')[:-1]]


def test_same_seed_same_text(run, capsys):
    first = texts(capsys, seed=1)
    assert len(first) == 3 and len(set(first)) == 3 and all(len(t) == 42 and t.startswith('ab') for t in first)
    assert texts(capsys, seed=1) == first and not set(first) & set(texts(capsys, seed=2))
    assert texts(capsys, seed=1, num_samples=1) == first[:1]                      # a sample depends on its seed, not on its neighbours


def test_temperatures(run, capsys):
    greedy = texts(capsys, temperature=0.0)
    assert len(set(greedy)) == 1 and greedy == texts(capsys, temperature=0.0, seed=5) == texts(capsys, top_k=1)
    assert texts(capsys, temperature=1e-9) == greedy
    for temperature in (0.1, 1.0, 2.0, 50.0):
        assert len(set(texts(capsys, temperature=temperature, max_new_tokens=60))) > 1
    wild = ''.join(texts(capsys, temperature=1e9, num_samples=40, max_new_tokens=100, start='', top_k=None))
    counts = [wild.count(c) for c in 'abcdefgh \n']
    assert 300 < min(counts) and max(counts) < 500                                # all ten alike, 400 each


def test_prompts(run, capsys):
    open('p.txt', 'w').write('cab ')
    assert texts(capsys, start='FILE:p.txt', num_samples=1)[0].startswith('cab ')
    assert len(texts(capsys, start='', num_samples=1)[0]) == 40
    assert texts(capsys, start='abc', max_new_tokens=0, num_samples=1) == ['abc']
    long = 'abcdefgh' * 10
    assert texts(capsys, start=long, num_samples=1)[0].startswith(long)           # longer than the context of 16


def test_a_long_prompt_is_cropped_and_that_is_said(run, capsys):
    assert texts(capsys, start='hhhhhhhh' + 'abcd' * 4, temperature=0.0)[0][24:] == texts(capsys, start='abcd' * 4, temperature=0.0)[0][16:]
    sample.main(sample.SampleConfig(device='cpu', start='a' * 17, num_samples=1, max_new_tokens=1))
    assert 'the prompt has 17 tokens, the context 16: only its end counts' in capsys.readouterr().err


def test_the_best_checkpoint_is_taken_unless_told_otherwise(run, capsys):
    shutil.copy('out/ckpt.pt', 'out/other.pt')
    state = checkpoint.load('out/ckpt.pt')
    state['model'] = {k: torch.zeros_like(v) for k, v in state['model'].items()}  # the last state is ruined
    checkpoint.save('out/ckpt.pt', state)
    good = texts(capsys, temperature=0.0)
    assert texts(capsys, temperature=0.0, checkpoint='ckpt.pt') != good == texts(capsys, temperature=0.0, checkpoint='other.pt')
    (run / 'out/best.pt').unlink()
    assert texts(capsys, temperature=0.0) != good


def test_ids_beyond_the_tokenizer_are_never_drawn(place, capsys):
    """A padded vocabulary (as GPT-2's 50304 for 50257 tokens) has ids that mean nothing."""
    train.main(settings(max_iters=1))
    state = checkpoint.load('out/best.pt')
    del state['tokenizer']['chars'][5:]
    checkpoint.save('out/best.pt', state)
    assert set(''.join(texts(capsys, temperature=100.0, start='', top_k=None))) <= set(state['tokenizer']['chars'])


def test_as_a_command(run):
    args = ['--out_dir=out', '--start=ab', '--num_samples=2', '--max_new_tokens=30', '--temperature=0.8', '--top_k=200', '--seed=1', '--device=cpu']
    first, second = run_script('sample.py', *args), run_script('sample.py', *args)
    assert first.returncode == 0 and first.stdout == second.stdout and first.stdout.count('---------------') == 2


def test_from_a_folder_of_gpt2_weights(place, capsys, test_data, monkeypatch):
    pytest.importorskip('safetensors', reason='reading Hugging Face weights needs safetensors')
    transformers = pytest.importorskip('transformers', reason='transformers writes the model')
    monkeypatch.setenv('TIKTOKEN_CACHE_DIR', str(test_data / 'tiktoken'))
    transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8, n_positions=32)).save_pretrained('tiny')
    capsys.readouterr()
    sample.main(sample.SampleConfig(init_from='tiny', start='Hello world', num_samples=1, max_new_tokens=5, device='cpu'))
    assert capsys.readouterr().out.startswith('Hello world')
    train.main(settings(init_from='tiny', block_size=16, max_iters=2, eval_interval=2, out_dir='tuned', dataset='babble', sample_tokens=0))
    state = checkpoint.load('tuned/ckpt.pt')
    assert state['model_args'] | dict(dropout=0) == dict(n_layer=1, n_head=2, n_embd=8, block_size=16, bias=True, vocab_size=50257, dropout=0,
                                                         mlp='gelu_tanh')
    train.main(settings(init_from='resume', block_size=16, max_iters=3, out_dir='tuned', dataset='babble', sample_tokens=0))
    assert checkpoint.load('tuned/ckpt.pt')['iter_num'] == 3


# ---------------------------------------------------------------------------- where a text ends

class Fake:
    """A model that says what it is told to: `lines` of ids, one for each row."""
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
    """What becomes of lines of text or ids: the writings."""
    tokenizer = tokenizer or ByteTokenizer()
    lines = [tokenizer.encode(line) if isinstance(line, str) else line for line in lines]
    writings = [sample.Writing(tokenizer, **how) for _ in lines]
    sample.continued(Fake(*lines), [0], writings, NoSampler(), max_new_tokens, 256)
    return writings


@pytest.mark.parametrize('text, stop, expected', [
    ('one\n\ntwo', '\n\n', 'one'), ('one\ntwo', '\n\n', 'one\ntwo'), ('aab', 'aab', ''), ('xaaab', 'aab', 'xa'), ('ends with \n', '\n\n', 'ends with \n'),
    ('caf\u00e9 and', '\u00e9', 'caf'), ('all of it', '', 'all of it'),
])
def test_stop_may_span_tokens_and_is_not_shown(text, stop, expected):
    shown = []
    writing, = written([text], stop=stop, show=shown.append)
    assert writing.text == ''.join(shown) == expected and writing.done
    assert not any(stop and stop[0] in part and part.endswith(stop) for part in shown)


def test_every_sample_stops_by_itself_and_all_end_when_the_last_does():
    first, second = written(['one.two.three', 'seventeen.xx'], stop='.')
    assert (first.text, second.text) == ('one', 'seventeen') and len(second.tokens) == 10 and len(first.tokens) == 4


def test_a_stop_within_one_token_cuts_the_rest_of_it_off(test_data, monkeypatch):
    monkeypatch.setenv('TIKTOKEN_CACHE_DIR', str(test_data / 'tiktoken'))
    bpe = from_json({'kind': 'gpt2'})
    ids = bpe.encode('a hundred thousand')
    assert [bpe.decode([i]) for i in ids] == ['a', ' hundred', ' thousand']
    assert written([ids], bpe, stop='dr')[0].text == 'a hun'
    end = [*bpe.encode('The end.'), bpe.end_id, *bpe.encode(' More')]
    assert written([end], bpe, end_id=bpe.end_id)[0].text == 'The end.'
    assert written([end], bpe)[0].text == 'The end.<|endoftext|> More'


def test_a_character_in_pieces_is_shown_when_it_is_whole():
    shown = []
    writing, = written(['na\u00efve \U0001f600!'], show=shown.append)
    assert writing.text == ''.join(shown) == 'na\u00efve \U0001f600!' and '\U0001f600' in shown and '\ufffd' not in writing.text
    assert len(writing.tokens) == 12                  # 6 ASCII, 2 + 4 bytes
    broken, = written([[0x61, 0xf0, 0x9f]])
    assert broken.text == 'a\ufffd'                   # nothing is lost silently
    wrong, = written([[0xff, 0x62]])
    assert wrong.text == '\ufffdb'


def test_end_to_end_a_stop_shortens_what_is_there_without(run, capsys):
    whole, short = texts(capsys, seed=4), texts(capsys, seed=4, stop=' ')
    assert short == [t[:2] + t[2:].split(' ')[0] for t in whole] and any(' ' in t[2:] for t in whole)
    assert texts(capsys, seed=4, stop='\\n') == [t[:2] + t[2:].split('\n')[0] for t in whole]


# ---------------------------------------------------------------------------- how it comes out

def test_json(run, capsys):
    plain = texts(capsys, seed=3)
    sample.main(sample.SampleConfig(device='cpu', start='ab', num_samples=3, max_new_tokens=40, seed=3, json=True, logprobs=True))
    out = capsys.readouterr().out
    rows = [json.loads(line) for line in out.splitlines()]
    tokenizer = from_json(checkpoint.load('out/ckpt.pt')['tokenizer'])
    assert ['ab' + r['text'] for r in rows] == plain
    assert all(r['prompt'] == 'ab' and tokenizer.decode(r['tokens']) == r['text'] and len(r['logprobs']) == 40 for r in rows)
    state = checkpoint.load('out/best.pt')
    model = GPT.from_state(state['model_args'], state['model']).eval()
    ids = torch.tensor([tokenizer.encode('ab') + rows[0]['tokens']])[:, :16]    # within the context of 16
    logits, _ = model(ids[:, :-1], ids[:, 1:])
    expected = logits.log_softmax(-1).gather(2, ids[:, 1:, None])[0, 1:, 0]
    torch.testing.assert_close(torch.tensor(rows[0]['logprobs'][:14]), expected, atol=1e-4, rtol=1e-4)


def test_a_pipe_gets_text_and_nothing_else(run):
    done = run_script('sample.py', '--start=ab', '--num_samples=1', '--max_new_tokens=5', '--device=cpu')
    assert done.stdout.startswith('ab') and done.stdout.endswith('\n---------------\n') and 'best val loss' in done.stderr
    assert len(done.stdout) == len('ab12345\n---------------\n')


def test_on_a_terminal_one_sample_streams(run, capsys, monkeypatch):
    piped = texts(capsys, num_samples=1, seed=2)[0]
    parts = []
    monkeypatch.setattr(sample.sys.stdout, 'isatty', lambda: True, raising=False)
    monkeypatch.setattr(sample, 'show', parts.append)
    sample.main(sample.SampleConfig(device='cpu', start='ab', num_samples=1, max_new_tokens=40, seed=2))
    assert ''.join(parts) == piped and len(parts) == 41


def test_the_newest_run_is_taken_and_named(run, capsys):
    shutil.copytree('out', 'out-b')
    shutil.copytree('out', 'out-a')
    for age, folder in enumerate(('out-b', 'out', 'out-a')):
        for name in os.listdir(folder):
            os.utime(os.path.join(folder, name), (1e9 - age, 1e9 - age))
    os.makedirs('empty')
    sample.main(sample.SampleConfig(device='cpu', num_samples=1, max_new_tokens=1))
    assert capsys.readouterr().err.startswith(f"{os.path.join('out-b', 'best.pt')}: iteration 30")
    for folder in ('out', 'out-a', 'out-b'):
        shutil.rmtree(folder)
    with pytest.raises(checkpoint.CheckpointError, match='no run in this folder: expected .* train one'):
        sample.main(sample.SampleConfig(device='cpu'))


def test_interactive_goes_on_with_what_was_said(run, capsys, monkeypatch):
    lines = ['ab', 'Q', 'cd', '']
    monkeypatch.setattr('builtins.input', lambda prompt: lines.pop(0) if lines else (_ for _ in ()).throw(EOFError))
    seen, real = [], sample.continued
    monkeypatch.setattr(sample, 'continued', lambda model, ids, *rest: (seen.append(ids), real(model, ids, *rest)))
    sample.main(sample.SampleConfig(device='cpu', interactive=True, max_new_tokens=6))
    out, err = capsys.readouterr()
    tokenizer = from_json(checkpoint.load('out/ckpt.pt')['tokenizer'])
    said = [tokenizer.decode(ids) for ids in seen]
    first, second = said[1][2:8], said[2][10:16]
    assert said[0] == 'ab' and said[1] == f'ab{first}cd' and said[2] == f'ab{first}cd{second}'
    assert out.startswith(f'{first}\n{second}\n') and "error: character 'Q'" in err


def test_ctrl_c_ends_a_continuation_not_the_session(run, capsys, monkeypatch):
    lines, real = ['ab', 'cd'], GPT.stream
    monkeypatch.setattr('builtins.input', lambda prompt: lines.pop(0) if lines else (_ for _ in ()).throw(EOFError))

    def stream(self, *args):
        for n, new in enumerate(real(self, *args)):
            if n == 3 and lines:
                raise KeyboardInterrupt
            yield new
    monkeypatch.setattr(GPT, 'stream', stream)
    sample.main(sample.SampleConfig(device='cpu', interactive=True, max_new_tokens=6))
    assert [len(part) for part in capsys.readouterr().out.split('\n')][0] <= 3 and not lines


# ---------------------------------------------------------------------------- how well it predicts

def test_eval_is_a_straight_loop(run, capsys):
    text = open('data/babble/val.txt').read() if os.path.exists('data/babble/val.txt') else 'abc def gh ab cd ' * 9
    open('t.txt', 'w').write(text)
    sample.main(sample.SampleConfig(device='cpu', eval='t.txt'))
    state = checkpoint.load('out/best.pt')
    model, ids = GPT.from_state(state['model_args'], state['model']).eval(), from_json(state['tokenizer']).encode(text)
    total = 0.0
    for start in range(0, len(ids) - 1, 16):
        x, y = torch.tensor([ids[start:start + 16]]), torch.tensor([ids[start + 1:start + 17]])
        total += model(x[:, :y.size(1)], y)[1].item() * y.numel()
    loss = total / (len(ids) - 1)
    assert capsys.readouterr().out == (f't.txt: {len(ids) - 1:,} tokens predicted, loss {loss:.4f}, perplexity {math.exp(loss):.2f}, '
                                       f'{loss / math.log(2):.4f} bits per byte\n')
    open('t.txt', 'w').write('a')
    with pytest.raises(data.DataError, match='t.txt: 1 tokens; expected at least two'):
        sample.main(sample.SampleConfig(device='cpu', eval='t.txt'))
