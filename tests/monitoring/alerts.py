"""Makes alerts fire and resolve: real servers under real load where a client can cause the fault, else a changed page."""

import json
import signal
import socket
import threading
import time
from pathlib import Path

import render
from exporter import Exporter
from programs import Failure, Program, Prometheus, Server, get, wait_for
from sink import Sink
from traffic import KEY, WRONG_KEY, Load, call, encoded, endpoints, png, refusals, send

DEPLOY = Path(__file__).parents[2] / "deploy"
MEBIBYTE = 1024 * 1024
WORKER_UP = 'blip_worker_up{worker="0"}'


class Watch:
    """Expects notifications at the sink, and remembers how long they took."""

    def __init__(self, sink: Sink):
        self.sink = sink
        self.rows = []

    def fired(self, cause: str, name: str, receiver: str, since: float, timeout: float = 45, **labels) -> None:
        """Waits for `firing` at the receiver. `since` is the time of the cause."""
        # It may be resolved again by now: a window of ten minutes takes ten seconds to pass.
        wait_for(f"{name} at the webhook ({cause})", lambda: self.sink.of(name, **labels), timeout)
        at, where, _, _, annotations = self.sink.of(name, **labels)[0]
        if where != receiver:
            raise Failure(f"{name} goes to the receiver {where}, not {receiver}")
        if any("<no value>" in text or "{{" in text for text in annotations.values()):
            raise Failure(f"{name} has an incomplete text: {annotations}")
        self.rows.append([name, cause, receiver, at - since, None, labels, annotations["summary"]])

    def resolved(self, name: str, timeout: float = 45, **labels) -> None:
        """Waits until the last notification is `resolved`."""
        wait_for(f"{name} is resolved at the webhook", lambda: self.sink.has(name, "resolved", **labels), timeout)
        row = next(row for row in self.rows if row[0] == name)
        entries = self.sink.of(name, **labels)
        row[4] = entries[-1][0] - entries[0][0]

    def table(self) -> str:
        """Returns what was seen, one line for each alert: after how long it fired, and how long after that it was resolved."""
        lines = [f"{'alert':<22}{'receiver':<10}{'fires':>8}{'resolved':>10}  text"]
        for name, _, receiver, fired, resolved, _, summary in self.rows:
            after = "-" if resolved is None else f"{resolved:.1f} s"
            lines.append(f"{name:<22}{receiver:<10}{fired:>6.1f} s{after:>10}  {summary}")
        return "\n".join(lines)


class Stage:
    """The programs that the alerts are about, and a Prometheus whose minutes last a second."""

    def __init__(self, binary: Path, folder: Path, sink: Sink, alertmanager: str):
        self.folder, self.sink, self.alertmanager = folder, sink, alertmanager
        self.programs: list[Program] = []
        self.keys = folder / "keys"
        self.keys.write_text(f"tester:{KEY}\n")
        # The real server with its demo models. It requires keys and fetches images by URL.
        # On a slow machine, no request may be refused because it waits.
        settings = {"auth.keys_file": self.keys, "fetch.enabled": "true", "mcp.enabled": "true", "engine.max_queue_wait_ms": 30000}
        self.demo = self.server("demo", [binary], settings)
        # Mock models that need a third of a second for a step. Sixteen rows fill the queue.
        rows = {"engine.capacity_rows": 16, "limits.max_rows": 16, "limits.max_rank_candidates": 8, "engine.max_queue_wait_ms": 30000}
        self.busy = self.server("busy", [binary, "mock", "--unit-us", "300000", "--text-length", "4"], rows)
        # The same models in a process that may open 64 files.
        slow = f"ulimit -n 64 && exec {binary} mock --unit-us 300000 --text-length 4"
        limits = {"server.max_connections": 64, "server.header_read_timeout_ms": 60000}
        self.narrow = self.server("narrow", ["sh", "-c", slow], limits)
        for server in (self.demo, self.busy, self.narrow):
            server.wait_until_ready()
        self.exporter = Exporter(get(f"http://{self.demo.operations}/metrics"))
        self.targets = [self.demo.operations, self.busy.operations, self.narrow.operations, self.exporter.address]
        self.prometheus = None

    def server(self, name: str, command: list, settings: dict) -> Server:
        self.programs.append(Server(name, command, self.folder, {"log.format": "json", **settings}))
        return self.programs[-1]

    def render(self, targets: list[str], memory: int | None, latency: float | None) -> None:
        """Writes the configuration of the fast Prometheus, with other constants if given."""
        folder = self.folder / "fast"
        folder.mkdir(exist_ok=True)
        rules = render.scale((DEPLOY / "alerts.yml").read_text())
        if memory:
            rules = render.with_constant(rules, "blip:memory_limit_bytes", f"vector({memory})")
        if latency:
            rules = render.with_constant(rules, "blip:latency_objective_seconds", f"vector({latency})")
        (folder / "alerts.yml").write_text(rules)
        text = render.prometheus((DEPLOY / "prometheus.yml").read_text(), targets, self.alertmanager, "1s")
        (folder / "prometheus.yml").write_text(text)
        if self.prometheus:
            self.prometheus.reload()
        else:
            self.prometheus = Prometheus("prometheus-fast", folder)
            self.programs.append(self.prometheus)

    def stop(self, how: int) -> None:
        for program in self.programs:
            program.stop(how)


def traffic(stage: Stage, picture: bytes) -> list[Load]:
    """Starts the traffic of the first half of the test on the real server, and the overload on the mock."""
    everything = endpoints(picture) + refusals(picture)
    failure = []

    def one(number: int) -> int:
        request = everything[number % len(everything)]
        try:
            send(stage.demo.url, [request])
        except AssertionError as error:
            failure.append(str(error))
        # Distinct images, so that the models have something to do.
        return call(stage.demo.url, "POST", "/caption", {"image": encoded(png(number)), "stream": number % 2 == 0})

    def leaves(number: int) -> int:
        """Sends a request and closes the connection before the answer."""
        host, port = stage.busy.address.split(":")
        body = b'{"image":"%s"}' % encoded(png(number)).encode()
        with socket.create_connection((host, int(port))) as connection:
            head = f"POST /caption HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode() + body)
            time.sleep(0.5)
        return 0

    def overload(number: int) -> int:
        return call(stage.busy.url, "POST", "/caption", {"image": encoded(png(number))})

    def slow(number: int) -> int:
        return call(stage.narrow.url, "POST", "/vqa", {"image": encoded(png(number)), "question": "how many?"})

    def bulk(number: int) -> int:
        """Sends a bulk request that takes a few seconds."""
        lines = [{"id": str(n), "task": "caption", "image": encoded(png(number * 150 + n))} for n in range(150)]
        body = "".join(json.dumps(line) + "\n" for line in lines).encode()
        return call(stage.demo.url, "POST", "/bulk", body, "application/x-ndjson")

    loads = [Load(2, one, 0.05), Load(1, bulk, 2), Load(1, leaves, 0.2), Load(24, overload, 0.1), Load(2, slow)]
    loads[0].failure = failure
    return loads


def bursts(stage: Stage) -> None:
    """Sends what a server without load refuses at once, each kind within a scrape interval or two."""
    # 150 calls without a key within a scrape interval, then some with a wrong one, until the address is refused.
    for _ in range(150):
        call(stage.demo.url, "POST", "/caption", {}, key=None)
    wrong = {call(stage.demo.url, "POST", "/caption", {}, key=WRONG_KEY) for _ in range(30)}
    if wrong != {401, 429}:
        raise Failure(f"wrong keys are answered with {wrong}")
    for number in range(40):
        url = f"https://{['127.0.0.1', '169.254.169.254', '10.0.0.1', '[::1]'][number % 4]}/cat.png"
        status = call(stage.demo.url, "POST", "/caption", {"image": url})
        if status != 422:
            raise Failure(f"{url} is answered with {status}")


def fire_all(stage: Stage, watch: Watch, began: float) -> None:
    """Causes the other alerts that need load or a changed page, and waits until all have fired since `began`."""
    demo, series = stage.demo.operations, "blip_request_failures_total"
    stage.keys.write_text("short\n")

    # Idle connections until nine tenths of the descriptors are open.
    page = dict(line.split() for line in get(f"http://{stage.narrow.operations}/metrics").splitlines() if line.startswith("process_"))
    host, port = stage.narrow.address.split(":")
    wanted = int(0.9 * float(page["process_max_fds"]) - float(page["process_open_fds"]))
    stage.idle = [socket.create_connection((host, int(port))) for _ in range(wanted)]

    # What no client can cause.
    raised = [
        'blip_panics_total{where="worker"}', "blip_non_finite_outputs_total", "blip_oom_total",
        *['blip_worker_restarts_total{worker="0"}'] * 2,
    ]  # fmt: skip
    for name in raised:
        stage.exporter.add(name, 1)
    stage.exporter.add(WORKER_UP, -1)
    stage.exporter.hung = True
    stage.faulty = threading.Event()

    def faults():
        while not stage.faulty.wait(0.25):
            stage.exporter.add(series + '{reason="inference_failed"}', 20)
            stage.exporter.add_with('blip_items_total{code="ok",model="demo-caption",task="caption"}', "code", "inference_failed", 5)
            stage.exporter.add('blip_http_requests_total{code="ok",method="POST",route="/caption",status="200"}', 100)

    threading.Thread(target=faults, daemon=True).start()

    changed = {"instance": stage.exporter.address}
    expected = [
        ("BlipUnauthorized", "150 calls without a key", "ticket", {"instance": demo}),
        ("BlipSsrfProbing", "40 URLs of internal addresses", "ticket", {"instance": demo}),
        ("BlipMemory", "a limit of 64 MiB", "ticket", {"instance": demo}),
        ("BlipFileDescriptors", f"{wanted} idle connections, 64 descriptors", "ticket", {"instance": stage.narrow.operations}),
        ("BlipQueueSaturated", "24 clients, 16 rows", "ticket", {"instance": stage.busy.operations}),
        ("BlipShedding", "24 clients, 16 rows", "ticket", {}),
        ("BlipLatencyP99", "an objective of 1 s", "page", {"route": "/vqa"}),
        ("BlipErrorBudgetFast", "changed page", "page", {}),
        ("BlipItemFaults", "changed page", "ticket", {}),
        ("BlipPanics", "changed page", "ticket", changed),
        ("BlipNonFiniteOutputs", "changed page", "page", changed),
        ("BlipDeviceMemory", "changed page", "ticket", changed),
        ("BlipWorkerStuck", "changed page", "page", changed),
        ("BlipWorkerDown", "changed page", "page", changed),
        ("BlipWorkerFlapping", "changed page", "page", changed),
        ("BlipReloadFailed", "an invalid file of keys", "ticket", {"instance": demo}),
    ]
    for name, cause, receiver, labels in expected:
        watch.fired(cause, name, receiver, began, **labels)
    stage.expected = expected
    # The slower budget alerts fire too, but the Alertmanager holds them back.
    firing = {alert["labels"]["alertname"] for alert in stage.prometheus.api("alerts")["alerts"] if alert["state"] == "firing"}
    for name in ("BlipErrorBudgetSlow", "BlipErrorBudgetSpent"):
        if name not in firing:
            raise Failure(f"{name} does not fire")
        # A notification may have left in the second before BlipErrorBudgetFast fired: all windows are as short as the test.
        if any(entry[0] > stage.sink.of("BlipErrorBudgetFast")[0][0] for entry in stage.sink.of(name)):
            raise Failure(f"{name} is notified, although BlipErrorBudgetFast inhibits it")
    print("BlipErrorBudgetSlow and BlipErrorBudgetSpent fire, and BlipErrorBudgetFast inhibits their notifications")


def resolve_all(stage: Stage, watch: Watch, short: bool) -> None:
    """Removes the causes, and waits until all alerts are resolved. Meanwhile a server is killed and restarted."""
    stage.keys.write_text(f"tester:{KEY}\n")
    for connection in stage.idle:
        connection.close()
    stage.exporter.add(WORKER_UP, 1)
    stage.exporter.hung = False
    stage.faulty.set()
    stage.render(stage.targets, None, None)
    kill_and_restart(stage, watch, 1 if short else 3)
    # Windows of an hour take a minute to pass.
    slow = {"BlipWorkerFlapping", "BlipReloadFailed"}
    for name, _, _, labels in stage.expected:
        if not (short and name in slow):
            watch.resolved(name, 90 if name in slow else 45, **labels)
    if not short:
        watch.resolved("BlipRestarts", 90, instance=stage.demo.operations)
    lose_all(stage, watch)


def kill_and_restart(stage: Stage, watch: Watch, times: int) -> None:
    """Kills the real server, and starts it again when BlipDown has fired. Three times an hour are too many."""
    labels = {"instance": stage.demo.operations}
    for time_number in range(times):
        # A second of work, so that the counter of CPU time is seen to start again.
        cpu = f'process_cpu_seconds_total{{instance="{stage.demo.operations}"}}'

        def worked() -> bool:
            for number in range(20):
                call(stage.demo.url, "POST", "/caption", {"image": encoded(png(number)), "num_beams": 3})
            series = stage.prometheus.query(cpu)
            return bool(series) and float(series[0]["value"][1]) >= 1

        wait_for("the server has worked for a second", worked, 60)
        killed = time.time()
        stage.demo.stop(signal.SIGKILL)
        if time_number == 0:
            watch.fired("kill -9", "BlipDown", "page", killed, **labels)
        else:
            wait_for("BlipDown again", lambda: stage.sink.has("BlipDown", "firing", **labels), 30)
        stage.demo.start()
        stage.demo.wait_until_ready()
        watch.resolved("BlipDown", **labels)
    if times == 3:
        watch.fired("kill -9 three times", "BlipRestarts", "ticket", killed, **labels)


def lose_all(stage: Stage, watch: Watch) -> None:
    """Takes all targets away, so that no server is scraped."""
    began = time.time()
    stage.render([], None, None)
    watch.fired("no targets", "BlipGone", "page", began)
    stage.render(stage.targets, None, None)
    watch.resolved("BlipGone")
