#!/usr/bin/env python3
"""Writes distinct JPEGs for the load generator: crops of three photographs.

Usage: images.py --photos DIR --out DIR [--count 256] [--size 640x480]
"""

import argparse
from pathlib import Path

from perf import pictures
from PIL import Image

QUALITY = 85


def main() -> None:
    """`00000.jpg` and so on; the same ones every time."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--photos", type=Path, required=True, help="directory of chelsea.png, coffee.png and rocket.jpg")
    arguments.add_argument("--out", type=Path, required=True)
    arguments.add_argument("--count", type=int, default=256)
    arguments.add_argument("--size", type=lambda v: tuple(int(n) for n in v.split("x")), default=(640, 480), help="4000x3000 for 12 megapixels")
    args = arguments.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for n, picture in enumerate(pictures.crops(args.photos, args.count)):
        picture.resize(args.size, Image.BICUBIC).save(args.out / f"{n:05}.jpg", quality=QUALITY)
        if (n + 1) % 64 == 0 or n + 1 == args.count:
            print(f"{n + 1}/{args.count}", flush=True)


if __name__ == "__main__":
    main()
