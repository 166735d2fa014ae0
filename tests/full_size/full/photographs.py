"""The photographs: the files as a client sends them and the pixels that the reference sees."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from make.checkpoints import CLIP_MEAN, CLIP_STD
from make.photos import normalised
from PIL import Image, ImageOps
from transformers import BlipImageProcessorPil

FILES = {"chelsea": "chelsea.png", "coffee": "coffee.png", "rocket": "rocket.jpg"}
SIDE = 384


@dataclass
class Photograph:
    """`exact` is a PNG, which every decoder reads alike; `jpeg` the original file where it is none, else None."""

    exact: bytes
    jpeg: bytes | None
    pixel_values: torch.Tensor


def load(directory: Path, names: list[str]) -> dict[str, Photograph]:
    """The photographs by name."""
    return {name: _load(directory / FILES[name]) for name in names}


def _load(path: Path) -> Photograph:
    data = path.read_bytes()
    with Image.open(io.BytesIO(data)) as opened:
        picture = ImageOps.exif_transpose(opened).convert("RGB")
    resized = np.asarray(picture.resize((SIDE, SIDE), Image.BICUBIC))
    pixel_values = normalised(resized, CLIP_MEAN, CLIP_STD)
    official = BlipImageProcessorPil()(picture, return_tensors="pt")["pixel_values"]
    assert (official - pixel_values).abs().max() < 1e-6
    if path.suffix == ".png":
        return Photograph(data, None, pixel_values)
    encoded = io.BytesIO()
    picture.save(encoded, "png")
    return Photograph(encoded.getvalue(), data, pixel_values)
