"""Starts the real proxies with the files of deploy/proxies. Only addresses and ports are replaced."""

import pathlib
import re
import shutil
import signal
import socket
import subprocess
import time

from replicas import HOST, free_port

FILES = pathlib.Path(__file__).resolve().parents[2] / "deploy" / "proxies"


class Proxy:
    """A proxy in front of replicas."""

    def __init__(self, name, program, replicas, folder):
        self.name, self.program = name, program
        self.port = free_port()
        self.folder = folder
        folder.mkdir()
        self.process = None
        file, command, listen = {
            "nginx": ("nginx.conf", self.nginx, (r"listen 8080;", f"listen {HOST}:{self.port};")),
            "haproxy": ("haproxy.cfg", self.haproxy, (r"bind :8080", f"bind {HOST}:{self.port}")),
            "envoy": (
                "envoy.yaml",
                self.envoy,
                (r"address: 0\.0\.0\.0, port_value: 8080", f"address: {HOST}, port_value: {self.port}"),
            ),
        }[name]
        self.config = folder / file
        self.config.write_text(self.render((FILES / file).read_text(), replicas, listen))
        self.command = command()

    def render(self, text, replicas, listen):
        text, count = re.subn(*listen, text)
        assert count == 1, "the file listens at an unexpected place"
        for number, replica in enumerate(replicas, 1):
            text, nginx_haproxy = re.subn(rf"replica{number}:8080", f"{HOST}:{replica.port}", text)
            text, envoy = re.subn(
                rf"address: replica{number}, port_value: 8080", f"address: {HOST}, port_value: {replica.port}", text
            )
            assert nginx_haproxy + envoy > 0, f"the file does not name replica{number}:8080"
        return text

    def take_out(self, replica):
        """Removes a replica from the configuration of nginx, which has no health checks, and reloads it. The other proxies
        notice by themselves. Returns a function that puts it back."""
        if self.name != "nginx":
            return lambda: None
        whole = self.config.read_text()
        without, count = re.subn(rf".*server {HOST}:{replica.port} .*\n", "", whole)
        assert count == 2, "the replica is not in both upstreams"
        self.reload(without)
        return lambda: self.reload(whole)

    def reload(self, text):
        self.config.write_text(text)
        self.process.send_signal(signal.SIGHUP)
        time.sleep(1)

    def nginx(self):
        # As root, nginx would run its workers as nobody, who cannot open /dev/stdout.
        directives = f"daemon off; pid {self.folder}/nginx.pid; user root;"
        return [self.program, "-p", str(self.folder), "-c", str(self.config), "-g", directives]

    def haproxy(self):
        return [self.program, "-f", str(self.config), "-db"]

    def envoy(self):
        options = ["--concurrency", "2", "--log-level", "warning", "--disable-hot-restart"]
        return [self.program, "-c", str(self.config), *options]

    def start(self):
        with (self.folder / "log").open("w") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log)
        for _ in range(200):
            if self.process.poll() is not None:
                raise SystemExit(f"{self.name} has ended:\n{(self.folder / 'log').read_text()[-2000:]}")
            try:
                socket.create_connection((HOST, self.port), 1).close()
                return
            except OSError:
                time.sleep(0.05)
        raise SystemExit(f"{self.name} does not listen")

    def close(self):
        if self.process and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def version(name, program):
    """Returns the first line that the program prints about itself."""
    option = {"nginx": "-v", "haproxy": "-v", "envoy": "--version"}[name]
    shown = subprocess.run([program, option], capture_output=True, text=True)
    return next(line.strip() for line in (shown.stdout + shown.stderr).splitlines() if line.strip())


def find(name, envoy):
    """Returns the program of a proxy, or `None`."""
    return envoy if name == "envoy" else shutil.which(name) or shutil.which(name, path="/usr/sbin")
