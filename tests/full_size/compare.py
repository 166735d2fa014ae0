#!/usr/bin/env python3
"""Holds a running blip-server against transformers at full size, over HTTP; README.md beside it says what and why.

Usage: compare.py --bert DIR --photos DIR --server BINARY --work DIR [--size base|large] [--roles ...] [--recipes ...]
"""

import argparse
import gc
import json
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import PIL
import torch
import transformers
from full import comparison, photographs, references, report, weights
from full.server import Server

ROLES, RECIPES = ["caption", "vqa", "retrieval"], ["varied", "talkative"]
PHOTOS = {"base": ["chelsea", "coffee", "rocket"], "large": ["chelsea", "coffee"]}


def parse() -> argparse.Namespace:
    """The command line."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--bert", type=Path, required=True, help="directory of bert-base-uncased's vocab.txt and tokenizer.json")
    arguments.add_argument("--photos", type=Path, required=True, help="directory of chelsea.png, coffee.png and rocket.jpg")
    arguments.add_argument("--server", type=Path, help="the blip-server binary; without it only checkpoints and references are made")
    arguments.add_argument("--work", type=Path, required=True, help="where checkpoints (deleted after use) and references stand")
    arguments.add_argument("--size", choices=["base", "large"], default="base")
    arguments.add_argument("--roles", type=lambda v: v.split(","), default=ROLES)
    arguments.add_argument("--recipes", type=lambda v: v.split(","), default=RECIPES)
    arguments.add_argument("--keep", action="store_true", help="leave the checkpoints where they are")
    arguments.add_argument("--threads", type=int, default=2, help="torch's threads")
    args = arguments.parse_args()
    for name, known in (("roles", ROLES), ("recipes", RECIPES)):
        if unknown := set(getattr(args, name)) - set(known):
            arguments.error(f"--{name}: {sorted(unknown)} is not among {known}")
    return args


def machine(server: Path) -> dict:
    """What the numbers were measured on and with."""
    cpu = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    version = subprocess.run([server, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    return {
        "cpu": cpu.group(1) if cpu else platform.machine(), "cores": os.cpu_count(), "server": version, "python": platform.python_version(),
        "torch": torch.__version__, "transformers": transformers.__version__, "pillow": PIL.__version__, "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


def compare(spec: weights.Checkpoint, args: argparse.Namespace, pictures: dict, reference: dict) -> dict:
    """Starts the server on one checkpoint, asks everything, stops it."""
    found, server = comparison.Findings(), Server(args.server.resolve(), spec.name, args.work / spec.name)
    server.start()
    try:
        if spec.role == "retrieval":
            comparison.matching(server, pictures, reference, found)
        else:
            comparison.generating(spec.role, server, pictures, reference, found)
        seconds = list(server.seconds)
    finally:
        ended = server.stop()
        (args.work / f"{spec.name}.log").write_text("".join(server.log))
    if ended["exit_code"] != 0:
        found.wrong(f"exit code {ended['exit_code']} after SIGTERM")
    return {
        "name": spec.name, "role": spec.role, "recipe": spec.recipe, "size": spec.size, "found": found.document(), "ended": ended,
        "start_seconds": server.start_seconds, "seconds": seconds, "reference_seconds": reference["seconds"],
        "weights_file": "pytorch_model.bin" if spec.as_bin else "model.safetensors", "reference": report.facts(spec, reference),
        "machine": machine(args.server),
    }  # fmt: skip


def main() -> int:
    """One checkpoint after another; the exit code says whether every answer was equal."""
    args = parse()
    torch.set_grad_enabled(False)
    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    args.work.mkdir(parents=True, exist_ok=True)
    pictures = photographs.load(args.photos, PHOTOS[args.size])
    wrong = 0
    for spec in weights.wanted(args.size, args.roles, args.recipes):
        print(spec.name, flush=True)
        made = weights.make(spec, args.bert, args.work)
        reference = references.ensure(spec, pictures, args.work)
        gc.collect()  # the reference's model and the server's must not stand in memory together
        print(f"  checkpoint made in {made:.0f} s, reference in {reference['seconds']:.0f} s", flush=True)
        if args.server:
            result = compare(spec, args, pictures, reference)
            (args.work / f"{spec.name}.result.json").write_text(json.dumps(result))
            print("  " + report.line(result), flush=True)
            for mismatch in result["found"]["mismatches"]:
                print(f"  DIFFERS {mismatch}", flush=True)
            wrong += len(result["found"]["mismatches"])
            report.write(args.work, Path(__file__).with_name("RESULTS.md"))
        if not args.keep and args.server:
            weights.remove(spec, args.work)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
