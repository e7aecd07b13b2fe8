/*
 * The model's own thread: the page stays quick while this one computes. Messages in: {id, action, ...}. Messages out:
 * {id, token} for each token as it is made, then {id, done: result} or {id, error}.
 */
'use strict';

let models = [];                                      // of several iterations of a run, the last one last
let model = null;
let tokenizer = null;
let wanted = 0;                                       // the id of the generation that is to go on

/** Lets messages in, so that a generation can be stopped. */
const breathe = () => new Promise((resolve) => setTimeout(resolve, 0));

/** The n most likely ids after `ids`, as [{id, p}], most likely first. */
function mostLikely(logits, n) {
  const probs = new Sampler().distribution(logits);
  const ids = Array.from(probs.keys()).sort((a, b) => probs[b] - probs[a]).slice(0, n);
  return ids.map((id) => ({id, p: probs[id], text: tokenizer.decode([id])}));
}

const ACTIONS = {
  load({header, buffer}) {
    models = header.models.map(({tensors}) => new GPT({config: header.config, tensors}, buffer));
    model = models[models.length - 1];
    tokenizer = makeTokenizer(header.tokenizer);
    return {vocabulary: tokenizer.nVocab};
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
    const steps = generate(model, ids, new Sampler(sampling), tokenizer.nVocab, new Set(off));
    let last = performance.now();
    for (let n = 0; n < max && wanted === id; n++) {
      const token = steps.next().value;
      if (token === tokenizer.endId) break;
      postMessage({id, token, text: decoder.add(token)});
      if (performance.now() - last > 20) {
        await breathe();
        last = performance.now();
      }
    }
  },

  stop() {
    wanted = 0;
  },

  /** What may come after ids, and where each head looks from the last of them. */
  look({ids, n, off}) {
    const attention = [];
    const window = ids.slice(-model.config.block_size);
    const logits = model.forward(window, null, {attention, off: new Set(off)});
    const rows = attention.map(({layer, head, T, S, weights}) =>
      ({layer, head, weights: Array.from(weights.subarray((T - 1) * S))}));
    return {likely: mostLikely(logits.subarray(0, tokenizer.nVocab), n), rows, first: ids.length - window.length};
  },

  /**
   * How much each token of a text surprises the model, in bits (null for the first), and its bits per byte: in windows
   * of its context that do not overlap, as sample.py --eval.
   */
  surprise({ids, off}) {
    const size = model.config.block_size, V = model.config.vocab_size;
    const bits = [null];
    let bytes = 0;
    for (let start = 0; start < ids.length - 1; start += size) {
      const window = ids.slice(start, start + size);
      const logits = model.forward(window, null, {all: true, off: new Set(off)});
      for (let t = 0; t < window.length && start + t + 1 < ids.length; t++) {
        const row = Float64Array.from(logits.subarray(t * V, (t + 1) * V));
        const next = ids[start + t + 1];
        softmax(row, 0, V);
        bits.push(-Math.log2(row[next]));
        bytes += tokenizer.bytesOf(next).length;
      }
    }
    return {bits, perByte: bits.reduce((a, b) => a + b, 0) / bytes};
  },
};

onmessage = async ({data}) => {
  try {
    postMessage({id: data.id, done: await ACTIONS[data.action](data)});
  } catch (error) {
    postMessage({id: data.id, error: String(error.message || error)});
  }
};
