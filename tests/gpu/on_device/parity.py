"""The Rust tests that run on the first GPU: the device, and the models against transformers.

All tests of a process share a context of the GPU, which a fault of one kernel makes useless. So tests that fail run again, each in a process of its own:
those that fail then, too, are the ones to look at.
"""

import os
import subprocess

from . import rust_tests
from .part import Failed, Part, run

ALONE_SECONDS, ALONE_AT_MOST = 20, 40  # time of a test that runs again, and number of such tests
# `precision` compares bf16 and f16 on the GPU; the tests of the models' operations run in f32.
GROUPS = {"device and f32": ["gpu::cuda", "model::tests::cuda"], "bf16 and f16": ["model::tests::precision"]}


def alone(part: Part, filters: list[str], outcome: rust_tests.Outcome) -> dict:
    """Runs the tests that did not pass again, one after another."""
    passed = set(rust_tests.OK.findall(outcome.output))
    suspects = [name for name in rust_tests.names(part, filters) if name not in passed]
    failing = []
    for test in suspects[:ALONE_AT_MOST]:
        print(f"\nalone: {test}", flush=True)
        try:
            again = rust_tests.run(part, [], ["--exact", test], ALONE_SECONDS)
        except subprocess.TimeoutExpired:
            failing.append(f"{test} (not finished after {ALONE_SECONDS} s)")
            continue
        if again.status != 0:
            failing.append(test)
    print(f"\nthese tests also fail alone: {', '.join(failing) or 'none'}", flush=True)
    return {"run again alone": suspects[:ALONE_AT_MOST], "fail alone": failing}


def body(part: Part) -> None:
    """Runs both groups, also if the first one fails."""
    part.need_gpu()
    wrong = []
    threads = str(min(8, os.cpu_count() or 1))
    for name, filters in GROUPS.items():
        outcome = rust_tests.run(part, [], [*filters, "--test-threads", threads])
        part.facts[name] = {"passed": outcome.passed, "failed": outcome.failed, "found no GPU": outcome.without_gpu}
        if outcome.status != 0 or outcome.passed == 0:
            wrong.append(f"{name}: {outcome.failed} failed, {outcome.passed} passed, exit code {outcome.status}")
            part.facts[name] |= alone(part, filters, outcome)
        elif part.on_gpu and outcome.without_gpu:
            wrong.append(f"{name}: {outcome.without_gpu} tests did not find the GPU")
    if wrong:
        raise Failed("; ".join(wrong))


if __name__ == "__main__":
    run("parity", body)
