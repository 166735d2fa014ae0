"""What is said about a scene: its caption, questions with their answers, and texts that match it or do not."""

import random
from dataclasses import dataclass, replace

from .kinds import COLOURS, KINDS, UNKNOWN, Kind
from .scenes import Scene

NUMBERS = {1: "one", 2: "two", 3: "three"}


@dataclass(frozen=True)
class Content:
    """What a scene shows, without where and how: what a text can be right or wrong about."""

    left: Kind
    right: Kind
    count: int
    colour: str

    @classmethod
    def of(cls, scene: Scene) -> "Content":
        return cls(scene.left, scene.right, scene.count, scene.colour.name)

    @property
    def is_pair(self) -> bool:
        return self.left != self.right

    @property
    def kinds(self) -> tuple[Kind, ...]:
        return (self.left, self.right) if self.is_pair else (self.left,)

    def number_of(self, kind: Kind) -> int:
        """Things of this kind, 0 where there is none."""
        return self.count if kind in self.kinds else 0


def things(content: Content) -> str:
    """`a cat`, `two cats`, `a cat and a dog`: left first."""
    if content.is_pair:
        return f"{content.left.phrase} and {content.right.phrase}"
    return content.left.phrase if content.count == 1 else f"{NUMBERS[content.count]} {content.left.plural}"


def ground(colour: str) -> str:
    """`a blue background`."""
    return next(c.phrase for c in COLOURS if c.name == colour)


def caption(content: Content) -> str:
    """The one caption of a scene: `a cat to the left of a dog on a blue background`."""
    if content.is_pair:
        return f"{content.left.phrase} to the left of {content.right.phrase} on {ground(content.colour)}"
    return f"{things(content)} on {ground(content.colour)}"


# ---- questions ----

WHAT = ("what is in the picture?", "what is this?", "what do you see?", "what is in the image?")
COLOUR = (
    "what color is the background?",
    "what colour is the background?",
    "what is the background color?",
    "what is the color of the background?",
)


def _what(content: Content, rng: random.Random) -> tuple[str, str]:
    return rng.choice(WHAT), things(content)


def _background(content: Content, rng: random.Random) -> tuple[str, str]:
    return rng.choice(COLOUR), content.colour


def _is_background(content: Content, rng: random.Random) -> tuple[str, str]:
    right = rng.random() < 0.5
    colour = content.colour if right else rng.choice([c.name for c in COLOURS if c.name != content.colour])
    return f"is the background {colour}?", "yes" if right else "no"


def _absent(content: Content, rng: random.Random) -> Kind:
    return rng.choice([kind for kind in KINDS if kind not in content.kinds])


def _count(content: Content, rng: random.Random) -> tuple[str, str]:
    kind = rng.choice(content.kinds) if rng.random() < 0.85 else _absent(content, rng)
    wording = rng.choice(("how many {} are there?", "how many {} are in the picture?", "how many {}?"))
    return wording.format(kind.plural), str(content.number_of(kind))


def _presence(content: Content, rng: random.Random) -> tuple[str, str]:
    wording = rng.choice(("is there {a}?", "is there {a} in the picture?", "are there any {s}?", "do you see {a}?"))
    lot = rng.random()
    if lot < 0.5:
        kind, answer = rng.choice(content.kinds), "yes"
    elif lot < 0.9:
        kind, answer = _absent(content, rng), "no"
    else:
        word = rng.choice(UNKNOWN)
        kind, answer = Kind(word, word if word.endswith("s") else f"{word}s", 0), "no"
    return wording.format(a=kind.phrase, s=kind.plural), answer


def _is_count(content: Content, rng: random.Random) -> tuple[str, str]:
    kind = content.left
    right = rng.random() < 0.5
    count = content.count if right else rng.choice([n for n in NUMBERS if n != content.count])
    text = f"is there one {kind.name}?" if count == 1 else f"are there {NUMBERS[count]} {kind.plural}?"
    return text, "yes" if right else "no"


def _side(content: Content, rng: random.Random) -> tuple[str, str]:
    side = rng.choice(("left", "right"))
    wording = rng.choice(("what is on the {}?", "what is on the {} side?"))
    return wording.format(side), (content.left if side == "left" else content.right).phrase


def _beside(content: Content, rng: random.Random) -> tuple[str, str]:
    """Of pairs; half the time nothing stands there."""
    side, kind = rng.choice(("left", "right")), rng.choice((content.left, content.right))
    there = (side == "left") == (kind == content.right)
    other = content.left if kind == content.right else content.right
    wording = rng.choice(("what is to the {} of the {}?", "what is {} of the {}?"))
    return wording.format(side, kind.name), other.phrase if there else "nothing"


def _next(content: Content, rng: random.Random) -> tuple[str, str]:
    """What stands next to, or beside, the only thing: nothing; for pairs: the other."""
    if content.is_pair:
        kind, other = rng.choice(((content.left, content.right), (content.right, content.left)))
        return f"what is next to the {kind.name}?", other.phrase
    side = rng.choice(("next to", "to the left of", "to the right of", "left of", "right of"))
    return f"what is {side} the {content.left.name}?", "nothing"


def _is_beside(content: Content, rng: random.Random) -> tuple[str, str]:
    side = rng.choice(("left", "right"))
    first, second = rng.choice(((content.left, content.right), (content.right, content.left)))
    wording = rng.choice(("is the {} to the {} of the {}?", "is the {} {} of the {}?"))
    true = (side == "left") == (first == content.left)
    return wording.format(first.name, side, second.name), "yes" if true else "no"


def questions(content: Content, rng: random.Random) -> list[tuple[str, str, str]]:
    """One question of each type that fits the scene: (type, question, answer)."""
    asked = [("what", _what), ("background", _background), ("is background", _is_background), ("how many", _count)]
    asked += [("presence", _presence), ("next to", _next)]
    if content.is_pair:
        asked += [("side", _side), ("beside", _beside), ("is beside", _is_beside)]
    elif content.count > 1:
        asked = [entry for entry in asked if entry[0] != "next to"]
    if not content.is_pair:
        asked += [("is count", _is_count)]
    return [(name, *ask(content, rng)) for name, ask in asked]


# ---- texts to match ----


def describe(content: Content, form: str) -> str:
    """The text of a form; see `forms`."""
    if form == "caption":
        return caption(content)
    if form == "things":
        return things(content)
    if form == "relation":
        return f"{content.left.phrase} to the left of {content.right.phrase}"
    if form == "reverse":
        return f"{content.right.phrase} to the right of {content.left.phrase}"
    if form == "reverse caption":
        return f"{content.right.phrase} to the right of {content.left.phrase} on {ground(content.colour)}"
    if form == "and":
        return f"{things(content)} on {ground(content.colour)}"
    if form == "ground":
        return ground(content.colour)
    raise ValueError(form)


# How often each way to describe a scene is drawn.
PAIR_FORMS = {"caption": 6, "relation": 1, "reverse": 1, "reverse caption": 1, "things": 1, "and": 1, "ground": 0.5}
OTHER_FORMS = {"caption": 6, "things": 3, "ground": 0.5}
# Which forms say it, so that a text that is wrong in it is wrong.
SAYS = {
    "object": {"caption", "things", "relation", "reverse", "reverse caption", "and"},
    "colour": {"caption", "reverse caption", "and", "ground"},
    "count": {"caption", "things"},
    "relation": {"caption", "relation", "reverse", "reverse caption"},
}


def form(content: Content, rng: random.Random, says: str | None = None) -> str:
    """A way to describe the scene, among those that say `says`."""
    weights = PAIR_FORMS if content.is_pair else OTHER_FORMS
    names = [name for name in weights if says is None or name in SAYS[says]]
    return rng.choices(names, [weights[name] for name in names])[0]


def wrong(content: Content, error: str, rng: random.Random) -> Content:
    """The content with one thing wrong: `object`, `colour` (the background's), `count` or `relation`."""
    if error == "object":
        word = rng.choice(UNKNOWN)
        other = Kind(word, word if word.endswith("s") else f"{word}s", 0) if rng.random() < 0.1 else _absent(content, rng)
        if not content.is_pair:
            return replace(content, left=other, right=other)
        return replace(content, left=other) if rng.random() < 0.5 else replace(content, right=other)
    if error == "colour":
        return replace(content, colour=rng.choice([c.name for c in COLOURS if c.name != content.colour]))
    if error == "count":
        return replace(content, count=rng.choice([n for n in NUMBERS if n != content.count]))
    return replace(content, left=content.right, right=content.left)


def matching(content: Content, rng: random.Random) -> list[tuple[str, str, bool]]:
    """One text that is true, one with a wrong count or relation, one with a wrong thing or colour."""
    hard = "relation" if content.is_pair else "count"
    easy = rng.choice(("object", "object", "colour"))
    return [
        ("true", describe(content, form(content, rng)), True),
        (hard, describe(wrong(content, hard, rng), form(content, rng, hard)), False),
        (easy, describe(wrong(content, easy, rng), form(content, rng, easy)), False),
    ]
