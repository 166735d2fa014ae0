#!/usr/bin/env python3
"""Draws where the time goes beside what the hardware asks at least, from the JSON of peers.py or of `blip-server bench --json`.

Usage: roofline.py --json FILE --out FILE.svg [--engine blip-server-bf16] [--batch 1]
"""

import argparse
import json
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from perf import limits

WIDTH, LABEL, RIGHT, ROW, BAR, TOP = 900, 230, 195, 40, 13, 74
TITLES = {"vision": "Vision tower", "caption": "Caption of 20 tokens"}
# Colours of the page are repeated by a background of its own: a picture in a page follows the system's scheme, not the page's.
STYLE = """
  .page { fill: #ffffff; stroke: #d0d7de; } text { font: 13px system-ui, sans-serif; fill: #1f2328; } .title { font-size: 16px; font-weight: 600; }
  .small { font-size: 12px; fill: #59636e; } .spent { fill: #2f6fde; } .limit { fill: #e08a1e; } .axis { stroke: #d0d7de; }
  @media (prefers-color-scheme: dark) {
    .page { fill: #0d1117; stroke: #3d444d; } text { fill: #f0f6fc; } .small { fill: #9198a1; } .spent { fill: #5a9bff; } .limit { fill: #f0a848; } .axis { stroke: #3d444d; }
  }
"""


@dataclass
class Bar:
    """One row: milliseconds an image that were spent, and at the limit if there is one."""

    name: str
    spent: float
    limit: float | None


@dataclass
class Panel:
    """One task."""

    title: str
    bars: list[Bar]


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

    def bar(name: str, seconds: list[float], limit: float | None) -> Bar:
        scale = 1000 / batch
        return Bar(name, scale * statistics.median(seconds), None if limit is None else scale * limit)

    bars = [bar("together", [r["median_s"] for _, r in rows], limits.of_task(task, dtype, batch, measured))]
    for part in first["parts"]:
        work = limits.of_part(part, dtype, batch)
        seconds = [p["seconds"] for _, r in rows for p in r["parts"] if p["part"] == part["part"]]
        bars.append(bar(part["part"], seconds, work.seconds(measured) if work else None))
    return Panel(f"{TITLES[task]}, {dtype} ({first['level']}), batch of {batch}", bars)


def draw(panels: list[Panel], remark: str) -> str:
    """The whole picture."""
    height = TOP + sum(56 + ROW * len(p.bars) for p in panels)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" role="img">',
        f"<title>{escape('Time by part beside the least that the hardware allows')}</title><style>{STYLE}</style>",
        f'<rect class="page" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8"/>',
        '<rect class="spent" x="20" y="21" width="13" height="13" rx="2"/><text x="40" y="32">milliseconds an image</text>',
        '<rect class="limit" x="210" y="21" width="13" height="13" rx="2"/><text x="230" y="32">the same work at the measured limit of the hardware (arithmetic, or reading memory)</text>',
        f'<text class="small" x="20" y="56">{escape(remark)}</text>',
    ]  # fmt: skip
    y = TOP
    for one in panels:
        parts += _panel(one, y)
        y += 56 + ROW * len(one.bars)
    return "\n".join([*parts, "</svg>", ""])


def _panel(one: Panel, top: int) -> list[str]:
    """A heading and a row for each part."""
    parts = [f'<text class="title" x="20" y="{top + 24}">{escape(one.title)}</text>']
    longest = max(max(bar.spent, bar.limit or 0) for bar in one.bars)
    scale = (WIDTH - LABEL - RIGHT) / longest
    first = top + 40
    parts.append(f'<line class="axis" x1="{LABEL}" y1="{first - 4}" x2="{LABEL}" y2="{first + ROW * len(one.bars) - 8}"/>')
    for n, bar in enumerate(one.bars):
        y = first + ROW * n
        parts.append(f'<text x="{LABEL - 10}" y="{y + 18}" text-anchor="end">{escape(bar.name)}</text>')
        parts += _value("spent", y, bar.spent, scale, f"{bar.spent:.1f} ms")
        if bar.limit is not None:
            parts += _value("limit", y + BAR + 1, bar.limit, scale, f"{bar.limit:.1f} ms, {100 * bar.limit / bar.spent:.0f} % of the time")
    return parts


def _value(kind: str, y: float, value: float, scale: float, text: str) -> list[str]:
    width = max(1.0, value * scale)
    return [
        f'<rect class="{kind}" x="{LABEL}" y="{y}" width="{width:.1f}" height="{BAR}" rx="2"/>',
        f'<text class="small" x="{LABEL + width + 6:.1f}" y="{y + BAR - 2}">{escape(text)}</text>',
    ]


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
    args.out.write_text(draw(panels, remark), encoding="utf-8")
    for one in panels:
        print(one.title)
        for bar in one.bars:
            print(f"  {bar.name:24} {bar.spent:8.1f} ms" + ("" if bar.limit is None else f", at the limit {bar.limit:8.1f} ms, {100 * bar.limit / bar.spent:.0f} %"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
