"""
Who looks at whom: the attention weights of a model for one text, as pictures.

    python plot.py attention --out_dir=out-quickstart --start="def add(a, b): return a + b"       every head; one large
    python plot.py attention --init_from=FILE.gguf --start="The pizza came out of the oven and it tasted good." \
        --query=it --keys=pizza,oven                          which heads look from "it" to the pizza, which to the oven
    ... --against="The pizza came out of the oven and it was hot."                and does another sentence change that?

Layers and heads are numbered from 0. Row t of a map says where token t takes its information from; it sums to 1. Many
heads look at the first token when they find nothing (the attention sink, Xiao et al. 2023). So the scale of colors
leaves it out: darkest is the largest weight on any other token.
"""

import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from gradus import pretrained
from gradus.configurator import check_range
from gradus.errors import UserError, on_screen, show
from gradus.sampling import NOT_FINITE
from model import attention_weights, rotate
from plots import figures


@dataclass
class Settings:
    # model
    init_from: str = 'resume'         # resume (from out_dir), gpt2*, owner/model, a folder, or a .gguf file
    out_dir: str = ''                 # folder of the run; empty: the newest one here
    checkpoint: str = ''              # file in it; empty: best.pt if there is one, else ckpt.pt
    dataset: str = ''                 # folder in data/ whose tokenizer to use, if the checkpoint holds none
    # text
    start: str = ''                   # the text to look at; \n is a newline
    query: str = ''                   # who looks: a token of the text; it#2 is its second occurrence
    keys: str = ''                    # whom it may look at: pizza,oven
    against: str = ''                 # a second text with the same query and keys, to compare with
    # picture
    layer: int | None = None          # of the head to draw large, from 0; None: choose
    head: int | None = None           # its number in the layer, from 0; None: choose
    top: int = 5                      # heads to list for each key
    out: str = 'attention.png'        # the picture: .png, .svg or .pdf


MOST_WEIGHTS = 2 ** 28                # of all heads together: they take a gigabyte
LABELS = 40                           # tokens named at the axis of a large map
DOTS = 250                            # rows and columns of a large map, at most
SMALL_DOTS = 40                       # and of a small one


# ---------------------------------------------------------------------------- the weights

@torch.no_grad()
def attention(model, ids):
    """
    For each layer, the attention weights (H, T, T) of a text and the values (G, T, D) that they are weights of. Call
    eval() first. The model only keeps the mean of the values, so its inputs are caught and the weights computed again.
    """
    caught = []
    hooks = [block.attn.register_forward_pre_hook(lambda _, args: caught.append(args)) for block in model.transformer.h]
    try:
        model(torch.tensor([ids]))
    finally:
        for hook in hooks:
            hook.remove()
    return [of_layer(block.attn, x, angles) for block, (x, angles, *_) in zip(model.transformer.h, caught)]


def of_layer(attn, x, angles):
    """The weights and values of one layer, by the same steps as CausalSelfAttention.forward in model.py."""
    c = attn.config
    heads = attn.c_attn(x).view(1, x.size(1), -1, c.head_width).transpose(1, 2)  # (1, H + 2G, T, D)
    q, k, v = heads.split((c.n_head, c.kv_heads, c.kv_heads), dim=1)
    if c.qk_norm:
        q = attn.q_norm(q)
        k = attn.k_norm(k)
    if angles is not None:
        q = rotate(q, *angles)
        k = rotate(k, *angles)
    return attention_weights(q, k, c.score, c.mask)[0], v[0]                    # (H, T, T), (G, T, D)


def weights_of(model, ids):
    """The attention weights of all heads (L, H, T, T). Raises UserError if they are no numbers."""
    weights = torch.stack([layer for layer, _ in attention(model, ids)])
    if not weights.isfinite().all():
        raise UserError(NOT_FINITE)
    return weights


# ---------------------------------------------------------------------------- the text and its words

def encode(model, tokenizer, text, setting):
    """The ids of a text, as sample.py would begin with them. Raises UserError if it is empty or too long."""
    ids = tokenizer.prompt(tokenizer.encode(text.replace('\\n', '\n')))
    c = model.config
    limit = min(c.block_size, math.isqrt(MOST_WEIGHTS // (c.n_layer * c.n_head)))
    if not text or not ids:
        raise UserError(f'{setting}={show(text)}: expected a text, such as --{setting}="The pizza tasted good."')
    if len(ids) > limit:
        why = 'the context of the model' if limit == c.block_size else 'whose weights fit into a gigabyte'
        raise UserError(f'{setting}: {len(ids)} tokens; expected at most {limit}, {why}')
    return ids


def find(tokens, word, setting):
    """
    Where `word` is among the tokens, which are bytes; a space before it does not matter. it#2 is the second `it`.
    Raises UserError if it is no token there, several, or if it occurs several times.
    """
    name, _, number = word.rpartition('#')
    if not (name and number.isdecimal() and len(number) < 7 and int(number) > 0):
        name, number = word, ''
    wanted = name.strip().encode('utf-8', 'replace') or name.encode()
    places = [i for i, token in enumerate(tokens) if wanted and wanted in (token, token.strip())]
    if number and int(number) <= len(places):
        return places[int(number) - 1]
    if len(places) == 1 and not number:
        return places[0]

    if places:
        examples = ', '.join(f'{name}#{n + 1}' for n in range(min(3, len(places))))
        raise UserError(f'{setting}={word}: {name} occurs {len(places)} times; expected {examples}')
    spelled = several(tokens, wanted)
    if spelled:
        raise UserError(f'{setting}={word}: {len(spelled)} tokens here, {listed(spelled)}; expected one of them')
    raise UserError(f'{setting}={show(word)}: not in the text; expected one of its tokens: {listed(tokens)}')


def several(tokens, wanted):
    """The neighbouring tokens that spell `wanted` together, if there are such."""
    for i in range(len(tokens)):
        for j in range(i + 2, min(i + 40, len(tokens)) + 1):
            if wanted and b''.join(tokens[i:j]).strip() == wanted:
                return tokens[i:j]
    return []


def listed(tokens):
    some = ' '.join(figures.token_label(token) for token in tokens[:30])
    return some if len(tokens) <= 30 else f'{some} ...'


@dataclass
class Looked:
    """One text, and what was found in it."""
    tokens: list                      # the bytes of each token
    weights: torch.Tensor             # (L, H, T, T)
    query: int | None = None          # the position of the query
    keys: tuple = ()                  # the positions of the keys

    @property
    def labels(self):
        return [figures.token_label(token) for token in self.tokens]

    def to(self, key):
        """How much each head takes from position `key` for the query: (L, H)."""
        return self.weights[:, :, self.query, key]


def look(cfg, model, tokenizer, text, setting):
    """The text as a `Looked`. Raises UserError."""
    ids = encode(model, tokenizer, text, setting)
    tokens = [tokenizer.decode_bytes([i]) for i in ids]
    if not cfg.query:
        return Looked(tokens, weights_of(model, ids))

    query = find(tokens, cfg.query, 'query')
    keys = tuple(find(tokens, word, 'keys') for word in cfg.keys.split(','))
    for word, key in zip(cfg.keys.split(','), keys):
        hidden = {'causal': key > query, 'other_half': key < query, 'none': False}[model.config.mask]
        if hidden:
            side = 'after' if key > query else 'before'
            raise UserError(f'keys={word}: it comes {side} {cfg.query}, which this model does not let it see; '
                            'expected a token on the other side')
    return Looked(tokens, weights_of(model, ids), query, keys)


# ---------------------------------------------------------------------------- in the terminal

def table(cfg, looked, other=None):
    """The heads that look most from the query to each key, as lines of text; with another text, its figures too."""
    texts = [looked] if other is None else [looked, other]
    names = [looked.labels[key] for key in looked.keys]
    yield (f'From {looked.labels[looked.query]}, token {looked.query}: attention weights of {looked.to(0).numel()} '
           f'heads. On average {looked.to(0).mean():.2f} goes to the first token.')
    columns = [*names, '(first)']
    if other is not None:
        columns += [f'{name}, 2nd' for name in columns] + [f'{name}, diff' for name in names]
    figures_of = [text.to(key) for text in texts for key in (*text.keys, 0)]
    if other is not None:
        figures_of += [other.to(b) - looked.to(a) for a, b in zip(looked.keys, other.keys)]
    figures_of = torch.stack(figures_of)                                        # (columns, L, H)
    widths = [max(8, len(name)) + 2 for name in columns]

    yield ' ' * 17 + ''.join(name.rjust(width) for name, width in zip(columns, widths))
    yield 'mean of heads    ' + row(figures_of.mean(dim=(1, 2)), widths)
    for name, key in zip(names, looked.keys):
        yield f'most to {name}:'
        for n in looked.to(key).flatten().topk(min(cfg.top, looked.to(key).numel())).indices.tolist():
            layer, head = divmod(n, looked.weights.size(1))
            yield f'layer {layer:2}, head {head:2}' + row(figures_of[:, layer, head], widths)


def row(numbers, widths):
    return ''.join(f'{number:{width}.3f}' for number, width in zip(numbers.tolist(), widths))


# ---------------------------------------------------------------------------- pictures

def choose(cfg, looked):
    """
    The (layer, head) to draw large: what the settings say, else the head that looks most from the query to one of the
    keys, or, without a query, most at tokens that are neither the first, nor the token itself, nor its neighbour.
    """
    weights = looked.weights
    if looked.query is None:
        T = weights.size(-1)
        distance = (torch.arange(T)[:, None] - torch.arange(T)).abs()
        far = (distance > 1) & (torch.arange(T) > 0)                            # (T, T)
        score = (weights * far).sum(dim=(2, 3))                                 # (L, H)
    else:
        score = torch.stack([looked.to(key) for key in looked.keys]).amax(dim=0)
    allowed = torch.ones_like(score, dtype=torch.bool)
    if cfg.layer is not None:
        allowed[[i for i in range(len(score)) if i != cfg.layer]] = False
    if cfg.head is not None:
        allowed[:, [i for i in range(score.size(1)) if i != cfg.head]] = False
    return divmod(score.masked_fill(~allowed, -1).argmax().item(), score.size(1))


def darkest(weights):
    """The weight that is drawn darkest: the largest on any token but the first."""
    others = weights[..., 1:]
    return max(others.max().item(), 1e-3) if others.numel() else 1.0


def pooled(weights, n):
    """Maps (..., T, T) as images of n rows and columns at most: each dot shows the largest of the weights behind it."""
    return F.adaptive_max_pool2d(weights, min(n, weights.size(-1)))


def draw_map(axes, looked, layer, head, **bar):
    """
    One head large: a row for each token that looks, a column for each token that it looks at. bar: the size and place
    of the bar of colors.
    """
    weights = looked.weights[layer, head]
    T = len(weights)
    image = axes.imshow(pooled(weights[None], DOTS)[0].numpy(), cmap='Blues', vmin=0, vmax=darkest(weights),
                        extent=(-0.5, T - 0.5, T - 0.5, -0.5))
    places = range(0, T, math.ceil(T / LABELS))
    labels = [figures.drawable(looked.labels[i]) for i in places]
    size = 9 if T <= 20 else 7
    axes.set_xticks(places, labels, rotation=90 if max(map(len, labels)) > 2 else 0, fontsize=size)
    axes.set_yticks(places, labels, fontsize=size)
    axes.grid(False)
    axes.set_xlabel('is looked at (key)')
    axes.set_ylabel('looks (query)')
    axes.set_title(f'layer {layer}, head {head}')
    if looked.query is not None:
        axes.axhspan(looked.query - 0.5, looked.query + 0.5, fill=False, edgecolor='black', linewidth=1.2)
    colors = axes.figure.colorbar(image, ax=axes, label='attention weight', extend='max', **bar)
    colors.ax.grid(False)


def tiled(weights):
    """All heads as one image: layers down, heads across, with white lines between them, and the size of a tile."""
    L, H, T, _ = weights.shape
    n = min(T, SMALL_DOTS)
    small = pooled(weights.flatten(0, 1), n)                                    # (L H, n, n)
    edge = max(1, n // 20)
    small = F.pad(small, (0, edge, 0, edge), value=math.nan).view(L, H, n + edge, n + edge)
    return small.transpose(1, 2).reshape(L * (n + edge), H * (n + edge)), n + edge


def draw_all(axes, looked, chosen):
    """Every head as a small map; a frame around the chosen one."""
    L, H = looked.weights.shape[:2]
    image, step = tiled(looked.weights)
    axes.imshow(image.numpy(), cmap='Blues', vmin=0, vmax=darkest(looked.weights))
    axes.set_facecolor('#dddddd')                     # shows between the maps, and in gray too
    axes.set_xticks([(h + 0.45) * step for h in range(H)], range(H), fontsize=7)
    axes.set_yticks([(layer + 0.45) * step for layer in range(L)], range(L), fontsize=7)
    axes.tick_params(length=0)
    axes.grid(False)
    axes.set_xlabel('head')
    axes.set_ylabel('layer')
    axes.set_title('all heads')
    from matplotlib.patches import Rectangle
    corner = (chosen[1] * step - 1, chosen[0] * step - 1)
    axes.add_patch(Rectangle(corner, step, step, fill=False, edgecolor='black', linewidth=1.2))


def picture_of_all(looked, chosen):
    """All heads on the left, the chosen one on the right."""
    L, H = looked.weights.shape[:2]
    tile = min(1.5, max(0.3, 5 / max(L, H)))
    width, height = max(2.0, tile * H), max(2.0, tile * L)
    figure = figures.new_figure(width + 7, max(height, 5) + 0.7)
    figure.get_layout_engine().set(h_pad=0.15)
    left, right = figure.subplots(1, 2, width_ratios=[width, 4.9])
    draw_all(left, looked, chosen)
    left.set_anchor('N')
    draw_map(right, looked, *chosen, shrink=3 / figure.get_figheight(), anchor=(0.0, 0.8))
    right.set_anchor('N')
    return figure


def picture_of_query(texts, chosen):
    """A row for each text: how much each head takes from each key for the query, and the chosen head."""
    L, H = texts[0].weights.shape[:2]
    n_keys = len(texts[0].keys)
    width, height = max(1.4, 0.2 * H), max(4.5, 0.19 * L)
    figure = figures.new_figure(n_keys * (width + 0.6) + 6.8, len(texts) * (height + 1.2))
    grid = figure.subplots(len(texts), n_keys + 1, squeeze=False, width_ratios=[width] * n_keys + [5])
    figure.get_layout_engine().set(w_pad=0.1)
    top = max(text.to(key).max().item() for text in texts for key in text.keys)
    for axes_row, text in zip(grid, texts):
        for axes, key in zip(axes_row, text.keys):
            image = axes.imshow(text.to(key).numpy(), cmap='Blues', vmin=0, vmax=max(top, 1e-3), aspect='auto')
            for color, width in (('black', 3), ('white', 1)):                   # seen on light and on dark
                axes.plot(chosen[1], chosen[0], 's', markersize=9, fillstyle='none', color=color, markeredgewidth=width)
            axes.set_title(figures.drawable(f'{text.labels[text.query]} → {text.labels[key]}'))
            axes.set_xticks(range(0, H, math.ceil(H / 16)))
            axes.set_yticks(range(0, L, math.ceil(L / 40)))
            axes.grid(False)
            axes.set_xlabel('head')
        axes_row[0].set_ylabel('layer')
        figure.colorbar(image, ax=list(axes_row[:-1]), label='attention weight', shrink=0.6).ax.grid(False)
        draw_map(axes_row[-1], text, *chosen, shrink=0.5)
    return figure


# ---------------------------------------------------------------------------- the command

def check(cfg, model):
    """Raise UserError for settings that make no sense."""
    check_range(cfg, top=(1, None), layer=(0, model.config.n_layer - 1), head=(0, model.config.n_head - 1))
    if bool(cfg.query) != bool(cfg.keys) or cfg.against and not cfg.query:
        raise UserError(f'query={show(cfg.query)}, keys={show(cfg.keys)}: expected both, such as '
                        '--query=it --keys=pizza,oven; --against needs them')


def main(cfg):
    figures.check_out(cfg.out)
    about, model, tokenizer = pretrained.load_chosen(cfg)
    model.eval()
    check(cfg, model)
    texts = [look(cfg, model, tokenizer, cfg.start, 'start')]
    if cfg.against:
        texts.append(look(cfg, model, tokenizer, cfg.against, 'against'))

    print(about)
    chosen = choose(cfg, texts[0])
    if cfg.query:
        print(on_screen('\n'.join(table(cfg, *texts))))
        figure = picture_of_query(texts, chosen)
    else:
        print(f'large: layer {chosen[0]}, head {chosen[1]}')
        figure = picture_of_all(texts[0], chosen)
    figures.save(figure, cfg.out)
