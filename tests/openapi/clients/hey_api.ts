// Every operation by the functions that @hey-api/openapi-ts wrote; pictures go as base64 in JSON.
import { type Calls, IMAGE, LABELS, makeAll, QUESTION, SERVER, TEXTS } from "./calls.js";
import { client } from "./hey_api/client.gen.js";
import * as api from "./hey_api/sdk.gen.js";

client.setConfig({ baseUrl: SERVER, auth: "none", throwOnError: true });

const calls: Calls = {
  caption_image: async () => {
    const { data } = await api.captionImage({ body: { image: IMAGE }, throwOnError: true });
    return data.captions[0]?.text.startsWith("two cats") === true;
  },
  caption_image_batch: async () => {
    const { data } = await api.captionImageBatch({ body: { inputs: [{ image: IMAGE }] }, throwOnError: true });
    const [result] = data.results;
    return result !== undefined && "captions" in result && result.captions[0]?.text.startsWith("two cats") === true;
  },
  answer_question: async () => {
    const { data } = await api.answerQuestion({ body: { image: IMAGE, question: QUESTION }, throwOnError: true });
    return data.answers[0]?.answer === "2";
  },
  answer_question_batch: async () => {
    const body = { inputs: [{ image: IMAGE }], question: QUESTION };
    const { data } = await api.answerQuestionBatch({ body, throwOnError: true });
    const [result] = data.results;
    return result !== undefined && "answers" in result && result.answers[0]?.answer === "2";
  },
  score_similarity: async () => {
    const { data } = await api.scoreSimilarity({ body: { image: IMAGE, texts: TEXTS }, throwOnError: true });
    return (data.scores[0]?.[0]?.match ?? 0) > 0.5;
  },
  score_similarity_batch: async () => {
    const body = { inputs: [{ image: IMAGE, texts: TEXTS }] };
    const { data } = await api.scoreSimilarityBatch({ body, throwOnError: true });
    const [result] = data.results;
    return result !== undefined && "scores" in result && result.scores[0]?.length === 2;
  },
  embed_inputs: async () => {
    const { data } = await api.embedInputs({ body: { image: IMAGE }, throwOnError: true });
    return data.dimensions === data.embedding.length;
  },
  embed_inputs_batch: async () => {
    const body = { inputs: [{ image: IMAGE }, { text: "a rocket" }] };
    return (await api.embedInputsBatch({ body, throwOnError: true })).data.results.length === 2;
  },
  classify_image: async () => {
    const answer = (await api.classifyImage({ body: { image: IMAGE, labels: LABELS }, throwOnError: true })).data;
    return answer.labels[0]?.label === "two cats";
  },
  classify_image_batch: async () => {
    const body = { inputs: [{ image: IMAGE }], labels: LABELS };
    const [result] = ((await api.classifyImageBatch({ body: body, throwOnError: true })).data).results;
    return result !== undefined && "labels" in result && result.labels[0]?.label === "two cats";
  },
  rank_candidates: async () => {
    const answer = (await api.rankCandidates({ body: { image: IMAGE, texts: TEXTS }, throwOnError: true })).data;
    return answer.results[0]?.index === 0;
  },
  rank_candidates_batch: async () => {
    const body = { inputs: [{ text: "two cats" }], images: [IMAGE] };
    const [result] = ((await api.rankCandidatesBatch({ body: body, throwOnError: true })).data).results;
    return result !== undefined && "results" in result && result.results[0]?.index === 0;
  },
  check_health: async () => (await api.checkHealth({ throwOnError: true })).data.status === "ready",
  check_liveness: async () => (await api.checkLiveness({ throwOnError: true })).response.ok,
  check_readiness: async () => (await api.checkReadiness({ throwOnError: true })).data.status === "ready",
  show_info: async () => (await api.showInfo({ throwOnError: true })).data.models.length > 0,
  show_metrics: async () => (await api.showMetrics({ throwOnError: true })).data.includes("blip_ready 1"),
  show_openapi_json: async () => (await api.showOpenapiJson({ throwOnError: true })).response.ok,
  show_strict_openapi_json: async () => (await api.showStrictOpenapiJson({ throwOnError: true })).response.ok,
  show_openapi_yaml: async () => (await api.showOpenapiYaml({ throwOnError: true })).response.ok,
};

await makeAll("@hey-api/openapi-ts", calls);
