"""Checks the queries of autoscaling and the alerts with promtool: they parse, and the queries give the values that
autoscaling needs."""

import re
import subprocess
import tempfile
from pathlib import Path

import yaml

BUCKETS = {"0.1": 10, "0.5": 10, "1": 100, "+Inf": 100}


def scaling_queries(objects: list[dict]) -> dict[str, str]:
    (scaled,) = [o for o in objects if o["kind"] == "ScaledObject"]
    return {trigger["name"]: trigger["metadata"]["query"] for trigger in scaled["spec"]["triggers"]}


def promtool(folder: Path, *arguments: str) -> list[str]:
    run = subprocess.run(["promtool", *arguments], cwd=folder, capture_output=True, text=True)
    return [] if run.returncode == 0 else [f"promtool {' '.join(arguments)}: {run.stdout}{run.stderr}"]


def series(pod: str, rows: int, busy: bool, namespace: str = "blip") -> list[dict]:
    """Metrics of one pod, every minute for ten minutes: rows in its queue, and waits of 0.5 to 1 s if it is busy."""
    labels = f'namespace="{namespace}", pod="{pod}", instance="{pod}"'
    result = [
        {"series": f"blip_queue_rows{{{labels}}}", "values": f"{rows}x10"},
        {"series": f"blip_queue_capacity{{{labels}}}", "values": "512x10"},
    ]
    for bound, step in BUCKETS.items():
        name = f'blip_queue_wait_seconds_bucket{{{labels}, stage="text", le="{bound}"}}'
        result.append({"series": name, "values": f"0+{step if busy else 0}x10"})
    return result


def scaling_test(queries: dict[str, str]) -> dict:
    """A test file of promtool. Pods of another release and of another namespace must not count."""
    ours, others = "release-blip-server-7d4b9c6f5-abcde", "release-other-7d4b9c6f5-abcde"
    second = "release-blip-server-7d4b9c6f5-fghij"
    strangers = series(others, 512, True) + series(ours, 512, True, "another")

    def case(inputs: list[dict], depth: list[float], wait: float) -> dict:
        samples = {"queue-depth": depth, "queue-wait": [wait]}
        expected = [
            {"expr": queries[name], "eval_time": "10m", "exp_samples": [{"labels": "{}", "value": v} for v in values]}
            for name, values in samples.items()
        ]
        return {"interval": "1m", "input_series": inputs, "promql_expr_test": expected}

    return {
        "evaluation_interval": "1m",
        "tests": [
            # Two pods with 128 and 256 of 512 rows: 75 % of the capacity of one. The 90th percentile of the waits is in the
            # bucket from 0.5 to 1 s, which has 90 of 100: 0.5 + 0.5 * 80 / 90.
            case(series(ours, 128, True) + series(second, 256, True) + strangers, [75], 0.9444444444444444),
            # Without requests the quantile is not a number, which must become 0.
            case(series(ours, 0, False), [0], 0),
            # Without pods there is no queue, which KEDA takes for an error.
            case(strangers, [], 0),
        ],
    }


def check(rendered: dict[str, list[dict]]) -> list[str]:
    problems = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for set_name, objects in rendered.items():
            rules = [o["spec"] for o in objects if o["kind"] == "PrometheusRule"]
            for spec in rules:
                (folder / "rules.yml").write_text(yaml.safe_dump(spec))
                problems += promtool(folder, "check", "rules", "rules.yml")
            if any(o["kind"] == "ScaledObject" for o in objects):
                records = [
                    {"record": f"query:{key.replace('-', '_')}", "expr": query}
                    for key, query in scaling_queries(objects).items()
                ]
                file = folder / f"{set_name}.yml"
                file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": records}]}))
                problems += promtool(folder, "check", "rules", file.name)
        test = scaling_test(scaling_queries(rendered["keda"]))
        (folder / "test.yml").write_text(yaml.safe_dump(test))
        problems += promtool(folder, "test", "rules", "test.yml")
    return problems


def metric_names(objects: list[dict]) -> set[str]:
    """Metrics that the queries of autoscaling use."""
    return set(re.findall(r"blip_[a-z_]+", " ".join(scaling_queries(objects).values())))
