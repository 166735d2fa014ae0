"""`POST /bulk`: its body and its answer are lines of JSON, of which the document says only that they are text. So the lines
are drawn here, and each answer is checked against the schema of the single route that its line names.
"""

import functools
import json

from images import image_value
from schemathesis.core.jsonschema import make_validator

ANSWERS = {
    "caption": "CaptionResponse", "vqa": "VqaResponse", "similarity": "SimilarityResponse",
    "embeddings": "EmbeddingsResponse", "classify": "ClassifyResponse",
}


def good_line(rng):
    """A line that is not refused with 400, though its image may be none."""
    image = image_value(rng)
    return rng.choice([
        {"task": "caption", "image": image, "tokens": rng.random() < 0.5},
        {"task": "caption", "image": image, "candidates": ["two cats", "a dog"]},
        {"task": "vqa", "image": image, "questions": ["how many cats?", "what color?"], "num_beams": 2},
        {"task": "similarity", "images": [image, image_value(rng)], "text": "two cats"},
        {"task": "embeddings", "image": image, "encoding_format": "base64"},
        {"task": "embeddings", "text": "two cats", "pooling": "none"},
        {"task": "classify", "image": image, "labels": ["a cat", "a dog"], "model": None, "deadline_ms": 30_000},
    ])


def bad_line(rng):
    return rng.choice([
        {"task": "caption"}, {"task": "caption", "image": "no base64!"}, {"task": "embeddings", "text": "bell\x07"},
        {"task": "vqa", "image": image_value(rng), "question": "how many?", "num_beams": 99}, {"text": "no task"},
        {"task": "caption", "image": image_value(rng), "stream": True}, {"task": "embeddings", "text": "a", "extra": 1},
    ])


def lines(rng):
    """The text of a body. The ids begin with what the lines are: good, or bad."""
    drawn = []
    for number in range(rng.randint(0, 6)):
        kind = rng.random()
        if kind < 0.6:
            drawn.append(json.dumps({"id": f"good {number}", **good_line(rng)}))
        elif kind < 0.85:
            drawn.append(json.dumps({"id": f"bad {number}", **bad_line(rng)}))
        else:
            drawn.append(rng.choice(["", " \t", "no json", "[]", "5", '{"task": "sing"}', '{"id": [], "task": "caption"}']))
    return rng.choice(["\n", "\r\n"]).join(drawn) + rng.choice(["", "\n"])


@functools.cache
def answer_validator(operation, task):
    schema = {"$ref": f"#/components/schemas/{ANSWERS[task]}", "components": operation.schema.raw_schema["components"]}
    return make_validator(schema, operation.schema.adapter.jsonschema_validator_cls)


def check_answers(response, case, codes, may_be_late):
    """Every line that is not blank has one answer, and the last line counts them."""
    given = (response.request.body or b"").split(b"\n")
    numbers = {number for number, line in enumerate(given, 1) if line.strip(b" \t\r\x0c")}
    *answers, end = [json.loads(line) for line in response.content.splitlines()]
    failed = sum(answer["status"] != 200 for answer in answers)
    assert end == {"done": len(answers), "failed": failed}, f"the last line is {end}"
    assert len(answers) == len(numbers), f"{len(numbers)} lines, {len(answers)} answers"
    names = {(answer.get("id"), answer.get("line")) for answer in answers}
    assert len(names) == len(answers), "a line has two answers"
    for answer in answers:
        check_answer(answer, case, given, codes, may_be_late)
        assert "id" in answer or answer["line"] in numbers, f"line {answer['line']} was not sent"


def check_answer(answer, case, given, codes, may_be_late):
    status, name = answer["status"], answer.get("id")
    outcome = "result" if status == 200 else "error"
    assert set(answer) == {"line" if name is None else "id", "status", outcome}, f"an answer has {sorted(answer)}"
    if isinstance(name, str):
        assert not name.startswith("bad ") or status == 400, f"a bad line got {status}"
        assert not name.startswith("good ") or status != 400, f"a good line got 400: {answer}"
    if status != 200:
        problem = answer["error"]
        assert problem["status"] == status and problem["code"] in codes.get(status, set()), f"{status}: {problem}"
        assert status != 504 or may_be_late, "out of time without having asked for haste"
        return
    sent = next(line for line in map(json.loads, filter(is_object, given)) if line.get("id") == name)
    errors = list(answer_validator(case.operation, sent["task"]).iter_errors(answer["result"]))
    assert not errors, f"the result of {sent['task']} is not that of its route: {errors[0]}"


def is_object(line):
    """Is the line the JSON of an object?"""
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False
