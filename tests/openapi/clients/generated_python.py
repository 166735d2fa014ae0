"""Calls every operation with the package that openapi-python-client wrote; the twelve that take pictures upload a file.

    python generated_python.py http://127.0.0.1:8080 PICTURE OPENAPI.json

The package `blip_server_client` is on PYTHONPATH.
"""

import importlib
import json
import sys
from pathlib import Path

from blip_server_client import AuthenticatedClient, models
from blip_server_client.types import File

server, picture, document = sys.argv[1:]
client = AuthenticatedClient(base_url=server, token="none", timeout=60)


def call(group, operation, body=None):
    module = importlib.import_module(f"blip_server_client.api.{group}.{operation}")
    answer = module.sync_detailed(client=client, **({"body": body} if body else {}))
    assert answer.status_code == 200, (operation, answer.status_code, answer.content[:500])
    return answer


def upload():
    return File(payload=open(picture, "rb"), file_name=Path(picture).name, mime_type="image/png")


def form(operation, **fields):
    name = "".join(part.capitalize() for part in operation.split("_"))
    return operation, getattr(models, f"{name}FilesBody")(**fields)


QUESTION = "how many cats are there?"
LABELS = ["two cats", "a rocket"]
TEXTS = ["a rocket", "two cats"]
FORMS = dict(
    [
        form("caption_image", image=upload()),
        form("caption_image_batch", image=[upload(), upload()]),
        form("answer_question", image=upload(), question=QUESTION),
        form("answer_question_batch", image=[upload(), upload()], question=QUESTION),
        form("score_similarity", image=upload(), text="two cats"),
        form("score_similarity_batch", image=[upload(), upload()], texts=["two cats", "a dog"]),
        form("embed_inputs", image=upload()),
        form("embed_inputs_batch", image=[upload(), upload()]),
        form("classify_image", image=upload(), labels=LABELS),
        form("classify_image_batch", image=[upload(), upload()], labels=LABELS),
        form("rank_candidates", image=upload(), texts=TEXTS),
        form("rank_candidates_batch", image=[upload(), upload()], texts=TEXTS),
    ]
)
answers = {operation: call("inference", operation, body).parsed for operation, body in FORMS.items()}
assert answers["caption_image"].captions[0].text.startswith("two cats"), answers["caption_image"]
assert answers["caption_image_batch"].results[1].captions[0].text.startswith("two cats")
assert answers["answer_question"].answers[0].answer == "2", answers["answer_question"]
assert answers["answer_question_batch"].results[0].answers[0].answer == "2"
assert answers["score_similarity"].scores[0][0].match > 0.5, answers["score_similarity"]
assert len(answers["score_similarity_batch"].results[1].scores[0]) == 2
assert len(answers["embed_inputs"].embedding) == answers["embed_inputs"].dimensions
assert len(answers["embed_inputs_batch"].results) == 2
assert answers["classify_image"].labels[0].label == "two cats", answers["classify_image"]
assert answers["classify_image_batch"].results[1].labels[0].label == "two cats"
assert answers["rank_candidates"].results[0].index == 1, answers["rank_candidates"]
assert answers["rank_candidates_batch"].results[1].results[0].index == 1

IN_JSON = models.EmbeddingsRequest(text="a rocket")
assert call("inference", "embed_inputs", IN_JSON).parsed.dimensions

# tests/compatibility calls the operations of other APIs with the libraries that they are for.
operations = {
    operation["operationId"]: operation["tags"][0]
    for path in json.load(open(document))["paths"].values()
    for operation in path.values()
    if operation["tags"][0] in ("inference", "operations")
}
others = {operation: tag for operation, tag in operations.items() if operation not in FORMS}
for operation, tag in others.items():
    assert call(tag, operation).content
print(f"openapi-python-client: {len(operations)} operations answered 200, 12 of them an upload")
