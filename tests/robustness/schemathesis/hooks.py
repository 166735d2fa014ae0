"""What schemathesis cannot know about this server: real images, and which refusals are right.

Loaded by `run.py` (`SCHEMATHESIS_HOOKS`). Nothing here makes a check weaker than the comments beside it say:
a status that `schemathesis.toml` lets pass is held against the request once more by `refusals_are_explained`.
"""

import base64
import io
import os
import random
import re
import unicodedata
import zlib

import schemathesis
from PIL import Image
from schemathesis.core import NOT_SET
from schemathesis.core.failures import AcceptedNegativeData
from schemathesis.core.jsonschema import make_validator
from schemathesis.core.parameters import ParameterLocation
from schemathesis.core.transport import Response
from schemathesis.generation.jsonschema import strategy
from schemathesis.generation.meta import TestPhase
from schemathesis.specs.openapi import checks
from schemathesis.transport.serialization import Binary

# The closed list of codes, by status.
CODES = {
    400: {"invalid_request"},
    401: {"unauthorized"},
    403: {"origin_not_allowed"},
    404: {"route_not_found", "model_not_found", "task_not_loaded", "image_not_found"},
    405: {"method_not_allowed"},
    408: {"request_timeout"},
    413: {"payload_too_large"},
    415: {"unsupported_media_type", "unsupported_image_format"},
    422: {
        "undecodable_image", "image_too_large", "text_too_long", "batch_too_large", "score_not_available",
        "fetch_disabled", "url_not_allowed", "url_unreachable",
    },
    429: {"rate_limited"},
    # 500 is in no list: neither inference_failed nor internal_error is an answer to anything that is sent here.
    503: {"overloaded"},
    504: {"deadline_exceeded"},
}
# Below this many milliseconds a request may well be out of time.
SHORT_TIMEOUT_MS = 60_000
REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
MAX_NEW_TOKENS = int(os.environ.get("BLIP__LIMITS__MAX_NEW_TOKENS", "64"))
# Fields of an endpoint without which a raw image alone asks nothing; they stand in the query string, which OpenAPI
# cannot tie to one encoding.
QUERIES = {"/vqa": {"question": "how many cats?"}, "/similarity": {"text": "two cats"}}


def with_text_for_files(value):
    """The value with a string in the place of each file."""
    if isinstance(value, Binary):
        return "a file"
    if isinstance(value, dict):
        return {name: with_text_for_files(item) for name, item in value.items()}
    return [with_text_for_files(item) for item in value] if isinstance(value, list) else value


def validator_that_knows_files(schema, original=strategy._validator):
    """4.32.5 ends a whole phase with "Unsupported type: 'Binary'" when it filters a form that holds a file."""
    accepts = original(schema)
    return lambda value: accepts(with_text_for_files(value))


strategy._validator = validator_that_knows_files


def pictures():
    """A few small files of every format, and two that are none."""
    made = []
    for kind, mode, size in [
        ("PNG", "RGB", (3, 2)), ("PNG", "RGBA", (17, 9)), ("PNG", "I;16", (5, 5)), ("PNG", "1", (1, 1)),
        ("JPEG", "RGB", (32, 20)), ("JPEG", "L", (8, 64)), ("GIF", "P", (4, 4)), ("BMP", "RGB", (2, 3)),
        ("WEBP", "RGB", (16, 16)),
    ]:
        buffer = io.BytesIO()
        Image.new(mode, size, 1).save(buffer, kind)
        made.append(buffer.getvalue())
    cut = made[4][: len(made[4]) // 2]
    return [*made, cut, b"<svg xmlns='http://www.w3.org/2000/svg'/>"]


PICTURES = pictures()


def chance(case):
    """Random numbers that follow from the case: the same case is always sent in the same way."""
    return random.Random(zlib.crc32(repr((case.method, case.path, case.body, dict(case.headers or {}))).encode()))


def image_value(rng):
    """A picture as an image value: base64 or a data URI."""
    text = base64.b64encode(rng.choice(PICTURES)).decode()
    return text if rng.random() < 0.5 else f"data:image/png;base64,{text}"


# What the schema of an image value accepts; anything else is somebody's negative data and stays as it is. White space is
# left out first, which is simpler than the schema's own pattern and replaces the same values.
IMAGE_VALUE = re.compile(
    r"(?:[Dd][Aa][Tt][Aa]:[^,]*;[Bb][Aa][Ss][Ee]64,)?(?:[A-Za-z0-9+/_-]{4})*"
    r"(?:[A-Za-z0-9+/_-]{4}|[A-Za-z0-9+/_-]{2}[AEIMQUYcgkosw048]=?|[A-Za-z0-9+/_-][AQgw](?:==)?)"
    r"|[Hh][Tt][Tt][Pp][Ss]?://[\s\S]*"
)
WHITE_SPACE = re.compile(r"[ \t\n\f\r]+")


def with_images(value, rng):
    """The JSON body with pictures in the place of most well-formed image values."""
    if isinstance(value, list):
        return [with_images(item, rng) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        name: with_image(item, rng) if name == "image"
        else [with_image(entry, rng) for entry in item] if name == "images" and isinstance(item, list)
        else with_images(item, rng) if name == "inputs"
        else item
        for name, item in value.items()
    }


def with_image(value, rng):
    if isinstance(value, str) and IMAGE_VALUE.fullmatch(WHITE_SPACE.sub("", value)) and rng.random() < 0.75:
        return image_value(rng)
    return value


def with_files(body, rng):
    """The form with pictures in the place of most files."""
    def file(value):
        is_file = isinstance(value, (bytes, Binary))
        return Binary(rng.choice(PICTURES)) if is_file and rng.random() < 0.75 else value

    return {
        name: file(value) if name == "image" and not isinstance(value, list)
        else [file(item) for item in value] if name in ("image", "images") and isinstance(value, list)
        else value
        for name, value in body.items()
    }


@schemathesis.hook
def before_call(context, case, kwargs):
    """Puts real images into most cases, and gives most of them time to be answered."""
    if case.method.upper() != "POST" or case.body is NOT_SET:
        return
    rng = chance(case)
    if is_raw(case) and isinstance(case.body, dict):
        # A link's body, put into a case that was drawn as a raw image.
        case.media_type = "application/json"
    timeout = timeout_of(case)
    # The smallest value of the header is the one that the coverage phase takes: nearly nothing is answered in 1 ms.
    if timeout is not None and timeout < SHORT_TIMEOUT_MS and rng.random() < 0.9:
        case.headers["x-request-timeout-ms"] = str(timeout + SHORT_TIMEOUT_MS)
    media_type = case.media_type or ""
    if media_type == "application/json":
        case.body = with_images(case.body, rng)
        if is_positive(case) and case.path.endswith("/batch") and rng.random() < 0.6:
            mend(case.path.removesuffix("/batch"), case.body)
    elif media_type == "multipart/form-data" and isinstance(case.body, dict):
        case.body = with_files(case.body, rng)
    elif is_raw(case) and isinstance(case.body, (bytes, Binary)):
        if rng.random() < 0.75:
            case.body = Binary(rng.choice(PICTURES))
        query = QUERIES.get(case.path.removesuffix("/batch"))
        if query and not case.query:
            case.query = dict(query)
    # An image for an image, a deadline for a deadline: what was positive stays so, and what was negative too. By itself
    # schemathesis would take every body that holds bytes for negative now, because it cannot validate bytes.
    case._record_starting_state()


def mend(path, body):
    """Takes what contradicts itself out of a batch: drawn at random, defaults and inputs hardly ever go together, and
    nothing behind the checks would be reached."""
    for name in list(body):
        if name not in ("inputs", "model", "max_new_tokens", "image", "images", "text", "texts", "question"):
            del body[name]
    for fields in body["inputs"]:
        for name in list(fields):
            if name in GENERATION or name in ("candidates", "truncate", "scores"):
                del fields[name]
        filled = {**body, **fields}
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
        if path != "/embeddings" or "text" not in filled:
            fields.setdefault("image", base64.b64encode(PICTURES[0]).decode())


def is_positive(case):
    return case._meta is not None and case._meta.generation.mode.is_positive


def is_raw(case):
    """Is the body one image?"""
    return (case.media_type or "").startswith(("image/", "application/octet-stream"))


def timeout_of(case):
    """The header's value where it is a valid one."""
    value = str((case.headers or {}).get("x-request-timeout-ms", ""))
    return int(value) if re.fullmatch(r"0*[1-9][0-9]{0,18}", value) else None


def differs(given, default):
    return given is not None and given is not False and given != default


def conflicts(fields):
    """Do the generation parameters contradict one another in a way that no schema can tell?"""
    sampling = fields.get("do_sample") is True
    beams = fields.get("num_beams", 1)
    most = fields.get("max_new_tokens", min(20, MAX_NEW_TOKENS))
    return fields.get("min_new_tokens", 0) > most or (not sampling and fields.get("num_return_sequences", 1) > beams)


def merged_conflicts(path, fields):
    """All conflicts of one input of a batch: with the defaults beside `inputs` they are beyond a schema."""
    sampling, beams = fields.get("do_sample") is True, fields.get("num_beams", 1) > 1
    sampled = differs(fields.get("temperature"), 1) or differs(fields.get("top_p"), 1) or "seed" in fields
    sampled = sampled or fields.get("top_k", 50) != 50
    beamed = differs(fields.get("length_penalty"), 1) or differs(fields.get("early_stopping"), False)
    generation = conflicts(fields) or (sampling and beams) or (sampled and not sampling) or (beamed and not beams)
    kinds = {kind: kind in fields for kind in ("image", "images", "text", "texts", "question", "questions")}
    if path == "/caption":
        return generation or not kinds["image"]
    if path == "/vqa":
        ranked = "candidates" in fields
        given = GENERATION.intersection(fields)
        candidates = fields.get("candidates", [])
        repeated = len(set(candidates)) < len(candidates)
        asked = kinds["question"] != kinds["questions"]
        return not kinds["image"] or not asked or repeated or (bool(given) if ranked else generation)
    if path == "/similarity":
        scores = fields.get("scores", [])
        one_each = kinds["image"] != kinds["images"] and kinds["text"] != kinds["texts"]
        return not one_each or len(set(scores)) < len(scores)
    asked = fields.get("type")
    image_only = kinds["image"] and not kinds["text"] and asked in (None, "image") and not fields.get("truncate")
    text_only = kinds["text"] and not kinds["image"] and asked in (None, "text")
    both = kinds["image"] and kinds["text"] and asked == "multimodal"
    return not (image_only or text_only or both)


GENERATION = {
    "max_new_tokens", "min_new_tokens", "num_beams", "num_return_sequences", "do_sample", "temperature", "top_k",
    "top_p", "repetition_penalty", "no_repeat_ngram_size", "length_penalty", "early_stopping", "seed",
}


def inputs_of(case):
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
        for pair in (("image", "images"), ("text", "texts"), ("question", "questions")):
            # An input that names its images replaces the default under either name.
            if any(name in given for name in pair):
                kept = {name: value for name, value in kept.items() if name not in pair}
        filled.append({**kept, **given})
    return filled


def contradicts_itself(case):
    """Whether a body that the schema accepts is refused with 400 all the same."""
    path = case.path
    if not path.endswith("/batch"):
        if not isinstance(case.body, dict):
            return False
        # A link puts its fields into a body that was drawn without them.
        linked = case.meta.phase.name == TestPhase.STATEFUL
        return conflicts(case.body) or (linked and merged_conflicts(path, case.body))
    path = path.removesuffix("/batch")
    return any(merged_conflicts(path, fields) for fields in inputs_of(case))


@schemathesis.hook
def filter_failure(context, failure, case, response):
    """Negative data that is none once it is sent. Decided by the schema itself, on what went over the wire."""
    if not isinstance(failure, AcceptedNegativeData) or not isinstance(case.body, dict):
        return True
    if case.media_type == "multipart/form-data":
        # Parts are text: null is the text "null", a list of one is its item, an empty list is no part.
        return not accepted_by_schema(case, as_sent(case, response))
    # The document says in words that null is an absent field; its schemas do not list null, for the sake of generated
    # clients.
    if accepted_by_schema(case, without_nulls(case.body)):
        return False
    # A link's body took the place of what was drawn.
    linked = case.meta.phase.name == TestPhase.STATEFUL and case.meta.is_negative_at(ParameterLocation.BODY)
    return not (linked and accepted_by_schema(case, case.body))


def without_nulls(body):
    """A JSON body without the fields that are null: those of the request, and those of each input of a batch."""
    given = {name: value for name, value in body.items() if value is not None}
    if isinstance(given.get("inputs"), list):
        given["inputs"] = [
            {name: value for name, value in item.items() if value is not None} if isinstance(item, dict) else item
            for item in given["inputs"]
        ]
    return given


def plain_text(text):
    """A part's text in the spelling of JSON: white space around numbers and the spellings of booleans are free."""
    trimmed = text.strip().lower()
    if trimmed in ("true", "1", "on", "false", "0", "off"):
        return [text, "true" if trimmed in ("true", "1", "on") else "false", trimmed]
    return [text, text.strip()]


def validator_of(case):
    alternative = case.operation.get_body_for_media_type(case.media_type)
    return make_validator(alternative.validation_schema, case.operation.schema.adapter.jsonschema_validator_cls)


def accepted_by_schema(case, body):
    return body is not None and validator_of(case).is_valid(body)


def empty_files(response):
    """The names of the form's files without content, each as often as it was sent."""
    body = response.request.body or b""
    boundary = body.partition(b"\r\n")[0]
    parts = [part.partition(b"\r\n\r\n") for part in body.split(boundary) if boundary]
    heads = [head for head, _, content in parts if b"filename" in head and content.strip(b"\r\n") == b""]
    names = [re.search(rb'[ ;]name="([^"]*)"', head) for head in heads]
    return [name.group(1).decode() for name in names if name]


def as_sent(case, response):
    """A form as the server may read it: lists where the schema has lists, numbers where it has numbers."""
    fields = checks._sent_form_fields(response, case.media_type)
    if fields is None:
        return None
    validator, body, empty = validator_of(case), {}, empty_files(response)
    for name, texts in fields.items():
        texts = list(texts)
        # A file is a string of some kind, for all that a schema can say.
        for _ in range(empty.count(name)):
            texts.remove(None)
        texts = ["a file" if text is None else text for text in texts if text != ""]
        if not texts:
            # Empty parts mean that the field is absent. (Under an unknown name they would have been refused.)
            continue
        spellings = plain_text(texts[0]) if len(texts) == 1 else []
        readings = [it for text in spellings for it in checks._form_text_readings(text)] + [texts]
        body[name] = next(
            (it for it in readings if not checks._has_errors_at(validator, {**body, name: it}, name)), readings[0]
        )
    return body


def as_problem(response, case):
    """The problem in a refusal's body."""
    assert response.headers.get("content-type", [""])[0] == "application/problem+json", "a refusal is a problem document"
    problem = response.json()
    status = response.status_code
    assert problem["status"] == status, f"the body says {problem['status']}"
    assert problem["code"] in CODES.get(status, set()), f"{problem['code']} is no code of {status}"
    assert problem["type"] == f"urn:blip:problem:{problem['code']}", problem["type"]
    assert problem["request_id"] == response.headers["x-request-id"][0], "the request's id differs from the header's"
    return problem


@schemathesis.check
def refusals_are_explained(ctx, response: Response, case):
    """Every refusal is a problem of the closed list, and the request is a reason for it."""
    request_id = response.headers.get("x-request-id", [""])[0]
    assert REQUEST_ID.fullmatch(request_id), "every response carries x-request-id"
    assert "server-timing" in response.headers, "every response carries server-timing"
    assert response.headers.get("x-content-type-options") == ["nosniff"], "nothing is to be sniffed"
    status = response.status_code
    if status < 400 or response.request.method == "HEAD":
        return None
    problem = as_problem(response, case)
    if status == 503:
        seconds = response.headers.get("retry-after", ["0"])[0]
        assert seconds.isdigit() and 1 <= int(seconds) <= 31, f"retry-after: {seconds}"
    if status == 504:
        timeout = timeout_of(case)
        assert timeout is not None and timeout < SHORT_TIMEOUT_MS, "out of time without having asked for haste"
    if status == 405:
        assert response.headers.get("allow"), "405 lists the methods that are taken"
    detail = problem["detail"]
    assert len(detail) < 2000 and not any(unicodedata.category(it) == "Cc" for it in detail), "a detail is short and plain"
    return None


@schemathesis.check
def only_contradictions_are_refused(ctx, response: Response, case):
    """400 answers what the schema refuses, and the conflicts that it cannot tell: both ways round."""
    meta = case.meta
    if meta is None or case.method.upper() != "POST" or not meta.generation.mode.is_positive:
        return None
    if ParameterLocation.BODY not in meta.components or is_probe(case):
        return None
    contradicts = contradicts_itself(case)
    if response.status_code == 400:
        assert contradicts, "the schema accepts this request and nothing in it contradicts itself"
    if response.status_code == 200:
        assert not contradicts, "this request contradicts itself"
    return None


def is_probe(case):
    return checks.is_unexpected_http_status_case(case)
