"""One table of everything that the parts found, also as JSON: results.json."""

import argparse
import json
import statistics
from dataclasses import dataclass
from pathlib import Path

from perf import results

PARTS = ["machine", "parity", "bench", "http", "peers", "peers-compiled", "sanitizer"]
TOKENS = 20
REASON = 160  # characters of a reason in the table
SHIPPED, SDPA, COMPILED = "torch-bf16-shipped", "torch-bf16-sdpa", "torch-bf16-sdpa-compiled"


@dataclass(frozen=True)
class Row:
    """A kind of work. Times are of a whole batch, divided by `steps`; the goals are for an H100 and bf16."""

    name: str
    case: str
    steps: int = 1
    wanted_ms: float | None = None
    wanted_ratio: float | None = None  # compiled PyTorch's time by ours


# A decode step is the twentieth part of a caption of an image whose features are known.
ROWS = [
    Row("vision x1", "vision x1", 1, 0.5, 1.5),
    Row("vision x8", "vision x8", 1, 1.8),
    Row("vision x64", "vision x64", 1, None, 1.0),
    Row("decode step x1", "caption-known x1", TOKENS, 0.2, 2.5),
    Row("decode step x8", "caption-known x8", TOKENS),
    Row("decode step x64", "caption-known x64", TOKENS, 0.6, 2.0),
    Row("caption of 20 tokens x1", "caption x1", 1, 4.5),
    Row("caption of 20 tokens x8", "caption x8"),
    Row("caption of 20 tokens x64", "caption x64"),
]


def read(folder: Path, ran: list[str]) -> dict[str, dict]:
    """The parts by name. One that ran and left no result was killed."""
    found = {}
    for name in PARTS:
        file = folder / f"{name}.json"
        if file.exists():
            found[name] = json.loads(file.read_text()) | {"earlier run": name not in ran}
        elif name in ran:
            found[name] = {"part": name, "status": "failed", "reason": "it left no result", "facts": {}, "earlier run": False}
    return found


def facts(parts: dict[str, dict], name: str) -> dict:
    """Facts of a part; empty if it did not run."""
    return parts.get(name, {}).get("facts", {})


def peer_ms(parts: dict[str, dict], engine: str, row: Row) -> float | None:
    """Median over the rounds."""
    rounds = facts(parts, "peers-compiled" if engine == COMPILED else "peers").get("seconds", {}).get(engine, {}).get(row.case)
    return 1000 * statistics.median(statistics.median(runs) for runs in rounds) / row.steps if rounds else None


def compiled_ratio(parts: dict[str, dict], row: Row) -> float | None:
    """Median over the rounds of the compiled peer's time by ours."""
    ratios = facts(parts, "peers-compiled").get("ratios", [])
    wanted = (COMPILED, row.case, "blip-server-bf16")
    return next((found["ratio"]["median"] for found in ratios if (found["peer"], found["case"], found["own"]) == wanted), None)


def measured(parts: dict[str, dict], row: Row) -> dict:
    """Goal and measurements of one row; None for what was not measured."""
    by_dtype = facts(parts, "bench").get("milliseconds of a batch", {})
    ours = {dtype: by_dtype[dtype][row.case] / row.steps if row.case in by_dtype.get(dtype, {}) else None for dtype in ("bf16", "f32")}
    found = {
        "work": row.name, "goal_ms": row.wanted_ms, "bf16_ms": ours["bf16"], "f32_ms": ours["f32"],
        "measured_by_goal": ours["bf16"] / row.wanted_ms if ours["bf16"] and row.wanted_ms else None,
        "torch_shipped_ms": peer_ms(parts, SHIPPED, row), "torch_sdpa_ms": peer_ms(parts, SDPA, row), "torch_compiled_ms": peer_ms(parts, COMPILED, row),
        "goal_ratio": row.wanted_ratio, "compiled_by_ours": compiled_ratio(parts, row),
    }  # fmt: skip
    checks = []
    if row.wanted_ms:
        checks.append(None if found["bf16_ms"] is None else found["bf16_ms"] <= row.wanted_ms)
    if row.wanted_ratio:
        checks.append(None if found["compiled_by_ours"] is None else found["compiled_by_ours"] >= row.wanted_ratio)
    found["met"] = False if False in checks else None if None in checks or not checks else True
    return found


def number(value: float | None, digits: int = 2) -> str:
    """`-` for what was not measured."""
    return "-" if value is None else f"{value:.{digits}f}"


def verdict(row: dict) -> str:
    """Whether the goal is met."""
    if row["goal_ms"] is None and row["goal_ratio"] is None:
        return ""
    return {True: "yes", False: "no", None: "not measured"}[row["met"]]


def work_table(rows: list[dict]) -> str:
    """Goals and measurements."""
    head = ["work", "goal, ms", "bf16, ms", "by goal", "f32, ms", "PyTorch, ms", "SDPA, ms", "compiled, ms", "goal, compiled by ours", "compiled by ours", "met"]
    body = [
        [
            row["work"], f"<= {row['goal_ms']}" if row["goal_ms"] else "", number(row["bf16_ms"], 3), number(row["measured_by_goal"]), number(row["f32_ms"], 3),
            number(row["torch_shipped_ms"]), number(row["torch_sdpa_ms"]), number(row["torch_compiled_ms"]),
            f">= {row['goal_ratio']}" if row["goal_ratio"] else "", number(row["compiled_by_ours"]), verdict(row),
        ]
        for row in rows
    ]  # fmt: skip
    return results.table(head, body)


def http_table(rows: list[dict]) -> str:
    """Throughput and latencies."""
    head = ["clients", "captions per second", "p50, ms", "p90, ms", "p99, ms", "errors"]
    body = [
        [str(row["clients"]), number(row["requests_per_second"], 1), *(number(row[key], 1) for key in ("p50_ms", "p90_ms", "p99_ms")), str(sum(row["errors"].values()))]
        for row in rows
    ]
    return results.table(head, body)


def part_table(parts: dict[str, dict]) -> str:
    """How each part ended."""
    rows = []
    for name, part in parts.items():
        reason = (part["reason"].splitlines() or [""])[0]
        rows.append([name, part["status"] + (" (earlier run)" if part["earlier run"] else ""), reason if len(reason) <= REASON else reason[:REASON] + " ..."])
    return results.table(["part", "result", "why (in full in results.json)"], rows)


def device(parts: dict[str, dict]) -> str:
    """What the times were measured on."""
    gpus = facts(parts, "machine").get("gpus") or []
    gpu = f"{gpus[0]['name']}, driver {gpus[0]['driver_version']}" if gpus else None
    if any(part.get("device") == "cpu" for part in parts.values()):
        return "a CPU: this run tries the script, and its times say nothing"
    return gpu or facts(parts, "peers").get("engines", {}).get(SHIPPED, {}).get("device") or facts(parts, "bench").get("computed by") or "no GPU"


def main() -> None:
    """Prints the tables and writes results.json."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--results", type=Path, required=True)
    arguments.add_argument("--ran", type=lambda text: text.split(","), required=True)
    args = arguments.parse_args()
    parts = read(args.results, args.ran)
    rows = [measured(parts, row) for row in ROWS]
    load = facts(parts, "http").get("rows", [])
    print(f"Device: {device(parts)}. The goals are for an H100 in bf16. Times are medians, of a whole batch; `by goal` is the time by its goal.\n")
    print(work_table(rows))
    if load:
        print(f"Captions over HTTP, bf16\n\n{http_table(load)}")
    print(part_table(parts))
    document = {"device": device(parts), "rows": rows, "http": load, "parts": parts}
    (args.results / "results.json").write_text(json.dumps(document, indent=1) + "\n")
    print("All figures: results.json in the results folder.")


if __name__ == "__main__":
    main()
