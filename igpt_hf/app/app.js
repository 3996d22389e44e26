// A drawing area, run by Gradio once its element is there: pen, eraser, undo, clear and, where asked for, upload.
// The image goes to Python as the component's value, a PNG in a data: address, whenever a stroke ends.

const MAX_BYTES = 4e6, MAX_UNDO = 30;
const SLATE = "#15182b", CHALK = "#fbf7ee";
const canvas = element.querySelector("canvas"), message = element.querySelector(".pad-message");
const context = canvas.getContext("2d", { willReadFrequently: true });
let paper = SLATE, ink = CHALK, isErasing = false, isDown = false, history = [];

function share(isBlank = false) {
  props.value = isBlank ? null : canvas.toDataURL("image/png");
}

function remember() {
  history.push({ paper, ink, pixels: context.getImageData(0, 0, canvas.width, canvas.height) });
  history = history.slice(-MAX_UNDO);
}

function clear() {
  [paper, ink] = [SLATE, CHALK];
  context.fillStyle = paper;
  context.fillRect(0, 0, canvas.width, canvas.height);
}

function choose(tool) {
  isErasing = tool === "eraser";
  for (const button of element.querySelectorAll("[data-tool]")) {
    button.setAttribute("aria-pressed", button.dataset.tool === tool);
  }
}

function place(event) {
  const box = canvas.getBoundingClientRect();
  const scale = canvas.width / box.width;
  return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
}

function lineTo(event) {
  context.lineTo(...place(event));
  context.stroke();
}

canvas.addEventListener("pointerdown", (event) => {
  event.preventDefault();
  canvas.setPointerCapture(event.pointerId);
  message.textContent = "";
  remember();
  isDown = true;
  Object.assign(context, { lineCap: "round", lineJoin: "round", strokeStyle: isErasing ? paper : ink });
  context.lineWidth = (isErasing ? 0.16 : 0.11) * canvas.width;
  context.beginPath();
  context.moveTo(...place(event));
  lineTo(event); // a dot
});
canvas.addEventListener("pointermove", (event) => isDown && lineTo(event));
for (const end of ["pointerup", "pointercancel"]) {
  canvas.addEventListener(end, () => {
    isDown = false;
    share();
  });
}

// The whole image, as large as fits, on a ground of the color of its corner; the pen contrasts with that.
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
  remember();
  clear();
  const scale = canvas.width / Math.max(image.width, image.height);
  const width = image.width * scale, height = image.height * scale;
  context.imageSmoothingEnabled = scale < 1;
  context.drawImage(image, 0, 0, 1, 1, 0, 0, 1, 1);
  const [red, green, blue] = context.getImageData(0, 0, 1, 1).data;
  paper = context.fillStyle = `rgb(${red} ${green} ${blue})`;
  ink = red + green + blue > 382 ? SLATE : CHALK;
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(image, (canvas.width - width) / 2, (canvas.height - height) / 2, width, height);
  share();
}

for (const button of element.querySelectorAll("[data-tool]")) {
  button.addEventListener("click", () => choose(button.dataset.tool));
}
element.querySelector(".pad-undo").addEventListener("click", () => {
  const before = history.pop();
  if (!before) return;
  ({ paper, ink } = before);
  context.putImageData(before.pixels, 0, 0);
  share(history.length === 0);
});
element.querySelector(".pad-clear").addEventListener("click", () => {
  remember();
  clear();
  share(true);
});
const input = element.querySelector("input[type=file]");
input?.addEventListener("change", async () => {
  if (input.files.length) await upload(input.files[0]);
  input.value = ""; // the same file may come again
});
clear();
choose("pen");
