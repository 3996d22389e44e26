// The Image GPT of igpt_hf/model in plain JavaScript: many sequences grow side by side, token by token.
//
// Names follow the Python code. Shapes: B sequences, C hidden size, H heads, D = C / H, K neighbors, V vocabulary,
// T positions. Arrays are flat, the last axis first in memory.
//
// All is inside of one function, because the page computes in a worker, and a page that was opened from a folder may
// start one from a text alone: String(defineModel) is that text (engine.js).
function defineModel() {
  "use strict";

  const QUAD = 4; // inner loops take 4 channels at a time, which halves their time

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
      this.row = take("model.embeddings.row.weight");
      this.column = take("model.embeddings.column.weight");
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
      if (unknown.length) throw new Error(`igpt.js is older than the checkpoint: unknown weights ${unknown.join(", ")}`);

      this.gridSize = config.image_size / config.patch_size;
      this.numImageTokens = this.gridSize ** 2;
      this.offsets = neighborhoodOffsets(config.neighborhood_radius);
      this.headSize = config.hidden_size / config.num_attention_heads;
      this.rotary = rotaryTables(this.gridSize, this.headSize);
    }

    // Id of the prompt that asks for a class, or for any class if the label is null.
    promptId(label) {
      return this.config.vocab_size + (label ?? this.config.num_labels);
    }
  }

  // Sequences that grow token by token, as igpt_hf/model/decoder.py has them.
  //
  // A key or value, once computed, stays where it is: in the slot that its sequence had at that time. `slots` says for
  // each sequence and position which one that is, so that sequences with the same beginning share its keys and values,
  // and copying a sequence copies numbers of slots alone.
  class Decoder {
    // prompts: (B) ids; capacity: the largest B that it will ever have.
    constructor(model, prompts, capacity = prompts.length) {
      const { hidden_size, num_attention_heads } = model.config;
      this.model = model;
      this.length = 0; // ids of each sequence
      this.count = prompts.length; // B
      this.stride = model.numImageTokens + 1; // T, and ids of a whole sequence
      this.padded = Math.ceil(model.headSize / QUAD) * QUAD; // channels of a head, filled up with zeros
      this.width = num_attention_heads * this.padded;
      this.channels = Int32Array.from({ length: hidden_size }, (_, c) => this.paddedChannel(c));
      this.ids = new Uint32Array(capacity * this.stride);
      this.slots = new Uint16Array(capacity * this.stride);
      this.cache = model.layers.map(() => new Float32Array(capacity * this.stride * 2 * this.width));
      this.push(prompts);
    }

    paddedChannel(channel) {
      const { headSize } = this.model;
      return Math.floor(channel / headSize) * this.padded + (channel % headSize);
    }

    // Appends one id to each sequence.
    push(ids) {
      for (let b = 0; b < this.count; b++) this.ids[b * this.stride + this.length] = ids[b];
      this.length++;
    }

    // Sequence b becomes a copy of sequence index[b]; there are as many as the index is long.
    reorder(index) {
      const { stride, length, ids, slots } = this;
      [this.ids, this.slots] = [new Uint32Array(ids.length), new Uint16Array(slots.length)];
      index.forEach((from, to) => {
        this.ids.set(ids.subarray(from * stride, from * stride + length), to * stride);
        this.slots.set(slots.subarray(from * stride, from * stride + length), to * stride);
      });
      this.count = index.length;
    }

    prompt(b) {
      return this.ids[b * this.stride];
    }

    // Image tokens of sequence b so far.
    tokens(b) {
      return [...this.ids.subarray(b * this.stride + 1, b * this.stride + this.length)];
    }

    // Logits of the token that comes next: (B, V).
    logits() {
      const { model, count } = this;
      const x = this.embed(); // (B, C)
      const rows = this.cacheRows();
      const places = neighborPlaces(this.length - 1, model.gridSize, model.offsets, false);
      const normed = (gains) => this.rmsNorm(x, gains);
      model.layers.forEach((layer, index) => {
        const cache = this.cache[index];
        const queries = this.storeHeads(linear(normed(layer.attentionNorm), layer.qkv, count), cache, rows);
        const mixed = this.attend(queries, cache, rows);
        if (layer.mixing) this.mixNeighbors(mixed, layer.mixing, cache, rows, places);
        add(x, linear(mixed, layer.out, count));
        add(x, linear(activate(linear(normed(layer.mlpNorm), layer.up, count), model.beta), layer.down, count));
      });
      return linear(normed(model.norm), model.head, count);
    }

    // Sum of the embeddings of the neighbors, of the prompt, of the row and of the column: (B, C).
    embed() {
      const { model, stride, ids } = this;
      const { vocab_size, hidden_size } = model.config;
      const t = this.length - 1; // position t predicts image token t
      const places = neighborPlaces(t, model.gridSize, model.offsets, true);
      const x = new Float32Array(this.count * hidden_size);
      for (let b = 0; b < this.count; b++) {
        const sum = x.subarray(b * hidden_size, (b + 1) * hidden_size);
        const addRow = (table, row) => add(sum, table.subarray(row * hidden_size, (row + 1) * hidden_size));
        places.forEach((place, k) =>
          addRow(model.context, k * (vocab_size + 1) + (place < 0 ? vocab_size : ids[b * stride + place])),
        );
        addRow(model.context, places.length * (vocab_size + 1) + this.prompt(b) - vocab_size);
        addRow(model.row, Math.floor(t / model.gridSize));
        addRow(model.column, t % model.gridSize);
      }
      return x;
    }

    // Where in the cache the positions of each sequence begin: (B, length). The last position takes the slot b.
    cacheRows() {
      const { count, length, stride, slots, width } = this;
      const rows = new Int32Array(count * length);
      for (let b = 0, i = 0; b < count; b++) {
        slots[b * stride + length - 1] = b;
        for (let j = 0; j < length; j++, i++) rows[i] = (slots[b * stride + j] * stride + j) * 2 * width;
      }
      return rows;
    }

    // (B, C) -> (B, C); the gains are those of all, or with class_conditional_norm those of the prompt.
    rmsNorm(x, gains) {
      const { class_conditional_norm, vocab_size, hidden_size: size, rms_norm_eps } = this.model.config;
      const normed = new Float32Array(x.length);
      for (let b = 0; b < this.count; b++) {
        let squares = 0;
        for (let i = b * size; i < (b + 1) * size; i++) squares += x[i] * x[i];
        const scale = 1 / Math.sqrt(squares / size + rms_norm_eps);
        const gain = class_conditional_norm ? (this.prompt(b) - vocab_size) * size : 0;
        for (let c = 0; c < size; c++) normed[b * size + c] = x[b * size + c] * scale * gains[gain + c];
      }
      return normed;
    }

    // Rotates queries and keys of the last position, stores keys and values: (B, 3 C) -> queries (B, H * padded).
    storeHeads(qkv, cache, rows) {
      const { model, count, length, channels, width } = this;
      const size = channels.length;
      const queries = new Float32Array(count * width);
      for (let b = 0; b < count; b++) {
        const first = b * 3 * size, row = rows[(b + 1) * length - 1];
        applyRotary(qkv, first, first + 2 * size, length - 1, model); // query and key
        for (let c = 0; c < size; c++) {
          queries[b * width + channels[c]] = qkv[first + c];
          cache[row + channels[c]] = qkv[first + size + c];
          cache[row + width + channels[c]] = qkv[first + 2 * size + c];
        }
      }
      return queries;
    }

    // Attention of the last position to itself and those before it: queries (B, H * padded) -> (B, C).
    attend(queries, cache, rows) {
      const { model, count, length, padded, width } = this;
      const { headSize } = model, size = this.channels.length, scale = 1 / Math.sqrt(headSize);
      const out = new Float32Array(count * size), scores = new Float64Array(length), sums = new Float64Array(padded);
      for (let b = 0; b < count; b++) {
        const own = rows.subarray(b * length, (b + 1) * length);
        for (let head = 0; head * padded < width; head++) {
          scores.fill(0);
          const first = head * padded;
          for (let c = first; c < first + padded; c += QUAD) addScores(scores, queries, b * width + c, cache, own, c);
          const total = exponentials(scores, scale);
          for (let c = 0; c < padded; c += QUAD) sumValues(sums, c, scores, cache, own, width + first + c);
          for (let c = 0; c < headSize; c++) out[b * size + head * headSize + c] = sums[c] / total;
        }
      }
      return out;
    }

    // Adds the weighted sum of the values at the neighbors, each channel for itself; the weight is stored (C, K).
    mixNeighbors(out, weight, cache, rows, places) {
      const { count, length, channels, width } = this;
      const size = channels.length;
      places.forEach((place, k) => {
        if (place < 0) return;
        for (let b = 0; b < count; b++) {
          const row = rows[b * length + place] + width;
          for (let c = 0; c < size; c++) out[b * size + c] += weight[c * places.length + k] * cache[row + channels[c]];
        }
      });
    }
  }

  // --- weights and tables -------------------------------------------------------------------------------------------

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

  // Where in the sequence the neighbors of token t are, -1 if outside the image. With `wraps` the last token of the
  // row above takes the place of the left neighbor at the start of a row: the embeddings do so, the mixing does not.
  function neighborPlaces(t, gridSize, offsets, wraps) {
    return offsets.map(([down, right], k) => {
      const row = Math.floor(t / gridSize) + down, column = (t % gridSize) + right;
      if (wraps && k === offsets.length - 1) return t > 0 ? t : -1;
      return row >= 0 && column >= 0 && column < gridSize ? 1 + row * gridSize + column : -1;
    });
  }

  // Cosines and sines of the rotary angles, (gridSize, quarter) each: of a row or of a column of the grid.
  function rotaryTables(gridSize, headSize) {
    const quarter = Math.floor(headSize / 4);
    const angles = Float64Array.from(
      { length: gridSize * quarter },
      (_, i) => Math.floor(i / quarter) * 0.2 ** ((i % quarter) / Math.max(1, quarter - 1)),
    );
    return { quarter, cos: angles.map(Math.cos), sin: angles.map(Math.sin) };
  }

  // --- arithmetic ---------------------------------------------------------------------------------------------------

  // x + y -> x
  function add(x, y) {
    for (let i = 0; i < x.length; i++) x[i] += y[i];
  }

  // weight x + bias: (B, inputs) -> (B, outputs); the weight is stored (outputs, inputs). Four outputs at a time read
  // each input once.
  function linear(x, { weight, bias }, count) {
    const outputs = bias.length, inputs = weight.length / outputs;
    const out = new Float32Array(count * outputs);
    for (let b = 0; b < count; b++) {
      const first = b * inputs, to = b * outputs;
      let o = 0;
      for (; o + QUAD <= outputs; o += QUAD) {
        let w0 = o * inputs, w1 = w0 + inputs, w2 = w1 + inputs, w3 = w2 + inputs;
        let sum0 = bias[o], sum1 = bias[o + 1], sum2 = bias[o + 2], sum3 = bias[o + 3];
        for (let i = first; i < first + inputs; i++) {
          const value = x[i];
          sum0 += weight[w0++] * value;
          sum1 += weight[w1++] * value;
          sum2 += weight[w2++] * value;
          sum3 += weight[w3++] * value;
        }
        out[to + o] = sum0;
        out[to + o + 1] = sum1;
        out[to + o + 2] = sum2;
        out[to + o + 3] = sum3;
      }
      for (; o < outputs; o++) {
        let sum = bias[o];
        for (let i = 0; i < inputs; i++) sum += weight[o * inputs + i] * x[first + i];
        out[to + o] = sum;
      }
    }
    return out;
  }

  // z sigmoid(beta z) -> z
  function activate(z, beta) {
    for (let i = 0; i < z.length; i++) z[i] /= 1 + exp(-beta * z[i]);
    return z;
  }

  // Rotary positions: rotates pairs of channels of each head by the row and by the column of position t.
  function applyRotary(channels, first, end, t, { gridSize, headSize, rotary: { quarter, cos, sin } }) {
    const row = Math.floor(t / gridSize) * quarter, column = (t % gridSize) * quarter;
    for (let head = first; head < end; head += headSize) {
      for (let p = 0; p < 2 * quarter; p++) {
        const angle = p < quarter ? (row + p) % cos.length : column + p - quarter;
        const a = channels[head + p], b = channels[head + 2 * quarter + p];
        channels[head + p] = a * cos[angle] - b * sin[angle];
        channels[head + 2 * quarter + p] = a * sin[angle] + b * cos[angle];
      }
    }
  }

  // Adds the products of four channels of a query with those of the keys in the given rows of the cache.
  function addScores(scores, queries, i, keys, rows, channel) {
    const q0 = queries[i], q1 = queries[i + 1], q2 = queries[i + 2], q3 = queries[i + 3];
    for (let j = 0; j < scores.length; j++) {
      const k = rows[j] + channel;
      scores[j] += q0 * keys[k] + q1 * keys[k + 1] + q2 * keys[k + 2] + q3 * keys[k + 3];
    }
  }

  // sums[to ... to + 3] = four channels of the sum of values by their weights.
  function sumValues(sums, to, weights, values, rows, channel) {
    let sum0 = 0, sum1 = 0, sum2 = 0, sum3 = 0;
    for (let j = 0; j < weights.length; j++) {
      const v = rows[j] + channel, weight = weights[j];
      sum0 += weight * values[v];
      sum1 += weight * values[v + 1];
      sum2 += weight * values[v + 2];
      sum3 += weight * values[v + 3];
    }
    sums[to] = sum0;
    sums[to + 1] = sum1;
    sums[to + 2] = sum2;
    sums[to + 3] = sum3;
  }

  // exp(scale * (x - largest)) -> x; returns their sum.
  function exponentials(x, scale) {
    let largest = -Infinity, sum = 0;
    for (let i = 0; i < x.length; i++) if (x[i] > largest) largest = x[i];
    for (let i = 0; i < x.length; i++) sum += x[i] = exp(scale * (x[i] - largest));
    return sum;
  }

  // e**x to a relative error of 1e-11, in a third of Math.exp's time: 2**(whole + fraction / 256) by tables, and the
  // rest, below 1/369, by a polynomial.
  const FRACTIONS = Float64Array.from({ length: 256 }, (_, i) => 2 ** (i / 256));
  const POWERS = Float64Array.from({ length: 2048 }, (_, i) => 2 ** (i - 1024));
  function exp(x) {
    const bounded = x < -700 ? -700 : x > 700 ? 700 : x;
    const n = Math.floor((bounded * 256) / Math.LN2);
    const rest = bounded - (n * Math.LN2) / 256;
    return POWERS[(n >> 8) + 1024] * FRACTIONS[n & 255] * (1 + rest * (1 + rest * (1 / 2 + rest / 6)));
  }

  // Probabilities at a temperature, (V).
  function softmax(logits, temperature = 1) {
    const weights = Float64Array.from(logits);
    const sum = exponentials(weights, 1 / temperature);
    return weights.map((weight) => weight / sum);
  }

  // --- sampling -----------------------------------------------------------------------------------------------------

  // The first index at which the sum of the probabilities exceeds `uniform`, a number in [0, 1).
  function sampleIndex(probabilities, uniform) {
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

  // (B, V) -> B arrays (V), views of the same memory.
  function splitRows(array, count) {
    const width = array.length / count;
    return Array.from({ length: count }, (_, b) => array.subarray(b * width, (b + 1) * width));
  }

  return { ImageGPT, Decoder, softmax, sampleIndex, randomNumbers, splitRows };
}
