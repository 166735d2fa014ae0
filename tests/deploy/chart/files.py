"""Checks that the chart does not drift from the rest of the repository: version, alerts, dashboard, and README."""

import json
import re
import tomllib
from pathlib import Path

import helm
import yaml

# The two rules of deploy/alerts.yml that depend on the deployment, with what the set `monitoring` makes of them.
CONSTANTS = {
    "blip:memory_limit_bytes": f"vector({6 * 2**30})",
    "blip:latency_objective_seconds": "vector(2.5)",
}

DOCUMENTED_BY_KUBERNETES = {"resources", "downloadResources", "podSecurityContext", "scaleUp", "scaleDown"}


def check(rendered: dict[str, list[dict]], folder: Path) -> list[str]:
    problems = []
    cargo = tomllib.loads((helm.ROOT / "Cargo.toml").read_text())["package"]["version"]
    chart = yaml.safe_load((helm.CHART / "Chart.yaml").read_text())
    if chart["appVersion"] != cargo:
        problems.append(f"appVersion is {chart['appVersion']}, the version in Cargo.toml {cargo}")

    packaged = helm.packaged_files(folder)
    for name in ("alerts.yml", "grafana.json"):
        original = (helm.ROOT / "deploy" / name).read_text()
        if packaged.get(f"files/{name}") != original:
            problems.append(f"files/{name} in the packaged chart differs from deploy/{name}")

    monitoring = {document["kind"]: document for document in rendered["monitoring"]}
    expected = yaml.safe_load((helm.ROOT / "deploy/alerts.yml").read_text())["groups"]
    found = 0
    for rule in (rule for group in expected for rule in group["rules"]):
        if constant := CONSTANTS.get(rule.get("record", "")):
            rule["expr"] = constant
            found += 1
    if found != len(CONSTANTS) or monitoring["PrometheusRule"]["spec"]["groups"] != expected:
        problems.append("the PrometheusRule differs from deploy/alerts.yml in more than the two constants")

    dashboards = [o for o in rendered["monitoring"] if "blip-server.json" in o.get("data", {})]
    dashboard = json.loads(dashboards[0]["data"]["blip-server.json"])
    if dashboard != json.loads((helm.ROOT / "deploy/grafana.json").read_text()):
        problems.append("the dashboard differs from deploy/grafana.json")
    return problems + check_values() + check_documents()


def check_values() -> list[str]:
    """Each default value has a comment, and the schema knows exactly the names of the defaults."""
    problems = []
    text = (helm.CHART / "values.yaml").read_text()
    lines = text.splitlines()
    section = ""
    for number, line in enumerate(lines):
        key = re.match(r"^ *([a-zA-Z]+):( .*)?$", line)
        if key is None:
            continue
        # The comment of a section may stand for the switch that is its first value.
        first = 2 if lines[number - 1].endswith(":") else 1
        if not key[2]:
            section = key[1]
        elif section not in DOCUMENTED_BY_KUBERNETES and not lines[number - first].lstrip().startswith("#"):
            problems.append(f"values.yaml has no comment at {line.strip()}, line {number + 1}")
    schema = json.loads((helm.CHART / "values.schema.json").read_text())

    def compare(path: str, values: dict, part: dict) -> None:
        if part.get("additionalProperties") is not False:
            return
        names = set(part["properties"]) - {"global", "claims"}
        # An empty default leaves the names open.
        if values and names != set(values):
            problems.append(f"{path or 'values'}: defaults {sorted(values)}, schema {sorted(names)}")
        for name, value in values.items():
            if isinstance(value, dict):
                compare(f"{path}.{name}", value, part["properties"].get(name, {}))

    compare("", yaml.safe_load(text), schema)
    return problems


def check_documents() -> list[str]:
    """The values that the documents name exist, and their examples render."""
    values = yaml.safe_load((helm.CHART / "values.yaml").read_text())
    problems = []
    for path in (helm.ROOT / "docs" / "kubernetes.md", helm.CHART / "README.md"):
        text = path.read_text()
        for name in sorted(set(re.findall(r"`([a-zA-Z]+(?:\.[a-zA-Z]+)+)[`:]", text))):
            first, *rest = name.split(".")
            part = values.get(first)
            # The names below `settings` are those of the server.
            for key in rest if first in values and first != "settings" else []:
                part = part.get(key) if isinstance(part, dict) else None
                if part is None:
                    problems.append(f"{path.name}: no value {name}")
                    break
        for example in re.findall(r"```yaml\n(.*?)```", text, re.S):
            try:
                helm.render(yaml.load(example, helm.UniqueKeys))
            except helm.HelmError as error:
                problems.append(f"{path.name}: {error}")
    return problems
