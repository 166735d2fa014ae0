"""What the hardware asks at least: operations and bytes of BLIP base at 384 pixels, by part. Called by roofline.py.

A part of `bench` that says its own `operations` or `bytes` is believed; the others are known by their names.
"""

from dataclasses import dataclass

IMAGE_TOKENS, WIDTH, INNER, LAYERS, PATCH_VALUES, VOCABULARY, TOKENS = 577, 768, 3072, 12, 768, 30524, 20
# Bytes of a weight, and of a key or value over the image.
WEIGHT_BYTES = {"f32": 4, "bf16": 2, "f16": 2, "int8": 1}
STATE_BYTES = {"f32": 4, "bf16": 2, "f16": 2, "int8": 2}


@dataclass(frozen=True)
class Work:
    """At least this many operations and bytes for one batch."""

    operations: float = 0.0
    bytes: float = 0.0

    def seconds(self, limits: dict) -> float:
        """Whichever of arithmetic and memory takes longer."""
        return max(self.operations / limits["operations_per_second"], self.bytes / limits["read_bytes_per_second"])


def _product(inner: int, columns: int, rows: int = IMAGE_TOKENS) -> float:
    return 2.0 * rows * inner * columns


PATCHES = _product(PATCH_VALUES, WIDTH, IMAGE_TOKENS - 1)
# One image through one layer, by the matrix product.
LAYER = {
    "qkv": _product(WIDTH, 3 * WIDTH), "attention": 2 * _product(IMAGE_TOKENS, WIDTH), "projection": _product(WIDTH, WIDTH),
    "up": _product(WIDTH, INNER), "down": _product(INNER, WIDTH),
}  # fmt: skip
VISION = PATCHES + LAYERS * sum(LAYER.values())
HEADS = 12
# A decoder layer reads four square matrices of self-attention, four of cross-attention and the feed-forward part; the head an own one before the vocabulary.
HEAD_WEIGHTS = VOCABULARY * WIDTH + WIDTH * WIDTH
STACK_WEIGHTS = LAYERS * (8 * WIDTH * WIDTH + 2 * WIDTH * INNER)
FEATURES = IMAGE_TOKENS * WIDTH
# Captions attend to features: each head's scores and sums run over their whole width, and two of the square matrices belong to it.
CROSS_WEIGHTS = LAYERS * 2 * WIDTH * WIDTH
CROSS_ROW = LAYERS * (2 * 2 * HEADS * FEATURES + 2 * 2 * WIDTH * WIDTH)


def decode(dtype: str, batch: int) -> Work:
    """Twenty steps: the weights once a step, an image's features once a step and image."""
    weights = (STACK_WEIGHTS + HEAD_WEIGHTS) * WEIGHT_BYTES[dtype]
    return Work(bytes=TOKENS * (weights + batch * FEATURES * STATE_BYTES[dtype]))


def cross_attention(dtype: str, batch: int) -> Work:
    """Twenty steps of cross-attention over features."""
    read = CROSS_WEIGHTS + batch * FEATURES
    return Work(operations=TOKENS * batch * CROSS_ROW, bytes=TOKENS * read * STATE_BYTES[dtype])


# By the names that `bench` gives; what is not here has no limit of its own (norms, copies, a text's own keys and values).
PARTS = {
    "cross attention": cross_attention,
    "self attention": lambda dtype, batch: Work(operations=batch * LAYERS * LAYER["attention"]),
    "patch embedding": lambda dtype, batch: Work(operations=batch * PATCHES),
}


def of_part(part: dict, dtype: str, batch: int) -> Work | None:
    """What a part has to do at least; None if nothing is known."""
    if "operations" in part or "bytes" in part:
        return Work(part.get("operations") or 0.0, part.get("bytes") or 0.0)
    work = PARTS.get(part["part"])
    return work(dtype, batch) if work else None


def of_task(task: str, dtype: str, batch: int, limits: dict) -> float:
    """Seconds of a whole batch at the limit, one stage after another."""
    seconds = Work(operations=batch * VISION).seconds(limits)
    if task == "caption":
        seconds += decode(dtype, batch).seconds(limits)
    return seconds
