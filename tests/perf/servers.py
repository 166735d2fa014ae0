"""Compares servers over HTTP in one run, alternating: ours, LitServe and FastAPI around transformers; README.md beside it says how.

Usage: servers.py --work DIR --bert DIR --photos DIR --server BINARY [--names ...] [--clients 1,16] [--rounds 3] [--warm-up 20] [--window 60] [--json FILE]
"""

import argparse
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

from perf import checkpoint, machine, results
from perf.captioning_servers import KINDS, CaptioningServer, Setup
from perf.load import Load

DEFAULT = ["blip-server-bf16", "blip-server-int8", "litserve", "fastapi"]
PICTURES = 400
FIGURES = {"requests_per_second": 3, "p50_ms": 0, "p90_ms": 0, "p99_ms": 0}  # with the digits behind the point that the table shows
# (server, clients) -> one measurement of perf.load for each round
Measured = dict[tuple[str, int], list[dict]]


def parse() -> argparse.Namespace:
    """The command line."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--work", type=Path, required=True, help="where the checkpoint and the pictures are made, and kept")
    arguments.add_argument("--bert", type=Path, required=True, help="directory of bert-base-uncased's vocab.txt and tokenizer.json")
    arguments.add_argument("--photos", type=Path, required=True, help="directory of chelsea.png, coffee.png and rocket.jpg")
    arguments.add_argument("--server", type=Path, required=True, help="the blip-server binary")
    arguments.add_argument("--names", type=lambda v: v.split(","), default=DEFAULT, help=f"servers to compare, of {','.join(KINDS)}")
    arguments.add_argument("--clients", type=lambda v: [int(n) for n in v.split(",")], default=[1, 16], help="numbers of clients, measured one after another")
    arguments.add_argument("--rounds", type=int, default=3, help="how often every server has its turn")
    arguments.add_argument("--warm-up", type=float, default=20, help="seconds of load before each window")
    arguments.add_argument("--window", type=float, default=60, help="seconds in which answers count")
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--json", type=Path, help="everything that was measured")
    args = arguments.parse_args()
    if unknown := set(args.names) - set(KINDS):
        arguments.error(f"--names: {sorted(unknown)} is not among {list(KINDS)}")
    args.server = args.server.resolve()
    return args


def command(args: argparse.Namespace) -> str:
    """The command without the paths of this machine."""
    lists = f"--names {','.join(args.names)} --clients {','.join(map(str, args.clients))}"
    seconds = f"--rounds {args.rounds} --warm-up {args.warm_up:g} --window {args.window:g}"
    return f"servers.py --work DIR --bert DIR --photos DIR --server blip-server {lists} {seconds} --threads {args.threads}"


def pictures(args: argparse.Namespace) -> list[bytes]:
    """400 distinct JPEGs of 640 x 480, written to the work directory unless they are there. In another process, because images.py imports torch."""
    folder = args.work / "jpegs-640x480"
    if len(list(folder.glob("*.jpg"))) < PICTURES:
        script = Path(__file__).with_name("images.py")
        subprocess.run([sys.executable, script, "--photos", args.photos, "--out", folder, "--count", str(PICTURES)], check=True)
    return [path.read_bytes() for path in sorted(folder.glob("*.jpg"))[:PICTURES]]


def one_turn(args: argparse.Namespace, name: str, clients: int, setup: Setup, jpegs: list[bytes]) -> dict:
    """Starts a server, measures, and stops it."""
    with CaptioningServer(KINDS[name], setup, args.work / f"{name}.log") as server:
        found = Load(server.address, KINDS[name].target, jpegs, clients).run(args.warm_up, args.window)
    latencies = ", ".join(f"{key.removesuffix('_ms')} {found[key] / 1000:.2f} s" for key in FIGURES if key.endswith("_ms"))
    print(f"{name}, {clients} clients: {found['requests_per_second']:.3f} captions/s, {latencies}, {found['refused']} refused", flush=True)
    return found


def rows(measured: Measured) -> list[dict]:
    """For each server and number of clients: median, least and most of each figure over the rounds."""
    found = []
    for (name, clients), rounds in measured.items():
        figures = {key: results.spread([one[key] for one in rounds]) for key in FIGURES}
        found.append({"server": name, "clients": clients, **figures, "refused": sum(one["refused"] for one in rounds), "by_round": rounds})
    return found


def ratios(measured: Measured) -> list[dict]:
    """How many times as many captions per second ours makes, and how many times as long the other's median request takes, round by round."""
    found = []
    for own, clients in (key for key in measured if key[0].startswith("blip-server")):
        for peer in (name for name, count in measured if count == clients and not name.startswith("blip-server")):
            rounds = list(zip(measured[own, clients], measured[peer, clients]))
            rates = [ours["requests_per_second"] / theirs["requests_per_second"] for ours, theirs in rounds]
            latencies = [theirs["p50_ms"] / ours["p50_ms"] for ours, theirs in rounds]
            found.append({"own": own, "peer": peer, "clients": clients, "requests_per_second": results.spread(rates), "p50": results.spread(latencies)})
    return found


def tables(document: dict) -> str:
    """Markdown of everything."""
    head = ["server", "clients", "captions per second", "p50, ms", "p90, ms", "p99, ms", "refused"]
    body = [
        [row["server"], str(row["clients"]), *(results.spread_text(row[key], digits) for key, digits in FIGURES.items()), str(row["refused"])]
        for row in document["rows"]
    ]
    parts = ["Median (least to most) over the rounds\n", results.table(head, body)]
    if document["ratios"]:
        head = ["ours", "other server", "clients", "captions per second, ours by the other's", "p50, the other's by ours"]
        body = [
            [row["own"], row["peer"], str(row["clients"]), results.spread_text(row["requests_per_second"], 2), results.spread_text(row["p50"], 2)]
            for row in document["ratios"]
        ]
        parts += ["Ratios: median (least to most) over the rounds, each ratio from one round\n", results.table(head, body)]
    return "\n".join(parts)


def main() -> int:
    """Measures in rounds, prints the tables."""
    args = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leaves the `with` block, which stops the server
    args.work.mkdir(parents=True, exist_ok=True)
    setup = Setup(args.server, checkpoint.make(args.bert, args.work), args.threads)
    jpegs = pictures(args)
    turns = [(name, clients) for clients in args.clients for name in args.names]
    measured: Measured = {turn: [] for turn in turns}
    others = []
    for number in range(args.rounds):
        others.append(machine.busy())
        print(f"round {number + 1}/{args.rounds}: others use {100 * others[-1]:.0f} % of the cores", flush=True)
        for name, clients in turns[:: -1 if number % 2 else 1]:
            measured[name, clients].append(one_turn(args, name, clients, setup, jpegs))
        document = {
            "command": command(args), "machine": machine.describe(args.server, args.threads), "others_use_before_rounds": others,
            "rows": rows(measured), "ratios": ratios(measured),
        }  # fmt: skip
        if args.json:
            args.json.write_text(json.dumps(document, indent=1) + "\n")
    noise = f"Before the rounds others used {', '.join(f'{100 * share:.0f}' for share in others)} % of the cores."
    print(f"\n{machine.line(document['machine'])}. {noise}\n\n{tables(document)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
