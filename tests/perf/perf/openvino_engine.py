"""OpenVINO as a peer, the vision tower only: f32, bf16, and int8 after NNCF's post-training quantisation. Called by worker.py."""

import statistics
import time
from pathlib import Path

import numpy as np
import openvino as ov
import torch

from .pictures import crops, pixel_values
from .torch_engine import patch_attention

TIMED = 8  # pictures that worker.py takes from the same row of crops
CALIBRATION = 24  # crops beside the three photographs; other crops than the timed ones


class _Tower(torch.nn.Module):
    """What is converted: pixels to the last hidden state."""

    def __init__(self, tower: torch.nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.tower(pixels).last_hidden_state


class OpenvinoEngine:
    """`openvino-f32`, `openvino-bf16`, `openvino-int8`."""

    tasks = ("vision",)

    def __init__(self, name: str, model: torch.nn.Module, photos: Path, work: Path, threads: int, batches: list[int]) -> None:
        self.core, self.threads, self.facts = ov.Core(), threads, {}
        self.path = work / f"openvino-{ov.__version__.split('-')[0]}-{'int8' if name.endswith('int8') else 'float'}.xml"
        if not self.path.exists():
            patch_attention(model)  # becomes OpenVINO's own fused attention
            converted = ov.convert_model(_Tower(model.vision_model), example_input=torch.zeros(1, 3, 384, 384))
            if name.endswith("int8"):
                converted = _quantised(converted, photos)
            ov.save_model(converted, self.path, compress_to_fp16=False)
        hints = {"openvino-f32": ["f32"], "openvino-bf16": ["bf16"], "openvino-int8": ["f32", "bf16"]}[name]
        self.compiled = {batch: self._best(batch, hints) for batch in batches}

    def _best(self, batch: int, hints: list[str]) -> ov.CompiledModel:
        """Of several hints for what stays in floats the one that is faster here."""
        tries = {hint: self._compile(batch, hint) for hint in hints}
        if len(tries) > 1:
            seconds = {hint: _seconds(compiled, batch) for hint, compiled in tries.items()}
            best = min(seconds, key=seconds.get)
            self.facts[f"precision hint x{batch}"] = best
            self.facts[f"ms an image by hint x{batch}"] = {hint: round(1000 * s / batch, 1) for hint, s in seconds.items()}
            return tries[best]
        return tries[hints[0]]

    def _compile(self, batch: int, hint: str) -> ov.CompiledModel:
        read = self.core.read_model(self.path)
        read.reshape([batch, 3, 384, 384])
        settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": self.threads, "PERFORMANCE_HINT": "LATENCY"}
        return self.core.compile_model(read, "CPU", settings)

    def inputs(self, pixels: torch.Tensor) -> np.ndarray:
        """The batch as it is; not timed."""
        return pixels.numpy()

    def vision(self, pixels: np.ndarray) -> torch.Tensor:
        """Pixels to the last hidden state."""
        return torch.from_numpy(self.compiled[len(pixels)](pixels, share_inputs=True, share_outputs=True)[0])


def _quantised(model: ov.Model, photos: Path) -> ov.Model:
    import nncf  # takes seconds, and only this engine needs it

    pictures = crops(photos, TIMED + CALIBRATION)
    chosen = pictures[:3] + pictures[TIMED:]
    dataset = nncf.Dataset([pixel_values([picture]).numpy() for picture in chosen])
    return nncf.quantize(model, dataset, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(chosen))


def _seconds(compiled: ov.CompiledModel, batch: int) -> float:
    """Median of a few runs after one for warming up."""
    pixels, taken = np.zeros((batch, 3, 384, 384), np.float32), []
    for _ in range(4):
        began = time.monotonic()
        compiled(pixels)
        taken.append(time.monotonic() - began)
    return statistics.median(taken[1:])
