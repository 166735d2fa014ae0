"""Requests to every endpoint of the server, and requests that it must refuse."""

import base64
import http.client
import json
import struct
import threading
import time
import urllib.parse
import zlib
from pathlib import Path

ROOT = Path(__file__).parents[2]
KEY = "a-key-for-the-monitoring-test"
WRONG_KEY = "a-wrong-key-for-the-monitoring-test"


def png(number: int) -> bytes:
    """Returns a PNG of 8 x 8 pixels whose colour is the number."""
    row = b"\0" + bytes([number >> 16 & 255, number >> 8 & 255, number & 255]) * 8
    header = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in [(b"IHDR", header), (b"IDAT", zlib.compress(row * 8)), (b"IEND", b"")]
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def encoded(picture: bytes) -> str:
    return base64.b64encode(picture).decode()


def call(url: str, method: str, path: str, body=None, content_type="application/json", key: str | None = KEY) -> int:
    """Sends one request, reads the whole answer, and returns the status. `body` is bytes, or a value that becomes JSON."""
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(url).netloc, timeout=60)
    try:
        headers = {"content-type": content_type} if body is not None else {}
        if key:
            headers["authorization"] = f"Bearer {key}"
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection.request(method, path, data, headers)
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()


def endpoints(picture: bytes) -> list[tuple]:
    """Returns one request for each endpoint: method, path, body, expected status."""
    image = encoded(picture)
    caption = {"image": image}
    question = "how many cats are there?"
    texts = ["two cats", "a rocket"]
    message = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}}]}
    lines = [
        {"id": "a", "task": "vqa", "image": image, "question": question},
        {"id": "b", "task": "caption", "image": image},
        {"id": "c", "task": "caption", "image": "AAAA"},
    ]
    bulk = "".join(json.dumps(line) + "\n" for line in lines).encode()
    tool = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "caption", "arguments": caption}}
    return [
        ("POST", "/caption", caption, 200),
        ("POST", "/caption", {**caption, "num_beams": 3}, 200),
        ("POST", "/caption", {**caption, "stream": True}, 200),
        ("POST", "/caption/batch", {"inputs": [caption, {"image": "AAAA"}]}, 200),
        ("POST", "/vqa", {"image": image, "question": question}, 200),
        ("POST", "/vqa/batch", {"inputs": [{"image": image, "question": question}]}, 200),
        ("POST", "/similarity", {"image": image, "texts": texts}, 200),
        ("POST", "/similarity/batch", {"inputs": [{"image": image, "texts": texts}]}, 200),
        ("POST", "/embeddings", {"text": "a rocket on a black background"}, 200),
        ("POST", "/embeddings", {"image": image}, 200),
        ("POST", "/embeddings/batch", {"inputs": [{"text": "two cats"}]}, 200),
        ("POST", "/classify", {"image": image, "labels": texts}, 200),
        ("POST", "/classify/batch", {"inputs": [{"image": image, "labels": texts}]}, 200),
        ("POST", "/rank", {"image": image, "texts": texts}, 200),
        ("POST", "/rank/batch", {"inputs": [{"image": image, "texts": texts}]}, 200),
        ("POST", "/bulk", (bulk, "application/x-ndjson"), 200),
        ("POST", "/mcp", tool, 200),
        ("POST", "/v1/chat/completions", {"model": "demo-caption", "messages": [message]}, 200),
        ("POST", "/v1/chat/completions", {"model": "demo-caption", "messages": [message], "stream": True}, 200),
        ("POST", "/v1/embeddings", {"model": "demo-retrieval", "input": texts}, 200),
        ("GET", "/v1/models", None, 200),
        ("GET", "/v1/models/demo-vqa", None, 200),
        ("POST", "/api/generate", {"model": "demo-caption", "images": [image]}, 200),
        ("POST", "/api/chat", {"model": "demo-caption", "messages": [{"role": "user", "content": "", "images": [image]}]}, 200),
        ("POST", "/api/embed", {"model": "demo-retrieval", "input": texts}, 200),
        ("POST", "/api/embeddings", {"model": "demo-retrieval", "prompt": "two cats"}, 200),
        ("POST", "/api/show", {"model": "demo-vqa"}, 200),
        ("POST", "/api/pull", {"model": "demo-vqa"}, 200),
        ("GET", "/api/tags", None, 200),
        ("GET", "/api/ps", None, 200),
        ("GET", "/api/version", None, 200),
        ("POST", "/hf/image-to-text", {"inputs": image}, 200),
        ("POST", "/hf/visual-question-answering", {"inputs": {"image": image, "question": question}}, 200),
        ("POST", "/hf/zero-shot-image-classification", {"inputs": image, "parameters": {"candidate_labels": texts}}, 200),
        ("POST", "/hf/feature-extraction", {"inputs": "two cats"}, 200),
        ("GET", "/health", None, 200),
        ("GET", "/health/live", None, 200),
        ("GET", "/health/ready", None, 200),
        ("GET", "/info", None, 200),
        ("GET", "/openapi.json", None, 200),
        ("GET", "/openapi.yaml", None, 200),
        ("GET", "/openapi-strict.json", None, 200),
    ]


def refusals(picture: bytes) -> list[tuple]:
    """Returns requests that the server refuses: method, path, body, expected status."""
    image = encoded(picture)
    return [
        ("POST", "/caption", {"image": image, "num_beam": 3}, 400),
        ("POST", "/caption", {"image": encoded(b"no picture")}, 415),
        ("POST", "/caption", {"image": encoded(picture[: len(picture) // 2])}, 422),
        ("POST", "/caption", {"image": "https://127.0.0.1/cat.png"}, 422),
        ("POST", "/vqa", {"image": image, "question": "cat " * 1000}, 422),
        ("POST", "/caption", {"image": image, "model": "nope"}, 404),
        ("GET", "/nothing/here", None, 404),
        ("DELETE", "/caption", None, 405),
    ]


def send(url: str, requests: list[tuple]) -> None:
    """Sends requests of `endpoints` or `refusals`, and fails on another status than the expected one."""
    for method, path, body, expected in requests:
        body, content_type = body if isinstance(body, tuple) else (body, "application/json")
        status = call(url, method, path, body, content_type)
        if status != expected:
            raise AssertionError(f"{method} {path} is answered with {status} instead of {expected}")


def not_covered(requests: list[tuple]) -> set[str]:
    """Returns the paths of openapi.yaml without a request; /metrics is what Prometheus asks for."""
    import yaml

    paths = yaml.safe_load((ROOT / "openapi.yaml").read_text())["paths"]
    asked = {path for _, path, _, _ in requests}
    return {path for path in paths if path != "/metrics" and path.replace("{model}", "demo-vqa") not in asked}


class Load:
    """Threads that repeat a request until `stop_all`. A failed connection is ignored: the server may be away."""

    def __init__(self, threads: int, request, pause: float = 0):
        self.ended = threading.Event()
        self.statuses: dict[int, int] = {}
        self.threads = [threading.Thread(target=self.run, args=(request, pause, n), daemon=True) for n in range(threads)]
        for thread in self.threads:
            thread.start()

    def run(self, request, pause: float, thread: int) -> None:
        count = 0
        while not self.ended.is_set():
            try:
                status = request(thread * 1_000_000 + count)
                self.statuses[status] = self.statuses.get(status, 0) + 1
            except (OSError, http.client.HTTPException):
                time.sleep(0.2)
            count += 1
            self.ended.wait(pause)



def stop_all(loads: list[Load]) -> None:
    """Ends all loads. A request that takes longer than 20 s, such as bulk work on a slow machine, is left to itself."""
    for load in loads:
        load.ended.set()
    end = time.monotonic() + 20
    for thread in [thread for load in loads for thread in load.threads]:
        thread.join(max(0, end - time.monotonic()))
