"""What the hardware asks at least: operations and bytes of BLIP base at 384 pixels, by part. Called by roofline.py.

A part of `bench` that says its own `operations` or `bytes` is believed; the others are known by their names.
"""

import re
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
CROSS = LAYERS * _product(WIDTH, 2 * WIDTH)
# A decoder layer reads four square matrices of self-attention, two of cross-attention and the feed-forward part; the head an own one before the vocabulary.
HEAD_WEIGHTS = VOCABULARY * WIDTH + WIDTH * WIDTH
STACK_WEIGHTS = LAYERS * (6 * WIDTH * WIDTH + 2 * WIDTH * INNER)
CROSS_VALUES = LAYERS * 2 * IMAGE_TOKENS * WIDTH


def decode(dtype: str, batch: int) -> Work:
    """Twenty steps: the weights once a step, keys and values over the image once a step and image."""
    weights = (STACK_WEIGHTS + HEAD_WEIGHTS) * WEIGHT_BYTES[dtype]
    states = CROSS_VALUES * STATE_BYTES[dtype] * batch
    return Work(bytes=TOKENS * (weights + states))


# The first pattern found in a part's name decides; what none fits has no limit of its own (norms, activations, softmax).
PATTERNS: list[tuple[str, object]] = [
    (r"cross.*att", lambda dtype, batch: Work(bytes=TOKENS * batch * CROSS_VALUES * STATE_BYTES[dtype])),
    (r"cross.*(kv|key|value)", lambda dtype, batch: Work(operations=batch * CROSS)),
    (r"lm.?head|vocab|logits", lambda dtype, batch: Work(bytes=TOKENS * HEAD_WEIGHTS * WEIGHT_BYTES[dtype])),
    (r"decod|step|text", decode),
    (r"vision|tower|encode", lambda dtype, batch: Work(operations=batch * VISION)),
    (r"patch", lambda dtype, batch: Work(operations=batch * PATCHES)),
    (r"qkv|query", lambda dtype, batch: Work(operations=batch * LAYERS * LAYER["qkv"])),
    (r"(attention|attn).*(out|proj)|proj", lambda dtype, batch: Work(operations=batch * LAYERS * LAYER["projection"])),
    (r"attention|attn", lambda dtype, batch: Work(operations=batch * LAYERS * LAYER["attention"])),
    (r"fc1|up|feed.forward.in|mlp.in", lambda dtype, batch: Work(operations=batch * LAYERS * LAYER["up"])),
    (r"fc2|down|feed.forward.out|mlp.out", lambda dtype, batch: Work(operations=batch * LAYERS * LAYER["down"])),
    (r"feed.forward|mlp", lambda dtype, batch: Work(operations=batch * LAYERS * (LAYER["up"] + LAYER["down"]))),
]


def of_part(part: dict, dtype: str, batch: int) -> Work | None:
    """What a part has to do at least; None if nothing is known."""
    if "operations" in part or "bytes" in part:
        return Work(part.get("operations") or 0.0, part.get("bytes") or 0.0)
    for pattern, work in PATTERNS:
        if re.search(pattern, part["part"].lower()):
            return work(dtype, batch)
    return None


def of_task(task: str, dtype: str, batch: int, limits: dict) -> float:
    """Seconds of a whole batch at the limit, one stage after another."""
    seconds = Work(operations=batch * VISION).seconds(limits)
    if task == "caption":
        seconds += Work(operations=batch * CROSS).seconds(limits) + decode(dtype, batch).seconds(limits)
    return seconds
