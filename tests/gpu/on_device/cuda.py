"""NVIDIA's driver and libraries as the dynamic linker finds them, by the standard library alone."""

import ctypes
import site
import subprocess
import sys
import sysconfig
from pathlib import Path

DRIVER = "libcuda.so.1"
LIBRARIES = ["libcublasLt.so", "libnvrtc.so"]
NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE


def problem() -> str:
    """Why no GPU can be used; empty if one can."""
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError:
        return "no NVIDIA driver"
    status, count = driver.cuInit(0), ctypes.c_int()
    if status not in (0, NO_DEVICE):
        return f"the NVIDIA driver does not work: cuInit returned {status}"
    if status == NO_DEVICE or driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return "the NVIDIA driver found no GPU"
    return ""


def driver_version() -> tuple[int, int] | None:
    """The newest CUDA version that the driver supports: (12, 4)."""
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError:
        return None
    number = ctypes.c_int()
    if driver.cuDriverGetVersion(ctypes.byref(number)) != 0:
        return None
    return number.value // 1000, number.value % 1000 // 10


def is_found(name: str, folder: Path | None = None) -> bool:
    """True if the dynamic linker opens the library, from the folder if one is given. In another process, since a library cannot be closed again."""
    path = str(folder / name) if folder else name
    return subprocess.run([sys.executable, "-c", "import ctypes, sys; ctypes.CDLL(sys.argv[1])", path], capture_output=True).returncode == 0


def majors() -> list[int]:
    """The CUDA versions whose libraries fit the driver, in the order in which our programs look for them."""
    version = driver_version()
    return [major for major in (13, 12) if version is None or major <= version[0]]


def library_folders(carried: Path) -> list[Path]:
    """Folders to add to LD_LIBRARY_PATH, so that our programs find cuBLASLt and NVRTC.

    None for a library that the host has; else packages of this Python, a CUDA toolkit, or what was carried.
    """
    places = {Path(path) for path in [*site.getsitepackages(), sysconfig.get_path("purelib")]}
    candidates = [folder for place in sorted(places) for folder in sorted(place.glob("nvidia/*/lib"))]
    candidates += [folder for pattern in ("cuda*/lib64", "cuda*/targets/x86_64-linux/lib") for folder in sorted(Path("/usr/local").glob(pattern), reverse=True)]
    candidates.append(carried)
    folders = []
    for library in LIBRARIES:
        names = [f"{library}.{major}" for major in majors()]
        if any(is_found(name) for name in names):
            continue
        # The major version counts first: our programs prefer the newest one, too.
        fitting = (folder for name in names for folder in candidates if (folder / name).exists() and is_found(name, folder))
        if folder := next(fitting, None):
            folders.append(folder)
    return list(dict.fromkeys(folders))
