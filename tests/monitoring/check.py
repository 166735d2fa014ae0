"""Runs Prometheus and Alertmanager with the files of `deploy/` against real servers; `run.sh` calls this.

    python check.py BINARY [--short] [--sheet FILE]

Two Prometheis scrape every second. The first has the rules as they are: all queries of the board and all rules must find
data there. The second has a copy whose minutes last a second (`render.py`): alerts must fire and resolve there, and
their notifications must reach a webhook through the Alertmanager.
"""

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import alerts
import queries
import render
from programs import Alertmanager, Failure, Prometheus, free_address, version_of, wait_for
from sink import Sink
from traffic import ROOT, endpoints, not_covered, stop_all

DEPLOY = ROOT / "deploy"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("binary", type=Path)
    parser.add_argument("--short", action="store_true", help="without the alerts that need a minute to resolve")
    parser.add_argument("--sheet", type=Path, help="PNG file for a sheet of all panels")
    parser.add_argument("--traffic", type=float, default=0, help="least duration of the traffic in seconds")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    began = time.time()
    programs, sink = [], Sink()
    try:
        run(arguments, folder, programs, sink)
    except Failure as failure:
        print("notifications until then:")
        for at, receiver, status, labels, _ in sink.received:
            print(f"  {at - began:6.1f} s {receiver:<7}{status:<9}{labels}")
        for log in sorted(folder.glob("**/prometheus*.log")) + sorted(folder.glob("**/alertmanager.log")):
            print(f"--- {log.name}\n{log.read_text()[-1500:]}")
        raise SystemExit(f"failed: {failure}") from None
    finally:
        for program in programs:
            program.stop(9)
        shutil.rmtree(folder, ignore_errors=True)
    print(f"all of it in {time.time() - began:.0f} s")


def run(arguments: argparse.Namespace, folder: Path, programs: list, sink: Sink) -> None:
    render.test()
    queries.check_codes()
    queries.check_memory_limit()
    queries.check_runbook()
    picture = (ROOT / "demo/scenes/two-cats.png").read_bytes()
    if missing := not_covered(endpoints(picture)):
        raise Failure(f"no request for these endpoints of openapi.yaml: {sorted(missing)}")
    print(f"Prometheus {version_of('prometheus')}, Alertmanager {version_of('prometheus-alertmanager')}")

    waits = folder / "alertmanager"
    waits.mkdir()
    (waits / "alertmanager.yml").write_text(render.alertmanager((DEPLOY / "alertmanager.yml").read_text(), sink.url))
    address = free_address()
    programs.append(Alertmanager(waits, address))
    stage = alerts.Stage(arguments.binary.resolve(), folder, sink, address)
    programs.append(stage)

    # The rules as they are. This Prometheus has no Alertmanager: the other one sends the notifications.
    instances = [stage.demo.operations, stage.busy.operations]
    plain = folder / "plain"
    plain.mkdir()
    shutil.copy(DEPLOY / "alerts.yml", plain)
    text = render.prometheus((DEPLOY / "prometheus.yml").read_text(), instances, free_address(), "1s")
    (plain / "prometheus.yml").write_text(text)
    prometheus = Prometheus("prometheus-plain", plain)
    programs.append(prometheus)
    stage.render(stage.targets, 64 * alerts.MEBIBYTE, 1)
    # Twice, because a counter that is new to Prometheus has not increased.
    for one, count in ((prometheus, len(instances)), (stage.prometheus, len(stage.targets))):
        twice = "sum_over_time(up[1m]) >= 2"
        wait_for("all targets are scraped twice", lambda one=one, count=count: len(one.query(twice)) == count, 30)
    wait_for("Prometheus knows the Alertmanager", lambda: stage.prometheus.api("alertmanagers")["activeAlertmanagers"], 30)

    start = time.time()
    alerts.bursts(stage)
    loads = alerts.traffic(stage, picture)
    watch = alerts.Watch(sink)
    alerts.fire_all(stage, watch, start)
    # Long enough for every request and every window of a minute.
    time.sleep(max(0, start + max(25, arguments.traffic) - time.time()))
    end = time.time()
    for server in (stage.demo, stage.busy):
        queries.check_page(f"http://{server.operations}/metrics")
    print("promtool check metrics: nothing found")
    queries.check_rules(prometheus)
    queries.check_board(prometheus, instances, start, end)
    stop_all(loads)
    if loads[0].failure:
        raise Failure(f"unexpected answers: {sorted(set(loads[0].failure))}")
    if arguments.sheet:
        import draw

        draw.sheet(prometheus, start, end, arguments.sheet)
        print(f"the sheet of all panels is {arguments.sheet}, {arguments.sheet.stat().st_size // 1024} KiB")
    alerts.resolve_all(stage, watch, arguments.short)
    print(watch.table())


if __name__ == "__main__":
    main()
