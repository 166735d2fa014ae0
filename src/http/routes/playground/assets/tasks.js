// The other tasks: ask, match, classify, rank, embed.

import { call } from "./api.js";
import { h } from "./dom.js";
import { map } from "./map.js";
import * as pictures from "./pictures.js";
import { cosineBar, footer, probabilityBar, table } from "./result.js";
import { isForgotten, linesField, linesOf, withPicture } from "./task.js";
import { explained } from "./words.js";

/** @typedef {Record<string, any>} Json */
/** @typedef {import("./task.js").Task} Task */

const [questionsField, questions] = linesField("Questions, one per line", "what is this?\nwhat color is the background?");
const [candidatesField, candidates] = linesField("Possible answers, one per line. Leave empty for a free answer", "");
candidates.rows = 2;

/** @type {Task} */
const ask = {
  id: "ask",
  title: "Ask",
  button: "Ask",
  role: "vqa",
  fields: [questionsField, candidatesField],
  async run(picture, { signal, onWait }) {
    const closed = linesOf(candidates);
    const body = { questions: linesOf(questions), ...(closed.length ? { candidates: closed } : { explain: true }) };
    const answer = await withPicture(picture, (image) => call("vqa", { image, ...body }, signal, onWait));
    picture.serverId = answer.json.image.id;
    const parts = answer.json.answers.map((/** @type {Json} */ found) => {
      const title = h("h3", {}, `${found.question} `, h("strong", {}, String(found.answer)));
      if (found.ranking) {
        const rows = found.ranking.map((/** @type {Json} */ one) => [String(one.answer), probabilityBar(one.probability)]);
        return h("div", {}, title, table(`Answers to: ${found.question}`, ["Answer", "Probability"], rows));
      }
      const why = found.explanation ? explained(found.explanation, `Words of the question ${found.question}`, picture) : null;
      return h("div", {}, title, h("p", {}, "Probability of this answer: ", probabilityBar(Math.exp(found.logprob))), h("p", { class: "quiet" }, "Where the model looked for each word of the question:"), why);
    });
    return h("div", {}, ...parts, footer("vqa", { image: "", ...body }, answer));
  },
};

const [textsField, texts] = linesField("Texts, one per line", "two cats on a blue background\nthree cats on a blue background\na red car");

/** @type {Task} */
const match = {
  id: "match",
  title: "Match",
  button: "Compare",
  role: "retrieval",
  fields: [textsField],
  async run(picture, { signal, onWait }) {
    const body = { texts: linesOf(texts) };
    const answer = await withPicture(picture, (image) => call("similarity", { image, ...body }, signal, onWait));
    picture.serverId = answer.json.images[0].id;
    const rows = body.texts.map((text, index) => {
      const cell = answer.json.scores[0][index];
      return [text, probabilityBar(cell.match), cosineBar(cell.cosine)];
    });
    return h("div", {}, table("Scores of the texts", ["Text", "Match", "Cosine"], rows), footer("similarity", { image: "", ...body }, answer));
  },
};

const [labelsField, labels] = linesField("Labels, one per line", "two cats\na dog\na rocket");
const template = h("input", { type: "text", value: "a photo of {}", spellcheck: "false" });
const by = h("select", {}, h("option", { value: "cosine" }, "Cosine (fast)"), h("option", { value: "match" }, "Match (exact)"));

/** @type {Task} */
const classify = {
  id: "classify",
  title: "Classify",
  button: "Classify",
  role: "retrieval",
  fields: [labelsField, h("div", { class: "fields" }, h("label", {}, "Template", template), h("label", {}, "By", by))],
  async run(picture, { signal, onWait }) {
    const body = { labels: linesOf(labels), template: template.value, by: by.value };
    const answer = await withPicture(picture, (image) => call("classify", { image, ...body }, signal, onWait));
    picture.serverId = answer.json.image.id;
    const rows = answer.json.labels.map((/** @type {Json} */ label) => [String(label.label), probabilityBar(label.probability)]);
    return h("div", {}, table("Labels, best first", ["Label", "Probability"], rows), footer("classify", { image: "", ...body }, answer));
  },
};

const query = h("input", { type: "text", value: "two cats on a blue background", spellcheck: "false" });

/** @type {Task} */
const rank = {
  id: "rank",
  title: "Rank",
  button: "Rank all pictures",
  role: "retrieval",
  withoutPicture: true,
  fields: [h("p", { class: "quiet" }, "Finds among all chosen pictures those that a text describes best."), h("p", {}, h("label", {}, "Text", query))],
  async run(_picture, { signal, onWait }) {
    const list = [...pictures.all()];
    if (list.length < 2) throw new Error("Choose two or more pictures first: drop several, or click demo scenes.");
    const ranked = async () => {
      await embeddings(list.filter((picture) => !picture.serverId), signal, onWait);
      const body = { text: query.value, images: list.map((picture) => picture.serverId), top_k: list.length };
      return { body, answer: await call("rank", body, signal, onWait) };
    };
    const { body, answer } = await ranked().catch((error) => {
      if (!isForgotten(error)) throw error;
      for (const picture of list) picture.serverId = null;
      return ranked();
    });
    const rows = answer.json.results.map((/** @type {Json} */ result) => {
      const picture = list[result.index];
      const image = h("img", { src: picture?.url ?? "", alt: "", width: 56, height: 56 });
      return [h("span", { class: "row" }, image, picture?.name ?? ""), probabilityBar(result.match), cosineBar(result.cosine)];
    });
    return h("div", {}, table("Pictures, best first", ["Picture", "Match", "Cosine"], rows), footer("rank", body, answer));
  },
};

/**
 * Embeds a picture, after which the server knows it by its id.
 * @param {import("./pictures.js").Picture} picture
 * @param {AbortSignal} signal
 * @param {(seconds: number) => void} onWait
 */
async function embedding(picture, signal, onWait) {
  const answer = await withPicture(picture, (image) => call("embeddings", { image }, signal, onWait));
  picture.serverId = answer.json.image.id;
  return answer;
}

/** Number of pictures that are sent at a time. */
const AT_ONCE = 4;

/**
 * Embeds pictures, some at a time.
 * @param {import("./pictures.js").Picture[]} list
 * @param {AbortSignal} signal
 * @param {(seconds: number) => void} onWait
 */
async function embeddings(list, signal, onWait) {
  const answers = [];
  for (let first = 0; first < list.length; first += AT_ONCE) {
    answers.push(...(await Promise.all(list.slice(first, first + AT_ONCE).map((picture) => embedding(picture, signal, onWait)))));
  }
  return answers;
}

const [embedField, embedTexts] = linesField("Texts, one per line", "two cats\na dog\na rocket\na whale");

/** @type {Task} */
const embed = {
  id: "embed",
  title: "Embed",
  button: "Draw the map",
  role: "retrieval",
  withoutPicture: true,
  fields: [h("p", { class: "quiet" }, "Embeds all chosen pictures and these texts as vectors, and draws them on a map: what is near means similar things."), embedField],
  async run(_picture, { signal, onWait }) {
    const list = [...pictures.all()];
    const words = linesOf(embedTexts);
    if (list.length + words.length < 3) throw new Error("A map needs three or more pictures and texts.");
    const images = await embeddings(list, signal, onWait);
    const texts = await Promise.all(words.map((text) => call("embeddings", { text }, signal, onWait)));
    const points = [
      ...list.map((picture, index) => ({ name: picture.name, url: picture.url, vector: /** @type {number[]} */ (images[index]?.json.embedding) })),
      ...words.map((text, index) => ({ name: text, url: null, vector: /** @type {number[]} */ (texts[index]?.json.embedding) })),
    ];
    const last = texts.at(-1) ?? images.at(-1);
    const body = words.length ? { text: words.at(-1) } : { image: "" };
    return h("div", {}, map(points), last ? footer("embeddings", body, last) : null);
  },
};

export const tasks = [ask, match, classify, rank, embed];
