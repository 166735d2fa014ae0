// The status page: rates, latency, queue, batches, caches and memory, from the metrics of the server.

import { getText, Problem } from "./api.js";
import { byId, h, megabytes, percent, svg } from "./dom.js";
import { startKeyBox } from "./keybox.js";

const INTERVAL_MS = 2000;
const KEPT = 150;

/** @typedef {{name: string, labels: string, value: number}} Sample */
/** @typedef {{at: number, samples: Sample[]}} Scrape */

/**
 * Parses Prometheus' text format.
 * @param {string} text
 * @returns {Sample[]}
 */
export function parse(text) {
  const samples = [];
  for (const line of text.split("\n")) {
    const found = /^([a-z_]+)(?:\{(.*)\})? ([0-9.eE+-]+|\+?Inf|NaN)$/.exec(line);
    if (found) samples.push({ name: found[1] ?? "", labels: found[2] ?? "", value: Number(found[3]?.replace("Inf", "Infinity")) });
  }
  return samples;
}

/**
 * True for the requests of this page itself, and of probes.
 * @param {string} labels
 */
function isOwn(labels) {
  return /route="\/(metrics|status|health[^"]*|assets\/[^"]*)"/.test(labels);
}

/**
 * Returns the sum of all samples of a name whose labels contain a text.
 * @param {Scrape} scrape
 * @param {string} name
 * @param {string} [labels]
 */
function sum({ samples }, name, labels = "") {
  return samples.filter((sample) => sample.name === name && sample.labels.includes(labels) && !isOwn(sample.labels)).reduce((total, sample) => total + sample.value, 0);
}

/**
 * Returns the number of series of a metric.
 * @param {Scrape} scrape
 * @param {string} name
 */
function series({ samples }, name) {
  return samples.filter((sample) => sample.name === name && !isOwn(sample.labels)).length;
}

/**
 * Returns a quantile of a histogram between two scrapes, in the unit of its buckets; null if nothing was observed.
 * @param {Scrape} before
 * @param {Scrape} now
 * @param {string} name
 * @param {number} quantile
 */
function quantileOf(before, now, name, quantile) {
  /** @type {Map<number, number>} */
  const counts = new Map();
  for (const [scrape, sign] of /** @type {[Scrape, number][]} */ ([[now, 1], [before, -1]])) {
    for (const sample of scrape.samples) {
      if (sample.name !== `${name}_bucket` || isOwn(sample.labels)) continue;
      const bound = Number(/le="([^"]*)"/.exec(sample.labels)?.[1]?.replace("+Inf", "Infinity"));
      counts.set(bound, (counts.get(bound) ?? 0) + sign * sample.value);
    }
  }
  const bounds = [...counts.keys()].sort((a, b) => a - b);
  const total = counts.get(Infinity) ?? 0;
  if (total <= 0) return null;
  let low = 0;
  let below = 0;
  for (const bound of bounds) {
    const count = counts.get(bound) ?? 0;
    if (count >= quantile * total) {
      if (bound === Infinity) return low;
      return low + ((quantile * total - below) / Math.max(count - below, 1e-9)) * (bound - low);
    }
    [low, below] = [bound, count];
  }
  return low;
}

/** @param {number} value */
const plain = (value) => (Number.isInteger(value) || value >= 100 ? value.toFixed(0) : value.toFixed(1));
/** @param {number} seconds */
const time = (seconds) => (seconds < 1 ? `${(seconds * 1000).toFixed(0)} ms` : `${seconds.toFixed(1)} s`);

/** @type {{title: string, text: (value: number) => string, value: (before: Scrape, now: Scrape, seconds: number) => number | null}[]} */
const CHARTS = [
  { title: "Answers per second", text: plain, value: (a, b, s) => (sum(b, "blip_http_requests_total") - sum(a, "blip_http_requests_total")) / s },
  { title: "Failed answers per second", text: plain, value: (a, b, s) => (sum(b, "blip_request_failures_total") - sum(a, "blip_request_failures_total")) / s },
  { title: "Inputs per second", text: plain, value: (a, b, s) => (sum(b, "blip_items_total") - sum(a, "blip_items_total")) / s },
  { title: "Latency, median", text: time, value: (a, b) => quantileOf(a, b, "blip_http_request_duration_seconds", 0.5) },
  { title: "Latency, 95th percentile", text: time, value: (a, b) => quantileOf(a, b, "blip_http_request_duration_seconds", 0.95) },
  { title: "Wait in the queue, 95th percentile", text: time, value: (a, b) => quantileOf(a, b, "blip_queue_wait_seconds", 0.95) },
  { title: "Rows in the queue", text: plain, value: (_, b) => sum(b, "blip_queue_rows") },
  { title: "Requests in progress", text: plain, value: (_, b) => sum(b, "blip_http_requests_in_flight") },
  {
    title: "Batch size, mean",
    text: plain,
    value: (a, b) => {
      const count = sum(b, "blip_batch_size_count") - sum(a, "blip_batch_size_count");
      return count > 0 ? (sum(b, "blip_batch_size_sum") - sum(a, "blip_batch_size_sum")) / count : null;
    },
  },
  {
    title: "Worker busy",
    text: percent,
    // With several GPUs, the mean over their workers.
    value: (a, b, s) => Math.min((sum(b, "blip_worker_busy_seconds_total") - sum(a, "blip_worker_busy_seconds_total")) / s / Math.max(series(b, "blip_worker_busy_seconds_total"), 1), 1),
  },
  {
    title: "Cache hits",
    text: percent,
    value: (a, b) => {
      const all = sum(b, "blip_cache_requests_total") - sum(a, "blip_cache_requests_total");
      return all > 0 ? (sum(b, "blip_cache_requests_total", 'result="hit"') - sum(a, "blip_cache_requests_total", 'result="hit"')) / all : null;
    },
  },
  { title: "Memory", text: megabytes, value: (_, b) => sum(b, "process_resident_memory_bytes") },
  { title: "Processor cores in use", text: plain, value: (a, b, s) => (sum(b, "process_cpu_seconds_total") - sum(a, "process_cpu_seconds_total")) / s },
  { title: "Connections", text: plain, value: (_, b) => sum(b, "blip_http_connections") },
];

const drawn = CHARTS.map((chart) => {
  const number = h("p", {}, "–");
  const line = svg("path", { d: "" });
  const range = h("span", { class: "quiet" });
  const drawing = svg("svg", { viewBox: "0 0 150 40", preserveAspectRatio: "none", "aria-hidden": "true" }, line);
  const element = h("section", { class: "chart", "aria-label": chart.title }, h("h2", {}, chart.title), number, drawing, range);
  return { chart, number, line, range, element, values: /** @type {(number | null)[]} */ ([]) };
});
byId("charts", HTMLElement).append(...drawn.map(({ element }) => element));

/** @type {Scrape | null} */
let before = null;

/** @param {Scrape} now */
function draw(now) {
  // A server that was started again counts from 0.
  const started = sum(now, "process_start_time_seconds");
  if (before && sum(before, "process_start_time_seconds") !== started) before = null;
  if (before) {
    const seconds = Math.max((now.at - before.at) / 1000, 0.001);
    for (const { chart, number, line, range, values } of drawn) {
      const value = chart.value(before, now, seconds);
      values.push(value);
      if (values.length > KEPT) values.shift();
      number.textContent = value === null ? "–" : chart.text(value);
      const known = values.filter((one) => one !== null);
      const most = Math.max(...known, 1e-9);
      range.textContent = known.length ? `at most ${chart.text(most)}` : "";
      let path = "";
      values.forEach((one, index) => {
        if (one === null) return;
        const starts = path === "" || values[index - 1] === null;
        path += `${starts ? "M" : "L"}${KEPT - values.length + index} ${(38 - (one / most) * 36).toFixed(2)}`;
      });
      line.setAttribute("d", path);
    }
  }
  before = now;
}

async function scrape() {
  const state = byId("state", HTMLElement);
  const say = (/** @type {string} */ text) => {
    if (state.textContent !== text) state.textContent = text;
  };
  try {
    draw({ at: performance.now(), samples: parse(await getText("metrics")) });
    say("");
  } catch (error) {
    before = null;
    const unauthorized = error instanceof Problem && error.status === 401;
    say(unauthorized ? "This server needs an API key. Set it above." : "The metrics cannot be read. Is the server running?");
  }
}

startKeyBox(
  () => void scrape(),
  (error) => {
    byId("state", HTMLElement).textContent = error instanceof Error ? error.message : String(error);
  },
);

/** One scrape after the other, and none while nobody looks. */
async function watch() {
  if (document.hidden) before = null;
  else await scrape();
  setTimeout(() => void watch(), INTERVAL_MS);
}
void watch();
