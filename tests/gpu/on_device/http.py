"""The server under the load generator of tests/perf: captions of JPEGs that it has not seen before."""

import json
import os
import tempfile
from pathlib import Path

from perf.captioning_servers import KINDS, CaptioningServer, Setup

from .part import Failed, Part, run

WARM_UP = 5.0  # seconds of load before each window


def body(part: Part) -> None:
    """One server, one window for each number of clients."""
    part.need_gpu()
    generator = part.program("load-generator")
    setup = Setup(part.server(), part.checkpoint(), os.cpu_count() or 1)
    kind = KINDS["blip-server-cuda-bf16" if part.on_gpu else "blip-server-bf16"]
    rows = part.facts["rows"] = []
    wrong = []
    with tempfile.TemporaryDirectory() as folder, CaptioningServer(kind, setup, part.results / "http.log") as server:
        for clients in part.options.clients:
            answer = Path(folder) / "rows.json"
            command = [generator, "--bench", "--url", f"http://{server.address}", "--clients", clients, "--images", "distinct"]
            command += ["--warm-up", WARM_UP, "--seconds", part.options.window, "--json", answer]
            if part.stream(command) != 0:
                wrong.append(f"{clients} clients: the load generator failed")
                continue
            row = json.loads(answer.read_text())["rows"][0]
            rows.append(row)
            if row["errors"] or row["requests"] == 0:
                wrong.append(f"{clients} clients: {row['requests']} answers, errors {row['errors']}")
    if wrong:
        raise Failed("; ".join(wrong))


if __name__ == "__main__":
    run("http", body)
