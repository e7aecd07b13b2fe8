/*
 * A GPT in plain JavaScript: model.py's forward pass with a KV cache, and the choice of the next token. No DOM.
 *
 *     token ids (T)  ->  vectors (T, C)  ->  n_layer blocks  ->  logits (V)
 *
 * Shape letters at the right margin are model.py's: T new tokens, S tokens so far, C width, H query heads, G key/value
 * heads, D width of a head, F hidden width, V vocabulary. A matrix is one flat array, row after row.
 */
'use strict';


// Weights.

/** Bits of a float16 to a number. */
function halfToNumber(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

/**
 * The tensor that `entry` describes: {dtype: 'f32' | 'f16' | 'int8', shape, offset, scales}, offsets in bytes.
 * int8: `scales` is the offset of one float32 for each row. Returns {rows, cols, data, scales}.
 */
function readTensor(entry, buffer) {
  const cols = entry.shape[entry.shape.length - 1];
  const size = entry.shape.reduce((a, b) => a * b, 1);
  const tensor = {rows: size / cols, cols, data: null, scales: null};
  if (entry.dtype === 'f32') {
    tensor.data = new Float32Array(buffer, entry.offset, size);
  } else if (entry.dtype === 'f16') {
    tensor.data = Float32Array.from(new Uint16Array(buffer, entry.offset, size), halfToNumber);
  } else if (entry.dtype === 'int8') {
    tensor.data = new Int8Array(buffer, entry.offset, size);
    tensor.scales = new Float32Array(buffer, entry.scales, tensor.rows);
  } else {
    throw new Error(`dtype ${entry.dtype}: expected f32, f16 or int8`);
  }
  return tensor;
}

/** Row `row` of a matrix into out, from position `at`. */
function copyRow(matrix, row, out, at) {
  const {data, scales, cols} = matrix;
  const scale = scales ? scales[row] : 1;
  for (let i = 0; i < cols; i++) out[at + i] = data[row * cols + i] * scale;
}


// Products. Eight sums at a time, because each addition waits for the one before it.

function dot(a, i, b, j, n) {
  let s0 = 0, s1 = 0, s2 = 0, s3 = 0, s4 = 0, s5 = 0, s6 = 0, s7 = 0;
  const end = i + (n & ~7);
  for (; i < end; i += 8, j += 8) {
    s0 += a[i] * b[j];
    s1 += a[i + 1] * b[j + 1];
    s2 += a[i + 2] * b[j + 2];
    s3 += a[i + 3] * b[j + 3];
    s4 += a[i + 4] * b[j + 4];
    s5 += a[i + 5] * b[j + 5];
    s6 += a[i + 6] * b[j + 6];
    s7 += a[i + 7] * b[j + 7];
  }
  let sum = s0 + s1 + s2 + s3 + s4 + s5 + s6 + s7;
  for (const rest = end + (n & 7); i < rest; i++, j++) sum += a[i] * b[j];
  return sum;
}

const TO_EVEN = 1.5 * 2 ** 52;                        // adding it rounds a double to an integer, halves to even

/** Rows of x (T, n) as integers from -127 to 127 and a scale each, as gradus/inference.py's Int8Linear. */
function quantizeRows(x, T, n) {
  const data = new Int8Array(T * n);
  const scales = new Float32Array(T);
  for (let t = 0; t < T; t++) {
    let most = 1e-30;
    for (let i = t * n; i < (t + 1) * n; i++) most = Math.max(most, Math.abs(x[i]));
    scales[t] = most / 127;
    for (let i = t * n; i < (t + 1) * n; i++) data[i] = Math.fround(x[i] / scales[t]) + TO_EVEN - TO_EVEN;
  }
  return {data, scales};
}

/** x W^T + b: x (T, in), W (out, in), b (out) or undefined. Returns (T, out). */
function linear(x, T, weight, bias) {
  const {rows, cols, data} = weight;
  const y = new Float32Array(T * rows);
  const q = weight.scales ? quantizeRows(x, T, cols) : null;
  for (let row = 0; row < rows; row++) {              // each row of W is read once, for all tokens
    const b = bias ? bias.data[row] : 0;
    for (let t = 0; t < T; t++) {
      const value = q
        ? Math.fround(dot(q.data, t * cols, data, row * cols, cols) * Math.fround(q.scales[t] * weight.scales[row]))
        : dot(x, t * cols, data, row * cols, cols);
      y[t * rows + row] = value + b;
    }
  }
  return y;
}


// Norms and nonlinearities.

/** Normalizes each row (n numbers) of x in place. kind: layernorm, rmsnorm or none. */
function normalize(x, n, kind, eps, weight, bias) {
  if (kind === 'none') return x;
  for (let start = 0; start < x.length; start += n) {
    let mean = 0, variance = 0;
    if (kind === 'layernorm') {
      for (let i = 0; i < n; i++) mean += x[start + i] / n;
    }
    for (let i = 0; i < n; i++) variance += (x[start + i] - mean) ** 2 / n;
    const scale = 1 / Math.sqrt(variance + eps);
    for (let i = 0; i < n; i++) {
      x[start + i] = (x[start + i] - mean) * scale * weight.data[i] + (bias ? bias.data[i] : 0);
    }
  }
  return x;
}

/** 1 - erf(z), relative error below 1.2e-7: Numerical Recipes, erfcc. */
function erfc(z) {
  const t = 1 / (1 + Math.abs(z) / 2);
  const poly = -1.26551223 + t * (1.00002368 + t * (0.37409196 + t * (0.09678418 + t * (-0.18628806
    + t * (0.27886807 + t * (-1.13520398 + t * (1.48851587 + t * (-0.82215223 + t * 0.17087277))))))));
  const value = t * Math.exp(-z * z + poly);
  return z >= 0 ? value : 2 - value;
}

const ACTIVATIONS = {
  gelu: (x) => x / 2 * erfc(-x / Math.SQRT2),
  gelu_tanh: (x) => x / 2 * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3))),
  relu: (x) => Math.max(x, 0),
  swiglu: (x) => x / (1 + Math.exp(-x)),
  sigmoid: (x) => 1 / (1 + Math.exp(-x)),
};

/** Rotates the pairs (x[i], x[i + D/2]) of a head by its position's angle. */
function rotate(x, at, D, position, theta) {
  for (let i = 0; i < D / 2; i++) {
    const angle = position * theta ** (-2 * i / D);
    const cos = Math.cos(angle), sin = Math.sin(angle);
    const a = x[at + i], b = x[at + i + D / 2];
    x[at + i] = a * cos - b * sin;
    x[at + i + D / 2] = a * sin + b * cos;
  }
}


// The model.

/** The fields of GPTConfig, with the derived ones of model.py: D, H, G, eps. */
function complete(config) {
  return {
    ...config,
    D: config.head_dim || config.n_embd / config.n_head,
    H: config.n_head,
    G: config.n_kv_head || config.n_head,
    eps: config.norm_eps || (config.norm === 'layernorm' ? 1e-5 : 1e-6),
  };
}

/** Keys and values (S, G D) of each layer, for the S tokens `ids`. */
class KVCache {
  constructor(config) {
    const {G, D, n_layer} = complete(config);
    this.ids = [];
    this.room = 0;                                    // tokens that the arrays have room for
    this.width = G * D;
    this.layers = Array.from({length: n_layer}, () => ({keys: new Float32Array(0), values: new Float32Array(0)}));
  }

  /** Makes room for n tokens. */
  reserve(n) {
    if (n <= this.room) return;
    this.room = Math.max(n, 2 * this.room);
    for (const layer of this.layers) {
      for (const name of ['keys', 'values']) {
        const larger = new Float32Array(this.room * this.width);
        larger.set(layer[name]);
        layer[name] = larger;
      }
    }
  }

  /** Keeps the tokens that `ids` also begins with, and forgets the others. Returns the rest of ids, at least one. */
  unread(ids) {
    let n = 0;
    while (n < ids.length - 1 && ids[n] === this.ids[n]) n++;
    this.ids.length = n;
    return ids.slice(n);
  }
}

class GPT {
  /** header: {config, tensors: {name: entry}}, see readTensor; buffer: ArrayBuffer with all weights. */
  constructor(header, buffer) {
    this.config = complete(header.config);
    this.weights = {};
    for (const [name, entry] of Object.entries(header.tensors)) this.weights[name] = readTensor(entry, buffer);
  }

  linear(x, T, name) {
    return linear(x, T, this.weights[`${name}.weight`], this.weights[`${name}.bias`]);
  }

  norm(x, name) {
    const c = this.config;
    return normalize(x.slice(), c.n_embd, c.norm, c.eps, this.weights[`${name}.weight`], this.weights[`${name}.bias`]);
  }

  /**
   * Logits (V) of the last of T ids, or (T, V) with all. cache: continues its tokens. attention: an array that gets
   * {layer, head, T, S, weights (T, S)} of each head. off: a set of 'layer' or 'layer.head' that add nothing.
   */
  forward(ids, cache = null, {all = false, attention = null, off = null} = {}) {
    const c = this.config;
    const T = ids.length, C = c.n_embd, past = cache ? cache.ids.length : 0;
    if (T < 1 || past + T > c.block_size) throw new Error(`${past + T} tokens: expected 1 to ${c.block_size}`);
    if (cache && c.mask !== 'causal') throw new Error(`mask=${c.mask}: expected causal, to use a cache`);
    if (cache) cache.reserve(past + T);

    let x = this.embed(ids, past);                                              // (T, C)
    for (let layer = 0; layer < c.n_layer; layer++) {
      if (off && off.has(`${layer}`)) continue;
      const name = `transformer.h.${layer}`;
      const a = this.attend(this.norm(x, `${name}.ln_1`), T, layer, past, cache, attention, off);
      if (c.residual) for (let i = 0; i < a.length; i++) a[i] += x[i];
      x = this.feedForward(this.norm(a, `${name}.ln_2`), T, `${name}.mlp`);
      if (c.residual) for (let i = 0; i < x.length; i++) x[i] += a[i];
    }
    if (cache) cache.ids.push(...ids);

    x = this.norm(all ? x : x.subarray((T - 1) * C), 'transformer.ln_f');
    const head = this.weights['lm_head.weight'] || this.weights['transformer.wte.weight'];  // the latter if tied
    return linear(x, all ? T : 1, head);                                        // (V) or (T, V)
  }

  embed(ids, past) {
    const c = this.config, C = c.n_embd;
    const x = new Float32Array(ids.length * C), place = new Float32Array(C);
    ids.forEach((id, t) => {
      if (!(id >= 0 && id < c.vocab_size)) throw new Error(`id ${id}: expected 0 to ${c.vocab_size - 1}`);
      copyRow(this.weights['transformer.wte.weight'], id, x, t * C);
      if (c.pos === 'learned') copyRow(this.weights['transformer.wpe.weight'], past + t, place, 0);
      for (let i = 0; i < C && c.pos === 'sinusoidal'; i++) {
        const angle = (past + t) * 10000 ** (-(i - i % 2) / C);
        place[i] = i % 2 ? Math.cos(angle) : Math.sin(angle);
      }
      const scale = c.pos === 'sinusoidal' ? Math.sqrt(C) : 1;
      for (let i = 0; i < C; i++) x[t * C + i] = x[t * C + i] * scale + place[i];
    });
    return x;
  }

  attend(x, T, layer, past, cache, attention, off) {
    const {D, H, G, ...c} = this.config;
    const name = `transformer.h.${layer}.attn`;
    const width = (H + 2 * G) * D, S = past + T;
    const qkv = this.linear(x, T, `${name}.c_attn`);                            // (T, (H + 2G) D)

    // Queries and keys: normalize, rotate; then keys and values join those of earlier tokens.
    const empty = () => new Float32Array(S * G * D);
    const {keys, values} = cache ? cache.layers[layer] : {keys: empty(), values: empty()};
    for (let t = 0; t < T; t++) {
      for (let h = 0; h < H + G; h++) {
        const at = t * width + h * D;
        const norm = this.weights[`${name}.${h < H ? 'q' : 'k'}_norm.weight`];
        if (c.qk_norm) normalize(qkv.subarray(at, at + D), D, 'rmsnorm', c.eps, norm);
        if (c.pos === 'rotary') rotate(qkv, at, D, past + t, c.rope_theta);
      }
      const k = t * width + H * D, v = k + G * D;
      keys.set(qkv.subarray(k, v), (past + t) * G * D);                         // (S, G D)
      values.set(qkv.subarray(v, v + G * D), (past + t) * G * D);
    }

    const y = new Float32Array(T * H * D);                                      // heads side by side
    for (let h = 0; h < H; h++) {
      const weights = new Float32Array(T * S);
      const group = Math.floor(h / (H / G)) * D;
      for (let t = 0; t < T; t++) {
        const first = c.mask === 'other_half' ? past + t : 0;
        const end = c.mask === 'causal' ? past + t + 1 : S;
        const row = weights.subarray(t * S, (t + 1) * S);
        for (let s = first; s < end; s++) row[s] = score(c.score, qkv, t * width + h * D, keys, s * G * D + group, D);
        softmax(row, first, end);
        if (off && off.has(`${layer}.${h}`)) continue;
        const out = (t * H + h) * D;
        for (let s = first; s < end; s++) {
          for (let i = 0; i < D; i++) y[out + i] += row[s] * values[s * G * D + group + i];
        }
      }
      if (attention) attention.push({layer, head: h, T, S, weights});
    }
    return this.linear(y, T, `${name}.c_proj`);                                 // (T, C)
  }

  feedForward(x, T, name) {
    const act = ACTIVATIONS[this.config.mlp];
    const h = this.linear(x, T, `${name}.c_fc`);                                // (T, F)
    const gate = this.config.mlp === 'swiglu' ? this.linear(x, T, `${name}.c_gate`) : null;
    for (let i = 0; i < h.length; i++) h[i] = gate ? act(gate[i]) * h[i] : act(h[i]);
    return this.linear(h, T, `${name}.c_proj`);                                 // (T, C)
  }
}

function score(kind, q, i, k, j, D) {
  if (kind === 'squared') {
    let sum = 0;
    for (let d = 0; d < D; d++) sum += (q[i + d] * k[j + d]) ** 2;
    return sum / Math.sqrt(D);
  }
  const product = dot(q, i, k, j, D);
  if (kind === 'unscaled') return product;
  return (kind === 'reversed' ? -product : product) / Math.sqrt(D);
}

/** Numbers first to end of a row become positive and sum to 1. */
function softmax(row, first, end) {
  let most = -Infinity, sum = 0;
  for (let s = first; s < end; s++) most = Math.max(most, row[s]);
  for (let s = first; s < end; s++) sum += row[s] = Math.exp(row[s] - most);
  for (let s = first; s < end; s++) row[s] /= sum;
}


// From logits to the next token: gradus/sampling.py.

/** Numbers from 0 to below 1 that depend on the seed alone: mulberry32, 32 bits each. */
function randomNumbers(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6D2B79F5) | 0;
    let z = Math.imul(state ^ (state >>> 15), state | 1);
    z ^= z + Math.imul(z ^ (z >>> 7), z | 61);
    return ((z ^ (z >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** temperature: 0 takes the most likely id; topK 0 and topP 1 do nothing. */
class Sampler {
  constructor({temperature = 1, topK = 0, topP = 1, seed = 0} = {}) {
    Object.assign(this, {temperature, topK, topP, random: randomNumbers(seed)});
  }

  /** How likely each id is to be drawn: (V). Ids that topP leaves out are 0, so the rest may sum to less than 1. */
  distribution(logits) {
    const most = logits.reduce((a, b) => Math.max(a, b));
    const scores = Float64Array.from(logits, (x) => (x - most) / this.temperature);
    if (this.topK && this.topK < scores.length) {
      const smallest = scores.slice().sort()[scores.length - this.topK];
      for (let i = 0; i < scores.length; i++) if (scores[i] < smallest) scores[i] = -Infinity;
    }
    softmax(scores, 0, scores.length);
    if (this.topP < 1) {
      const ids = Array.from(scores.keys()).sort((a, b) => scores[b] - scores[a] || a - b);
      let before = 0;
      ids.forEach((id, i) => {
        const p = scores[id];
        if (i > 0 && before >= this.topP) scores[id] = 0;   // the ids before this one already reach topP
        before += p;
      });
    }
    return scores;
  }

  choose(logits) {
    if (!Number.isFinite(logits.reduce((a, b) => Math.max(a, b)))) {
      throw new Error('the model computes NaN or infinity: its weights are too large; use another checkpoint');
    }
    if (this.temperature === 0) return logits.reduce((best, x, i) => x > logits[best] ? i : best, 0);
    const probs = this.distribution(logits);
    let u = this.random() * probs.reduce((a, b) => a + b), last = 0;
    for (let i = 0; i < probs.length; i++) {
      if (probs[i] === 0) continue;
      last = i;
      u -= probs[i];
      if (u < 0) break;
    }
    return last;
  }
}

/** A cache for a model, or null if its tokens see later ones: then nothing can be kept. */
function makeCache(config) {
  return config.mask === 'causal' ? new KVCache(config) : null;
}

/** Yields ids that follow `ids`, endlessly, as GPT.stream of model.py. Ids >= vocabulary are padding, never chosen. */
function* generate(model, ids, sampler, vocabulary = model.config.vocab_size, off = null,
                   cache = makeCache(model.config)) {
  const size = model.config.block_size;
  ids = Array.from(ids);
  let start = Math.max(0, ids.length - size);         // of the window that the model sees
  while (true) {
    if (ids.length - start > size) start = ids.length - (cache ? (size + 1) >> 1 : size);   // full: the newer half
    const window = ids.slice(start);
    const logits = model.forward(cache ? cache.unread(window) : window, cache, {off});
    const id = sampler.choose(logits.subarray(0, vocabulary));
    ids.push(id);
    yield id;
  }
}


if (typeof module !== 'undefined') module.exports = {GPT, KVCache, Sampler, generate};
