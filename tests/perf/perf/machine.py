"""What the numbers were measured on and with."""

import importlib.metadata
import os
import platform
import re
import subprocess
import time
from pathlib import Path

PACKAGES = ["torch", "transformers", "openvino", "nncf", "onnxruntime", "litserve", "fastapi", "uvicorn", "numpy", "pillow"]
# Of the CPU's flags those that decide which kernels run.
FLAGS = ["avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8"]


def describe(server: Path, threads: int) -> dict:
    """The machine, the versions of the peers and of the server, and the date."""
    cpu = _first(r"model name\s*:\s*(.*)", "/proc/cpuinfo") or platform.machine()
    family, model = _first(r"cpu family\s*:\s*(\d+)", "/proc/cpuinfo"), _first(r"model\s*:\s*(\d+)", "/proc/cpuinfo")
    flags = (_first(r"flags\s*:\s*(.*)", "/proc/cpuinfo") or "").split()
    kilobytes = int(_first(r"MemTotal:\s*(\d+)", "/proc/meminfo") or 0)
    return {
        "cpu": f"{cpu} (family {family}, model {model})" if family else cpu, "flags": [f for f in FLAGS if f in flags], "cores": os.cpu_count(),
        "threads": threads, "memory_gib": round(kilobytes / 2**20, 1), "kernel": platform.release(), "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))}, "server": server_version(server), "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


def server_version(server: Path) -> str:
    """What the binary says of itself."""
    return subprocess.run([server, "--version"], capture_output=True, text=True, check=True).stdout.strip()


def line(machine: dict) -> str:
    """The machine in a line."""
    return (
        f"{machine['date']}: {machine['cpu']}, {machine['cores']} cores ({', '.join(machine['flags'])}), {machine['memory_gib']} GiB, "
        f"{machine['threads']} threads; {machine['server']}; Python {machine['python']}, {versions(machine['packages'])}"
    )


def versions(packages: dict[str, str]) -> str:
    """`torch 2.15.0, numpy 2.4.6`."""
    return ", ".join(f"{name} {version}" for name, version in packages.items())


def busy(seconds: float = 2.0) -> float:
    """Share of the cores that others use while all engines stand still; above a few percent the machine is not quiet."""
    before = _ticks()
    time.sleep(seconds)
    idle, total = (after - earlier for after, earlier in zip(_ticks(), before))
    return 1 - idle / max(1, total)


def _ticks() -> tuple[int, int]:
    """Idle and all ticks of all cores."""
    ticks = [int(n) for n in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return ticks[3] + ticks[4], sum(ticks)


def _first(pattern: str, path: str) -> str | None:
    found = re.search(pattern, Path(path).read_text())
    return found.group(1) if found else None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
