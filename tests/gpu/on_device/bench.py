"""`blip-server bench` on the base-size captioner, alone."""

import os
import statistics

from perf import results
from perf.own import Own

from .part import Failed, Part, run

TASKS = ["vision", "caption", "caption-known"]
RUNS = 10
DTYPES = ["bf16", "f32"]


def body(part: Part) -> None:
    """A process for each number format and batch size, so that one that fails leaves the others."""
    part.need_gpu()
    server, checkpoint = part.server(), part.checkpoint()
    runs = RUNS if part.on_gpu else 1
    wrong = []
    part.facts["milliseconds of a batch"] = {dtype: {} for dtype in DTYPES}
    for dtype in DTYPES:
        for batch in part.options.batches:
            own = Own(f"blip-server-{dtype}", server, checkpoint, part.results, os.cpu_count() or 1, part.options.device)
            try:
                seconds = own.run(TASKS, [batch], runs)
            except RuntimeError as error:
                print(error)
                wrong.append(f"{dtype} x{batch}: {str(error).strip().splitlines()[-1]}")
                continue
            cases = {results.case_name(task, batch): 1000 * statistics.median(taken) for (task, _), taken in seconds.items()}
            part.facts["milliseconds of a batch"][dtype] |= cases
            part.facts["computed by"] = own.level
            print(f"{dtype} on {own.level}: " + ", ".join(f"{case} {taken:.3f} ms" for case, taken in cases.items()), flush=True)
    if wrong:
        raise Failed("; ".join(wrong))


if __name__ == "__main__":
    run("bench", body)
