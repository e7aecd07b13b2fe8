/*
 * The model's own thread: the page stays quick while this one computes. Messages in: {id, action, ...}. Messages out:
 * {id, part: ...} while it works, then {id, done: result} or {id, error}.
 */
'use strict';

let models = [];                                      // of several iterations of a run, the last one last
let model = null;
let tokenizer = null;
let wanted = 0;                                       // the id of the task that is to go on
let memory = {key: '', cache: null};                  // keys and values of the text that was read last

/** Lets messages in, so that a generation can be stopped. */
const breathe = () => new Promise((resolve) => setTimeout(resolve, 0));

/** The n most likely ids after `ids`, as [{id, p}], most likely first. */
function mostLikely(logits, n) {
  const probs = new Sampler().distribution(logits);
  const ids = Array.from(probs.keys()).sort((a, b) => probs[b] - probs[a]).slice(0, n);
  return ids.map((id) => ({id, p: probs[id], text: tokenizer.decode([id])}));
}

/** The cache of this model with these parts switched off. */
function cacheFor(off) {
  const key = `${models.indexOf(model)}: ${off}`;
  if (key !== memory.key) memory = {key, cache: makeCache(model.config)};
  return memory.cache;
}

/**
 * Logits for what follows ids, and where their window begins: at a multiple of half the context, so that texts of about
 * the same length share a beginning, which is in the cache.
 */
function read(ids, off, attention = null) {
  const size = model.config.block_size, half = Math.max(1, size >> 1);
  const start = half * Math.max(0, Math.ceil((ids.length - size) / half));
  const window = ids.slice(start);
  const cache = cacheFor(off);
  const logits = model.forward(cache ? cache.unread(window) : window, cache, {attention, off: new Set(off)});
  return {logits, start};
}

const ACTIONS = {
  load({header, buffer}) {
    models = header.models.map(({tensors}) => new GPT({config: header.config, tensors}, buffer));
    model = models[models.length - 1];
    tokenizer = makeTokenizer(header.tokenizer);
  },

  /** Goes on with the model of another iteration. */
  pick({n}) {
    model = models[n];
  },

  /** A text as ids, begun as sample.py begins it, and what each of them adds to the text. */
  encode({text}) {
    let ids = tokenizer.prompt(tokenizer.encode(text));
    if (!ids.length) ids = [tokenizer.startId];
    return {ids, texts: ACTIONS.texts({ids})};
  },

  texts({ids}) {
    const decoder = new StreamDecoder(tokenizer);
    return ids.map((id) => decoder.add(id));
  },

  /** Continues ids by at most `max` tokens; each is sent as it is made. */
  async generate({id, ids, max, sampling, off}) {
    wanted = id;
    const decoder = new StreamDecoder(tokenizer);
    ids.forEach((one) => decoder.add(one));
    const steps = generate(model, ids, new Sampler(sampling), tokenizer.nVocab, new Set(off), cacheFor(off));
    let last = performance.now();
    for (let n = 0; n < max && wanted === id; n++) {
      const token = steps.next().value;
      if (token === tokenizer.endId) break;
      postMessage({id, part: {token, text: decoder.add(token)}});
      if (performance.now() - last > 20) {
        await breathe();
        last = performance.now();
      }
    }
  },

  stop() {
    wanted = 0;
  },

  /** The n tokens that were most likely after ids. */
  likely({ids, n, off}) {
    return mostLikely(read(ids, off).logits.subarray(0, tokenizer.nVocab), n);
  },

  /** Where each head looks from the last of ids: [{layer, head, weights}], weight 0 for token `start`. */
  look({ids, off}) {
    const attention = [];
    const {start} = read(ids, off, attention);
    const rows = attention.map(({layer, head, T, S, weights}) =>
      ({layer, head, weights: Array.from(weights.subarray((T - 1) * S))}));
    return {start, rows};
  },

  /**
   * How much each token of a text surprises the model, in bits (null for the first), and its bits per byte: in windows
   * of its context that do not overlap, as sample.py --eval. Each window is sent as it is done.
   */
  async surprise({id, ids, off}) {
    wanted = id;
    const size = model.config.block_size, V = model.config.vocab_size;
    let sum = 0, bytes = 0;
    for (let start = 0; start < ids.length - 1 && wanted === id; start += size) {
      const window = ids.slice(start, start + size);
      const logits = model.forward(window, null, {all: true, off: new Set(off)});
      const bits = [];
      for (let t = 0; t < window.length && start + t + 1 < ids.length; t++) {
        const row = Float64Array.from(logits.subarray(t * V, (t + 1) * V));
        const next = ids[start + t + 1];
        softmax(row, 0, V);
        bits.push(-Math.log2(row[next]));
        sum += bits[t];
        bytes += tokenizer.bytesOf(next).length;
      }
      postMessage({id, part: {first: start + 1, bits}});
      await breathe();
    }
    return sum / bytes;
  },
};

onmessage = async ({data}) => {
  try {
    postMessage({id: data.id, done: await ACTIONS[data.action](data)});
  } catch (error) {
    postMessage({id: data.id, error: String(error.message || error)});
  }
};
