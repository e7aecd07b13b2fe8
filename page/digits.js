/*
 * The page of a digit network: draw, see what every neuron makes of it, and let the network learn from one image. The
 * network itself is in network.js, the pictures are in diagram.js. Whatever comes from the file is shown as text.
 *
 * The part of the address after # can choose what is seen first: digits.html#example=3&truth=8&steps=1&neuron=1.4
 */
'use strict';

const $ = (id) => document.getElementById(id);
const header = JSON.parse($('header').textContent);
const network = new Network(header, readWeights(header.bytes));
const diagram = new Diagram($('network'), network);
const examples = header.examples.map(
  ({digit, pixels}) => ({digit, x: Float64Array.from(bytesOf(pixels), (value) => value / 255)}));
const paper = $('drawing').getContext('2d', {willReadFrequently: true});
const SIDE = $('drawing').width;

let x = new Float64Array(784);                        // the image
let drawn = false;                                    // is there one?
let truth = null;                                     // the digit that it was, by the reader's account
let before = null;                                    // {out, cost} before the last step of learning
let forward = null;                                   // what the network makes of x: {a, z}

/** A new element, with a text. */
function element(name, text = '', className = '') {
  const made = document.createElement(name);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

// ---------------------------------------------------------------------------- what is seen

/** A new image: 784 numbers, or null for none. */
function show(image) {
  drawn = image !== null;
  x = image ?? new Float64Array(784);
  truth = null;
  before = null;
  update();
}

/** Computes everything that depends on the image and the weights, and shows it. */
function update() {
  forward = network.forward(x);
  drawPixels($('image'), x);
  diagram.draw(forward.a);
  const out = output();
  const best = out.indexOf(Math.max(...out));
  $('answer').textContent = drawn && best >= 0 ? best : '?';
  out.forEach((value, j) => showOutput(j, value, drawn && j === best));
  showNeuron();
  showGradient();
}

function output() {
  return forward.a[forward.a.length - 1];
}

function percent(value) {
  return (100 * value).toFixed(1) + '%';
}

/** A number in four digits. */
function short(value) {
  if (!Number.isFinite(value)) return String(value);
  return Math.abs(value) < 1e-3 && value !== 0 ? value.toExponential(1) : Number(value.toPrecision(4)).toString();
}

function showOutput(j, value, isBest) {
  const row = $('outputs').rows[j];
  row.className = isBest ? 'best' : '';
  const [bar, old] = row.cells[1].children;
  bar.style.width = drawn ? 100 * value + '%' : '0';
  old.hidden = before === null;
  row.cells[2].textContent = drawn ? value.toFixed(4) : '';
  row.cells[3].textContent = before ? 'was ' + before.out[j].toFixed(4) : '';
  if (before) old.style.width = 100 * before.out[j] + '%';
}

/** Says the answer, to the eye and to a screen reader. */
function announce(prefix = '') {
  const out = output();
  const best = out.indexOf(Math.max(...out));
  $('said').textContent = drawn ? `${prefix}The network reads a ${best}, activation ${percent(out[best])}.`
    : 'Draw a digit, or choose an example.';
}

// ---------------------------------------------------------------------------- drawing

const pen = {id: null, x: SIDE / 2, y: SIDE / 2, down: false};
let frame = 0;                                        // in which the image will be computed; 0: none is due

function line(toX, toY) {
  paper.lineCap = 'round';
  paper.lineWidth = Number($('brush').value);
  paper.beginPath();
  paper.moveTo(pen.x, pen.y);
  paper.lineTo(toX, toY);
  paper.stroke();
}

/** Turns the drawing into an image, once before the browser paints again. */
function readDrawing() {
  if (frame !== 0) return;
  frame = requestAnimationFrame(() => {
    frame = 0;
    const {data} = paper.getImageData(0, 0, SIDE, SIDE);
    const ink = new Float64Array(SIDE * SIDE);
    for (let i = 0; i < ink.length; i++) ink[i] = data[4 * i + 3] / 255;
    show(centered(ink, SIDE));
    if (pen.id === null && !pen.down) announce();
  });
}

/** Where an event happened, in pixels of the drawing. */
function position(event) {
  const box = $('drawing').getBoundingClientRect();
  return [(event.clientX - box.left) / box.width * SIDE, (event.clientY - box.top) / box.height * SIDE];
}

function penDown(event) {
  if (pen.id !== null || event.button > 0) return;
  pen.id = event.pointerId;
  $('drawing').setPointerCapture(event.pointerId);
  [pen.x, pen.y] = position(event);
  line(pen.x, pen.y);
  readDrawing();
}

function penMoved(event) {
  if (event.pointerId !== pen.id) return;
  const events = event.getCoalescedEvents ? event.getCoalescedEvents() : [];
  for (const one of events.length ? events : [event]) {
    const to = position(one);
    line(...to);
    [pen.x, pen.y] = to;
  }
  readDrawing();
}

function penUp(event) {
  if (event.pointerId !== pen.id) return;
  pen.id = null;
  readDrawing();
}

/** Arrow keys move the pen, Space puts it down or lifts it. */
function drawWithKeys(event) {
  const moves = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
  const move = moves[event.key];
  if (!move && event.key !== ' ') return;
  event.preventDefault();
  if (!move) pen.down = !pen.down;
  const limit = (value) => Math.min(Math.max(value, 0), SIDE);
  const to = (move ?? [0, 0]).map((step, d) => limit([pen.x, pen.y][d] + 20 * step));
  if (pen.down) line(...to);
  [pen.x, pen.y] = to;
  if (pen.down || !move) readDrawing();
  showPen(true);
}

function showPen(visible) {
  const mark = $('pen');
  mark.hidden = !visible;
  mark.className = pen.down ? 'down' : '';
  mark.style.left = 100 * pen.x / SIDE + '%';
  mark.style.top = 100 * pen.y / SIDE + '%';
}

function clearDrawing() {
  cancelAnimationFrame(frame);                        // it would read what is not there any more
  frame = 0;
  paper.clearRect(0, 0, SIDE, SIDE);
  pen.down = false;
}

/** Shows one of the test images, on the paper too, where it can be changed. */
function showExample({x: image, digit}) {
  clearDrawing();
  paper.drawImage(stamp(image), 0, 0, SIDE, SIDE);
  show(image);
  announce(`A test image, labeled ${digit}. `);
}

/** An image as a small canvas, black on nothing. */
function stamp(image) {
  const canvas = element('canvas');
  canvas.width = canvas.height = 28;
  const context = canvas.getContext('2d');
  const pixels = context.createImageData(28, 28);
  image.forEach((value, i) => { pixels.data[4 * i + 3] = 255 * value; });
  context.putImageData(pixels, 0, 0);
  return canvas;
}

// ---------------------------------------------------------------------------- one neuron

function choose(neuron) {
  diagram.chosen = neuron;
  diagram.draw(forward.a);
  showNeuron();
}

function showNeuron() {
  const canvas = $('weights');
  const {chosen} = diagram;
  canvas.hidden = chosen === null || chosen.l === 0;
  canvas.classList.toggle('pixels', chosen !== null && chosen.l === 1);
  if (chosen === null) return;
  const {l, j} = chosen;
  const a = short(forward.a[l][j]);
  if (l === 0) {
    $('neuron-text').textContent = `Pixel in row ${Math.floor(j / 28) + 1}, column ${j % 28 + 1}: ${a}.`;
    return;
  }
  const n = header.sizes[l - 1];
  const w = network.weights[l - 1].subarray(j * n, (j + 1) * n);
  if (l === 1) drawPixels(canvas, w, true);
  else drawBars(canvas, w);
  const name = l === header.sizes.length - 1 ? `The neuron of digit ${j}` : `Neuron ${j + 1} of layer ${l + 1}`;
  const picture = l === 1 ? 'light, where ink excites it; dark, where it inhibits it'
    : `up, which of the ${n} neurons before excite it; down, which inhibit it`;
  $('neuron-text').textContent = `${name}: activation ${a}, weighted input z = ${short(forward.z[l - 1][j])}, `
    + `bias ${short(network.biases[l - 1][j])}. Its weights: ${picture}.`;
}

function neuronAt(event) {
  const box = $('network').getBoundingClientRect();
  const neuron = diagram.at(event.clientX - box.left, event.clientY - box.top);
  if (neuron) choose(neuron);
}

/** Left and right change the layer, up and down the neuron. */
function chooseWithKeys(event) {
  const moves = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
  const move = moves[event.key];
  if (event.key === 'Escape') choose(null);
  if (!move) return;
  event.preventDefault();
  if (diagram.chosen === null) return choose({l: 1, j: 0});
  const limit = (value, n) => Math.min(Math.max(value, 0), n - 1);
  const l = limit(diagram.chosen.l + move[0], header.sizes.length);
  choose({l, j: limit(diagram.chosen.j + move[1], header.sizes[l])});
}

// ---------------------------------------------------------------------------- learning

function eta() {
  return 10 ** Number($('eta').value);
}

function showGradient() {
  $('gradient').hidden = truth === null;
  for (const [digit, button] of truthButtons.entries()) {
    button.disabled = !drawn;
    button.setAttribute('aria-pressed', digit === truth);
  }
  $('forget').disabled = network.learned === null;
  if (truth === null) return;

  const gradient = network.backprop(x, truth);
  const cost = network.costOf(x, truth);
  const change = before ? `; before the step it was ${short(before.cost)}` : '';
  const own = before ? `; it was ${before.out[truth].toFixed(4)}` : '';
  const broken = Number.isFinite(cost) ? '' : ' The weights are no numbers any more: forget it, and lower the rate.';
  $('cost').textContent = `If it was a ${truth}, the cost is C = ${short(cost)}${change}. `
    + `The activation of digit ${truth} is ${output()[truth].toFixed(4)}${own}.${broken}`;
  drawPixels($('gradient-image'), gradient.image, true);

  const lengths = gradient.weights.map((w, l) => lengthOf(w, gradient.biases[l]));
  const most = Math.max(...lengths) || 1;
  lengths.forEach((length, l) => {
    const {cells} = $('lengths').rows[l + 1];
    cells[1].firstChild.style.width = 100 * length / most + '%';
    cells[2].textContent = short(length);
  });
}

function sayTruth(digit) {
  truth = digit;
  before = null;
  update();
}

function learn() {
  before = {out: Array.from(output()), cost: network.costOf(x, truth)};
  network.step(network.backprop(x, truth), eta());
  update();
  announce('Learned one step. ');
}

function forget() {
  network.forget();
  before = null;
  update();
  announce('The old weights are back. ');
}

// ---------------------------------------------------------------------------- the page begins

const truthButtons = [];

function buildTables() {
  for (let j = 0; j < 10; j++) {
    const row = $('outputs').insertRow();
    row.append(element('th', j), element('td'), element('td'), element('td', '', 'change'));
    row.cells[1].append(element('div', '', 'bar'), element('div', '', 'before'));
  }
  const head = $('lengths').createTHead().insertRow();
  head.append(element('th', 'into layer'), element('td'), element('th', 'length of the gradient'));
  for (let l = 1; l < header.sizes.length; l++) {
    const row = $('lengths').insertRow();
    row.append(element('th', l + 1), element('td'), element('td'));
    row.cells[1].append(element('div', '', 'bar'));
  }
}

function buildButtons() {
  for (const example of examples) {
    const button = element('button');
    button.setAttribute('aria-label', `example: ${example.digit}`);
    button.append(stamp(example.x));
    button.addEventListener('click', () => showExample(example));
    $('examples').append(button);
  }
  for (let digit = 0; digit < 10; digit++) {
    const button = element('button', digit);
    button.addEventListener('click', () => sayTruth(digit));
    truthButtons.push(button);
    $('truths').append(button);
  }
}

function listen() {
  const drawing = $('drawing');
  drawing.addEventListener('pointerdown', penDown);
  drawing.addEventListener('pointermove', penMoved);
  drawing.addEventListener('pointerup', penUp);
  drawing.addEventListener('pointercancel', penUp);
  drawing.addEventListener('keydown', drawWithKeys);
  drawing.addEventListener('blur', () => { pen.down = false; showPen(false); });
  $('clear').addEventListener('click', () => { clearDrawing(); show(null); announce(); });
  $('network').addEventListener('pointermove', neuronAt);
  $('network').addEventListener('pointerdown', neuronAt);
  $('network').addEventListener('keydown', chooseWithKeys);
  $('eta').addEventListener('input', () => { $('eta-text').textContent = short(eta()); });
  $('step').addEventListener('click', learn);
  $('forget').addEventListener('click', forget);
  window.addEventListener('resize', update);
  window.matchMedia('(prefers-color-scheme: dark)').addEventListener('change', update);
  document.addEventListener('keydown', (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || !/^[0-9]$/.test(event.key)) return;
    const example = examples.find(({digit}) => digit === Number(event.key));
    if (example) showExample(example);
  });
}

function describe() {
  document.title = $('title').textContent = header.title;
  $('about').textContent = header.about;
  $('examples').hidden = examples.length === 0;
  $('learning').hidden = !header.learns;
  $('no-learning').hidden = header.learns;
  $('no-learning').textContent = header.batch_norm
    ? 'This network was trained with batch norm, which is part of its weights here. It normalizes with the mean of '
      + 'many images, so a step of learning from a single one would not be what training does.'
    : 'This network is too large to learn in a page; one of fewer than 300,000 weights does.';
  $('eta').value = header.cost === 'quadratic' ? 0 : -2.5;
  $('eta-text').textContent = short(eta());
}

/** What the address chooses. */
function followAddress() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  const example = examples.find(({digit}) => String(digit) === wanted.get('example'));
  if (example) showExample(example);
  const digit = Number(wanted.get('truth') ?? NaN);
  if (example && header.learns && digit in truthButtons) {
    sayTruth(digit);
    for (let n = Math.min(Number(wanted.get('steps')) || 0, 100); n > 0; n--) learn();
  }
  const [l, j] = (wanted.get('neuron') ?? '').split('.').map(Number);
  if (l in header.sizes && j >= 0 && j < header.sizes[l]) choose({l, j: Math.floor(j)});
}

buildTables();
buildButtons();
listen();
describe();
update();
followAddress();
