"""Compiles the kernels with NVRTC and assembles them with ptxas: see compile.sh, which calls this with their paths."""

import argparse
import ctypes
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

KERNELS = Path(__file__).resolve().parents[2] / "src/gpu/kernels"


def source():
    """Joins the files that source.rs names, in its order."""
    names = re.findall(r'include_str!\("([^"]+\.cuh?)"\)', (KERNELS / "source.rs").read_text())
    return "\n".join((KERNELS / name).read_text() for name in names)


def compile_text(library, text, architecture):
    nvrtc = ctypes.CDLL(library)
    program = ctypes.c_void_p()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"kernels.cu", 0, None, None)
    options = [f"--gpu-architecture=compute_{architecture}".encode(), b"--std=c++17"]
    status = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    if status != 0 or b"warning" in log.value:
        sys.exit(f"NVRTC for sm_{architecture}: status {status}\n{log.value.decode()}")
    nvrtc.nvrtcGetPTXSize(program, ctypes.byref(size))
    ptx = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetPTX(program, ptx)
    # Comments are a tenth of the text.
    lines = (re.sub(r"\s*//.*", "", line).strip() for line in ptx.value.decode().splitlines())
    return "".join(line + "\n" for line in lines if line)


def assemble(ptxas, ptx, architecture):
    """Returns registers, spilled bytes, stack bytes and shared memory of each kernel."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernels.ptx"
        path.write_text(ptx)
        command = [ptxas, "-v", f"-arch=sm_{architecture}", "-o", str(Path(folder) / "kernels.cubin"), str(path)]
        result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        sys.exit(f"ptxas for sm_{architecture}:\n{result.stdout}{result.stderr}")
    usage, name = {}, None
    for line in (result.stdout + result.stderr).splitlines():
        if match := re.search(r"Compiling entry function '(\w+)'", line):
            name = match[1]
            usage[name] = [0, 0, 0, 0]
        elif match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            if name:
                usage[name][1] = int(match[2]) + int(match[3])
                usage[name][2] = int(match[1])
        elif match := re.search(r"Used (\d+) registers", line):
            usage[name][0] = int(match[1])
            if shared := re.search(r"(\d+) bytes smem", line):
                usage[name][3] = int(shared[1])
    return usage


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nvrtc", required=True, help="libnvrtc that knows all architectures")
    parser.add_argument("--old-nvrtc", required=True, help="libnvrtc that compiles the committed PTX")
    parser.add_argument("--ptxas", required=True)
    parser.add_argument("--write", action="store_true", help="write kernels.ptx instead of comparing it")
    options = parser.parse_args()
    text = source()
    failed = False
    usages = {}
    for architecture in (80, 90, 120):
        started = time.monotonic()
        ptx = compile_text(options.nvrtc, text, architecture)
        compiled = time.monotonic()
        usages[architecture] = assemble(options.ptxas, ptx, architecture)
        print(f"sm_{architecture}: {len(usages[architecture])} kernels, NVRTC {compiled - started:.1f} s, "
              f"ptxas {time.monotonic() - compiled:.1f} s")
    print(f"{'kernel':36}{'registers sm_80/90/120':>24}{'spills':>8}{'stack':>7}{'shared':>8}")
    for name in sorted(usages[80]):
        values = [usage[name] for usage in usages.values()]
        spills, stack = max(value[1] for value in values), max(value[2] for value in values)
        shared = max(value[3] for value in values)
        registers = " / ".join(f"{value[0]:3}" for value in values)
        print(f"{name:36}{registers:>24}{spills:>8}{stack:>7}{shared:>8}")
        failed |= spills > 0 or stack > 0 or shared > 48 * 1024
    if failed:
        print("FAILED: a kernel spills registers, has arrays in local memory or uses more than 48 KiB of shared memory")

    fresh = compile_text(options.old_nvrtc, text, 80)
    committed = KERNELS / "kernels.ptx"
    if options.write:
        committed.write_text(fresh)
        print(f"wrote {len(fresh)} bytes of PTX")
    elif not committed.exists() or committed.read_text() != fresh:
        failed = True
        print("FAILED: kernels.ptx is not what the sources compile to; run tests/gpu/compile.sh --write")
    else:
        print(f"kernels.ptx is up to date, {len(fresh)} bytes")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
