"""The server as a process in a chosen number format. Called by precision.py."""

from full.server import Server


class TypedServer(Server):
    """As the full-size comparison's, but sure to compute in the format asked for."""

    def start(self) -> None:
        """Returns when the log says that it listens, and it says that the format is the one asked for."""
        super().start()
        found = {model["dtype"] for model in self.get("/info")["models"]}
        if found != {self.dtype}:
            self.stop()
            raise RuntimeError(f"asked for {self.dtype}, the server computes in {sorted(found)}")
