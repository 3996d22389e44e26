// The pad: an image that a visitor draws, and the part of it that is hidden from the model. A pixel of the pad is one
// of the model, so that both see the same.
"use strict";

const CELL = 16; // canvas pixels per pixel of the image
const RADIUS = { pen: 0.045 * SIZE, eraser: 0.06 * SIZE, hide: 0.09 * SIZE, show: 0.09 * SIZE };
const HIDDEN = { ground: "#8d86c9", line: "#6f67b3" };
const MAX_UNDO = 50;
const REGIONS = {
  right: (x) => x >= SIZE / 2,
  lower: (x, y) => y >= SIZE / 2,
  middle: (x, y) => Math.max(Math.abs(x + 0.5 - SIZE / 2), Math.abs(y + 0.5 - SIZE / 2)) < SIZE / 5,
  nothing: () => false,
};

class Pad {
  constructor(canvas, getTool, onChange) {
    Object.assign(this, { canvas, getTool, onChange });
    this.ink = new Uint8Array(SIZE ** 2);
    this.hidden = new Uint8Array(SIZE ** 2);
    this.before = []; // states to go back to
    this.last = null; // where the pointer was, while it is down
    this.pointer = null; // which one is down: a second finger or a palm does not draw
    this.cursor = { x: Math.floor(SIZE / 2), y: Math.floor(SIZE / 2) }; // of the keyboard
    this.hasCursor = false;
    canvas.width = canvas.height = SIZE * CELL;
    this.listen();
    this.paint();
  }

  listen() {
    const { canvas } = this;
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || this.pointer !== null) return;
      this.pointer = event.pointerId;
      canvas.setPointerCapture(event.pointerId);
      this.hasCursor = false;
      this.remember();
      this.last = this.locate(event);
      this.stroke(this.last);
    });
    canvas.addEventListener("pointermove", (event) => this.isDrawing(event) && this.stroke(this.locate(event)));
    for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) {
      canvas.addEventListener(end, (event) => {
        if (!this.isDrawing(event)) return;
        this.pointer = null;
        this.endStroke();
      });
    }
    canvas.addEventListener("keydown", (event) => this.pressKey(event));
    canvas.addEventListener("focus", () => this.setCursor(canvas.matches(":focus-visible")));
    canvas.addEventListener("blur", () => this.setCursor(false));
  }

  isDrawing(event) {
    return event.pointerId === this.pointer;
  }

  setCursor(isShown) {
    this.hasCursor = isShown;
    this.paint();
  }

  // Where in the image, in pixels, a pointer is.
  locate(event) {
    const box = this.canvas.getBoundingClientRect();
    return { x: ((event.clientX - box.left) / box.width) * SIZE, y: ((event.clientY - box.top) / box.height) * SIZE };
  }

  // Arrow keys move a cursor, Space applies the tool there; with Shift the tool is applied all along.
  pressKey(event) {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1], " ": [0, 0] };
    if (!(event.key in steps) || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault(); // no scrolling
    const [right, down] = steps[event.key], inside = (x) => Math.min(Math.max(x, 0), SIZE - 1);
    this.cursor = { x: inside(this.cursor.x + right), y: inside(this.cursor.y + down) };
    this.hasCursor = true;
    if (event.key !== " " && !event.shiftKey) return this.paint();
    this.remember();
    this.last = { x: this.cursor.x + 0.5, y: this.cursor.y + 0.5 };
    this.stroke(this.last);
    this.endStroke();
  }

  // The tool from where the pointer was to where it is now.
  stroke(to) {
    const { last: from } = this;
    const steps = Math.max(1, Math.ceil(2 * Math.hypot(to.x - from.x, to.y - from.y)));
    for (let i = 1; i <= steps; i++) {
      this.dab(from.x + ((to.x - from.x) * i) / steps, from.y + ((to.y - from.y) * i) / steps);
    }
    this.last = to;
    this.paint();
  }

  dab(centerX, centerY) {
    const tool = this.getTool();
    for (let y = 0; y < SIZE; y++) {
      for (let x = 0; x < SIZE; x++) {
        if (Math.hypot(x + 0.5 - centerX, y + 0.5 - centerY) > RADIUS[tool]) continue;
        const i = y * SIZE + x;
        if (tool === "pen" || tool === "eraser") this.ink[i] = tool === "pen" ? 1 : 0;
        this.hidden[i] = tool === "hide" ? 1 : 0; // what is drawn is seen
      }
    }
  }

  endStroke() {
    if (this.last) this.onChange();
    this.last = null;
  }

  remember() {
    this.before.push({ ink: this.ink.slice(), hidden: this.hidden.slice() });
    if (this.before.length > MAX_UNDO) this.before.shift();
  }

  undo() {
    Object.assign(this, this.before.pop());
    this.changed();
  }

  clear() {
    this.remember();
    this.ink.fill(0);
    this.hidden.fill(0);
    this.changed();
  }

  // Something to begin with: an image of which the right half is hidden.
  begin(tokens) {
    this.load(tokens);
    this.hideRegion("right");
    this.before = [];
    this.onChange();
  }

  // Put an image on the pad; what is hidden stays hidden.
  load(tokens) {
    this.remember();
    tokens.forEach((token, place) => forEachPixel(token, place, (x, y, isInk) => (this.ink[y * SIZE + x] = isInk ? 1 : 0)));
    this.changed();
  }

  hideRegion(name) {
    this.remember();
    this.hidden = this.hidden.map((_, i) => (REGIONS[name](i % SIZE, Math.floor(i / SIZE)) ? 1 : 0));
    this.changed();
  }

  changed() {
    this.paint();
    this.onChange();
  }

  // Tokens, and which of their bits are known.
  read() {
    const masks = toTokens((x, y) => !this.hidden[y * SIZE + x]);
    return { tokens: toTokens((x, y) => this.ink[y * SIZE + x] && !this.hidden[y * SIZE + x]), masks };
  }

  paint() {
    const context = this.canvas.getContext("2d");
    for (let i = 0; i < SIZE ** 2; i++) {
      const x = (i % SIZE) * CELL, y = Math.floor(i / SIZE) * CELL;
      context.fillStyle = this.hidden[i] ? HIDDEN.ground : this.ink[i] ? INK : PAPER;
      context.fillRect(x, y, CELL, CELL);
      if (this.hidden[i]) this.hatch(context, x, y);
    }
    if (!this.hasCursor) return;
    context.strokeStyle = NEXT;
    context.lineWidth = 3;
    context.strokeRect(this.cursor.x * CELL - 1.5, this.cursor.y * CELL - 1.5, CELL + 3, CELL + 3);
  }

  // A line across the cell: hidden pixels are known by more than their color.
  hatch(context, x, y) {
    context.strokeStyle = HIDDEN.line;
    context.lineWidth = 3;
    context.beginPath();
    context.moveTo(x, y + CELL);
    context.lineTo(x + CELL, y);
    context.stroke();
  }
}
