#!/usr/bin/env python3
"""Measures PyTorch, OpenVINO, ONNX Runtime, zentorch and our own engine on one checkpoint, alternating, in one run; README.md beside it says how.

Usage: peers.py --work DIR --bert DIR --photos DIR --server BINARY [--device cuda] [--rounds 5] [--batches 1,8] [--tasks ...] [--engines ...] [--json FILE]
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

from perf import checkpoint, machine, own, results
from perf.child import Child

DEFAULT_PEERS = [
    "torch-f32-sdpa", "torch-bf16-shipped", "torch-bf16-sdpa", "torch-bf16-sdpa-compiled", "openvino-f32", "openvino-bf16", "openvino-int8"
]  # fmt: skip
ZENTORCH = "zentorch-bf16"
# Only if named in --engines.
FURTHER_PEERS = ["openvino-bf16-throughput", "openvino-int8-throughput", "onnxruntime-f32", "onnxruntime-int8-dynamic", ZENTORCH]
PEERS = [*DEFAULT_PEERS, *FURTHER_PEERS]
DEFAULT_TASKS = ["vision", "caption"]
TASKS = [*DEFAULT_TASKS, "caption-known"]
DEFAULT = [*DEFAULT_PEERS, "blip-server-bf16", "blip-server-f32", "blip-server-int8"]
CUDA_PEERS = ["torch-bf16-shipped", "torch-bf16-sdpa", "torch-bf16-sdpa-compiled"]
CUDA_OWN = ["blip-server-bf16", "blip-server-f32", "blip-server-f16"]


def parse() -> argparse.Namespace:
    """The command line."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--work", type=Path, required=True, help="where the checkpoint and the converted models are made, and kept")
    arguments.add_argument("--bert", type=Path, required=True, help="directory of bert-base-uncased's vocab.txt and tokenizer.json")
    arguments.add_argument("--photos", type=Path, required=True, help="directory of chelsea.png, coffee.png and rocket.jpg")
    arguments.add_argument("--server", type=Path, required=True, help="the blip-server binary")
    arguments.add_argument("--rounds", type=int, default=5, help="how often every engine has its turn")
    arguments.add_argument("--runs", type=int, default=3, help="timed runs of each case in a round; their median counts")
    arguments.add_argument("--batches", type=lambda v: [int(n) for n in v.split(",")], default=[1, 8])
    arguments.add_argument("--tasks", type=lambda v: v.split(","), default=DEFAULT_TASKS, help=f"of {','.join(TASKS)}")
    arguments.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="cuda: our engine and PyTorch on the first NVIDIA GPU")
    arguments.add_argument("--engines", type=lambda v: v.split(","), help=f"of {','.join([*PEERS, *own.ENGINES])}")
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--zentorch-python", type=Path, help=f"Python of a virtual environment with requirements-zentorch.txt; {ZENTORCH} needs it")
    arguments.add_argument("--json", type=Path, help="everything that was measured")
    args = arguments.parse_args()
    engines = [*CUDA_PEERS, *CUDA_OWN] if args.device == "cuda" else [*PEERS, *own.ENGINES]
    args.engines = args.engines or ([*CUDA_PEERS, *CUDA_OWN[:2]] if args.device == "cuda" else DEFAULT)
    for name, known in (("tasks", TASKS), ("engines", engines)):
        if unknown := set(getattr(args, name)) - set(known):
            arguments.error(f"--{name}: {sorted(unknown)} is not among {known}")
    for engine in args.engines:
        if engine.endswith("-throughput") and max(args.batches) == 1:
            arguments.error(f"{engine} runs batches above 1 only; add one to --batches")
    if ZENTORCH in args.engines and not args.zentorch_python:
        print(f"{ZENTORCH} is skipped: it needs another version of torch; install requirements-zentorch.txt elsewhere and pass --zentorch-python", flush=True)
        args.engines.remove(ZENTORCH)
    args.server = args.server.resolve()
    return args


def command(args: argparse.Namespace) -> str:
    """The command without the paths of this machine."""
    lists = f"--batches {','.join(map(str, args.batches))} --tasks {','.join(args.tasks)} --engines {','.join(args.engines)}"
    device = "" if args.device == "cpu" else f"--device {args.device} "
    return f"peers.py --work DIR --bert DIR --photos DIR --server blip-server {device}--rounds {args.rounds} --runs {args.runs} {lists} --threads {args.threads}"


def start_peers(args: argparse.Namespace) -> dict[str, Child]:
    """Every peer in a process of its own, loaded one after another."""
    children = {}
    settings = ["--work", str(args.work), "--photos", str(args.photos), "--device", args.device]
    settings += ["--batches", ",".join(map(str, args.batches)), "--tasks", ",".join(args.tasks)]
    for engine in (e for e in args.engines if e in PEERS):
        print(f"loading {engine} ...", end=" ", flush=True)
        python = args.zentorch_python.absolute() if engine == ZENTORCH else Path(sys.executable)
        children[engine] = Child(engine, settings, args.threads, args.work / f"{engine}.log", python)
        children[engine].start()
        facts = children[engine].facts
        distance = facts["hidden states, 1 - cosine to f32"]
        print(f"{facts['load seconds']:.0f} s, {facts['peak GiB']:.1f} GiB at most, 1 - cosine to f32 {distance:.1e}", flush=True)
    return children


def one_round(
    args: argparse.Namespace, number: int, turns: list[str], children: dict[str, Child], owns: dict[str, own.Own], measured: results.Measured
) -> None:
    """Every engine once, in the order given."""
    for engine in turns:
        began = time.monotonic()
        if engine in children:
            child = children[engine]
            seconds = {(task, batch): child.run(task, batch, args.runs) for task in child.tasks for batch in child.batches}
        else:
            seconds = owns[engine].run(args.tasks, args.batches, args.runs)
        said = []
        for (task, batch), taken in seconds.items():
            case = results.case_name(task, batch)
            measured[engine].setdefault(case, []).append(taken)
            said.append(f"{case} {results.milliseconds(taken, case):.1f} ms")
        print(f"round {number + 1}/{args.rounds} {engine}: {', '.join(said)} ({time.monotonic() - began:.0f} s)", flush=True)


def document(args: argparse.Namespace, children: dict[str, Child], owns: dict[str, own.Own], measured: results.Measured, others: list[float]) -> dict:
    """Everything that was measured so far."""
    engines: dict[str, dict] = {name: child.facts for name, child in children.items()}
    engines |= {name: {"level": o.level, "bench": o.documents} for name, o in owns.items()}
    complete = {engine: cases for engine, cases in measured.items() if cases}
    return {
        "command": command(args), "device": args.device, "machine": machine.describe(args.server, args.threads), "others_use_before_rounds": others, "engines": engines, "seconds": complete,
        "times": results.times(complete), "ratios": results.ratios(complete), "goals": results.goals(complete, args.device),
    }  # fmt: skip


def main() -> int:
    """Loads all, measures in rounds, prints the tables."""
    args = parse()
    args.work.mkdir(parents=True, exist_ok=True)
    model = checkpoint.make(args.bert, args.work)
    owns = {e: own.Own(e, args.server, model, args.work, args.threads, args.device) for e in args.engines if e in own.ENGINES}
    measured: results.Measured = {engine: {} for engine in args.engines}
    children, others = {}, []
    try:
        children = start_peers(args)
        for number in range(args.rounds):
            others.append(machine.busy())
            print(f"round {number + 1}/{args.rounds}: others use {100 * others[-1]:.0f} % of the cores", flush=True)
            one_round(args, number, args.engines[:: -1 if number % 2 else 1], children, owns, measured)
            found = document(args, children, owns, measured, others)
            if args.json:
                args.json.write_text(json.dumps(found, indent=1) + "\n")
    finally:
        for child in children.values():
            child.end()
    noise = f"Before the rounds others used {', '.join(f'{100 * share:.0f}' for share in others)} % of the cores."
    own_packages = [f" {name} ran with {machine.versions(child.facts['packages'])}." for name, child in children.items() if "packages" in child.facts]
    print(f"\n{machine.line(found['machine'])}. {noise}{''.join(own_packages)}\n\n{results.tables(found)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
