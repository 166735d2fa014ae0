"""One peer in a process of its own: loads, warms up, then does what its standard input says, one JSON document a line.

`python -m perf.worker --engine NAME ...`, started by child.py. Answers go to the standard output that the process was
started with; whatever a library prints goes to standard error.
"""

import argparse
import json
import os
import re
import sys
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers

from . import pictures, torch_engine


def parse() -> argparse.Namespace:
    """What child.py gives."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--engine", required=True)
    arguments.add_argument("--work", type=Path, required=True)
    arguments.add_argument("--photos", type=Path, required=True)
    arguments.add_argument("--threads", type=int, required=True)
    arguments.add_argument("--device", choices=["cpu", "cuda"], required=True)
    arguments.add_argument("--batches", type=lambda v: [int(n) for n in v.split(",")], required=True)
    arguments.add_argument("--tasks", type=lambda v: v.split(","), required=True)
    return arguments.parse_args()


def load(args: argparse.Namespace, pixels: torch.Tensor) -> tuple[object, torch.Tensor]:
    """The engine, and the hidden states that it has to reproduce."""
    model, expected = torch_engine.reference(args.work, pixels)
    if args.device == "cuda":
        from .torch_cuda_engine import TorchCudaEngine

        return TorchCudaEngine(args.engine, model), expected
    if args.engine.startswith("openvino"):
        from .openvino_engine import OpenvinoEngine

        return OpenvinoEngine(args.engine, model, args.photos, args.work, args.threads, args.batches), expected
    if args.engine.startswith("onnxruntime"):
        from .onnxruntime_engine import OnnxruntimeEngine

        return OnnxruntimeEngine(args.engine, model, args.work, args.threads, args.batches), expected
    if args.engine.startswith("zentorch"):
        from .zentorch_engine import ZentorchEngine

        return ZentorchEngine(model), expected
    return torch_engine.TorchEngine(args.engine, model), expected


def distance(engine: object, pixels: torch.Tensor, expected: torch.Tensor) -> float:
    """1 - cosine of the hidden states, mean over the tokens: shows that the peer does the same work. Compares as many images as `expected` has."""
    actual = engine.vision(engine.inputs(pixels))[: len(expected)].cpu()
    return 1 - torch.nn.functional.cosine_similarity(actual.double(), expected.double(), dim=-1).mean().item()


def run(engine: object, pixels: torch.Tensor, order: dict) -> list[float]:
    """Seconds of each run of a whole batch, after one that is not counted: the caches hold another engine's weights."""
    batch = engine.inputs(torch.cat([pixels] * (-(-order["batch"] // len(pixels))))[: order["batch"]])
    if order["task"] == "caption-known":
        batch = engine.features(batch)
    work, seconds = getattr(engine, order["task"].replace("-", "_")), []
    wait = getattr(engine, "wait", lambda: None)  # a GPU computes asynchronously
    for _ in range(1 + order["runs"]):
        wait()
        began = time.perf_counter()
        work(batch)
        wait()
        seconds.append(time.perf_counter() - began)
    return seconds[1:]


def peak_gib() -> float:
    """The largest memory that this process had."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text()).group(1)) / 2**20


def main() -> None:
    """Loads, says so, obeys until the input ends."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    args, began = parse(), time.monotonic()
    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()

    def reply(document: dict) -> None:
        print(json.dumps(document), file=replies, flush=True)

    pixels = pictures.pixel_values(pictures.crops(args.photos, max(args.batches)))
    # Conversion and quantisation trace the model, which inference mode does not allow everywhere.
    first = pixels[: min(args.batches)]
    with torch.no_grad():
        engine, expected = load(args, first)
    batches = [batch for batch in args.batches if batch >= engine.least_batch]
    # CUDA graphs keep tensors, which may then not be those of inference mode.
    with torch.no_grad() if args.device == "cuda" else torch.inference_mode():
        engine.facts["hidden states, 1 - cosine to f32"] = distance(engine, pixels[: min(batches)], expected)
        tasks = [t for t in args.tasks if t in engine.tasks]
        for task in tasks:
            for batch in batches:
                run(engine, pixels, {"task": task, "batch": batch, "runs": engine.further_warm_up_runs if args.device == "cuda" else 0})
        engine.facts |= {"load seconds": time.monotonic() - began, "peak GiB": peak_gib()}
        reply({"tasks": tasks, "batches": batches, "facts": engine.facts})
        for line in sys.stdin:
            reply({"seconds": run(engine, pixels, json.loads(line))})


if __name__ == "__main__":
    main()
