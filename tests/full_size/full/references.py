"""What transformers answers, in f32: the numbers that the server is held against.

A sequence counts only if no decision (argmax, beam choice) was closer than MIN_GAP; else another prompt or question takes its place.
Whether removing each of its parameters changes the ids is recorded as `bites`. Called by compare.py.
"""

import json
import time
from pathlib import Path

import torch
from make import plans, towers
from make.generation import MIN_GAP, Case, Generator
from torch.nn.functional import cosine_similarity

from . import weights
from .photographs import Photograph

VERSION = 2  # of the plan below; references of another one are made again
GREEDY_TEXTS = {
    "caption": [None, "a picture of", "a red cup of coffee on"],
    "vqa": ["what is in the picture?", "how many cats are there?", "what color is the cup?", "is it night?"],
}
SEVERAL = {
    "max-new-tokens-32": {"max_new_tokens": 32},
    "beams-3": {"num_beams": 3},
    "beams-3-again": {"num_beams": 3},
    "beams-4-return-2": {"num_beams": 4, "num_return_sequences": 2},
}
BITING = {
    "min-new-tokens": {"min_new_tokens": 12},
    "repetition-penalty": {"repetition_penalty": 1.3},
    "no-repeat-ngram": {"no_repeat_ngram_size": 2},
    "length-penalty-positive": {"length_penalty": 2.0, "num_beams": 3},
    "length-penalty-negative": {"length_penalty": -1.0, "num_beams": 3},
    "early-stopping": {"early_stopping": True, "num_beams": 3},
    "never-length": {"early_stopping": "never", "num_beams": 3, "length_penalty": 2.0},
    "minimum-beams": {"min_new_tokens": 8, "num_beams": 3},
    "penalty-ngram-beams": {"num_beams": 3, "repetition_penalty": 1.2, "no_repeat_ngram_size": 2},
}
FEW = {"beams-3": {"num_beams": 3}}  # at large size
TRIES = 6  # inputs looked at for one golden: a base-size run takes seconds
CANDIDATES = [*plans.CANDIDATES, "a small orange cat", "no"]
TEXTS = towers.TEXTS | {"night": "a tower at night"}


class Remembered(torch.nn.Module):
    """A vision tower that computes each picture once: `generate` would do so on every run."""

    def __init__(self, tower: torch.nn.Module) -> None:
        super().__init__()
        self.tower, self.seen = tower, {}

    def forward(self, pixel_values: torch.Tensor, **kwargs):
        """As the tower's; the pictures are kept, so that an address means one picture."""
        if id(pixel_values) not in self.seen:
            self.seen[id(pixel_values)] = (pixel_values, self.tower(pixel_values, **kwargs))
        return self.seen[id(pixel_values)][1]


class Reference(Generator):
    """`generate` where the padding id is 0: beam search then fills shorter sequences with the stop token (`pad_token_id or ...` in 5.23)."""

    def _unpad(self, sequence: list[int], start: int) -> list[int]:
        sep = self.ids["sep"]
        if sep not in sequence[start:]:
            return sequence
        end = sequence.index(sep, start) + 1
        assert all(i in (self.ids["pad"], sep) for i in sequence[end:]), sequence
        return sequence[:end]


def ensure(spec: weights.Checkpoint, photographs: dict[str, Photograph], root: Path) -> dict:
    """The reference document of a checkpoint that lies in `root`, made where it is not there yet."""
    path = root / f"{spec.name}.reference.json"
    if path.exists():
        document = json.loads(path.read_text())
        if document["version"] == VERSION and document["photos"] == list(photographs):
            return document
    began = time.monotonic()
    model, tokenizer = weights.read(spec, root)
    model.vision_model = Remembered(model.vision_model)
    pixel_values = {name: p.pixel_values for name, p in photographs.items()}
    if spec.role == "retrieval":
        document = _matching(model, tokenizer, pixel_values)
    else:
        document = _generating(spec, Reference(model, spec.role, tokenizer, pixel_values, weights.IDS))
    document |= {"version": VERSION, "photos": list(photographs), "seconds": time.monotonic() - began}
    path.write_text(json.dumps(document))
    return document


def _generating(spec: weights.Checkpoint, generator: Generator) -> dict:
    photos, texts = list(generator.pixel_values), GREEDY_TEXTS[spec.role]
    spare = [t for t in (plans.QUESTIONS if spec.role == "vqa" else plans.PROMPTS) if t not in texts]
    entries = [entry for text in texts[: 2 if spec.size == "large" else None] for entry in _greedy(generator, [text, *spare], spare)]
    cases = [Case(e["photo"], e["text"]) for e in entries]  # of which the run without parameters is there already
    others = [Case(photo, text) for text in spare for photo in photos]
    plan = FEW if spec.size == "large" else SEVERAL | (BITING if spec.recipe == "talkative" else {})
    used: list = []
    for offset, (name, params) in enumerate(plan.items()):
        start = offset * 2 % len(cases)  # steps through photographs and texts
        began = time.monotonic()
        fresh = [c for c in cases[start:] + cases[:start] if (c, params) not in used]
        entries.append(_entry(generator, name, fresh + others, params))
        used.append((Case(entries[-1]["photo"], entries[-1]["text"]), params))
        print(f"    {name}: {entries[-1]['sequences'][0]['text']!r} ({time.monotonic() - began:.0f} s)", flush=True)
    document = {"entries": entries, "gap": min(e["gap"] for e in entries)}
    document["distinct"] = _image_dependent(entries)
    if spec.role == "vqa":
        document["candidates"] = [_candidates(generator, p, t) for p, t in zip(photos, texts)]
    document["rolled"] = _rolled(generator, entries)
    return document


def _greedy(generator: Generator, texts: list, spare: list) -> list[dict]:
    """Plain runs of the first text that is clear on every photograph and does not say the same to all; used ones leave `spare`."""
    for text in texts:
        cases = [Case(photo, text) for photo in generator.pixel_values]
        runs = [generator.run(case, {}) for case in cases]
        if min(run.gap for run in runs) > MIN_GAP and len({tuple(run.new[0]) for run in runs}) > 1:
            if text in spare:
                spare.remove(text)
            return [_entry(generator, "greedy", [case], {}) for case in cases]
    raise AssertionError("no text depends on the photograph")


def _entry(generator: Generator, name: str, cases: list[Case], params: dict) -> dict:
    """The first input whose decisions are clear and all of whose parameters matter; failing that, one whose decisions are clear."""
    case = next((c for c in cases[:TRIES] if generator.worth(c, params)), None)
    bites = case is not None
    if case is None:
        case = next(c for c in cases if generator.run(c, params).gap > MIN_GAP)
    run = generator.run(case, params)
    sequences, begun = [], generator.decode(run.start)
    for ids, new in zip(run.sequences, run.new):
        text = generator.decode(ids)
        assert text.startswith(begun)
        # What the prompt does not say; decoding the new ids alone would show the "##" of a first word piece.
        sequences.append({
            "ids": ids, "text": text, "continuation": text.removeprefix(begun).removeprefix(" "), "token_count": len(new),
            "logprob": sum(generator.logprobs(case, ids, len(run.start))), "finish_reason": "stop" if new[-1] == weights.IDS["sep"] else "length",
        })  # fmt: skip
    return {"name": name, "photo": case.photo, "text": case.text, "params": params, "gap": run.gap, "bites": bites, "sequences": sequences}


def _image_dependent(entries: list[dict]) -> str:
    """Greedy texts of one prompt or question differ between photographs; a server that ignores the image cannot pass."""
    said: dict = {}
    for entry in entries:
        if entry["name"] == "greedy":
            said.setdefault(entry["text"], []).append(entry["sequences"][0]["text"])
    groups = [answers for answers in said.values() if len(answers) > 1]
    distinct, together = sum(len(set(answers)) for answers in groups), sum(len(answers) for answers in groups)
    assert groups and all(len(set(answers)) > 1 for answers in groups), said
    return f"{distinct} of {together}"


def _rolled(generator: Generator, entries: list[dict]) -> str:
    """How many greedy texts a picture shifted by one patch changes: what an equal text is worth."""
    greedy = [e for e in entries if e["name"] == "greedy"]
    first = list(generator.pixel_values)[0]
    greedy = [e for e in greedy if e["photo"] == first]
    moved = Reference(generator.model, generator.role, generator.tokenizer, {first: generator.pixel_values[first].roll(16, -1)}, weights.IDS)
    changed = sum(moved.run(Case(first, e["text"]), {}).sequences[0] != e["sequences"][0]["ids"] for e in greedy)
    return f"{changed} of {len(greedy)}"


def _candidates(generator: Generator, photo: str, question: str) -> dict:
    """Scores of given answers: the sum over their tokens and the stop token."""
    case = Case(photo, question)
    scores = []
    for answer in CANDIDATES:
        scores.append(sum(generator.logprobs(case, [weights.IDS["bos"], *generator.text_ids(answer)[1:]], 1)))
    probabilities = torch.tensor(scores, dtype=torch.float64).softmax(0).tolist()
    ranking = sorted(zip(CANDIDATES, scores, probabilities), key=lambda c: -c[1])
    gap = min(a[1] - b[1] for a, b in zip(ranking, ranking[1:]))
    assert gap > MIN_GAP, (photo, question, gap)
    return {"photo": photo, "question": question, "ranking": ranking, "gap": gap}


def _matching(model, tokenizer, pixel_values: dict) -> dict:
    texts = [{"name": name, "text": text, "ids": tokenizer(text)["input_ids"]} for name, text in TEXTS.items()]
    tensors = towers.retrieval(model, pixel_values, texts, weights.IDS["enc"])
    first = list(pixel_values)[0]
    rolled = towers.retrieval(model, {first: pixel_values[first].roll(16, -1)}, texts, weights.IDS["enc"])
    match, cosine = tensors["itm_probabilities"][..., 1], tensors["cosine"]
    image = tensors[f"image_embed.{first}"]
    document = {
        "texts": [t["text"] for t in texts], "match": match.tolist(), "cosine": cosine.tolist(),
        "image": [tensors[f"image_embed.{p}"].tolist() for p in pixel_values],
        "text": [tensors[f"text_embed.{t['name']}"].tolist() for t in texts],
        "multimodal": [[tensors[f"multimodal.{p}.{t['name']}"][0].tolist() for t in texts] for p in pixel_values],
        "rolled": {
            "match": (rolled["itm_probabilities"][0, :, 1] - match[0]).abs().max().item(),
            "cosine": (rolled["cosine"][0] - cosine[0]).abs().max().item(),
            "image": cosine_similarity(rolled[f"image_embed.{first}"], image, dim=0).item(),
            "multimodal": max(
                cosine_similarity(rolled[f"multimodal.{first}.{t['name']}"][0], tensors[f"multimodal.{first}.{t['name']}"][0], dim=0).item()
                for t in texts
            ),
        },
    }  # fmt: skip
    # A tolerance says nothing about numbers that a wrong picture hardly moves: it must be ten times as far away.
    moved = document["rolled"]
    document["tolerance"] = {key: min(1e-3, moved[key] / 10) for key in ("match", "cosine")}
    assert min(document["tolerance"].values()) > 5e-5, moved
    assert 1 - max(moved["image"], moved["multimodal"]) > 10 * 1e-5, moved
    if len(pixel_values) > 1:
        assert (match.max(0).values - match.min(0).values).max() > 1e-2, match
    return document
