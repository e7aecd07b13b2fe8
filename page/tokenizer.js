/*
 * Text to token ids and back: gradus/tokenizer.py in plain JavaScript. No DOM.
 *
 *     const tokenizer = makeTokenizer(spec);
 *     tokenizer.encode('Hi') -> [72, 105]        tokenizer.decode([72, 105]) -> 'Hi'
 *
 * spec is what gradus/page.py's spec_for_page writes; three kinds:
 *
 *     {kind: 'byte'}                  256 ids, the bytes of UTF-8
 *     {kind: 'char', chars}           one id for each string of the list
 *     {kind: 'bpe', tokens, special, start, start_id, end_id, pattern, normalizer}
 *                                     byte-pair tokens, those of GPT-2 too; pattern is a JavaScript regular expression
 *
 * Each may have `separator`, the ids that end a prompt, and `end_id`, the id that ends a completion.
 */
'use strict';

const LONE_SURROGATE = /\p{Cs}/gu;                    // half a character, which UTF-8 does not have

function toUtf8(text) {
  return new TextEncoder().encode(text);
}

/** A decoder for UTF-8 that keeps a byte order mark; bytes that are no text become U+FFFD. */
function utf8Decoder() {
  return new TextDecoder('utf-8', {ignoreBOM: true});
}

/** The tokenizer that `spec` describes. Throws an Error in plain words if it is not a description. */
function makeTokenizer(spec) {
  if (spec.kind === 'byte') return new ByteTokenizer(spec);
  if (spec.kind === 'char') return new CharTokenizer(spec);
  if (spec.kind === 'bpe') return new BPETokenizer(spec);
  throw new Error(`tokenizer of kind ${spec.kind}: expected byte, char or bpe`);
}

/** What all kinds have. Ids that are no token stand for no bytes: a model's vocabulary may be padded. */
class Tokenizer {
  constructor(spec) {
    this.start = spec.start || [];                    // ids that precede every prompt
    this.separator = spec.separator || [];            // ids that follow every prompt: only after training on pairs
    this.endId = spec.end_id === undefined ? null : spec.end_id;                // ends a text; null: nothing does
  }

  /** The ids of a prompt with those that precede and follow every prompt. */
  prompt(ids) {
    return [...this.start, ...ids, ...this.separator];
  }

  /** Special tokens are text like any other. */
  encodeOrdinary(text) {
    return this.encode(text);
  }

  decode(ids) {
    const stream = new StreamDecoder(this);
    return Array.from(ids, (id) => stream.add(id)).join('') + stream.close();
  }
}

class ByteTokenizer extends Tokenizer {
  constructor(spec) {
    super(spec);
    this.nVocab = 256;
    this.startId = 10;                                // what an empty prompt starts from: a newline
  }

  encode(text) {
    return Array.from(toUtf8(text.replace(LONE_SURROGATE, '?')));
  }

  bytesOf(id) {
    return id < 256 ? Uint8Array.of(id) : new Uint8Array(0);
  }
}

class CharTokenizer extends Tokenizer {
  constructor(spec) {
    super(spec);
    this.chars = spec.chars;
    this.ids = new Map(this.chars.map((c, id) => [c, id]));
    this.nVocab = this.chars.length;
    this.startId = this.ids.has('\n') ? this.ids.get('\n') : 0;
  }

  /** Throws an Error for a character that the training text does not have. */
  encode(text) {
    return Array.from(text, (c, i) => {
      if (!this.ids.has(c)) {
        throw new Error(`The model does not know the character ${JSON.stringify(c)}, number ${i + 1} of the text. ` +
                        `It knows the ${this.nVocab} characters of its training text.`);
      }
      return this.ids.get(c);
    });
  }

  bytesOf(id) {
    return toUtf8((this.chars[id] || '').replace(LONE_SURROGATE, '?'));
  }
}


// Byte-pair encoding.

/** A printable letter for each byte, as GPT-2's files spell tokens. */
function byteLetters() {
  const letters = [];
  let others = 256;
  for (let b = 0; b < 256; b++) {
    const itself = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
    letters.push(String.fromCharCode(itself ? b : others++));
  }
  return letters;
}

const LETTERS = byteLetters();
const BYTE_OF = new Map(LETTERS.map((letter, b) => [letter, b]));

/**
 * A text is cut into pieces by a pattern; in each piece, the two neighbours that make the token learned first are
 * merged, again and again. A piece is spelled with LETTERS, one a byte, as the tokens are. A token's id is its rank.
 */
class BPETokenizer extends Tokenizer {
  constructor(spec) {
    super(spec);
    this.nVocab = spec.tokens.length;
    this.startId = spec.start_id;
    this.normalizer = spec.normalizer;
    this.pattern = new RegExp(spec.pattern, 'gu');
    this.tokens = spec.tokens;
    this.special = new Map(spec.special.map((id) => [spec.tokens[id], id]));
    this.isSpecial = new Set(spec.special);
    this.ranks = new Map();
    spec.tokens.forEach((token, id) => {
      if (token !== null && !this.isSpecial.has(id)) this.ranks.set(token, id);
    });
    const longestFirst = [...this.special.keys()].sort((a, b) => b.length - a.length);
    const escaped = longestFirst.map((token) => token.replace(/[\\^$.*+?()[\]{}|/]/g, '\\$&'));
    this.findSpecial = escaped.length ? new RegExp(`(${escaped.join('|')})`, 'u') : null;
  }

  /** For prompts: special tokens, such as <|endoftext|>, are found before anything else. */
  encode(text) {
    if (!this.findSpecial) return this.encodeOrdinary(text);
    const ids = [];
    text.split(this.findSpecial).forEach((part, n) => {
      if (n % 2) ids.push(this.special.get(part));
      else for (const id of this.encodeOrdinary(part)) ids.push(id);
    });
    return ids;
  }

  /** Special tokens are text like any other. */
  encodeOrdinary(text) {
    if (this.normalizer) text = text.normalize(this.normalizer);
    const ids = [];
    for (const [piece] of text.replace(LONE_SURROGATE, '\uFFFD').matchAll(this.pattern)) {
      const letters = Array.from(toUtf8(piece), (b) => LETTERS[b]).filter((letter) => this.ranks.has(letter));
      for (const id of this.merge(letters.join(''))) ids.push(id);
    }
    return ids;
  }

  /** The ids of one piece. */
  merge(piece) {
    if (piece === '') return [];
    if (this.ranks.has(piece)) return [this.ranks.get(piece)];

    // Parts are a linked list: the one that starts at i ends before next[i]. ranks[i] is the rank of the part and the
    // next one together, -1 if that is no token. The heap has all such ranks, each with its place, so that the first
    // of equals comes first; and ranks of old, which no longer count.
    const n = piece.length;
    const next = Int32Array.from({length: n + 1}, (_, i) => i + 1);
    const previous = Int32Array.from({length: n + 1}, (_, i) => i - 1);
    const ranks = new Int32Array(n).fill(-1);
    const heap = new Heap();
    const setRank = (i) => {
      const rank = next[i] < n ? this.ranks.get(piece.slice(i, next[next[i]])) : undefined;
      ranks[i] = rank === undefined ? -1 : rank;
      if (rank !== undefined) heap.push(rank * n + i);
    };
    for (let i = 0; i < n; i++) setRank(i);

    while (heap.items.length) {
      const smallest = heap.pop();
      const i = smallest % n;
      if (ranks[i] !== (smallest - i) / n) continue;  // old: one of the two parts has been merged since
      ranks[next[i]] = -1;
      next[i] = next[next[i]];
      previous[next[i]] = i;
      setRank(i);
      if (i > 0) setRank(previous[i]);
    }

    const ids = [];
    for (let i = 0; i < n; i = next[i]) ids.push(this.ranks.get(piece.slice(i, next[i])));
    return ids;
  }

  bytesOf(id) {
    const token = this.tokens[id];
    if (token === undefined || token === null) return new Uint8Array(0);
    return this.isSpecial.has(id) ? toUtf8(token) : Uint8Array.from(token, (letter) => BYTE_OF.get(letter));
  }
}


/** Numbers, of which the smallest can be taken. Number i is at most as large as numbers 2 i + 1 and 2 i + 2. */
class Heap {
  constructor() {
    this.items = [];
  }

  push(x) {
    const {items} = this;
    let i = items.length;
    for (let up = (i - 1) >> 1; i > 0 && items[up] > x; up = (i - 1) >> 1) {
      items[i] = items[up];
      i = up;
    }
    items[i] = x;
  }

  /** Takes the smallest number out. */
  pop() {
    const {items} = this;
    const smallest = items[0], x = items.pop(), n = items.length;
    if (n === 0) return smallest;
    let i = 0;
    for (let down = 1; down < n; down = 2 * i + 1) {
      if (down + 1 < n && items[down + 1] < items[down]) down++;
      if (items[down] >= x) break;
      items[i] = items[down];
      i = down;
    }
    items[i] = x;
    return smallest;
  }
}


/** Ids to text, one at a time: a character whose bytes are spread over several tokens appears with the last of them. */
class StreamDecoder {
  constructor(tokenizer) {
    this.tokenizer = tokenizer;
    this.decoder = utf8Decoder();
  }

  /** The text that this id completes, perhaps none. */
  add(id) {
    return this.decoder.decode(this.tokenizer.bytesOf(id), {stream: true});
  }

  /** U+FFFD if the last character is incomplete, else nothing. */
  close() {
    return this.decoder.decode();
  }
}


if (typeof module !== 'undefined') module.exports = {makeTokenizer, StreamDecoder};
