// A task: a tab with a form and its results. The files of the tasks say what to send and how to show the answer.

import { Problem } from "./api.js";
import { h } from "./dom.js";
import * as pictures from "./pictures.js";

/** @typedef {import("./pictures.js").Picture} Picture */
/** @typedef {{signal: AbortSignal, onWait: (seconds: number) => void, progress: HTMLElement}} Run */
/**
 * @typedef {object} Task
 * @property {string} id
 * @property {string} title
 * @property {string} button
 * @property {string} role the models that do the task
 * @property {(Node | string)[]} fields
 * @property {boolean} [withoutPicture] true if the task needs no picture
 * @property {(picture: Picture, run: Run) => Promise<Node>} run
 */

/** @type {(error: Problem) => void} */
let onUnauthorized = () => {};

/** @param {(error: Problem) => void} listener */
export function whenUnauthorized(listener) {
  onUnauthorized = listener;
}

/**
 * Sends a call with a picture. A picture that the server has forgotten is sent again.
 * @template T
 * @param {Picture} picture
 * @param {(image: string) => Promise<T>} call
 * @returns {Promise<T>}
 */
export async function withPicture(picture, call) {
  try {
    return await call(await pictures.imageValue(picture));
  } catch (error) {
    if (!(error instanceof Problem) || error.code !== "image_not_found" || !picture.serverId) throw error;
    picture.serverId = null;
    return call(await pictures.imageValue(picture));
  }
}

/**
 * Returns the lines of a text field, without empty ones.
 * @param {HTMLTextAreaElement} field
 */
export function linesOf(field) {
  return field.value.split("\n").map((line) => line.trim()).filter(Boolean);
}

/**
 * Creates a text field with one entry per line.
 * @param {string} label
 * @param {string} value
 * @returns {[HTMLElement, HTMLTextAreaElement]}
 */
export function linesField(label, value) {
  const field = h("textarea", { rows: 4, spellcheck: "false" });
  field.value = value;
  return [h("p", {}, h("label", {}, label, field)), field];
}

/**
 * Returns what went wrong as a sentence, with the fields at fault.
 * @param {unknown} error
 */
export function sentence(error) {
  if (!(error instanceof Error)) return String(error);
  if (error instanceof TypeError) return "The server cannot be reached. Is it running?";
  if (!(error instanceof Problem)) return error.message;
  const details = error.fields.filter(({ detail }) => !error.message.includes(detail)).map(({ field, detail }) => `${field}: ${detail}`);
  const text = [error.message, ...details].join("; ");
  return text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
}

/**
 * Creates the tab and the panel of a task.
 * @param {Task} task
 * @returns {{tab: HTMLButtonElement, panel: HTMLElement, form: HTMLFormElement, setAvailable: (available: boolean) => void}}
 */
export function create(task) {
  const results = h("div", { "aria-live": "polite", "aria-atomic": "false" });
  const progress = h("p", { role: "status", class: "quiet" });
  const button = h("button", { type: "submit", class: "main" }, task.button);
  const missing = h("p", { class: "warn", hidden: true }, `No model for this task is loaded (role ${task.role}). Start the server with one: --model SRC.`);
  const form = h("form", {}, ...task.fields, h("p", {}, button), progress);
  const panel = h("div", { role: "tabpanel", id: `panel-${task.id}`, "aria-labelledby": `tab-${task.id}` }, missing, form, results);
  const tab = h("button", { type: "button", role: "tab", id: `tab-${task.id}`, "aria-controls": `panel-${task.id}` }, task.title);
  /** @type {AbortController | null} */
  let running = null;
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    running?.abort();
    const controller = new AbortController();
    running = controller;
    const picture = pictures.shown();
    if (!picture && !task.withoutPicture) {
      progress.textContent = "Choose a picture first.";
      return;
    }
    progress.textContent = "Working …";
    results.replaceChildren();
    const onWait = (/** @type {number} */ left) => {
      progress.textContent = left > 0 ? `The server is busy. Trying again in ${left} s …` : "Working …";
    };
    try {
      const live = h("div", { class: "result" });
      results.append(live);
      const shown = await task.run(/** @type {Picture} */ (picture), { signal: controller.signal, onWait, progress: live });
      if (running === controller) live.replaceChildren(shown);
    } catch (error) {
      if (controller.signal.aborted) return;
      results.replaceChildren(h("div", { class: "result" }, h("p", { class: "error" }, sentence(error))));
      if (error instanceof Problem && error.status === 401) onUnauthorized(error);
    } finally {
      if (running === controller) progress.textContent = "";
    }
  });
  const setAvailable = (/** @type {boolean} */ available) => {
    missing.hidden = available;
    button.disabled = !available;
  };
  return { tab, panel, form, setAvailable };
}
