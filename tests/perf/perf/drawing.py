"""Bar charts as SVG, for light and dark pages, without a library. Called by roofline.py and throughput.py."""

from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, LABEL, RIGHT, BAR, TOP = 900, 262, 195, 13, 74  # pixels; bars start at LABEL, and RIGHT is kept free for their values
HEADING = 56  # pixels above the first row of a panel
# Colours of the page are repeated by a background of its own: a picture in a page follows the system's scheme, not the page's.
STYLE = """
  .page { fill: #ffffff; stroke: #d0d7de; } text { font: 13px system-ui, sans-serif; fill: #1f2328; } .title { font-size: 16px; font-weight: 600; }
  .small { font-size: 12px; fill: #59636e; } .first { fill: #2f6fde; } .second { fill: #e08a1e; } .axis { stroke: #d0d7de; } .whisker { stroke: #1f2328; }
  @media (prefers-color-scheme: dark) {
    .page { fill: #0d1117; stroke: #3d444d; } text { fill: #f0f6fc; } .small { fill: #9198a1; } .first { fill: #5a9bff; } .second { fill: #f0a848; }
    .axis { stroke: #3d444d; } .whisker { stroke: #f0f6fc; }
  }
"""


@dataclass
class Bar:
    """One bar: its colour (`first` or `second`), its value, and the text behind it. Whiskers go from `least` to `most`."""

    kind: str
    value: float
    text: str
    least: float | None = None
    most: float | None = None

    @property
    def end(self) -> float:
        """The largest value that is drawn."""
        return max(self.value, self.most or 0)


@dataclass
class Row:
    """The bars under one name, one below the other."""

    name: str
    bars: list[Bar]


@dataclass
class Panel:
    """A heading with rows of bars on one scale, from 0 to `longest`, or to the end of the longest bar."""

    title: str
    rows: list[Row]
    longest: float | None = None

    @property
    def row_height(self) -> int:
        """Pixels from one row to the next."""
        return 12 + (BAR + 1) * max(len(row.bars) for row in self.rows)

    @property
    def height(self) -> int:
        """Pixels from this panel to the next."""
        return HEADING + self.row_height * len(self.rows)


def draw(title: str, legend: list[tuple[str, int, str]], remark: str, panels: list[Panel]) -> str:
    """The whole picture. An entry of the legend is a colour, its position from the left in pixels, and its meaning."""
    height = TOP + sum(panel.height for panel in panels)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" role="img">',
        f"<title>{escape(title)}</title><style>{STYLE}</style>",
        f'<rect class="page" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8"/>',
    ]
    for kind, x, meaning in legend:
        parts.append(f'<rect class="{kind}" x="{x}" y="21" width="13" height="13" rx="2"/><text x="{x + 20}" y="32">{escape(meaning)}</text>')
    parts.append(f'<text class="small" x="20" y="56">{escape(remark)}</text>')
    y = TOP
    for panel in panels:
        parts += _panel(panel, y)
        y += panel.height
    return "\n".join([*parts, "</svg>", ""])


def _panel(panel: Panel, top: int) -> list[str]:
    parts = [f'<text class="title" x="20" y="{top + 24}">{escape(panel.title)}</text>']
    scale = (WIDTH - LABEL - RIGHT) / (panel.longest or max(bar.end for row in panel.rows for bar in row.bars))
    first = top + 40
    parts.append(f'<line class="axis" x1="{LABEL}" y1="{first - 4}" x2="{LABEL}" y2="{first + panel.row_height * len(panel.rows) - 8}"/>')
    for n, row in enumerate(panel.rows):
        y = first + panel.row_height * n
        parts.append(f'<text x="{LABEL - 10}" y="{y + panel.row_height // 2 - 2}" text-anchor="end">{escape(row.name)}</text>')
        for m, bar in enumerate(row.bars):
            parts += _bar(bar, y + (BAR + 1) * m, scale)
    return parts


def _bar(bar: Bar, y: int, scale: float) -> list[str]:
    width = max(1.0, bar.value * scale)
    parts = [f'<rect class="{bar.kind}" x="{LABEL}" y="{y}" width="{width:.1f}" height="{BAR}" rx="2"/>']
    if bar.least is not None and bar.most is not None:
        left, right, middle = LABEL + bar.least * scale, LABEL + bar.most * scale, y + BAR / 2
        path = f"M{left:.1f} {middle}H{right:.1f}M{left:.1f} {middle - 3}v6M{right:.1f} {middle - 3}v6"
        parts.append(f'<path class="whisker" d="{path}"/>')
    end = LABEL + max(width, bar.end * scale)
    parts.append(f'<text class="small" x="{end + 6:.1f}" y="{y + BAR - 2}">{escape(bar.text)}</text>')
    return parts
