// The page: settings in, a picture that grows block by block out. The model is in igpt.js, its weights in weights.js.
"use strict";

const PAPER = "#fbf7ee", INK = "#15182b", UNKNOWN = "#232842", NEXT = "#38c6b4";
const SCALE = 16; // canvas pixels per pixel of the picture
const DURATION = { fast: 1000, slow: 15000, still: 0 }; // of the whole drawing, milliseconds
const MAX_HISTORY = 12, MAX_SEED = 2 ** 32 - 1;

const byId = (id) => document.getElementById(id);
const model = new ImageGPT(CHECKPOINT);
const { patch_size: PATCH, image_size: SIZE, vocab_size: VOCABULARY, id2label: NAMES } = model.config;
let drawing = 0; // number of the latest drawing: an earlier animation stops when it sees another

function settings() {
  const seed = Math.floor(Number(byId("seed").value));
  return {
    label: document.querySelector("#digits input:checked").value,
    temperature: Number(byId("temperature").value),
    seed: Math.min(Math.max(Number.isFinite(seed) ? seed : 0, 0), MAX_SEED),
    duration: byId("slow").checked ? DURATION.slow : DURATION.fast,
  };
}

// Calls visit(x, y, isWhite) for the pixels of a block at the given place; bit k is pixel k in raster order.
function forEachPixel(token, place, visit) {
  const left = (place % model.gridSize) * PATCH, top = Math.floor(place / model.gridSize) * PATCH;
  for (let k = 0; k < PATCH ** 2; k++) visit(left + (k % PATCH), top + Math.floor(k / PATCH), (token >> k) & 1);
}

function paint(canvas, tokens, scale, isDone) {
  const context = canvas.getContext("2d");
  context.fillStyle = UNKNOWN;
  context.fillRect(0, 0, canvas.width, canvas.height);
  tokens.forEach((token, place) =>
    forEachPixel(token, place, (x, y, isWhite) => {
      context.fillStyle = isWhite ? PAPER : INK;
      context.fillRect(x * scale, y * scale, scale, scale);
    }),
  );
  if (!isDone) {
    context.fillStyle = NEXT;
    forEachPixel(0, tokens.length, (x, y) => context.fillRect(x * scale, y * scale, scale, scale));
  }
}

function paintBlocks(probabilities) {
  byId("blocks").childNodes.forEach((block, token) => {
    block.style.setProperty("--probability", probabilities[token]);
    block.title = `${(100 * probabilities[token]).toFixed(1)}%`;
  });
}

function remember(tokens, name, seed) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = SIZE;
  canvas.title = `${name}, seed ${seed}`;
  paint(canvas, tokens, 1, true);
  byId("history").prepend(canvas);
  while (byId("history").childNodes.length > MAX_HISTORY) byId("history").lastChild.remove();
}

function drawPicture() {
  const { label, temperature, seed, duration } = settings();
  const mine = ++drawing;
  byId("seed").value = seed;
  byId("temperature-value").value = temperature.toFixed(1);
  document.body.dataset.state = "drawing";

  const before = performance.now();
  const { tokens, steps } = model.sample({
    label: label === "any" ? null : Number(label),
    temperature,
    random: randomNumbers(seed),
  });
  const milliseconds = Math.round(performance.now() - before);

  const start = performance.now();
  function grow(now) {
    if (mine !== drawing) return;
    const share = duration ? Math.min(Math.max(now - start, 0) / duration, 1) : 1;
    const known = Math.floor(share * tokens.length), isDone = share === 1;
    paint(byId("picture"), tokens.slice(0, known), SCALE, isDone);
    paintBlocks(steps[Math.min(known, tokens.length - 1)].probabilities);
    const nats = steps.slice(0, known).reduce((sum, step) => sum + step.nats, 0).toFixed(1);
    byId("status").textContent = isDone
      ? `${nats} nats · computed in ${milliseconds} ms`
      : `block ${known + 1} of ${tokens.length} · ${nats} nats so far`;
    if (!isDone) return requestAnimationFrame(grow);
    remember(tokens, label === "any" ? "any digit" : NAMES[label], seed);
    document.body.dataset.state = "done";
  }
  grow(start);
}

// Persian digits stand above the names that are Latin digits.
function addChoice(value, name, isChecked) {
  const label = document.createElement("label"), input = document.createElement("input");
  const face = document.createElement("span"), small = document.createElement("small");
  Object.assign(input, { type: "radio", name: "digit", value, checked: isChecked });
  const isDigit = /^[0-9]$/.test(name);
  face.textContent = isDigit ? String.fromCharCode(0x06f0 + Number(name)) : name;
  small.textContent = isDigit ? name : "";
  label.append(input, face, small);
  byId("digits").append(label);
  input.addEventListener("change", drawPicture);
}

function addBlock(token) {
  const block = document.createElement("div"), canvas = document.createElement("canvas");
  canvas.width = canvas.height = PATCH;
  const context = canvas.getContext("2d");
  forEachPixel(token, 0, (x, y, isWhite) => {
    context.fillStyle = isWhite ? PAPER : INK;
    context.fillRect(x, y, 1, 1);
  });
  block.append(canvas);
  byId("blocks").append(block);
}

function main() {
  byId("picture").width = byId("picture").height = SIZE * SCALE;
  const numbers = Object.values(CHECKPOINT.tensors).map((shape) => shape.reduce((a, b) => a * b, 1));
  byId("parameters").textContent = numbers.reduce((a, b) => a + b, 0).toLocaleString("en");
  for (const [label, name] of Object.entries(NAMES)) addChoice(label, name, label === "4");
  addChoice("any", "any", !("4" in NAMES));
  for (let token = 0; token < VOCABULARY; token++) addBlock(token);
  byId("draw").addEventListener("click", () => {
    byId("seed").value = (settings().seed + 1) % (MAX_SEED + 1);
    drawPicture();
  });
  byId("seed").addEventListener("change", drawPicture);
  byId("temperature").addEventListener("input", drawPicture);
  byId("slow").addEventListener("change", drawPicture);
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) DURATION.fast = DURATION.still;
  drawPicture();
}

main();
