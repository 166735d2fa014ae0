#!/usr/bin/env python3
"""Draws where the time goes beside what the hardware asks at least, from the JSON of peers.py or of `blip-server bench --json`.

Usage: roofline.py --json FILE --out FILE.svg [--engine blip-server-bf16] [--batch 1]
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

from perf import limits
from perf.drawing import Bar, Panel, Row, draw

TITLES = {"vision": "Vision tower", "caption": "Caption of 20 tokens"}
LEGEND = [("first", 20, "milliseconds an image"), ("second", 210, "the same work at the measured limit of the hardware (arithmetic, or reading memory)")]


def documents(path: Path, engine: str) -> list[dict]:
    """What `bench` wrote: one document, or one for each round."""
    found = json.loads(path.read_text())
    if "engines" not in found:
        return [found]
    return found["engines"][engine]["bench"]


def panel(found: list[dict], task: str, batch: int) -> Panel | None:
    """A task's parts, each the median over the rounds, in the engine's order."""
    rows = [(d["limits"], r) for d in found for r in d["results"] if (r["task"], r["batch"]) == (task, batch)]
    if not rows:
        return None
    measured = {key: statistics.median(d[key] for d, _ in rows) for key in ("read_bytes_per_second", "operations_per_second")}
    dtype, first = rows[0][1]["dtype"], rows[0][1]

    def row(name: str, seconds: list[float], limit: float | None) -> Row:
        """Milliseconds an image that were spent, and at the limit if there is one."""
        spent = 1000 / batch * statistics.median(seconds)
        bars = [Bar("first", spent, f"{spent:.1f} ms")]
        if limit is not None:
            least = 1000 / batch * limit
            bars.append(Bar("second", least, f"{least:.1f} ms, {100 * least / spent:.0f} % of the time"))
        return Row(name, bars)

    found_rows = [row("together", [r["median_s"] for _, r in rows], limits.of_task(task, dtype, batch, measured))]
    for part in first["parts"]:
        work = limits.of_part(part, dtype, batch)
        seconds = [p["seconds"] for _, r in rows for p in r["parts"] if p["part"] == part["part"]]
        found_rows.append(row(part["part"], seconds, work.seconds(measured) if work else None))
    return Panel(f"{TITLES[task]}, {dtype} ({first['level']}), batch of {batch}", found_rows)


def main() -> int:
    """Writes the picture, prints the numbers."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--json", type=Path, required=True)
    arguments.add_argument("--out", type=Path, required=True)
    arguments.add_argument("--engine", default="blip-server-bf16", help="which of our engines, where peers.py wrote the JSON")
    arguments.add_argument("--batch", type=int, default=1)
    args = arguments.parse_args()
    found = documents(args.json, args.engine)
    panels = [p for task in TITLES if (p := panel(found, task, args.batch))]
    if not panels:
        print(f"no batch of {args.batch} in {args.json}", file=sys.stderr)
        return 1
    machine, measured = found[0]["machine"], found[0]["limits"]
    remark = (
        f"{machine['cpu']}, {machine['threads']} threads: {measured['operations_per_second'] / 1e9:.0f} GFLOP/s, "
        f"{measured['read_bytes_per_second'] / 1e9:.1f} GB/s read. Parts with one bar are bound by neither."
    )
    args.out.write_text(draw("Time by part beside the least that the hardware allows", LEGEND, remark, panels), encoding="utf-8")
    for one in panels:
        print(one.title)
        for row in one.rows:
            print(f"  {row.name:24} {', at the limit '.join(bar.text for bar in row.bars)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
