"""Draws all panels of `deploy/grafana.json` from their own queries into one PNG, laid out as Grafana does.

It is no Grafana: it follows the fields of the board that decide what a reader sees (position, title, queries, unit,
legend, stacking, limits, thresholds, overrides, columns of tables), and fails if a panel uses a kind, unit or field that
it does not know. Needs matplotlib.

    python draw.py http://127.0.0.1:9090 sheet.png [--minutes 60]     # any Prometheus that scrapes a server
"""

import argparse
import datetime
import math
import re
import textwrap
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.dates import DateFormatter, date2num
from matplotlib.ticker import FuncFormatter, MaxNLocator
from PIL import Image

import board

COLUMNS, WIDTH, ROW = 24, 1560, 27  # of the grid; pixels of the sheet; pixels of a grid row
DPI = 100
PALETTE = ["#56A64B", "#E0A800", "#3274D9", "#FA6400", "#E02F44", "#8F3BB8", "#0E8A8A", "#B8336A", "#7B6D3E", "#5C5C5C"]
NAMED = {"green": "#37872D", "orange": "#FA6400", "red": "#C4162A", "blue": "#1F60C4"}
# Fields of timeseries panels that are drawn; another one would be a silent difference.
KNOWN = {"unit", "min", "max", "custom", "thresholds"}
KNOWN_CUSTOM = {"fillOpacity", "stacking", "lineStyle", "thresholdsStyle", "axisSoftMax"}


def formatted(value: float, unit: str) -> str:
    """Formats a value as Grafana does for this unit."""
    if not math.isfinite(value):
        return "NaN"
    if unit == "percentunit":
        return f"{value * 100:.3g} %"
    if unit == "bytes":
        for name in ("B", "KiB", "MiB", "GiB"):
            if abs(value) < 1024 or name == "GiB":
                return f"{value:.3g} {name}"
            value /= 1024
    if unit == "s":
        for size, name in ((1, "s"), (1e-3, "ms"), (1e-6, "µs")):
            if abs(value) >= size or name == "µs":
                return f"{value / size:.3g} {name}" if value else "0 s"
    suffix = {"short": "", "reqps": " req/s", "ops": " ops/s"}[unit]
    for size, name in ((1e9, " Bil"), (1e6, " Mil"), (1e3, " K")):
        if abs(value) >= size:
            return f"{value / size:.3g}{name}{suffix}"
    return f"{value:.3g}{suffix}"


def name_of(target: board.Target, metric: dict) -> str:
    """Returns the name of a series in the legend."""
    if not target.legend:
        return ", ".join(f"{key}={value}" for key, value in metric.items() if key != "__name__")
    return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda match: metric.get(match[1], ""), target.legend)


def colour(panel: board.Panel, value: float) -> str:
    """Returns the colour of a value by the thresholds of the panel."""
    chosen = "text"
    for step in panel.defaults.get("thresholds", {}).get("steps", []):
        if step["value"] is None or value >= step["value"]:
            chosen = step["color"]
    return NAMED[chosen]


class Sheet:
    """The figure, and what all queries have in common."""

    def __init__(self, prometheus, start: float, end: float, scrape: float, step: float):
        self.prometheus, self.start, self.end, self.scrape, self.step = prometheus, start, end, scrape, step
        panels = [panel for panel in board.load() if not panel.collapsed_in]
        self.rows = max(panel.position["y"] + panel.position["h"] for panel in panels)
        self.figure = plt.figure(figsize=(WIDTH / DPI, self.rows * ROW / DPI), dpi=DPI, facecolor="#F4F5F5")
        for panel in panels:
            getattr(self, panel.kind)(panel)

    def box(self, panel: board.Panel, left=0.0, right=0.0, top=0.0, bottom=0.0):
        """Returns axes in the place of the panel, within these margins in pixels."""
        place = panel.position
        height, unit = self.rows * ROW, WIDTH / COLUMNS
        x0, x1 = place["x"] * unit + left, (place["x"] + place["w"]) * unit - right
        y0, y1 = place["y"] * ROW + top, (place["y"] + place["h"]) * ROW - bottom
        return self.figure.add_axes((x0 / WIDTH, 1 - y1 / height, (x1 - x0) / WIDTH, (y1 - y0) / height))

    def frame(self, panel: board.Panel) -> None:
        """Draws the background and the title."""
        axes = self.box(panel, 2, 2, 2, 2)
        axes.set(xticks=[], yticks=[], facecolor="white")
        plt.setp(axes.spines.values(), color="#DDDEE0")
        axes.annotate(panel.title, (7, -6), xycoords=axes.transAxes, xytext=(7, -6), textcoords="offset pixels",
                      annotation_clip=False, va="top", fontsize=8.5, weight="bold").xy = (0, 1)  # fmt: skip

    def series(self, panel: board.Panel, target: board.Target, step: float = 0) -> list:
        """Returns the series of a query: (labels, times, values)."""
        step = step or self.step
        expression = board.interpolate(target.expression, None, self.scrape, step, self.end - self.start)
        result = self.prometheus.query_range(expression, self.start, self.end, step)
        times = [self.start + step * i for i in range(int((self.end - self.start) / step) + 1)]
        series = []
        for one in result:
            known = {round((float(at) - self.start) / step): float(value) for at, value in one["values"]}
            series.append((one["metric"], times, [known.get(i, math.nan) for i in range(len(times))]))
        return series

    def no_data(self, panel: board.Panel) -> None:
        axes = self.box(panel, 10, 10, 24, 10)
        axes.axis("off")
        axes.text(0.5, 0.5, "No data", ha="center", va="center", fontsize=10, color="#888888")

    def row(self, panel: board.Panel) -> None:
        axes = self.box(panel)
        axes.axis("off")
        inner = len(panel.json.get("panels", []))
        text = f"›  {panel.title}   ({inner} panels)" if panel.json["collapsed"] else f"⌄  {panel.title}"
        axes.text(0.004, 0.5, text, va="center", fontsize=10, weight="bold", color="#24292E")

    def stat(self, panel: board.Panel) -> None:
        self.frame(panel)
        axes = self.box(panel, 4, 4, 24, 4)
        axes.axis("off")
        expression = board.interpolate(panel.targets[0].expression, None, self.scrape, self.step, self.end - self.start)
        result = self.prometheus.query(expression, self.end)
        if len(panel.targets) != 1 or len(result) != 1:
            raise ValueError(f"{panel.title} has {len(panel.targets)} queries and {len(result)} series; one is drawn")
        value = float(result[0]["value"][1])
        text = formatted(value, panel.defaults["unit"])
        axes.text(0.5, 0.5, text, ha="center", va="center", fontsize=20, color=colour(panel, value), weight="bold")

    def timeseries(self, panel: board.Panel) -> None:
        self.frame(panel)
        defaults, custom = panel.defaults, panel.defaults.get("custom", {})
        if unknown := (defaults.keys() - KNOWN) | (custom.keys() - KNOWN_CUSTOM):
            raise ValueError(f"{panel.title} has fields that are not drawn: {unknown}")
        lines = [(name_of(target, metric), times, values) for target in panel.targets for metric, times, values in self.series(panel, target)]
        lines.sort(key=lambda line: line[0] if len(panel.targets) == 1 else "")
        if not lines:
            return self.no_data(panel)
        legend = self.legend_rows([name for name, _, _ in lines], panel.position["w"])
        axes = self.box(panel, 62, 12, 26, 27 + 13 * len(legend))
        dates = date2num([time_to_date(at) for at in lines[0][1]])
        below = [0.0] * len(dates)
        for number, (name, _, values) in enumerate(lines):
            style = self.overrides(panel, name)
            shade = NAMED[style["color"]["fixedColor"]] if "color" in style else PALETTE[number % len(PALETTE)]
            opacity = style.get("custom.fillOpacity", custom.get("fillOpacity", 0)) / 100
            if custom.get("stacking", {}).get("mode") == "normal":
                above = [base + (0 if math.isnan(value) else value) for base, value in zip(below, values)]
                axes.fill_between(dates, below, above, color=shade, alpha=max(opacity, 0.2) + 0.2, linewidth=0.6)
                below = above
            else:
                dash = (0, (5, 4)) if style.get("custom.lineStyle", {}).get("fill") == "dash" else "-"
                axes.plot(dates, values, color=shade, linewidth=1, linestyle=dash)
                axes.fill_between(dates, 0, values, color=shade, alpha=opacity, linewidth=0)
        if custom.get("thresholdsStyle", {}).get("mode") == "line":
            for step in defaults["thresholds"]["steps"]:
                if step["value"] is not None:
                    axes.axhline(step["value"], color=NAMED[step["color"]], linewidth=0.8)
        high = max(axes.get_ylim()[1], 1e-9)
        low = axes.get_ylim()[0]
        axes.set_ylim(defaults.get("min", low), defaults.get("max", max(high, custom.get("axisSoftMax", high))))
        self.axes_style(axes, defaults["unit"], dates)
        self.legend(panel, legend, [name for name, _, _ in lines])

    @staticmethod
    def legend_rows(names: list[str], width: int) -> list[str]:
        """Breaks the legend into at most three lines. Spaces within a name do not break."""
        entries = [f"■ {name}".replace(" ", "\u00a0") for name in names]
        return textwrap.wrap("   ".join(entries), width * 9, break_on_hyphens=False)[:3]

    def legend(self, panel: board.Panel, rows: list[str], names: list[str]) -> None:
        axes = self.box(panel, 12, 8, panel.position["h"] * ROW - 8 - 13 * len(rows), 4)
        axes.axis("off")
        axes.set(xlim=(0, 1), ylim=(len(rows), 0))
        number = 0
        for y, row in enumerate(rows):
            x = 0.0
            for entry in row.replace("\u00a0", " ").split("■ ")[1:]:
                name = names[number]
                style = self.overrides(panel, name)
                shade = NAMED[style["color"]["fixedColor"]] if "color" in style else PALETTE[number % len(PALETTE)]
                for part, tint in (("■ ", shade), (entry.strip() + "   ", "#444444")):
                    text = axes.text(x, y + 0.5, part, va="center", fontsize=7, color=tint)
                    x = axes.transData.inverted().transform(text.get_window_extent(self.figure.canvas.get_renderer()))[1][0]
                number += 1
        if number < len(names):
            axes.text(1, len(rows) - 0.5, f"+ {len(names) - number} more", va="center", ha="right", fontsize=7, color="#444444")

    @staticmethod
    def overrides(panel: board.Panel, name: str) -> dict:
        """Returns the properties that the overrides of the panel set for a series."""
        properties = {}
        for override in panel.json["fieldConfig"]["overrides"]:
            if override["matcher"]["id"] != "byName":
                raise ValueError(f"{panel.title} has an override that is not drawn: {override}")
            if override["matcher"]["options"] == name:
                properties |= {one["id"]: one["value"] for one in override["properties"]}
        return properties

    def axes_style(self, axes, unit: str, dates) -> None:
        axes.set_xlim(dates[0], dates[-1])
        # Bytes have ticks at multiples of KiB, MiB or GiB.
        power = 1024 ** int(math.log(max(axes.get_ylim()[1], 1), 1024)) if unit == "bytes" else 1
        axes.set_yticks([tick * power for tick in MaxNLocator(5).tick_values(*(limit / power for limit in axes.get_ylim()))][:-1])
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: formatted(value, unit)))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(DateFormatter("%H:%M:%S" if self.end - self.start < 900 else "%H:%M"))
        axes.tick_params(labelsize=7, length=0, colors="#666666")
        axes.grid(color="#EEEEEE", linewidth=0.6)
        axes.set_axisbelow(True)
        plt.setp(axes.spines.values(), visible=False)

    def heatmap(self, panel: board.Panel) -> None:
        self.frame(panel)
        # Grafana makes cells of a few pixels; a step of a fiftieth of the time is about the same.
        series = self.series(panel, panel.targets[0], max(self.step, (self.end - self.start) / 50))
        series = sorted(((float(metric["le"]), times, values) for metric, times, values in series), key=lambda one: one[0])
        if not series:
            return self.no_data(panel)
        axes = self.box(panel, 62, 12, 26, 22)
        # Buckets are cumulative: the count of a cell is the difference to the bucket below.
        cells, below = [], [0.0] * len(series[0][1])
        for _, _, values in series:
            cells.append([max(value - base, 0) or math.nan for value, base in zip(values, below)])
            below = values
        used = [i for i, row in enumerate(cells) if any(value > 0 for value in row)]
        low, high = (min(used), max(used) + 1) if used else (0, len(cells))
        dates = date2num([time_to_date(at) for at in series[0][1]])
        axes.pcolormesh(dates, range(high - low), cells[low:high], cmap="Oranges", vmin=0, shading="nearest")
        self.axes_style(axes, panel.json["options"]["yAxis"]["unit"], dates)
        labels = ["∞" if math.isinf(le) else formatted(le, panel.json["options"]["yAxis"]["unit"]) for le, _, _ in series[low:high]]
        axes.set_yticks([i + 0.5 for i in range(high - low)], labels)
        axes.set_ylim(-0.5, high - low - 0.5)

    def table(self, panel: board.Panel) -> None:
        self.frame(panel)
        expression = board.interpolate(panel.targets[0].expression, None, self.scrape, self.step, self.end - self.start)
        result = self.prometheus.query(expression, self.end)
        (organize,) = panel.json["transformations"]
        options = organize["options"]
        columns = sorted({key for one in result for key in one["metric"]} | {"Time", "Value"}, key=lambda name: options["indexByName"].get(name, 99))
        columns = [name for name in columns if not options["excludeByName"].get(name)]
        cells = [[options["renameByName"].get(name, name) for name in columns]]
        cells += [[one["metric"].get(name, "") for name in columns] for one in result]
        axes = self.box(panel, 12, 12, 28, 8)
        axes.axis("off")
        lines = panel.position["h"]
        axes.set(xlim=(0, len(columns)), ylim=(lines, 0))
        for y, row in enumerate(cells[:lines]):
            for x, text in enumerate(row):
                axes.text(x, y + 0.5, text, va="center", fontsize=7.5, weight="normal" if y else "bold")


def time_to_date(at: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(at, datetime.UTC).replace(tzinfo=None)


def sheet(prometheus, start: float, end: float, path: Path, scrape: float = 1) -> None:
    """Draws the sheet. `scrape` is the scrape interval in seconds."""
    step = max(scrape, (end - start) / 300)
    drawn = Sheet(prometheus, start, end, scrape, step)
    drawn.figure.savefig(path, dpi=DPI)
    # A palette makes the file four times smaller.
    Image.open(path).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)


def main() -> None:
    from programs import Prometheus

    parser = argparse.ArgumentParser()
    parser.add_argument("prometheus")
    parser.add_argument("path", type=Path)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--scrape", type=float, default=15, help="scrape interval in seconds")
    arguments = parser.parse_args()
    prometheus = Prometheus.__new__(Prometheus)
    prometheus.address = arguments.prometheus.removeprefix("http://")
    now = time.time()
    sheet(prometheus, now - 60 * arguments.minutes, now, arguments.path, arguments.scrape)


if __name__ == "__main__":
    main()
