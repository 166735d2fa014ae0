"""Adapts the files of `deploy/` to a test on one machine: addresses, and minutes that last a second.

Every function changes text and fails if it does not find exactly what it changes. So the test uses the files as they are,
and an edit that this script does not understand is an error. `--test` checks that the scaled rules differ from
the original ones in nothing but their durations.

    python3 tests/monitoring/render.py --test      # needs PyYAML and promtool
"""

import re
import sys
from fractions import Fraction
from pathlib import Path

UNITS = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}
DURATION = r"(?:\d+(?:ms|[dhms]))"
# `[5m]` and `[5m:30s]` in PromQL, and the values of these keys. Nothing else in the files is a duration: names of rules
# such as `ratio_rate5m` and texts such as `section [limits]` do not match.
RANGE = re.compile(rf"\[({DURATION})(?::({DURATION}))?\]")
KEYED = re.compile(rf"^(\s*(?:for|interval|group_wait|group_interval|repeat_interval): )({DURATION})$", re.MULTILINE)
# A minute becomes a second.
SCALE = Fraction(1, 60)


def scaled_duration(text: str, factor: Fraction) -> str:
    """Returns the duration times `factor`, in the largest unit that gives a whole number."""
    number, unit = re.fullmatch(r"(\d+)(\w+)", text).groups()
    milliseconds = int(number) * UNITS[unit] * factor
    for name, size in UNITS.items():
        if milliseconds % size == 0:
            return f"{milliseconds // size}{name}"
    raise ValueError(f"{text} times {factor} is not a whole number of milliseconds")


def scale(text: str, factor: Fraction = SCALE) -> str:
    """Multiplies the ranges of selectors and subqueries, and the values of the keys in `KEYED`, by `factor`."""

    def ranges(match: re.Match) -> str:
        return "[" + ":".join(scaled_duration(part, factor) for part in match.groups() if part) + "]"

    text = RANGE.sub(ranges, text)
    return KEYED.sub(lambda match: match[1] + scaled_duration(match[2], factor), text)


def replace_once(text: str, old: str, new: str) -> str:
    """Replaces `old`, which must occur exactly once."""
    if text.count(old) != 1:
        raise ValueError(f"{old!r} occurs {text.count(old)} times instead of once")
    return text.replace(old, new)


def with_constant(rules: str, record: str, expression: str) -> str:
    """Replaces the expression of the recording rule `record`, which must be a constant."""
    pattern = re.compile(rf"(- record: {re.escape(record)}\n\s+expr: )vector\(.*\)$", re.MULTILINE)
    rules, count = pattern.subn(lambda match: match[1] + expression, rules)
    if count != 1:
        raise ValueError(f"{record} is defined {count} times instead of once")
    return rules


def prometheus(text: str, targets: list[str], alertmanager: str, interval: str) -> str:
    """Returns `prometheus.yml` with these addresses, and with `interval` between scrapes and between evaluations."""
    text = replace_once(text, 'targets: ["blip-server:8080"]', f"targets: {targets}")
    text = replace_once(text, 'targets: ["alertmanager:9093"]', f'targets: ["{alertmanager}"]')
    text = replace_once(text, "scrape_interval: 15s", f"scrape_interval: {interval}\n  evaluation_interval: {interval}")
    return replace_once(text, "scrape_timeout: 10s", f"scrape_timeout: {interval}")


def alertmanager(text: str, sink: str) -> str:
    """Returns `alertmanager.yml` with scaled waits, and with a webhook for each receiver."""
    for name in ("page", "ticket"):
        webhook = f"\n    webhook_configs:\n      - url: {sink}/{name}\n        send_resolved: true"
        text = replace_once(text, f"\n  - name: {name}\n", f"\n  - name: {name}{webhook}\n")
    return scale(text)


def durations_aside(text: str) -> tuple[str, list[str]]:
    """Splits a text into the text without durations, and the durations. Written in another way than `scale`."""
    parts, durations = [], []
    for token in re.split(r"(\w+)", text):
        is_duration = token[:1].isdigit() and token.rstrip("smhd").isdigit() and not token.isdigit()
        (durations if is_duration else parts).append(token)
    return "".join(parts), durations


def milliseconds(duration: str) -> int:
    """Returns the length of a duration such as `5m`."""
    return next(int(duration[: -len(u)]) * UNITS[u] for u in ("ms", "d", "h", "m", "s") if duration.endswith(u))


def check_scaling(text: str) -> None:
    """Fails if `scale` changes anything but durations, or does not change all of them by the factor."""
    import yaml

    scaled = scale(text)
    back = scale(scaled, 1 / SCALE)
    assert back == text, "scaling there and back does not give the original"
    before, after = yaml.safe_load(text), yaml.safe_load(scaled)
    assert len(before["groups"]) == len(after["groups"])
    count = 0
    for group, scaled_group in zip(before["groups"], after["groups"]):
        for rule, scaled_rule in zip(group.pop("rules"), scaled_group.pop("rules"), strict=True):
            # YAML has parsed the texts and names: they must be the same to the letter.
            for key in ("expr", "for"):
                shape, durations = durations_aside(rule.pop(key, ""))
                scaled_shape, scaled_durations = durations_aside(scaled_rule.pop(key, ""))
                assert shape == scaled_shape, f"{shape}\nbecame\n{scaled_shape}"
                lengths = [milliseconds(duration) * SCALE for duration in durations]
                assert lengths == [milliseconds(duration) for duration in scaled_durations], rule
                count += len(durations)
            assert rule == scaled_rule, f"{rule} became {scaled_rule}"
        if interval := group.pop("interval", None):
            assert milliseconds(interval) * SCALE == milliseconds(scaled_group.pop("interval"))
            count += 1
        assert group == scaled_group
    print(f"scaling changes {count} durations of the alerts and nothing else")


def test() -> None:
    """Checks the scaling of the alerts, and that the check finds faulty scaling."""
    rules = (Path(__file__).parents[2] / "deploy/alerts.yml").read_text()
    check_scaling(rules)
    # The check must notice a scaling that does too much or too little.
    global scale
    honest = scale
    faults = {
        "also changes a threshold": lambda text, *factor: honest(text, *factor).replace("> 0.8", "> 0.9"),
        "also changes a text": lambda text, *factor: honest(text, *factor).replace("five minutes", "5 s"),
        "forgets `for`": lambda text, factor=SCALE: RANGE.sub(
            lambda match: "[" + ":".join(scaled_duration(part, factor) for part in match.groups() if part) + "]", text
        ),
    }
    for name, faulty in faults.items():
        scale = faulty
        try:
            check_scaling(rules)
        except (AssertionError, ValueError):
            continue
        finally:
            scale = honest
        sys.exit(f"a scaling that {name} is not noticed")


if __name__ == "__main__":
    if sys.argv[1:] != ["--test"]:
        sys.exit(__doc__)
    test()
