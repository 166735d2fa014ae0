"""Real images, and their places in a request. Schemathesis can only generate strings of the right form."""

import base64
import io
import re

from PIL import Image
from schemathesis.transport.serialization import Binary


def pictures():
    """A few small files of every format, and two that are none."""
    made = []
    for kind, mode, size in [
        ("PNG", "RGB", (3, 2)), ("PNG", "RGBA", (17, 9)), ("PNG", "I;16", (5, 5)), ("PNG", "1", (1, 1)),
        ("JPEG", "RGB", (32, 20)), ("JPEG", "L", (8, 64)), ("GIF", "P", (4, 4)), ("BMP", "RGB", (2, 3)),
        ("WEBP", "RGB", (16, 16)),
    ]:
        buffer = io.BytesIO()
        Image.new(mode, size, 1).save(buffer, kind)
        made.append(buffer.getvalue())
    cut = made[4][: len(made[4]) // 2]
    return [*made, cut, b"<svg xmlns='http://www.w3.org/2000/svg'/>"]


PICTURES = pictures()


def image_value(rng):
    """A picture as an image value: base64 or a data URI."""
    text = base64.b64encode(rng.choice(PICTURES)).decode()
    return text if rng.random() < 0.5 else f"data:image/png;base64,{text}"


# Image values with the bytes of an image or a URL. Anything else is negative data and stays as it is. White space is
# removed before the match, which is simpler than the schema's own pattern and accepts the same values.
IMAGE_VALUE = re.compile(
    r"(?:[Dd][Aa][Tt][Aa]:[^,]*;[Bb][Aa][Ss][Ee]64,)?(?:[A-Za-z0-9+/_-]{4})*"
    r"(?:[A-Za-z0-9+/_-]{4}|[A-Za-z0-9+/_-]{2}[AEIMQUYcgkosw048]=?|[A-Za-z0-9+/_-][AQgw](?:==)?)"
    r"|[Hh][Tt][Tt][Pp][Ss]?://[\s\S]*"
)
IMAGE_ID = re.compile(r"[Ss][Hh][Aa]256:[0-9A-Fa-f]{64}")
WHITE_SPACE = re.compile(r"[ \t\n\f\r]+")
# Fields with one image value in a JSON body, at any depth; `image_url` and `url` are those of the OpenAI API.
IMAGE_FIELDS = {"image", "image_url", "url"}


def is_image_value(value):
    """Does the text have the form of an image value? It may still hold no image."""
    return any(form.fullmatch(WHITE_SPACE.sub("", value)) for form in (IMAGE_VALUE, IMAGE_ID))


def with_images(value, rng):
    """The JSON body with pictures in the place of most well-formed image values."""
    if isinstance(value, list):
        return [with_images(item, rng) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        name: with_image(item, rng) if name in IMAGE_FIELDS and isinstance(item, str)
        else [with_image(entry, rng) for entry in item] if name == "images" and isinstance(item, list)
        else with_images(item, rng)
        for name, item in value.items()
    }


def with_image(value, rng):
    if isinstance(value, str) and IMAGE_VALUE.fullmatch(WHITE_SPACE.sub("", value)) and rng.random() < 0.75:
        return image_value(rng)
    return value


def with_files(body, rng):
    """The form with pictures in the place of most files."""
    def file(value):
        is_file = isinstance(value, (bytes, Binary))
        return Binary(rng.choice(PICTURES)) if is_file and rng.random() < 0.75 else value

    return {
        name: file(value) if name == "image" and not isinstance(value, list)
        else [file(item) for item in value] if name in ("image", "images") and isinstance(value, list)
        else value
        for name, value in body.items()
    }
