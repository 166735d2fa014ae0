"""Calls every operation with the package that openapi-generator wrote for Python; pictures go as base64 in JSON.

    python openapi_generator_python.py http://127.0.0.1:8080 PICTURE OPENAPI.json

The package `openapi_client` is on PYTHONPATH.
"""

import base64
import json
import sys

from openapi_client import ApiClient, Configuration, InferenceApi, OperationsApi, models

server, picture, document = sys.argv[1:]
client = ApiClient(Configuration(host=server, access_token="none"))
inference, operations = InferenceApi(client), OperationsApi(client)
image = base64.b64encode(open(picture, "rb").read()).decode()
QUESTION = "how many cats are there?"
called = set()


def call(api, operation, *request):
    called.add(operation)
    return getattr(api, operation)(*request)


caption = call(inference, "caption_image", models.CaptionRequest(image=image))
assert caption.captions[0].text.startswith("two cats"), caption
captions = call(inference, "caption_image_batch", models.CaptionBatchRequest(inputs=[models.CaptionInput(image=image)]))
assert captions.results[0].actual_instance.captions[0].text.startswith("two cats"), captions
answer = call(inference, "answer_question", models.VqaRequest(image=image, question=QUESTION))
assert answer.answers[0].answer == "2", answer
answers = call(
    inference, "answer_question_batch", models.VqaBatchRequest(inputs=[models.VqaInput(image=image)], question=QUESTION)
)
assert answers.results[0].actual_instance.answers[0].answer == "2", answers
scores = call(inference, "score_similarity", models.SimilarityRequest(image=image, text="two cats"))
assert scores.scores[0][0].match > 0.5, scores
batch = models.SimilarityBatchRequest(inputs=[models.SimilarityInput(image=image, texts=["two cats", "a dog"])])
assert len(call(inference, "score_similarity_batch", batch).results[0].actual_instance.scores[0]) == 2
vector = call(inference, "embed_inputs", models.EmbeddingsRequest(image=image))
assert vector.dimensions, vector
batch = models.EmbeddingsBatchRequest(inputs=[models.EmbeddingsInput(text="a rocket")])
assert len(call(inference, "embed_inputs_batch", batch).results) == 1
labels = call(inference, "classify_image", models.ClassifyRequest(image=image, labels=["a rocket", "two cats"]))
assert labels.labels[0].label == "two cats", labels
batch = models.ClassifyBatchRequest(inputs=[models.ClassifyInput(image=image)], labels=["a rocket", "two cats"])
labels = call(inference, "classify_image_batch", batch)
assert labels.results[0].actual_instance.labels[0].label == "two cats", labels
ranking = call(inference, "rank_candidates", models.RankRequest(image=image, texts=["a rocket", "two cats"]))
assert ranking.results[0].index == 1, ranking
batch = models.RankBatchRequest(inputs=[models.RankInput(text="two cats")], images=[image])
ranking = call(inference, "rank_candidates_batch", batch)
assert ranking.results[0].actual_instance.results[0].index == 0, ranking

assert call(operations, "check_health").status == "ready"
assert call(operations, "show_info").version
for operation in (
    "check_liveness",
    "check_readiness",
    "show_metrics",
    "show_openapi_json",
    "show_strict_openapi_json",
):
    assert call(operations, operation)
# The generated package reads no YAML, but hands its bytes over.
called.add("show_openapi_yaml")
assert operations.show_openapi_yaml_without_preload_content().status == 200

paths = json.load(open(document))["paths"].values()
# tests/compatibility calls the operations of other APIs with the libraries that they are for.
known = {
    operation["operationId"]
    for path in paths
    for operation in path.values()
    if operation["tags"][0] in ("inference", "operations")
}
assert called == known, called ^ known
print(f"openapi-generator, Python: {len(called)} operations answered 200")
