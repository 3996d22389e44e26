// The second part of the page: the pad, and what the model makes of the part that it sees.
"use strict";

const NUM_ANSWERS = 8;
const PARTICLES = [32, 64, 128, 256, 512, 1024];
const WORK = 2e9; // multiplications, about three seconds: so many particles are the default
const MEMORY = 2 ** 29; // bytes of keys and values
const FEW_ANCESTORS = 2;
const ANSWER_SCALE = 4; // canvas pixels per pixel of an answer

class Complete {
  constructor(engine) {
    this.engine = engine;
    this.seed = 0;
    this.isRunning = false;
    this.pad = new Pad(byId("pad"), () => document.querySelector("#tools input:checked").value, () => this.forget());
    byId("complete").addEventListener("click", () => (this.isRunning ? this.stop("Stopped.") : this.run()));
    byId("undo").addEventListener("click", () => this.pad.undo());
    byId("clear").addEventListener("click", () => this.pad.clear());
    for (const button of document.querySelectorAll("[data-region]")) {
      button.addEventListener("click", () => this.pad.hideRegion(button.dataset.region));
    }
    for (const id of ["pad-class", "particles"]) byId(id).addEventListener("change", () => this.forget());
    this.offerParticles();
  }

  offerParticles() {
    const { multiplications, bytes } = costs(CHECKPOINT);
    const possible = PARTICLES.filter((num, i) => i === 0 || num * bytes <= MEMORY);
    byId("particles").append(...possible.map((num) => new Option(num, num)));
    byId("particles").value = possible.findLast((num, i) => i === 0 || num * multiplications <= WORK);
  }

  // Answers to an image that has changed are none.
  forget() {
    if (this.isRunning) this.stop("");
    byId("undo").disabled = this.pad.before.length === 0;
    byId("answers").replaceChildren();
    byId("posterior-part").hidden = true;
    this.say("");
  }

  say(text) {
    byId("completion-status").textContent = text;
  }

  setRunning(isRunning) {
    this.isRunning = isRunning;
    byId("complete").textContent = isRunning ? "Stop" : "Complete";
    byId("progress").hidden = !isRunning;
    byId("progress").value = 0;
    byId("completion").dataset.state = isRunning ? "running" : "done";
  }

  stop(text) {
    this.engine.cancel("complete");
    this.setRunning(false);
    this.say(text);
  }

  run() {
    this.forget();
    const { tokens, masks } = this.pad.read();
    if (!tokens.some((token, place) => token & masks[place])) {
      this.say("Nothing is visible: draw something, show a part, or press “Complete it” above.");
      return;
    }
    const choice = byId("pad-class").value;
    const settings = {
      tokens,
      masks,
      label: choice === "any" ? null : Number(choice),
      numParticles: Number(byId("particles").value),
      numAnswers: NUM_ANSWERS,
      seed: ++this.seed, // other answers each time
    };
    this.setRunning(true);
    this.say("Completing …");
    this.engine.ask(
      "complete",
      settings,
      (result, milliseconds) => this.show(result, settings, milliseconds),
      ({ share }) => (byId("progress").value = share),
      () => this.stop(""),
    );
  }

  show(result, { label, masks }, milliseconds) {
    this.setRunning(false);
    const isWhole = masks.every((mask) => mask === VOCABULARY - 1);
    const groups = isWhole ? [] : groupAnswers(result.answers);
    byId("answers").replaceChildren(...groups.map((group) => answerFigure(group, masks)));
    const isOpen = label === null && NUM_LABELS > 1; // which class it is, is a question
    byId("posterior-part").hidden = !isOpen;
    if (isOpen) showBars(byId("posterior"), result.posterior, 1 / result.numParticles);
    byId("answers").scrollIntoView({ block: "nearest" });
    this.say(summary(result, { isWhole, isOpen, num: groups.length, milliseconds }));
  }
}

// Of one particle: multiplications of an image, and bytes of its keys and values.
function costs({ config, tensors }) {
  const { hidden_size, num_hidden_layers } = config, numTokens = GRID ** 2;
  const weights = Object.entries(tensors).filter(([name]) => name.endsWith("weight") && !name.includes("embeddings"));
  const dense = weights.reduce((sum, [, shape]) => sum + shape.reduce((a, b) => a * b, 1), 0);
  const channels = numTokens * num_hidden_layers * hidden_size;
  return { multiplications: numTokens * (dense + channels), bytes: 2 * 4 * channels };
}

// The same answer, of the same class, several times is one with a number.
function groupAnswers(answers) {
  const groups = new Map();
  for (const answer of answers) {
    const key = [answer.label, ...answer.tokens].join();
    if (!groups.has(key)) groups.set(key, { ...answer, num: 0 });
    groups.get(key).num++;
  }
  return [...groups.values()].sort((a, b) => b.num - a.num);
}

function answerFigure({ tokens, label, num }, masks) {
  const figure = document.createElement("figure"), caption = document.createElement("figcaption");
  const name = NUM_LABELS > 1 ? shownName(label) : "Answer";
  const canvas = makeCanvas(SIZE * ANSWER_SCALE, `The drawing completed as ${name}; filled-in pixels are green`);
  paintImage(canvas, tokens, masks);
  caption.textContent = num > 1 ? `${name} (${num}×)` : name;
  caption.title = name;
  figure.append(canvas, caption);
  return figure;
}

function summary({ posterior, numAncestors, numParticles }, { isWhole, isOpen, num, milliseconds }) {
  const parts = [];
  if (isWhole) parts.push("Nothing is hidden, so there is nothing to fill in.");
  else parts.push(`${num} different ${num === 1 ? "answer" : "answers"} in ${(milliseconds / 1000).toFixed(1)} s.`);
  const best = indexOfLargest(posterior);
  if (isOpen) parts.push(`Most likely ${shownName(best)}: ${percent(posterior[best], 1 / numParticles)}.`);
  if (!isWhole && numAncestors < FEW_ANCESTORS) {
    parts.push("What is seen hardly fits what the particles tried: more of them do better.");
  }
  return parts.join(" ");
}
