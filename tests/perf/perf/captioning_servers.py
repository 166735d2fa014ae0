"""The servers that servers.py compares: how each is started, asked and stopped."""

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from .load import TOKENS

START_TIMEOUT, STOP_TIMEOUT, PAUSE = 300.0, 60.0, 0.1  # seconds
# No server may refuse a request because many clients wait, and each picture is to be computed: no cache holds any.
OWN_ENVIRONMENT = {
    "BLIP__SERVER__DEADLINE_MS": "300000", "BLIP__ENGINE__MAX_QUEUE_WAIT_MS": "300000",
    "BLIP__ENGINE__FEATURE_CACHE_BYTES": "0", "BLIP__IMAGES__PIXEL_CACHE_BYTES": "0",
}  # fmt: skip


@dataclass(frozen=True)
class Setup:
    """What all servers have in common: our binary (which the others do not use), the checkpoint, and the number of threads for the model."""

    binary: Path
    checkpoint: Path
    threads: int


@dataclass(frozen=True)
class Kind:
    """One of the servers to compare; `command` gets the port."""

    command: Callable[[Setup, int], list]
    target: str  # path and query that captions a picture
    ready: str  # path that answers 200 as soon as the model is loaded and warm
    environment: dict[str, str]


def _own(dtype: str, device: str = "cpu") -> Kind:
    def command(setup: Setup, port: int) -> list:
        options = ["--model", f"caption={setup.checkpoint}", "--threads", setup.threads, "--dtype", dtype, "--device", device]
        return [setup.binary, "--listen", f"127.0.0.1:{port}", *options]

    return Kind(command, f"/caption?max_new_tokens={TOKENS}", "/health/ready", OWN_ENVIRONMENT)


def _python(script: str) -> Kind:
    def command(setup: Setup, port: int) -> list:
        path = Path(__file__).resolve().parents[1] / script
        return [sys.executable, path, "--checkpoint", setup.checkpoint, "--port", port, "--threads", setup.threads]

    return Kind(command, "/predict", "/health", {})


KINDS = {
    "blip-server-bf16": _own("bf16"), "blip-server-int8": _own("int8"), "blip-server-f32": _own("f32"),
    "blip-server-cuda-bf16": _own("bf16", "cuda"), "litserve": _python("litserve_server.py"), "fastapi": _python("fastapi_server.py"),
}  # fmt: skip


class CaptioningServer:
    """A server as a process group of its own, from the moment when it is ready until the end of a `with` block."""

    def __init__(self, kind: Kind, setup: Setup, log: Path) -> None:
        self.kind, self.setup, self.log = kind, setup, log

    def __enter__(self) -> Self:
        port = _free_port()
        self.address = f"127.0.0.1:{port}"
        command = [str(part) for part in self.kind.command(self.setup, port)]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, env=os.environ | self.kind.environment, stdout=log, stderr=log, start_new_session=True)
        try:
            self._wait_until_ready()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _wait_until_ready(self) -> None:
        end = time.monotonic() + START_TIMEOUT
        while not self._is_ready():
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with code {self.process.returncode}:\n{self.log.read_text()[-3000:]}")
            if time.monotonic() > end:
                raise RuntimeError(f"the server was not ready after {START_TIMEOUT:.0f} seconds:\n{self.log.read_text()[-3000:]}")
            time.sleep(PAUSE)

    def _is_ready(self) -> bool:
        connection = http.client.HTTPConnection(self.address, timeout=5)
        try:
            connection.request("GET", self.kind.ready)
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _stop(self) -> None:
        """SIGTERM to the server, then SIGKILL to what is left of its process group."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            pass
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
