#!/usr/bin/env python3
"""Paints the dozen sample scenes of README, tests and playground, with what is true of them.

    python samples.py [--out demo/scenes]

`scenes.json` says for every picture its caption, questions with their answers, and texts of which the first is true.
"""

import argparse
import json
import random
from pathlib import Path

from make import language
from make.kinds import COLOURS, KINDS
from make.language import Content
from make.scenes import compose, paint

# File, left kind, right kind or none, count, colour, seed of the layout.
SAMPLES = [
    ("two-cats", "cat", None, 2, "blue", 1),
    ("cat-and-dog", "cat", "dog", 1, "green", 1),
    ("three-bees", "bee", None, 3, "white", 1),
    ("rocket", "rocket", None, 1, "black", 1),
    ("apple-and-banana", "apple", "banana", 1, "purple", 1),
    ("three-frogs", "frog", None, 3, "pink", 1),
    ("whale", "whale", None, 1, "orange", 1),
    ("umbrella-and-elephant", "umbrella", "elephant", 1, "yellow", 1),
    ("two-robots", "robot", None, 2, "red", 1),
    ("tree-and-house", "tree", "house", 1, "blue", 1),
    ("pizza", "pizza", None, 1, "gray", 1),
    ("octopus-and-guitar", "octopus", "guitar", 1, "white", 1),
]


def texts(content: Content, rng: random.Random) -> list[str]:
    """The true caption first, then texts that are wrong in one thing each."""
    wrong = [language.wrong(content, error, rng) for error in ("object", "colour", "relation" if content.is_pair else "count")]
    return [language.caption(content), *(language.caption(other) for other in wrong)]


def main() -> None:
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=here / "scenes")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    kinds, colours = {kind.name: kind for kind in KINDS}, {colour.name: colour for colour in COLOURS}
    documents = []
    for name, left, right, count, colour, seed in SAMPLES:
        rng = random.Random(f"sample {name} {seed}")
        scene = compose(kinds[left], kinds[right or left], count, colours[colour], rng)
        paint(scene).save(args.out / f"{name}.png", optimize=True)
        content = Content.of(scene)
        asked = [{"question": question, "answer": answer} for _, question, answer in language.questions(content, rng)]
        document = {"file": f"{name}.png", "caption": language.caption(content)}
        documents.append(document | {"questions": asked, "texts": texts(content, rng)})
    (args.out / "scenes.json").write_text(json.dumps(documents, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
