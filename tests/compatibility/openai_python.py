"""Calls the routes of the OpenAI API with the package `openai`.

    python openai_python.py http://127.0.0.1:8080 PICTURE
"""

import openai

from checks import ANSWER, BASE64, CAPTION, DATA_URI, OTHER_DATA_URI, QUESTION, SERVER, cosine, equal, http, refused

# The client repeats requests that are answered with 429 or 5xx. Here such an answer is a failure.
client = openai.OpenAI(base_url=f"{SERVER}/v1", api_key="none", max_retries=0)


def messages(text=None, url=DATA_URI):
    parts = [{"type": "text", "text": text}] if text else []
    return [{"role": "user", "content": [*parts, {"type": "image_url", "image_url": {"url": url}}]}]


def chat(model="demo-caption", text=None, **options):
    return client.chat.completions.create(model=model, messages=messages(text), **options)


def embed(input, **options):
    return client.embeddings.create(model="demo-retrieval", input=input, **options)


# Models
names = {model.id for model in client.models.list()}
assert {"demo-caption", "demo-vqa", "demo-retrieval"} <= names, names
assert client.models.retrieve("demo-caption").owned_by
# Applications that also speak to Ollama put its tag behind the name.
assert client.models.retrieve("demo-caption:latest").id.startswith("demo-caption")
# The library writes the slash of a Hub id as %2F.
refused(openai.NotFoundError, lambda: client.models.retrieve("Salesforce/nope"), "Salesforce/nope", "demo-caption")

# Chat
completion = chat()
assert completion.object == "chat.completion", completion
assert completion.choices[0].message.role == "assistant"
assert completion.choices[0].message.content == CAPTION, completion
assert completion.choices[0].finish_reason == "stop"
usage = completion.usage
assert usage.completion_tokens > 0, usage
assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens, usage

assert chat("demo-vqa", QUESTION).choices[0].message.content == ANSWER
for model in ["blip-server", "caption", "demo-caption:latest"]:
    assert chat(model).choices[0].message.content == CAPTION, model

# The last image of a conversation counts, also if later messages have none.
conversation = [
    {"role": "system", "content": "You are a helpful assistant."},
    *messages(url=OTHER_DATA_URI),
    {"role": "assistant", "content": "a rocket"},
    *messages(),
    {"role": "assistant", "content": CAPTION},
    {"role": "user", "content": QUESTION},
]
completion = client.chat.completions.create(model="demo-vqa", messages=conversation)
assert completion.choices[0].message.content == ANSWER, completion

# Caption models follow no instructions. A header says so; it is absent where nothing was left out.
noted = client.chat.completions.with_raw_response.create(model="demo-caption", messages=messages("Write a poem."))
assert noted.headers["x-blip-note"], noted.headers
assert noted.parse().choices[0].message.content == CAPTION
silent = client.chat.completions.with_raw_response.create(model="demo-caption", messages=messages())
assert "x-blip-note" not in silent.headers
assert chat(extra_body={"prompt": "two cats"}).choices[0].message.content.startswith("two cats")

# Limits above those of the server are lowered, not refused.
assert chat(max_tokens=4096).choices[0].message.content == CAPTION
assert chat(max_completion_tokens=4096).choices[0].message.content == CAPTION
shortened = chat(max_tokens=2).choices[0]
assert shortened.finish_reason == "length", shortened
assert shortened.message.content and CAPTION.startswith(shortened.message.content), shortened

# A stop string is not part of the text.
stopped = chat(stop=["blue"]).choices[0]
assert stopped.message.content.strip() == "two cats on a", stopped
assert stopped.finish_reason == "stop", stopped
assert chat(stop="blue").choices[0].message.content.strip() == "two cats on a"

samples = chat(n=2, temperature=1.0, seed=7)
assert [choice.index for choice in samples.choices] == [0, 1], samples
assert all(choice.message.content for choice in samples.choices), samples
repeated = chat(n=2, temperature=1.0, seed=7)
assert [it.message.content for it in samples.choices] == [it.message.content for it in repeated.choices]
# Without a temperature both texts are the most probable one.
assert [choice.message.content for choice in chat(n=2).choices] == [CAPTION, CAPTION]

# Fields that mean nothing to BLIP are ignored.
tool = {"type": "function", "function": {"name": "search", "parameters": {"type": "object", "properties": {}}}}
ignored = {"presence_penalty": 0.5, "user": "me", "metadata": {"a": "b"}, "tools": [tool], "extra_body": {"x": 1}}
assert chat(**ignored).choices[0].message.content == CAPTION

# Streams
chunks = list(chat(stream=True))
assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == CAPTION, chunks
assert chunks[0].choices[0].delta.role == "assistant", chunks[0]
assert chunks[-1].choices[0].finish_reason == "stop", chunks[-1]
# Most programs read choices[0] of every chunk. So the chunk without choices comes only if it was asked for.
assert all(chunk.choices for chunk in chunks), chunks
assert len({chunk.id for chunk in chunks}) == 1, chunks

chunks = list(chat("demo-vqa", QUESTION, stream=True, stream_options={"include_usage": True}))
assert chunks[-1].choices == [], chunks[-1]
assert chunks[-1].usage.total_tokens > 0, chunks[-1]
assert all(chunk.usage is None for chunk in chunks[:-1]), chunks
assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == ANSWER, chunks

stopped = list(chat(stream=True, stop=["blue"]))
assert "".join(chunk.choices[0].delta.content or "" for chunk in stopped).strip() == "two cats on a", stopped

# The library also accepts a stream that ends without this line. Other clients wait for it.
body = {"model": "demo-caption", "messages": messages(), "stream": True}
status, media_type, text = http("POST", "/v1/chat/completions", body)
assert (status, media_type) == (200, "text/event-stream"), (status, media_type, text)
assert text.endswith("data: [DONE]\n\n"), text

# Embeddings. The library asks for base64 and decodes it, unless the caller chooses the encoding.
decoded = embed("two cats").data[0].embedding
floats = embed(["two cats"], encoding_format="float")
assert floats.object == "list" and floats.data[0].object == "embedding" and floats.data[0].index == 0, floats
assert equal(decoded, floats.data[0].embedding)
assert isinstance(embed("two cats", encoding_format="base64").data[0].embedding, str)
assert floats.usage.prompt_tokens > 0 and floats.usage.total_tokens == floats.usage.prompt_tokens, floats.usage

# More inputs than fit into one call of this server's own route
many = [f"a picture of {count} cats" for count in range(300)]
vectors = embed(many)
assert [item.index for item in vectors.data] == list(range(300))
assert equal(vectors.data[299].embedding, embed(many[299]).data[0].embedding)
refused(openai.BadRequestError, lambda: embed(["cat"] * 2049), "2048")

# Images beside texts
mixed = embed([{"image": DATA_URI}, "two cats on a blue background", {"image": BASE64}, "a red rocket"]).data
image, right, again, wrong = (item.embedding for item in mixed)
assert equal(image, again)
assert cosine(image, right) > cosine(image, wrong)

# Errors
not_found = refused(openai.NotFoundError, lambda: chat("nope"), "nope", "demo-caption", "demo-vqa")
assert not_found.code == "model_not_found", not_found.body
assert not_found.param == "model" and not_found.type and not_found.request_id, not_found.body
refused(openai.NotFoundError, lambda: list(chat("nope", stream=True)), "nope", "demo-caption")
refused(openai.NotFoundError, lambda: client.embeddings.create(model="nope", input="a"), "nope", "demo-retrieval")

no_image = [{"role": "user", "content": "Describe the picture."}]
without = {"model": "demo-caption", "messages": no_image}
refused(openai.BadRequestError, lambda: client.chat.completions.create(**without), "image_url")
refused(openai.BadRequestError, lambda: client.chat.completions.create(**without, stream=True), "image_url")
assert refused(openai.BadRequestError, lambda: chat(n=1000)).param == "n"
refused(openai.BadRequestError, lambda: embed([1, 2, 3]), "check_embedding_ctx_length")
refused(openai.BadRequestError, lambda: embed([[1, 2], [3]]), "check_embedding_ctx_length")

web = {"model": "demo-caption", "messages": messages(url="https://example.org/cat.png")}
refused(openai.BadRequestError, lambda: client.chat.completions.create(**web), "fetch.enabled")
refused(openai.BadRequestError, lambda: embed([{"image": "https://example.org/cat.png"}]), "fetch.enabled")
text = {"model": "demo-caption", "messages": messages(url="data:image/png;base64,aGVsbG8gd29ybGQ=")}
refused(openai.APIStatusError, lambda: client.chat.completions.create(**text), "jpeg, png")
refused(openai.NotFoundError, lambda: client.post("/nope", cast_to=object, body={}), "no endpoint")

print("openai (Python): models, chat, streams, embeddings and errors are right")
