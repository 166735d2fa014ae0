"""PyTorch compiled with max-autotune and CUDA graphs, and `blip-server bench`, in turns. A part of its own, because compilation takes minutes."""

from .part import Part, run
from .peers import compare


def body(part: Part) -> None:
    """The compiled engine only."""
    compare(part, ["torch-bf16-sdpa-compiled"])


if __name__ == "__main__":
    run("peers-compiled", body)
