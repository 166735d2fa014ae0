"""Batches of fresh scenes for training: pixels, token ids, labels of the auxiliary heads."""

import random
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from . import language, vocabulary
from .kinds import COLOURS, KINDS
from .language import Content
from .network import IMAGE_SIZE, PATCH_SIZE
from .scenes import SCENE_SIZE, Scene, Thing, draw_scene, glyph, paint, through_jpeg

MEAN = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)
QUESTIONS = 3
TEXTS = 3
PROMPTS = ("a picture of", "a photo of")

_KIND = {kind.name: index for index, kind in enumerate(KINDS)}
_COLOUR = {colour.name: index for index, colour in enumerate(COLOURS)}


@dataclass
class Batch:
    """`n` images with their texts; ids are padded with 0, labels with -100."""

    pixels: torch.Tensor  # [n, 3, side, side]
    caption: torch.Tensor  # [n, tokens], beginning with [DEC]
    caption_labels: torch.Tensor
    question: torch.Tensor  # [n * QUESTIONS, tokens]
    answer: torch.Tensor  # [n * QUESTIONS, tokens], beginning with [DEC]
    answer_labels: torch.Tensor
    question_types: list[str]
    match: torch.Tensor  # [n * TEXTS, tokens]
    match_labels: torch.Tensor
    match_types: list[str]
    contrast: torch.Tensor  # [n, tokens]
    same: torch.Tensor  # [n, n] true where text j also describes image i
    patches: torch.Tensor  # [n, patches] kind, or len(KINDS) for the background
    summary: dict[str, torch.Tensor]  # [n] each


class Writer:
    """Texts to padded ids."""

    def __init__(self) -> None:
        self.tokenizer = vocabulary.tokenizer()
        words = vocabulary.words()
        self.first = words.index("[DEC]")

    def encode(self, texts: list[str]) -> list[list[int]]:
        """With [CLS] and [SEP]."""
        return [encoding.ids for encoding in self.tokenizer.encode_batch(texts)]

    def padded(self, texts: list[str]) -> torch.Tensor:
        return _pad(self.encode(texts), 0)

    def spoken(self, texts: list[str], unsaid: list[str] | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Decoder input beginning with [DEC], and labels already shifted: label i is what follows input i.

        `unsaid` are prompts before the texts: read, but not learnt.
        """
        prompts = self.encode(unsaid) if unsaid else [[0, 0]] * len(texts)
        inputs, labels = [], []
        for ids, prompt in zip(self.encode(texts), prompts):
            row = [self.first, *prompt[1:-1], *ids[1:]]
            inputs.append(row[:-1])
            labels.append([-100] * (len(prompt) - 2) + row[len(prompt) - 1 :])
        return _pad(inputs, 0), _pad(labels, -100)


def _pad(rows: list[list[int]], value: int) -> torch.Tensor:
    width = max(len(row) for row in rows)
    return torch.tensor([row + [value] * (width - len(row)) for row in rows])


class Sprites:
    """Makes sprites from remembered turned glyphs: turning is the dear part, and a degree and a half is not seen."""

    def __init__(self) -> None:
        self.turned: dict[tuple[str, bool, int], Image.Image] = {}

    def __call__(self, thing: Thing, size: int) -> Image.Image:
        key = (thing.kind.name, thing.mirrored, round(thing.angle / 1.5))
        upright = glyph(thing.kind)
        image = self.turned.get(key)
        if image is None:
            image = upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if thing.mirrored else upright
            image = image.rotate(key[2] * 1.5, Image.Resampling.BICUBIC, expand=True)
            self.turned[key] = image
        scale = (thing.width * size / upright.width, thing.height * size / upright.height)
        shape = (max(1, round(image.width * scale[0])), max(1, round(image.height * scale[1])))
        return image.resize(shape, Image.Resampling.BICUBIC)


def picture(scene: Scene, rng: random.Random, sprites: Sprites) -> Image.Image:
    """As the network sees it, after what pictures go through on their way: other sizes, JPEG."""
    lot = rng.random()
    size = SCENE_SIZE if lot < 0.2 else rng.randint(96, 220) if lot < 0.35 else IMAGE_SIZE
    image = paint(scene, size, sprites)
    if rng.random() < 0.25:
        image = through_jpeg(image, rng.randint(50, 95))
    if size != IMAGE_SIZE:
        image = image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
    return image


def normalised(image: Image.Image) -> np.ndarray:
    """`[3, side, side]`."""
    return ((np.asarray(image, dtype=np.float32) / 255 - MEAN) / STD).transpose(2, 0, 1)


def _patches(scene: Scene) -> list[int]:
    """The kind whose box covers a patch's centre."""
    side = IMAGE_SIZE // PATCH_SIZE
    labels = [len(KINDS)] * (side * side)
    for thing in scene.things:
        for row in range(side):
            for column in range(side):
                x, y = (column + 0.5) / side, (row + 0.5) / side
                if abs(x - thing.x) * 2 <= thing.width and abs(y - thing.y) * 2 <= thing.height:
                    labels[row * side + column] = _KIND[thing.kind.name]
    return labels


def _questions(content: Content, rng: random.Random) -> list[tuple[str, str, str]]:
    asked = rng.sample(language.questions(content, rng), QUESTIONS)
    return [(name, q.rstrip("?") if rng.random() < 0.1 else q, answer) for name, q, answer in asked]


def make_batch(size: int, rng: random.Random, writer: Writer, sprites: Sprites) -> Batch:
    """`size` fresh scenes with everything that is asked of them."""
    scenes = [draw_scene(rng) for _ in range(size)]
    contents = [Content.of(scene) for scene in scenes]
    pixels = np.stack([normalised(picture(scene, rng, sprites)) for scene in scenes])
    prompts = [rng.choice(PROMPTS) if rng.random() < 0.15 else "" for _ in scenes]
    caption, caption_labels = writer.spoken([language.caption(c) for c in contents], prompts)
    questions = [entry for c in contents for entry in _questions(c, rng)]
    answer, answer_labels = writer.spoken([a for _, _, a in questions])
    texts = [entry for c in contents for entry in language.matching(c, rng)]
    forms = [language.form(c, rng) if rng.random() < 0.4 else "caption" for c in contents]
    forms = ["caption" if form == "ground" else form for form in forms]
    described = [language.describe(c, form) for c, form in zip(contents, forms)]
    same = [[language.describe(c, form) == said for form, said in zip(forms, described)] for c in contents]
    return Batch(
        pixels=torch.from_numpy(pixels),
        caption=caption,
        caption_labels=caption_labels,
        question=writer.padded([q for _, q, _ in questions]),
        answer=answer,
        answer_labels=answer_labels,
        question_types=[name for name, _, _ in questions],
        match=writer.padded([t for _, t, _ in texts]),
        match_labels=torch.tensor([int(true) for _, _, true in texts]),
        match_types=[name for name, _, _ in texts],
        contrast=writer.padded(described),
        same=torch.tensor(same),
        patches=torch.tensor([_patches(scene) for scene in scenes]),
        summary={
            "left": torch.tensor([_KIND[c.left.name] for c in contents]),
            "right": torch.tensor([_KIND[c.right.name] for c in contents]),
            "count": torch.tensor([c.count - 1 for c in contents]),
            "colour": torch.tensor([_COLOUR[c.colour] for c in contents]),
        },
    )
