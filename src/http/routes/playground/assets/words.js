// A text whose words show their probability, and the heat map while the pointer or the focus is on them.

import { h, percent } from "./dom.js";
import { hideHeat, showHeat } from "./heatmap.js";
import * as pictures from "./pictures.js";

/** @typedef {{text: string, logprob?: number, weights: number[]}} Token */
/** @typedef {{text: string, probability: number | null, weights: number[]}} Word */

/**
 * Joins tokens to words. A token `##s` continues the word before it.
 * @param {Token[]} tokens
 * @returns {Word[]}
 */
export function wordsOf(tokens) {
  /** @type {(Word & {count: number})[]} */
  const words = [];
  for (const token of tokens) {
    if (/^\[.*\]$/.test(token.text)) continue;
    const probability = token.logprob === undefined ? null : Math.exp(token.logprob);
    const last = words.at(-1);
    if (token.text.startsWith("##") && last) {
      last.text += token.text.slice(2);
      if (last.probability !== null && probability !== null) last.probability *= probability;
      // The mean of the maps of its tokens.
      last.weights = last.weights.map((weight, index) => (weight * last.count + (token.weights[index] ?? 0)) / (last.count + 1));
      last.count += 1;
    } else {
      words.push({ text: token.text, probability, weights: token.weights, count: 1 });
    }
  }
  return words;
}

/**
 * Shows the words of an explanation of a picture. While the pointer or the focus is on a word, that picture is shown.
 * @param {{grid: [number, number], tokens: Token[]}} explanation
 * @param {string} label
 * @param {import("./pictures.js").Picture} picture
 */
export function explained(explanation, label, picture) {
  const line = h("p", { class: "caption", role: "group", "aria-label": label });
  /** @type {HTMLButtonElement | null} */
  let pinned = null;
  for (const word of wordsOf(explanation.tokens)) {
    const known = word.probability;
    const kind = known === null ? " given" : known >= 0.8 ? "" : known >= 0.4 ? " unsure" : " doubtful";
    const title = known === null ? word.text : `${word.text}: probability ${percent(known)}`;
    const button = h("button", { type: "button", class: `word${kind}`, title, "aria-label": title, "aria-pressed": "false" }, word.text);
    const show = () => {
      if (!pictures.all().includes(picture)) return;
      if (pictures.shown() !== picture) pictures.show(picture);
      void showHeat(explanation.grid, word.weights, word.text);
    };
    const hide = () => {
      if (pinned) pinned.dispatchEvent(new Event("again"));
      else hideHeat();
    };
    button.addEventListener("pointerenter", show);
    button.addEventListener("focus", show);
    button.addEventListener("again", show);
    button.addEventListener("pointerleave", hide);
    button.addEventListener("blur", hide);
    button.addEventListener("click", () => {
      pinned?.setAttribute("aria-pressed", "false");
      pinned = pinned === button ? null : button;
      button.setAttribute("aria-pressed", pinned ? "true" : "false");
      show();
    });
    line.append(button, " ");
  }
  return line;
}
