"""Sends traced requests to a server, and checks the traces that a collector gets from both sides.

Usage: check.py BLIP_SERVER. `run.sh` installs the packages that it needs.
"""

import base64
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import requests
from collector import Collector, Span
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.requests import RequestsInstrumentor
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

SCENE = Path(__file__).parents[2] / "demo/scenes/two-cats.png"
SECRET = "is the question of nobody else"
KIND_SERVER, KIND_CLIENT = 2, 3
STATUS_ERROR = 2
TIMEOUT = 120


def start_server(binary: str, collector: Collector) -> tuple[subprocess.Popen, str]:
    """Starts a server with the demo models, and returns it with its URL."""
    environment = {
        "PATH": os.environ["PATH"],
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
        "OTEL_SERVICE_NAME": "captions",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }
    server = subprocess.Popen(
        [binary, "--listen", "127.0.0.1:0", "--log-format", "json"],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in server.stderr:
        fields = json.loads(line) if line.startswith("{") else {}
        if "server.url" in fields:
            return server, fields["server.url"]
    raise SystemExit(f"the server has not started: {server.wait()}")


def send_requests(url: str) -> dict[str, requests.Response]:
    """Sends one request of each kind, each in a trace of its own, and returns the responses by name."""
    image = base64.b64encode(SCENE.read_bytes()).decode()
    tracer = trace.get_tracer("check")
    calls = {
        "caption": ("/caption", {"image": image}),
        "vqa": ("/vqa", {"image": image, "question": SECRET}),
        "batch": ("/caption/batch", {"inputs": [{"image": image}, {"image": image, "num_beams": 2}]}),
        "stream": ("/caption", {"image": image, "stream": True}),
        "error": ("/caption", {"image": base64.b64encode(b"no picture").decode()}),
    }
    answers = {}
    for name, (path, body) in calls.items():
        with tracer.start_as_current_span(name):
            answers[name] = requests.post(url + path, json=body, timeout=TIMEOUT)
    # A client that does not trace this request.
    unsampled = {"traceparent": f"00-{'1' * 32}-{'2' * 16}-00"}
    answers["unsampled"] = plain_post(url + "/caption", {"image": image}, unsampled)
    return answers


def plain_post(url: str, body: dict, headers: dict) -> requests.Response:
    """Sends a request without instrumentation."""
    RequestsInstrumentor().uninstrument()
    return requests.post(url, json=body, headers=headers, timeout=TIMEOUT)


def tree(collector: Collector, span: Span, depth: int = 0) -> str:
    """Formats a span and those below it, with begin and duration in milliseconds."""
    facts = {
        name: value
        for name, value in span.attributes.items()
        if name.startswith("blip.") or name in ("error.type", "http.response.status_code")
    }
    shown = " ".join(
        f"{name}={value:.1f}" if isinstance(value, float) else f"{name}={value}"
        for name, value in sorted(facts.items())
        if name != "blip.request_id"
    )
    line = f"{'  ' * depth}{span.service}: {span.name}  {span.milliseconds:.1f} ms  {shown}".rstrip()
    return "\n".join([line, *(tree(collector, child, depth + 1) for child in collector.children(span))])


def check_nesting(collector: Collector, span: Span):
    """Checks that spans of the server lie within their parents. Client and server share the clock of this machine."""
    assert span.began <= span.ended, span
    for child in collector.children(span):
        if span.service == child.service:
            assert span.began <= child.began and child.ended <= span.ended, (span, child)
        check_nesting(collector, child)


def server_span(collector: Collector, name: str) -> Span:
    """Returns the server's span of a call, below the client's."""
    (root,) = [span for span in collector.spans if span.name == name and span.service == "client"]
    (sent,) = collector.children(root)
    assert sent.kind == KIND_CLIENT, sent
    (received,) = collector.children(sent)
    assert (received.kind, received.service) == (KIND_SERVER, "captions"), received
    return received


def check(collector: Collector, answers: dict[str, requests.Response]):
    """Checks all traces."""
    stages = {
        "caption": {"read", "decode", "queue", "vision", "text"},
        "vqa": {"read", "tokenize", "queue", "text"},
        "batch": {"read", "input"},
        "stream": {"read", "queue", "text"},
        "error": {"read", "decode"},
    }
    for name, expected in stages.items():
        span = server_span(collector, name)
        below = {child.name for child in collector.children(span)}
        assert expected <= below, (name, below)
        check_nesting(collector, span)
        status = answers[name].status_code
        assert span.attributes["http.response.status_code"] == status, span
        traceresponse = f"00-{span.trace_id}-{span.span_id}-"
        assert answers[name].headers["traceresponse"].startswith(traceresponse), name
        assert span.attributes["blip.request_id"] == answers[name].headers["x-request-id"]
    inputs = [child for child in collector.children(server_span(collector, "batch")) if child.name == "input"]
    assert [span.attributes["blip.input.index"] for span in inputs] == [0, 1], inputs
    assert all({"queue", "text"} <= {child.name for child in collector.children(span)} for span in inputs)
    failed = server_span(collector, "error")
    assert failed.attributes["error.type"] == answers["error"].json()["code"], failed
    assert failed.status != STATUS_ERROR, "the client is at fault, not the server"
    assert not any(span.trace_id == "1" * 32 for span in collector.spans), "an unsampled trace"
    assert answers["unsampled"].headers["traceresponse"].endswith("-00")
    sent = b"".join(collector.bodies)
    image = base64.b64encode(SCENE.read_bytes())[:40]
    assert SECRET.encode() not in sent and image not in sent, "content of a request"


def main(binary: str):
    """Runs the check."""
    collector = Collector()
    provider = TracerProvider(resource=Resource.create({"service.name": "client"}))
    exporter = OTLPSpanExporter(endpoint=f"{collector.url}/v1/traces")
    provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    RequestsInstrumentor().instrument()

    server, url = start_server(binary, collector)
    try:
        answers = send_requests(url)
    finally:
        server.send_signal(signal.SIGTERM)
        log = server.stderr.read()
    assert server.wait(timeout=TIMEOUT) == 0, log
    provider.shutdown()

    for span in sorted(collector.spans, key=lambda span: span.began):
        if span.service == "client" and not span.parent_id:
            print(tree(collector, span), end="\n\n")
    check(collector, answers)
    print(f"{len(collector.spans)} spans of {len({span.trace_id for span in collector.spans})} traces: as expected")


if __name__ == "__main__":
    main(sys.argv[1])
