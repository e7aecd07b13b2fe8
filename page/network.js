/*
 * A digit network: what class MLP of model.py computes, and `backprop` of mlp_mnist.py, in plain JavaScript, for one
 * image at a time; and `centered`, which turns a drawing into an image of MNIST as gradus/digits.py does. No DOM.
 *
 * A layer l has n_l neurons. w^l is a Float32Array of n_l rows of n_{l-1} numbers, b^l one of n_l numbers.
 */
'use strict';

const SIGMA = {
  sigmoid: (z) => 1 / (1 + Math.exp(-z)),
  relu: (z) => Math.max(z, 0),
};
const SIGMA_PRIME = {                                 // sigma'(z), written with a = sigma(z)
  sigmoid: (a) => a * (1 - a),
  relu: (a) => (a > 0 ? 1 : 0),
};

/** The ten numbers e^z_j / sum e^z_k. */
function softmax(z) {
  const top = z.reduce((most, value) => Math.max(most, value), -Infinity);
  const powers = z.map((value) => Math.exp(value - top));
  const sum = powers.reduce((total, value) => total + value, 0);
  return powers.map((value) => value / sum);
}

/** The length of a vector that lies in several arrays. */
function lengthOf(...arrays) {
  let sum = 0;
  for (const array of arrays) for (const value of array) sum += value * value;
  return Math.sqrt(sum);
}

class Network {
  /**
   * header: {sizes, activation, cost, tensors: {w1: {offset, shape}, b1, w2, ...}}, offsets in bytes; w1 and b1 lead
   * to the first layer after the pixels. buffer: the ArrayBuffer with the float32 numbers of all of them.
   */
  constructor(header, buffer) {
    this.sizes = header.sizes;
    this.activation = header.activation;
    this.cost = header.cost;
    const read = (name) => {
      const {offset, shape} = header.tensors[name];
      return new Float32Array(buffer, offset, shape.reduce((a, b) => a * b, 1)).slice();
    };
    this.weights = [];
    this.biases = [];
    for (let l = 1; l < this.sizes.length; l++) {
      this.weights.push(read('w' + l));
      this.biases.push(read('b' + l));
    }
    this.learned = null;                              // the weights as they were before the first step
  }

  /** z^l = w^l a^{l-1} + b^l: Float64Array of n_l. */
  weightedInput(l, a) {
    const w = this.weights[l];
    const z = Float64Array.from(this.biases[l]);
    for (let j = 0, at = 0; j < z.length; j++) {
      let sum = 0;
      for (let k = 0; k < a.length; k++, at++) sum += w[at] * a[k];
      z[j] += sum;
    }
    return z;
  }

  /** x: 784 numbers from 0 to 1. Returns {a, z}: the activations of every layer, x first, and the z of all but x. */
  forward(x) {
    const a = [Float64Array.from(x)];
    const z = [];
    const last = this.weights.length - 1;
    for (let l = 0; l <= last; l++) {
      z.push(this.weightedInput(l, a[l]));
      if (l < last) a.push(z[l].map(SIGMA[this.activation]));
    }
    a.push(this.cost === 'quadratic' ? z[last].map(SIGMA.sigmoid) : softmax(z[last]));
    return {a, z};
  }

  /** The cost C of the image x, if it shows this digit. */
  costOf(x, digit) {
    const {a, z} = this.forward(x);
    const out = a[a.length - 1];
    if (this.cost === 'quadratic') {                  // |y - a|^2 / 2
      return out.reduce((sum, value, j) => sum + ((j === digit ? 1 : 0) - value) ** 2, 0) / 2;
    }
    const last = z[z.length - 1];                     // -ln a of the digit, from z without rounding errors
    const top = Math.max(...last);
    return top + Math.log(last.reduce((sum, value) => sum + Math.exp(value - top), 0)) - last[digit];
  }

  /**
   * The gradient of the cost, for the image x of this digit: {weights, biases, image}, shaped like the weights, the
   * biases and x. Nielsen 2015, chapter 2, equations BP1 to BP4, as in mlp_mnist.py.
   */
  backprop(x, digit) {
    const {a} = this.forward(x);
    const out = a[a.length - 1];
    const quadratic = this.cost === 'quadratic';
    const gradient = {weights: [], biases: [], image: null};

    // BP1: delta^L = (a^L - y) * sigma'(z^L); with softmax and cross-entropy, only a^L - y.
    let delta = out.map((value, j) => (value - (j === digit ? 1 : 0)) * (quadratic ? SIGMA_PRIME.sigmoid(value) : 1));

    for (let l = this.weights.length - 1; l >= 0; l--) {
      const w = this.weights[l];
      const nablaW = new Float64Array(w.length);
      const back = new Float64Array(a[l].length);
      for (let j = 0, at = 0; j < delta.length; j++) {
        for (let k = 0; k < back.length; k++, at++) {
          nablaW[at] = a[l][k] * delta[j];            // BP4: dC/dw_jk = a_k delta_j
          back[k] += w[at] * delta[j];                // BP2, its first half: (w^{l+1})^T delta^{l+1}
        }
      }
      gradient.weights.unshift(nablaW);
      gradient.biases.unshift(delta);                 // BP3: dC/db_j = delta_j
      if (l > 0) delta = back.map((value, k) => value * SIGMA_PRIME[this.activation](a[l][k]));    // its second half
      else gradient.image = back;                     // a pixel has no sigma
    }
    return gradient;
  }

  /** w -> w - eta dC/dw. */
  step(gradient, eta) {
    this.learned ??= {weights: this.weights.map((w) => w.slice()), biases: this.biases.map((b) => b.slice())};
    for (const kind of ['weights', 'biases']) {
      this[kind].forEach((values, l) => {
        for (let i = 0; i < values.length; i++) values[i] -= eta * gradient[kind][l][i];
      });
    }
  }

  /** Back to the weights that the page came with. */
  forget() {
    if (this.learned === null) return;
    this.weights = this.learned.weights;
    this.biases = this.learned.biases;
    this.learned = null;
  }
}

// ---------------------------------------------------------------------------- a drawing as MNIST would hold it

/** Rounded, halves to the even number, as in Python. */
function roundEven(x) {
  const below = Math.floor(x);
  if (x - below !== 0.5) return Math.round(x);
  return below % 2 === 0 ? below : below + 1;
}

/** For each of n new pixels, the old ones that it is the weighted mean of: a triangle, as wide as a new pixel. */
function triangles(nOld, n) {
  const scale = nOld / n;
  const reach = Math.max(scale, 1);
  return Array.from({length: n}, (_, i) => {
    const center = scale * (i + 0.5);
    const first = Math.max(Math.floor(center - reach + 0.5), 0);
    const end = Math.min(Math.floor(center + reach + 0.5), nOld);
    const shares = [];
    for (let j = first; j < end; j++) shares.push(Math.max(0, 1 - Math.abs(j - center + 0.5) / reach));
    const sum = shares.reduce((a, b) => a + b, 0);
    return {first, shares: shares.map((share) => share / sum)};
  });
}

/** Rows (height x width numbers) in a new size: torch's F.interpolate(mode='bilinear', antialias=True). */
function resize(pixels, width, height, newWidth, newHeight) {
  const wide = new Float64Array(height * newWidth);
  triangles(width, newWidth).forEach(({first, shares}, i) => {
    for (let row = 0; row < height; row++) {
      shares.forEach((share, j) => { wide[row * newWidth + i] += share * pixels[row * width + first + j]; });
    }
  });
  const result = new Float64Array(newHeight * newWidth);
  triangles(height, newHeight).forEach(({first, shares}, i) => {
    for (let column = 0; column < newWidth; column++) {
      shares.forEach((share, j) => { result[i * newWidth + column] += share * wide[(first + j) * newWidth + column]; });
    }
  });
  return result;
}

/** The box {left, top, width, height} around what is not 0, or null. */
function boundingBox(ink, width) {
  let left = width, right = -1, top = -1, bottom = -1;
  for (let i = 0; i < ink.length; i++) {
    if (ink[i] === 0) continue;
    const column = i % width;
    bottom = (i - column) / width;
    if (top < 0) top = bottom;
    if (column < left) left = column;
    if (column > right) right = column;
  }
  return top < 0 ? null : {left, top, width: right - left + 1, height: bottom - top + 1};
}

/**
 * ink: width x height numbers from 0, the paper, to 1. Returns 784 numbers: the digit is cut out, scaled to fit a box
 * of 20 x 20 pixels, and placed with its center of mass in the middle of 28 x 28; null if there is no ink. These are
 * the steps of `read_picture` in gradus/digits.py.
 */
function centered(ink, width) {
  // Ignore what is hardly visible.
  let most = 0;
  for (const value of ink) most = Math.max(most, value);
  if (most < 16 / 255) return null;
  ink = ink.map((value) => (value / most < 0.2 ? 0 : value / most));

  // Cut the digit out and scale it.
  const box = boundingBox(ink, width);
  const cut = new Float64Array(box.width * box.height);
  for (let row = 0; row < box.height; row++) {
    const start = (box.top + row) * width + box.left;
    cut.set(ink.subarray(start, start + box.width), row * box.width);
  }
  const scale = 20 / Math.max(box.width, box.height);
  const wide = Math.max(1, roundEven(box.width * scale));
  const high = Math.max(1, roundEven(box.height * scale));
  const digit = resize(cut, box.width, box.height, wide, high);

  // Place its center of mass in the middle, as far as the digit stays inside.
  let sum = 0, sumX = 0, sumY = 0, peak = 0;
  digit.forEach((value, i) => {
    sum += value;
    sumX += value * (i % wide + 0.5);
    sumY += value * (Math.floor(i / wide) + 0.5);
    peak = Math.max(peak, value);
  });
  const place = (center, n) => Math.ceil(Math.min(Math.max(14 - center, 0), 28 - n) - 1e-6);   // less rounding errors
  const left = place(sumX / sum, wide);
  const top = place(sumY / sum, high);
  const image = new Float64Array(784);
  digit.forEach((value, i) => { image[(top + Math.floor(i / wide)) * 28 + left + i % wide] = value / peak; });
  return image;
}

if (typeof module !== 'undefined') module.exports = {Network, centered, lengthOf};
