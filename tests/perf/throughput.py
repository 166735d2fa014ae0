"""Draws the captions per second of each server, one panel for each number of clients, from the JSON of servers.py.

Usage: throughput.py --json FILE --out FILE.svg
"""

import argparse
import json
import sys
from pathlib import Path

from perf import results
from perf.drawing import Bar, Panel, Row, draw

LEGEND = [("first", 20, "captions per second, blip-server"), ("second", 270, "captions per second, other servers")]


def panel(rows: list[dict], clients: int) -> Panel:
    """The servers in the order of the measurement."""

    def bar(row: dict) -> Bar:
        rate = row["requests_per_second"]
        kind = "first" if row["server"].startswith("blip-server") else "second"
        return Bar(kind, rate["median"], results.spread_text(rate, 2), rate["min"], rate["max"])

    title = f"{clients} {'client' if clients == 1 else 'clients'}, captions of 20 tokens for distinct JPEGs"
    longest = max(row["requests_per_second"]["max"] for row in rows)  # one scale for all panels
    return Panel(title, [Row(row["server"], [bar(row)]) for row in rows if row["clients"] == clients], longest)


def main() -> int:
    """Writes the picture."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--json", type=Path, required=True)
    arguments.add_argument("--out", type=Path, required=True)
    args = arguments.parse_args()
    document = json.loads(args.json.read_text())
    rows, machine = document["rows"], document["machine"]
    remark = (
        f"{machine['cpu']}, {machine['threads']} threads, {machine['date']}. "
        f"Median over the rounds ({len(document['others_use_before_rounds'])}), whiskers from least to most."
    )
    panels = [panel(rows, clients) for clients in dict.fromkeys(row["clients"] for row in rows)]
    args.out.write_text(draw("Captions per second over HTTP", LEGEND, remark, panels), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
