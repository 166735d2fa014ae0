"""The chart as Helm sees it: lint, sets of values, rendered objects. Uses Helm's own Go code by helm-python-sdk."""

import re
from dataclasses import dataclass
from pathlib import Path

import helm_python
import yaml

ROOT = Path(__file__).parents[3]
CHART = ROOT / "deploy" / "chart"
HERE = Path(__file__).parent
# What `render` raises if Helm refuses the values.
HelmError = helm_python.HelmError
# As long as Helm allows.
LONGEST_RELEASE = "a-release-with-the-longest-name-that-helm-would-accept"[:53]


class UniqueKeys(yaml.CSafeLoader):
    """Rejects a key that occurs twice, of which YAML libraries silently keep one."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if twice := {key for key in keys if keys.count(key) > 1}:
            raise ValueError(f"keys occur twice: {twice} {node.start_mark}")
        return super().construct_mapping(node, deep)


@dataclass
class ValueSet:
    """One file of values, and what its comments say about the result."""

    name: str
    values: dict
    objects: list[str]
    message: str

    @staticmethod
    def read(path: Path) -> "ValueSet":
        text = path.read_text()
        header = dict(re.findall(r"^# (objects|message): (.*)$", text, re.M))
        kinds = header.get("objects", "").split()
        return ValueSet(path.stem, yaml.load(text, UniqueKeys) or {}, kinds, header.get("message", ""))

    def release(self) -> str:
        """Name of the release: as long as possible for the set that is about names."""
        return LONGEST_RELEASE if self.name == "long-names" else "release"


def value_sets(folder: str) -> list[ValueSet]:
    return [ValueSet.read(path) for path in sorted((HERE / folder).glob("*.yaml"))]


def render(values: dict, release: str = "release") -> tuple[list[dict], str]:
    """Returns the objects and the text of NOTES.txt. Raises HelmError if Helm refuses the values."""
    with helm_python.Chart.load(CHART) as chart:
        chart.validate_schema(chart.merge_values(values))
        files = chart.render(values, name=release, namespace="blip")
    notes = files.pop("blip-server/templates/NOTES.txt")
    documents = [list(yaml.load_all(text, UniqueKeys)) for text in files.values() if text.strip()]
    if many := [parts for parts in documents if len(parts) > 1]:
        raise ValueError(f"more than one object in a file: {many}")
    return [document for (document,) in documents if document], notes


def lint(values: dict) -> list[str]:
    """Returns the findings of `helm lint --strict`. A missing icon is none."""
    report = helm_python.lint(CHART, values, strict=True)
    return report["errors"] + [
        message["error"] for message in report["messages"] if message["error"] != "icon is recommended"
    ]


def packaged_files(folder: Path) -> dict[str, bytes]:
    """Packages the chart as `helm package` does, and returns the files of the archive, which follow symbolic links."""
    with helm_python.Chart.load(helm_python.package(CHART, destination=folder)) as chart:
        return {file["name"]: file["data"] for file in chart.files}
