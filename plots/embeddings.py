"""
Which tokens are near which: the rows of the embedding matrix, as a table of neighbours and as a map.

    python plot.py embeddings --init_from=FILE.gguf --nearest=king,pizza
    python plot.py embeddings --init_from=FILE.gguf --analogy="king - man + woman"
    python plot.py embeddings --init_from=FILE.gguf --compare="man - woman, father - mother"
    python plot.py embeddings --out_dir=out-quickstart          bytes or characters: all that can be printed

All vectors are first scaled to length 1, and near means a large cosine, as in Mikolov et al. 2013. The map is the plane
in which the vectors shown vary most (PCA, the principal component analysis): what is far apart there is far apart, but
what is close together may differ in directions that the map does not show.
"""

import re
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from gradus import pretrained
from gradus.configurator import check_range
from gradus.errors import UserError, on_screen, show
from gradus.sampling import NOT_FINITE
from plots import figures


@dataclass
class Settings:
    # model
    init_from: str = 'resume'         # resume (from out_dir), gpt2*, owner/model, a folder, or a .gguf file
    out_dir: str = ''                 # folder of the run; empty: the newest one here
    checkpoint: str = ''              # file in it; empty: best.pt if there is one, else ckpt.pt
    dataset: str = ''                 # folder in data/ whose tokenizer to use, if the checkpoint holds none
    # words, each a single token; a space before it is tried first
    nearest: str = ''                 # list the neighbours of these: king,pizza
    analogy: str = ''                 # list what is nearest to a sum: king - man + woman
    compare: str = ''                 # the cosine of two sums: man - woman, father - mother
    top: int = 10                     # neighbours in a list
    out: str = 'embeddings.png'       # the picture: .png, .svg or .pdf


MOST = 100                            # names on the map


class Words:
    """The tokens of a model with their vectors (V, C), each of length 1."""

    def __init__(self, model, tokenizer):
        """Raises UserError if the vectors are no numbers."""
        vectors = model.transformer.wte.weight.detach()[:tokenizer.n_vocab]
        if not vectors.isfinite().all():
            raise UserError(NOT_FINITE)
        self.tokenizer = tokenizer
        self.vectors = F.normalize(vectors.double(), dim=1)                     # (V, C)

    def label(self, i):
        return figures.token_label(self.tokenizer.decode_bytes([i]))

    def id_of(self, word, setting):
        """The id of a word, with a space before it if that is one token. Raises UserError if it is several."""
        pieces = []
        for text in (f' {word}', word):
            try:
                pieces = self.tokenizer.encode(text)
            except UserError:                         # a character that the model does not know, perhaps the space
                if text == word:
                    raise
            if len(pieces) == 1:
                return pieces[0]
        found = ' '.join(self.label(i) for i in pieces[:20]) or 'none'
        raise UserError(f'{setting}={word}: {len(pieces)} tokens, {found}; expected a word that is one token')

    def sum_of(self, text, setting):
        """The ids in a sum such as king - man + woman, and its vector (C,). Raises UserError."""
        parts = re.split(r'\s+([+-])\s+', text.strip())
        if len(parts) < 3 or not all(parts):
            raise UserError(f'{setting}={show(text)}: expected words with + or - between spaces: king - man + woman')
        ids = [self.id_of(word, setting) for word in parts[::2]]
        signs = torch.tensor([1.0] + [1.0 if sign == '+' else -1.0 for sign in parts[1::2]]).double()
        return ids, signs @ self.vectors[ids]

    def nearest(self, vector, n, without=()):
        """The n ids whose vectors have the largest cosine with this one, best first, and the cosines."""
        cosines = self.vectors @ F.normalize(vector, dim=0)                     # (V,)
        cosines[list(without)] = -2
        best = cosines.topk(min(n, len(cosines) - len(set(without))))
        return list(zip(best.indices.tolist(), best.values.tolist()))


# ---------------------------------------------------------------------------- in the terminal

def say(text):
    print(on_screen(text))


def listed(words, found):
    """Neighbours in a line."""
    return ', '.join(f'{words.label(i)} {cosine:.2f}' for i, cosine in found)


def chance(words, n=1000):
    """Mean and standard deviation of the cosine of two random tokens, and of the differences of two random pairs."""
    r = torch.Generator().manual_seed(1)
    a, b, c, d = words.vectors[torch.randint(len(words.vectors), (4, n), generator=r)]   # (n, C) each
    single = F.cosine_similarity(a, b, dim=1)
    pairs = F.cosine_similarity(a - b, c - d, dim=1)
    return [(cosines.mean().item(), cosines.std().item()) for cosines in (single, pairs)]


def show_nearest(cfg, words):
    """Print the neighbours of each word in `nearest`. Returns the ids of the words, and of their neighbours."""
    asked, near = [], []
    for word in filter(None, cfg.nearest.split(',')):
        i = words.id_of(word.strip(), 'nearest')
        found = words.nearest(words.vectors[i], cfg.top, without=[i])
        say(f'nearest to {words.label(i)}:')
        for other, cosine in found:
            say(f'  {cosine:6.3f}  {words.label(other)}')
        asked.append(i)
        near += [other for other, _ in found]
    return asked, near


def show_analogy(cfg, words):
    """Print what is nearest to the sum. Returns the ids of its words, those nearest to it, and its vector."""
    ids, vector = words.sum_of(cfg.analogy, 'analogy')
    say(f'nearest to {cfg.analogy}:')
    say(f'  all tokens:                        {listed(words, words.nearest(vector, cfg.top))}')
    found = words.nearest(vector, cfg.top, without=ids)
    say(f'  without the words of the question: {listed(words, found)}')
    return ids, [i for i, _ in found[:5]], F.normalize(vector, dim=0)


def show_comparison(cfg, words):
    """Print the cosine of the two sums. Returns the ids of their words."""
    sums = cfg.compare.split(',')
    if len(sums) != 2:
        raise UserError(f'compare={show(cfg.compare)}: expected two sums: man - woman, father - mother')
    (ids, a), (others, b) = (words.sum_of(text, 'compare') for text in sums)
    mean, spread = chance(words)[1]
    say(f'cosine of {sums[0].strip()} and {sums[1].strip()}: {F.cosine_similarity(a, b, dim=0):.3f} '
        f'(differences of random tokens: {mean:.2f} ± {spread:.2f})')
    return [*ids, *others]


# ---------------------------------------------------------------------------- the map

def plane(vectors):
    """The two coordinates (n, 2) in which n vectors vary most, and the share of the variance of each."""
    centered = vectors - vectors.mean(dim=0)
    u, s, _ = torch.linalg.svd(centered, full_matrices=False)
    share = s.square() / s.square().sum().clamp_min(1e-30)
    points = torch.zeros(len(vectors), 2, dtype=vectors.dtype)
    points[:, :len(s[:2])] = (u * s)[:, :2]           # one token or one dimension: a line
    return points, [*share[:2].tolist(), 0.0, 0.0][:2]


# Where a name may stand beside its point, in points (1/72 inch), with its alignment.
PLACES = [((5, 0), 'left', 'center'), ((-5, 0), 'right', 'center'), ((0, 5), 'center', 'bottom'),
          ((0, -5), 'center', 'top'), ((5, 9), 'left', 'center'), ((5, -9), 'left', 'center'),
          ((-5, 9), 'right', 'center'), ((-5, -9), 'right', 'center')]


def name_points(figure, axes, points, names):
    """Write a name beside each point, where it overlaps the least with other names and points."""
    figure.draw_without_rendering()                   # so that positions on the canvas are known
    dots = axes.transData.transform(points)
    taken = []
    for point, name in zip(points, names):
        tries = []
        for n, (offset, ha, va) in enumerate(PLACES):
            text = axes.annotate(name, point, offset, textcoords='offset points', ha=ha, va=va, fontsize=8)
            box = text.get_window_extent()
            hits = box.count_overlaps(taken) + sum(box.contains(*dot) for dot in dots)
            outside = not axes.bbox.contains(box.x0, box.y0) or not axes.bbox.contains(box.x1, box.y1)
            tries.append((hits + 0.5 * outside, n, box))
            text.remove()
            if not tries[-1][0]:
                break
        _, n, box = min(tries, key=lambda t: t[:2])
        offset, ha, va = PLACES[n]
        axes.annotate(name, point, offset, textcoords='offset points', ha=ha, va=va, fontsize=8)
        taken.append(box)


def draw(words, shown, asked, extra):
    """The map of the ids `shown`; those `asked` for are filled. extra: more vectors, {name: vector}, as crosses."""
    vectors = torch.cat((words.vectors[shown], *(v[None] for v in extra.values())))
    points, share = plane(vectors)
    points = points.numpy()
    figure = figures.new_figure(7, 6)
    axes = figure.subplots()

    hollow = [n for n, i in enumerate(shown) if i not in asked]
    filled = [n for n, i in enumerate(shown) if i in asked]
    axes.scatter(*points[hollow].T, s=22, facecolors='white', edgecolors='black', zorder=2)
    axes.scatter(*points[filled].T, s=24, color='black', zorder=3)
    axes.scatter(*points[len(shown):].T, s=45, marker='x', color='black', zorder=3)
    axes.set_xlabel(f'first principal component ({share[0]:.0%} of the variance)')
    axes.set_ylabel(f'second principal component ({share[1]:.0%})')
    axes.set_title('input embeddings, scaled to length 1; filled: the words asked for', fontsize=9)
    axes.margins(0.12)
    name_points(figure, axes, points, [figures.drawable(text) for text in (*map(words.label, shown), *extra)])
    return figure


def printable_ids(words):
    """The ids of a model of characters or bytes that can be printed. Raises UserError for other models."""
    if not {'char', 'byte'} & {words.tokenizer.plain()['kind']}:
        raise UserError('expected words: --nearest=king, --analogy="king - man + woman" or '
                        '--compare="man - woman, father - mother"; there are too many tokens for one map')
    ids = []
    for i in range(words.tokenizer.n_vocab):
        text = words.tokenizer.decode_bytes([i]).decode('utf-8', errors='replace')
        if text.isprintable() and text != '\ufffd' and len(ids) < MOST:
            ids.append(i)
    if not ids:
        raise UserError('none of the tokens can be printed; expected words: --nearest=king')
    return ids


def main(cfg):
    figures.check_out(cfg.out)
    check_range(cfg, top=(1, 1000))
    about, model, tokenizer = pretrained.load_chosen(cfg)
    words = Words(model, tokenizer)
    print(about)

    mean, spread = chance(words)[0]
    say(f'{len(words.vectors):,} tokens, {words.vectors.size(1)} numbers each; cosine of two random tokens: '
        f'{mean:.2f} ± {spread:.2f}')
    asked, near = show_nearest(cfg, words)
    extra = {}
    if cfg.analogy:
        ids, found, extra[cfg.analogy] = show_analogy(cfg, words)
        asked += ids
        near += found
    if cfg.compare:
        asked += show_comparison(cfg, words)
    shown = list(dict.fromkeys([*asked, *near] or printable_ids(words)))[:MOST]
    figures.save(draw(words, shown, asked, extra), cfg.out)
