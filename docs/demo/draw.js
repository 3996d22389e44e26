// The first part of the page: settings in, an image that grows block by block out.
"use strict";

const SCALE = 16; // canvas pixels per pixel of the image
const DURATION = { fast: 600, slow: 15000, still: 0 }; // from the press of a button to the whole image, milliseconds
const MAX_HISTORY = 12, MAX_SEED = 2 ** 32 - 1;
const MIN_POSTERIOR = 0.999, TEMPERATURE = 0.8; // what the page begins with
const MAX_BLOCKS = 16; // of the alphabet that are shown; of a larger one the likeliest

class Draw {
  constructor(engine, onImage) {
    Object.assign(this, { engine, onImage, number: 0, image: null });
    this.canvas = byId("picture");
    this.canvas.width = this.canvas.height = SIZE * SCALE;
    byId("temperature").value = TEMPERATURE;
    byId("draw").addEventListener("click", () => this.drawNext());
    byId("seed").addEventListener("change", () => {
      this.draw();
      this.isTyped = true; // until it is drawn: pressing the button for it asks for no other
    });
    byId("temperature").addEventListener("input", () => this.draw());
    byId("slow").addEventListener("change", () => this.draw());
    byId("again").addEventListener("change", () => this.draw());
    byId("classes").addEventListener("change", () => this.draw());
    for (let i = 0; i < Math.min(VOCABULARY, MAX_BLOCKS); i++) this.addBlock();
  }

  settings() {
    const seed = Math.floor(Number(byId("seed").value));
    const { value } = document.querySelector("#classes input:checked");
    return {
      label: value === "any" ? null : Number(value),
      temperature: Number(byId("temperature").value),
      seed: Math.min(Math.max(Number.isFinite(seed) ? seed : 0, 0), MAX_SEED),
      minPosterior: byId("again").checked ? MIN_POSTERIOR : 0,
    };
  }

  drawNext() {
    if (!this.isTyped) byId("seed").value = (this.settings().seed + 1) % (MAX_SEED + 1);
    this.draw();
  }

  draw() {
    const settings = this.settings(), start = performance.now();
    const mine = ++this.number; // an earlier image stops growing when it sees another
    this.isTyped = false;
    byId("use").disabled = true; // until there is the image that is wanted
    byId("seed").value = settings.seed;
    byId("temperature-value").value = settings.temperature.toFixed(1);
    document.body.dataset.state = "drawing";
    byId("status").textContent = byId("which-block").textContent = "";
    byId("growth").textContent = "sampling …";
    const show = (image, milliseconds) => {
      if (mine === this.number) this.grow({ ...image, ...settings, milliseconds }, start);
    };
    this.engine.ask("sample", settings, show, undefined, () => (byId("growth").textContent = ""));
  }

  // What is shown has been judged: no image that is sampled again is seen.
  grow(image, start) {
    const duration = byId("slow").checked ? DURATION.slow : DURATION.fast, mine = this.number;
    const frame = (now) => {
      if (mine !== this.number) return; // another image is wanted
      const share = duration ? Math.min(Math.max(now - start, 0) / duration, 1) : 1;
      this.paint(image, Math.floor(share * image.tokens.length));
      if (share === 1) this.finish(image);
      else requestAnimationFrame(frame);
    };
    frame(performance.now());
  }

  paint(image, known) {
    const { tokens, steps } = image;
    paintImage(this.canvas, tokens.slice(0, known));
    if (known < tokens.length) paintNextBlock(this.canvas, known);
    this.paintBlocks(steps[Math.min(known, tokens.length - 1)].probabilities);
    const nats = sumNats(steps.slice(0, known)).toFixed(1);
    byId("growth").textContent = `block ${known + 1} of ${tokens.length} · ${nats} nats so far`;
  }

  // What it says in the end is in an element of its own, which screen readers read aloud.
  finish(image) {
    const { label, seed, tries, posterior, milliseconds } = image;
    this.image = image;
    this.isTyped = false;
    byId("growth").textContent = "";
    const hardest = indexOfLargest(image.steps.map((step) => entropy(step.probabilities)));
    this.paintBlocks(image.steps[hardest].probabilities);
    byId("which-block").textContent = ` · block ${hardest + 1}, its least certain`;
    const reads = label === null ? indexOfLargest(posterior) : label;
    const facts = [`${sumNats(image.steps).toFixed(1)} nats`];
    if (NUM_LABELS > 1) facts.push(`read as ${shownName(reads)} with ${percent(posterior[reads])}`);
    if (tries > 1) facts.push(`try ${tries}`);
    byId("status").textContent = [...facts, `${milliseconds} ms`].join(" · ");
    describe(this.canvas, `${className(label)}, drawn by the model in white on dark; seed ${seed}`);
    this.remember(image);
    this.onImage(image);
    document.body.dataset.state = "done";
  }

  remember({ tokens, label, seed, temperature, minPosterior }) {
    const text = `${className(label)}, seed ${seed}, temperature ${temperature}${minPosterior ? "" : ", unclear or not"}`;
    const old = [...byId("history").children].find((other) => other.name === text), hadFocus = old?.matches(":focus");
    old?.remove(); // it comes first again
    const button = document.createElement("button"), canvas = makeCanvas(SIZE, text);
    button.type = "button";
    button.name = text;
    button.title = `${text}: draw it again`;
    paintImage(canvas, tokens);
    button.append(canvas);
    button.addEventListener("click", () => {
      document.querySelector(`#classes input[value="${label ?? "any"}"]`).checked = true;
      byId("seed").value = seed;
      byId("temperature").value = temperature;
      byId("again").checked = minPosterior > 0;
      this.draw();
    });
    byId("history").prepend(button);
    if (hadFocus) button.focus();
    while (byId("history").childNodes.length > MAX_HISTORY) byId("history").lastChild.remove();
  }

  addBlock() {
    const block = document.createElement("div"), canvas = document.createElement("canvas");
    canvas.width = canvas.height = PATCH;
    block.append(canvas);
    byId("blocks").append(block);
  }

  // A small alphabet is in order; of a large one the likeliest are shown.
  paintBlocks(probabilities) {
    const blocks = byId("blocks").childNodes;
    let shown = [...probabilities.keys()];
    if (shown.length > blocks.length) shown = shown.sort((a, b) => probabilities[b] - probabilities[a]);
    blocks.forEach((block, i) => {
      const context = block.firstChild.getContext("2d");
      forEachPixel(shown[i], 0, (x, y, isInk) => {
        context.fillStyle = isInk ? INK : PAPER;
        context.fillRect(x, y, 1, 1);
      });
      block.style.setProperty("--share", probabilities[shown[i]]);
      block.title = percent(probabilities[shown[i]]);
    });
  }
}

function entropy(probabilities) {
  return probabilities.reduce((sum, p) => (p > 0 ? sum - p * Math.log(p) : sum), 0);
}

function sumNats(steps) {
  return steps.reduce((sum, step) => sum + step.nats, 0);
}
