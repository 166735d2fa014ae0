"""From seconds to tables: milliseconds an image, ratios within a round, and what performance goals ask of them. Called by peers.py."""

import statistics
from dataclasses import dataclass

# engine -> "vision x8" -> one list of seconds (a whole batch each) for each round
Measured = dict[str, dict[str, list[list[float]]]]

TORCH = ["torch-bf16-shipped", "torch-bf16-sdpa", "torch-bf16-sdpa-compiled"]


@dataclass(frozen=True)
class Goal:
    """How many times the time of the fastest of `peers` is to be our own."""

    own: str
    peers: list[str]
    case: str
    wanted: float


# On a CPU.
GOALS = [
    *[Goal("blip-server-bf16", ["openvino-bf16"], case, 1.08) for case in ("vision x1", "vision x8")],
    *[Goal("blip-server-bf16", ["torch-bf16-sdpa-compiled"], case, 1.35) for case in ("vision x1", "vision x8")],
    *[Goal("blip-server-int8", ["openvino-int8"], case, 1.2) for case in ("vision x1", "vision x8")],
    Goal("blip-server-bf16", TORCH, "caption x1", 1.6),
    Goal("blip-server-bf16", TORCH, "caption x8", 1.9),
    Goal("blip-server-int8", TORCH, "caption x1", 2.6),
    *[Goal("blip-server-f32", ["torch-f32-sdpa"], case, 1.0) for case in ("vision x1", "vision x8", "caption x1", "caption x8")],
]
# On a GPU, against compiled programs that are replayed as CUDA graphs.
COMPILED = "torch-bf16-sdpa-compiled"
CUDA_GOALS = [
    Goal("blip-server-bf16", [COMPILED], "vision x1", 1.5),
    Goal("blip-server-bf16", [COMPILED], "vision x64", 1.0),
    Goal("blip-server-bf16", [COMPILED], "caption-known x1", 2.5),
    Goal("blip-server-bf16", [COMPILED], "caption-known x64", 2.0),
]


def case_name(task: str, batch: int) -> str:
    """`vision x8`."""
    return f"{task} x{batch}"


def _by_task_and_batch(case: str) -> tuple[bool, str, int]:
    """Sort key: vision first, as all engines have it, then smaller batches first."""
    task, _, batch = case.rpartition(" x")
    return task != "vision", task, int(batch)


def milliseconds(seconds: list[float], case: str) -> float:
    """One round's figure: the median of its runs, for each image."""
    return 1000 * statistics.median(seconds) / int(case.rpartition("x")[2])


def spread(values: list[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def times(measured: Measured) -> list[dict]:
    """A row for each engine and case."""
    rows = []
    for engine, cases in measured.items():
        for case, rounds in cases.items():
            by_round = [milliseconds(seconds, case) for seconds in rounds]
            rows.append({"engine": engine, "case": case, "ms_per_image": spread(by_round), "by_round": by_round})
    return rows


def ratios(measured: Measured) -> list[dict]:
    """Peer's time by ours, round by round, for every pair that did the same work."""
    rows = []
    for own in (e for e in measured if e.startswith("blip-server")):
        for peer in (e for e in measured if not e.startswith("blip-server")):
            for case in measured[peer]:
                if case in measured[own]:
                    by_round = _by_round(measured, own, [peer], case)
                    rows.append({"own": own, "peer": peer, "case": case, "ratio": spread(by_round), "by_round": by_round})
    return rows


def _by_round(measured: Measured, own: str, peers: list[str], case: str) -> list[float]:
    """The fastest peer's time by ours in each round that all of them finished."""
    rounds = zip(measured[own][case], *(measured[peer][case] for peer in peers))
    return [min(milliseconds(theirs, case) for theirs in others) / milliseconds(ours, case) for ours, *others in rounds]


def goals(measured: Measured, device: str = "cpu") -> list[dict]:
    """The goals of the device that this run can speak about: all of their engines that it knows, at least one peer."""
    rows = []
    for goal in CUDA_GOALS if device == "cuda" else GOALS:
        peers = [p for p in goal.peers if goal.case in measured.get(p, {})]
        if peers and goal.case in measured.get(goal.own, {}):
            by_round = _by_round(measured, goal.own, peers, goal.case)
            rows.append({"own": goal.own, "peers": peers, "case": goal.case, "ratio": spread(by_round), "by_round": by_round, "wanted": goal.wanted})
    return rows


def tables(document: dict) -> str:
    """Markdown of everything."""
    parts = ["Milliseconds an image: median (least to most) over the rounds\n", _times_table(document)]
    if document["ratios"]:
        parts += ["Time of the peer by ours: median (least to most) over the rounds, each ratio from one round\n", _ratio_table(document["ratios"])]
    if document["goals"]:
        parts += ["What is asked for, against the fastest of the peers in each round\n", _goal_table(document["goals"])]
    return "\n".join(parts)


def _times_table(document: dict) -> str:
    cases = sorted({row["case"] for row in document["times"]}, key=_by_task_and_batch)
    cells = {(row["engine"], row["case"]): spread_text(row["ms_per_image"], 1) for row in document["times"]}
    rows = []
    for engine in dict.fromkeys(row["engine"] for row in document["times"]):
        facts = document["engines"][engine]
        remark = facts.get("level") or f"{facts['hidden states, 1 - cosine to f32']:.1e}"
        rows.append([engine, *(cells.get((engine, case), "") for case in cases), remark])
    return table(["engine", *cases, "kernels, or 1 - cosine of the hidden states to f32"], rows)


def _ratio_table(rows: list[dict]) -> str:
    own = list(dict.fromkeys(row["own"] for row in rows))
    cells = {(row["peer"], row["case"], row["own"]): spread_text(row["ratio"], 2) for row in rows}
    pairs = dict.fromkeys((row["peer"], row["case"]) for row in rows)
    return table(["peer", "work", *(f"by {name}" for name in own)], [[*pair, *(cells.get((*pair, name), "") for name in own)] for pair in pairs])


def _goal_table(rows: list[dict]) -> str:
    def row(goal: dict) -> list[str]:
        reached = "yes" if goal["ratio"]["median"] >= goal["wanted"] else "no"
        return [goal["own"], goal["case"], ", ".join(goal["peers"]), spread_text(goal["ratio"], 2), f"{goal['wanted']:.1f}", reached]

    return table(["ours", "work", "peers", "ratio", "wanted", "median reaches it"], [row(goal) for goal in rows])


def spread_text(values: dict, digits: int) -> str:
    """`1.52 (1.50 to 1.57)`: median, smallest and largest."""
    return f"{values['median']:.{digits}f} ({values['min']:.{digits}f} to {values['max']:.{digits}f})"


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"
