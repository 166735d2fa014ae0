"""Serves a page of metrics that a real server has written, with some values changed.

Some alerts are about faults that no client can cause: failed inferences, panics, a worker that hangs or is down. The test
changes their values on such a page. Names and labels must exist on the original page, so a metric that is renamed fails the test.
"""

import contextlib
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HEARTBEAT = "blip_worker_heartbeat_timestamp_seconds"


class Exporter:
    """A server of the page in a thread. `hung` stops the heartbeat as of 31 s ago."""

    def __init__(self, page: str):
        self.values = {}
        for line in page.splitlines():
            if found := re.fullmatch(r"([a-z_]+(?:\{.*\})?) (\S+)", line):
                self.values[found[1]] = float(found[2])
        self.comments = [line for line in page.splitlines() if line.startswith("#")]
        self.hung = False
        exporter = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                body = exporter.page().encode()
                self.send_response(200)
                self.send_header("content-type", "text/plain; version=0.0.4; charset=utf-8")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                # A scrape that has timed out has closed the connection.
                with contextlib.suppress(ConnectionError):
                    self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return "127.0.0.1:%d" % self.server.server_port

    def page(self) -> str:
        for series in self.values:
            if series.split("{")[0] == HEARTBEAT:
                self.values[series] = time.time() - (31 if self.hung else 0)
        return "\n".join([*self.comments, *(f"{series} {value!r}" for series, value in self.values.items())]) + "\n"

    def add(self, series: str, amount: float) -> None:
        """Adds to a series that is on the page. The amount may be negative for a gauge."""
        if series not in self.values:
            raise KeyError(f"{series} is not on the page of the server")
        self.values[series] += amount

    def add_with(self, series: str, label: str, value: str, amount: float) -> None:
        """Raises the series that differs from one on the page in the value of a label, and creates it if needed."""
        if series not in self.values or f'{label}="' not in series:
            raise KeyError(f"{series} is not on the page of the server, or has no label {label}")
        other = re.sub(rf'\b{label}="[^"]*"', f'{label}="{value}"', series)
        self.values[other] = self.values.get(other, 0) + amount
