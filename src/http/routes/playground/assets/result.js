// What all results have in common: bars, times, the JSON of the answer, and the call as a program.

import { key } from "./api.js";
import { programs } from "./code.js";
import { h, percent } from "./dom.js";

/** @typedef {import("./api.js").Answer} Answer */

const STAGES = [
  ["decode", "decoding the picture"],
  ["queue", "waiting"],
  ["vision", "vision model"],
  ["text", "text model"],
];

/**
 * Returns a bar from 0 to 1 with its number.
 * @param {number} value
 * @param {string} text
 * @param {boolean} [second] the second kind of bar, in another colour
 */
export function bar(value, text, second = false) {
  const fill = h("div", { class: second ? "fill two" : "fill" });
  fill.style.width = `${Math.min(Math.max(value, 0), 1) * 100}%`;
  return h("span", { class: "meter-line" }, h("span", { class: "track", "aria-hidden": "true" }, fill), h("span", {}, text));
}

/**
 * Returns a table whose first column is a text and whose others are bars.
 * @param {string} caption
 * @param {string[]} heads
 * @param {(string | Node)[][]} rows
 */
export function table(caption, heads, rows) {
  return h(
    "table",
    {},
    h("caption", { class: "visually-hidden" }, caption),
    h("thead", {}, h("tr", {}, ...heads.map((head) => h("th", { scope: "col" }, head)))),
    h(
      "tbody",
      {},
      ...rows.map(([first, ...cells]) => h("tr", {}, h("th", { scope: "row" }, first ?? ""), ...cells.map((cell) => h("td", { class: "meter" }, cell)))),
    ),
  );
}

/** @param {number | undefined} value */
export function probabilityBar(value) {
  return value === undefined ? "" : bar(value, percent(value));
}

/** @param {number | undefined} value from -1 to 1 */
export function cosineBar(value) {
  return value === undefined ? "" : bar((value + 1) / 2, value.toFixed(3), true);
}

/**
 * Returns what stands below a result.
 * @param {string} path
 * @param {Record<string, any>} body
 * @param {Answer} answer
 */
export function footer(path, body, answer) {
  return h("div", {}, timings(answer), json(answer.json), code(path, body));
}

/** @param {Answer} answer */
function timings({ timings, elapsed }) {
  const parts = STAGES.map(([name = "", what = ""]) => ({ name, what, time: timings[name] ?? 0 }));
  const known = parts.reduce((sum, part) => sum + part.time, 0);
  parts.push({ name: "rest", what: "network and the rest", time: Math.max(0, elapsed - known) });
  const total = Math.max(elapsed, known, 0.001);
  const bars = parts.map(({ name, time }) => {
    const part = h("span", { class: `t-${name}` });
    part.style.width = `${(time / total) * 100}%`;
    return part;
  });
  const legend = parts.map(({ name, what, time }) => h("span", {}, h("span", { class: `key t-${name}`, "aria-hidden": "true" }), `${what} ${time.toFixed(time < 10 ? 1 : 0)} ms`));
  return h("div", {}, h("div", { class: "timings", "aria-hidden": "true" }, ...bars), h("p", { class: "quiet timings-text" }, `${total.toFixed(0)} ms in all:`, ...legend));
}

/** @param {Record<string, any>} answer */
function json(answer) {
  // A map has a number for each patch of each word, which nobody reads.
  const text = JSON.stringify(answer, (key, value) => (["weights", "embedding"].includes(key) && Array.isArray(value) && value.length > 8 ? [`${value.length} numbers`] : value), 2);
  return h("details", {}, h("summary", {}, "JSON"), h("pre", { tabindex: "0" }, text));
}

/**
 * @param {string} path
 * @param {Record<string, any>} body
 */
function code(path, body) {
  const texts = programs(path, body, key());
  const shown = h("pre", { tabindex: "0" });
  const select = h("select", { "aria-label": "Language", onchange: () => (shown.textContent = texts[select.value] ?? "") });
  select.append(...Object.keys(texts).map((name) => h("option", {}, name)));
  shown.textContent = texts.curl ?? "";
  const copy = h("button", { type: "button" }, "Copy");
  copy.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(shown.textContent ?? "");
      copy.textContent = "Copied";
    } catch {
      // Without a secure context there is no clipboard; the user can copy the selection.
      getSelection()?.selectAllChildren(shown);
      copy.textContent = "Selected: press Ctrl+C";
    }
    setTimeout(() => (copy.textContent = "Copy"), 2000);
  });
  return h("details", {}, h("summary", {}, "The same call as code"), h("p", { class: "row" }, select, copy), shown);
}
