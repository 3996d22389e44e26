// The Image GPT of igpt_hf/model/modeling_igpt.py in plain JavaScript: the logits of one token after the other.
//
// Names follow the Python code. Shapes: C hidden size, H heads, D = C / H, K neighbors, V vocabulary, T positions.
"use strict";

class ImageGPT {
  // checkpoint: {config, tensors: {name: shape}, weights: base64}, as igpt_hf/hub/export.py writes it.
  constructor({ config, tensors, weights }) {
    this.config = config;
    const left = unpack(tensors, weights);
    const take = (name) => {
      if (!(name in left)) throw new Error(`the checkpoint has no ${name}`);
      const tensor = left[name];
      delete left[name];
      return tensor;
    };
    const linear = (name) => ({ weight: take(`${name}.weight`), bias: take(`${name}.bias`) });
    this.beta = { quick_gelu: 1.702, silu: 1, swish: 1 }[config.hidden_act];
    if (!this.beta) throw new Error(`unknown activation ${config.hidden_act}`);

    this.context = take("model.embeddings.context.weight");
    this.position = take("model.embeddings.position.weight");
    this.layers = [];
    for (let i = 0; i < config.num_hidden_layers; i++) {
      const name = `model.layers.${i}`;
      this.layers.push({
        attentionNorm: take(`${name}.attention_norm.weight`),
        qkv: linear(`${name}.attention.qkv_proj`),
        mixing: config.neighborhood_radius > 0 ? take(`${name}.attention.local_mixing.weight`) : null,
        out: linear(`${name}.attention.out_proj`),
        mlpNorm: take(`${name}.mlp_norm.weight`),
        up: linear(`${name}.mlp.up_proj`),
        down: linear(`${name}.mlp.down_proj`),
      });
    }
    this.norm = take("model.norm.weight");
    this.head = { weight: take("lm_head.weight"), bias: new Float32Array(config.vocab_size) };
    const unknown = Object.keys(left);
    if (unknown.length) throw new Error(`igpt.js does not know ${unknown.join(", ")}: it is older than the checkpoint`);

    this.gridSize = config.image_size / config.patch_size;
    this.numImageTokens = this.gridSize ** 2;
    this.offsets = neighborhoodOffsets(config.neighborhood_radius);
  }

  // A sequence that holds the prompt alone: class `label`, or any class if it is null. Tokens are pushed to its ids.
  begin(label = null) {
    const { vocab_size, num_labels, hidden_size } = this.config;
    const cache = () => this.layers.map(() => new Float32Array((this.numImageTokens + 1) * hidden_size)); // (T, C)
    return { ids: [vocab_size + (label ?? num_labels)], keys: cache(), values: cache() };
  }

  // Logits (V) of the token that follows sequence.ids. Keys and values of the new position join the cache.
  step(sequence) {
    const { config, gridSize } = this;
    const size = config.hidden_size;
    const t = sequence.ids.length - 1; // position t predicts image token t
    const x = this.embed(sequence.ids, t);
    const norm = (x, gains) => rmsNorm(x, this.gain(gains, sequence.ids[0]), config.rms_norm_eps);
    const places = neighborPlaces(t, gridSize, this.offsets, false);
    this.layers.forEach((layer, index) => {
      const keys = sequence.keys[index], values = sequence.values[index];
      const qkv = linear(norm(x, layer.attentionNorm), layer.qkv); // (3 C)
      applyRotary(qkv.subarray(0, 2 * size), t, gridSize, size / config.num_attention_heads); // query and key
      keys.set(qkv.subarray(size, 2 * size), t * size);
      values.set(qkv.subarray(2 * size), t * size);
      const mixed = attend(qkv, keys, values, t, config.num_attention_heads, size);
      if (layer.mixing) mixNeighbors(mixed, layer.mixing, values, places);
      add(x, linear(mixed, layer.out));
      const inner = linear(norm(x, layer.mlpNorm), layer.up);
      for (let i = 0; i < inner.length; i++) inner[i] /= 1 + Math.exp(-this.beta * inner[i]); // z sigmoid(beta z)
      add(x, linear(inner, layer.down));
    });
    return linear(norm(x, this.norm), this.head);
  }

  // Sum of the embeddings of the neighbors, of the prompt and of the position: (C).
  embed(ids, t) {
    const { vocab_size, hidden_size } = this.config;
    const x = this.position.slice(t * hidden_size, (t + 1) * hidden_size);
    const addRow = (row) => add(x, this.context.subarray(row * hidden_size, (row + 1) * hidden_size));
    const places = neighborPlaces(t, this.gridSize, this.offsets, true);
    places.forEach((place, k) => addRow(k * (vocab_size + 1) + (place < 0 ? vocab_size : ids[place])));
    addRow(places.length * (vocab_size + 1) + ids[0] - vocab_size);
    return x;
  }

  // A norm's gain (C): one for all, or with class_conditional_norm the row of the prompt.
  gain(gains, prompt) {
    const { class_conditional_norm, vocab_size, hidden_size } = this.config;
    if (!class_conditional_norm) return gains;
    return gains.subarray((prompt - vocab_size) * hidden_size, (prompt - vocab_size + 1) * hidden_size);
  }

  // One image: {tokens, steps}, where a step is {probabilities, nats} of its token at temperature 1.
  sample({ label = null, temperature = 1, random = Math.random } = {}) {
    const sequence = this.begin(label);
    const steps = [];
    for (let t = 0; t < this.numImageTokens; t++) {
      const logits = this.step(sequence);
      const token = draw(softmax(logits, temperature), random());
      const probabilities = softmax(logits, 1);
      steps.push({ probabilities, nats: -Math.log(probabilities[token]) });
      sequence.ids.push(token);
    }
    return { tokens: sequence.ids.slice(1), steps };
  }
}

// base64 -> {name: Float32Array}. A weight is the upper 3 of the 4 bytes of a float32, the most significant first.
function unpack(tensors, weights) {
  const bytes = atob(weights);
  const unpacked = {};
  let i = 0;
  for (const [name, shape] of Object.entries(tensors)) {
    const bits = new Uint32Array(shape.reduce((product, length) => product * length, 1));
    for (let n = 0; n < bits.length; n++, i += 3) {
      bits[n] = (bytes.charCodeAt(i) << 24) | (bytes.charCodeAt(i + 1) << 16) | (bytes.charCodeAt(i + 2) << 8);
    }
    unpacked[name] = new Float32Array(bits.buffer);
  }
  if (i !== bytes.length) throw new Error(`the checkpoint has ${bytes.length} bytes, but its tensors need ${i}`);
  return unpacked;
}

// [row, column] steps to the tokens known before a token is predicted; the nearest, [0, -1], last.
function neighborhoodOffsets(radius) {
  const offsets = [];
  for (let row = -radius; row <= 0; row++) {
    for (let column = -radius; column <= radius; column++) {
      if (row < 0 || column < 0) offsets.push([row, column]);
    }
  }
  return radius === 0 ? [[0, -1]] : offsets;
}

// Where in the sequence the neighbors of token t stand, -1 if outside the image. With `wraps` the last token of the
// row above takes the place of the left neighbor at the start of a row: the embeddings do so, the mixing does not.
function neighborPlaces(t, gridSize, offsets, wraps) {
  return offsets.map(([down, right], k) => {
    const row = Math.floor(t / gridSize) + down, column = (t % gridSize) + right;
    if (wraps && k === offsets.length - 1) return t > 0 ? t : -1;
    return row >= 0 && column >= 0 && column < gridSize ? 1 + row * gridSize + column : -1;
  });
}

// x + y -> x
function add(x, y) {
  for (let i = 0; i < x.length; i++) x[i] += y[i];
}

// weight x + bias: (inputs) -> (outputs); the weight is stored (outputs, inputs).
function linear(x, { weight, bias }) {
  const out = Float32Array.from(bias);
  for (let o = 0, w = 0; o < out.length; o++) {
    let sum = 0;
    for (let i = 0; i < x.length; i++) sum += weight[w++] * x[i];
    out[o] += sum;
  }
  return out;
}

function rmsNorm(x, gain, eps) {
  let squares = 0;
  for (const value of x) squares += value * value;
  const scale = 1 / Math.sqrt(squares / x.length + eps);
  return x.map((value, i) => value * scale * gain[i]);
}

// Rotary positions: rotates pairs of channels of each head (of `width`) by the row and by the column of position t.
function applyRotary(channels, t, gridSize, width) {
  const quarter = Math.floor(width / 4);
  for (let head = 0; head < channels.length; head += width) {
    for (let p = 0; p < 2 * quarter; p++) {
      const place = p < quarter ? Math.floor(t / gridSize) : t % gridSize;
      const angle = place * 0.2 ** ((p % quarter) / Math.max(1, quarter - 1));
      const first = channels[head + p], second = channels[head + 2 * quarter + p];
      channels[head + p] = first * Math.cos(angle) - second * Math.sin(angle);
      channels[head + 2 * quarter + p] = first * Math.sin(angle) + second * Math.cos(angle);
    }
  }
}

// Attention of position t to itself and those before it: the query is the start of qkv -> (C).
function attend(qkv, keys, values, t, heads, size) {
  const out = new Float32Array(size), width = size / heads;
  for (let first = 0; first < size; first += width) {
    const scores = new Float32Array(t + 1);
    for (let j = 0; j <= t; j++) {
      for (let c = first; c < first + width; c++) scores[j] += qkv[c] * keys[j * size + c];
      scores[j] /= Math.sqrt(width);
    }
    const weights = softmax(scores, 1);
    for (let j = 0; j <= t; j++) {
      for (let c = first; c < first + width; c++) out[c] += weights[j] * values[j * size + c];
    }
  }
  return out;
}

// Adds the weighted sum of the values at the neighbors, each channel for itself; the weight is stored (C, K).
function mixNeighbors(out, weight, values, places) {
  places.forEach((place, k) => {
    if (place < 0) return;
    for (let c = 0; c < out.length; c++) out[c] += weight[c * places.length + k] * values[place * out.length + c];
  });
}

function softmax(logits, temperature) {
  const largest = Math.max(...logits);
  const weights = logits.map((x) => Math.exp((x - largest) / temperature));
  const sum = weights.reduce((a, b) => a + b, 0);
  return weights.map((x) => x / sum);
}

// The first index at which the sum of the probabilities exceeds `uniform`, a number in [0, 1).
function draw(probabilities, uniform) {
  let sum = 0;
  for (let v = 0; v < probabilities.length; v++) {
    sum += probabilities[v];
    if (uniform < sum) return v;
  }
  return probabilities.indexOf(Math.max(...probabilities)); // rounding left the sum just below 1
}

// A generator of numbers in [0, 1) from a seed: mulberry32.
function randomNumbers(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let x = Math.imul(state ^ (state >>> 15), state | 1);
    x ^= x + Math.imul(x ^ (x >>> 7), x | 61);
    return ((x ^ (x >>> 14)) >>> 0) / 2 ** 32;
  };
}
