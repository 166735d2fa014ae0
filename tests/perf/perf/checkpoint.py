"""The checkpoint that all engines and servers run. Called by peers.py and servers.py."""

import subprocess
import sys
from pathlib import Path

NAME = "base-caption-varied"
MAKE = """
import sys
from pathlib import Path
import perf
from full import weights
from perf.torch_engine import SPEC
weights.make(SPEC, Path(sys.argv[1]), Path(sys.argv[2]))
"""


def make(bert: Path, work: Path) -> Path:
    """The directory of the base-size captioner with random weights whose captions never end early; written to `work` unless it is there.

    Runs in a process of its own, so that the caller does not import torch.
    """
    subprocess.run([sys.executable, "-c", MAKE, bert.resolve(), work.resolve()], cwd=Path(__file__).resolve().parents[1], check=True)
    return work / NAME
