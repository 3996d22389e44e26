// Completion of any part of an image by sequential Monte Carlo, as igpt_hf/model/completion.py has it.
//
// Particles, unfinished images, grow side by side. At each token, with A the tokens that agree with the known pixels:
//
//     weight = weight * p(A | prefix)                      how well the known pixels fit what it has sampled so far
//     token ~ p(token | prefix) / p(A | prefix), in A      so that every particle keeps every known pixel
//
// and where few particles hold most of the weight, those with large weights continue as several. If the class is not
// given, particles of all classes compete: the part of the weight that a class has in the end is p(class | known).
//
// Particles that are the same so far are one sequence of the decoder: what they have in common is computed once.
function defineCompletion(igpt) {
  "use strict";

  const { Decoder, softmax, sampleIndex, splitRows } = igpt;

  class Particles {
    // rows: which of the decoder's sequences each particle is, (P).
    constructor(decoder, rows, logWeights) {
      this.decoder = decoder;
      this.rows = rows;
      this.logWeights = logWeights; // since the last resampling
      this.logEvidence = 0; // ln of the estimate of p(known pixels so far), up to the last resampling
      this.ancestors = rows.map((_, p) => p); // which of the first particles each one descends from
    }

    // Weigh, resample where that is needed, and sample the next token among those allowed.
    step(allowed, random) {
      const rows = splitRows(this.decoder.logits(), this.decoder.count).map((logits) => softmax(logits));
      const probabilities = rows.map((row) => allowed.map((token) => row[token]));
      const fits = probabilities.map((row) => row.reduce((a, b) => a + b, 0));
      this.rows.forEach((row, p) => (this.logWeights[p] += Math.log(fits[row])));
      if (effectiveSize(this.logWeights) < this.rows.length / 2) this.resample(random);
      const shares = probabilities.map((row, b) => row.map((probability) => probability / fits[b]));
      this.push(this.rows.map((row) => allowed[sampleIndex(shares[row], random())]));
    }

    resample(random) {
      const index = systematicResampling(this.logWeights, this.rows.length, random);
      this.logEvidence += logMeanExp(this.logWeights);
      this.logWeights.fill(0);
      this.rows = index.map((p) => this.rows[p]);
      this.ancestors = index.map((p) => this.ancestors[p]);
    }

    // Append a token to each particle: one sequence for each pair of sequence and token that there is.
    push(tokens) {
      const pairs = new Map(), parents = [], ids = [];
      this.rows = this.rows.map((row, p) => {
        const pair = `${row} ${tokens[p]}`;
        if (!pairs.has(pair)) {
          pairs.set(pair, parents.length);
          parents.push(row);
          ids.push(tokens[p]);
        }
        return pairs.get(pair);
      });
      this.decoder.reorder(parents);
      this.decoder.push(ids);
    }

    // The share of the weight that each value has, {value: share}.
    shares(values) {
      const sums = new Map();
      softmax(this.logWeights).forEach((weight, p) => sums.set(values[p], (sums.get(values[p]) ?? 0) + weight));
      return sums;
    }
  }

  // Indices (num) of particles by their weights: one random number places `num` evenly spaced points on them.
  function systematicResampling(logWeights, num, random) {
    const weights = softmax(logWeights), shift = random();
    const index = [];
    let sum = 0;
    weights.forEach((weight, p) => {
      sum += weight * num;
      while (index.length < num && index.length + shift < sum) index.push(p);
    });
    while (index.length < num) index.push(weights.indexOf(Math.max(...weights))); // rounding left the sum below num
    return index;
  }

  // (sum of weights)**2 / sum of squared weights
  function effectiveSize(logWeights) {
    return 1 / softmax(logWeights).reduce((sum, weight) => sum + weight ** 2, 0);
  }

  function logMeanExp(logWeights) {
    const largest = Math.max(...logWeights);
    return largest + Math.log(logWeights.reduce((sum, x) => sum + Math.exp(x - largest), 0) / logWeights.length);
  }

  // Which tokens agree with the known bits of a token.
  function allowedTokens(vocabSize, known, mask) {
    return [...Array(vocabSize).keys()].filter((token) => ((token ^ known) & mask) === 0);
  }

  // Particles of each class: after the known tokens at the start, whose likelihoods are exact, they are all the same.
  function* startParticles(model, { tokens, start, labels, numParticles, random }) {
    const decoder = new Decoder(model, labels.map((label) => model.promptId(label)), Math.max(labels.length, numParticles));
    const logP = labels.map(() => 0);
    for (let t = 0; t < start; t++) {
      splitRows(decoder.logits(), labels.length).forEach((row, b) => (logP[b] += Math.log(softmax(row)[tokens[t]])));
      decoder.push(labels.map(() => tokens[t]));
      yield { share: t / model.numImageTokens };
    }
    // As many of each class; of some classes alone, evenly spaced, if there are more classes than particles.
    const shift = random();
    const rows = Array.from({ length: numParticles }, (_, p) => Math.floor(((p + shift) * labels.length) / numParticles));
    return new Particles(decoder, rows, rows.map((row) => logP[row]));
  }

  // Fills in the unknown pixels of an image.
  //
  // tokens, masks: (N) tokens, and which of their bits are known; label: the class, or null: any.
  // Returns answers [{tokens, label}], the posterior (L), ln of the estimate of p(known pixels), and the effective
  // number of the first particles that the last ones descend from. Yields which share of the work is done.
  function* complete(model, { tokens, masks, label = null, numParticles, numAnswers, random }) {
    const { vocab_size, num_labels } = model.config, num = model.numImageTokens;
    const labels = label === null ? [...Array(num_labels).keys()] : [label];
    const firstUnknown = masks.findIndex((mask) => mask !== vocab_size - 1);
    const start = firstUnknown < 0 ? num : firstUnknown;
    const end = masks.findLastIndex((mask) => mask !== 0) + 1;
    const perClass = Math.ceil(numParticles / labels.length);
    if (labels.length <= numParticles) numParticles = perClass * labels.length;
    const particles = yield* startParticles(model, { tokens, start, labels, numParticles, random });
    for (let t = start; t < end; t++) {
      particles.step(allowedTokens(vocab_size, tokens[t], masks[t]), random);
      yield { share: t / num };
    }
    const { decoder } = particles;
    const classes = particles.rows.map((row) => decoder.prompt(row) - vocab_size);
    const shares = particles.shares(classes), families = [...particles.shares(particles.ancestors).values()];
    const evidence = particles.logEvidence + logMeanExp(particles.logWeights);
    const chosen = systematicResampling(particles.logWeights, numAnswers, random);
    decoder.reorder(chosen.map((p) => particles.rows[p]));
    // Nothing more is known: each goes on alone.
    for (let t = Math.max(start, end); t < num; t++) {
      const rows = splitRows(decoder.logits(), numAnswers);
      decoder.push(rows.map((row) => sampleIndex(softmax(row), random())));
      yield { share: t / num };
    }
    return {
      answers: chosen.map((p, b) => ({ tokens: decoder.tokens(b), label: classes[p] })),
      posterior: Array.from({ length: num_labels }, (_, other) => shares.get(other) ?? 0),
      logEvidence: evidence,
      numAncestors: 1 / families.reduce((sum, share) => sum + share ** 2, 0),
      numParticles,
    };
  }

  return { complete };
}
