/*
 * The page of a GPT. The model computes in a Worker (worker.js, with engine.js and tokenizer.js in front of it); this
 * shows what it sends. Whatever comes from the file is shown as text, never as HTML.
 */
'use strict';

const $ = (id) => document.getElementById(id);
const header = JSON.parse($('header').textContent);
const worker = new Worker(URL.createObjectURL(new Blob([$('engine').textContent], {type: 'text/javascript'})));
const waiting = new Map();                            // id of a message: {resolve, reject, onPart}
let lastId = 0;
let ids = [];                                         // the text as tokens
let texts = [];                                       // and what each of them adds to it
let promptLength = 0;                                 // how many of them the reader wrote
let surprise = [];                                    // bits of each token, if the reader asked for them
let chosen = -1;                                      // the token that was clicked
let pointed = -1;                                     // the token that the heads look from
let seen = null;                                      // {start, rows}: where they look
let head = null;                                      // 'layer.head' of the one whose shades are shown; null: all

worker.onmessage = ({data}) => {
  const entry = waiting.get(data.id);
  if (!entry) return;
  if ('part' in data) return entry.onPart(data.part);
  waiting.delete(data.id);
  if ('error' in data) entry.reject(new Error(data.error));
  else entry.resolve(data.done);
};

/** Asks the worker; resolves to its answer. onPart gets what it sends before that. */
function ask(action, message = {}, onPart = null, transfer = []) {
  const id = ++lastId;
  return new Promise((resolve, reject) => {
    waiting.set(id, {resolve, reject, onPart});
    worker.postMessage({id, action, ...message}, transfer);
  });
}

function say(text, isError = false) {
  $('status').textContent = text;
  $('status').className = isError ? 'error' : '';
}

/** Does a task that can be stopped; its error is shown. */
async function run(task) {
  for (const id of ['go', 'score']) $(id).disabled = true;
  $('stop').disabled = false;
  try {
    await task();
  } catch (error) {
    say(error.message, true);
  }
  for (const id of ['go', 'score']) $(id).disabled = false;
  $('stop').disabled = true;
}

function settings() {
  const number = (id) => Number($(id).value) || 0;
  return {temperature: number('temperature'), topK: number('topk'), topP: number('topp'), seed: number('seed')};
}

/** The parts to switch off, as the worker knows them: '0', '1.2'. */
function off() {
  return $('off').value.split(/[\s,]+/).filter((part) => /^\d+(\.\d+)?$/.test(part));
}


// The text: one span for each token.

const VISIBLE = {' ': '␣', '\n': '↵', '\t': '⇥'};

/** A token as a reader can see it. */
function labelOf(text) {
  return Array.from(text, (c) => VISIBLE[c] || c).join('') || '(nothing)';
}

/** A new element with a text in it. */
function element(name, text = '', className = '') {
  const one = document.createElement(name);
  one.textContent = text;
  one.className = className;
  return one;
}

function addSpan(position) {
  const span = element('span', texts[position], position < promptLength ? 'prompt' : '');
  span.classList.toggle('line', texts[position].startsWith('\n'));      // else there is nothing to point at
  span.tabIndex = position ? -1 : 0;                  // Tab goes to one token, the arrow keys to the others
  $('text').append(span);
}

function showText() {
  $('text').replaceChildren();
  ids.forEach((_, position) => addSpan(position));
  surprise = [];
  chosen = pointed = -1;
  seen = null;
  $('panels').hidden = $('likelypanel').hidden = true;
}

const MOST = 60;                                      // percent of the accent in the darkest shade, to read on it

/** Shades each token by strength(position), from 0 to 1. */
function shade(strength) {
  Array.from($('text').children).forEach((span, position) => {
    span.style.setProperty('--much', Math.round(MOST * Math.min(1, strength(position) || 0)));
    span.classList.toggle('chosen', position === chosen);
    span.classList.toggle('pointed', position === pointed);
  });
}

/** The position of the token that an event is about, or -1. */
function positionOf(event) {
  return Array.prototype.indexOf.call($('text').children, event.target);
}


// What one can do with a text.

async function continueText() {
  const began = performance.now();
  let n = 0;
  const message = {ids, max: Number($('max').value) || 1, sampling: settings(), off: off()};
  await ask('generate', message, ({token, text}) => {
    ids.push(token);
    texts.push(text);
    addSpan(ids.length - 1);
    n++;
    const speed = n / (performance.now() - began) * 1000;
    say(`${n} tokens, ${speed.toFixed(speed < 10 ? 1 : 0)} per second`);
  });
}

async function start() {
  ({ids, texts} = await ask('encode', {text: $('prompt').value}));
  promptLength = ids.length;
  showText();
  await continueText();
}

/** The same text from the model of another iteration. */
async function goBack() {
  const n = Number($('time').value);
  $('when').textContent = header.models[n].name;
  await ask('pick', {n});
  if (ids.length) await start();
}

/** Colors each token of the prompt by how much it surprises the model. */
async function score() {
  ({ids, texts} = await ask('encode', {text: $('prompt').value}));
  promptLength = 0;
  showText();
  if (ids.length < 2) throw new Error('expected a longer text');
  const perByte = await ask('surprise', {ids, off: off()}, ({first, bits}) => {
    bits.forEach((value, i) => {
      surprise[first + i] = value;
      $('text').children[first + i].title = `${value.toFixed(2)} bits`;
    });
    showSurprise();
    say(`${first + bits.length} of ${ids.length} tokens`);
  });
  say(`${perByte.toFixed(3)} bits per byte; the darker, the more surprising`);
}

function showSurprise() {
  shade((position) => surprise[position] / 10);
}


// What one can do with a token.

/** Shows where each head looks from this token. */
async function point(position) {
  if (position < 0 || position === pointed) return;
  pointed = position;
  const answer = await ask('look', {ids: ids.slice(0, position + 1), off: off()});
  if (position !== pointed) return;                   // the reader has gone on
  seen = answer;
  showHeads();
}

/** A table with the token that each head looks at most; and the text in the shades of one head, or of their mean. */
function showHeads() {
  const {start, rows} = seen;
  const lines = [];
  for (const {layer, head: n, weights} of rows) {
    const name = `${layer}.${n}`;
    const most = weights.reduce((best, weight, i) => weight > weights[best] ? i : best, 0);
    const button = element('button', labelOf(texts[start + most]));
    button.title = `layer ${layer}, head ${n}: ${weights[most].toFixed(2)} to token ${start + most}`;
    button.style.setProperty('--much', Math.round(MOST * weights[most]));
    button.setAttribute('aria-pressed', name === head);
    button.onclick = () => {
      head = name === head ? null : name;
      showHeads();
      document.getElementById(`head-${name}`).focus();      // the table is a new one
    };
    button.id = `head-${name}`;
    const cell = element('td');
    cell.append(button);
    if (!lines[layer]) (lines[layer] = element('tr')).append(element('th', layer));
    lines[layer].append(cell);
  }
  $('heads').replaceChildren(...lines.filter(Boolean));
  $('headstitle').textContent = `Where each head looks from ${labelOf(texts[pointed])}`;
  $('panels').hidden = false;

  const shown = rows.filter((row) => head === null || head === `${row.layer}.${row.head}`);
  shade((position) => shown.reduce((sum, {weights}) => sum + (weights[position - start] || 0), 0) / shown.length);
}

/** Shows what else was likely in the place of this token. */
async function choose(position) {
  if (position < 0) return;
  chosen = position;
  await point(position);
  const likely = position ? await ask('likely', {ids: ids.slice(0, position), n: 10, off: off()}) : [];
  $('likelytitle').textContent = `Likely in the place of ${labelOf(texts[position])}`;
  $('likely').replaceChildren(...likely.map(({id, p, text}) => {
    const button = element('button');
    button.append(element('span', labelOf(text)), element('span', p.toFixed(3)), element('span', '', 'bar'));
    button.lastChild.style.width = `${100 * p}%`;
    button.title = 'Take this one, and go on from there';
    button.onclick = () => run(() => goOnWith(position, id));
    const item = element('li');
    item.append(button);
    return item;
  }));
  $('likelypanel').hidden = false;
  if (seen) showHeads();
}

async function goOnWith(position, id) {
  ids = [...ids.slice(0, position), id];
  texts = await ask('texts', {ids});
  promptLength = Math.min(promptLength, position);
  showText();
  await continueText();
}

/** Back to the clicked token, or to the surprise of each, when the pointer leaves the text. */
function leave() {
  if (chosen >= 0) return attempt(point)(chosen);
  if (!surprise.length) return null;
  pointed = -1;
  $('panels').hidden = true;
  return showSurprise();
}

/** Arrow keys go from token to token. */
function move(event) {
  const steps = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -ids.length, End: ids.length};
  const from = positionOf(event);
  if (from < 0) return;
  if (event.key === 'Enter') attempt(choose)(from);
  if (!(event.key in steps)) return;
  event.preventDefault();
  const spans = $('text').children;
  const to = Math.max(0, Math.min(spans.length - 1, from + steps[event.key]));
  spans[from].tabIndex = -1;
  spans[to].tabIndex = 0;
  spans[to].focus();
}

/** A function whose error is shown. */
function attempt(action) {
  return (argument) => action(argument).catch((error) => say(error.message, true));
}

$('go').onclick = () => run(start);
$('stop').onclick = () => ask('stop');
$('score').onclick = () => run(score);
$('text').onclick = (event) => attempt(choose)(positionOf(event));
$('text').onpointerover = (event) => attempt(point)(positionOf(event));
$('text').addEventListener('focusin', (event) => attempt(point)(positionOf(event)));
$('text').onpointerleave = leave;
$('text').onkeydown = move;
$('time').oninput = () => {
  $('when').textContent = header.models[Number($('time').value)].name;
};
$('time').onchange = () => run(goBack);
$('prompt').onkeydown = (event) => {
  if (event.key === 'Enter' && (event.ctrlKey || event.metaKey) && !$('go').disabled) run(start);
};

async function main() {
  $('title').textContent = document.title = header.title;
  $('about').textContent = header.about;
  $('timerow').hidden = header.models.length < 2;
  $('time').max = $('time').value = header.models.length - 1;
  $('when').textContent = header.models[header.models.length - 1].name;
  const buffer = readWeights(header.bytes);
  await ask('load', {header, buffer}, null, [buffer]);
  say('Ready');
  for (const id of ['go', 'score']) $(id).disabled = false;
}

main().catch((error) => say(error.message, true));
