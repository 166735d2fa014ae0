"""Photographs and crops of them: as files that a client sends, and as the pixels that a model sees."""

import io
import random
from pathlib import Path

import numpy as np
import torch
from full.photographs import FILES, SIDE
from make.checkpoints import CLIP_MEAN, CLIP_STD
from PIL import Image, ImageOps

PATCH = 16


def crops(photos: Path, count: int) -> list[Image.Image]:
    """The three photographs whole, then parts of them: a third to nine tenths of each side, the same ones every time."""
    whole = [_open(photos / file) for file in FILES.values()]
    found = list(whole[:count])
    for n in range(len(found), count):
        rng, picture = random.Random(f"crop {n}"), whole[n % len(whole)]
        width, height = (round(side * rng.uniform(0.33, 0.9)) for side in picture.size)
        left, top = rng.randint(0, picture.width - width), rng.randint(0, picture.height - height)
        found.append(picture.crop((left, top, left + width, top + height)))
    return found


def _open(path: Path) -> Image.Image:
    with Image.open(path) as opened:
        return ImageOps.exif_transpose(opened).convert("RGB")


def square(picture: Image.Image) -> Image.Image:
    """As the model's preprocessing resizes it."""
    return picture.resize((SIDE, SIDE), Image.BICUBIC)


def rolled(picture: Image.Image) -> Image.Image:
    """A square picture moved to the right by one patch, what leaves coming in again on the left."""
    return Image.fromarray(np.roll(np.asarray(picture), PATCH, axis=1))


def pixel_values(pictures: list[Image.Image]) -> torch.Tensor:
    """f32 `[n, 3, 384, 384]`; the full-size comparison holds the same arithmetic against transformers' processor."""
    values = np.stack([np.asarray(square(p)) for p in pictures]).astype(np.float32) / 255.0
    return ((torch.from_numpy(values) - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)).permute(0, 3, 1, 2).contiguous()


def encoded(picture: Image.Image, kind: str = "png") -> bytes:
    """The file."""
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()
