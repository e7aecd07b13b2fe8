/*
 * The page of a GPT. The model computes in a Worker (worker.js, with engine.js and tokenizer.js in front of it); this
 * shows what it sends. Whatever comes from the file is shown as text, never as HTML.
 */
'use strict';

const $ = (id) => document.getElementById(id);
const header = JSON.parse($('header').textContent);
const worker = new Worker(URL.createObjectURL(new Blob([$('engine').textContent], {type: 'text/javascript'})));
const waiting = new Map();                            // id of a message: {resolve, reject, onToken}
let lastId = 0;
let ids = [];                                         // the text as tokens
let texts = [];                                       // and what each of them adds to it
let promptLength = 0;                                 // how many of them the reader wrote
let chosen = -1;                                      // the token whose alternatives are shown
let seen = null;                                      // what each head saw from there

worker.onmessage = ({data}) => {
  const entry = waiting.get(data.id);
  if (!entry) return;
  if ('token' in data) return entry.onToken(data);
  waiting.delete(data.id);
  if ('error' in data) entry.reject(new Error(data.error));
  else entry.resolve(data.done);
};

/** Asks the worker; resolves to its answer. */
function ask(action, message = {}, onToken = null, transfer = []) {
  const id = ++lastId;
  return new Promise((resolve, reject) => {
    waiting.set(id, {resolve, reject, onToken});
    worker.postMessage({id, action, ...message}, transfer);
  });
}

function say(text, isError = false) {
  $('status').textContent = text;
  $('status').className = isError ? 'error' : '';
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

function addSpan(position) {
  const span = document.createElement('span');
  span.textContent = texts[position];
  span.tabIndex = 0;
  span.className = position < promptLength ? 'prompt' : '';
  span.onclick = () => choose(position);
  span.onkeydown = (event) => {
    if (event.key === 'Enter') choose(position);
  };
  $('text').append(span);
}

function showText() {
  $('text').replaceChildren();
  ids.forEach((_, position) => addSpan(position));
  chosen = -1;
  seen = null;
  $('likely').replaceChildren();
  $('headrow').hidden = true;
}


// What one can do.

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

async function continueText() {
  const began = performance.now();
  let n = 0;
  const message = {ids, max: Number($('max').value) || 1, sampling: settings(), off: off()};
  await ask('generate', message, ({token, text}) => {
    ids.push(token);
    texts.push(text);
    addSpan(ids.length - 1);
    n++;
    say(`${n} tokens, ${Math.round(n / (performance.now() - began) * 1000)} per second`);
  });
}

async function start() {
  ({ids, texts} = await ask('encode', {text: $('prompt').value}));
  promptLength = ids.length;
  showText();
  await continueText();
}

/** What else was likely at this place, and what the model looked at. */
async function choose(position) {
  if (position < 1) return;
  const answer = await ask('look', {ids: ids.slice(0, position), n: 10, off: off()});
  chosen = position;
  seen = answer;
  $('likely').replaceChildren(...answer.likely.map(({id, p, text}) => {
    const item = document.createElement('li');
    const button = document.createElement('button');
    for (const content of [labelOf(text), p.toFixed(3)]) {
      const cell = document.createElement('span');
      cell.textContent = content;
      button.append(cell);
    }
    const bar = document.createElement('span');
    bar.className = 'bar';
    bar.style.width = `${100 * p}%`;
    button.append(bar);
    button.title = 'Take this one, and go on from there';
    button.onclick = () => run(() => goOnWith(position, id));
    item.append(button);
    return item;
  }));
  $('headrow').hidden = !answer.rows.length;
  showAttention();
}

async function goOnWith(position, id) {
  ids = [...ids.slice(0, position), id];
  texts = await ask('texts', {ids});
  promptLength = Math.min(promptLength, position);
  showText();
  await continueText();
}

/** Shades the tokens that the chosen head looked at when the chosen token was made. */
function showAttention() {
  const spans = Array.from($('text').children);
  spans.forEach((span, i) => {
    span.classList.remove('seen');
    span.classList.toggle('chosen', i === chosen);
  });
  if (!seen) return;
  const layer = Number($('layer').value), head = Number($('head').value);
  const row = seen.rows.find((one) => one.layer === layer && one.head === head);
  if (!row) return;
  row.weights.forEach((weight, i) => {
    const span = spans[seen.first + i];
    span.classList.add('seen');
    span.style.setProperty('--much', Math.round(90 * weight));
  });
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
  const {bits, perByte} = await ask('surprise', {ids, off: off()});
  Array.from($('text').children).forEach((span, i) => {
    if (bits[i] === null) return;
    span.classList.add('seen');
    span.style.setProperty('--much', Math.min(90, Math.round(9 * bits[i])));
    span.title = `${bits[i].toFixed(2)} bits`;
  });
  say(`${perByte.toFixed(3)} bits per byte; the darker, the more surprising`);
}

$('go').onclick = () => run(start);
$('stop').onclick = () => ask('stop');
$('score').onclick = () => run(score);
$('time').oninput = () => {
  $('when').textContent = header.models[Number($('time').value)].name;
};
$('time').onchange = () => run(goBack);
$('layer').oninput = $('head').oninput = showAttention;
$('prompt').onkeydown = (event) => {
  if (event.key === 'Enter' && (event.ctrlKey || event.metaKey) && !$('go').disabled) run(start);
};

async function main() {
  $('title').textContent = document.title = header.title;
  $('about').textContent = header.about;
  $('prompt').value = header.prompt;
  $('layer').max = header.config.n_layer - 1;
  $('head').max = header.config.n_head - 1;
  $('timerow').hidden = header.models.length < 2;
  $('time').max = $('time').value = header.models.length - 1;
  $('when').textContent = header.models[header.models.length - 1].name;
  const buffer = readWeights(header.bytes);
  await ask('load', {header, buffer}, null, [buffer]);
  say('Ready');
  for (const id of ['go', 'score']) $(id).disabled = false;
  if (location.hash === '#test') await run(start);    // for tests: write at once
}

main().catch((error) => say(error.message, true));
