"""Calls the routes of the Ollama API with the package `ollama`, and as applications without it do.

    python ollama_python.py http://127.0.0.1:8080 PICTURE
"""

import datetime
import json

import ollama

from checks import ANSWER, BASE64, CAPTION, DATA_URI, FILE, OTHER_FILE, PICTURE, QUESTION, SERVER
from checks import cosine, equal, http, refused

client = ollama.Client(SERVER)
NAMES = {"demo-caption:latest", "demo-vqa:latest", "demo-retrieval:latest"}


def question(text=QUESTION):
    return [{"role": "user", "content": text, "images": [FILE]}]


def assert_counts(answer):
    """Checks the numbers that the last object of an answer has. They are integers, also the times (nanoseconds)."""
    assert answer.done and answer.done_reason == "stop", answer
    assert answer.eval_count > 0 and answer.total_duration > 0, answer
    assert datetime.datetime.fromisoformat(answer.created_at).tzinfo, answer


# Is it running?
assert http("HEAD", "/")[:2] == (200, "text/plain")
status, _, text = http("GET", "/api/version")
assert status == 200 and json.loads(text)["version"], text

# Models. Applications offer exactly the names in this list, and send them back.
listed = client.list().models
assert {model.model for model in listed} >= NAMES, listed
for model in listed:
    # The command `ollama list` reads the first 12 characters, and aborts if there are fewer.
    assert len(model.digest) >= 12 and model.size > 0 and model.modified_at and model.details.family, model
running = client.ps().models
assert {model.name for model in running} >= NAMES, running
assert all(model.expires_at and len(model.digest) >= 12 for model in running), running
for name, capability in [("demo-caption", "vision"), ("demo-vqa:latest", "vision"), ("demo-retrieval", "embedding")]:
    shown = client.show(name)
    assert capability in shown.capabilities, (name, shown)
    assert shown.modelinfo["general.architecture"], shown
    assert shown.details.family, shown

# Generate
for image in [FILE, PICTURE]:
    answer = client.generate("demo-caption", "Describe the picture.", images=[image])
    assert answer.response == CAPTION and answer.model == "demo-caption", answer
    assert_counts(answer)
assert client.generate("demo-caption:latest", images=[FILE]).response == CAPTION
assert client.generate("demo-vqa", QUESTION, images=[FILE]).response == ANSWER

parts = list(client.generate("demo-caption", "Describe the picture.", images=[FILE], stream=True))
assert len(parts) > 2 and "".join(part.response for part in parts) == CAPTION, parts
assert not any(part.done for part in parts[:-1]), parts
assert_counts(parts[-1])

# Without prompt and image, Ollama loads or unloads the model.
assert client.generate("demo-caption", keep_alive=0).done
assert client.chat("demo-caption", messages=[]).done

# Chat
answer = client.chat("demo-vqa", messages=question())
assert answer.message.role == "assistant" and answer.message.content == ANSWER, answer
assert_counts(answer)
parts = list(client.chat("demo-caption", messages=question("Describe the picture."), stream=True))
assert "".join(part.message.content for part in parts) == CAPTION, parts
assert_counts(parts[-1])

# The last image counts.
assert client.generate("demo-caption", images=[OTHER_FILE, FILE]).response == CAPTION

# LLM Vision sends the image in a message before the question.
first = {"role": "user", "content": "Image 1:", "images": [OTHER_FILE]}
separate = [first, *question("Image 2:"), {"role": "user", "content": QUESTION}]
assert client.chat("demo-vqa", messages=separate).message.content == ANSWER

# Home Assistant
assistant = [{"role": "system", "content": "You are a voice assistant."}, *question()]
options = {"keep_alive": -1, "think": False, "options": {"num_ctx": 8192}, "stream": True}
parts = list(client.chat("demo-vqa:latest", messages=assistant, **options))
assert "".join(part.message.content for part in parts) == ANSWER, parts

# Options. Those that mean nothing to BLIP are ignored, and limits above those of the server are lowered.
ignored = {"num_ctx": 4096, "num_gpu": 1, "mirostat": 2, "repeat_penalty": 1.05, "nope": 1, "num_predict": 4096}
answer = client.generate("demo-caption", images=[FILE], options={**ignored, "temperature": 0}, keep_alive="5m")
assert answer.response == CAPTION, answer
shortened = client.generate("demo-caption", images=[FILE], options={"num_predict": 2})
assert shortened.done_reason == "length" and CAPTION.startswith(shortened.response), shortened
stopped = client.generate("demo-caption", images=[FILE], options={"stop": ["blue"]})
assert stopped.response.strip() == "two cats on a" and stopped.done_reason == "stop", stopped
sampled = {"temperature": 1.0, "seed": 7, "top_k": 40, "top_p": 0.9}
texts = {client.generate("demo-caption", images=[FILE], options=sampled).response for _ in range(2)}
assert len(texts) == 1, texts

# Embeddings
vectors = client.embed("demo-retrieval", ["two cats", "a red rocket"], truncate=True, keep_alive="5m")
assert len(vectors.embeddings) == 2 and vectors.prompt_eval_count > 0 and vectors.total_duration > 0, vectors
single = client.embed("demo-retrieval", "two cats").embeddings
assert len(single) == 1 and equal(single[0], vectors.embeddings[0])
assert abs(sum(value * value for value in single[0]) - 1) < 1e-4
old = client.embeddings("demo-retrieval", "two cats").embedding
assert cosine(old, single[0]) > 0.9999

# `curl -d` sends the content type of forms, as in all examples of Ollama's documentation. An answer is a stream unless
# the request says otherwise.
FORM = "application/x-www-form-urlencoded"
body = {"model": "demo-caption", "images": [BASE64]}
status, media_type, text = http("POST", "/api/generate", body, FORM)
assert (status, media_type) == (200, "application/x-ndjson"), (status, media_type, text)
lines = [json.loads(line) for line in text.splitlines()]
assert "".join(line["response"] for line in lines) == CAPTION and lines[-1]["done"], lines

# PhotoPrism. Its images have no prefix; other applications send data URIs.
for image in [BASE64, DATA_URI]:
    request = {
        "id": "6f3c1f3e-8d53-4e4f-9b0c-0d7f4f3a0001",
        "model": "demo-caption:latest",
        "prompt": "Create a caption with exactly one sentence in the active voice that describes the main visual content.",
        "suffix": "",
        "options": {"temperature": 0.1, "seed": 7},
        "stream": False,
        "images": [image],
    }
    status, media_type, text = http("POST", "/api/generate", request)
    assert (status, media_type) == (200, "application/json"), (status, media_type, text)
    answer = json.loads(text)
    assert answer["response"] and answer["done"] and datetime.datetime.fromisoformat(answer["created_at"]), answer
    numbers = [value for key, value in answer.items() if key.endswith(("_duration", "_count"))]
    assert numbers and all(isinstance(number, int) for number in numbers), answer

# Errors
error = refused(ollama.ResponseError, lambda: client.generate("nope", images=[FILE]), "nope", "demo-caption")
assert error.status_code == 404, error
streamed = client.generate("nope", images=[FILE], stream=True)
assert refused(ollama.ResponseError, lambda: list(streamed), "nope", "demo-caption").status_code == 404
refused(ollama.ResponseError, lambda: client.chat("nope", messages=question()), "nope", "demo-vqa")
refused(ollama.ResponseError, lambda: client.embed("nope", "two cats"), "nope", "demo-retrieval")
refused(ollama.ResponseError, lambda: client.show("nope"), "nope", "demo-caption")
refused(ollama.ResponseError, lambda: client.generate("demo-caption", "Describe the picture."), "images")
text_only = [{"role": "user", "content": QUESTION}]
refused(ollama.ResponseError, lambda: client.chat("demo-vqa", messages=text_only), "images")
refused(ollama.ResponseError, lambda: list(client.chat("demo-vqa", messages=text_only, stream=True)), "images")
refused(ollama.ResponseError, lambda: client.generate("demo-caption", images=[b"hello world"]), "jpeg, png")
# Home Assistant pulls a model that it does not find. The error has Ollama's format, so no JSON is left in its text.
assert not str(refused(ollama.ResponseError, lambda: client.pull("gemma3"))).startswith("{")

print("ollama (Python): models, generate, chat, streams, embeddings and errors are right")
