"""Scenes: what one shows, and its picture.

A scene is one thing, two or three of a kind, or two different things side by side, on a plain or gradient
background. `draw_scene` decides, `paint` makes the picture; both take their randomness from the generator given,
so that a seed names a scene.
"""

import colorsys
import io
import math
import random
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .kinds import COLOURS, KINDS, Colour, Kind

FONT = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
# The font holds bitmaps of this size only.
FONT_SIZE = 109
# Side in pixels of pictures as users get them; the trainer paints at the size of the network's input.
SCENE_SIZE = 256


@dataclass(frozen=True)
class Thing:
    """A glyph in a scene; centre, width and height as shares of the side, the angle in degrees."""

    kind: Kind
    x: float
    y: float
    width: float
    height: float
    angle: float
    mirrored: bool


@dataclass(frozen=True)
class Scene:
    """Things from left to right, and the background: one shade, or two with the gradient's direction in radians."""

    things: tuple[Thing, ...]
    colour: Colour
    shades: tuple[tuple[float, float, float], ...] = field(compare=False)
    direction: float = 0.0

    @property
    def left(self) -> Kind:
        """The only, or the leftmost kind."""
        return self.things[0].kind

    @property
    def right(self) -> Kind:
        """The only, or the rightmost kind."""
        return self.things[-1].kind

    @property
    def is_pair(self) -> bool:
        """Two different kinds side by side."""
        return self.left != self.right

    @property
    def count(self) -> int:
        """Things of a kind."""
        return 1 if self.is_pair else len(self.things)

    def mirrored(self) -> "Scene":
        """The same scene in a mirror."""
        turned = [Thing(t.kind, 1 - t.x, t.y, t.width, t.height, -t.angle, not t.mirrored) for t in reversed(self.things)]
        return Scene(tuple(turned), self.colour, self.shades, math.pi - self.direction)


@cache
def glyph(kind: Kind) -> Image.Image:
    """The glyph, cropped to what is visible, RGBA."""
    image = Image.new("RGBA", (160, 160), (0, 0, 0, 0))
    font = ImageFont.truetype(FONT, FONT_SIZE)
    ImageDraw.Draw(image).text((10, 10), chr(kind.codepoint), font=font, embedded_color=True)
    box = image.getbbox()
    if box is None:
        raise RuntimeError(f"{FONT} has no glyph for {kind.name}; install fonts-noto-color-emoji")
    return image.crop(box)


@cache
def _visible(kind: Kind) -> np.ndarray:
    """Colours of the glyph's opaque pixels, `[n, 3]`, 0 to 1."""
    pixels = np.asarray(glyph(kind), dtype=np.float32).reshape(-1, 4) / 255
    return pixels[pixels[:, 3] > 0.5, :3][::7]


def _stands_out(kind: Kind, shade: tuple[float, float, float]) -> bool:
    """True when at most 45 % of the glyph has nearly the background's colour."""
    distance = np.abs(_visible(kind) - np.asarray(shade, dtype=np.float32)).sum(1)
    return float((distance < 0.35).mean()) < 0.45


def _shade(colour: Colour, rng: random.Random) -> tuple[float, float, float]:
    hue = rng.uniform(*colour.hue) % 360 / 360
    return colorsys.hsv_to_rgb(hue, rng.uniform(*colour.saturation), rng.uniform(*colour.value))


def _background(kinds: list[Kind], colour: Colour, rng: random.Random) -> tuple[tuple[float, float, float], ...]:
    """One shade or two on which every kind can be seen, where the colour has such."""
    count = 2 if rng.random() < 0.5 else 1
    shades = []
    for _ in range(count):
        shade = _shade(colour, rng)
        for _ in range(20):
            if all(_stands_out(kind, shade) for kind in kinds):
                break
            shade = _shade(colour, rng)
        shades.append(shade)
    return tuple(shades)


def _thing(kind: Kind, x: float, y: float, size: float, rng: random.Random) -> Thing:
    """`size` is the longer side of the upright glyph, stretched a little."""
    source = glyph(kind)
    longest = max(source.size)
    stretch = math.exp(rng.uniform(-0.08, 0.08))
    width, height = size * source.width / longest * stretch, size * source.height / longest / stretch
    return Thing(kind, x, y, width, height, rng.uniform(-15, 15), rng.random() < 0.3)


def _single(kind: Kind, rng: random.Random) -> list[Thing]:
    size = rng.uniform(0.30, 0.72)
    room = (1 - size) / 2 * 0.85
    return [_thing(kind, 0.5 + rng.uniform(-room, room), 0.5 + rng.uniform(-room, room), size, rng)]


def _group(kind: Kind, count: int, rng: random.Random) -> list[Thing]:
    """Anywhere, apart from each other."""
    while True:
        base = rng.uniform(0.26, 0.42 if count == 2 else 0.36)
        sizes = [base * rng.uniform(0.9, 1.1) for _ in range(count)]
        centres = [(rng.uniform(s / 2 + 0.02, 0.98 - s / 2), rng.uniform(s / 2 + 0.02, 0.98 - s / 2)) for s in sizes]
        apart = all(
            math.dist(centres[i], centres[j]) > (sizes[i] + sizes[j]) / 2 * 1.08 for i in range(count) for j in range(i)
        )
        if apart:
            return [_thing(kind, x, y, s, rng) for (x, y), s in sorted(zip(centres, sizes))]


def _pair(left: Kind, right: Kind, rng: random.Random) -> list[Thing]:
    """Side by side: apart in x, near each other in y."""
    while True:
        a, b = rng.uniform(0.26, 0.46), rng.uniform(0.26, 0.46)
        xa, xb = rng.uniform(a / 2 + 0.02, 0.6), rng.uniform(0.4, 0.98 - b / 2)
        if xb - xa > (a + b) / 2 * 1.04:
            middle = rng.uniform(0.35, 0.65)
            ya, yb = (min(max(middle + rng.uniform(-0.14, 0.14), s / 2 + 0.02), 0.98 - s / 2) for s in (a, b))
            return [_thing(left, xa, ya, a, rng), _thing(right, xb, yb, b, rng)]


def compose(left: Kind, right: Kind, count: int, colour: Colour, rng: random.Random) -> Scene:
    """A scene of this content: a pair where the kinds differ, else `count` of a kind."""
    if left != right:
        things = _pair(left, right, rng)
    else:
        things = _single(left, rng) if count == 1 else _group(left, count, rng)
    shades = _background([thing.kind for thing in things], colour, rng)
    return Scene(tuple(things), colour, shades, rng.uniform(0, 2 * math.pi))


def draw_scene(rng: random.Random) -> Scene:
    """A scene at random: a quarter single things, two fifths groups, the rest pairs."""
    colour = rng.choice(COLOURS)
    kind = rng.choice(KINDS)
    lot = rng.random()
    if lot < 0.25:
        return compose(kind, kind, 1, colour, rng)
    if lot < 0.65:
        return compose(kind, kind, rng.choice((2, 3)), colour, rng)
    return compose(kind, rng.choice([other for other in KINDS if other != kind]), 1, colour, rng)


def background(scene: Scene, size: int) -> Image.Image:
    """The background alone, RGB."""
    first = tuple(round(255 * v) for v in scene.shades[0])
    if len(scene.shades) == 1:
        return Image.new("RGB", (size, size), first)
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    ramp = np.cos(scene.direction) * axis[None, :] + np.sin(scene.direction) * axis[:, None]
    ramp = np.clip(ramp / 1.42 + 0.5, 0, 1)[..., None]
    start, end = (np.asarray(shade, dtype=np.float32) * 255 for shade in scene.shades)
    return Image.fromarray((start + (end - start) * ramp + 0.5).astype(np.uint8))


def sprite(thing: Thing, size: int) -> Image.Image:
    """The glyph as it appears in a picture of `size` pixels a side, RGBA."""
    image = glyph(thing.kind)
    if thing.mirrored:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image = image.rotate(thing.angle, Image.Resampling.BICUBIC, expand=True)
    upright = glyph(thing.kind)
    scale = (thing.width * size / upright.width, thing.height * size / upright.height)
    shape = (max(1, round(image.width * scale[0])), max(1, round(image.height * scale[1])))
    # Pillow multiplies by alpha itself when it resizes RGBA.
    return image.resize(shape, Image.Resampling.BICUBIC)


def paint(scene: Scene, size: int = SCENE_SIZE, sprites=sprite) -> Image.Image:
    """The picture, RGB, `size` pixels a side. `sprites` makes a thing's image; the trainer gives one with a memory."""
    picture = background(scene, size)
    for thing in scene.things:
        image = sprites(thing, size)
        corner = (round(thing.x * size - image.width / 2), round(thing.y * size - image.height / 2))
        picture.paste(image, corner, image)
    return picture


def through_jpeg(picture: Image.Image, quality: int) -> Image.Image:
    """As it looks after a round through JPEG."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    buffer.seek(0)
    return Image.open(buffer).convert("RGB")
