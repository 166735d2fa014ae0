"""Starts, drains and kills replicas of the server on fixed ports, and reads their metrics and logs."""

import json
import os
import re
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request

HOST = "127.0.0.1"


def free_port():
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        return listener.getsockname()[1]


class Replica:
    """One server process. It keeps its port when it is started again, as a machine keeps its address."""

    def __init__(self, binary, arguments, settings, log):
        self.command = [str(binary), *arguments]
        self.environment = {**os.environ, **settings}
        self.port = free_port()
        self.log = log
        self.process = None

    def start(self):
        command = [*self.command, "--listen", f"{HOST}:{self.port}", "--log-format", "json"]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)

    def wait_until_ready(self):
        for _ in range(1200):
            if self.process.poll() is not None:
                raise SystemExit(f"a replica has ended:\n{self.log.read_text()[-2000:]}")
            try:
                self.get("/health/ready")
                return
            except OSError:
                time.sleep(0.05)
        raise SystemExit("a replica does not become ready")

    def get(self, path):
        with urllib.request.urlopen(f"http://{HOST}:{self.port}{path}", timeout=10) as answer:
            return answer.read().decode()

    def drain(self):
        """Sends SIGTERM and waits for the end. Returns the exit code and the seconds that it took."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(120), time.monotonic() - began

    def kill(self):
        """Ends the process as a crash of its machine would."""
        self.process.kill()
        self.process.wait()

    def close(self):
        if self.process and self.process.poll() is None:
            self.kill()

    def cache_counts(self, cache):
        """Returns the look-ups so far, by result (hit, miss, joined); `None` if the replica does not answer."""
        try:
            metrics = self.get("/metrics")
        except (OSError, urllib.error.URLError):
            return None
        pattern = rf'^blip_cache_requests_total\{{cache="{cache}",result="(\w+)"\}} (\d+)$'
        return {result: int(count) for result, count in re.findall(pattern, metrics, re.MULTILINE)}

    def requests(self):
        """Yields the fields of each request in the log."""
        for line in self.log.read_text().splitlines():
            if '"request_id"' in line:
                yield json.loads(line)


def cache_counts(replicas, cache):
    """Returns the look-ups of all replicas together."""
    total = {"hit": 0, "miss": 0, "joined": 0}
    for replica in replicas:
        for result, count in (replica.cache_counts(cache) or {}).items():
            total[result] += count
    return total


def hit_ratio(before, after):
    """Share of look-ups between two counts that needed no work of their own."""
    done = {result: after[result] - before[result] for result in after}
    return (done["hit"] + done["joined"]) / max(sum(done.values()), 1)
