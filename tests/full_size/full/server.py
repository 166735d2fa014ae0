"""The server as a process, and requests to it by the standard library alone."""

import base64
import http.client
import json
import os
import re
import signal
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode

# The machine may be busy with other work, and a request must not be refused for that; nothing else differs from the defaults.
ENVIRONMENT = {"BLIP__SERVER__DEADLINE_MS": "600000", "BLIP__ENGINE__MAX_QUEUE_WAIT_MS": "600000"}
START_TIMEOUT, STOP_TIMEOUT, ANSWER_TIMEOUT = 180.0, 60.0, 600.0


@dataclass
class Server:
    """One running server; `stop` must be called."""

    binary: Path
    name: str
    directory: Path
    threads: int = 0
    seconds: list[float] = field(default_factory=list)
    dtype: str = "f32"
    model: str = ""  # as the command line takes it; the directory under the name where nothing is given

    def start(self) -> None:
        """Returns when the log says that it listens."""
        began = time.monotonic()
        command = [str(self.binary), "--listen", "127.0.0.1:0", "--model", self.model or f"{self.name}={self.directory}", "--dtype", self.dtype, "--device", "cpu"]
        command += ["--threads", str(self.threads)] if self.threads else []
        self.process = subprocess.Popen(command, env=os.environ | ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.log: list[str] = []
        self.address: str | None = None
        ready = threading.Event()
        self.reader = threading.Thread(target=self._read, args=(ready,), daemon=True)
        self.reader.start()
        ready.wait(START_TIMEOUT)
        if self.address is None:
            self.process.kill()
            raise RuntimeError("the server did not start:\n" + "".join(self.log))
        self.start_seconds = time.monotonic() - began

    def _read(self, ready: threading.Event) -> None:
        for line in self.process.stdout:
            self.log.append(line)
            if self.address is None and (found := re.search(r"listening on http://([0-9.]+:[0-9]+)", line)):
                self.address = found.group(1)
                ready.set()
        ready.set()  # the log ended

    def stop(self) -> dict:
        """Asks for the end by SIGTERM; returns exit code and the largest memory that it had."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        peak = re.search(r"VmHWM:\s+(\d+) kB", status)
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = None
        self.reader.join(5)
        return {"exit_code": code, "peak_bytes": int(peak.group(1)) * 1024 if peak else 0}

    def json(self, path: str, body: dict) -> dict:
        """A JSON request for this model; images are bytes and are sent in base64."""
        document = {"model": self.name} | _encoded(body)
        return self._send(path, json.dumps(document).encode(), "application/json")

    def raw(self, path: str, image: bytes, fields: dict) -> dict:
        """The image as the body, everything else in the query string; lists repeat."""
        pairs = []
        for name, value in ({"model": self.name} | fields).items():
            for item in value if isinstance(value, list) else [value]:
                pairs.append((name, json.dumps(item) if isinstance(item, bool) else str(item)))
        kind = "image/jpeg" if image[:2] == b"\xff\xd8" else "image/png"
        return self._send(f"{path}?{urlencode(pairs)}", image, kind)

    def multipart(self, path: str, images: list[bytes], fields: dict) -> dict:
        """A form: each image a part with a file name, everything else text parts; lists repeat."""
        boundary = "full-size-comparison-boundary"
        parts = []
        for name, value in ({"model": self.name} | fields).items():
            for item in value if isinstance(value, list) else [value]:
                text = json.dumps(item) if isinstance(item, bool) else str(item)
                parts.append(f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{text}\r\n'.encode())
        field_name = "image" if len(images) == 1 else "images"
        for image in images:
            head = f'--{boundary}\r\nContent-Disposition: form-data; name="{field_name}"; filename="photograph"\r\nContent-Type: application/octet-stream\r\n\r\n'
            parts.append(head.encode() + image + b"\r\n")
        return self._send(path, b"".join(parts) + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}")

    def get(self, path: str) -> dict:
        """A JSON document by GET."""
        return self._exchange("GET", path, None, {})

    def _send(self, path: str, body: bytes, kind: str) -> dict:
        began = time.monotonic()
        document = self._exchange("POST", path, body, {"content-type": kind})
        self.seconds.append(time.monotonic() - began)
        return document

    def _exchange(self, method: str, path: str, body: bytes | None, headers: dict) -> dict:
        connection = http.client.HTTPConnection(self.address, timeout=ANSWER_TIMEOUT)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            document = json.loads(response.read())
        finally:
            connection.close()
        if response.status != 200:
            raise RuntimeError(f"{method} {path[:200]}: {response.status} {document}")
        return document


def _encoded(value: object) -> object:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, dict):
        return {k: _encoded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_encoded(v) for v in value]
    return value
