"""Agreement of the demo models with their f32 selves, about the scenes of demo/. Called by precision.py.

demo/make is loaded under the name `demo_make`: the fixtures have a package of the same name.
"""

import importlib.util
import json
import random
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from .answers import cosine_distances, spread

DEMO = Path(__file__).resolve().parents[3] / "demo"
AT_A_TIME = 4


def _package() -> None:
    path = DEMO / "make"
    spec = importlib.util.spec_from_file_location("demo_make", path / "__init__.py", submodule_search_locations=[str(path)])
    module = importlib.util.module_from_spec(spec)
    sys.modules["demo_make"] = module
    spec.loader.exec_module(module)


_package()
from demo_make import client, language, scenes  # noqa: E402


@dataclass
class Asked:
    """A picture and what is asked about it, with the truth."""

    image: str
    caption: str
    questions: list[tuple[str, str]]
    texts: list[tuple[str, bool]]


@dataclass
class Said:
    """Answers about all scenes, in order."""

    captions: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    match: list[float] = field(default_factory=list)
    embeddings: list[list[float]] = field(default_factory=list)


def samples() -> list[Asked]:
    """The pictures of demo/scenes; the first text of each is true."""
    found = []
    for entry in json.loads((DEMO / "scenes" / "scenes.json").read_text()):
        with Image.open(DEMO / "scenes" / entry["file"]) as picture:
            image = client.png(picture.convert("RGB"))
        questions = [(q["question"], q["answer"]) for q in entry["questions"]]
        found.append(Asked(image, entry["caption"], questions, [(text, n == 0) for n, text in enumerate(entry["texts"])]))
    return found


def generated(count: int) -> list[Asked]:
    """Scenes of the evaluation's seeds; none if the font is missing."""
    if count and not Path(scenes.FONT).exists():
        print("  the emoji font is missing (fonts-noto-color-emoji): only the pictures of demo/scenes are asked about", flush=True)
        return []
    found = []
    for index in range(count):
        rng = random.Random(f"test {index}")
        scene = scenes.draw_scene(rng)
        content = language.Content.of(scene)
        questions = [(question, answer) for _, question, answer in language.questions(content, rng)]
        texts = [(text, true) for _, text, true in language.matching(content, rng)]
        found.append(Asked(client.png(scenes.paint(scene)), language.caption(content), questions, texts))
    return found


def ask(address: str, asked: list[Asked], label: str) -> Said:
    """Everything about every scene, some requests at a time."""
    server = client.Server(f"http://{address}")

    def one(scene: Asked) -> tuple:
        caption = server.ask("/caption", {"image": scene.image})["captions"][0]["text"]
        answers = server.ask("/vqa", {"image": scene.image, "questions": [question for question, _ in scene.questions]})["answers"]
        scores = server.ask("/similarity", {"image": scene.image, "texts": [text for text, _ in scene.texts]})["scores"][0]
        embedding = server.ask("/embeddings", {"image": scene.image})["embedding"]
        return caption, [a["answer"] for a in answers], [s["match"] for s in scores], embedding

    said = Said()
    for caption, answers, match, embedding in client.each(one, asked, AT_A_TIME, f"    {label}"):
        said.captions.append(caption)
        said.answers += answers
        said.match += match
        said.embeddings.append(embedding)
    return said


def compare(asked: list[Asked], said: Said, reference: Said) -> dict:
    """Shares that agree with f32, and shares that are right."""
    truths = [answer for scene in asked for _, answer in scene.questions]
    matching = np.asarray([true for scene in asked for _, true in scene.texts])
    match, match_reference = np.asarray(said.match), np.asarray(reference.match)
    return {
        "scenes": len(asked), "answers": len(truths), "matches": len(matching),
        "captions_equal": _share(said.captions, reference.captions), "answers_equal": _share(said.answers, reference.answers),
        "decisions_equal": float(((match > 0.5) == (match_reference > 0.5)).mean()), "match": spread(np.abs(match - match_reference)),
        "embedding": spread(cosine_distances(said.embeddings, reference.embeddings)),
        "captions_right": _share(said.captions, [scene.caption for scene in asked]), "answers_right": _share(said.answers, truths),
        "decisions_right": float(((match > 0.5) == matching).mean()),
    }  # fmt: skip


def _share(a: list[str], b: list[str]) -> float:
    return sum(x == y for x, y in zip(a, b, strict=True)) / max(1, len(b))
