"""What all parts of on-device.sh have in common: options, files, and how a part ends."""

import argparse
import json
import lzma
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from . import cuda

ROOT = Path(__file__).resolve().parents[3]
CHECKPOINT = "base-caption-varied"
SKIPPED = 77  # exit code of a part that lacks something


class Skipped(Exception):
    """The part lacks something."""


class Failed(Exception):
    """The part found something wrong."""


class TimeLimit(Exception):
    """`timeout` ended the part."""


def numbers(text: str) -> list[int]:
    """`1,8,64`."""
    return [int(number) for number in text.split(",")]


@dataclass
class Part:
    """A part that runs: its options, and the facts that it finds."""

    name: str
    work: Path
    results: Path
    options: argparse.Namespace
    facts: dict = field(default_factory=dict)

    @property
    def on_gpu(self) -> bool:
        """False where the script itself is tried on a machine without a GPU."""
        return self.options.device == "cuda"

    def need_gpu(self) -> None:
        """Skips the part if there is no GPU, unless it is tried on a CPU."""
        if self.on_gpu and (problem := cuda.problem()):
            raise Skipped(problem)

    def program(self, name: str, instead: Path | None = None) -> Path:
        """A program that --prepare has put into the work folder, or the one to use instead."""
        if (program := self.work / name).exists():
            return program
        if (packed := self.work / f"{name}.xz").exists():
            unpacked = program.with_suffix(".part")
            with lzma.open(packed) as source, unpacked.open("wb") as target:
                shutil.copyfileobj(source, target)
            unpacked.chmod(0o755)
            return unpacked.rename(program)
        if instead and instead.exists():
            return instead.resolve()
        raise Skipped(f"there is no {name} in {self.work}; run tests/gpu/on-device.sh --prepare")

    def server(self) -> Path:
        """The server, started with the libraries that it needs. Python does not get them: PyTorch brings libraries of its own."""
        built = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release/blip-server"
        program = self.options.server.resolve() if self.options.server else self.program("blip-server", built)
        wrapper = self.results / "blip-server"
        wrapper.write_text(f'#!/bin/sh\nLD_LIBRARY_PATH={shlex.quote(self.library_path())} exec {shlex.quote(str(program))} "$@"\n')
        wrapper.chmod(0o755)
        return wrapper

    def library_path(self) -> str:
        """LD_LIBRARY_PATH for our programs."""
        folders = [str(folder) for folder in cuda.library_folders(self.work / "libraries")]
        return ":".join([*folders, *filter(None, [os.environ.get("LD_LIBRARY_PATH")])])

    def checkpoint(self) -> Path:
        """The base-size captioner, made here if it was not carried."""
        target, bert = self.work / CHECKPOINT, self.work / "bert"
        if not (target / "complete").exists():
            if not bert.exists():
                raise Skipped(f"there is neither {CHECKPOINT} nor bert in {self.work}")
            need_torch()
            print(f"making {CHECKPOINT} ...")
            from perf import checkpoint

            checkpoint.make(bert, self.work)
        return target

    def stream(self, command: list, **settings: object) -> int:
        """Runs a command whose output is shown; returns its exit code."""
        return subprocess.run([str(word) for word in command], **settings).returncode

    def save(self, status: str, reason: str = "") -> None:
        """Writes what was found so far."""
        document = {"part": self.name, "status": status, "reason": reason, "device": self.options.device, "facts": self.facts}
        (self.results / f"{self.name}.json").write_text(json.dumps(document, indent=1) + "\n")


def need_torch(cuda_too: bool = False) -> None:
    """Skips the part if this Python cannot import what the peers need."""
    check = "import torch, transformers, PIL, numpy" + ("; assert torch.cuda.is_available(), 'PyTorch sees no GPU'" if cuda_too else "")
    ended = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    if ended.returncode != 0:
        raise Skipped(f"{sys.executable}: {(ended.stderr.strip().splitlines() or ['no message'])[-1]}")


def _end(*_: object) -> None:
    raise TimeLimit


def run(name: str, body: Callable[[Part], None]) -> None:
    """Runs a part, writes its result, and exits: 0, 1 if it failed, 77 if it was skipped."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--work", type=Path, required=True)
    arguments.add_argument("--results", type=Path, required=True)
    arguments.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    arguments.add_argument("--server", type=Path)
    arguments.add_argument("--batches", type=numbers, default=[1, 8, 64])
    arguments.add_argument("--clients", type=numbers, default=[1, 16, 64, 256])
    arguments.add_argument("--window", type=float, default=20)
    arguments.add_argument("--rounds", type=int, default=3)
    options = arguments.parse_args()
    part = Part(name, options.work, options.results, options)
    signal.signal(signal.SIGTERM, _end)
    status, reason = "passed", ""
    try:
        body(part)
    except Skipped as skipped:
        status, reason = "skipped", str(skipped)
    except Failed as failed:
        status, reason = "failed", str(failed)
    except TimeLimit:
        status, reason = "failed", "the time limit of the part ended it"
    except Exception as error:  # of any library: the other parts must run
        status, reason = "failed", f"{type(error).__name__}: {error}"
    part.save(status, reason)
    print(status + (f": {reason}" if reason else ""), flush=True)
    sys.exit({"passed": 0, "skipped": SKIPPED}.get(status, 1))
