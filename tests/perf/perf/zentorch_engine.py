"""zentorch, AMD's ZenDNN plug-in for PyTorch, as a peer: the vision tower only. Called by worker.py, with the Python of `--zentorch-python`.

The model is unchanged: zentorch finds the attention in the compiled graph, fuses it, and fuses the products with bias, GELU and
residual. Neither `scaled_dot_product_attention` in the model nor `torch._inductor.config.freezing` changed its times (two cores of
an AMD EPYC of family 26, 2026-12-01).
"""

import torch
import zentorch  # registers the compiler back end

from .torch_engine import TorchEngine


class ZentorchEngine(TorchEngine):
    """`zentorch-bf16`."""

    tasks = ("vision",)

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__("torch-bf16-shipped", model)
        self.model.vision_model = torch.compile(self.model.vision_model, backend="zentorch", dynamic=False)  # one program for each batch size
        self.facts["packages"] = {"torch": torch.__version__, "zentorch": zentorch.__version__}
