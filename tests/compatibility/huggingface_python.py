"""Calls the routes of the Hugging Face task API with the package `huggingface_hub`.

    python huggingface_python.py http://127.0.0.1:8080 PICTURE
"""

import json
from pathlib import Path

import numpy
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

from checks import ANSWER, BASE64, CAPTION, DATA_URI, FILE, PICTURE, QUESTION, SERVER, equal, http, refused

LABELS = ["a red rocket", "two cats"]


def client(task, query=""):
    return InferenceClient(model=f"{SERVER}/hf/{task}{query}")


# The library sends bytes without a content type, and files with the one that their name suggests.
for image in [FILE, PICTURE, Path(PICTURE)]:
    assert client("image-to-text").image_to_text(image).generated_text == CAPTION
assert client("image-to-text", "?model=demo-caption").image_to_text(FILE).generated_text == CAPTION

# This method has no parameters. Other clients send them in JSON.
body = {"inputs": BASE64, "parameters": {"max_new_tokens": 2}}
status, media_type, text = http("POST", "/hf/image-to-text", body)
assert (status, media_type) == (200, "application/json"), text
shortened = json.loads(text)[0]["generated_text"]
assert shortened != CAPTION and CAPTION.startswith(shortened), shortened

for options in [{}, {"top_k": 1}]:
    answers = client("visual-question-answering").visual_question_answering(FILE, QUESTION, **options)
    assert answers[0].answer == ANSWER, answers
    assert 0 <= answers[0].score <= 1, answers
answers = client("visual-question-answering").visual_question_answering(PICTURE, "are there two cats?")
assert answers[0].answer == "yes", answers

for options in [{}, {"hypothesis_template": "a drawing of {}"}]:
    labels = client("zero-shot-image-classification").zero_shot_image_classification(FILE, LABELS, **options)
    assert [label.label for label in labels] == ["two cats", "a red rocket"], labels
    assert labels[0].score > labels[1].score and abs(sum(label.score for label in labels) - 1) < 1e-4, labels

# A text gives one vector, a list gives one vector for each text.
vectors = client("feature-extraction")
one = vectors.feature_extraction("two cats")
assert one.ndim == 1 and abs(numpy.linalg.norm(one) - 1) < 1e-4, one.shape
two = vectors.feature_extraction(["a red rocket", "two cats"], normalize=True, truncate=True)
assert two.shape == (2, *one.shape), two.shape
assert equal(one.tolist(), two[1].tolist())

# The same library speaks to the routes of the OpenAI API.
content = [{"type": "image_url", "image_url": {"url": DATA_URI}}]
chat = InferenceClient(base_url=f"{SERVER}/v1", api_key="none").chat.completions
message = {"role": "user", "content": content}
completion = chat.create(model="demo-caption", messages=[message])
assert completion.choices[0].message.content == CAPTION, completion
chunks = chat.create(model="demo-caption", messages=[message], stream=True)
assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == CAPTION

# The text of the server is part of the exception.
refused(HfHubHTTPError, lambda: client("image-to-text", "?model=nope").image_to_text(FILE), "nope", "demo-caption")
refused(HfHubHTTPError, lambda: client("image-to-text").image_to_text(b"hello world"), "jpeg, png")
refused(
    HfHubHTTPError,
    lambda: client("visual-question-answering", "?model=nope").visual_question_answering(FILE, QUESTION),
    "nope",
    "demo-vqa",
)
refused(
    HfHubHTTPError,
    lambda: client("zero-shot-image-classification").zero_shot_image_classification(b"hello world", LABELS),
    "jpeg, png",
)
unknown = client("feature-extraction", "?model=nope")
refused(HfHubHTTPError, lambda: unknown.feature_extraction("two cats"), "nope", "demo-retrieval")
refused(HfHubHTTPError, lambda: client("nope").feature_extraction("two cats"), "no endpoint")
refused(HfHubHTTPError, lambda: chat.create(model="nope", messages=[message]), "nope", "demo-caption")

print("huggingface_hub (Python): captions, answers, labels, vectors, chat and errors are right")
