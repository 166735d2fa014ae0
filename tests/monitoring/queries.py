"""Checks that every panel of the board and every rule of the alerts finds data in a Prometheus that scrapes real servers."""

import math
import re
import subprocess

import board
from programs import Failure, Prometheus, get, wait_for
from traffic import ROOT

# Queries that return only zeros on healthy servers: (panel, query), and why.
MAY_BE_ZERO = {
    ("Faults, last hour", "A"): "no request fails by the server's own fault",
    ("Rows admitted and capacity", "C"): "a sample seldom meets a row that waits",
    ("Bulk requests", "B"): "fewer bulk requests than may be read at a time",
    ("Panics, restarts, bad numbers, device memory", "A"): "no panic",
    ("Panics, restarts, bad numbers, device memory", "B"): "no rebuild",
    ("Panics, restarts, bad numbers, device memory", "C"): "no NaN",
    ("Panics, restarts, bad numbers, device memory", "D"): "a CPU has no memory of its own",
    ("Cache evictions", "A"): "the caches do not fill up",
    ("Decoding and fetching in progress", "A"): "decoding ends between two samples",
    ("Decoding and fetching in progress", "B"): "no address may be fetched in the test",
    ("Connections closed early", "A"): "fewer connections than server.max_connections",
    ("Connections closed early", "B"): "no TLS",
    ("Connections closed early", "C"): "no shutdown under load",
}
# Queries that return nothing.
MAY_BE_EMPTY = {
    ("Memory of the GPU", "A"): "only with a GPU",
    ("Pages of the KV caches", "A"): "only with a GPU",
    ("Passes run as one graph", "A"): "only with a GPU",
}


def check_board(prometheus: Prometheus, instances: list[str], start: float, end: float) -> None:
    """Runs all queries as Grafana would, for all instances and for the first one, and checks what they return."""
    panels = board.load()
    known = {(panel.title, target.ref) for panel in panels for target in panel.targets}
    if stale := (MAY_BE_ZERO.keys() | MAY_BE_EMPTY.keys()) - known:
        raise Failure(f"exceptions for queries that do not exist: {sorted(stale)}")
    found = {series["instance"] for series in prometheus.api("series", **{"match[]": "blip_build_info"})}
    if not found.issuperset(instances):
        raise Failure(f"the variable `instance` offers {sorted(found)}, not {instances}")

    problems, count = [], 0
    for panel in panels:
        for target in panel.targets:
            key, count = (panel.title, target.ref), count + 1
            for selection in (None, instances[:1]):
                expression = board.interpolate(target.expression, selection, 1, 1, end - start)
                if target.instant:
                    series = [{**one, "values": [one["value"]]} for one in prometheus.query(expression, end)]
                else:
                    series = prometheus.query_range(expression, start, end, 1)
                problems += [f"{key}: {problem}" for problem in problems_of(key, target, series, selection)]
    if problems:
        raise Failure("queries of the board:\n  " + "\n  ".join(problems))
    print(f"board: {count} queries of {sum(bool(panel.targets) for panel in panels)} panels return data"
          f" ({len(MAY_BE_ZERO)} zeros and {len(MAY_BE_EMPTY)} without series are expected)")  # fmt: skip


def problems_of(key: tuple, target: board.Target, series: list, selection) -> list[str]:
    """Returns what is wrong with the result of a query."""
    values = [float(value) for one in series for _, value in one["values"]]
    finite = [value for value in values if math.isfinite(value)]
    if key in MAY_BE_EMPTY:
        names = set(re.findall(r"\bblip_\w+", target.expression))
        declared = (ROOT / "src/telemetry/metrics.rs").read_text()
        return [f"{name} is not declared" for name in names if f" {name.removeprefix('blip_')}: " not in declared]
    if not finite:
        return [f"no data, selection {selection}: {target.expression}"]
    if not any(finite) and key not in MAY_BE_ZERO and selection is None:
        return [f"only zeros: {target.expression}"]
    wanted = set(re.findall(r"\{\{\s*(\w+)\s*\}\}", target.legend))
    return [f"the legend has {label}, the series {sorted(one['metric'])} do not" for one in series[:1] for label in wanted - one["metric"].keys()]


def without_thresholds(expression: str) -> str:
    """Makes the comparisons return 0 or 1 (`bool`) instead of dropping series, and `absent` return its operand.

    So a silent alert returns the series that it watches; a wrong name or label, or a join that never matches, still
    returns nothing.
    """
    parts = re.split(r'(\{[^}]*\}|"[^"]*")', expression)
    parts[::2] = [re.sub(r"(==|!=|>=|<=|>|<)(?!\s*bool)", r"\1 bool", part).replace("absent(", "(") for part in parts[::2]]
    return "".join(parts)


def check_rules(prometheus: Prometheus) -> None:
    """Checks that Prometheus evaluates all rules without an error, and that each finds the series that it is about."""
    problems, alerts, records = [], 0, 0

    def evaluated() -> list:
        groups = prometheus.api("rules")["groups"]
        return groups if all(rule["health"] != "unknown" for group in groups for rule in group["rules"]) else []

    for group in wait_for("all rules are evaluated", evaluated, 30):
        for rule in group["rules"]:
            if rule["health"] != "ok":
                problems.append(f"{rule['name']}: {rule['health']} {rule.get('lastError', '')}")
            expression = rule["query"]
            if rule["type"] == "alerting":
                alerts += 1
                expression = without_thresholds(expression)
            else:
                records += 1
            if not prometheus.query(expression):
                problems.append(f"{rule['name']} finds no series: {expression}")
    if problems:
        raise Failure("rules:\n  " + "\n  ".join(problems))
    print(f"rules: {alerts} alerts and {records} recording rules are evaluated and find their series")


def check_page(url: str) -> None:
    """Checks /metrics with `promtool check metrics`."""
    result = subprocess.run(["promtool", "check", "metrics"], input=get(url), capture_output=True, text=True)
    if result.returncode or result.stderr or result.stdout:
        raise Failure(f"promtool check metrics of {url}:\n{result.stdout}{result.stderr}")


def check_codes() -> None:
    """Checks that the rules name every error code with a status of 5xx, as a fault or as a refusal."""
    table = re.findall(r'^    \w+ "(\w+)" (\w+) "', (ROOT / "src/http/error/mod.rs").read_text(), re.MULTILINE)
    server_side = {code for code, status in table if status in ("INTERNAL_SERVER_ERROR", "SERVICE_UNAVAILABLE", "GATEWAY_TIMEOUT")}
    rules = (ROOT / "deploy/alerts.yml").read_text()
    faults = set(re.search(r'blip_request_failures_total\{reason=~"(inference[^"]*)"', rules)[1].split("|"))
    refusals = set(re.search(r'code=~"(rate_limited[^"]*)"', rules)[1].split("|")) - {"rate_limited"}
    if len(table) < 20 or server_side != faults | refusals:
        raise Failure(f"error codes with 5xx: {sorted(server_side)}; in the alerts: {sorted(faults)} and {sorted(refusals)}")


def check_runbook() -> None:
    """Checks that docs/monitoring.md has an entry for each alert, with its severity, and no other, and that alerts lead there."""
    document = (ROOT / "docs/monitoring.md").read_text()
    entries = dict(re.findall(r"^### (Blip\w+)\n\n(Page|Ticket)\. ", document, re.MULTILINE))
    rules = (ROOT / "deploy/alerts.yml").read_text()
    alerts = re.findall(r"- alert: (\w+)\n.*?severity: (\w+) .*?runbook: (\S+)", rules, re.DOTALL)
    if entries != {name: severity.title() for name, severity, _ in alerts} or len(alerts) != rules.count("- alert: "):
        raise Failure(f"the runbook has {entries}, the alerts are {alerts}")
    if wrong := [runbook for name, _, runbook in alerts if runbook != f"docs/monitoring.md#{name.lower()}"]:
        raise Failure(f"these are not the headings of the runbook: {wrong}")


def check_memory_limit() -> None:
    """Checks that the constant of BlipMemory is the limit that docker-compose.yml and deploy/kubernetes set for `official`."""
    import yaml

    service = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["official"]
    server = (ROOT / "deploy/kubernetes/official/server.yaml").read_text()
    (pod,) = re.findall(r"limits: \{ memory: (\d+)Gi \}", server)
    rules = (ROOT / "deploy/alerts.yml").read_text()
    constant = re.search(r"record: blip:memory_limit_bytes\n\s+expr: vector\((\d+) \* 1024 \* 1024 \* 1024\)", rules)[1]
    if not service["mem_limit"] == f"{constant}g" or pod != constant:
        raise Failure(f"the memory limit is {service['mem_limit']} in docker-compose.yml, {pod}Gi in kubernetes, {constant} GiB in the alerts")
