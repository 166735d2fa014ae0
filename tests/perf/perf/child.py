"""A peer's process as peers.py sees it. It stands still (SIGSTOP) while another engine is measured: its threads cannot spin
then, and it can keep the waiting policy that is best for itself while it runs."""

import ctypes
import json
import os
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

PR_SET_PDEATHSIG = 1


def _end_with_parent() -> None:
    """A stopped process would not notice that its input ended."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@dataclass
class Child:
    """One loaded peer; `end` must be called."""

    engine: str
    arguments: list[str]
    threads: int
    log: Path
    python: Path  # the interpreter, and with it the virtual environment
    tasks: list[str] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    facts: dict = field(default_factory=dict)

    def start(self) -> None:
        """Returns when the engine is loaded and warm."""
        here, threads = Path(__file__).resolve().parents[1], str(self.threads)
        environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "PYTHONPATH": str(here), "TOKENIZERS_PARALLELISM": "false"}
        command = [str(self.python), "-m", "perf.worker", "--engine", self.engine, "--threads", threads, *self.arguments]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, preexec_fn=_end_with_parent
            )
        loaded = self._reply()
        self.tasks, self.batches, self.facts = loaded["tasks"], loaded["batches"], loaded["facts"]
        self.process.send_signal(signal.SIGSTOP)

    def run(self, task: str, batch: int, runs: int) -> list[float]:
        """Seconds of each run of a whole batch."""
        self.process.send_signal(signal.SIGCONT)
        try:
            print(json.dumps({"task": task, "batch": batch, "runs": runs}), file=self.process.stdin, flush=True)
            return self._reply()["seconds"]
        finally:
            self.process.send_signal(signal.SIGSTOP)

    def _reply(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.engine} ended with code {self.process.wait()}:\n" + "".join(self.log.read_text()[-3000:]))
        return json.loads(line)

    def end(self) -> None:
        """It holds nothing worth saving."""
        self.process.kill()
        self.process.wait()
