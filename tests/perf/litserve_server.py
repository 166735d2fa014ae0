#!/usr/bin/env python3
"""What a team would start today: LitServe around transformers in bf16, batches of 8, captions of 20 tokens for uploaded pictures.

Usage: litserve_server.py --checkpoint DIR [--port 8090] [--batch 8] [--threads 2]. README.md beside it says how it is measured.

`POST /predict` takes the picture as the raw body, as the multipart field `request` or `image`, or in JSON as `{"image": base64}`;
it answers `{"caption": ..., "token_count": 20}`.
"""

import argparse
import base64
import os
import signal
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import litserve
from perf.captioner import Captioner, decoded
from PIL import Image

BATCH_TIMEOUT = 0.05  # seconds that the first request of a batch waits for others
TIMEOUT = 300  # seconds; no request may be refused, however many clients there are


class CaptionAPI(litserve.LitAPI):
    """The model as transformers ships it; LitServe gathers the batches."""

    def __init__(self, checkpoint: Path, threads: int, batch: int) -> None:
        super().__init__(max_batch_size=batch, batch_timeout=BATCH_TIMEOUT)
        self.checkpoint, self.threads = checkpoint, threads

    def setup(self, device: str) -> None:
        """Loads in the worker's process and warms up."""
        self.captioner = Captioner(self.checkpoint, self.threads)
        self.captioner.warm_up(self.max_batch_size)

    def decode_request(self, request, **kwargs) -> Image.Image:
        """The picture. (LitServe passes the annotation of `request` on to FastAPI; without one it reads JSON or a form.)"""
        value = request.get("request") or request["image"]
        data = base64.b64decode(value) if isinstance(value, str) else value.file.read()
        return decoded(data)

    def batch(self, inputs: list) -> list:
        """A list as it is; `predict` makes the tensor."""
        return inputs

    def unbatch(self, output: list) -> list:
        """One answer for each request."""
        return output

    def predict(self, x: object, **kwargs) -> object:
        """Captions of a list of pictures; of one alone where there are no batches."""
        return self.captioner.captions(x) if isinstance(x, list) else self.captioner.captions([x])[0]

    def encode_response(self, output: dict, **kwargs) -> dict:
        """JSON."""
        return output


class RawBody:
    """LitServe reads JSON and forms only: a picture sent as the body itself goes on as the form field `request`."""

    def __init__(self, app: object) -> None:
        self.app = app

    async def __call__(self, scope: dict, receive: object, send: object) -> None:
        """ASGI."""
        headers = dict(scope.get("headers", []))
        kind = headers.get(b"content-type", b"application/octet-stream")
        if scope["type"] != "http" or scope["method"] != "POST" or not kind.startswith((b"image/", b"application/octet-stream")):
            return await self.app(scope, receive, send)
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        head = b'--raw-picture\r\ncontent-disposition: form-data; name="request"; filename="picture"\r\ncontent-type: application/octet-stream\r\n\r\n'
        form = head + body + b"\r\n--raw-picture--\r\n"
        headers |= {b"content-type": b"multipart/form-data; boundary=raw-picture", b"content-length": str(len(form)).encode()}

        async def whole() -> dict:
            return {"type": "http.request", "body": form, "more_body": False}

        await self.app(scope | {"headers": list(headers.items())}, whole, send)


def main() -> None:
    """Serves until it is ended."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--checkpoint", type=Path, required=True, help="a captioner, as peers.py makes it in its work directory")
    arguments.add_argument("--port", type=int, default=8090)
    arguments.add_argument("--batch", type=int, default=8)
    arguments.add_argument("--threads", type=int, default=2)
    args = arguments.parse_args()
    api = CaptionAPI(args.checkpoint, args.threads, args.batch)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=TIMEOUT, middlewares=[(RawBody, {})])
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # LitServe ends its processes on Ctrl+C only
    server.run(host="127.0.0.1", port=args.port, generate_client_file=False, num_api_servers=1)


if __name__ == "__main__":
    main()
