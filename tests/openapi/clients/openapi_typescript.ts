// Every operation by openapi-fetch with the types that openapi-typescript wrote; the six that take one picture upload it
// as a file too.
import createClient from "openapi-fetch";
import { type Calls, FILE, IMAGE, LABELS, makeAll, QUESTION, SERVER, TEXTS } from "./calls.js";
import type { paths } from "./schema.js";

const client = createClient<paths>({ baseUrl: SERVER });

// openapi-typescript gives a binary field the type `string`, so the file takes its place in the serializer.
function upload(fields: unknown): FormData {
  const form = new FormData();
  for (const [name, value] of Object.entries(fields as Record<string, unknown>)) {
    if (name === "image") form.append(name, new Blob([new Uint8Array(FILE)], { type: "image/png" }), "picture.png");
    else form.append(name, String(value));
  }
  return form;
}
const file = { bodySerializer: upload };
const image = "picture.png";

const calls: Calls = {
  caption_image: async () => {
    const { data } = await client.POST("/caption", { body: { image: IMAGE } });
    return data?.captions[0]?.text.startsWith("two cats") === true;
  },
  caption_image_upload: async () => {
    const { data } = await client.POST("/caption", { body: { image, num_beams: 2 }, ...file });
    return data?.captions[0]?.text.startsWith("two cats") === true;
  },
  caption_image_batch: async () => {
    const { data } = await client.POST("/caption/batch", { body: { inputs: [{ image: IMAGE }] } });
    const [result] = data?.results ?? [];
    return result !== undefined && "captions" in result && result.captions[0]?.text.startsWith("two cats") === true;
  },
  answer_question: async () => {
    const { data } = await client.POST("/vqa", { body: { image: IMAGE, question: QUESTION } });
    return data?.answers[0]?.answer === "2";
  },
  answer_question_upload: async () => {
    const { data } = await client.POST("/vqa", { body: { image, question: QUESTION }, ...file });
    return data?.answers[0]?.answer === "2";
  },
  answer_question_batch: async () => {
    const { data } = await client.POST("/vqa/batch", { body: { inputs: [{ image: IMAGE }], question: QUESTION } });
    const [result] = data?.results ?? [];
    return result !== undefined && "answers" in result && result.answers[0]?.answer === "2";
  },
  score_similarity: async () => {
    const { data } = await client.POST("/similarity", { body: { image: IMAGE, texts: TEXTS } });
    return (data?.scores[0]?.[0]?.match ?? 0) > 0.5;
  },
  score_similarity_upload: async () => {
    const { data } = await client.POST("/similarity", { body: { image, text: "two cats" }, ...file });
    return (data?.scores[0]?.[0]?.match ?? 0) > 0.5;
  },
  score_similarity_batch: async () => {
    const { data } = await client.POST("/similarity/batch", { body: { inputs: [{ image: IMAGE, texts: TEXTS }] } });
    const [result] = data?.results ?? [];
    return result !== undefined && "scores" in result && result.scores[0]?.length === 2;
  },
  embed_inputs: async () => {
    const { data } = await client.POST("/embeddings", { body: { text: "a rocket" } });
    return data?.dimensions === data?.embedding.length;
  },
  embed_inputs_upload: async () => {
    const { data } = await client.POST("/embeddings", { body: { image }, ...file });
    return data !== undefined && data.dimensions === data.embedding.length;
  },
  embed_inputs_batch: async () => {
    const { data } = await client.POST("/embeddings/batch", { body: { inputs: [{ image: IMAGE }, { text: "a rocket" }] } });
    return data?.results.length === 2;
  },
  classify_image: async () => {
    const { data } = await client.POST("/classify", { body: { image: IMAGE, labels: LABELS } });
    return data?.labels[0]?.label === "two cats";
  },
  classify_image_upload: async () => {
    const { data } = await client.POST("/classify", { body: { image, labels: ["two cats"] }, ...file });
    return data?.labels[0]?.label === "two cats";
  },
  classify_image_batch: async () => {
    const { data } = await client.POST("/classify/batch", { body: { inputs: [{ image: IMAGE }], labels: LABELS } });
    const [result] = data?.results ?? [];
    return result !== undefined && "labels" in result && result.labels[0]?.label === "two cats";
  },
  rank_candidates: async () => {
    const { data } = await client.POST("/rank", { body: { image: IMAGE, texts: TEXTS } });
    return data?.results[0]?.index === 0;
  },
  rank_candidates_upload: async () => {
    const { data } = await client.POST("/rank", { body: { image, texts: ["two cats"] }, ...file });
    return data?.results[0]?.index === 0;
  },
  rank_candidates_batch: async () => {
    const { data } = await client.POST("/rank/batch", { body: { inputs: [{ text: "two cats" }], images: [IMAGE] } });
    const [result] = data?.results ?? [];
    return result !== undefined && "results" in result && result.results[0]?.index === 0;
  },
  check_health: async () => (await client.GET("/health")).data?.status === "ready",
  check_liveness: async () => (await client.GET("/health/live")).response.ok,
  check_readiness: async () => (await client.GET("/health/ready")).data?.status === "ready",
  show_info: async () => ((await client.GET("/info")).data?.models.length ?? 0) > 0,
  show_metrics: async () => (await client.GET("/metrics", { parseAs: "text" })).data?.includes("blip_ready 1") === true,
  show_openapi_json: async () => (await client.GET("/openapi.json")).response.ok,
  show_strict_openapi_json: async () => (await client.GET("/openapi-strict.json")).response.ok,
  show_openapi_yaml: async () => (await client.GET("/openapi.yaml", { parseAs: "text" })).response.ok,
};

await makeAll("openapi-typescript", calls);
