"""The load generator of servers.py: a closed loop over HTTP, in which each client sends its next picture when the last one is answered.

One thread and one keep-alive connection for each client. At a few requests per second this takes less than a hundredth of a core;
every measurement says how much.
"""

import http.client
import itertools
import json
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

TOKENS = 20
ANSWER_TIMEOUT = 600.0  # seconds
AFTER_REFUSAL = 0.1  # seconds until a refused client asks again; without a pause, refused clients would use up the cores


def token_count(document: dict) -> int:
    """Tokens of the caption, in our answer and in those of the other servers."""
    return document["captions"][0]["token_count"] if "captions" in document else document["token_count"]


@dataclass
class Load:
    """What is sent where, by how many clients."""

    address: str  # host:port
    target: str  # path and query
    pictures: list[bytes]  # JPEG files, sent in this order, and again from the first if all were sent
    clients: int
    refusals: Counter = field(default_factory=Counter)

    def run(self, warm_up: float, window: float) -> dict:
        """Measures for `window` seconds, after `warm_up` seconds of the same load. Returns when the last request has been answered."""
        self.numbers, self.counts, self.over = itertools.count(), threading.Event(), threading.Event()
        self.latencies: list[float] = []  # seconds of requests that were answered within the window
        running = [threading.Thread(target=self._client, daemon=True) for _ in range(self.clients)]
        for client in running:
            client.start()
        time.sleep(warm_up)
        self.counts.set()
        began, used = time.monotonic(), time.process_time()
        time.sleep(window)
        self.counts.clear()
        elapsed, used = time.monotonic() - began, time.process_time() - used
        self.over.set()
        for client in running:
            client.join()
        return self._summary(elapsed, used)

    def _client(self) -> None:
        connection = http.client.HTTPConnection(self.address, timeout=ANSWER_TIMEOUT)
        while not self.over.is_set():
            picture = self.pictures[next(self.numbers) % len(self.pictures)]
            began = time.monotonic()
            reason = self._refusal(connection, picture)
            if self.counts.is_set():
                if reason:
                    self.refusals[reason] += 1
                else:
                    self.latencies.append(time.monotonic() - began)
            if reason:
                self.over.wait(AFTER_REFUSAL)
        connection.close()

    def _refusal(self, connection: http.client.HTTPConnection, picture: bytes) -> str:
        """Sends a picture and reads the whole answer: why it is none, or nothing if it is a caption of 20 tokens."""
        try:
            connection.request("POST", self.target, picture, {"content-type": "image/jpeg"})
            response = connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()  # the next request opens another
            return type(error).__name__
        if response.status != 200:
            return f"status {response.status}"
        tokens = token_count(json.loads(answer))
        return "" if tokens == TOKENS else f"{tokens} tokens"

    def _summary(self, elapsed: float, used: float) -> dict:
        if not self.latencies:
            raise RuntimeError(f"no caption within {elapsed:.0f} seconds; refused: {dict(self.refusals)}")
        latencies = sorted(self.latencies)
        percentiles = {f"p{share}_ms": 1000 * latencies[min(len(latencies) * share // 100, len(latencies) - 1)] for share in (50, 90, 99)}
        return {
            "requests_per_second": len(latencies) / elapsed, **percentiles, "answered": len(latencies), "refused": sum(self.refusals.values()),
            "refusals": dict(self.refusals), "load_generator_cores": used / elapsed,
        }  # fmt: skip
