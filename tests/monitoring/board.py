"""Reads `deploy/grafana.json`, and replaces its variables as Grafana does."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

BOARD = Path(__file__).parents[2] / "deploy/grafana.json"


@dataclass
class Target:
    """One query of a panel."""

    ref: str
    expression: str
    legend: str
    instant: bool


@dataclass
class Panel:
    """A panel with its queries. `json` is the panel in the file."""

    title: str
    kind: str
    position: dict
    targets: list[Target]
    json: dict = field(repr=False)
    # Title of the collapsed row that holds the panel; empty if it is visible when the board opens.
    collapsed_in: str = ""

    @property
    def defaults(self) -> dict:
        return self.json.get("fieldConfig", {}).get("defaults", {})


def load(text: str | None = None) -> list[Panel]:
    """Returns all panels and rows, those in collapsed rows too."""
    board = json.loads(text or BOARD.read_text())
    panels = []

    def add(panel: dict, row: str) -> None:
        targets = [
            Target(target["refId"], target["expr"], target.get("legendFormat", ""), target.get("instant", False))
            for target in panel.get("targets", [])
        ]
        panels.append(Panel(panel["title"], panel["type"], panel["gridPos"], targets, panel, row))
        for inner in panel.get("panels", []):
            add(inner, panel["title"])

    for panel in board["panels"]:
        add(panel, "")
    return panels


def variables() -> list[dict]:
    return json.loads(BOARD.read_text())["templating"]["list"]


def seconds(duration: float) -> str:
    return f"{round(duration * 1000)}ms"


def escaped(value: str) -> str:
    """Escapes a value for a regular expression in a PromQL string, as Grafana does for variables with several values."""
    return re.sub(r"[\\^$*+?.()|{}\[\]]", r"\\\\\g<0>", value)


def interpolate(expression: str, instances: list[str] | None, scrape: float, step: float, span: float) -> str:
    """Replaces the variables. `instances` is the selection, None for All; times are in seconds.

    https://grafana.com/docs/grafana/latest/datasources/prometheus/template-variables: `$__rate_interval` is the larger of
    `$__interval` plus the scrape interval, and four scrape intervals.
    """
    if instances is None:
        selection = next(variable["allValue"] for variable in variables() if variable["name"] == "instance")
    elif len(instances) == 1:
        selection = escaped(instances[0])
    else:
        selection = "(" + "|".join(map(escaped, instances)) + ")"
    values = {
        "$__rate_interval": seconds(max(step + scrape, 4 * scrape)),
        "$__interval": seconds(step),
        "$__range": seconds(span),
        "$instance": selection,
    }
    for name, value in values.items():
        expression = expression.replace(name, value)
    if "$" in expression.replace("$\"", "").replace("$|", ""):
        raise ValueError(f"unknown variable in {expression}")
    return expression
