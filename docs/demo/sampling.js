// Samples images whose class can be recognized, as generate(min_posterior=...) of igpt_hf/model does.
//
// What takes long is a generator, so that others can have a turn: it yields after each token.
function defineSampling(igpt) {
  "use strict";

  const { Decoder, softmax, sampleIndex, splitRows } = igpt;
  const MAX_TRIES = 10; // as in Python
  const HOPELESS = 20; // nats: a class that is further behind the best one is no longer followed

  // One image of class `label` whose posterior by the model's own Bayes rule is at least minPosterior (null: of any
  // class, whose most likely one is); after MAX_TRIES the best is taken. {tokens, steps, posterior, tries, own}.
  function* sampleImage(model, { label = null, temperature = 1, minPosterior = 0, random }) {
    let best = null;
    for (let tries = 1; tries <= MAX_TRIES; tries++) {
      const image = yield* tryImage(model, label, temperature, random);
      const own = label === null ? Math.max(...image.posterior) : image.posterior[label];
      if (!best || own > best.own) best = { ...image, own, tries };
      if (own >= minPosterior) break;
    }
    return best;
  }

  // {tokens, steps, posterior}; a step is {probabilities, nats} of its token at temperature 1. The image grows under all
  // classes side by side, so that p(class | image), all classes alike before, is known when it is finished: (L).
  function* tryImage(model, label, temperature, random) {
    const logP = new Array(model.config.num_labels).fill(0);
    let followed = [...logP.keys(), ...(label === null ? [null] : [])]; // the class of each sequence
    const decoder = new Decoder(model, followed.map((other) => model.promptId(other)));
    const steps = [];
    for (let t = 0; t < model.numImageTokens; t++) {
      const rows = splitRows(decoder.logits(), decoder.count), own = rows[followed.indexOf(label)];
      const token = sampleIndex(softmax(own, temperature), random());
      const probabilities = softmax(own);
      steps.push({ probabilities, nats: -Math.log(probabilities[token]) });
      followed.forEach((other, b) => {
        if (other !== null) logP[other] += Math.log(softmax(rows[b])[token]);
      });
      const best = Math.max(...followed.filter((other) => other !== null).map((other) => logP[other]));
      const kept = [...followed.keys()].filter((b) => followed[b] === label || logP[followed[b]] > best - HOPELESS);
      followed = kept.map((b) => followed[b]);
      decoder.reorder(kept);
      decoder.push(followed.map(() => token));
      yield {};
    }
    const posterior = softmax(logP.map((x, other) => (followed.includes(other) ? x : -Infinity)));
    return { tokens: decoder.tokens(0), steps, posterior: [...posterior] };
  }

  return { sampleImage };
}
