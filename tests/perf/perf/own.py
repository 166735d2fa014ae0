"""Our own binary, measured by its `bench` command: a fresh process for each number format and each round."""

import json
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

# Engine -> what it adds to the command.
ENGINES = {
    "blip-server-bf16": ["--dtype", "bf16"],
    "blip-server-f32": ["--dtype", "f32"],
    "blip-server-int8": ["--dtype", "int8"],
    "blip-server-f32-avx512": ["--dtype", "f32", "--cpu-isa", "avx512"],
    "blip-server-f32-avx2": ["--dtype", "f32", "--cpu-isa", "avx2"],
    "blip-server-f16": ["--dtype", "f16"],
}


@dataclass
class Own:
    """The command for one engine; `documents` are its answers, one a round."""

    engine: str
    server: Path
    checkpoint: Path
    work: Path
    threads: int
    device: str = "cpu"  # or "cuda"
    documents: list[dict] = field(default_factory=list)

    def run(self, tasks: list[str], batches: list[int], runs: int) -> dict[tuple[str, int], list[float]]:
        """Seconds of each run of a whole batch, by task and batch size."""
        answer = self.work / f"{self.engine}.json"
        answer.unlink(missing_ok=True)
        command = [self.server, "bench", "--model", f"{self.checkpoint.name}={self.checkpoint}"]
        for task in tasks:
            command += ["--task", task]
        for batch in batches:
            command += ["--batch", str(batch)]
        command += [*ENGINES[self.engine], "--device", self.device, "--threads", str(self.threads), "--runs", str(runs), "--warm-up", "3", "--json", answer]
        ended = subprocess.run([str(c) for c in command], capture_output=True, text=True)
        if ended.returncode != 0:
            raise RuntimeError(f"{self.engine}: {' '.join(str(c) for c in command)} ended with code {ended.returncode}:\n{ended.stdout[-1500:]}{ended.stderr[-1500:]}")
        document = json.loads(answer.read_text())
        self.documents.append(document)
        found = {(r["task"], r["batch"]): r["seconds"] for r in document["results"]}
        return {(task, batch): found[task, batch] for task in tasks for batch in batches}

    @property
    def level(self) -> str:
        """The kernels that it chose."""
        return ", ".join(sorted({r["level"] for r in self.documents[-1]["results"]})) if self.documents else ""
