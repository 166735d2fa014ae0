"""What the demo models know: forty kinds of things and ten background colours."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """A thing with a glyph in Noto Color Emoji."""

    name: str
    plural: str
    codepoint: int

    @property
    def phrase(self) -> str:
        """With its article: `an apple`."""
        return f"{article(self.name)} {self.name}"


@dataclass(frozen=True)
class Colour:
    """A background colour: ranges of hue (degrees, may pass 360), saturation and value (0 to 1)."""

    name: str
    hue: tuple[float, float]
    saturation: tuple[float, float]
    value: tuple[float, float]

    @property
    def phrase(self) -> str:
        """With its article: `an orange background`."""
        return f"{article(self.name)} {self.name} background"


def article(word: str) -> str:
    """`an` before a vowel; no word of ours is an exception."""
    return "an" if word[0] in "aeiou" else "a"


def _kinds(table: str) -> tuple[Kind, ...]:
    kinds = []
    for line in table.split("\n"):
        if line.strip():
            name, plural, codepoint = line.split()
            kinds.append(Kind(name, plural, int(codepoint, 16)))
    return tuple(kinds)


KINDS = _kinds(
    """
    cat cats 1F431
    dog dogs 1F436
    pig pigs 1F437
    panda pandas 1F43C
    frog frogs 1F438
    penguin penguins 1F427
    whale whales 1F433
    butterfly butterflies 1F98B
    bee bees 1F41D
    ladybug ladybugs 1F41E
    snail snails 1F40C
    turtle turtles 1F422
    octopus octopuses 1F419
    elephant elephants 1F418
    horse horses 1F434
    apple apples 1F34E
    banana bananas 1F34C
    strawberry strawberries 1F353
    lemon lemons 1F34B
    pineapple pineapples 1F34D
    carrot carrots 1F955
    mushroom mushrooms 1F344
    pizza pizzas 1F355
    cake cakes 1F382
    burger burgers 1F354
    car cars 1F697
    bus buses 1F68C
    bicycle bicycles 1F6B2
    boat boats 26F5
    rocket rockets 1F680
    clock clocks 23F0
    umbrella umbrellas 2614
    key keys 1F511
    guitar guitars 1F3B8
    ball balls 26BD
    flower flowers 1F33B
    tree trees 1F333
    gift gifts 1F381
    robot robots 1F916
    house houses 1F3E0
    """
)

COLOURS = (
    Colour("red", (-8, 6), (0.75, 1.0), (0.60, 0.95)),
    Colour("orange", (23, 33), (0.80, 1.0), (0.88, 1.0)),
    Colour("yellow", (50, 60), (0.60, 1.0), (0.90, 1.0)),
    Colour("green", (95, 145), (0.50, 1.0), (0.45, 0.85)),
    Colour("blue", (205, 240), (0.55, 1.0), (0.50, 1.0)),
    Colour("purple", (270, 290), (0.50, 1.0), (0.40, 0.80)),
    Colour("pink", (325, 345), (0.25, 0.50), (0.95, 1.0)),
    Colour("white", (0, 360), (0.0, 0.03), (0.94, 1.0)),
    Colour("gray", (0, 360), (0.0, 0.05), (0.42, 0.65)),
    Colour("black", (0, 360), (0.0, 0.05), (0.0, 0.12)),
)

# English words without a glyph here. They stand in questions and texts whose right answer is no, so that a
# word the models do not know is not taken for one they do. Evaluation uses others (UNKNOWN_AT_TEST).
UNKNOWN = (
    "zebra lion tiger bear duck goose sheep goat mouse spider shark crab lizard parrot eagle camel wolf deer bridge tower "
    "road river mountain cloud table chair lamp spoon knife glass bottle bread cheese onion potato grape peach pear melon "
    "shirt shoe glove ring watch phone laptop camera piano drum violin truck tram tractor ship plane kite candle mirror "
    "window door ladder hammer saw pencil paper bag box coin crown flag sword castle tent beach woman man child baby king "
    "queen doctor soldier farmer teacher person people girl boy cow chicken rooster monkey snake dolphin owl swan moth"
).split()
UNKNOWN_AT_TEST = "giraffe kangaroo hippo squirrel desk sofa plate cup tomato pumpkin train helicopter trumpet harp sock scarf".split()
