// The model in a worker, so that the page answers while it computes. The worker's program is the text of functions,
// because a page that was opened from a folder may not load one from a file.
"use strict";

// What the worker runs. A message {checkpoint} comes first, then {id, kind, settings}; answers are {id, result} or,
// on the way, {id, progress}: what the computation yields; or {id, error}. A newer request of the same kind ends an
// older one.
function serve() {
  "use strict";
  const BREATH = 40; // milliseconds of work between looks at the messages
  const igpt = defineModel();
  const computations = { sample: defineSampling(igpt).sampleImage, complete: defineCompletion(igpt).complete };
  const latest = {};
  let model = null;

  async function answer({ id, kind, settings }) {
    latest[kind] = id;
    if (!settings) return; // nothing more is wanted
    const computation = computations[kind](model, { ...settings, random: igpt.randomNumbers(settings.seed) });
    for (let since = performance.now(); ; ) {
      const { done, value } = computation.next();
      if (done) return postMessage({ id, result: value });
      if (performance.now() - since < BREATH) continue;
      postMessage({ id, progress: value });
      await new Promise((resolve) => setTimeout(resolve));
      if (latest[kind] !== id) return;
      since = performance.now();
    }
  }

  onmessage = ({ data }) => {
    if (data.checkpoint) model = new igpt.ImageGPT(data.checkpoint);
    else answer(data).catch((error) => postMessage({ id: data.id, error: String(error) }));
  };
}

class Engine {
  constructor(checkpoint, onError) {
    this.onError = onError;
    const source = [defineModel, defineSampling, defineCompletion, serve, "serve();"].join("\n");
    this.worker = new Worker(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
    this.worker.onerror = (event) => onError(event.message);
    this.worker.onmessage = ({ data }) => this.receive(data);
    this.worker.postMessage({ checkpoint });
    this.requests = {}; // the latest of each kind
    this.number = 0;
  }

  receive({ id, progress, result, error }) {
    const request = Object.values(this.requests).find((other) => other.id === id);
    if (!request) return; // a newer one has taken its place
    if (error) {
      request.onFailure?.();
      this.onError(error);
    } else if (result) request.onResult(result, Math.round(performance.now() - request.start));
    else request.onProgress?.(progress);
  }

  // kind: "sample" or "complete"; settings: the arguments of sampleImage or complete, and a seed.
  ask(kind, settings, onResult, onProgress, onFailure) {
    const id = ++this.number;
    this.requests[kind] = { id, onResult, onProgress, onFailure, start: performance.now() };
    this.worker.postMessage({ id, kind, settings });
  }

  cancel(kind) {
    delete this.requests[kind];
    this.worker.postMessage({ id: ++this.number, kind });
  }
}
