"""What peers.py, precision.py, servers.py, the two Python servers and the charts are made of."""

import sys
from pathlib import Path

# The checkpoints, the server as a process and the recipes are those of the full-size comparison; it adds the fixtures' folder itself.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "full_size"))
