"""
"The pizza came out of the oven and it tasted good." What does "it" look at, and what does the model take it for?

Sentences of this form with other nouns, each also with its nouns swapped, which tells a head that looks at the thing
from one that looks at the subject. Then the same for other endings, and what the model says the ending is about: as it
is, and without the head that looks most at the thing. docs/pizza.md explains the tables.
"""

import argparse

import torch

from gradus import pretrained
from gradus.errors import UserError
from plots.attention import find, weights_of

# A thing, and where it comes from. In the first pair, the one of the question.
NOUNS = [('pizza', 'oven'), ('soup', 'pot'), ('tea', 'kettle'), ('chicken', 'grill'), ('juice', 'bottle'),
         ('milk', 'fridge'), ('fish', 'pan'), ('rice', 'bowl'), ('wine', 'barrel'), ('coffee', 'cup'),
         ('cake', 'tin'), ('egg', 'basket'), ('cheese', 'box'), ('meat', 'freezer'), ('honey', 'jar')]
ENDINGS = ('tasted good', 'was hot', 'was empty')     # of the thing, of either, of the place
SENTENCE = 'The {} came out of the {} and it {}.'
QUESTION = ' The thing that {} was the'


class Reader:
    """A model and its tokenizer, asked about sentences."""

    def __init__(self, path):
        found = pretrained.load(path)
        self.tokenizer = pretrained.tokenizer_for(found)
        self.model = pretrained.build(found).eval()
        self.weights = {}                             # by text: several words of each are asked about

    def encode(self, text):
        return self.tokenizer.prompt(self.tokenizer.encode(text))

    def look(self, text, query, keys):
        """The weights from `query` to each of the keys, and to the first token: (keys + 1, L, H)."""
        ids = self.encode(text)
        tokens = [self.tokenizer.decode_bytes([i]) for i in ids]
        if text not in self.weights:
            self.weights[text] = weights_of(self.model, ids)                    # (L, H, T, T)
        row = self.weights[text][:, :, find(tokens, query, 'query')]            # (L, H, T)
        return torch.stack([row[..., find(tokens, key, 'keys')] for key in keys] + [row[..., 0]])

    @torch.no_grad()
    def preference(self, text, thing, place):
        """ln P(thing) - ln P(place) as the next word, in nats."""
        logits, _ = self.model(torch.tensor([self.encode(text)]))               # (1, 1, V)
        ids = [self.tokenizer.encode(f' {word}') for word in (thing, place)]
        if any(len(i) != 1 for i in ids):
            raise UserError(f'{thing}, {place}: expected a model to which each is one token')
        return (logits[0, 0, ids[0][0]] - logits[0, 0, ids[1][0]]).item()

    def head(self, name):
        """'4.1' as (4, 1). Raises UserError if the model has no such head."""
        c = self.model.config
        heads = {f'{layer}.{head}': (layer, head) for layer in range(c.n_layer) for head in range(c.n_head)}
        if name not in heads:
            raise UserError(f'--off {name}: expected a layer and a head, 0.0 to {c.n_layer - 1}.{c.n_head - 1}')
        return heads[name]

    @torch.no_grad()
    def switch_off(self, layer, head):
        """From now on, nothing that this head finds reaches the model."""
        width = self.model.config.head_width
        self.model.transformer.h[layer].attn.c_proj.weight[:, head * width:(head + 1) * width] = 0
        self.weights.clear()


def print_row(*cells):
    print(f"| {' | '.join(str(cell) for cell in cells)} |")


def print_head(*cells):
    print()
    print_row(*cells)
    print('|' + '---|' * len(cells))


def in_both_orders(reader, ending, query):
    """Weights from `query` to thing, place and first token, over all nouns, in both orders: (2, n, 3, L, H)."""
    return torch.stack([
        torch.stack([reader.look(SENTENCE.format(*(nouns if order == 0 else nouns[::-1]), ending), query, nouns)
                     for nouns in NOUNS])
        for order in (0, 1)])


def show_heads(reader, top):
    """
    Which heads look from `it` to the thing, in how many sentences, and which to whatever came first. `and`, the word
    before, shows what is not about `it`. Returns the head that looks most to the thing, all sentences together.
    """
    seen = in_both_orders(reader, ENDINGS[0], 'it')                             # (2, n, 3, L, H)
    word_before = in_both_orders(reader, ENDINGS[0], 'and')
    difference = seen[:, :, 0] - seen[:, :, 1]                                  # (2, n, L, H): thing - place
    to_thing = (difference > 0).sum(dim=(0, 1))                                 # (L, H) sentences
    to_first = (difference[0] > 0).sum(dim=0) + (difference[1] < 0).sum(dim=0)
    n = 2 * len(NOUNS)
    heads = to_thing.numel()
    print(f'{heads} heads, {n} sentences; on average {seen[:, :, 2].mean():.2f} goes from "it" to the first token')
    for name, count in (('thing', to_thing), ('first noun', to_first)):
        print(f'heads that look more to the {name} in all {n} sentences: {(count == n).sum()}; in {n - 3} or more: '
              f'{(count >= n - 3).sum()}; in 3 or fewer: {(count <= 3).sum()}')

    print_head('head', 'to pizza', 'to oven', 'swapped: to pizza', 'to oven', 'from "and": to pizza', 'to oven',
               f'more to thing, of {n}', f'more to first noun, of {n}')
    columns = torch.stack([*seen[0, 0, :2], *seen[1, 0, :2], *word_before[0, 0, :2]])       # (6, L, H)
    to_each = [seen[0, 0, key].flatten().topk(top).indices.tolist() for key in (0, 1)]
    best = difference.mean(dim=(0, 1)).argmax().item()
    for i in dict.fromkeys([*to_each[0], *to_each[1], best, to_thing.argmax().item()]):
        layer, head = divmod(i, seen.size(-1))
        print_row(f'{layer}.{head}', *(f'{x:.3f}' for x in columns[:, layer, head].tolist()),
                  to_thing[layer, head].item(), to_first[layer, head].item())
    print_row('mean', *(f'{x:.3f}' for x in columns.mean(dim=(1, 2)).tolist()), '', '')
    return divmod(best, seen.size(-1))


def show_endings(reader, best):
    """Where the words after `it` look."""
    print_head('ending', 'from', 'to thing, mean of heads', 'to place', 'thing / place',
               f'to thing, head {best[0]}.{best[1]}', 'to place')
    for ending in ENDINGS:
        before = ('and', 'it') if ending == ENDINGS[0] else ()                  # the same for every ending
        for query in (*before, ending.split()[-1], '.'):
            seen = in_both_orders(reader, ending, query).mean(dim=(0, 1))       # (3, L, H)
            mean = seen.mean(dim=(1, 2)).tolist()
            one = seen[:, best[0], best[1]].tolist()
            print_row(ending, query, f'{mean[0]:.4f}', f'{mean[1]:.4f}', f'{mean[0] / mean[1]:.2f}', f'{one[0]:.3f}',
                      f'{one[1]:.3f}')


def show_answers(reader, model):
    """What the model says that the ending was about; model: a word on it."""
    print_head(model, 'pizza - oven, nats', 'swapped', 'question alone', 'all nouns', 'swapped', 'question alone',
               f'thing wins, of {len(NOUNS)}', 'swapped')
    for ending in ENDINGS:
        question = QUESTION.format(ending)
        rows = []
        for nouns in NOUNS:
            texts = (SENTENCE.format(*nouns, ending) + question, SENTENCE.format(*nouns[::-1], ending) + question,
                     question.strip())
            rows.append([reader.preference(text, *nouns) for text in texts])
        rows = torch.tensor(rows)                                               # (n, 3)
        wins = (rows > 0).sum(dim=0).tolist()
        print_row(ending, *(f'{x:.2f}' for x in (*rows[0].tolist(), *rows.mean(dim=0).tolist())), *wins[:2])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', default='HuggingFaceTB/SmolLM2-135M-Instruct',
                        help='a .gguf file, a folder, or owner/model (default: %(default)s)')
    parser.add_argument('--top', type=int, default=4, help='heads to list for each noun (default: %(default)s)')
    parser.add_argument('--off', metavar='LAYER.HEAD', help='switch this head off instead, such as 4.1')
    args = parser.parse_args()
    reader = Reader(args.model)
    off = reader.head(args.off) if args.off else None

    best = show_heads(reader, args.top)
    show_endings(reader, best)
    show_answers(reader, 'whole model')
    off = off or best
    reader.switch_off(*off)
    show_answers(reader, f'without head {off[0]}.{off[1]}')


if __name__ == '__main__':
    main()
