"""The routes of other APIs: OpenAI below /v1/, Ollama below /api/, Hugging Face below /hf/.

Their schemas say little about the content of a conversation or an input. So `fill` puts conversations and inputs in the
place of what was generated, and `is_refused` decides which bodies get 400, from docs/compatibility.md and not from the
answers. `code_of` checks the form of their errors.
"""

import re

from images import image_value, is_image_value

OPENAI, OLLAMA, HUGGING_FACE = "/v1/", "/api/", "/hf/"
# Facts about the demo models: the dimensions of a vector, and the names of the model that answers questions.
DIMENSIONS = 128
VQA_NAMES = {"demo-vqa", "vqa", "visual-question-answering"}
MODELS = ["blip-server", "", "caption", "demo-caption:latest", "vqa", "demo-vqa", "vqa:latest", "retrieval", "none/such"]
CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def api_of(path):
    """The prefix of the other API to which a path belongs, or None for this server's own routes."""
    return next((prefix for prefix in (OPENAI, OLLAMA, HUGGING_FACE) if path.startswith(prefix)), None)


# Errors


def code_of(api, response, codes):
    """Checks the form of an error. Returns its code, or None where the API has no codes, and its message."""
    assert response.headers.get("content-type") == ["application/json"], "the errors of these APIs are JSON"
    body, status = response.json(), response.status_code
    assert set(body) == {"error"}, f"an error has one field, not {sorted(body)}"
    if api != OPENAI:
        assert isinstance(body["error"], str), "the error is a text"
        # The Hugging Face API has no 503: what is overloaded or not ready there is a 429.
        allowed = codes if api == OLLAMA else codes.keys() - {503}
        assert status in allowed, f"{status} is no status of this API"
        return None, body["error"]
    error = body["error"]
    assert set(error) == {"message", "type", "param", "code"}, f"the error has the fields {sorted(error)}"
    kinds = {429: "requests", 503: "server_error", 504: "server_error"}
    assert error["type"] == kinds.get(status, "invalid_request_error"), error["type"]
    assert error["param"] is None or isinstance(error["param"], str), "param is a field or null"
    # 422 is a 400 in this API, and two codes have its names.
    own = {401: {"invalid_api_key"}, 429: {"rate_limit_exceeded"}, 400: codes[400] | codes[422], 422: set()}
    assert error["code"] in own.get(status, codes.get(status, set())), f"{error['code']} is no code of {status}"
    return error["code"], error["message"]


# Bodies


def one_of(*values):
    return lambda rng: rng.choice(values)


def text(rng):
    good = ["two cats", "how many cats?", "naïve café 😀", "tab\tand\nline", "{}"]
    return rng.choice(good) if rng.random() < 0.9 else rng.choice(["a" * 3000, " ", "", "bell\x07", "x" * 20_000])


def image(rng):
    wrong = ["", "no base64!", "data:image/png;base64,", "sha256:" + "0" * 64, "https://127.0.0.1/cat.png", "AAAA"]
    return image_value(rng) if rng.random() < 0.85 else rng.choice(wrong)


def several(draw, least=0, most=3):
    return lambda rng: [draw(rng) for _ in range(rng.randint(least, most))]


def image_part(rng):
    value = image(rng)
    return {"type": "image_url", "image_url": value if rng.random() < 0.2 else {"url": value, "detail": "low"}}


def part(rng):
    """A part of the content of a message."""
    kind = rng.random()
    if kind < 0.45:
        return {"type": "text", "text": text(rng)}
    if kind < 0.95:
        return image_part(rng)
    return rng.choice([
        {"type": "input_audio", "input_audio": {}}, {"type": "file"}, {"type": "video_url"}, {"type": "thought"}, {},
        {"type": "image_url"}, {"type": "image_url", "image_url": {}}, {"text": 5}, "two cats", None,
    ])


def message(rng):
    role = rng.choice(["user", "user", "user", "system", "assistant", None])
    parts = [*several(part, 0, 2)(rng), image_part(rng)]
    return {"role": role, "content": parts if rng.random() < 0.7 else rng.choice([text(rng), several(part)(rng), None])}


def ollama_message(rng):
    drawn = {"role": rng.choice(["user", "user", "system"]), "content": text(rng), "images": several(image, 1, 2)(rng)}
    return {name: value for name, value in drawn.items() if rng.random() < 0.9}


def conversation_of(draw):
    return lambda rng: several(draw, 1)(rng) if rng.random() < 0.95 else []


def stop(rng):
    good = [None, "cats", "", ["cats", "on"], [], ["a", *[""] * 16]]
    return rng.choice(good) if rng.random() < 0.8 else rng.choice([["a"] * 17, "bell\x07", ["a", 5], 5])


def options(rng):
    drawn = {
        "temperature": rng.choice([0, 0.7, 1e9, -1, None]), "top_p": rng.choice([0.9, 0, 2, None]),
        "top_k": rng.choice([40, 0, -1, 10**9]), "seed": rng.choice([7, -7, None]),
        "num_predict": rng.choice([3, 0, -1, 10**9]), "stop": stop(rng), "num_ctx": 4096,
    }
    return {name: value for name, value in drawn.items() if rng.random() < 0.5}


def embedding_input(rng):
    good = [text(rng), text(rng), image_value(rng), {"image": image(rng)}, {"text": text(rng), "extra": 1}]
    return rng.choice(good) if rng.random() < 0.9 else rng.choice([{}, [1, 2], 5, None, {"text": None}])


def embedding_inputs(rng):
    return several(embedding_input, 0, 4)(rng) if rng.random() < 0.6 else embedding_input(rng)


def image_inputs(rng):
    if rng.random() < 0.5:
        return image(rng)
    drawn = {"image": image(rng), "question": text(rng)}
    return {name: value for name, value in drawn.items() if rng.random() < 0.8}


def labels(rng):
    drawn = {
        "candidate_labels": rng.choice([["a cat", "a dog"], ["a cat"], ["cats", "dogs", "a"], several(text, 0)(rng)]),
        "hypothesis_template": rng.choice(["a photo of {}", "{}", "no place", "{} and {}", None]),
    }
    return {name: value for name, value in drawn.items() if name == "candidate_labels" or rng.random() < 0.3}


# The fields in which a request has its meaning; they replace what was generated.
MEANING = {
    "/v1/chat/completions": {"messages": conversation_of(message)},
    "/v1/embeddings": {"input": embedding_inputs},
    "/api/generate": {"images": several(image, 1, 2), "prompt": text},
    "/api/chat": {"messages": conversation_of(ollama_message)},
    "/api/embed": {"input": embedding_inputs},
    "/api/embeddings": {"prompt": text},
    "/hf/image-to-text": {"inputs": image_inputs},
    "/hf/visual-question-answering": {"inputs": image_inputs},
    "/hf/zero-shot-image-classification": {"inputs": image_inputs, "parameters": labels},
    "/hf/feature-extraction": {"inputs": embedding_inputs},
}
# All other fields with a meaning, and the values that replace or add some of them.
OPTIONAL = {
    "model": one_of(*MODELS), "stop": stop, "n": one_of(1, 2, 2, 8, 9, 0), "options": options, "question": text,
    "image": image, "prompt": text, "stream": one_of(True, True, False, None), "logprobs": one_of(True, False),
    "response_format": one_of({"type": "text"}, {"type": "text"}, {"type": "json_object"}, "text", None),
    "tool_choice": one_of("auto", "none", "auto", "none", "required", {"type": "function"}),
    "stream_options": one_of({"include_usage": True}, {}, None), "raw": one_of(True, False, None),
    "tools": one_of([], [], [{}]), "format": one_of("", "", None, "json", {}), "keep_alive": one_of(0, "5m", "0s", -1),
    "modality": one_of("text", "text", "image", "audio"), "dimensions": one_of(DIMENSIONS, DIMENSIONS, 5),
}


def fill(path, body, fields, rng):
    """The body with meaningful values in the place of most generated ones. `fields` are all fields of the route."""
    filled = {name: value for name, value in body.items() if name not in OPTIONAL or rng.random() < 0.1}
    for name in fields:
        if name in OPTIONAL and name not in filled and rng.random() < 0.25:
            filled[name] = OPTIONAL[name](rng)
    for name, draw in MEANING.get(path, {}).items():
        if rng.random() < 0.9:
            filled[name] = draw(rng)
    return filled


# Refusals


class Refused(Exception):
    """The body must get 400."""


def need(condition):
    if not condition:
        raise Refused


def optional(value, *kinds):
    need(value is None or (isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))))


def integer(value):
    """A number without a fraction, as JSON Schema defines integers (4.0 is one), that fits into 64 bits."""
    optional(value, int, float)
    need(value is None or (value == int(value) and -(2**63) <= value < 2**63))


def valid_text(value):
    need(isinstance(value, str) and value and not CONTROLS.search(value))


def valid_image(value):
    need(isinstance(value, str) and is_image_value(value))


def stops_of(value):
    need(value is None or isinstance(value, (str, list)))
    strings = value if isinstance(value, list) else [value or ""]
    need(all(isinstance(it, str) for it in strings))
    strings = [it for it in strings if it]
    need(len(strings) <= 16)
    for it in strings:
        valid_text(it)
    return strings


def sampling(fields, integers):
    for name in integers:
        integer(fields.get(name))
    for name in ("temperature", "top_p"):
        optional(fields.get(name), int, float)
    return stops_of(fields.get("stop"))


def query(model, image, asked, prompt, stops):
    """What a model for text needs: an image, and a question if it is a VQA model."""
    need(image is not None)
    valid_image(image)
    if prompt:
        valid_text(prompt)
        need(not any(it in prompt for it in stops))
    if (model or "").removesuffix(":latest") in VQA_NAMES:
        need(asked and asked.strip())
        valid_text(asked)


def last_image(images):
    optional(images, list)
    need(all(isinstance(it, str) for it in images or []))
    return images[-1] if images else None


def parts_of(content):
    """The texts, the last image and the types of a message's content."""
    optional(content, str, list)
    if not isinstance(content, list):
        return content or "", None, set()
    texts, image, types = [], None, set()
    for it in content:
        need(isinstance(it, dict))
        optional(it.get("type"), str)
        optional(it.get("text"), str)
        url = it.get("image_url")
        if isinstance(url, dict):
            need(isinstance(url.get("url"), str))
            url = url["url"]
        optional(url, str)
        image = image if url is None else url
        texts += [it["text"]] if it.get("text") is not None else []
        types.add(it.get("type"))
    return "\n".join(texts), image, types


def conversation(messages, read):
    """The last image, the user's last text and the types of all parts; `read` takes these from one message."""
    need(isinstance(messages, list) and all(isinstance(it, dict) for it in messages))
    image, asked, types = None, None, set()
    for it in messages:
        optional(it.get("role"), str)
        words, found, kinds = read(it)
        image = image if found is None else found
        types |= kinds
        if it.get("role") in (None, "user") and words:
            asked = words
    return image, asked, types


def chat_completion(body):
    wanted, choice = body.get("response_format"), body.get("tool_choice")
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    need(not isinstance(kind, str) or kind == "text")
    need(choice != "required" and not isinstance(choice, dict))
    for name in ("stream", "logprobs"):
        optional(body.get(name), bool)
    optional(body.get("stream_options"), dict)
    optional((body.get("stream_options") or {}).get("include_usage"), bool)
    optional(body.get("prompt"), str)
    stops = sampling(body, ("max_tokens", "max_completion_tokens", "seed", "n"))
    need(1 <= (1 if body.get("n") is None else body["n"]) <= 8)
    image, asked, types = conversation(body["messages"], lambda it: parts_of(it.get("content")))
    need(not types & {"input_audio", "file", "video_url"})
    query(body.get("model"), image, asked, body.get("prompt"), stops)


def ollama_options(body):
    given = body.get("options")
    optional(given, dict)
    return sampling(given or {}, ("num_predict", "top_k", "seed"))


def generate(body):
    stops, asked, image = ollama_options(body), body.get("prompt"), last_image(body.get("images"))
    if not asked and image is None:
        # A request to load the model.
        return
    need(body.get("format") in (None, ""))
    query(body.get("model"), image, asked, asked if body.get("raw") is True else None, stops)


def ollama_chat(body):
    def read(it):
        optional(it.get("content"), str)
        return it.get("content"), last_image(it.get("images")), set()

    stops, (image, asked, _) = ollama_options(body), conversation(body.get("messages") or [], read)
    if not body.get("messages"):
        return
    need(body.get("format") in (None, "") and not body.get("tools"))
    query(body.get("model"), image, asked, None, stops)


def vectors(value, dimensions, as_images=False, may_be_empty=False):
    """The inputs of a route for embeddings, and the dimensions that are asked for."""
    integer(dimensions)
    items = value if isinstance(value, list) else [] if value in (None, "") else [value]
    need(may_be_empty or items)
    for it in items:
        need(isinstance(it, (str, dict)))
        pairs = list(it.items()) if isinstance(it, dict) else [("text", it)]
        pairs = [(name, given) for name, given in pairs if name in ("image", "image_url", "text")]
        need(pairs)
        for name, given in pairs:
            is_uri = isinstance(it, str) and it.lower().startswith("data:image/")
            if name == "text" and not is_uri:
                valid_text(given)
            if name != "text" or is_uri or (as_images and isinstance(given, str)):
                valid_image(given)
    need(not items or dimensions in (None, DIMENSIONS))


def openai_embeddings(body):
    need(body.get("modality") in (None, "text", "image"))
    vectors(body["input"], body.get("dimensions"), as_images=body.get("modality") == "image")


def image_and_question(value):
    """`inputs` of a task about an image: an image value, or an object."""
    optional(value, str, dict)
    given = {"image": value} if isinstance(value, str) else value or {}
    optional(given.get("image"), str)
    if given.get("question") is not None:
        valid_text(given["question"])
    return given.get("image"), given.get("question")


def image_to_text(body):
    image, _ = image_and_question(body.get("inputs"))
    valid_image(image)
    parameters = body.get("parameters") or {}
    given = parameters.get("generation_parameters") or {}
    integer(parameters.get("max_new_tokens"))
    for name in ("max_new_tokens", "min_new_tokens", "num_beams", "top_k", "no_repeat_ngram_size"):
        integer(given.get(name))
    need(given.get("repetition_penalty") is None or given["repetition_penalty"] > 0)
    is_cold = given.get("temperature") is not None and given["temperature"] <= 0
    need(not (given.get("do_sample") is True and not is_cold and (given.get("num_beams") or 1) > 1))


def visual_question_answering(body):
    image, question = image_and_question(body.get("inputs"))
    for given in (question, body.get("question")):
        if given is not None:
            valid_text(given)
    need(question or body.get("question"))
    valid_image(body.get("image") if image is None else image)


def zero_shot(body):
    image, _ = image_and_question(body.get("inputs"))
    valid_image(image)
    names, template = body["parameters"].get("candidate_labels"), body["parameters"].get("hypothesis_template")
    need(names and len(set(names)) == len(names))
    for name in names:
        valid_text(name)
    if template is not None:
        valid_text(template)
        need(template.count("{}") == 1)


RULES = {
    "/v1/chat/completions": chat_completion,
    "/v1/embeddings": openai_embeddings,
    "/api/generate": generate,
    "/api/chat": ollama_chat,
    "/api/embed": lambda body: vectors(body.get("input"), body.get("dimensions"), may_be_empty=True),
    "/api/embeddings": lambda body: vectors(body.get("prompt"), None, may_be_empty=True),
    # Their only field is a name, and an unknown one is a 404.
    "/api/show": lambda body: None,
    "/api/pull": lambda body: None,
    "/hf/image-to-text": image_to_text,
    "/hf/visual-question-answering": visual_question_answering,
    "/hf/zero-shot-image-classification": zero_shot,
    "/hf/feature-extraction": lambda body: vectors(body.get("inputs"), body.get("dimensions")),
}


def is_refused(path, body):
    """True if the body must get 400. Null means that a field is absent."""
    try:
        RULES[path](body)
    except Refused:
        return True
    return False
