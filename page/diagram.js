/*
 * Pictures for the page of a digit network: all its neurons, an image of pixels, the weights of one neuron. They are
 * drawn on canvases, in the colors of style.css.
 */
'use strict';

const COLUMN = 32;                                    // neurons in a column; a larger layer is a grid
const N_LINES = 48;                                   // connections drawn between two layers
// From dark to light, so that the signs also differ in black and white; 0 is gray. The same as in plots/digits.py.
const DIVERGING = [[11, 37, 69], [27, 108, 168], [154, 154, 154], [242, 166, 90], [255, 243, 214]];

function cssColor(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/** Makes a canvas this large in CSS pixels, sharp on every screen. Returns its empty context. */
function prepare(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  canvas.style.width = width + 'px';
  canvas.style.height = height + 'px';
  const context = canvas.getContext('2d');
  context.scale(ratio, ratio);
  return context;
}

/** The color [r, g, b] of a number from -1 to 1. */
function diverging(value) {
  const at = (Math.min(Math.max(value, -1), 1) + 1) * 2;
  const i = Math.min(Math.floor(at), 3);
  return DIVERGING[i].map((c, n) => c + (DIVERGING[i + 1][n] - c) * (at - i));
}

/** Draws 784 numbers on a canvas of 28 x 28: from 0 to 1 as ink on paper, or signed, in the colors above. */
function drawPixels(canvas, values, signed = false) {
  canvas.width = canvas.height = 28;
  canvas.style.width = canvas.style.height = '';
  const context = canvas.getContext('2d');
  const image = context.createImageData(28, 28);
  const ink = /dark/.test(cssColor('--scheme')) ? 255 : 0;
  const limit = signed ? limitOf(values) : 1;
  values.forEach((value, i) => {
    const color = signed ? [...diverging(value / limit), 255] : [ink, ink, ink, 255 * value];
    image.data.set(color, 4 * i);
  });
  context.putImageData(image, 0, 0);
}

/** A value that nearly all numbers stay below: a few extreme ones are cut off, so that the others can be told apart. */
function limitOf(values) {
  const sorted = Float64Array.from(values, Math.abs).sort();
  return sorted[Math.floor(0.995 * (sorted.length - 1))] || sorted[sorted.length - 1] || 1;
}

/** Draws numbers as bars up and down from a line. */
function drawBars(canvas, values) {
  const width = Math.min(Math.max(240, 3 * values.length), canvas.parentElement.clientWidth - 2);
  const height = 120;
  const context = prepare(canvas, width, height);
  const most = values.reduce((top, value) => Math.max(top, Math.abs(value)), 0) || 1;
  const step = width / values.length;
  values.forEach((value, k) => {
    const length = (height / 2 - 2) * value / most;
    context.fillStyle = cssColor(value > 0 ? '--excite' : '--inhibit');
    context.fillRect(k * step, height / 2 - Math.max(length, 0), Math.max(step - 1, 0.5), Math.abs(length));
  });
  context.fillStyle = cssColor('--soft');
  context.fillRect(0, height / 2, width, 1);
}

/** The strongest `most` of n connections: for each neuron of the next layer the same number of them, at least one. */
function strongest(w, a, neurons, most) {
  const each = Math.max(1, Math.floor(most / neurons.length));
  const found = [];
  for (const j of neurons) {
    const best = [];                                  // of this neuron, the strongest first
    for (let k = 0; k < a.length; k++) {
      const value = w[j * a.length + k] * a[k];
      if (value === 0 || best.length === each && Math.abs(value) <= Math.abs(best[each - 1].value)) continue;
      best.push({j, k, value});
      best.sort((one, other) => Math.abs(other.value) - Math.abs(one.value));
      best.length = Math.min(best.length, each);
    }
    found.push(...best);
  }
  return found.sort((one, other) => Math.abs(other.value) - Math.abs(one.value)).slice(0, most);
}

/** All neurons of a network, layers as columns or grids from left to right, filled as far as they are active. */
class Diagram {
  constructor(canvas, network) {
    this.canvas = canvas;
    this.network = network;
    this.chosen = null;                               // {l, j}: a neuron whose connections are shown
  }

  /** Where everything is: this.layers, each {left, top, width, height, cell, columns, n}, in CSS pixels. */
  arrange() {
    const {sizes} = this.network;
    const grids = sizes.filter((n) => n > COLUMN).length;
    const room = this.canvas.parentElement.clientWidth;
    this.width = Math.max(room, 26 * sizes.length);
    const high = Math.min(Math.max(0.5 * room, 240), 380);
    const digits = 16;                                // to the right of the last layer
    const columnWidth = 18;
    const gap = 0.35;                                 // of the width, between the layers
    const gridWidth = grids && Math.min(high * 0.8,
      ((1 - gap) * this.width - digits - columnWidth * (sizes.length - grids)) / grids);

    this.layers = sizes.map((n) => {
      if (n <= COLUMN) {
        const cell = Math.min(columnWidth + 2, high / n);
        return {n, columns: 1, cell, width: cell, height: cell * n};
      }
      const columns = Math.ceil(Math.sqrt(n));
      const rows = Math.ceil(n / columns);
      const fits = Math.min(gridWidth / columns, high / rows, 14);
      const cell = fits > 3 ? Math.floor(fits) : Math.max(fits, 0.5);
      return {n, columns, cell, width: cell * columns, height: cell * rows};
    });
    const highest = Math.max(...this.layers.map((layer) => layer.height));
    this.height = highest + 28;                       // the last line is for the numbers of neurons
    const used = this.layers.reduce((sum, layer) => sum + layer.width, 0);
    const between = (this.width - digits - used) / (sizes.length - 1);
    let left = 0;
    for (const layer of this.layers) {
      layer.left = left;
      layer.top = 2 + (highest - layer.height) / 2;
      left += layer.width + between;
    }
  }

  center(l, j) {
    const {left, top, cell, columns} = this.layers[l];
    return [left + (j % columns + 0.5) * cell, top + (Math.floor(j / columns) + 0.5) * cell];
  }

  /** The neuron {l, j} at this point of the canvas, or null. */
  at(x, y) {
    for (let l = 0; l < this.layers.length; l++) {
      const {left, top, cell, columns, n} = this.layers[l];
      const column = Math.floor((x - left) / cell);
      const row = Math.floor((y - top) / cell);
      const j = row * columns + column;
      if (column >= 0 && column < columns && row >= 0 && j < n) return {l, j};
    }
    return null;
  }

  /** a: the activations of every layer. */
  draw(a) {
    this.arrange();
    const context = prepare(this.canvas, this.width, this.height);
    const {chosen} = this;
    const connected = (l) => (chosen && chosen.l > 0 ? l === chosen.l : l > 1);
    for (let l = 1; l < a.length; l++) if (connected(l)) this.drawLines(context, a, l);
    for (let l = 0; l < a.length; l++) this.drawLayer(context, a[l], l);
    if (chosen) {
      const [x, y] = this.center(chosen.l, chosen.j);
      context.strokeStyle = cssColor('--accent');
      context.lineWidth = 3;
      context.beginPath();
      context.arc(x, y, Math.max(this.layers[chosen.l].cell / 2 + 1, 5), 0, 2 * Math.PI);
      context.stroke();
    }
  }

  /** The strongest connections into layer l, or into the chosen neuron. */
  drawLines(context, a, l) {
    const neurons = this.chosen && this.chosen.l > 0 ? [this.chosen.j] : a[l].map((_, j) => j);
    const lines = strongest(this.network.weights[l - 1], a[l - 1], Array.from(neurons), N_LINES);
    const most = lines.length ? Math.abs(lines[0].value) : 1;
    for (const {j, k, value} of lines.reverse()) {    // the strongest on top
      const strength = Math.abs(value) / most;
      context.globalAlpha = 0.15 + 0.75 * strength;
      context.lineWidth = 0.5 + 1.5 * strength;
      context.strokeStyle = cssColor(value > 0 ? '--excite' : '--inhibit');
      context.setLineDash(value > 0 ? [] : [5, 3]);
      context.beginPath();
      context.moveTo(...this.center(l - 1, k));
      context.lineTo(...this.center(l, j));
      context.stroke();
    }
    context.globalAlpha = 1;
    context.setLineDash([]);
  }

  drawLayer(context, a, l) {
    const {left, top, width, height, cell, columns, n} = this.layers[l];
    const bounded = l === 0 || l === this.layers.length - 1 || this.network.activation === 'sigmoid';
    const most = bounded ? 1 : a.reduce((high, value) => Math.max(high, value), 0) || 1;
    const front = cssColor('--front');
    const grid = columns > 1;
    if (grid) {
      context.fillStyle = cssColor('--panel');
      context.fillRect(left - 1, top - 1, width + 2, height + 2);
    }
    for (let j = 0; j < n; j++) {
      const [x, y] = this.center(l, j);
      context.fillStyle = front;
      if (grid) {
        context.globalAlpha = a[j] / most;
        const side = cell > 3 && l > 0 ? cell - 1 : cell;
        context.fillRect(x - side / 2, y - side / 2, side, side);
        context.globalAlpha = 1;
        continue;
      }
      context.beginPath();
      context.arc(x, y, Math.max(cell * 0.4, 1), 0, 2 * Math.PI);
      context.fillStyle = cssColor('--back');
      context.fill();
      context.globalAlpha = a[j] / most;
      context.fillStyle = front;
      context.fill();
      context.globalAlpha = 1;
      context.strokeStyle = cssColor('--soft');
      context.lineWidth = 1;
      context.stroke();
    }

    // The digits beside the last layer, and the number of neurons under each.
    context.fillStyle = cssColor('--soft');
    context.font = '12px system-ui, sans-serif';
    if (l === this.layers.length - 1) {
      context.textBaseline = 'middle';
      for (let j = 0; j < n; j++) context.fillText(j, left + width + 4, this.center(l, j)[1]);
    }
    context.textBaseline = 'alphabetic';
    context.textAlign = l === 0 ? 'left' : 'center';
    context.fillText(n, l === 0 ? left : left + width / 2, this.height - 6);
    context.textAlign = 'left';
  }
}
