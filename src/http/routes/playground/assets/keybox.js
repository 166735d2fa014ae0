// The form for the API key, which both pages have.

import { key, setKey } from "./api.js";
import { byId } from "./dom.js";

/**
 * Starts the form. Returns a function that shows or hides it.
 * @param {() => void | Promise<void>} use called with a new key; if it throws, the form stays open
 * @param {(error: unknown) => void} onError
 * @returns {(visible: boolean) => void}
 */
export function startKeyBox(use, onError) {
  const box = byId("key-box", HTMLFormElement);
  const open = byId("key-open", HTMLButtonElement);
  const field = byId("key", HTMLInputElement);
  const show = (/** @type {boolean} */ visible) => {
    box.hidden = !visible;
    open.setAttribute("aria-expanded", visible ? "true" : "false");
    if (visible) field.focus();
  };
  open.addEventListener("click", () => show(box.hidden === true));
  box.addEventListener("submit", async (event) => {
    event.preventDefault();
    try {
      setKey(field.value.trim());
      await use();
      show(false);
      open.focus();
    } catch (error) {
      onError(error);
    }
  });
  field.value = key();
  return show;
}
