"""RESULTS.md from the results of all runs in a work directory. Called by compare.py after each checkpoint."""

import json
import statistics
from pathlib import Path

from .weights import Checkpoint

HEAD = """# Full-size comparison with transformers

Written by `compare.py`; `README.md` beside it says how to run it and what the columns mean.
"""


def facts(spec: Checkpoint, reference: dict) -> dict:
    """What the report says about a reference."""
    if spec.role == "retrieval":
        return {"rolled": reference["rolled"], "tolerance": reference["tolerance"], "photos": reference["photos"]}
    sequences = [s for e in reference["entries"] for s in e["sequences"]]
    with_parameters = [e for e in reference["entries"] if e["params"]]
    return {
        "photos": reference["photos"], "gap": reference["gap"], "distinct": reference["distinct"], "rolled": reference["rolled"],
        "sequences": len(sequences), "stopped": sum(s["finish_reason"] == "stop" for s in sequences),
        "with_parameters": len(with_parameters), "bites": sum(e["bites"] for e in with_parameters),
        "example": {e["photo"]: e["sequences"][0]["text"] for e in reversed(reference["entries"]) if e["name"] == "greedy"},
    }  # fmt: skip


def line(result: dict) -> str:
    """One checkpoint in a line, for the terminal."""
    found = result["found"]
    said = f"{found['texts_equal']} of {found['texts']} texts equal, logprob within {found['logprob']:.1e}"
    if result["role"] == "retrieval":
        said = f"match within {found['match']:.1e}, cosine within {found['cosine']:.1e}, embeddings at least {found['embedding']:.7f}"
    return f"{found['answers']} answers, {said}, {len(found['mismatches'])} differences, exit {result['ended']['exit_code']}"


def write(work: Path, target: Path) -> None:
    """Every result that stands in `work`, base before large."""
    results = [json.loads(path.read_text()) for path in sorted(work.glob("*.result.json"))]
    order = ["caption", "vqa", "retrieval"]
    results.sort(key=lambda r: (r["size"], order.index(r["role"]), r["recipe"] != "varied"))
    parts = [HEAD]
    for size in ("base", "large"):
        if chosen := [r for r in results if r["size"] == size]:
            parts += _section(size, chosen)
    target.write_text("\n".join(parts), encoding="utf-8")


def _section(size: str, results: list[dict]) -> list[str]:
    with_machine = results[-1]["machine"]
    flags = "" if size == "base" else " --size large"
    parts = [
        f"## {size.capitalize()} size\n",
        f"`compare.py --bert DIR --photos DIR --server blip-server --work DIR{flags}` on {with_machine['date']}: {with_machine['cpu']}, {with_machine['cores']} cores, "
        f"shared with other work; {with_machine['server']} with `--dtype f32 --device cpu`; torch {with_machine['torch']}, transformers {with_machine['transformers']}, "
        f"Pillow {with_machine['pillow']}, Python {with_machine['python']}. Photographs: {', '.join(results[0]['reference']['photos'])}.\n",
    ]
    generating = [r for r in results if r["role"] != "retrieval"]
    matching = [r for r in results if r["role"] == "retrieval"]
    if generating:
        parts += _table(
            ["role, recipe", "file", "answers", "texts equal", "counts, reasons, continuations equal", "max logprob difference", "rankings equal", "max candidate difference", "differences"],
            [_generating(r) for r in generating],
        )
        parts.append("What these references are worth:\n")
        parts += _table(
            ["role, recipe", "smallest gap of a decision", "distinct greedy texts over the photographs", "greedy texts changed by a picture moved by one patch", "sequences that stop", "entries whose every parameter changes the ids"],
            [_worth(r) for r in generating],
        )
    if matching:
        parts += _table(
            ["role, recipe", "file", "answers", "max match difference", "max cosine difference", "smallest embedding cosine", "picture moved by one patch: match, cosine, embedding cosine", "differences"],
            [_matching(r) for r in matching],
        )
    parts.append("Time and memory. Requests go one at a time; a reference computes each picture once and looks for inputs worth having, so its time is no comparison.\n")
    parts += _table(["role, recipe", "start", "requests", "median", "longest", "total", "peak memory of the server", "exit code on SIGTERM", "reference"], [_times(r) for r in results])
    wrong = [f"- {_name(r)}: {m}" for r in results for m in r["found"]["mismatches"]]
    parts.append("Differences:\n\n" + "\n".join(wrong) + "\n" if wrong else "No differences.\n")
    for r in generating:
        said = "; ".join(f"{photo}: \"{text}\"" for photo, text in r["reference"]["example"].items())
        parts.append(f"Said by {_name(r)}: {said}\n")
    return parts


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return ["\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"]


def _name(result: dict) -> str:
    return f"{result['role']}, {result['recipe']}"


def _generating(r: dict) -> list[str]:
    f = r["found"]
    rankings = f"{f['rankings_equal']} of {f['rankings']}" if f["rankings"] else "-"
    candidate = f"{f['candidate']:.1e}" if f["rankings"] else "-"
    return [_name(r), r["weights_file"], str(f["answers"]), f"{f['texts_equal']} of {f['texts']}", f"{f['facts_equal']} of {f['texts']}", f"{f['logprob']:.1e}", rankings, candidate, str(len(f["mismatches"]))]


def _worth(r: dict) -> list[str]:
    w = r["reference"]
    return [_name(r), f"{w['gap']:.4f}", w["distinct"], w["rolled"], f"{w['stopped']} of {w['sequences']}", f"{w['bites']} of {w['with_parameters']}"]


def _matching(r: dict) -> list[str]:
    f, w = r["found"], r["reference"]["rolled"]
    moved = f"{w['match']:.1e}, {w['cosine']:.1e}, {w['image']:.5f}"
    return [_name(r), r["weights_file"], str(f["answers"]), f"{f['match']:.1e}", f"{f['cosine']:.1e}", f"{f['embedding']:.8f}", moved, str(len(f["mismatches"]))]


def _times(r: dict) -> list[str]:
    s = r["seconds"]
    sent = ", ".join(f"{n} {encoding}" for encoding, n in r["found"]["requests"].items())
    return [
        _name(r), f"{r['start_seconds']:.1f} s", f"{len(s)} ({sent})", f"{statistics.median(s):.2f} s", f"{max(s):.1f} s", f"{sum(s):.0f} s",
        f"{r['ended']['peak_bytes'] / 2**30:.2f} GiB", str(r["ended"]["exit_code"]), f"{r['reference_seconds']:.0f} s",
    ]  # fmt: skip
