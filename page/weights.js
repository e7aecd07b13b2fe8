/*
 * What every page does first: take the weights out of it, where they lie as base64, in pieces.
 */
'use strict';

function bytesOf(base64) {
  return Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
}

/** The weights as an ArrayBuffer of `size` bytes. Their elements leave the page, which frees the text. */
function readWeights(size) {
  const bytes = new Uint8Array(size);
  let at = 0;
  for (const piece of document.querySelectorAll('script.weights')) {
    const text = piece.textContent;
    for (let i = 0; i < text.length; i += 2 ** 20) {  // a multiple of 4 characters is a multiple of 3 bytes
      const part = bytesOf(text.slice(i, i + 2 ** 20));
      bytes.set(part, at);
      at += part.length;
    }
    piece.remove();
  }
  return bytes.buffer;
}
