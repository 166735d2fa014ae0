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
# How the photographs that are no JPEGs yet become one: what cameras and web sites write.
JPEGS = {"chelsea": {"quality": 85, "progressive": True}, "coffee": {"quality": 75, "subsampling": "4:2:2", "restart_marker_blocks": 4}}
SIDE = 384


@dataclass
class Photograph:
    """`file` is the JPEG that a client sends, `pixel_values` what the reference makes of it."""

    file: bytes
    pixel_values: torch.Tensor


def load(directory: Path, names: list[str]) -> dict[str, Photograph]:
    """The photographs by name."""
    return {name: _load(name, directory / FILES[name]) for name in names}


def _load(name: str, path: Path) -> Photograph:
    data = path.read_bytes()
    if options := JPEGS.get(name):
        encoded = io.BytesIO()
        Image.open(path).convert("RGB").save(encoded, "JPEG", **options)
        data = encoded.getvalue()
    with Image.open(io.BytesIO(data)) as opened:
        picture = ImageOps.exif_transpose(opened).convert("RGB")
    resized = np.asarray(picture.resize((SIDE, SIDE), Image.BICUBIC))
    pixel_values = normalised(resized, CLIP_MEAN, CLIP_STD)
    official = BlipImageProcessorPil()(picture, return_tensors="pt")["pixel_values"]
    assert (official - pixel_values).abs().max() < 1e-6
    return Photograph(data, pixel_values)
