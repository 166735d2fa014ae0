// A task: a tab with a form and its results. The files of the tasks say what to send and how to show the answer.

import { Problem } from "./api.js";
import { h } from "./dom.js";
import { hideHeat } from "./heatmap.js";
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

/** @type {() => void} */
let onUnauthorized = () => {};

/** @param {() => void} listener called when a call needs a key */
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
  const image = await pictures.imageValue(picture);
  try {
    return await call(image);
  } catch (error) {
    if (!isForgotten(error) || !image.startsWith("sha256:")) throw error;
    if (picture.serverId === image) picture.serverId = null;
    return call(await pictures.imageValue(picture));
  }
}

/**
 * True if the server no longer has a picture, for example after a restart.
 * @param {unknown} error
 */
export function isForgotten(error) {
  return error instanceof Problem && error.code === "image_not_found";
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
  if (!(error instanceof Problem)) return error.message;
  const details = error.fields.filter(({ detail }) => !error.message.includes(detail)).map(({ field, detail }) => `${field}: ${detail}`);
  const wait = error.retryAfter !== null && error.retryAfter > 60 ? [`try again in ${Math.ceil(error.retryAfter / 60)} minutes`] : [];
  const text = [error.message, ...details, ...wait].join("; ");
  // A sentence that begins with the name of a field keeps it as it is.
  const first = /^[a-z_]+[[:]/.test(text) ? text.charAt(0) : text.charAt(0).toUpperCase();
  return first + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
}

/**
 * Creates the tab and the panel of a task.
 * @param {Task} task
 * @returns {{tab: HTMLButtonElement, panel: HTMLElement, form: HTMLFormElement, setAvailable: (available: boolean) => void}}
 */
export function create(task) {
  const results = h("div");
  // Screen readers hear when a call begins, waits and ends, but not each second of a wait.
  const progress = h("p", { role: "status", class: "quiet" });
  const seconds = h("p", { class: "quiet", "aria-hidden": "true" });
  const cancel = h("button", { type: "button", hidden: true }, "Cancel");
  const button = h("button", { type: "submit", class: "main" }, task.button);
  const missing = h("p", { class: "warn", hidden: true }, `No model for this task is loaded (role ${task.role}). Start the server with one: --model SRC.`);
  const form = h("form", {}, ...task.fields, h("p", {}, button, " ", cancel), progress, seconds);
  const panel = h("div", { role: "tabpanel", id: `panel-${task.id}`, "aria-labelledby": `tab-${task.id}` }, missing, form, results);
  const tab = h("button", { type: "button", role: "tab", id: `tab-${task.id}`, "aria-controls": `panel-${task.id}` }, task.title);
  /** @type {AbortController | null} */
  let running = null;
  cancel.addEventListener("click", () => {
    running?.abort();
    results.replaceChildren();
    progress.textContent = "Cancelled.";
    seconds.textContent = "";
    cancel.hidden = true;
    button.focus();
  });
  // A field that is not valid may be hidden.
  form.addEventListener("invalid", (event) => {
    const details = event.target instanceof Element ? event.target.closest("details") : null;
    if (details) details.open = true;
  }, true);
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
    progress.className = "quiet";
    progress.textContent = "Working …";
    cancel.hidden = false;
    results.replaceChildren();
    hideHeat();
    const onWait = (/** @type {number} */ left) => {
      if (left > 0 && seconds.textContent === "") progress.textContent = "The server is busy.";
      seconds.textContent = left > 0 ? `Trying again in ${left} s …` : "";
    };
    try {
      const live = h("div", { class: "result" });
      results.append(live);
      const shown = await task.run(/** @type {Picture} */ (picture), { signal: controller.signal, onWait, progress: live });
      if (running !== controller) return;
      live.replaceChildren(...(picture && !task.withoutPicture ? [h("p", { class: "quiet" }, `About ${picture.name}:`)] : []), shown);
      // For screen readers; others see the result.
      progress.className = "visually-hidden";
      progress.textContent = `Done. ${shown instanceof Element ? (shown.querySelector(".plain")?.textContent ?? "") : ""}`;
    } catch (error) {
      if (controller.signal.aborted) return;
      progress.textContent = "";
      results.replaceChildren(h("div", { class: "result" }, h("p", { class: "error", role: "alert" }, sentence(error))));
      if (error instanceof Problem && error.status === 401) onUnauthorized();
    } finally {
      if (running === controller) {
        seconds.textContent = "";
        cancel.hidden = true;
      }
    }
  });
  const setAvailable = (/** @type {boolean} */ available) => {
    missing.hidden = available;
    button.disabled = !available;
  };
  return { tab, panel, form, setAvailable };
}
