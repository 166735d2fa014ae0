"""Sends the reference's inputs to the server and holds every answer against it.

Nothing here raises on a difference: all of them are counted and listed, so that one run shows everything. Called by compare.py.
"""

import math
from dataclasses import asdict, dataclass, field

from .photographs import Photograph
from .server import Server

PROBABILITY_TOLERANCE = 1e-3  # of ranked candidates; those of scores stand in the reference
EMBEDDING_COSINE = 0.99999
LOGPROB_TOLERANCE = 1e-2  # of a whole sequence, about twenty tokens


@dataclass
class Findings:
    """What was compared and how far apart it was; `mismatches` is empty when all is well."""

    answers: int = 0
    texts: int = 0
    texts_equal: int = 0
    facts_equal: int = 0
    logprob: float = 0.0
    rankings: int = 0
    rankings_equal: int = 0
    candidate: float = 0.0
    scores: int = 0
    match: float = 0.0
    cosine: float = 0.0
    embeddings: int = 0
    embedding: float = 1.0
    mismatches: list[str] = field(default_factory=list)
    requests: dict[str, int] = field(default_factory=dict)

    def sent(self, encoding: str) -> None:
        self.requests[encoding] = self.requests.get(encoding, 0) + 1

    def wrong(self, what: str) -> None:
        self.mismatches.append(what)

    def document(self) -> dict:
        return asdict(self)


def sequence(found: Findings, label: str, actual: dict, key: str, expected: dict) -> None:
    """One generated text with its facts."""
    found.answers += 1
    found.texts += 1
    if actual[key] == expected["text"]:
        found.texts_equal += 1
    else:
        found.wrong(f"{label}: text {actual[key]!r}, expected {expected['text']!r}")
    facts = [actual["token_count"], actual["finish_reason"], actual.get("continuation", expected["continuation"])]
    wanted = [expected["token_count"], expected["finish_reason"], expected["continuation"]]
    if facts == wanted:
        found.facts_equal += 1
    else:
        found.wrong(f"{label}: {facts}, expected {wanted}")
    distance = abs(actual["logprob"] - expected["logprob"])
    found.logprob = max(found.logprob, distance)
    if not distance <= LOGPROB_TOLERANCE:
        found.wrong(f"{label}: logprob {actual['logprob']}, expected {expected['logprob']}")


def generating(role: str, server: Server, photographs: dict[str, Photograph], reference: dict, found: Findings) -> None:
    """Captions or answers: each by JSON, plain ones also as a raw body and many together; then candidates."""
    path, text_key, list_key, answer_key = {
        "caption": ("/caption", "prompt", "captions", "text"), "vqa": ("/vqa", "question", "answers", "answer")
    }[role]  # fmt: skip

    def check(label: str, answer: dict, entry: dict) -> None:
        given = answer[list_key]
        if len(given) != len(entry["sequences"]):
            return found.wrong(f"{label}: {len(given)} sequences, expected {len(entry['sequences'])}")
        for n, (actual, expected) in enumerate(zip(given, entry["sequences"])):
            sequence(found, f"{label} #{n}", actual, answer_key, expected)

    def fields(entry: dict) -> dict:
        return ({text_key: entry["text"]} if entry["text"] is not None else {}) | entry["params"]

    greedy = [e for e in reference["entries"] if e["name"] == "greedy"]
    for entry in reference["entries"]:
        label = f"{entry['name']} {entry['photo']} {entry['text']!r} {entry['params']}"
        image = photographs[entry["photo"]].file
        check(f"json {label}", server.json(path, {"image": image} | fields(entry)), entry)
        found.sent("JSON")
        if entry in greedy:
            check(f"raw {label}", server.raw(path, image, fields(entry)), entry)
            found.sent("raw")
        elif len(entry["params"]) > 1:
            check(f"multipart {label}", server.multipart(path, [image], fields(entry)), entry)
            found.sent("multipart")
    items = [{"image": photographs[e["photo"]].file} | fields(e) for e in greedy]
    batch = server.json(f"{path}/batch", {"inputs": items})
    found.sent("batch")
    for entry, answer in zip(greedy, batch["results"], strict=True):
        if "error" in answer:
            found.wrong(f"batch {entry['photo']} {entry['text']!r}: {answer['error']}")
        else:
            check(f"batch {entry['photo']} {entry['text']!r}", answer, entry)
    if role == "vqa":
        _questions_together(server, photographs, greedy, found)
        for entry in reference["candidates"]:
            _ranking(server, photographs, entry, found)


def _questions_together(server: Server, photographs: dict[str, Photograph], greedy: list[dict], found: Findings) -> None:
    for photo in photographs:
        entries = [e for e in greedy if e["photo"] == photo]
        answer = server.json("/vqa", {"image": photographs[photo].file, "questions": [e["text"] for e in entries]})
        found.sent("JSON")
        for entry, actual in zip(entries, answer["answers"], strict=True):
            sequence(found, f"together {photo} {entry['text']!r}", actual, "answer", entry["sequences"][0])


def _ranking(server: Server, photographs: dict[str, Photograph], entry: dict, found: Findings) -> None:
    candidates = sorted(answer for answer, _, _ in entry["ranking"])
    body = {"image": photographs[entry["photo"]].file, "question": entry["question"], "candidates": candidates}
    actual = server.json("/vqa", body)["answers"][0]
    found.sent("JSON")
    found.answers += 1
    found.rankings += 1
    order = [c["answer"] for c in actual["ranking"]]
    wanted = [answer for answer, _, _ in entry["ranking"]]
    if order == wanted and actual["answer"] == wanted[0]:
        found.rankings_equal += 1
    else:
        found.wrong(f"candidates {entry['photo']}: {order}, expected {wanted}")
    expected = {answer: (logprob, probability) for answer, logprob, probability in entry["ranking"]}
    for c in actual["ranking"]:
        logprob, probability = expected[c["answer"]]
        found.candidate = max(found.candidate, abs(c["logprob"] - logprob))
        if not abs(c["logprob"] - logprob) <= LOGPROB_TOLERANCE or not abs(c["probability"] - probability) <= PROBABILITY_TOLERANCE:
            found.wrong(f"candidates {entry['photo']} {c}: expected {logprob}, {probability}")


def matching(server: Server, photographs: dict[str, Photograph], reference: dict, found: Findings) -> None:
    """Scores of all photographs and texts, and all embeddings."""
    photos, texts = list(photographs), reference["texts"]
    images = [photographs[p].file for p in photos]
    _scores(found, "json", server.json("/similarity", {"images": images, "texts": texts})["scores"], reference, photos)
    found.sent("JSON")
    _scores(found, "multipart", server.multipart("/similarity", images, {"texts": texts})["scores"], reference, photos)
    found.sent("multipart")
    for n, photo in enumerate(photos):
        part = reference | {"match": [reference["match"][n]], "cosine": [reference["cosine"][n]]}
        _scores(found, "raw", server.raw("/similarity", images[n], {"texts": texts})["scores"], part, [photo])
        found.sent("raw")
        _embedding(found, f"raw image {photo}", server.raw("/embeddings", images[n], {}), reference["image"][n])
        found.sent("raw")
        _embedding(found, f"image {photo}", server.json("/embeddings", {"image": images[n]}), reference["image"][n])
        found.sent("JSON")
        for m, text in enumerate(texts):
            answer = server.json("/embeddings", {"type": "multimodal", "image": images[n], "text": text})
            found.sent("JSON")
            _embedding(found, f"multimodal {photo} {text!r}", answer, reference["multimodal"][n][m])
    items = [{"text": t} for t in texts] + [{"image": i} for i in images]
    batch = server.json("/embeddings/batch", {"inputs": items})
    found.sent("batch")
    for name, answer, expected in zip([*texts, *photos], batch["results"], reference["text"] + reference["image"], strict=True):
        _embedding(found, f"batch {name!r}", answer, expected)
    for text, expected in zip(texts, reference["text"], strict=True):
        _embedding(found, f"text {text!r}", server.json("/embeddings", {"text": text}), expected)
        found.sent("JSON")


def _scores(found: Findings, label: str, scores: list, reference: dict, photos: list[str]) -> None:
    for n, photo in enumerate(photos):
        for m, cell in enumerate(scores[n]):
            found.answers += 1
            found.scores += 1
            for key, tolerance in reference["tolerance"].items():
                distance = abs(cell[key] - reference[key][n][m])
                setattr(found, key, max(getattr(found, key), distance))
                if not distance <= tolerance:
                    found.wrong(f"{label} {key} {photo} text {m}: {cell[key]}, expected {reference[key][n][m]}")


def _embedding(found: Findings, label: str, answer: dict, expected: list[float]) -> None:
    found.answers += 1
    found.embeddings += 1
    actual = answer.get("embedding", [])
    if len(actual) != len(expected) or answer.get("dimensions") != len(expected):
        return found.wrong(f"embedding {label}: {answer if not actual else len(actual)}, expected {len(expected)} values")
    length = math.hypot(*actual)
    cosine = sum(a * b for a, b in zip(actual, expected)) / length / math.hypot(*expected)
    found.embedding = min(found.embedding, cosine)
    if not cosine >= EMBEDDING_COSINE or abs(length - 1.0) > 1e-5:
        found.wrong(f"embedding {label}: cosine {cosine}, length {length}")
