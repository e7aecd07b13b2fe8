/*
 * Text to numbers and back: gradus/tokenizer.py in plain JavaScript. No DOM.
 *
 *     encode('Hi') -> [72, 105]        decode([72, 105]) -> 'Hi'
 *
 * Kinds: byte, char, and bpe, which stands for GPT-2's tokens and those of files, too. gradus/page.py writes them as
 * plain data.
 */
'use strict';

const UTF8 = new TextEncoder();

class Tokenizer {
  constructor(spec) {
    this.spec = spec;
    this.start = spec.start || [];
    this.separator = spec.separator || [];
    this.endId = spec.end_id ?? null;
    this.startId = spec.start_id;
    this.nVocab = spec.n_vocab;
  }

  /** The ids of a prompt with those that precede and follow every prompt. */
  prompt(ids) {
    return [...this.start, ...ids, ...this.separator];
  }

  decode(ids) {
    const parts = Array.from(ids, (id) => this.bytesOf(id));
    const bytes = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
    let at = 0;
    for (const part of parts) {
      bytes.set(part, at);
      at += part.length;
    }
    return new TextDecoder().decode(bytes);
  }
}

class ByteTokenizer extends Tokenizer {
  encode(text) {
    return Array.from(UTF8.encode(text));
  }

  bytesOf(id) {
    return Uint8Array.of(id);
  }
}

class CharTokenizer extends Tokenizer {
  constructor(spec) {
    super(spec);
    this.chars = Array.from(spec.chars);
    this.ids = new Map(this.chars.map((char, id) => [char, id]));
  }

  encode(text) {
    return Array.from(text, (char) => {
      if (!this.ids.has(char)) throw new Error(`the model has never seen the character ${JSON.stringify(char)}`);
      return this.ids.get(char);
    });
  }

  bytesOf(id) {
    return UTF8.encode(this.chars[id]);
  }
}

/** Bytes as a string of one character each, which can be the key of a Map. */
const latin1 = (bytes) => Array.from(bytes, (b) => String.fromCharCode(b)).join('');

/**
 * Byte-pair encoding: a text is cut into pieces by a pattern; in each piece, the two neighbours that make the token
 * learned first are merged, again and again. Sennrich et al. 2016, on bytes as in GPT-2.
 */
class BPETokenizer extends Tokenizer {
  constructor(spec) {
    super(spec);
    this.keys = spec.tokens.map((token) => atob(token));                        // the bytes of each id, as latin1
    const special = new Set(spec.special);
    this.ranks = new Map();
    this.special = new Map();
    this.keys.forEach((key, id) => {
      if (special.has(id)) this.special.set(new TextDecoder().decode(this.bytesOf(id)), id);
      else if (key) this.ranks.set(key, id);
    });
    this.pattern = new RegExp(spec.pattern, 'gu');
    const longestFirst = Array.from(this.special.keys()).sort((a, b) => b.length - a.length);
    const escaped = longestFirst.map((text) => text.replace(/[.*+?^${}()|[\]\\]/g, '\\$&'));
    this.findSpecial = escaped.length ? new RegExp(`(${escaped.join('|')})`) : null;
    this.known = new Map();                                                     // pieces met before
  }

  bytesOf(id) {
    return Uint8Array.from(this.keys[id], (char) => char.charCodeAt(0));
  }

  encode(text) {
    if (!this.findSpecial) return this.encodeOrdinary(text);
    return text.split(this.findSpecial).flatMap(
      (piece, n) => n % 2 ? [this.special.get(piece)] : this.encodeOrdinary(piece));
  }

  encodeOrdinary(text) {
    if (this.spec.normalizer) text = text.normalize(this.spec.normalizer);
    const ids = [];
    for (const [piece] of text.matchAll(this.pattern)) ids.push(...this.merge(piece));
    return ids;
  }

  /** The ids of one piece of text. */
  merge(piece) {
    if (this.known.has(piece)) return this.known.get(piece);
    const missing = (b) => !this.ranks.has(String.fromCharCode(b));
    const parts = Array.from(latin1(UTF8.encode(piece).filter((b) => !missing(b))));
    while (parts.length > 1) {
      let best = Infinity, at = -1;
      for (let i = 0; i + 1 < parts.length; i++) {
        const rank = this.ranks.get(parts[i] + parts[i + 1]);
        if (rank < best) {
          best = rank;
          at = i;
        }
      }
      if (at < 0) break;
      parts.splice(at, 2, parts[at] + parts[at + 1]);
    }
    const ids = parts.map((part) => this.ranks.get(part));
    if (this.known.size < 50000) this.known.set(piece, ids);
    return ids;
  }
}

function makeTokenizer(spec) {
  const kinds = {byte: ByteTokenizer, char: CharTokenizer, bpe: BPETokenizer};
  return new kinds[spec.kind](spec);
}

/** Ids to text, one at a time: half a character is held back until the other half comes. */
class StreamDecoder {
  constructor(tokenizer) {
    this.tokenizer = tokenizer;
    this.decoder = new TextDecoder();
  }

  add(id) {
    return this.decoder.decode(this.tokenizer.bytesOf(id), {stream: true});
  }

  close() {
    return this.decoder.decode();
  }
}


if (typeof module !== 'undefined') module.exports = {makeTokenizer, StreamDecoder};
