"""
How a GPT knows where a token is: the vector that is added to each position, as one row of an image.

    python plot.py positions                                  sine and cosine, as in the first Transformer
    python plot.py positions --out_dir=out-what-if-base       what a model with learned positions has found

Rows that look alike are positions that the model can hardly tell apart. The second image compares all pairs of rows:
the cosine of the angle between them. Sine and cosine, and often learned vectors too, make near positions similar.
"""

from dataclasses import dataclass

from gradus import checkpoint, configurator, pretrained
from gradus.errors import UserError, one_line
from model import sinusoidal
from plots import figures


@dataclass
class Settings:
    # model
    init_from: str = ''               # a model with learned positions: gpt2*, owner/model, a folder, or a .gguf file
    out_dir: str = ''                 # or the folder of a run; both empty: sine and cosine
    # without a model
    n: int = 64                       # positions
    n_embd: int = 64                  # width of a vector
    # output
    out: str = 'positions.png'        # picture to write: .png, .svg or .pdf


MOST = 4096                           # positions in a picture: every pair of them is compared


def table_of(cfg):
    """The vectors (T, C) to draw, at most MOST of them, and what they are."""
    if not cfg.init_from and not cfg.out_dir:
        return sinusoidal(cfg.n, cfg.n_embd), 'sine and cosine'
    if cfg.init_from:
        found = pretrained.load(cfg.init_from)
    else:
        found = pretrained.load_checkpoint(checkpoint.find(cfg.out_dir))
    source = cfg.init_from or cfg.out_dir
    n = min(found.config.block_size, MOST)
    first = f'the first {n:,}, ' if n < found.config.block_size else ''
    if found.config.pos == 'sinusoidal':
        return sinusoidal(n, found.config.n_embd), f'{first}sine and cosine, of {source}'
    if found.config.pos != 'learned':
        raise UserError(f'{source}: pos={found.config.pos}, which adds no vector to a position; '
                        'expected a model with pos=learned or pos=sinusoidal')
    return found.weights['transformer.wpe.weight'][:n].float(), f'{first}learned by {source}'


def main(cfg):
    figures.check_out(cfg.out)
    configurator.check_range(cfg, n=(2, MOST), n_embd=(2, 4096))
    table, about = table_of(cfg)                                                # (T, C)
    direction = table / table.norm(dim=1, keepdim=True).clamp_min(1e-9)
    cosines = direction @ direction.T                                           # (T, T)

    figure = figures.new_figure(9, 4)
    left, right = figure.subplots(1, 2)
    limit = float(table.abs().quantile(0.99)) if table.numel() < 2 ** 24 else float(table.abs().max())
    shown = left.imshow(table.numpy(), cmap='Greys', vmin=-limit, vmax=limit, aspect='auto')
    figure.colorbar(shown, ax=left, label='value')
    figure.suptitle('positions: ' + figures.drawable(one_line(about, limit=80)))
    left.set(title='the vector of each position', xlabel='component i of the vector', ylabel='position in the text')
    shown = right.imshow(cosines.numpy(), cmap='Greys', vmin=-1, vmax=1)
    figure.colorbar(shown, ax=right, label='cosine of the angle')
    right.set(title='how similar two positions are', xlabel='position', ylabel='position')
    for axes in (left, right):
        axes.grid(False)
    figures.save(figure, cfg.out)
