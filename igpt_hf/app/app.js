// A drawing area, run by Gradio once its element is there: pen, eraser, undo, clear and upload and, where there is a
// veil, a brush that hides a part. The image goes to Python as the component's value, a PNG in a data: address, whenever
// a stroke ends; what is hidden is transparent.

const MAX_BYTES = 2e7, MAX_UNDO = 30, UPLOAD_SIDE = 512, WAIT = 200; // milliseconds after the last stroke
const SLATE = "#15182b", CHALK = "#fbf7ee", VEIL = "rgb(141 134 201 / 0.8)";
const pad = element.querySelector(".pad"), message = element.querySelector(".pad-message");
const [canvas, veil] = element.querySelectorAll("canvas"), rows = element.querySelector(".pad-rows input");
const kept = element.querySelector(".pad-rows output"); // how many rows, before the slider has moved
const context = canvas.getContext("2d", { willReadFrequently: true });
const size = +pad.dataset.size, pen = +pad.dataset.pen * canvas.width, cell = canvas.width / size;
let paper = SLATE, ink = CHALK, tool = "pen", history = [], hidden = new Uint8Array(size * size), timer;

function share() {
  showVeil();
  clearTimeout(timer);
  timer = setTimeout(() => {
    props.value = toPng();
    trigger("input");
  }, veil ? 0 : WAIT);
}

function toPng() {
  if (!veil) return canvas.toDataURL("image/png");
  const copy = new OffscreenCanvas(canvas.width, canvas.height), target = copy.getContext("2d");
  const whole = document.createElement("canvas");
  [whole.width, whole.height] = [canvas.width, canvas.height];
  target.drawImage(canvas, 0, 0);
  forHidden((x, y) => target.clearRect(x, y, cell, cell));
  whole.getContext("2d").drawImage(copy, 0, 0);
  return whole.toDataURL("image/png");
}

function forHidden(visit) {
  hidden.forEach((isHidden, i) => isHidden && visit((i % size) * cell, Math.floor(i / size) * cell));
}

function showVeil() {
  if (!veil) return;
  const over = veil.getContext("2d");
  over.clearRect(0, 0, veil.width, veil.height);
  over.fillStyle = VEIL;
  forHidden((x, y) => over.fillRect(x, y, cell, cell));
}

function remember() {
  message.textContent = "";
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
  history = [...history, { paper, ink, pixels, hidden: hidden.slice(), kept: kept?.textContent }].slice(-MAX_UNDO);
}

function clear(color = SLATE) {
  [paper, ink] = [color, CHALK];
  context.fillStyle = paper;
  context.fillRect(0, 0, canvas.width, canvas.height);
}

function choose(name) {
  tool = name;
  for (const button of element.querySelectorAll("[data-tool]")) {
    button.setAttribute("aria-pressed", button.dataset.tool === name);
  }
}

function showRows(num) {
  rows.value = kept.textContent = num;
}

function keepRows() {
  showRows(rows.value);
  hidden = hidden.map((_, i) => i >= rows.value * size);
}

// --- strokes --------------------------------------------------------------------------------------------------------

let last; // where the pen was
let pointer = null; // which one is down: a second finger or a palm does not draw
let start; // before a stroke of the pen where a part is hidden: what was drawn, and what the model saw of it

function place(event) {
  const box = canvas.getBoundingClientRect(), scale = canvas.width / box.width;
  return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
}

function lineTo(event) {
  const [x, y] = place(event), steps = Math.ceil(Math.hypot(x - last[0], y - last[1]) / cell) || 1;
  if (tool === "pen" || tool === "eraser") {
    context.beginPath();
    context.moveTo(...last);
    context.lineTo(x + 0.01, y); // without a way, a dot
    context.stroke();
  } else {
    for (let i = 1; i <= steps; i++) {
      hide(last[0] + ((x - last[0]) * i) / steps, last[1] + ((y - last[1]) * i) / steps, tool === "hide");
    }
    showVeil();
  }
  last = [x, y];
}

function hide(x, y, isHidden) {
  const radius = size / 14;
  hidden.forEach((_, i) => {
    if (Math.hypot((i % size) + 0.5 - x / cell, Math.floor(i / size) + 0.5 - y / cell) <= radius) hidden[i] = isHidden;
  });
}

canvas.addEventListener("pointerdown", (event) => {
  if (event.button !== 0 || pointer !== null) return;
  event.preventDefault();
  pointer = event.pointerId;
  canvas.setPointerCapture(event.pointerId);
  remember();
  clearTimeout(timer);
  Object.assign(context, { lineCap: "round", lineJoin: "round", strokeStyle: tool === "eraser" ? paper : ink });
  context.lineWidth = tool === "eraser" ? Math.max(pen, 0.1 * canvas.width) : pen;
  last = place(event);
  start = veil && tool === "pen" ? [canvas.toDataURL(), toPng()] : null;
  lineTo(event);
});
canvas.addEventListener("pointermove", (event) => event.pointerId === pointer && lineTo(event));
for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) {
  canvas.addEventListener(end, (event) => {
    if (event.pointerId !== pointer) return;
    pointer = null;
    if (start && canvas.toDataURL() !== start[0] && toPng() === start[1]) {
      message.textContent = "What you drew is hidden: Reveal shows it to the model.";
    }
    share();
  });
}

// --- images ---------------------------------------------------------------------------------------------------------

// The gray level of what is opaque in an image, 0 to 255, if its corner is transparent.
function levelOfOpaque(image) {
  const small = new OffscreenCanvas(32, 32).getContext("2d");
  small.drawImage(image, 0, 0, 32, 32);
  const values = small.getImageData(0, 0, 32, 32).data;
  let sum = 0, weight = 0;
  for (let i = 0; i < values.length; i += 4) {
    sum += ((values[i] + values[i + 1] + values[i + 2]) / 3) * values[i + 3];
    weight += values[i + 3];
  }
  return values[3] < 128 && weight ? sum / weight : null;
}

// The whole image, as large as fits, on a ground of the color of its corner, or of paper where that is transparent and
// the rest is dark; the pen contrasts with it.
function show(image) {
  remember();
  clear((levelOfOpaque(image) ?? 255) < 128 ? CHALK : SLATE);
  const scale = canvas.width / Math.max(image.width, image.height);
  const width = image.width * scale, height = image.height * scale;
  context.imageSmoothingEnabled = scale < 1;
  context.drawImage(image, 0, 0, 1, 1, 0, 0, 1, 1);
  const [red, green, blue] = context.getImageData(0, 0, 1, 1).data;
  clear(`rgb(${red} ${green} ${blue})`);
  ink = red + green + blue > 382 ? SLATE : CHALK;
  if (veil) clear("#000"); // what can be completed is white on black, also at the corner
  context.drawImage(image, (canvas.width - width) / 2, (canvas.height - height) / 2, width, height);
  share();
}

function isPlain() {
  const values = context.getImageData(0, 0, canvas.width, canvas.height).data;
  return values.every((value, i) => Math.abs(value - values[i % 4]) < 16);
}

async function read(address) {
  return createImageBitmap(await (await fetch(address)).blob());
}

async function upload(file) {
  message.textContent = "";
  if (file.size > MAX_BYTES) {
    message.textContent = `${file.name} has ${(file.size / 1e6).toFixed(1)} MB; at most ${MAX_BYTES / 1e6} MB, please.`;
    return;
  }
  let image;
  try {
    image = await createImageBitmap(file);
  } catch {
    message.textContent = `${file.name} is not an image that this browser can read. Use PNG, JPEG, WebP, GIF or BMP.`;
    return;
  }
  if (!veil) {
    show(image);
    if (isPlain()) message.textContent = `${file.name} has one color all over: there is nothing to read.`;
    return;
  }
  const scale = Math.min(1, UPLOAD_SIDE / Math.max(image.width, image.height)), small = document.createElement("canvas");
  [small.width, small.height] = [image.width, image.height].map((side) => Math.max(1, Math.round(side * scale)));
  small.getContext("2d").drawImage(image, 0, 0, small.width, small.height);
  const fitted = await server.fit(small.toDataURL("image/png")); // as the model sees it, or why not
  if (fitted.startsWith("data:")) show(await read(fitted));
  else message.textContent = `${file.name}: ${fitted}`;
}

// --- controls -------------------------------------------------------------------------------------------------------

for (const button of element.querySelectorAll("[data-tool]")) {
  button.addEventListener("click", () => choose(button.dataset.tool));
}
for (const button of element.querySelectorAll(".pad-examples button")) {
  button.addEventListener("click", async () => {
    show(await read(button.querySelector("img").src));
    keepRows();
    share();
  });
}
rows?.addEventListener("input", () => {
  remember();
  keepRows();
  share();
});
element.querySelector(".pad-undo").addEventListener("click", () => {
  const before = history.pop();
  if (!before) return;
  ({ paper, ink, hidden } = before);
  if (rows) showRows(before.kept);
  context.putImageData(before.pixels, 0, 0);
  share();
});
element.querySelector(".pad-clear").addEventListener("click", () => {
  remember();
  clear();
  if (veil) keepRows();
  share();
});
const input = element.querySelector("input[type=file]");
input.addEventListener("change", async () => {
  if (input.files.length) await upload(input.files[0]);
  input.value = ""; // the same file may come again
});
clear();
choose("pen");
if (veil) keepRows();
showVeil();
