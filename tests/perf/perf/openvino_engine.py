"""OpenVINO as a peer, the vision tower only: f32, bf16, and int8 after NNCF's post-training quantisation. Called by worker.py."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openvino as ov
import torch

from .pictures import crops, pixel_values
from .torch_engine import Tower, patch_attention

TIMED = 8  # pictures that worker.py takes from the same row of crops
CALIBRATION = 24  # crops beside the three photographs; other crops than the timed ones
HINTS = {"f32": ["f32"], "bf16": ["bf16"], "int8": ["f32", "bf16"]}
# Pixels `[batch, 3, 384, 384]` to hidden states `[batch, 577, 768]`, both f32.
Program = Callable[[np.ndarray], np.ndarray]


class OpenvinoEngine:
    """`openvino-f32`, `openvino-bf16`, `openvino-int8`, `openvino-bf16-throughput`, `openvino-int8-throughput`."""

    tasks = ("vision",)

    def __init__(self, name: str, model: torch.nn.Module, photos: Path, work: Path, threads: int, batches: list[int]) -> None:
        _, precision, *features = name.split("-")
        self.core, self.threads, self.facts = ov.Core(), threads, {}
        self.throughput = "throughput" in features
        self.least_batch = 2 if self.throughput else 1  # one image cannot keep two requests busy
        self.path = work / f"openvino-{ov.__version__.split('-')[0]}-{'int8' if precision == 'int8' else 'float'}.xml"
        if not self.path.exists():
            patch_attention(model)  # becomes OpenVINO's own fused attention
            converted = ov.convert_model(Tower(model.vision_model), example_input=torch.zeros(1, 3, 384, 384))
            if precision == "int8":
                converted = _quantised(converted, photos)
            ov.save_model(converted, self.path, compress_to_fp16=False)
        self.programs = {batch: self._fastest(batch, HINTS[precision]) for batch in batches if batch >= self.least_batch}

    def _fastest(self, batch: int, hints: list[str]) -> Program:
        """The fastest setting for this batch on this machine: precision hint, and in throughput mode images per request."""
        tries: dict[str, Program] = {}
        for hint in hints:
            if self.throughput:
                tries |= self._asynchronous(batch, hint)
            else:
                tries[hint] = _Whole(self._compile(batch, hint, "LATENCY"))
        if len(tries) == 1:
            return next(iter(tries.values()))
        seconds = {setting: _seconds(program, batch) for setting, program in tries.items()}
        best = min(seconds, key=seconds.get)
        self.facts[f"fastest setting x{batch}"] = best
        self.facts[f"ms an image by setting x{batch}"] = {setting: round(1000 * s / batch, 1) for setting, s in seconds.items()}
        return tries[best]

    def _asynchronous(self, batch: int, hint: str) -> dict[str, Program]:
        """One image per request, and one request per stream if that divides the batch."""
        single = _Asynchronous(self._compile(1, hint, "THROUGHPUT"), 1)
        found, streams = {f"{hint}, 1 image per request": single}, single.streams
        self.facts["streams"] = streams
        if batch % streams == 0 and batch > streams:
            images = batch // streams
            found[f"{hint}, {images} images per request"] = _Asynchronous(self._compile(images, hint, "THROUGHPUT"), images)
        return found

    def _compile(self, batch: int, hint: str, mode: str) -> ov.CompiledModel:
        read = self.core.read_model(self.path)
        read.reshape([batch, 3, 384, 384])
        settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": self.threads, "PERFORMANCE_HINT": mode}
        return self.core.compile_model(read, "CPU", settings)

    def inputs(self, pixels: torch.Tensor) -> np.ndarray:
        """The batch as it is; not timed."""
        return pixels.numpy()

    def vision(self, pixels: np.ndarray) -> torch.Tensor:
        """Pixels to the last hidden state."""
        return torch.from_numpy(self.programs[len(pixels)](pixels))


class _Whole:
    """The batch as one synchronous request."""

    def __init__(self, compiled: ov.CompiledModel) -> None:
        self.compiled = compiled

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        return self.compiled(pixels, share_inputs=True, share_outputs=True)[0]


class _Asynchronous:
    """The batch as asynchronous requests of `images` images each; returns when all are finished."""

    def __init__(self, compiled: ov.CompiledModel, images: int) -> None:
        self.images = images
        self.streams = compiled.get_property("NUM_STREAMS")
        self.queue = ov.AsyncInferQueue(compiled)  # as many requests as OpenVINO considers optimal
        self.queue.set_callback(self._store)

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        self.states = np.empty((len(pixels), 577, 768), np.float32)
        for first in range(0, len(pixels), self.images):
            self.queue.start_async({0: pixels[first : first + self.images]}, first, share_inputs=True)
        self.queue.wait_all()
        return self.states

    def _store(self, request: ov.InferRequest, first: int) -> None:
        """Copies the states of a finished request, whose first image has the index `first`."""
        self.states[first : first + self.images] = request.get_output_tensor().data


def _quantised(model: ov.Model, photos: Path) -> ov.Model:
    import nncf  # takes seconds, and only this engine needs it

    pictures = crops(photos, TIMED + CALIBRATION)
    chosen = pictures[:3] + pictures[TIMED:]
    dataset = nncf.Dataset([pixel_values([picture]).numpy() for picture in chosen])
    return nncf.quantize(model, dataset, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(chosen))


def _seconds(program: Program, batch: int) -> float:
    """Median of a few runs after one for warming up."""
    pixels, taken = np.zeros((batch, 3, 384, 384), np.float32), []
    for _ in range(4):
        began = time.monotonic()
        program(pixels)
        taken.append(time.monotonic() - began)
    return statistics.median(taken[1:])
