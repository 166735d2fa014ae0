// Every operation by the classes that openapi-generator wrote (typescript-fetch); pictures go as base64 in JSON.
import { type Calls, IMAGE, LABELS, makeAll, QUESTION, SERVER, TEXTS } from "./calls.js";
import { Configuration, InferenceApi, OperationsApi } from "./openapi_generator/index.js";

const configuration = new Configuration({ basePath: SERVER, accessToken: "none" });
const inference = new InferenceApi(configuration);
const operations = new OperationsApi(configuration);

const calls: Calls = {
  caption_image: async () => {
    const answer = await inference.captionImage({ captionRequest: { image: IMAGE } });
    return answer.captions[0]?.text.startsWith("two cats") === true;
  },
  caption_image_batch: async () => {
    const answer = await inference.captionImageBatch({ captionBatchRequest: { inputs: [{ image: IMAGE }] } });
    const [result] = answer.results;
    return result !== undefined && "captions" in result && result.captions[0]?.text.startsWith("two cats") === true;
  },
  answer_question: async () => {
    const answer = await inference.answerQuestion({ vqaRequest: { image: IMAGE, question: QUESTION } });
    return answer.answers[0]?.answer === "2";
  },
  answer_question_batch: async () => {
    const vqaBatchRequest = { inputs: [{ image: IMAGE }], question: QUESTION };
    const [result] = (await inference.answerQuestionBatch({ vqaBatchRequest })).results;
    return result !== undefined && "answers" in result && result.answers[0]?.answer === "2";
  },
  score_similarity: async () => {
    const answer = await inference.scoreSimilarity({ similarityRequest: { image: IMAGE, texts: TEXTS } });
    return (answer.scores[0]?.[0]?.match ?? 0) > 0.5;
  },
  score_similarity_batch: async () => {
    const similarityBatchRequest = { inputs: [{ image: IMAGE, texts: TEXTS }] };
    const [result] = (await inference.scoreSimilarityBatch({ similarityBatchRequest })).results;
    return result !== undefined && "scores" in result && result.scores[0]?.length === 2;
  },
  embed_inputs: async () => {
    const answer = await inference.embedInputs({ embeddingsRequest: { image: IMAGE } });
    return answer.dimensions > 0 && answer.embedding !== undefined;
  },
  embed_inputs_batch: async () => {
    const embeddingsBatchRequest = { inputs: [{ image: IMAGE }, { text: "a rocket" }] };
    return (await inference.embedInputsBatch({ embeddingsBatchRequest })).results.length === 2;
  },
  classify_image: async () => {
    const answer = await inference.classifyImage({ classifyRequest: { image: IMAGE, labels: LABELS } });
    return answer.labels[0]?.label === "two cats";
  },
  classify_image_batch: async () => {
    const body = { inputs: [{ image: IMAGE }], labels: LABELS };
    const [result] = (await inference.classifyImageBatch({ classifyBatchRequest: body })).results;
    return result !== undefined && "labels" in result && result.labels[0]?.label === "two cats";
  },
  rank_candidates: async () => {
    const answer = await inference.rankCandidates({ rankRequest: { image: IMAGE, texts: TEXTS } });
    return answer.results[0]?.index === 0;
  },
  rank_candidates_batch: async () => {
    const body = { inputs: [{ text: "two cats" }], images: [IMAGE] };
    const [result] = (await inference.rankCandidatesBatch({ rankBatchRequest: body })).results;
    return result !== undefined && "results" in result && result.results[0]?.index === 0;
  },
  check_health: async () => (await operations.checkHealth()).status === "ready",
  check_liveness: async () => (await operations.checkLiveness()).status === "ready",
  check_readiness: async () => (await operations.checkReadiness()).status === "ready",
  show_info: async () => (await operations.showInfo()).models.length > 0,
  show_metrics: async () => (await operations.showMetrics()).includes("blip_ready 1"),
  show_openapi_json: async () => "paths" in (await operations.showOpenapiJson()),
  show_strict_openapi_json: async () => "paths" in (await operations.showStrictOpenapiJson()),
  show_openapi_yaml: async () => (await operations.showOpenapiYamlRaw()).raw.ok,
};

await makeAll("openapi-generator, TypeScript", calls);
