"""PyTorch without compilation, and `blip-server bench`, in turns: tests/perf/peers.py."""

import json
import os
import sys

from .part import ROOT, Failed, Part, Skipped, need_torch, run

TASKS = ["vision", "caption", "caption-known"]
RUNS = 5


def compare(part: Part, engines: list[str]) -> None:
    """Runs the engines in rounds. If the time limit ends the part, the rounds that are complete count."""
    part.need_gpu()
    need_torch(cuda_too=part.on_gpu)
    server, _ = part.server(), part.checkpoint()
    if not (part.work / "photos").exists():
        raise Skipped(f"there is no photos in {part.work}")
    answer = part.results / f"{part.name}.rounds.json"
    answer.unlink(missing_ok=True)
    command = [sys.executable, ROOT / "tests/perf/peers.py", "--work", part.work, "--bert", part.work / "bert", "--photos", part.work / "photos"]
    command += ["--server", server, "--device", part.options.device, "--tasks", ",".join(TASKS), "--engines", ",".join([*engines, "blip-server-bf16"])]
    command += ["--batches", ",".join(map(str, part.options.batches)), "--rounds", part.options.rounds, "--runs", RUNS if part.on_gpu else 1]
    command += ["--threads", os.cpu_count() or 1, "--json", answer]
    # A second try on the same machine finds what the first one has compiled.
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(part.work / "inductor")}
    try:
        status = part.stream(command, env=environment)
    finally:
        if answer.exists():
            part.facts |= json.loads(answer.read_text())
    if status != 0:
        raise Failed(f"peers.py ended with code {status}")


def body(part: Part) -> None:
    """As shipped, and with fused attention."""
    compare(part, ["torch-bf16-shipped", "torch-bf16-sdpa"])


if __name__ == "__main__":
    run("peers", body)
