"""A collector of traces: takes OTLP over HTTP in protobuf, and keeps the spans."""

import gzip
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


@dataclass(frozen=True)
class Span:
    """A span, with its ids as hexadecimal digits and its times in nanoseconds."""

    service: str
    trace_id: str
    span_id: str
    parent_id: str
    name: str
    kind: int
    began: int
    ended: int
    attributes: dict
    status: int

    @property
    def milliseconds(self) -> float:
        """Returns the duration."""
        return (self.ended - self.began) / 1e6


def plain(attributes) -> dict:
    """Converts attributes to Python values."""
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


class Collector:
    """A collector on a port of its own."""

    def __init__(self):
        self.spans: list[Span] = []
        # What was sent, to look for texts that must not be in it.
        self.bodies: list[bytes] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            """Answers exports."""

            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                collector.take(body)
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200 if self.path == "/v1/traces" else 404)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def take(self, body: bytes):
        """Keeps the spans of an export."""
        self.bodies.append(body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = plain(resource.resource.attributes)["service.name"]
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self.spans.append(
                        Span(
                            service=service,
                            trace_id=span.trace_id.hex(),
                            span_id=span.span_id.hex(),
                            parent_id=span.parent_span_id.hex(),
                            name=span.name,
                            kind=span.kind,
                            began=span.start_time_unix_nano,
                            ended=span.end_time_unix_nano,
                            attributes=plain(span.attributes),
                            status=span.status.code,
                        )
                    )

    def children(self, parent: Span) -> list[Span]:
        """Returns the spans directly below a span, in the order of their begin."""
        below = [
            span
            for span in self.spans
            if span.trace_id == parent.trace_id and span.parent_id == parent.span_id
        ]
        return sorted(below, key=lambda span: span.began)
