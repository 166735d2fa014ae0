"""compute-sanitizer on a few tests: accesses outside of memory, and races in shared memory."""

import shutil
import subprocess
from pathlib import Path

from . import rust_tests
from .part import Failed, Part, Skipped, run

FOUND = 99  # exit code if the tool reports something
SECONDS = 110  # for each run: two tools and two tests fit into the time limit of a part
TESTS = ["model::tests::cuda::graphs::decode_steps_by_graphs_give_the_events_of_direct_ones", "model::tests::cuda::towers::vision_features_equal_the_reference"]
# Devices and tests ask for errors of the driver on purpose (a terabyte, 4096 threads), so these are no findings.
TOOLS = {"memcheck": ["--report-api-errors", "no"], "racecheck": []}


def find_tool() -> Path | None:
    """On the path, or where a toolkit or Nsight Compute puts it."""
    if found := shutil.which("compute-sanitizer"):
        return Path(found)
    places = [*Path("/usr/local").glob("cuda*/bin/compute-sanitizer"), *Path("/opt/nvidia").glob("**/compute-sanitizer")]
    return next((place for place in sorted(places, reverse=True) if place.is_file()), None)


def body(part: Part) -> None:
    """Each tool with each test."""
    part.need_gpu()
    tool = find_tool()
    if not tool:
        raise Skipped("compute-sanitizer is not installed")
    if not part.on_gpu:
        raise Skipped("compute-sanitizer needs a GPU")
    wrong = []
    for name, options in TOOLS.items():
        for test in TESTS:
            prefix = [tool, "--tool", name, "--error-exitcode", str(FOUND), *options]
            case = f"{name} {test.rpartition('::')[2]}"
            try:
                outcome = rust_tests.run(part, prefix, ["--exact", test, "--test-threads", "1"], SECONDS)
            except subprocess.TimeoutExpired:
                # The tools slow kernels down by one or two orders of magnitude, so this is no finding.
                part.facts[case] = f"not finished after {SECONDS} s"
                print(f"{case}: {part.facts[case]}", flush=True)
                continue
            is_clean = outcome.status == 0 and outcome.passed == 1 and outcome.without_gpu == 0
            part.facts[case] = "clean" if is_clean else f"exit code {outcome.status}, {outcome.passed} passed"
            if not is_clean:
                wrong.append(f"{case}: {part.facts[case]}")
    if wrong:
        raise Failed("; ".join(wrong))
    if "clean" not in part.facts.values():
        raise Failed("no run finished")


if __name__ == "__main__":
    run("sanitizer", body)
