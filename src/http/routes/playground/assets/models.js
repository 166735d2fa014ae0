// The state of the server and its models.

import { get, Problem } from "./api.js";
import { byId, h } from "./dom.js";
import { setLimits } from "./pictures.js";

/** @typedef {Record<string, any>} Json */

const READY_MS = 15000;
const WAITING_MS = 2000;

/** @type {Json[]} */
let models = [];
/** @type {((roles: Set<string>) => void)[]} */
const listeners = [];

/** Returns the roles of the loaded models. */
export function roles() {
  return new Set(models.map((model) => String(model.role)));
}

/**
 * True if the default model of a role is a demo model.
 * @param {string} role
 */
export function isDemo(role) {
  return models.some((model) => model.role === role && model.default && model.demo);
}

/** @param {(roles: Set<string>) => void} listener */
export function onModels(listener) {
  listeners.push(listener);
}

const STATES = /** @type {Record<string, string>} */ ({
  loading: "The server is loading its models. Calls will work in a moment.",
  draining: "The server is shutting down and takes no new calls.",
  worker_down: "The server cannot run its models right now. Its log says why.",
});

/** Asks for the state, again and again. */
export async function watch() {
  let wait = WAITING_MS;
  try {
    const response = await fetch("health");
    const { status } = await response.json();
    if (status === "ready") {
      wait = READY_MS;
      if (models.length === 0) await load();
    } else {
      models = [];
      say(STATES[status] ?? `The server is not ready (${status}).`);
    }
  } catch (error) {
    models = [];
    if (error instanceof Problem && error.status === 401) say("This server needs an API key. Set it above.");
    else say("The server cannot be reached.");
  }
  setTimeout(() => void watch(), wait);
}

/** Loads the models and the limits. */
export async function load() {
  const info = await get("info");
  models = info.models;
  setLimits(info.limits);
  const notes = new Set(models.map((model) => model.note).filter(Boolean));
  say(notes.size ? `The loaded models are demo models: each ${[...notes].join("; each ")}.` : "");
  const items = models.map((model) => h("li", {}, h("strong", {}, String(model.name)), ` – ${model.role}${model.default ? ", the default" : ""}: ${model.class}, ${model.dtype} on ${model.device}, ${Math.round(model.parameters / 1e6)} million parameters${model.image_size ? `, pictures of ${model.image_size} x ${model.image_size} pixels` : ""}`));
  byId("model-list", HTMLElement).replaceChildren(...items);
  byId("models", HTMLElement).hidden = false;
  for (const listener of listeners) listener(roles());
}

/** @param {string} text */
function say(text) {
  const state = byId("state", HTMLElement);
  if (state.textContent !== text) state.textContent = text;
}
