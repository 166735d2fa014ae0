// Caption: streamed word by word, then each word with its probability and heat map; beams and samples as a list.

import { call, stream } from "./api.js";
import { h, percent } from "./dom.js";
import { isDemo, roles } from "./models.js";
import { footer, probabilityBar, table } from "./result.js";
import { withPicture } from "./task.js";
import { explained } from "./words.js";

/** @typedef {Record<string, any>} Json */

/** Number fields: name, label, smallest and largest value, step. */
const NUMBERS = /** @type {const} */ ([
  ["max_new_tokens", "Maximum new tokens", 1, 65536, 1],
  ["min_new_tokens", "Minimum new tokens", 0, 65536, 1],
  ["num_return_sequences", "Captions", 1, 8, 1],
  ["num_beams", "Beams", 1, 8, 1],
  ["temperature", "Temperature", 0.01, 100, "any"],
  ["top_k", "Top k", 0, 100000, 1],
  ["top_p", "Top p", 0.01, 1, "any"],
  ["min_p", "Min p", 0, 1, "any"],
  ["repetition_penalty", "Repetition penalty", 0.01, 100, "any"],
  ["no_repeat_ngram_size", "No repeated n-grams of", 0, 64, 1],
  ["length_penalty", "Length penalty", -3, 10, "any"],
  ["seed", "Seed", 0, 9007199254740991, 1],
]);

const prompt = h("input", { type: "text", placeholder: "a photo of", spellcheck: "false" });
const method = h("select", {}, h("option", { value: "greedy" }, "Most probable words"), h("option", { value: "beams" }, "Beam search, 3 captions"), h("option", { value: "samples" }, "3 random samples"));
const numbers = NUMBERS.map(([name, label, min, max, step]) => {
  const input = h("input", { type: "number", name, min, max, step });
  return { name, input, label: h("label", {}, label, input) };
});
const others = h("textarea", { rows: 2, spellcheck: "false", placeholder: '{"stop_strings": [" on"]}' });

function fields() {
  /** @type {Json} */
  const fields = {};
  if (prompt.value.trim()) fields.prompt = prompt.value.trim();
  if (method.value === "beams") Object.assign(fields, { num_beams: 3, num_return_sequences: 3 });
  if (method.value === "samples") Object.assign(fields, { do_sample: true, num_return_sequences: 3 });
  for (const { name, input } of numbers) if (input.value !== "") fields[name] = Number(input.value);
  if (others.value.trim()) {
    try {
      const given = JSON.parse(others.value);
      if (typeof given !== "object" || given === null || Array.isArray(given)) throw new Error("no object");
      Object.assign(fields, given);
    } catch {
      throw new Error("Other fields must be a JSON object, such as {\"stop_strings\": [\" on\"]}.");
    }
  }
  return fields;
}

/**
 * Returns a badge with the probability that the caption describes the picture.
 * @param {number} match
 */
function badge(match) {
  const [kind, word] = match >= 0.5 ? ["good", "Match"] : ["bad", "Low match"];
  return h("span", { class: `badge ${kind}`, title: "Probability of the retrieval model that this caption describes the picture" }, `${word}: ${percent(match)}`);
}

/** @param {number} match */
function doubt(match) {
  if (match >= 0.5) return null;
  const demo = isDemo("caption") ? " The demo models know only scenes of emoji, not photographs; for photographs, start the server with --model and an official checkpoint." : "";
  return h("p", { class: "warn" }, `The model's own check says that this caption probably does not describe the picture.${demo}`);
}

/** @type {import("./task.js").Task} */
export const task = {
  id: "caption",
  title: "Caption",
  button: "Caption",
  role: "caption",
  fields: [
    h("div", { class: "fields" }, h("label", {}, "Beginning of the caption", prompt), h("label", {}, "Method", method)),
    h("details", {}, h("summary", {}, "More"), h("div", { class: "fields" }, ...numbers.map(({ label }) => label)), h("label", {}, "Other fields (JSON)", others)),
  ],
  async run(picture, { signal, onWait, progress }) {
    const given = fields();
    const single = (given.num_beams ?? 1) === 1 && (given.num_return_sequences ?? 1) === 1 && !given.candidates;
    if (single) {
      const text = h("p", { class: "caption" });
      progress.append(text);
      const body = { ...given, stream: true, explain: true };
      const answer = await withPicture(picture, (image) => {
        text.textContent = "";
        return stream("caption", { image, ...body }, signal, onWait, (delta) => text.append(String(delta.text)));
      });
      picture.serverId = answer.json.image.id;
      const caption = answer.json.captions[0];
      const checks = h("div");
      const shown = h(
        "div",
        {},
        h("p", { class: "caption plain" }, String(caption.text)),
        checks,
        h("h3", {}, "Why"),
        h("p", { class: "quiet" }, "Point at a word, or move the focus to it, to see where the model looked. The line below a word is solid if the model was sure, dashed or dotted if not."),
        explained(caption.explanation, "Words of the caption", picture),
        footer("caption", { image: "", ...body }, answer),
      );
      if (roles().has("retrieval")) {
        // The caption is shown at once; the check comes when it is there, or not at all.
        void call("similarity", { image: picture.serverId, texts: [caption.text], scores: ["match"] }, signal, () => {}).then(
          (matched) => {
            const match = matched.json.scores[0][0].match;
            checks.append(h("p", {}, badge(match)), doubt(match) ?? "");
          },
          () => {},
        );
      }
      return shown;
    }
    const verify = roles().has("retrieval") && !given.candidates;
    const body = verify ? { ...given, verify: true } : given;
    const answer = await withPicture(picture, (image) => call("caption", { image, ...body }, signal, onWait));
    picture.serverId = answer.json.image.id;
    /** @type {Json[]} */
    const captions = answer.json.captions.length ? answer.json.captions : (answer.json.ranking ?? []);
    const rows = captions.map((caption) => [String(caption.text), probabilityBar(caption.probability ?? Math.exp(caption.avg_logprob)), probabilityBar(caption.match)]);
    return h("div", {}, table("Captions", ["Caption", "Probability per token", "Match"], rows), footer("caption", { image: "", ...body }, answer));
  },
};
