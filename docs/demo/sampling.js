// Samples images and reads them, as generate and class_posterior of igpt_hf/model do.
//
// What takes long is a generator, so that others can have a turn: it yields after each token.
function defineSampling(igpt) {
  "use strict";

  const { Decoder, softmax, sampleIndex, splitRows } = igpt;
  const MAX_TRIES = 10; // of sampleImage, as of generate(min_posterior=...)
  const HOPELESS = 30; // nats: a class that is further behind the best one is no longer followed

  // One image of class `label` (null: of any) whose posterior by the model's own Bayes rule is at least minPosterior,
  // as generate(min_posterior=...) samples; after MAX_TRIES the best is taken. {tokens, steps, posterior, tries}.
  function* sampleImage(model, { label = null, temperature = 1, minPosterior = 0, random }) {
    let best = null;
    for (let tries = 1; tries <= MAX_TRIES; tries++) {
      const image = yield* tryImage(model, label, temperature, random);
      const posterior = yield* classPosterior(model, image.tokens);
      const own = label === null ? 1 : posterior[label];
      if (!best || own > best.own) best = { ...image, posterior, own, tries };
      if (own >= minPosterior) break;
    }
    return best;
  }

  // {tokens, steps}, where a step is {probabilities, nats} of its token at temperature 1.
  function* tryImage(model, label, temperature, random) {
    const decoder = new Decoder(model, [model.promptId(label)]);
    const steps = [];
    for (let t = 0; t < model.numImageTokens; t++) {
      const logits = decoder.logits();
      const token = sampleIndex(softmax(logits, temperature), random());
      const probabilities = softmax(logits);
      steps.push({ probabilities, nats: -Math.log(probabilities[token]) });
      decoder.push([token]);
      yield {};
    }
    return { tokens: decoder.tokens(0), steps };
  }

  // p(class | image) by Bayes' rule, all classes alike before: (L). The image grows under all classes side by side.
  function* classPosterior(model, tokens) {
    const logP = new Array(model.config.num_labels).fill(0);
    let followed = [...logP.keys()];
    const decoder = new Decoder(model, followed.map((label) => model.promptId(label)));
    for (const token of tokens) {
      const rows = splitRows(decoder.logits(), decoder.count);
      followed.forEach((label, b) => (logP[label] += Math.log(softmax(rows[b])[token])));
      const best = Math.max(...followed.map((label) => logP[label]));
      const kept = [...followed.keys()].filter((b) => logP[followed[b]] > best - HOPELESS);
      followed = kept.map((b) => followed[b]);
      decoder.reorder(kept);
      decoder.push(followed.map(() => token));
      yield {};
    }
    return [...softmax(logP.map((x, label) => (followed.includes(label) ? x : -Infinity)))];
  }

  return { sampleImage, classPosterior };
}
