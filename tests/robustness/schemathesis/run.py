#!/usr/bin/env python3
"""Sends what the OpenAPI document allows, and what it does not, to a running server: examples, boundaries, random
data and chains of calls, by schemathesis.

    pip install -r tests/robustness/schemathesis/requirements.txt
    tests/robustness/schemathesis/run.py --short -- target/release/blip-server
    tests/robustness/schemathesis/run.py -- target/release/blip-server

What follows `--` is a command line that takes `--listen` (`serve` of a binary, or another command of it). It is started
on a free port with the environment as it is (BLIP__LIMITS__MAX_NEW_TOKENS=4 makes generation short), and ended at the end.
The long form goes on until 20,000 cases have been sent. Exit status: 0 without failures, 1 with some.
"""

import argparse
import collections
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
LONG_CASES = 20_000
# Random cases of an operation in one round.
SHORT_EXAMPLES, LONG_EXAMPLES = 25, 400
SHORT_SECONDS = 120


class Server:
    """The command, started on a free port of the loopback."""

    def __init__(self, command, log):
        listen = ["--listen", "127.0.0.1:0", "--log-format", "json"]
        self.log = log
        self.process = subprocess.Popen([*command, *listen], stdout=log, stderr=subprocess.STDOUT)
        self.url = self.address()
        self.wait_until_ready()

    def address(self):
        return self.eventually(
            lambda: re.search(r"listening on (http://[0-9.]+:[0-9]+)", pathlib.Path(self.log.name).read_text()),
            "no line in its log says where it listens",
        ).group(1)

    def wait_until_ready(self):
        def ready():
            try:
                with urllib.request.urlopen(f"{self.url}/health/ready", timeout=5) as answer:
                    return answer.status == 200
            except (urllib.error.URLError, ConnectionError):
                return False

        self.eventually(ready, "it is not ready")

    def eventually(self, check, complaint):
        end = time.monotonic() + 120
        while time.monotonic() < end:
            if self.process.poll() is not None:
                sys.exit(f"the server ended with {self.process.returncode}; its log: {self.log.name}")
            if found := check():
                return found
            time.sleep(0.05)
        sys.exit(f"{complaint} after two minutes; its log: {self.log.name}")

    def memory_mib(self, field="VmRSS"):
        """Resident memory, or its peak (`VmHWM`); None once it has ended."""
        try:
            status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        except FileNotFoundError:
            return None
        resident = re.search(rf"{field}:\s+(\d+) kB", status)
        return int(resident.group(1)) // 1024 if resident else None

    def stop(self):
        """Ends it as an orchestrator would, if it still runs; its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)


def document(url, folder):
    """The served document with all conditions in a file, so that its own route is tested like the others."""
    path = folder / "openapi.json"
    path.write_bytes(urllib.request.urlopen(f"{url}/openapi-strict.json", timeout=30).read())
    return path


def round_of(server, schema, folder, options, number, phases):
    """One run of schemathesis; its events, in a file, and whether it ended as it should."""
    events = folder / f"events-{number}.ndjson"
    seed = options.seed + number
    command = [
        sys.executable, "-m", "schemathesis.cli",
        "--config-file", str(HERE / "schemathesis.toml"),
        "run", str(schema), "--url", server.url,
        "--phases", phases, "--mode", "all", "--checks", "all",
        "--max-examples", str(options.examples), "--seed", str(seed), "--workers", str(options.workers),
        # A shrunk case is easier to read; the search for it costs more than the rest.
        "--no-shrink",
        "--generation-database", "none",
        # Slow examples and filtered ones are how fuzzing looks, not a fault of the schema.
        "--suppress-health-check", "all",
        "--report", "ndjson", "--report-ndjson-path", str(events), "--output-sanitize", "false",
        "--warnings", "off",
    ]
    if options.short:
        command += ["--max-time", str(SHORT_SECONDS)]
    hooks = {"SCHEMATHESIS_HOOKS": str(HERE / "hooks.py"), "PYTHONPATH": str(HERE)}
    environment = {**os.environ, **hooks, "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    with open(folder / f"report-{number}.txt", "w") as report:
        code = subprocess.run(command, stdout=report, stderr=subprocess.STDOUT, cwd=folder, env=environment).returncode
    return events, code


class Tally:
    """What the rounds found."""

    def __init__(self):
        self.cases = 0
        self.by = {"phase": collections.Counter(), "status": collections.Counter(), "operation": collections.Counter()}
        self.answered = collections.Counter()
        self.checks = collections.Counter()
        self.failures = []

    def add(self, events):
        with open(events) as lines:
            for line in lines:
                event = json.loads(line)
                if "ScenarioFinished" in event:
                    self.scenario(event["ScenarioFinished"])

    def scenario(self, event):
        recorder = event["recorder"]
        for interaction in recorder.get("interactions", {}).values():
            self.cases += 1
            response = interaction.get("response")
            status = response["status_code"] if response else "none"
            self.by["phase"][event["phase"]] += 1
            self.by["status"][status] += 1
            self.by["operation"][recorder["label"]] += 1
        for results in recorder.get("checks", {}).values():
            for result in results:
                self.checks[result["name"]] += 1
                if result["status"] == "failure":
                    self.failures.append((event["phase"], recorder["label"], result["name"]))


def main():
    options = arguments()
    folder = pathlib.Path(options.keep or tempfile.mkdtemp(prefix="schemathesis-"))
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    tally, codes = Tally(), []
    with open(folder / "server.log", "w") as log:
        server = Server(options.command, log)
        try:
            before = server.memory_mib()
            rounds(server, folder, options, tally, codes)
            after, peak = server.memory_mib(), server.memory_mib("VmHWM")
            alive = server.process.poll() is None
        finally:
            exit_status = server.stop()
    summary(tally, folder, began, (before, after, peak), exit_status)
    good = not tally.failures and alive and exit_status == 0 and all(code == 0 for code in codes)
    sys.exit(0 if good and tally.cases >= (1 if options.short else options.cases) else 1)


def rounds(server, folder, options, tally, codes):
    """Rounds until there were enough cases; a round that could not run ends them too."""
    schema = document(server.url, folder)
    phases = "examples,coverage,fuzzing,stateful"
    while True:
        events, code = round_of(server, schema, folder, options, len(codes), phases)
        codes.append(code)
        tally.add(events)
        print(f"round {len(codes)}: {tally.cases} cases, {len(tally.failures)} failures", file=sys.stderr, flush=True)
        if options.short or code not in (0, 1) or tally.cases >= options.cases or server.process.poll() is not None:
            return
        # The first two phases are the same every time.
        phases = "fuzzing,stateful"


def summary(tally, folder, began, memory, exit_status):
    print(f"cases: {tally.cases} in {time.monotonic() - began:.0f} s, checks: {sum(tally.checks.values())}")
    for name, counts in tally.by.items():
        print(f"by {name}: " + ", ".join(f"{key} {count}" for key, count in sorted(counts.items(), key=str)))
    before, after, peak = memory
    print(f"server: {before} MiB before, {after} MiB after, {peak} MiB at most, exit status {exit_status}")
    print(f"failures: {len(tally.failures)}")
    for (phase, label, check), count in collections.Counter(tally.failures).most_common(40):
        print(f"  {count} x {check} in {phase} of {label}")
    print(f"reports: {folder}")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="one round, two minutes of random data")
    parser.add_argument("--cases", type=int, default=LONG_CASES, help="the long form ends after so many")
    parser.add_argument("--examples", type=int, help="random cases of an operation in a round")
    parser.add_argument("--seed", type=int, default=20_261_125, help="of the first round; each further one adds 1")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--keep", help="folder for reports and the server's log; a temporary one by default")
    parser.add_argument("command", nargs="+", help="the server's command line, after --")
    options = parser.parse_args()
    options.examples = options.examples or (SHORT_EXAMPLES if options.short else LONG_EXAMPLES)
    return options


if __name__ == "__main__":
    main()
