"""The GPU, the driver, and which libraries and tools are found."""

import os
import shutil
import subprocess
import sys

from perf import machine

from . import cuda
from .part import Part, Skipped, run
from .sanitizer import find_tool

# As `nvidia-smi --query-gpu` spells them.
QUERY = [
    "name", "driver_version", "compute_cap", "memory.total", "memory.used", "clocks.sm", "clocks.max.sm", "clocks.mem", "clocks.max.mem", "power.limit",
    "temperature.gpu", "persistence_mode", "mig.mode.current", "ecc.mode.current", "pstate",
]  # fmt: skip
VERSIONS = """
import torch, transformers
print(f"torch {torch.__version__}, transformers {transformers.__version__}, CUDA {torch.version.cuda}, GPU {torch.cuda.is_available()}")
"""


def gpus() -> list[dict[str, str]]:
    """What nvidia-smi says of each GPU; empty without nvidia-smi."""
    if not shutil.which("nvidia-smi"):
        return []
    ended = subprocess.run(["nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader"], capture_output=True, text=True)
    if ended.returncode != 0:
        return []
    return [dict(zip(QUERY, (value.strip() for value in line.split(",")))) for line in ended.stdout.strip().splitlines()]


def torch_versions() -> str:
    """Of this Python."""
    ended = subprocess.run([sys.executable, "-c", VERSIONS], capture_output=True, text=True)
    return ended.stdout.strip() if ended.returncode == 0 else "not found"


def body(part: Part) -> None:
    """Prints and records all facts, also on a machine without a GPU."""
    version = cuda.driver_version()
    names = [cuda.DRIVER, *(f"{library}.{major}" for library in cuda.LIBRARIES for major in (13, 12))]
    facts = {
        "gpus": gpus(), "driver supports CUDA": ".".join(map(str, version)) if version else "no driver",
        "found by the dynamic linker": [name for name in names if cuda.is_found(name)] or "none",
        "added to LD_LIBRARY_PATH": [str(folder) for folder in cuda.library_folders(part.work / "libraries")] or "none",
        "compute-sanitizer": str(find_tool() or "not found"), "python": torch_versions(),
    }  # fmt: skip
    part.facts |= facts
    try:
        part.facts |= {"host": machine.describe(part.server(), os.cpu_count() or 1)}
        print(machine.line(part.facts["host"]))
    except Skipped as skipped:
        print(skipped)
    for name, value in facts.items():
        print(f"{name}: {value}")
    part.need_gpu()


if __name__ == "__main__":
    run("machine", body)
