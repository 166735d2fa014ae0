"""Starts and stops the programs of the test, and asks them over HTTP. Every program listens on a free loopback port."""

import json
import os
import re
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path


class Failure(Exception):
    """The test has failed; the text says how."""


def free_address() -> str:
    """Returns a loopback address with a port that is free now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return "127.0.0.1:%d" % listener.getsockname()[1]


def get(url: str, timeout: float = 10) -> str:
    """Returns the body of a successful answer."""
    with urllib.request.urlopen(url, timeout=timeout) as answer:
        return answer.read().decode()


def wait_for(what: str, condition, timeout: float, pause: float = 0.2):
    """Waits until `condition` returns something true, and returns it. A refused connection counts as not yet."""
    end = time.monotonic() + timeout
    while True:
        try:
            if result := condition():
                return result
        except (OSError, urllib.error.HTTPError):
            pass
        if time.monotonic() > end:
            raise Failure(f"after {timeout:.0f} s: not yet {what}")
        time.sleep(pause)


class Program:
    """A running program whose output goes to a file."""

    def __init__(self, name: str, command: list, folder: Path, environment: dict | None = None):
        self.name, self.command, self.folder = name, [str(part) for part in command], folder
        self.environment = environment or {}
        self.process = None
        self.start()

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    def start(self) -> None:
        """Starts the program, again if it has ended."""
        with self.log.open("ab") as log:
            environment = {**os.environ, **self.environment}
            self.process = subprocess.Popen(
                self.command, cwd=self.folder, env=environment, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
            )

    def stop(self, how: int = signal.SIGTERM) -> None:
        """Sends a signal and waits for the end."""
        if self.process.poll() is None:
            self.process.send_signal(how)
            try:
                self.process.wait(25)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def wait_ready(self, url: str, timeout: float = 90) -> None:
        """Waits until `url` answers with success."""

        def ready():
            if self.process.poll() is not None:
                raise Failure(f"{self.name} has ended:\n{self.log.read_text()[-2000:]}")
            return get(url, 2) is not None

        wait_for(f"{self.name} is ready", ready, timeout)


class Server(Program):
    """A blip-server with an operations listener, which is what Prometheus scrapes."""

    def __init__(self, name: str, command: list, folder: Path, settings: dict | None = None):
        self.address, self.operations = free_address(), free_address()
        environment = {f"BLIP__{key.upper().replace('.', '__')}": str(value) for key, value in (settings or {}).items()}
        environment |= {"BLIP__SERVER__LISTEN": self.address, "BLIP__SERVER__OPERATIONS_LISTEN": self.operations}
        super().__init__(name, command, folder, environment)

    def wait_until_ready(self) -> None:
        self.wait_ready(f"http://{self.operations}/health/ready")

    @property
    def url(self) -> str:
        return f"http://{self.address}"


class Prometheus(Program):
    """Prometheus with a configuration folder that holds `prometheus.yml` and `alerts.yml`."""

    def __init__(self, name: str, folder: Path):
        self.address = free_address()
        command = [
            "prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address={self.address}", "--web.enable-lifecycle", "--log.level=warn",
            # An alert is sent again after this time, a minute by default. It matters when a reload loses a message.
            "--rules.alert.resend-delay=1s",
        ]  # fmt: skip
        super().__init__(name, command, folder)
        self.wait_ready(f"http://{self.address}/-/ready")

    def api(self, path: str, **parameters):
        """Returns `data` of an API call; a refused query is a failure."""
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            return json.loads(get(url, 30))["data"]
        except urllib.error.HTTPError as error:
            raise Failure(f"Prometheus refuses {parameters}: {error.read().decode()}") from None

    def query(self, expression: str, at: float | None = None) -> list:
        """Returns the series of an instant query."""
        result = self.api("query", query=expression, **({"time": at} if at else {}))
        return result["result"] if result["resultType"] == "vector" else [result["result"]]

    def query_range(self, expression: str, start: float, end: float, step: float) -> list:
        """Returns the series of a range query."""
        return self.api("query_range", query=expression, start=start, end=end, step=step)["result"]

    def reload(self) -> None:
        """Makes Prometheus read its files again."""
        urllib.request.urlopen(urllib.request.Request(f"http://{self.address}/-/reload", method="POST"), timeout=10).close()


class Alertmanager(Program):
    """Alertmanager with the configuration file `alertmanager.yml` in `folder`."""

    def __init__(self, folder: Path, address: str):
        command = [
            "prometheus-alertmanager", f"--config.file={folder}/alertmanager.yml", f"--storage.path={folder}/data",
            f"--web.listen-address={address}", "--cluster.listen-address=", "--log.level=warn",
        ]  # fmt: skip
        super().__init__("alertmanager", command, folder)
        self.wait_ready(f"http://{address}/-/ready")


def version_of(program: str) -> str:
    """Returns the version that a Go program of the Prometheus project prints."""
    output = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    return re.search(r"version (\S+)", output.stdout + output.stderr)[1]
