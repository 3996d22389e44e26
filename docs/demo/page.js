// Puts the page together: its texts from the model's configuration, its two parts, and their model in a worker.
"use strict";

function fillTexts() {
  const numbers = Object.values(CHECKPOINT.tensors).map((shape) => shape.reduce((a, b) => a * b, 1));
  const texts = {
    parameters: numbers.reduce((a, b) => a + b, 0).toLocaleString("en"),
    size: `${SIZE}×${SIZE}`,
    block: `${PATCH}×${PATCH}`,
    blocks: (GRID ** 2).toLocaleString("en"),
    vocabulary: VOCABULARY.toLocaleString("en"),
    noun: NOUN,
    threshold: `${100 * MIN_POSTERIOR}%`,
    subject: CHECKPOINT.subject ?? "images",
  };
  for (const element of document.querySelectorAll("[data-text]")) element.textContent = texts[element.dataset.text];
}

function addChoice(value, name, isChecked) {
  const label = document.createElement("label"), input = document.createElement("input");
  const face = document.createElement("span");
  Object.assign(input, { type: "radio", name: "class", value, checked: isChecked });
  face.textContent = label.title = name;
  label.append(input, face);
  byId("classes").append(label);
}

function offerClasses() {
  const labels = Object.keys(NAMES), first = "4" in NAMES ? "4" : "0";
  for (const label of labels) addChoice(label, shownName(label), label === first);
  byId("pad-class").append(new Option("any", "any"), ...labels.map((label) => new Option(shownName(label), label)));
  if (labels.length > 1) addChoice("any", "any", false);
  byId("classes").dataset.long = labels.some((label) => NAMES[label].length > 3);
  for (const part of document.querySelectorAll("[data-classes]")) part.hidden = labels.length === 1;
}

// From disk, the pages of the project are files that a browser does not lay out.
function unlinkPages() {
  document.querySelector(".project").hidden = true;
  for (const link of document.querySelectorAll('a[href$=".md"]')) link.replaceWith(...link.childNodes);
}

function showError(message) {
  if (!byId("error").hidden) return; // the first one says why
  byId("error").hidden = false;
  byId("error").textContent = `The model of this page does not run: ${message}`;
}

function main() {
  fillTexts();
  offerClasses();
  if (location.protocol === "file:") unlinkPages();
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) DURATION.fast = DURATION.still;
  const engine = new Engine(CHECKPOINT, showError);
  const complete = new Complete(engine);
  let isFirst = true;
  const draw = new Draw(engine, ({ tokens }) => {
    byId("use").disabled = false;
    if (isFirst && complete.pad.before.length === 0) complete.pad.begin(tokens);
    isFirst = false;
  });
  byId("use").addEventListener("click", () => {
    complete.pad.load(draw.image.tokens);
    byId("completion").scrollIntoView({ block: "start" });
    byId("pad").focus({ preventScroll: true });
  });
  draw.draw();
  return { draw, complete };
}

const pageParts = main();
