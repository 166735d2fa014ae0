"""Conflicts between fields, for which this server's own routes answer 400 although the schema accepts the request. They
follow from the documentation, not from the answers. In a batch, no schema can express any condition between fields, because
the fields beside `inputs` are defaults of each input.
"""

import base64
import json
import os
import unicodedata

from images import PICTURES
from schemathesis.generation.meta import TestPhase

MAX_NEW_TOKENS = int(os.environ.get("BLIP__LIMITS__MAX_NEW_TOKENS", "64"))
# Parameters that have no effect without sampling or without beam search, with their defaults.
SAMPLED = {"temperature": 1, "top_k": 50, "top_p": 1, "min_p": 0, "typical_p": 1, "epsilon_cutoff": 0, "eta_cutoff": 0}
BEAMED = {"length_penalty": 1, "early_stopping": False, "renormalize_logits": False}
GENERATION = {
    "max_new_tokens", "min_new_tokens", "num_beams", "num_return_sequences", "do_sample", "repetition_penalty",
    "no_repeat_ngram_size", "bad_words", "exponential_decay_length_penalty", "stop_strings", "seed", *SAMPLED, *BEAMED,
}
# An input that gives one of these fields gets no default for the other.
ALTERNATIVES = {
    "/vqa": [("question", "questions")],
    "/similarity": [("image", "images"), ("text", "texts")],
    "/rank": [("text", "image"), ("images", "texts")],
}


def is_raw(case):
    """Is the body one image?"""
    return (case.media_type or "").startswith(("image/", "application/octet-stream"))


def is_set(fields, defaults):
    """Does any field have a value other than its default?"""
    return any(fields.get(name, default) not in (default, None) for name, default in defaults.items())


def is_nothing(word):
    """Does the word consist of characters that the tokenizer drops: white space, control characters, accents, U+FFFD?"""
    dropped, characters = ("Cc", "Cf", "Co", "Mn"), unicodedata.normalize("NFD", word)
    return all(it.isspace() or it == "\ufffd" or unicodedata.category(it) in dropped for it in characters)


def beyond_a_schema(path, fields):
    """Conflicts of a single call that no schema can express, because they compare values."""
    sampling, beams = fields.get("do_sample") is True, fields.get("num_beams", 1)
    most = fields.get("max_new_tokens", min(20, MAX_NEW_TOKENS))
    too_many = not sampling and fields.get("num_return_sequences", 1) > beams
    return fields.get("min_new_tokens", 0) > most or too_many or any(map(is_nothing, fields.get("bad_words", [])))


def generation_conflicts(fields):
    """Do the generation parameters contradict one another?"""
    sampling, beams = fields.get("do_sample") is True, fields.get("num_beams", 1) > 1
    sampled, beamed = is_set(fields, SAMPLED) or "seed" in fields, is_set(fields, BEAMED)
    without_effect = (sampled and not sampling) or (beamed and not beams)
    return beyond_a_schema("", fields) or without_effect or (sampling and beams)


def decoding_conflicts(fields, only_generated=()):
    """Conflicts on the routes that generate texts or rank candidates. With candidates, generation parameters and the fields
    `only_generated` are not allowed."""
    explains, layers = fields.get("explain") is True, fields.get("explain_layers")
    single = fields.get("num_beams", 1) == 1 and fields.get("num_return_sequences", 1) == 1
    if layers is not None and (not explains or len(set(layers)) < len(layers)):
        return True
    if "candidates" in fields:
        given = GENERATION & set(fields) or any(fields.get(name) not in (None, False) for name in only_generated)
        return bool(given) or len(set(fields["candidates"])) < len(fields["candidates"])
    return generation_conflicts(fields) or (explains and not single)


def merged_conflicts(path, fields):
    """All conflicts of one input that has its defaults."""
    image, images, text, texts, question, questions, labels = (
        name in fields for name in ("image", "images", "text", "texts", "question", "questions", "labels")
    )
    if path == "/caption":
        verifies = fields.get("verify") not in (None, False)
        several = fields.get("num_beams", 1) > 1 or fields.get("num_return_sequences", 1) > 1
        unstreamed = fields.get("stream") is True and ("candidates" in fields or verifies or several)
        return not image or unstreamed or decoding_conflicts(fields, ("prompt", "verify", "explain"))
    if path == "/vqa":
        return not image or question == questions or decoding_conflicts(fields)
    if path == "/similarity":
        scores = fields.get("scores", [])
        return image == images or text == texts or len(set(scores)) < len(scores)
    if path == "/classify":
        names = fields.get("labels", [])
        idle = fields.get("by") == "match" and "temperature" in fields
        return not image or not labels or len(set(names)) < len(names) or idle or beyond_a_schema(path, fields)
    if path == "/rank":
        return (text, images, image, texts) not in [(True, True, False, False), (False, False, True, True)]
    asked = fields.get("type")
    image_only = image and not text and asked in (None, "image") and not fields.get("truncate")
    text_only = text and not image and asked in (None, "text")
    both = image and text and asked == "multimodal"
    idle = "layer" in fields and fields.get("pooling") not in ("cls", "mean", "none")
    return not (image_only or text_only or both) or idle


def inputs_of(path, case):
    """The inputs of a batch call as they are once the defaults are filled in."""
    body = case.body
    if is_raw(case):
        return [{"image": body, **(case.query or {})}]
    defaults = {name: value for name, value in body.items() if name not in ("inputs", "model")}
    if case.media_type == "multipart/form-data":
        files = defaults.pop("image", [])
        inputs = [{"image": file} for file in (files if isinstance(files, list) else [files])]
    else:
        inputs = body["inputs"]
    filled = []
    for given in inputs:
        kept = dict(defaults)
        for pair in ALTERNATIVES.get(path, []):
            if any(name in given for name in pair):
                kept = {name: value for name, value in kept.items() if name not in pair}
        filled.append({**kept, **given})
    return filled


def is_json_list(text):
    try:
        return isinstance(text, str) and isinstance(json.loads(text), list)
    except ValueError:
        return False


def holds_json_lists(case):
    """Is an item of a list in a form or query string itself a list in JSON? There, lists are repeated fields."""
    if is_raw(case):
        fields = case.query
    else:
        fields = case.body if case.media_type == "multipart/form-data" else None
    lists = [value for value in fields.values() if isinstance(value, list)] if isinstance(fields, dict) else []
    return any(is_json_list(item) for items in lists for item in items)


def contradicts_itself(case):
    """Whether a body that the schema accepts is refused with 400 all the same."""
    path = case.path
    if holds_json_lists(case):
        return True
    if not path.endswith("/batch"):
        if not isinstance(case.body, dict):
            return False
        # A link puts its fields into a body that was drawn without them.
        linked = case.meta.phase.name == TestPhase.STATEFUL
        return beyond_a_schema(path, case.body) or (linked and merged_conflicts(path, case.body))
    path = path.removesuffix("/batch")
    return any(merged_conflicts(path, fields) for fields in inputs_of(path, case))


def repair(path, body, rng):
    """Removes conflicts from a request. Randomly drawn fields nearly always conflict, so nothing behind the checks would be
    reached."""
    if not path.endswith("/batch"):
        return
    path = path.removesuffix("/batch")
    for name in list(body):
        if name not in ("inputs", "model", "max_new_tokens", "image", "images", "text", "texts", "question", "labels"):
            del body[name]
    if path == "/rank":
        for name in ("image", "images", "text", "texts"):
            body.pop(name, None)
    for fields in body["inputs"]:
        repair_input(path, body, fields, rng)


def repair_input(path, defaults, fields, rng):
    picture = base64.b64encode(PICTURES[0]).decode()
    for name in list(fields):
        if name in GENERATION or name in (
            "candidates", "truncate", "scores", "explain", "explain_layers", "verify", "template", "by", "layer",
        ):
            del fields[name]
    filled = {**defaults, **fields}
    if path == "/embeddings":
        fields.pop("type", None)
        both = "image" in filled and "text" in filled
        if both:
            fields["type"] = "multimodal"
    elif path == "/similarity":
        fields.pop("images", None)
        fields.pop("texts", None)
        fields.setdefault("text", "two cats")
    elif path == "/vqa":
        fields.pop("questions", None)
        fields.setdefault("question", "how many cats?")
    elif path == "/classify" and "labels" not in filled:
        fields["labels"] = ["a cat", "a dog"]
    elif path == "/rank":
        given = {"image": picture, "texts": fields.get("texts", ["two cats", "a red car"])}
        if rng.random() < 0.5:
            given = {"text": "two cats", "images": fields.get("images", [picture])}
        for name in ("image", "images", "text", "texts"):
            fields.pop(name, None)
        fields.update(given)
        return
    if path != "/embeddings" or "text" not in filled:
        fields.setdefault("image", picture)
