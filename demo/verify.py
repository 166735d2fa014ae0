#!/usr/bin/env python3
"""Measures `verify` on a running server: how well the matching head tells captions of other scenes from the true one, and
how often it rejects the captions of photographs, which the demo models do not know.

    blip-server --dtype f32 --listen 127.0.0.1:8080 &
    python verify.py --url http://127.0.0.1:8080 [--scenes 1000] [--photos DIR] [--out figures/verify-f32.json]

Exit code 1 when fewer than 99 % of the other captions get a match below 0.1.
"""

import argparse
import json
import random
import sys
from pathlib import Path

from make import language
from make.client import Server, each, png
from make.language import Content
from PIL import Image

from evaluate import AT_A_TIME, scene_of

OTHERS = 8  # captions of other scenes for each scene
BELOW, WANTED = 0.1, 99.0
CROPS = 24  # of each photograph


def caption_of(index: int) -> str:
    return language.caption(Content.of(scene_of(index)[0]))


def ask_scene(server: Server, index: int, captions: list[str]) -> tuple[float, float, list[float]]:
    """Matches of the true caption, of the generated caption, and of captions of other scenes."""
    _, picture, _ = scene_of(index)
    image, rng = png(picture), random.Random(f"others {index}")
    others = rng.sample([text for text in captions if text != captions[index]], OTHERS)
    cells = server.ask("/similarity", {"image": image, "texts": [captions[index], *others], "scores": ["match"]})["scores"][0]
    generated = server.ask("/caption", {"image": image, "verify": True})["captions"][0]["match"]
    return cells[0]["match"], generated, [cell["match"] for cell in cells[1:]]


def crops(directory: Path) -> list[Image.Image]:
    """Parts of the photographs, from seeds."""
    found, rng = [], random.Random("crops")
    for path in sorted(directory.iterdir()):
        with Image.open(path) as picture:
            whole = picture.convert("RGB")
        found.append(whole)
        for _ in range(CROPS):
            side = rng.randint(min(whole.size) // 3, min(whole.size))
            left, top = rng.randint(0, whole.width - side), rng.randint(0, whole.height - side)
            found.append(whole.crop((left, top, left + side, top + side)))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--photos", type=Path, help="directory of photographs")
    parser.add_argument("--out", type=Path, help="figures, as JSON")
    args = parser.parse_args()
    server = Server(args.url)
    captions = [caption_of(index) for index in range(args.scenes)]
    asked = each(lambda index: ask_scene(server, index, captions), range(args.scenes), AT_A_TIME, "scenes")
    others = [match for _, _, matches in asked for match in matches]
    percent = lambda values, holds: 100 * sum(map(holds, values)) / max(1, len(values))
    rows = [
        {"what": f"caption of another scene, match below {BELOW}", "asked": len(others), "percent": percent(others, lambda m: m < BELOW)},
        {"what": "true caption, match above 0.5", "asked": len(asked), "percent": percent(asked, lambda a: a[0] > 0.5)},
        {"what": "generated caption, match above 0.5", "asked": len(asked), "percent": percent(asked, lambda a: a[1] > 0.5)},
    ]
    if args.photos:
        said = each(lambda picture: server.ask("/caption", {"image": png(picture), "verify": True}), crops(args.photos), AT_A_TIME, "photos")
        matches = [answer["captions"][0]["match"] for answer in said]
        for most in (0.1, 0.5):
            row = {"what": f"photograph, match of its caption below {most}", "asked": len(matches), "percent": percent(matches, lambda m: m < most)}
            rows.append(row)
    print("| what | asked | share |\n|---|---|---|")
    for row in rows:
        print(f"| {row['what']} | {row['asked']} | {row['percent']:.1f} % |")
    if args.out:
        args.out.write_text(json.dumps({"scenes": args.scenes, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    return 0 if rows[0]["percent"] >= WANTED else 1


if __name__ == "__main__":
    sys.exit(main())
