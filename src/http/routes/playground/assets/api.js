// Calls the server: keys, errors, retries after `Retry-After`, event streams, timings.

/** @typedef {Record<string, any>} Json */
/** @typedef {Record<string, number>} Timings milliseconds of each stage */
/** @typedef {{json: Json, timings: Timings, elapsed: number}} Answer */

const KEY = "blip-key";
const MAX_TRIES = 6;
/** A server that asks for a longer wait, in seconds, is not asked again. */
const MAX_WAIT = 60;

/** An answer that is an error, with the text of its problem document. */
export class Problem extends Error {
  /**
   * @param {number} status
   * @param {Json} body
   * @param {number | null} retryAfter seconds
   */
  constructor(status, body, retryAfter) {
    super(typeof body.detail === "string" ? body.detail : `the server answered with status ${status}`);
    this.status = status;
    this.code = String(body.code ?? "");
    this.retryAfter = retryAfter;
    /** @type {{field: string, detail: string}[]} */
    this.fields = Array.isArray(body.errors) ? body.errors : [];
  }
}

/** Returns the API key of this tab. */
export function key() {
  return sessionStorage.getItem(KEY) ?? "";
}

/** @param {string} value */
export function setKey(value) {
  if (!/^[!-~]*$/.test(value)) throw new Error("An API key has only letters, digits and -._~+/=.");
  if (value) sessionStorage.setItem(KEY, value);
  else sessionStorage.removeItem(KEY);
}

/** @returns {Record<string, string>} */
function headers() {
  return key() ? { authorization: `Bearer ${key()}` } : {};
}

/**
 * Sends a request once.
 * @param {string} path relative to the page, so that the page also works below a path of a proxy
 * @param {Json | null} body JSON for a POST; null for a GET
 * @param {AbortSignal} [signal]
 * @returns {Promise<Response>}
 */
async function send(path, body, signal) {
  const options = body
    ? { method: "POST", headers: { ...headers(), "content-type": "application/json" }, body: JSON.stringify(body), signal }
    : { headers: headers(), signal };
  /** @type {Response} */
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Error("The server cannot be reached. Is it running?");
  }
  if (response.ok) return response;
  const after = Number.parseFloat(response.headers.get("retry-after") ?? "");
  /** @type {Json} */
  let problem = {};
  try {
    problem = await response.json();
  } catch {
    // A proxy may answer with HTML.
  }
  throw new Problem(response.status, problem, Number.isFinite(after) ? after : null);
}

/**
 * Returns a GET's JSON.
 * @param {string} path
 * @returns {Promise<Json>}
 */
export async function get(path) {
  return (await send(path, null)).json();
}

/**
 * Returns a GET's text.
 * @param {string} path
 * @returns {Promise<string>}
 */
export async function getText(path) {
  return (await send(path, null)).text();
}

/**
 * Sends a request. If the server is busy, waits as long as it asks for and tries again.
 * @param {string} path
 * @param {Json} body
 * @param {AbortSignal} signal
 * @param {(seconds: number) => void} onWait called each second of a wait, with the seconds that are left
 * @returns {Promise<Response>}
 */
async function sendPatiently(path, body, signal, onWait) {
  for (let tries = 1; ; tries += 1) {
    try {
      return await send(path, body, signal);
    } catch (error) {
      const again = error instanceof Problem && error.retryAfter !== null && [429, 503].includes(error.status);
      if (!again || tries === MAX_TRIES || (error.retryAfter ?? 0) > MAX_WAIT) throw error;
      for (let left = Math.max(1, Math.ceil(error.retryAfter ?? 1)); left > 0; left -= 1) {
        onWait(left);
        await pause(1000, signal);
      }
      onWait(0);
    }
  }
}

/**
 * @param {number} milliseconds
 * @param {AbortSignal} signal
 */
function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}

/**
 * Calls a route, and returns its JSON.
 * @param {string} path
 * @param {Json} body
 * @param {AbortSignal} signal
 * @param {(seconds: number) => void} onWait
 * @returns {Promise<Answer>}
 */
export async function call(path, body, signal, onWait) {
  const start = performance.now();
  const response = await sendPatiently(path, body, signal, onWait);
  const json = await response.json();
  return { json, timings: timingsOf(response.headers.get("server-timing") ?? ""), elapsed: performance.now() - start };
}

/**
 * Calls a route that streams events.
 * @param {string} path
 * @param {Json} body
 * @param {AbortSignal} signal
 * @param {(seconds: number) => void} onWait
 * @param {(delta: Json) => void} onDelta
 * @returns {Promise<Answer>} the event `done`
 */
export async function stream(path, body, signal, onWait, onDelta) {
  const start = performance.now();
  const response = await sendPatiently(path, body, signal, onWait);
  if (!response.body) throw new Error("the answer has no body");
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    text += value ?? "";
    let end = text.indexOf("\n\n");
    for (; end >= 0; end = text.indexOf("\n\n")) {
      const event = parseEvent(text.slice(0, end));
      text = text.slice(end + 2);
      if (event.name === "delta") onDelta(event.data);
      if (event.name === "error") throw new Problem(event.data.status, event.data, null);
      if (event.name === "done") {
        const { timing, ...json } = event.data;
        return { json, timings: withoutUnit(timing), elapsed: performance.now() - start };
      }
    }
    if (done) throw new Error("The answer ended too early. Try again.");
  }
}

/** @param {string} text */
function parseEvent(text) {
  let name = "";
  let data = "";
  for (const line of text.split("\n")) {
    if (line.startsWith("event:")) name = line.slice(6).trim();
    if (line.startsWith("data:")) data += line.slice(5);
  }
  return { name, data: data ? JSON.parse(data) : {} };
}

/**
 * @param {Json} timing `decode_ms` and others
 * @returns {Timings}
 */
function withoutUnit(timing) {
  return Object.fromEntries(Object.entries(timing ?? {}).map(([name, value]) => [name.replace(/_ms$/, ""), Number(value)]));
}

/**
 * @param {string} header such as `decode;dur=1.5, queue;dur=0.1`
 * @returns {Timings}
 */
function timingsOf(header) {
  const stages = header.matchAll(/([a-z]+);dur=([0-9.]+)/g);
  return Object.fromEntries(Array.from(stages, ([, name, value]) => [name, Number(value)]));
}
