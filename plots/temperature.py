"""
The next token: how likely each is after a text, at several temperatures, and what top_k and top_p keep of it.

    python plot.py temperature --out_dir=out-quickstart --start="def "
    python plot.py temperature --init_from=FILE.gguf --start="To be, or not to" --top_k=3 --top_p=0.5

Every panel shows the same tokens, the most likely ones at temperature 1, in the same order.
"""

from dataclasses import dataclass

import torch

from gradus import pretrained
from gradus.configurator import check_range
from gradus.errors import UserError, show
from gradus.sampling import Sampler, in_double
from plots import figures


@dataclass
class Settings:
    # model
    init_from: str = 'resume'         # resume (from out_dir), gpt2*, owner/model, a folder, or a .gguf file
    out_dir: str = ''                 # folder of the run; empty: the newest one here
    checkpoint: str = ''              # file in it; empty: best.pt if there is one, else ckpt.pt
    dataset: str = ''                 # folder in data/ whose tokenizer to use, if the checkpoint holds none
    # text
    start: str = ''                   # the text to continue; \n is a newline
    # sampling
    top_k: int = 5                    # keep this many of the most likely tokens
    top_p: float = 0.8                # keep the fewest most likely tokens that together reach this probability
    # picture
    bars: int = 15                    # tokens to show
    out: str = 'temperature.png'      # the picture: .png, .svg or .pdf


TEMPERATURES = (0, 0.5, 1, 2)


def next_logits(model, tokenizer, text):
    """The logits (1, V) of the token after a text. Raises UserError for a text that is empty or too long."""
    ids = tokenizer.prompt(tokenizer.encode(text))
    if not text or not ids:
        raise UserError(f'start={show(text)}: expected a text, such as --start="To be, or not to"')
    if len(ids) > model.config.block_size:
        raise UserError(f'start: {len(ids)} tokens; expected at most {model.config.block_size}, the context of the '
                        'model')
    with torch.no_grad():
        logits, _ = model(torch.tensor([ids]))                                  # (1, 1, V)
    return in_double(logits[:, -1, :tokenizer.n_vocab])


def distributions(cfg, logits):
    """What each panel shows: {title: probabilities (V,)}, which sum to 1."""
    samplers = {f'temperature {t:g}': Sampler(temperature=t) for t in TEMPERATURES}
    samplers[f'temperature 1, top_k = {cfg.top_k}'] = Sampler(top_k=cfg.top_k)
    samplers[f'temperature 1, top_p = {cfg.top_p:g}'] = Sampler(top_p=cfg.top_p)
    found = {}
    for title, sampler in samplers.items():
        probs = sampler.distribution(logits)[0]                                 # (V,)
        found[title] = probs / probs.sum()
    return found


def draw(found, ids, labels):
    """A panel of bars for each distribution; hollow bars are what the model says at temperature 1."""
    figure = figures.new_figure(10, 0.4 + 2 * (0.7 + 0.2 * len(ids)))
    panels = figure.subplots(2, 3, sharex=True, sharey=True)
    plain = found['temperature 1'][ids].numpy()
    rows = range(len(ids))
    for axes, (title, probs) in zip(panels.flat, found.items()):
        shown = probs[ids].numpy()
        axes.barh(rows, shown, color=figures.COLORS[0])
        axes.barh(rows, plain, facecolor='none', edgecolor='black', linewidth=0.6)
        for at, p in zip(rows, shown):
            axes.text(max(p, plain[at]) + 0.01, at, in_words(p), va='center', fontsize=7)
        axes.set_title(f'{title}\n{(probs > 0).sum():,} possible; those shown: {shown.sum():.1%}', fontsize=9)
        axes.set_yticks(rows, labels)
        axes.grid(axis='y', visible=False)
    panels[0, 0].invert_yaxis()
    highest = max(float(probs[ids].max()) for probs in found.values())
    panels[0, 0].set_xlim(0, 1.18 * highest)
    for axes in panels[1]:
        axes.set_xlabel('probability of being next')
    return figure


def in_words(p):
    """A probability, short; nothing for one that is cut off."""
    if p == 0:
        return ''
    return f'{p:.3f}' if p >= 0.0005 else f'{p:.0e}'


def main(cfg):
    figures.check_out(cfg.out)
    check_range(cfg, top_k=(1, None), top_p=(0, 1), bars=(1, 100))
    about, model, tokenizer = pretrained.load_chosen(cfg)
    text = cfg.start.replace('\\n', '\n')             # a shell passes \n as two characters
    logits = next_logits(model.eval(), tokenizer, text)
    print(about)

    found = distributions(cfg, logits)
    ids = found['temperature 1'].topk(min(cfg.bars, logits.size(1))).indices
    labels = [figures.drawable(figures.token_label(tokenizer.decode_bytes([i]))) for i in ids.tolist()]
    figure = draw(found, ids, labels)
    figure.suptitle(figures.drawable(figures.token_label(text.encode('utf-8', 'replace'), limit=90)), fontsize=10)
    figures.save(figure, cfg.out)
