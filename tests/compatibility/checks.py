"""What the checks of all Python libraries have in common: the picture, the expected answers, and plain HTTP requests."""

import base64
import json
import sys
import urllib.error
import urllib.request
from pathlib import Path

SERVER, PICTURE = sys.argv[1:]
FILE = Path(PICTURE).read_bytes()
BASE64 = base64.b64encode(FILE).decode()
DATA_URI = f"data:image/png;base64,{BASE64}"
# Another scene, for conversations with several images
OTHER_FILE = Path(PICTURE).with_name("rocket.png").read_bytes()
OTHER_DATA_URI = f"data:image/png;base64,{base64.b64encode(OTHER_FILE).decode()}"

CAPTION = "two cats on a blue background"
QUESTION = "how many cats are there?"
ANSWER = "2"


def refused(error, call, *texts):
    """Checks that the call raises this error, and that its text contains each of the texts. Returns the error."""
    try:
        answer = call()
    except error as raised:
        missing = [text for text in texts if text not in str(raised)]
        assert not missing, f"{missing} not in: {raised}"
        return raised
    raise AssertionError(f"expected an error with {texts}, but got: {answer}")


def cosine(left, right):
    """Returns the cosine similarity of two vectors."""
    dot = sum(a * b for a, b in zip(left, right, strict=True))
    return dot / (sum(a * a for a in left) * sum(b * b for b in right)) ** 0.5


def equal(left, right):
    """True if the numbers of two vectors are equal, apart from rounding to f32."""
    return len(left) == len(right) and all(abs(a - b) <= 1e-6 for a, b in zip(left, right))


def http(method, path, body=None, content_type="application/json"):
    """Sends a request without a library, for clients that have none. Returns status, media type and body."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(SERVER + path, data, {"content-type": content_type}, method=method)
    try:
        response = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        response = error
    with response:
        return response.status, response.headers.get_content_type(), response.read().decode()
