"""
Generate text with a trained model.

    python sample.py                                                       the newest run here
    python sample.py --out_dir=out-quickstart --start="def " --num_samples=3 --temperature=0.8
    python sample.py --init_from=gpt2 --start=FILE:prompt.txt --stop="\\n\\n"
    python sample.py --interactive                                         write together
    python sample.py --eval=FILE                                           how well does it predict this text?

On a terminal a single sample appears as it is made. What is not text goes to stderr.
"""

import codecs
import json
import math
import os
import sys
from dataclasses import dataclass
from itertools import islice

import torch

from gradus import checkpoint, configurator, data, evaluation, hf, inference, parallel, sampling
from gradus import tokenizer as tokenizers
from model import GPT, ModelError


@dataclass
class SampleConfig:
    # the model
    init_from: str = 'resume'         # resume (a run's folder, out_dir), gpt2 / gpt2-medium / gpt2-large / gpt2-xl, or a folder
    out_dir: str = ''                 # folder of the run; empty: the newest one here
    checkpoint: str = ''              # file in it; empty: best.pt if there is one, else ckpt.pt
    dataset: str = ''                 # folder in data/ whose meta file tells the tokenizer, if the checkpoint does not
    # the text
    start: str = '\n'                 # the prompt, or FILE:prompt.txt
    num_samples: int = 10             # texts, made side by side
    max_new_tokens: int = 500         # tokens of each, behind the prompt, at most
    stop: str = ''                    # end a text where this appears, without it; \n stands for a new line
    ignore_end: bool = False          # go on after GPT-2's <|endoftext|>
    seed: int = 1337                  # the same seed gives the same text
    # how tokens are drawn
    temperature: float = 0.8          # 0 = always the likeliest, 1 = as the model thinks, more = wilder
    top_k: int | None = 200           # draw from the k likeliest only; None or 0 = from all
    top_p: float = 1.0                # from the likeliest that together reach this probability
    min_p: float = 0.0                # from those at least this share as likely as the likeliest
    repetition_penalty: float = 1.0   # above 1: less of what was said already
    # what comes out
    interactive: bool = False         # write together: type, and the model goes on; \n is a new line, an empty line lets it continue
    json: bool = False                # one object a line for each sample: prompt, text, tokens
    logprobs: bool = False            # with json: the log-probability of each token, by the model alone
    eval: str = ''                    # a text file: print its loss, perplexity and bits per byte, generate nothing
    # machine
    device: str = 'auto'              # auto, cpu, cuda, cuda:N, mps
    dtype: str = 'auto'               # auto, float32, bfloat16, float16
    quantize: str = ''                # int8: weights in 8 bits, on the CPU: several times faster, slightly less exact
    compile: bool | str = False       # compile the step of one token: takes half a minute, then a few samples at once are faster


ERRORS = (ModelError, data.DataError, checkpoint.CheckpointError, tokenizers.TokenizerError, parallel.DeviceError, hf.InteropError)


def load_model(cfg):
    """Where the model comes from, a line about it, the model, on the CPU, and the plain data of its tokenizer."""
    if cfg.init_from != 'resume':
        args, weights = hf.load_gpt2(cfg.init_from)
        return cfg.init_from, cfg.init_from, GPT.from_state(args, weights, cfg.init_from, dropout=0.0), {'kind': 'gpt2'}
    path = checkpoint.find(cfg.out_dir or checkpoint.newest_run(), cfg.checkpoint)
    state = checkpoint.load(path)
    model = GPT.from_state(state['model_args'], state['model'], path, dropout=0.0)
    about = f"{path}: iteration {state.get('iter_num', '?')}, best val loss {float(state.get('best_val_loss', float('nan'))):.4f}"
    return path, about, model, find_tokenizer(cfg, state, path)


def find_tokenizer(cfg, state, path):
    """
    A checkpoint of ours carries its tokenizer. One of nanoGPT's only names its dataset; that name is compared
    with the folders that are in data/, never opened as a path. Without meta file GPT-2's tokens are assumed.
    """
    if cfg.dataset:
        return data.read_meta(os.path.join('data', cfg.dataset))['tokenizer']
    if 'tokenizer' in state:
        return state['tokenizer']
    here = os.listdir('data') if os.path.isdir('data') else []
    name = state.get('config', {}).get('dataset')
    vocab_size = state['model_args'].get('vocab_size', 0)
    if name in here:
        meta = data.read_meta(os.path.join('data', here[here.index(name)]))
        if meta['vocab_size'] in (vocab_size, 50257):
            return meta['tokenizer']
    if vocab_size < 50257:
        raise checkpoint.CheckpointError(f'{path}: no tokenizer in it, and no data/{name} that fits; expected --dataset=NAME, '
                                         f'a folder in data/ whose meta.pkl or meta.json has {vocab_size} tokens')
    return {'kind': 'gpt2'}


def check(cfg):
    """Raise ConfigError for values that make no sense."""
    configurator.in_range(cfg, num_samples=(1, None), max_new_tokens=(0, None), temperature=(0, None), top_k=(0, None), seed=(0, 2 ** 63),
                          top_p=(0, 1), min_p=(0, 1), repetition_penalty=(0.01, 100))
    configurator.one_of(cfg, dtype=('auto', *parallel.DTYPES), compile=('auto', True, False), quantize=('', 'int8'))
    if os.path.basename(cfg.checkpoint) != cfg.checkpoint:
        raise configurator.ConfigError(f'checkpoint={cfg.checkpoint}: expected the name of a file in out_dir')


def say(text):
    """For people, not part of the text."""
    print(text, file=sys.stderr)


def unescape(text):
    return text.replace('\\n', '\n')                # a shell hands over backslash and n


class Writing:
    """One sample as it grows: token after token becomes text, until `stop` appears in it or the end-of-text token comes."""

    def __init__(self, tokenizer, stop='', end_id=None, show=None):
        self.tokenizer, self.stop, self.end_id, self.show = tokenizer, stop, end_id, show
        self.decoder = codecs.getincrementaldecoder('utf-8')(errors='replace')   # keeps the first half of a character until the second comes
        self.tokens, self.logprobs, self.text, self.shown, self.done = [], [], '', 0, False

    def add(self, token, logprob=None):
        if token == self.end_id:
            self.close()
        if self.done:
            return
        self.tokens.append(token)
        self.logprobs.append(logprob)
        self._append(self.decoder.decode(self.tokenizer.decode_bytes([token])))

    def close(self):
        """No more tokens will come."""
        if not self.done:
            self._append(self.decoder.decode(b'', final=True))
        self.done = True
        self._show(len(self.text))

    def _append(self, piece):
        searched = max(0, len(self.text) - len(self.stop) + 1)
        self.text += piece
        at = self.text.find(self.stop, searched) if self.stop else -1
        if at >= 0:
            self.text, self.done = self.text[:at], True
        self._show(len(self.text) - (0 if self.done or not self.stop else len(self.stop) - 1))   # the rest may become a stop

    def _show(self, end):
        if self.show and end > self.shown:
            self.show(self.text[self.shown:end])
            self.shown = end


def continued(model, ids, writings, sampler, max_new_tokens, n_vocab):
    """Let the model continue ids once for each of `writings`, side by side, until all are done."""
    x = torch.tensor([ids], device=model.transformer.wte.weight.device).expand(len(writings), -1)     # (num_samples, T)
    for new in islice(model.stream(x, sampler, n_vocab), max_new_tokens):                     # (num_samples, 1)
        logprobs = sampler.logprobs[:, 0].tolist() if sampler.logprobs is not None else [None] * len(writings)
        for writing, token, logprob in zip(writings, new[:, 0].tolist(), logprobs):
            writing.add(token, logprob)
        if all(w.done for w in writings):
            break
    for writing in writings:
        writing.close()


def show(text):
    print(text, end='', flush=True)


def new_sampler(cfg, n):
    """The randomness of sample i is a function of seed and i, whatever runs beside it."""
    return sampling.Sampler(cfg.temperature, cfg.top_k, cfg.top_p, cfg.min_p, cfg.repetition_penalty,
                            [parallel.seed_of(cfg.seed, i) for i in range(n)], cfg.logprobs)


def read_prompt(cfg, tokenizer):
    """The prompt as text and as ids."""
    text = data.read_text(cfg.start.removeprefix('FILE:')) if cfg.start.startswith('FILE:') else cfg.start
    return text, tokenizer.encode(text)


def write_samples(cfg, model, tokenizer, end_id, prompt, ids):
    """num_samples continuations of the prompt: as text with a line between, or as JSON."""
    if len(ids) > model.config.block_size:
        say(f'the prompt has {len(ids)} tokens, the context {model.config.block_size}: only its end counts')
    live = cfg.num_samples == 1 and not cfg.json and sys.stdout.isatty()
    writings = [Writing(tokenizer, unescape(cfg.stop), end_id, show if live else None) for _ in range(cfg.num_samples)]
    if live:
        show(prompt)
    continued(model, ids or [tokenizer.start_id], writings, new_sampler(cfg, cfg.num_samples), cfg.max_new_tokens, tokenizer.n_vocab)
    for w in writings:
        if cfg.json:
            print(json.dumps(dict(prompt=prompt, text=w.text, tokens=w.tokens, **(dict(logprobs=w.logprobs) if cfg.logprobs else {})), ensure_ascii=False))
        else:
            print('' if live else prompt + w.text)
            print('---------------')


def write_together(cfg, model, tokenizer, end_id):
    """Read a line, continue the text, read the next one; Ctrl-C ends a continuation, Ctrl-D (or Ctrl-C at the prompt) the session."""
    ids, sampler = [], new_sampler(cfg, 1)
    while True:
        try:
            line = input('\n> ' if sys.stdin.isatty() else '')
        except EOFError:
            return
        try:
            ids = ids + tokenizer.encode(unescape(line))
        except tokenizers.TokenizerError as e:
            say(f'error: {e}')
            continue
        writing = Writing(tokenizer, unescape(cfg.stop), end_id, show)
        try:
            continued(model, ids or [tokenizer.start_id], [writing], sampler, cfg.max_new_tokens, tokenizer.n_vocab)
        except KeyboardInterrupt:
            writing.close()
        show('\n')
        ids = ids + writing.tokens


def read_text_to_predict(cfg, tokenizer):
    """The ids of the text to evaluate."""
    ids = getattr(tokenizer, 'encode_ordinary', tokenizer.encode)(data.read_text(cfg.eval))
    if len(ids) < 2:
        raise data.DataError(f'{cfg.eval}: {len(ids)} tokens; expected at least two, one to predict the other from')
    return ids


def evaluate_text(cfg, model, tokenizer, run, ids):
    """How well the model predicts a text, in windows of its context that do not overlap: of each, its own beginning is all that it knows."""
    tokens = data.Tokens.of(ids, tokenizer.n_vocab, model.config.block_size, cfg.eval)
    loss, bits = evaluation.evaluate(model, tokens, 8, 0, run, torch.from_numpy(tokenizer.byte_lengths()))
    print(f'{cfg.eval}: {len(ids) - 1:,} tokens predicted, loss {loss:.4f}, perplexity {math.exp(min(loss, 700)):.2f}, {bits:.4f} bits per byte')


def main(cfg):
    check(cfg)
    run = parallel.start(cfg.device, cfg.dtype, cfg.compile)
    if cfg.quantize and run.device.type != 'cpu':
        raise configurator.ConfigError(f'quantize={cfg.quantize} is for the CPU, the device is {run.device}; use --device=cpu, or --quantize=')
    source, about, model, spec = load_model(cfg)
    tokenizer = tokenizers.from_json(spec)
    if tokenizer.n_vocab > model.config.vocab_size:
        raise tokenizers.TokenizerError(f'{source}: a tokenizer of {tokenizer.n_vocab} tokens for a model of {model.config.vocab_size}; '
                                        'expected those that it was trained with, --dataset=NAME')
    if cfg.eval:
        ids = read_text_to_predict(cfg, tokenizer)
    elif not cfg.interactive:
        prompt, ids = read_prompt(cfg, tokenizer)
    say(about)                                        # whatever can be wrong was found by now
    inference.prepare(model.to(run.device).eval(), run.dtype, bool(cfg.quantize), run.compile)
    end_id = None if cfg.ignore_end else tokenizer.end_id
    with run.autocast():
        if cfg.eval:
            evaluate_text(cfg, model, tokenizer, run, ids)
        elif cfg.interactive:
            write_together(cfg, model, tokenizer, end_id)
        else:
            write_samples(cfg, model, tokenizer, end_id, prompt, ids)


if __name__ == '__main__':
    configurator.run(main, SampleConfig, ERRORS)
