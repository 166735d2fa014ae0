"""The server as a process in a chosen number format. Called by precision.py."""

import os
import subprocess
import threading
import time
from dataclasses import dataclass, field

from full.server import ENVIRONMENT, START_TIMEOUT, Server


@dataclass
class TypedServer(Server):
    """As the full-size comparison's, but with any `--dtype`, and with a model given as the command line takes it."""

    dtype: str = "f32"
    model: str = "demo"
    log: list[str] = field(default_factory=list)

    def start(self) -> None:
        """Returns when the log says that it listens, and it says that the format is the one asked for."""
        began = time.monotonic()
        command = [str(self.binary), "--listen", "127.0.0.1:0", "--model", self.model, "--dtype", self.dtype, "--device", "cpu"]
        command += ["--threads", str(self.threads)] if self.threads else []
        self.process = subprocess.Popen(command, env=os.environ | ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.address: str | None = None
        ready = threading.Event()
        self.reader = threading.Thread(target=self._read, args=(ready,), daemon=True)
        self.reader.start()
        ready.wait(START_TIMEOUT)
        if self.address is None:
            self.process.kill()
            raise RuntimeError("the server did not start:\n" + "".join(self.log))
        self.start_seconds = time.monotonic() - began
        found = {model["dtype"] for model in self.get("/info")["models"]}
        if found != {self.dtype}:
            self.stop()
            raise RuntimeError(f"asked for {self.dtype}, the server computes in {sorted(found)}")
