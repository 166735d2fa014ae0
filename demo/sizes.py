#!/usr/bin/env python3
"""Measures what other image sizes cost the demo models in accuracy and time. They were trained at 128 pixels.

    blip-server --dtype f32 --model small=demo-caption?image_size=96 --model trained=demo-caption \\
        --model large=demo-caption?image_size=160 &
    python sizes.py --url http://127.0.0.1:8080 [--scenes 1000] [--out figures/sizes-f32.json]
"""

import argparse
import json
import sys
import time
from pathlib import Path

from make import language
from make.client import Server, each, png
from make.language import Content

from evaluate import AT_A_TIME, scene_of


def ask(server: Server, model: str, index: int) -> bool:
    """Whether the caption of a scene is exactly right."""
    scene, picture, _ = scene_of(index)
    said = server.ask("/caption", {"model": model, "image": png(picture)})["captions"][0]["text"]
    return said == language.caption(Content.of(scene))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--out", type=Path, help="figures, as JSON")
    args = parser.parse_args()
    server, rows = Server(args.url), []
    for model in server.ask("/info")["models"]:
        if model["role"] != "caption":
            continue
        began = time.monotonic()
        right = each(lambda index: ask(server, model["name"], index), range(args.scenes), AT_A_TIME, model["name"])
        seconds = time.monotonic() - began
        rows.append({"image_size": model["image_size"], "scenes": args.scenes, "percent": 100 * sum(right) / len(right), "seconds": seconds})
    print("| image size | captions exactly right |\n|---|---|")
    for row in rows:
        print(f"| {row['image_size']} | {row['percent']:.1f} % |")
    if args.out:
        args.out.write_text(json.dumps({"rows": rows}, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
