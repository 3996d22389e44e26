// Images on canvases. An image is its tokens; bit k of a token is pixel k of its block in raster order, 1 is ink.
"use strict";

const { patch_size: PATCH, image_size: SIZE, vocab_size: VOCABULARY, num_labels: NUM_LABELS, id2label: NAMES } =
  CHECKPOINT.config;
const GRID = SIZE / PATCH;
const PAPER = "#15182b", INK = "#fbf7ee"; // of an image, on a light page and on a dark one
const EMPTY = "#2b3154", NEXT = "#38c6b4"; // what is not known yet, and the block that comes next
const FILLED = { paper: "#12393f", ink: "#4fe0cd" }; // what the model filled in

const byId = (id) => document.getElementById(id);

// Calls visit(x, y, isInk) for the pixels of a token at its place in the image.
function forEachPixel(token, place, visit) {
  const left = (place % GRID) * PATCH, top = Math.floor(place / GRID) * PATCH;
  for (let k = 0; k < PATCH ** 2; k++) visit(left + (k % PATCH), top + Math.floor(k / PATCH), ((token >> k) & 1) === 1);
}

// Tokens of an image from a function of its pixels, isSet(x, y).
function toTokens(isSet) {
  return Array.from({ length: GRID ** 2 }, (_, place) => {
    let token = 0, bit = 1;
    forEachPixel(0, place, (x, y) => {
      if (isSet(x, y)) token += bit;
      bit *= 2;
    });
    return token;
  });
}

// A canvas that is an image to people who do not see it, too.
function makeCanvas(side, description) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = side;
  describe(canvas, description);
  return canvas;
}

function describe(canvas, description) {
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", description);
}

// masks: which bits of the tokens are the visitor's own; the others are tinted. No masks: all are of one kind.
function paintImage(canvas, tokens, masks) {
  const context = canvas.getContext("2d"), scale = canvas.width / SIZE;
  context.fillStyle = EMPTY;
  context.fillRect(0, 0, canvas.width, canvas.height);
  tokens.forEach((token, place) => {
    let bit = 0;
    forEachPixel(token, place, (x, y, isInk) => {
      const isOwn = !masks || (masks[place] >> bit++) & 1;
      context.fillStyle = isOwn ? (isInk ? INK : PAPER) : isInk ? FILLED.ink : FILLED.paper;
      context.fillRect(x * scale, y * scale, scale, scale);
    });
  });
}

function paintNextBlock(canvas, place) {
  const context = canvas.getContext("2d"), scale = canvas.width / SIZE;
  context.fillStyle = NEXT;
  forEachPixel(0, place, (x, y) => context.fillRect(x * scale, y * scale, scale, scale));
}

// A class as the page writes it: a Persian digit stands before the name of one.
const IS_PERSIAN = /persian/i.test(CHECKPOINT.subject ?? "");

function shownName(label) {
  const name = NAMES[label];
  return IS_PERSIAN && /^\d$/.test(name) ? `${String.fromCharCode(0x6f0 + Number(name))}\u00a0${name}` : name;
}

function className(label) {
  return label === null ? `any ${NOUN}` : shownName(label);
}

// What the page calls a class: digits are named like digits.
const NOUN = Object.values(NAMES).every((name) => /^\p{Nd}$/u.test(name)) ? "digit" : "class";
// The bars of the likeliest classes.
const MAX_BARS = 5;

function showBars(list, posterior, least) {
  const order = posterior.map((_, label) => label).sort((a, b) => posterior[b] - posterior[a]);
  list.replaceChildren(
    ...order.slice(0, MAX_BARS).map((label) => {
      const item = document.createElement("li"), name = document.createElement("span");
      const bar = document.createElement("i"), share = document.createElement("span");
      name.textContent = shownName(label);
      bar.style.setProperty("--share", posterior[label]);
      share.textContent = percent(posterior[label], least);
      item.append(name, bar, share);
      return item;
    }),
  );
}

function indexOfLargest(numbers) {
  return numbers.indexOf(Math.max(...numbers));
}

// least: the smallest share that can be told from none; of an estimate by n particles, 1 / n.
function percent(share, least = 0.001) {
  if (share < least) return `<${(100 * least).toFixed(1)}%`;
  return share > 1 - least ? `>${(100 * (1 - least)).toFixed(1)}%` : `${(100 * share).toFixed(1)}%`;
}
