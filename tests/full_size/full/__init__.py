"""The stages of compare.py: checkpoints, references, the server, the comparison, the report."""

import sys
from pathlib import Path

# The recipes, the watched `generate` and the inputs are those of the small fixtures.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "fixtures"))
