"""
Token files: read them, cut batches out of them. preparation.py writes them, metadata.py reads meta.json.

    data/<name>/train.bin, val.bin    raw little-endian uint16 ids (uint32 if meta.json says so), nothing else
    data/<name>/meta.json             tokenizer, vocabulary size, dtype, token counts, source and its sha256
    data/<name>/train.pairs.bin, ...  only for pairs of prompt and completion: where they are, see `Pairs`

A split may also be many files, as llm.c and modded-nanogpt write them; see shards.py.
nanoGPT's folders (with meta.pkl, or without any meta file for GPT-2 tokens) are read as they are.
Which tokens step i trains on depends on (seed, i) alone; see `Tokens.batch_starts`.
"""

import os
from dataclasses import dataclass

import numpy as np
import torch

from gradus.errors import RankError, UserError, one_line, warn
from gradus.files import require_file
from gradus.metadata import fingerprint
from gradus.preparation import FILES
from gradus.shards import Shards, file_names, missing_split
from gradus.tokenizer import build_tokenizer

ORDERS = ('random', 'shuffled')


def _missing(path):
    """What to do about a token file that is not there."""
    folder = os.path.dirname(path)
    split = os.path.basename(path).removesuffix('.bin')
    if problem := missing_split(folder, split):
        return problem
    script = os.path.join(folder, 'prepare.py')
    command = f'python {script}'
    if not os.path.exists(script):
        command = f'python data/prepare.py --name={os.path.basename(folder)} FILE...'
    if any(os.path.lexists(os.path.join(folder, name)) for name in FILES):
        return f'{path}: not found, so the dataset is incomplete; prepare it again: {command}'
    return f'{path}: not found; prepare the dataset first: {command}'


def _check_count(n, path, block_size, expected):
    """Raise UserError unless there are enough tokens for one window, and as many as `expected` if that is known."""
    if expected is not None and n != expected:
        raise UserError(f'{path}: {n:,} tokens, meta.json says {expected:,}; it was not prepared completely, '
                        'or changed: prepare it again')
    if n < block_size + 1:
        raise UserError(f'{path}: {n:,} tokens; expected at least '
                        f'block_size + 1 = {block_size + 1:,}; use more text or a smaller --block_size')


class Tokens:
    """One .bin file, or shards, memory-mapped, so that a dataset larger than memory is no problem."""

    def __init__(self, path, dtype, vocab_size, block_size, expected=None):
        """
        Raises UserError if the file is missing, damaged, too short for one window of block_size + 1 ids, or not of the
        `expected` number of tokens.
        """
        if not os.path.lexists(path):
            raise UserError(_missing(path))
        require_file(path)
        size = os.path.getsize(path)
        n = size // dtype.itemsize
        if size % dtype.itemsize:
            raise UserError(f'{path}: {size:,} bytes; expected a multiple of {dtype.itemsize} ({dtype.name}); '
                            'prepare it again')
        _check_count(n, path, block_size, expected)
        try:
            ids = np.memmap(path, dtype=dtype, mode='r')
        except (OSError, ValueError) as e:
            raise UserError(f'{path}: cannot be read ({getattr(e, "strerror", None) or one_line(e)})') from e
        self._init(ids, vocab_size, block_size, path)
        self._check(self.ids[:2 ** 26])               # enough to notice a mix-up at once; windows() checks the rest

    @classmethod
    def from_shards(cls, paths, dtype, vocab_size, block_size, expected=None):
        """The same for the files `paths`, one after the other; a window may cross from one into the next."""
        ids = Shards(paths, dtype)
        _check_count(len(ids), ids, block_size, expected)
        tokens = cls.__new__(cls)
        tokens._init(ids, vocab_size, block_size, str(ids))
        beginning = np.arange(min(ids.counts[0], 2 ** 20))
        tokens._check(ids[beginning], beginning)      # of the first file alone: opening does not map the others
        return tokens

    @classmethod
    def from_ids(cls, ids, vocab_size, block_size, path='text'):
        """The same for a list of ids of any length that is not in a file; errors call it `path`."""
        tokens = cls.__new__(cls)
        tokens._init(np.asarray(ids), vocab_size, block_size, path)
        return tokens

    def _init(self, ids, vocab_size, block_size, path):
        self.ids = ids
        self.vocab_size = vocab_size
        self.block_size = block_size
        self.path = path
        self.epoch_key = None                         # (seed, epoch) of the shuffled epoch in use, and its starts
        self.epoch_starts = None

    def __len__(self):
        return len(self.ids)

    def _check(self, ids, positions=None):
        """Are all ids in the vocabulary? positions: where each of them lies, to name the right shard."""
        if ids.max() >= self.vocab_size:
            path = self.path
            if isinstance(self.ids, Shards):
                path = self.ids.path_of(positions.flat[ids.argmax()])
            raise RankError(f'{path}: token id {ids.max()}; expected ids below the vocabulary size '
                            f'{self.vocab_size}; prepare the dataset and its meta file together')

    @property
    def row_tokens(self):
        """Tokens that a row of a batch trains on."""
        return self.block_size

    def windows(self, starts):
        """
        Inputs and targets (n, T) int64, one window for each of the n starts: y is x one token later.
        Beyond the end of the file x is 0 and y is -1, which the loss ignores.
        """
        at = np.asarray(starts, dtype=np.int64)[:, None] + np.arange(self.block_size + 1)   # (n, T + 1)
        return self.cut(at, at >= len(self.ids))

    def cut(self, at, past_end):
        """`windows` of the tokens at the positions `at` (n, T + 1); those in `past_end` are padding."""
        at = np.minimum(at, len(self.ids) - 1)
        block = self.ids[at]
        self._check(block, at)
        x = torch.from_numpy(block[:, :-1].astype(np.int64, order='C'))         # (n, T)
        y = torch.from_numpy(block[:, 1:].astype(np.int64, order='C'))          # (n, T), not in the memory of x
        if past_end.any():
            x[torch.from_numpy(past_end[:, :-1])] = 0
            y[torch.from_numpy(past_end[:, 1:])] = -1
        return x, y

    def batch_starts(self, seed, step, n, order='random'):
        """
        Where the n windows of step `step` begin: random, but a function of (seed, step) alone, so that a resumed run,
        or one on more processes, sees what the first run saw.

        random: anywhere in the text, independently each time, as in nanoGPT.  shuffled: each epoch cuts the text into
        non-overlapping windows, from a random first token on, and visits each window once, in random order.
        """
        if order == 'shuffled':
            per_epoch = (len(self.ids) - self.block_size) // self.block_size or 1
            starts = []
            for i in range(step * n, step * n + n):
                epoch, position = divmod(i, per_epoch)
                starts.append(self._epoch(seed, epoch, per_epoch)[position])
            return np.array(starts)
        # Philox counts its own draws in the lowest of the four counter words. The step belongs in a higher
        # one: in the lowest, step i + 1 would repeat most of step i's numbers.
        random = np.random.Generator(np.random.Philox(key=seed, counter=[0, step, 0, 0]))
        return random.integers(0, len(self.ids) - self.block_size, size=n)

    def _epoch(self, seed, epoch, n):
        """The n shuffled starts of epoch `epoch`; the last epoch asked for is cached."""
        if self.epoch_key != (seed, epoch):
            random = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 1, epoch]))
            first = random.integers(0, len(self.ids) - n * self.block_size)
            self.epoch_key = seed, epoch
            self.epoch_starts = first + random.permutation(n) * self.block_size
        return self.epoch_starts

    def eval_starts(self, n):
        """
        Windows to measure a loss on, the same at every call: n of the non-overlapping windows, evenly spread over
        the file; all of them (the last may be shorter) if n is 0 or more than there are.
        """
        total = -(-(len(self.ids) - 1) // self.block_size)
        n = min(n, total) or total
        return (np.arange(n) * total // n) * self.block_size


class Pairs:
    """
    Pairs of a prompt and its completion, such as a sentence and its translation. The interface is that of `Tokens`: a
    window is an example, and a start is its number.

    Each example is a row of its own, so that none sees another: rows are padded to the longest of a batch, and batches
    are made of examples of similar length, so that little is padding. Only completions are targets.
    """

    POOL = 64                                         # batches whose examples are sorted by length together

    def __init__(self, tokens, path, block_size, expected=None):
        """
        tokens: those of all examples, one after the other. path: a file with two little-endian int64 for each example:
        where its completion begins, and where it ends. expected: how many examples. Raises UserError.
        """
        require_file(path)
        size = os.path.getsize(path)
        if size % 16 or not size or expected not in (None, size // 16):
            raise UserError(f'{path}: {size:,} bytes; expected 16 for each of '
                            f"{f'{expected:,}' if expected else 'one or more'} examples; prepare it again")
        try:
            index = np.fromfile(path, dtype='<i8')
        except OSError as e:
            raise UserError(f'{path}: cannot be read ({e.strerror})') from e
        self.completions, self.ends = index.reshape(-1, 2).T                    # (n,) each
        self.begins = np.concatenate(([0], self.ends[:-1]))
        ordered = (self.begins < self.completions) & (self.completions < self.ends)
        if not ordered.all() or self.ends[-1] != len(tokens):
            raise UserError(f'{path}: does not fit the tokens beside it; prepare the dataset again')
        lengths = self.ends - self.begins - 1         # of a row: the last token is only a target
        if lengths.max() > block_size:
            long = np.flatnonzero(lengths > block_size)
            raise UserError(f'{path}: {len(long):,} of {len(lengths):,} pairs are longer than the context '
                            f'block_size={block_size}: the first is number {long[0] + 1:,} with {lengths[long[0]]:,} '
                            f'tokens; expected --block_size={lengths.max()} or more, or shorter pairs')
        self.tokens = tokens
        self.lengths = lengths
        self.block_size = block_size
        self.epoch_key = None                         # (seed, epoch, n) of the shuffled epoch in use, and its batches
        self.epoch_batches = None

    def __len__(self):
        return len(self.tokens)

    @property
    def row_tokens(self):
        """Tokens that a row of a batch trains on: the mean."""
        return len(self.tokens) / len(self.ends)

    def windows(self, examples):
        """
        Inputs and targets (n, T) int64 of n examples; T is the length of the longest. y is -1 for prompts and padding.
        A number beyond the last example gives a row of padding.
        """
        i = np.minimum(examples, len(self.ends) - 1)
        ends = np.where(i == examples, self.ends[i], self.begins[i])
        at = self.begins[i][:, None] + np.arange(self.lengths[i].max() + 1)     # (n, T + 1)
        x, y = self.tokens.cut(at, at >= ends[:, None])
        y[torch.from_numpy(at[:, 1:] < self.completions[i][:, None])] = -1
        return x, y

    def prompt(self, example):
        """The ids of a prompt, with the separator after it."""
        return self.tokens.ids[self.begins[example]:self.completions[example]].tolist()

    def batch_starts(self, seed, step, n, order='random'):
        """
        The n examples of step `step`, in the order of their lengths: a function of (seed, step) alone.

        random: any examples, independently each time.  shuffled: each example once per epoch, in batches of similar
        length; the rest that fills no batch is left out, different examples in each epoch.
        """
        if order == 'shuffled':
            epoch, position = divmod(step, max(len(self.ends) // n, 1))
            return self._epoch(seed, epoch, n)[position]
        random = np.random.Generator(np.random.Philox(key=seed, counter=[0, step, 0, 0]))
        return self._sorted(random.integers(0, len(self.ends), size=n))

    def _epoch(self, seed, epoch, n):
        """The batches of epoch `epoch`, n examples each; the last epoch asked for is cached."""
        if self.epoch_key != (seed, epoch, n):
            random = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 1, epoch]))
            examples = random.permutation(len(self.ends))
            examples = np.resize(examples, max(len(examples) // n, 1) * n)      # repeated if there are fewer than n
            pools = np.split(examples, range(self.POOL * n, len(examples), self.POOL * n))
            batches = np.concatenate([self._sorted(pool).reshape(-1, n) for pool in pools])
            self.epoch_key = seed, epoch, n
            self.epoch_batches = random.permutation(batches)
        return self.epoch_batches

    def _sorted(self, examples):
        return examples[np.argsort(self.lengths[examples], kind='stable')]

    def eval_starts(self, n):
        """Examples to measure a loss on, the same at every call: n, evenly spread; all of them if n is 0."""
        total = len(self.ends)
        n = min(n, total) or total
        return self._sorted(np.arange(n) * total // n)


@dataclass
class Dataset:
    """A folder of data/, opened for a model."""
    train: Tokens | Pairs
    val: Tokens | Pairs
    tokenizer: object                     # None if GPT-2's files are missing, or meta.pkl does not describe one
    tokenizer_spec: dict | None           # the same as plain data; None if meta.pkl does not describe one
    byte_lengths: torch.Tensor | None     # (V,): how many bytes each id stands for; 0 for ids that pad the vocabulary
    fingerprint: str = ''                 # changes when the folder holds another dataset

    def sample_start(self):
        """The ids that a sample starts from: for pairs, a held-out prompt."""
        return self.val.prompt(0) if isinstance(self.val, Pairs) else [self.tokenizer.start_id]

    def sample_text(self, ids):
        """The text of a sample: what follows its start, or, for pairs, prompt and completion."""
        if not isinstance(self.val, Pairs):
            return self.tokenizer.decode(ids[1:])
        n = len(self.sample_start())
        prompt, completion = ids[:n - len(self.tokenizer.separator)], ids[n:]
        if self.tokenizer.end_id in completion:
            completion = completion[:completion.index(self.tokenizer.end_id)]
        return self.tokenizer.decode(prompt) + '\n' + self.tokenizer.decode(completion)


def open_dataset(folder, meta, vocab_size, block_size):
    """
    The `Dataset` in `folder`, which `read_meta` described as `meta`, for a model of that vocabulary and context.
    Raises UserError if its files do not fit.
    """
    train = _open_split(folder, 'train', meta, vocab_size, block_size)
    val = _open_split(folder, 'val', meta, vocab_size, block_size)
    spec = meta['tokenizer']
    mark = fingerprint(folder)
    if spec is None:
        warn(meta['no_tokenizer'])
        return Dataset(train, val, None, None, None, mark)
    try:
        tokenizer = build_tokenizer(spec)
    except UserError as e:
        if spec.get('kind') != 'gpt2':
            raise
        warn(f'{e}; training without it: no bits per byte, no samples')
        return Dataset(train, val, None, spec, None, mark)
    if tokenizer.n_vocab > vocab_size:
        raise UserError(f'{folder}: a tokenizer of {tokenizer.n_vocab} tokens for a model of {vocab_size}; '
                        'expected the dataset that the model was trained on, or --init_from=scratch')
    lengths = torch.from_numpy(tokenizer.byte_lengths())
    if tokenizer.end_id is not None:                  # the end of a text is no text
        lengths[tokenizer.end_id] = 0
    byte_lengths = torch.nn.functional.pad(lengths, (0, vocab_size - len(lengths)))
    return Dataset(train, val, tokenizer, spec, byte_lengths, mark)


def _open_split(folder, split, meta, vocab_size, block_size):
    """The tokens of train or val: a file of that name, or shards; or pairs, if meta.json counts them."""
    plain = os.path.join(folder, f'{split}.bin')
    expected = meta.get(f'{split}_tokens')
    n_pairs = meta.get(f'{split}_pairs')
    if n_pairs is not None:                           # a pair may be shorter than the context
        tokens = Tokens(plain, meta['dtype'], vocab_size, 1, expected)
        return Pairs(tokens, os.path.join(folder, f'{split}.pairs.bin'), block_size, n_pairs)

    paths = [os.path.join(folder, name) for name in file_names(folder, split)]
    if paths == [plain]:
        return Tokens(plain, meta['dtype'], vocab_size, block_size, expected)
    return Tokens.from_shards(paths, meta['dtype'], vocab_size, block_size, expected)
