"""
"The pizza came out of the oven and it tasted good." What does "it" look at, and what does the model take it for?

Sentences of this form with other nouns, each also with its nouns swapped, which tells a head that looks at the thing
from one that looks at the subject. Then the same for other endings, and what the model says the ending is about.
docs/pizza.md explains the tables.
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

    def encode(self, text):
        return self.tokenizer.prompt(self.tokenizer.encode(text))

    def look(self, text, query, keys):
        """The weights from `query` to each of the keys, and to the first token: (keys + 1, L, H)."""
        ids = self.encode(text)
        tokens = [self.tokenizer.decode_bytes([i]) for i in ids]
        row = weights_of(self.model, ids)[:, :, find(tokens, query, 'query')]   # (L, H, T)
        return torch.stack([row[..., find(tokens, key, 'keys')] for key in keys] + [row[..., 0]])

    @torch.no_grad()
    def preference(self, text, thing, place):
        """ln P(thing) - ln P(place) as the next word, in nats."""
        logits, _ = self.model(torch.tensor([self.encode(text)]))               # (1, 1, V)
        ids = [self.tokenizer.encode(f' {word}') for word in (thing, place)]
        if any(len(i) != 1 for i in ids):
            raise UserError(f'{thing}, {place}: expected a model to which each is one token')
        return (logits[0, 0, ids[0][0]] - logits[0, 0, ids[1][0]]).item()


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
    """Which heads look from `it` to the thing, in how many sentences, and which to whatever came first."""
    seen = in_both_orders(reader, ENDINGS[0], 'it')                             # (2, n, 3, L, H)
    difference = seen[:, :, 0] - seen[:, :, 1]                                  # (2, n, L, H): thing - place
    to_thing = (difference > 0).sum(dim=(0, 1))                                 # (L, H) sentences
    to_first = (difference[0] > 0).sum(dim=0) + (difference[1] < 0).sum(dim=0)
    n = 2 * len(NOUNS)
    heads = to_thing.numel()
    print(f'{heads} heads, {n} sentences; on average {seen[:, :, 2].mean():.2f} goes from "it" to the first token')
    for name, count in (('thing', to_thing), ('first noun', to_first)):
        print(f'heads that look more to the {name} in all {n} sentences: {(count == n).sum()}; in {n - 3} or more: '
              f'{(count >= n - 3).sum()}; in 3 or fewer: {(count <= 3).sum()}')

    print_head('head', 'pizza ... oven: to pizza', 'to oven', 'oven ... pizza: to pizza', 'to oven',
               'all nouns: to thing', 'to place', 'swapped: to thing', 'to place', f'more to thing, of {n}',
               f'more to first noun, of {n}')
    columns = torch.stack([*seen[0, 0, :2], *seen[1, 0, :2], *seen[0].mean(dim=0)[:2], *seen[1].mean(dim=0)[:2]])
    chosen = [seen[0, 0, key].flatten().topk(top).indices.tolist() for key in (0, 1)]
    steady = difference.mean(dim=(0, 1)).flatten()
    by_noun = [steady.argmax().item(), steady.argmin().item()]
    for i in dict.fromkeys([*chosen[0], *chosen[1], *by_noun]):
        layer, head = divmod(i, seen.size(-1))
        print_row(f'{layer}.{head}', *(f'{x:.3f}' for x in columns[:, layer, head].tolist()),
                  to_thing[layer, head].item(), to_first[layer, head].item())
    print_row('mean', *(f'{x:.3f}' for x in columns.mean(dim=(1, 2)).tolist()), '', '')
    return divmod(by_noun[0], seen.size(-1))


def show_endings(reader, best):
    """Where the words after `it` look, and what the model says."""
    print_head('ending', 'from', 'to thing, mean of heads', 'to place', 'thing / place',
               f'to thing, head {best[0]}.{best[1]}', 'to place')
    for ending in ENDINGS:
        for query in ('it', ending.split()[-1], '.'):
            seen = in_both_orders(reader, ending, query).mean(dim=(0, 1))       # (3, L, H)
            mean = seen.mean(dim=(1, 2)).tolist()
            one = seen[:, best[0], best[1]].tolist()
            print_row(ending, query, f'{mean[0]:.4f}', f'{mean[1]:.4f}', f'{mean[0] / mean[1]:.2f}', f'{one[0]:.3f}',
                      f'{one[1]:.3f}')

    print_head('ending', 'pizza - oven, nats', 'swapped', 'question alone', 'all nouns', 'swapped', 'question alone',
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
    args = parser.parse_args()
    reader = Reader(args.model)
    best = show_heads(reader, args.top)
    show_endings(reader, best)


if __name__ == '__main__':
    main()
