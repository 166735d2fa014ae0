"""A webhook receiver that remembers the notifications of an Alertmanager."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Sink:
    """An HTTP server in a thread. The path of the webhook is the name of the receiver."""

    def __init__(self):
        self.received = []  # (seconds since the epoch, receiver, status, labels, annotations)
        self.lock = threading.Lock()
        sink = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                message = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with sink.lock:
                    for alert in message["alerts"]:
                        entry = (time.time(), self.path.strip("/"), alert["status"], alert["labels"], alert["annotations"])
                        sink.received.append(entry)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return "http://127.0.0.1:%d" % self.server.server_port

    def of(self, name: str, **labels) -> list:
        """Returns the notifications of an alert that has these labels, in the order of their arrival."""
        wanted = {"alertname": name, **labels}.items()
        with self.lock:
            return [entry for entry in self.received if wanted <= entry[3].items()]

    def has(self, name: str, status: str, **labels) -> bool:
        """True if the last notification of an alert has this status."""
        entries = self.of(name, **labels)
        return bool(entries) and entries[-1][2] == status
