"""The unit tests of the server as a prepared program."""

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .part import ROOT, Part, Skipped

NO_GPU = re.compile(r"skipped: this (machine|host) has no")
OK = re.compile(r"^test (\S+) \.\.\. .*\bok$", re.MULTILINE)
SUMMARY = re.compile(r"test result: \w+\. (\d+) passed; (\d+) failed; (\d+) ignored")


@dataclass
class Outcome:
    """How one run of the test program ended."""

    status: int
    passed: int
    failed: int
    without_gpu: int  # tests that found no GPU, and passed without doing anything
    output: str


@contextlib.contextmanager
def fixtures(part: Part) -> Iterator[None]:
    """Makes tests/fixtures appear where the test program was built, because it looks for them there. Undone afterwards."""
    built_in = Path((part.work / "tests.folder").read_text().strip()) if (part.work / "tests.folder").exists() else ROOT
    if (built_in / "tests/fixtures").is_dir():
        yield
        return
    missing = [folder for folder in built_in.parents if not folder.exists()]
    try:
        built_in.parent.mkdir(parents=True, exist_ok=True)
        built_in.symlink_to(ROOT)
    except OSError as error:
        raise Skipped(f"the tests look for fixtures in {built_in}, where they were built, and no link to this repository can be made there: {error}") from error
    try:
        yield
    finally:
        built_in.unlink()
        for folder in missing:
            folder.rmdir()


def run(part: Part, prefix: list, arguments: list[str], seconds: float | None = None) -> Outcome:
    """Runs the test program, below another one if `prefix` is not empty, and shows its output."""
    program = part.program("tests")
    # The tests must find no C++ compiler: with one, they would also run the kernels on the CPU, which takes minutes.
    environment = os.environ | {"PATH": "/nonexistent", "LD_LIBRARY_PATH": part.library_path(), "RUST_BACKTRACE": "1"}
    environment.pop("CXX", None)
    command = [str(word) for word in [*prefix, program, *arguments, "--nocapture"]]
    with fixtures(part):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True)
        try:
            output, _ = process.communicate(timeout=seconds)
        finally:
            # The test program too, if another one runs it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    shown = [line for line in output.splitlines() if not NO_GPU.search(line)]
    print("\n".join(shown if process.returncode == 0 else shown[-80:]), flush=True)
    counts = [int(count) for count in found.groups()] if (found := SUMMARY.search(output)) else [0, 0, 0]
    return Outcome(process.returncode, counts[0], counts[1], len(NO_GPU.findall(output)), output)


def names(part: Part, filters: list[str]) -> list[str]:
    """The tests that the filters select."""
    environment = os.environ | {"LD_LIBRARY_PATH": part.library_path()}
    listed = subprocess.run([part.program("tests"), *filters, "--list"], env=environment, capture_output=True, text=True, check=True)
    return [line.removesuffix(": test") for line in listed.stdout.splitlines() if line.endswith(": test")]
