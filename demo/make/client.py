"""A small client of a running blip-server: JSON in and out, several requests at a time, refusals retried."""

import base64
import http.client
import io
import json
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from PIL import Image


class Server:
    """Keeps one connection a thread."""

    def __init__(self, url: str) -> None:
        self.host = urllib.parse.urlsplit(url).netloc
        self.local = threading.local()
        self.refused = 0

    def _send(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes, str | None]:
        if not hasattr(self.local, "connection"):
            self.local.connection = http.client.HTTPConnection(self.host, timeout=60)
        connection = self.local.connection
        try:
            connection.request(method, path, body, {"content-type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read(), response.headers.get("retry-after")
        except (http.client.HTTPException, ConnectionError):
            connection.close()
            raise

    def ask(self, path: str, document: dict | None = None) -> dict:
        """The answer; waits and tries again when the server is busy, raises when it refuses."""
        body = None if document is None else json.dumps(document).encode()
        while True:
            status, text, pause = self._send("GET" if body is None else "POST", path, body)
            if status == 200:
                return json.loads(text)
            if status not in (429, 503):
                raise RuntimeError(f"{path}: {status} {text.decode()}")
            self.refused += 1
            time.sleep(float(pause or 1))


def png(picture: Image.Image) -> str:
    """A picture as an image value: base64 of a PNG."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def each(work: Callable, items: Iterable, at_a_time: int, label: str) -> list:
    """`work` of every item in order, with a count on standard error."""
    import sys

    items, results, began = list(items), [], time.monotonic()
    with ThreadPoolExecutor(at_a_time) as pool:
        for done, result in enumerate(pool.map(work, items), 1):
            results.append(result)
            if done % 50 == 0 or done == len(items):
                print(f"\r{label}: {done}/{len(items)}, {time.monotonic() - began:.0f} s", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return results
