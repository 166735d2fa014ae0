// Calls the routes of the OpenAI API with the package `openai`, and those of the Hugging Face task API with
// `@huggingface/inference`.
//
//     node clients.mjs http://127.0.0.1:8080 PICTURE
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { InferenceClient } from "@huggingface/inference";
import OpenAI from "openai";

const [server, picture] = process.argv.slice(2);
const file = readFileSync(picture);
const dataUri = `data:image/png;base64,${file.toString("base64")}`;
const CAPTION = "two cats on a blue background";
const QUESTION = "how many cats are there?";
const ANSWER = "2";

/** Checks that a call fails with this class of error, and that the message contains each of the texts. */
async function refused(type, call, ...texts) {
  const error = await call().then(() => assert.fail(`expected an error with ${texts}`), (error) => error);
  assert(error instanceof type, error);
  for (const text of texts) assert(error.message.includes(text), `${text} is not in: ${error.message}`);
  return error;
}

function assertEqual(left, right) {
  assert.equal(left.length, right.length);
  // Apart from rounding to f32
  assert(left.every((value, index) => Math.abs(value - right[index]) <= 1e-6));
}

async function checkOpenAi() {
  // The client repeats requests that are answered with 429 or 5xx. Here such an answer is a failure.
  const client = new OpenAI({ baseURL: `${server}/v1`, apiKey: "none", maxRetries: 0 });
  const image = (url = dataUri) => ({ type: "image_url", image_url: { url } });
  const chat = (options, ...content) =>
    client.chat.completions.create({
      model: "demo-caption",
      messages: [{ role: "user", content: content.length ? content : [image()] }],
      ...options,
    });
  const embed = (input, options = {}) => client.embeddings.create({ model: "demo-retrieval", input, ...options });

  const names = [];
  for await (const model of client.models.list()) names.push(model.id);
  for (const name of ["demo-caption", "demo-vqa", "demo-retrieval"]) assert(names.includes(name), names);
  assert.equal((await client.models.retrieve("demo-caption")).object, "model");
  await refused(OpenAI.NotFoundError, () => client.models.retrieve("Salesforce/nope"), "Salesforce/nope", "demo-caption");

  const completion = await chat({ max_tokens: 4096 });
  assert.equal(completion.choices[0].message.content, CAPTION);
  assert.equal(completion.usage.total_tokens, completion.usage.prompt_tokens + completion.usage.completion_tokens);
  const answer = await chat({ model: "demo-vqa" }, { type: "text", text: QUESTION }, image());
  assert.equal(answer.choices[0].message.content, ANSWER);
  const samples = await chat({ n: 2, temperature: 1 });
  assert.deepEqual(samples.choices.map((choice) => choice.index), [0, 1]);

  let text = "";
  for await (const chunk of await chat({ stream: true })) text += chunk.choices[0].delta.content ?? "";
  assert.equal(text, CAPTION);
  let last;
  for await (const chunk of await chat({ stream: true, stream_options: { include_usage: true } })) last = chunk;
  assert.deepEqual(last.choices, []);
  assert(last.usage.total_tokens > 0);

  // The library asks for base64 and decodes it, unless the caller chooses the encoding.
  const decoded = (await embed("two cats")).data[0].embedding;
  assertEqual(decoded, (await embed(["two cats"], { encoding_format: "float" })).data[0].embedding);
  const texts = Array.from({ length: 300 }, (_, count) => `a picture of ${count} cats`);
  const many = await embed(texts);
  assert.deepEqual(many.data.map((item) => item.index), texts.map((_, index) => index));
  assert.equal((await embed([{ image: dataUri }, "two cats"])).data.length, 2);

  const error = await refused(OpenAI.NotFoundError, () => chat({ model: "nope" }), "nope", "demo-caption");
  assert.equal(error.code, "model_not_found");
  assert(error.requestID);
  await refused(OpenAI.NotFoundError, () => chat({ model: "nope", stream: true }), "nope", "demo-caption");
  await refused(OpenAI.BadRequestError, () => chat({}, { type: "text", text: "Describe." }), "image_url");
  await refused(OpenAI.BadRequestError, () => chat({}, image("https://example.org/cat.png")), "fetch.enabled");
  await refused(OpenAI.BadRequestError, () => embed([[1, 2]]), "check_embedding_ctx_length");
  console.log("openai (Node): models, chat, streams, embeddings and errors are right");
}

async function checkHuggingFace() {
  const client = new InferenceClient();
  const task = (name, query = "") => ({ endpointUrl: `${server}/hf/${name}${query}` });
  // The library sends a Blob without a type without a content type.
  const blobs = [new Blob([file]), new Blob([file], { type: "image/png" })];

  // This library expects an object here; the one for Python expects a list.
  for (const data of blobs) {
    assert.equal((await client.imageToText({ ...task("image-to-text"), data })).generated_text, CAPTION);
  }
  const inputs = { question: QUESTION, image: blobs[0] };
  const answer = await client.visualQuestionAnswering({ ...task("visual-question-answering"), inputs });
  assert.equal(answer.answer, ANSWER);
  assert(answer.score >= 0 && answer.score <= 1);

  const parameters = { candidate_labels: ["a red rocket", "two cats"] };
  const classify = task("zero-shot-image-classification");
  for (const images of [blobs[0], { image: blobs[0] }]) {
    const labels = await client.zeroShotImageClassification({ ...classify, inputs: images, parameters });
    assert.deepEqual(labels.map((label) => label.label), ["two cats", "a red rocket"]);
    assert(labels[0].score > labels[1].score);
  }

  const one = await client.featureExtraction({ ...task("feature-extraction"), inputs: "two cats" });
  const two = await client.featureExtraction({ ...task("feature-extraction"), inputs: ["a red rocket", "two cats"] });
  assert.equal(two.length, 2);
  assertEqual(one, two[1]);

  const messages = [{ role: "user", content: [{ type: "image_url", image_url: { url: dataUri } }] }];
  const chat = { endpointUrl: `${server}/v1`, model: "demo-caption", messages };
  assert.equal((await client.chatCompletion(chat)).choices[0].message.content, CAPTION);
  let text = "";
  for await (const chunk of client.chatCompletionStream(chat)) text += chunk.choices[0].delta.content ?? "";
  assert.equal(text, CAPTION);

  const unknown = () => client.imageToText({ ...task("image-to-text", "?model=nope"), data: blobs[0] });
  await refused(Error, unknown, "nope", "demo-caption");
  await refused(Error, () => client.imageToText({ ...task("image-to-text"), data: new Blob(["hello world"]) }), "jpeg, png");
  const unlabelled = { ...classify, inputs: blobs[0], parameters: {} };
  await refused(Error, () => client.zeroShotImageClassification(unlabelled), "candidate_labels");
  console.log("@huggingface/inference (Node): captions, answers, labels, vectors, chat and errors are right");
}

await checkOpenAi();
await checkHuggingFace();
