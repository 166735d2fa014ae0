"""What schemathesis cannot know about this server: real images, and which refusals are right.

Loaded by `run.py` (`SCHEMATHESIS_HOOKS`). Nothing here makes a check weaker than the comments beside it say:
a status that `schemathesis.toml` lets pass is held against the request once more by `refusals_are_explained`.

The other files: `images` (real images and their places), `conflicts` (between fields of this server's own routes),
`compatible` (the routes of other APIs), `bulk` (lines of JSON).
"""

import json
import random
import re
import unicodedata
import zlib

import bulk
import compatible
import schemathesis
from conflicts import contradicts_itself, inputs_of, is_raw, merged_conflicts, repair
from hypothesis import strategies
from images import PICTURES, with_files, with_images
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
# Fields that an endpoint needs beside a raw image. They go into the query string, which OpenAPI cannot tie to one encoding.
QUERIES = {
    "/vqa": {"question": "how many cats?"},
    "/similarity": {"text": "two cats"},
    "/classify": {"labels": ["a cat", "a dog"]},
    "/rank": {"texts": ["two cats", "a red car"]},
}
# Lines of JSON are sent as they are.
schemathesis.serializer.alias("application/x-ndjson", "text/plain")


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


def chance(case):
    """Random numbers that follow from the case: the same case is always sent in the same way."""
    return random.Random(zlib.crc32(repr((case.method, case.path, case.body, dict(case.headers or {}))).encode()))


@schemathesis.hook
def before_generate_case(context, strategy):
    """Gives a meaning to the bodies of which the schema says little. The random numbers come from Hypothesis, because most
    bodies that it generates for these schemas are the same."""
    has_meaning = context.operation.path == "/bulk" or context.operation.path in compatible.MEANING
    return strategies.builds(with_meaning, strategy, strategies.integers(0, 2**63)) if has_meaning else strategy


def with_meaning(case, seed):
    rng = random.Random(seed)
    if not is_positive(case) or case.body is NOT_SET or rng.random() < 0.1:
        return case
    if case.path == "/bulk":
        case.body = bulk.lines(rng)
    elif isinstance(case.body, dict):
        raw = case.operation.definition.raw["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        schema = case.operation.schema.raw_schema["components"]["schemas"][raw.rpartition("/")[2]]
        case.body = compatible.fill(case.path, case.body, schema["properties"], rng)
    case._record_starting_state()
    return case


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
        if is_positive(case) and not compatible.api_of(case.path) and rng.random() < 0.6:
            repair(case.path, case.body, rng)
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


def is_positive(case):
    return case._meta is not None and case._meta.generation.mode.is_positive


def timeout_of(case):
    """The header's value where it is a valid one."""
    value = str((case.headers or {}).get("x-request-timeout-ms", ""))
    return int(value) if re.fullmatch(r"0*[1-9][0-9]{0,18}", value) else None


@schemathesis.hook
def filter_failure(context, failure, case, response):
    """Negative data that is none once it is sent. Decided by the schema itself, on what went over the wire."""
    if not isinstance(failure, AcceptedNegativeData):
        return True
    if case.path == "/bulk":
        # Every body is text, and the server answers each of its lines.
        return False
    if not isinstance(case.body, dict):
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
    """A JSON body without the fields that are null: those of the request, of each input of a batch, and of the objects in
    which other APIs put their options."""
    given = {name: value for name, value in body.items() if value is not None}
    if isinstance(given.get("inputs"), list):
        given["inputs"] = [without_nulls(item) if isinstance(item, dict) else item for item in given["inputs"]]
    for name in ("options", "parameters", "generation_parameters"):
        if isinstance(given.get(name), dict):
            given[name] = without_nulls(given[name])
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
    """The names of the form's files without content and without a file name, which count as absent, each as often as it was
    sent."""
    body = response.request.body or b""
    boundary = body.partition(b"\r\n")[0]
    parts = [part.partition(b"\r\n\r\n") for part in body.split(boundary) if boundary]
    is_absent = lambda head, content: b"filename" in head and not re.search(rb'filename="[^"]', head) and content.strip(b"\r\n") == b""
    heads = [head for head, _, content in parts if is_absent(head, content)]
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
        readings = [it for text in spellings for it in checks._form_text_readings(text)]
        # Lists of texts, and lists of numbers.
        readings += [texts, [checks._form_text_readings(text)[-1] for text in texts]]
        body[name] = next(
            (it for it in readings if not checks._has_errors_at(validator, {**body, name: it}, name)), readings[0]
        )
    return body


def as_problem(response):
    """The code and the detail of the problem in a refusal's body."""
    assert response.headers.get("content-type", [""])[0] == "application/problem+json", "a refusal is a problem document"
    problem = response.json()
    status = response.status_code
    assert problem["status"] == status, f"the body says {problem['status']}"
    assert problem["code"] in CODES.get(status, set()), f"{problem['code']} is no code of {status}"
    assert problem["type"] == f"urn:blip:problem:{problem['code']}", problem["type"]
    assert problem["request_id"] == response.headers["x-request-id"][0], "the request's id differs from the header's"
    return problem["code"], problem["detail"]


def refusal_of(response, case):
    """The code of a refusal, or None where its API has none, and its text."""
    api = compatible.api_of(case.path)
    return compatible.code_of(api, response, CODES) if api else as_problem(response)


@schemathesis.check
def refusals_are_explained(ctx, response: Response, case):
    """Every refusal has the form of its API and a code of the closed list, and the request is a reason for it."""
    request_id = response.headers.get("x-request-id", [""])[0]
    assert REQUEST_ID.fullmatch(request_id), "every response carries x-request-id"
    assert "server-timing" in response.headers, "every response carries server-timing"
    assert response.headers.get("x-content-type-options") == ["nosniff"], "nothing is to be sniffed"
    status = response.status_code
    if status < 400 or response.request.method == "HEAD":
        return None
    _, detail = refusal_of(response, case)
    if status in (429, 503):
        # No rate limit is set, so a 429 is what the Hugging Face routes send instead of 503.
        seconds = response.headers.get("retry-after", ["0"])[0]
        assert seconds.isdigit() and 1 <= int(seconds) <= 31, f"retry-after: {seconds}"
    if status == 504:
        assert asks_for_haste(case), "out of time without having asked for haste"
    if status == 405:
        assert response.headers.get("allow"), "405 lists the methods that are taken"
    assert len(detail) < 2000 and not any(unicodedata.category(it) == "Cc" for it in detail), "a detail is short and plain"
    return None


@schemathesis.check
def only_contradictions_are_refused(ctx, response: Response, case):
    """400 answers what the schema refuses, and the conflicts that it cannot tell: both ways round."""
    meta = case.meta
    if meta is None or case.method.upper() != "POST" or not meta.generation.mode.is_positive:
        return None
    if ParameterLocation.BODY not in meta.components or is_probe(case) or case.path == "/bulk":
        return None
    if compatible.api_of(case.path):
        refused = compatible.is_refused(case.path, case.body)
        # The API of OpenAI answers with 400 where others answer with 422.
        is_400 = response.status_code == 400 and refusal_of(response, case)[0] in (None, "invalid_request")
    else:
        refused, is_400 = contradicts_itself(case), response.status_code == 400
    if is_400:
        assert refused, "the schema accepts this request and nothing in it contradicts itself"
    if response.status_code == 200 and case.path.endswith("/batch"):
        # An input with a conflict may have another error first, such as an unknown model, which fails only that input.
        path, results = case.path.removesuffix("/batch"), response.json()["results"]
        answered = [fields for fields, it in zip(inputs_of(path, case), results, strict=True) if "error" not in it]
        refused = any(merged_conflicts(path, fields) for fields in answered)
    if response.status_code == 200:
        assert not refused, "this request contradicts itself"
    return None


@schemathesis.check
def streams_are_complete(ctx, response: Response, case):
    """Streams of lines or events have an end, and every line of /bulk has an answer."""
    if response.status_code != 200 or case.method.upper() != "POST":
        return None
    media_type, text = response.headers.get("content-type", [""])[0], response.content.decode()
    if case.path == "/bulk":
        assert media_type == "application/x-ndjson", media_type
        bulk.check_answers(response, case, CODES, asks_for_haste(case))
    elif media_type == "application/x-ndjson":
        *pieces, end = map(json.loads, text.splitlines())
        assert all(piece["done"] is False for piece in pieces), "only the last line is the end"
        assert end.get("done") is True or set(end) == {"error"}, f"the last line is {end}"
    elif media_type == "text/event-stream":
        *_, end = text.rstrip("\n").split("\n\n")
        is_end = end == "data: [DONE]" if compatible.api_of(case.path) else re.match("event: ?(done|error)\n", end)
        assert is_end, f"the last event is {end}"
    return None


def asks_for_haste(case):
    timeout = timeout_of(case)
    return timeout is not None and timeout < SHORT_TIMEOUT_MS


def is_probe(case):
    return checks.is_unexpected_http_status_case(case)
