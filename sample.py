"""
Generate text with a trained model.

    python sample.py                                                       the newest run here
    python sample.py --out_dir=out-quickstart --start="def " --num_samples=3 --temperature=0.8
    python sample.py --init_from=gpt2 --start=FILE:prompt.txt --stop="\\n\\n"
    python sample.py --interactive                                         type, and the model continues
    python sample.py --eval=FILE                                           how well does it predict this text?
    python sample.py --eval=FILE.tsv                                       or complete these pairs? (exact match, BLEU)

In a terminal, a single sample is printed as it is generated. Results go to stdout, messages to stderr.
"""

import codecs
import json
import math
import sys
from dataclasses import dataclass
from functools import partial
from itertools import islice

import gradus  # noqa: F401  first: Ctrl-C during the slow imports below is one line

# isort: split
import torch
from tqdm import tqdm

from gradus import beam, configurator, data, evaluation, inference, pairs, parallel, preparation, pretrained
from gradus.errors import UserError, on_screen, warn
from gradus.sampling import Sampler


@dataclass
class SampleConfig:
    # model
    init_from: str = 'resume'         # resume (from out_dir), gpt2*, owner/model, a folder, or a .gguf file
    out_dir: str = ''                 # folder of the run; empty: the newest one here
    checkpoint: str = ''              # file in it; empty: best.pt if there is one, else ckpt.pt
    dataset: str = ''                 # folder in data/ whose tokenizer to use, if the checkpoint holds none
    # text
    start: str = '\n'                 # the prompt, or FILE:prompt.txt
    num_samples: int = 10             # samples, generated as one batch
    max_new_tokens: int = 500         # maximum length of each, without the prompt
    stop: str = ''                    # end a sample just before this text; \n stands for a newline
    ignore_end: bool = False          # continue after GPT-2's <|endoftext|>
    seed: int = 1337                  # the same seed gives the same text
    # sampling
    temperature: float = 0.8          # 0 = always the most likely token, 1 = the model's distribution, above = wilder
    top_k: int | None = 200           # sample from the k most likely tokens only; None or 0 = from all
    top_p: float = 1.0                # from the most likely tokens that together reach this probability
    min_p: float = 0.0                # from tokens at least this fraction as likely as the most likely one
    repetition_penalty: float = 1.0   # above 1: tokens that have occurred become less likely
    beams: int = 0                    # search for the most likely text with this many beams; 0 = draw tokens
    # output
    interactive: bool = False         # type, and the model continues; \n is a newline; press Enter for more
    json: bool = False                # one JSON object a line for each sample: prompt, text, tokens
    logprobs: bool = False            # with json: each token's log-probability, before penalty, temperature, top_k, ...
    eval: str = ''                    # a text: loss, perplexity, bits per byte; pairs (.tsv, .jsonl): exact match, BLEU
    # system
    device: str = 'auto'              # auto, cpu, cuda, cuda:N, mps
    dtype: str = 'auto'               # auto, float32, bfloat16, float16
    quantize: str = ''                # int8: 8-bit weights, on the CPU: several times faster, slightly less exact
    compile: bool | str = False       # compile the one-token step: half a minute first; pays off for few, long samples


# What beam search does not need.
DRAWING = ('num_samples', 'seed', 'temperature', 'top_k', 'top_p', 'min_p', 'repetition_penalty', 'logprobs')


def check(cfg):
    """Raise UserError for settings that make no sense."""
    configurator.check_range(cfg, num_samples=(1, 100_000), max_new_tokens=(0, None), temperature=(0, None),
                             top_k=(0, None), seed=(0, 2 ** 63), top_p=(0, 1), min_p=(0, 1),
                             repetition_penalty=(0.01, 100), beams=(0, 1000))
    configurator.check_choice(cfg, dtype=('auto', *parallel.DTYPES), compile=('auto', True, False),
                              quantize=('', 'int8'))
    ignored = [name for name in DRAWING if getattr(cfg, name) != getattr(SampleConfig, name)]
    if cfg.beams and ignored:
        warn(f"beams={cfg.beams} finds one text and draws no tokens; ignored: {', '.join(ignored)}")


def log(text):
    """For people; not part of the generated text."""
    print(text, file=sys.stderr)


def show(text):
    print(on_screen(text), end='', flush=True)


def unescape(text):
    return text.replace('\\n', '\n')                  # a shell passes \n as two characters


# ---------------------------------------------------------------------------- generation

class Completion:
    """One sample as it grows: tokens become text, until `stop` appears in it or the end-of-text token comes."""

    def __init__(self, tokenizer, stop='', end_id=None, show=None):
        self.tokenizer = tokenizer
        self.stop = stop
        self.end_id = end_id
        self.show = show                              # called with each new piece of text
        self.decoder = codecs.getincrementaldecoder('utf-8')(errors='replace')   # keeps half a character until the rest
        self.tokens = []
        self.logprobs = []
        self.text = ''
        self.shown = 0                                # characters passed to `show` so far
        self.done = False

    def add(self, token, logprob=None):
        """Append a token; ignored once the sample is done."""
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
        search_from = max(0, len(self.text) - len(self.stop) + 1)
        self.text += piece
        at = self.text.find(self.stop, search_from) if self.stop else -1
        if at >= 0:
            self.text = self.text[:at]
            self.done = True
        held_back = 0 if self.done or not self.stop else len(self.stop) - 1     # these may become part of a stop
        self._show(len(self.text) - held_back)

    def _show(self, end):
        if self.show and end > self.shown:
            self.show(self.text[self.shown:end])
            self.shown = end


def generate(model, ids, completions, sampler, max_new_tokens, n_vocab):
    """Let the model continue ids once for each of `completions`, side by side, until all are done."""
    device = model.transformer.wte.weight.device
    prompt = torch.tensor([ids], device=device).expand(len(completions), -1)    # (num_samples, T)
    for new in islice(model.stream(prompt, sampler, n_vocab), max_new_tokens):  # (num_samples, 1)
        tokens = new[:, 0].tolist()
        logprobs = [None] * len(tokens)
        if sampler.logprobs is not None:
            logprobs = sampler.logprobs[:, 0].tolist()
        for completion, token, logprob in zip(completions, tokens, logprobs):
            completion.add(token, logprob)
        if all(c.done for c in completions):
            break
    for completion in completions:
        completion.close()


def search(cfg, model, ids, completion, tokenizer):
    """Fill a completion with what beam search finds."""
    if len(ids) >= model.config.block_size:
        raise UserError(f'the prompt has {len(ids)} tokens, the context {model.config.block_size}; beam search needs '
                        'room for its completion: expected a shorter prompt, or --beams=0')
    prompts = torch.tensor([ids], device=model.transformer.wte.weight.device)
    found = beam.search(model, prompts, completion.end_id, cfg.max_new_tokens, tokenizer.n_vocab, cfg.beams)
    for token in found[0]:
        completion.add(token)
    completion.close()


def complete(cfg, model, ids, completions, sampler, tokenizer):
    """Let the model continue ids, once for each of `completions`."""
    ids = ids or [tokenizer.start_id]
    if cfg.beams:
        search(cfg, model, ids, completions[0], tokenizer)
    else:
        generate(model, ids, completions, sampler, cfg.max_new_tokens, tokenizer.n_vocab)


def make_sampler(cfg, n):
    """The Sampler for n samples. What sample i draws depends on cfg.seed and i only, not on the other samples."""
    seeds = [parallel.seed_from(cfg.seed, i) for i in range(n)]
    return Sampler(cfg.temperature, cfg.top_k, cfg.top_p, cfg.min_p, cfg.repetition_penalty, seeds, cfg.logprobs)


# ---------------------------------------------------------------------------- what it can do

def read_prompt(cfg, tokenizer):
    """The prompt as text and as ids."""
    if cfg.start.startswith('FILE:'):
        text = read_file(cfg.start.removeprefix('FILE:'), tokenizer)
    else:
        text = unescape(cfg.start)
    try:
        return text, tokenizer.prompt(tokenizer.encode(text))
    except UserError:
        if text == '\n':                              # the default, and the model knows no line ends
            return '', tokenizer.prompt([])
        raise


def read_file(path, tokenizer):
    """
    The text of a file as nanoGPT reads it, with newlines for all kinds of line ends; but a model that knows \\r as a
    character gets it. A byte-order mark that the model does not know is left out.
    """
    text = preparation.read_text(path)
    if '\r' not in getattr(tokenizer, 'ids', ()):
        text = text.replace('\r\n', '\n').replace('\r', '\n')
    if '\ufeff' not in getattr(tokenizer, 'ids', '\ufeff'):
        text = text.removeprefix('\ufeff')
    return text


def write_samples(cfg, model, tokenizer, end_id, prompt, ids):
    """num_samples continuations of the prompt: as text with a line between them, or as JSON."""
    if len(ids) > model.config.block_size and not cfg.beams:
        log(f'the prompt has {len(ids)} tokens, the context {model.config.block_size}: only the last ones are used')
    between = '\n' if tokenizer.separator else ''     # a completion of pairs is a text of its own
    n = 1 if cfg.beams else cfg.num_samples
    live = n == 1 and not cfg.json and not cfg.beams and sys.stdout.isatty()
    completions = [Completion(tokenizer, unescape(cfg.stop), end_id, show if live else None) for _ in range(n)]
    if live:
        show(prompt + between)
    complete(cfg, model, ids, completions, make_sampler(cfg, n), tokenizer)

    for completion in completions:
        if cfg.json:
            record = dict(prompt=prompt, text=completion.text, tokens=completion.tokens)
            if cfg.logprobs:
                record['logprobs'] = completion.logprobs
            print(as_json(record))
        else:
            print('' if live else on_screen(prompt + between + completion.text))
            print('---------------')


def as_json(record):
    """One line of JSON; on a terminal, what could command it is an escape of JSON."""
    line = json.dumps(record, ensure_ascii=False)
    if sys.stdout.isatty():
        line = ''.join(c if c.isprintable() else json.dumps(c)[1:-1].replace('\x7f', '\\u007f') for c in line)
    return line


def interactive(cfg, model, tokenizer, end_id):
    """
    Read a line, continue the text, read the next one. Ctrl-C ends a continuation; Ctrl-D, or Ctrl-C at the prompt, ends
    the session.
    """
    ids = []
    sampler = make_sampler(cfg, 1)
    while True:
        try:
            line = input('\n> ' if sys.stdin.isatty() else '')
        except EOFError:
            return
        try:
            if tokenizer.separator:                   # each line is a prompt of its own
                ids = tokenizer.prompt(tokenizer.encode(unescape(line)))
            else:
                ids = (ids or [*tokenizer.start]) + tokenizer.encode(unescape(line))
        except UserError as e:
            log(f'error: {e}')
            continue

        completion = Completion(tokenizer, unescape(cfg.stop), end_id, show)
        try:
            complete(cfg, model, ids, [completion], sampler, tokenizer)
        except KeyboardInterrupt:
            completion.close()
        except UserError as e:
            log(f'error: {e}')
        show('\n')
        ids = ids + completion.tokens


def read_eval_text(cfg, tokenizer):
    """The ids of the text to evaluate."""
    ids = tokenizer.encode_ordinary(read_file(cfg.eval, tokenizer))
    if len(ids) < 2:
        raise UserError(f'{cfg.eval}: {len(ids)} tokens; expected at least two, to predict one from the other')
    return ids


def evaluate_text(cfg, model, tokenizer, worker, ids):
    """
    How well the model predicts a text, cut into non-overlapping windows of its context length; each window is scored
    without earlier context.
    """
    tokens = data.Tokens.from_ids(ids, tokenizer.n_vocab, model.config.block_size, cfg.eval)
    byte_lengths = torch.from_numpy(tokenizer.byte_lengths())
    loss, bits = evaluation.evaluate(model, tokens, 8, 0, worker, byte_lengths)
    if not math.isfinite(loss):
        raise UserError(f'{cfg.eval}: the loss is {loss}: the model computes NaN or infinity; use another checkpoint')
    perplexity = math.exp(min(loss, 700))
    print(on_screen(f'{cfg.eval}: {len(ids) - 1:,} tokens predicted, loss {loss:.4f}, perplexity {perplexity:.2f}, '
                    f'{bits:.4f} bits per byte'))


def read_eval_pairs(cfg, model, tokenizer):
    """The pairs to evaluate, and the ids of their prompts."""
    found = list(pairs.read([cfg.eval]))
    if not found:
        raise UserError(f'{cfg.eval}: no pairs; expected a line for each, of prompt, tab, completion')
    prompts = []
    for number, (prompt, _) in enumerate(found, start=1):
        try:
            ids = tokenizer.prompt(tokenizer.encode_ordinary(prompt))
        except UserError as e:
            raise UserError(f'{cfg.eval}: pair {number}: {e}') from e
        if len(ids) >= model.config.block_size:
            raise UserError(f'{cfg.eval}: pair {number} has a prompt of {len(ids)} tokens; '
                            f'expected less than the context, block_size={model.config.block_size}')
        prompts.append(ids)
    return found, prompts


def evaluate_pairs(cfg, model, tokenizer, found, prompts):
    """How often the model completes a prompt exactly, and BLEU, by greedy search and by beam search."""
    wanted = [completion for _, completion in found]
    for beams in sorted({1, cfg.beams or 5}):
        how = 'greedy' if beams == 1 else f'{beams} beams'
        progress = partial(tqdm, desc=how, leave=False, disable=None)
        texts = beam.complete(model, prompts, tokenizer, cfg.max_new_tokens, beams, progress)
        print(on_screen(f'{cfg.eval}: {len(wanted):,} pairs, {how}: {evaluation.score_texts(texts, wanted)}'))


def main(cfg):
    # Find everything that can be wrong.
    check(cfg)
    worker = parallel.init(cfg.device, cfg.dtype, cfg.compile)
    if cfg.quantize and worker.device.type != 'cpu':
        raise UserError(f'quantize={cfg.quantize} is for the CPU, the device is {worker.device}; '
                        'use --device=cpu, or --quantize=')
    about, model, tokenizer = pretrained.load_chosen(cfg)
    pairs_file = cfg.eval.lower().removesuffix('.gz').endswith(('.tsv', '.jsonl'))
    if pairs_file and not tokenizer.separator:
        warn(f'{cfg.eval}: evaluated as plain text, because the model was not trained on pairs')
        pairs_file = False
    if pairs_file:
        found, prompts = read_eval_pairs(cfg, model, tokenizer)
    elif cfg.eval:
        ids = read_eval_text(cfg, tokenizer)
    elif not cfg.interactive:
        prompt, ids = read_prompt(cfg, tokenizer)
        needed = len(ids) + cfg.max_new_tokens + 1
        model.crop_block_size(min(model.config.block_size, needed))            # a smaller cache, the same text
    log(about)

    # Make the model fast on its device.
    model = model.to(worker.device).eval()
    inference.prepare(model, worker.dtype, bool(cfg.quantize), worker.compile and not cfg.eval)

    # Generate or evaluate.
    end_id = None if cfg.ignore_end else tokenizer.end_id
    with worker.autocast():
        if pairs_file:
            evaluate_pairs(cfg, model, tokenizer, found, prompts)
        elif cfg.eval:
            evaluate_text(cfg, model, tokenizer, worker, ids)
        elif cfg.interactive:
            interactive(cfg, model, tokenizer, end_id)
        else:
            write_samples(cfg, model, tokenizer, end_id, prompt, ids)


if __name__ == '__main__':
    configurator.launch(main, SampleConfig, lower='--num_samples or --beams')
