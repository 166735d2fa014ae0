"""ONNX Runtime as a peer, the vision tower only: f32, and int8 by dynamic quantisation. Called by worker.py."""

from pathlib import Path

import numpy as np
import onnxruntime
import torch

from .torch_engine import Tower, patch_attention

OPSET = 23  # the first with the operator `Attention`


class OnnxruntimeEngine:
    """`onnxruntime-f32`, `onnxruntime-int8-dynamic`."""

    tasks = ("vision",)
    least_batch = 1

    def __init__(self, name: str, model: torch.nn.Module, work: Path, threads: int, batches: list[int]) -> None:
        self.facts: dict = {}
        path = work / f"onnxruntime-{onnxruntime.__version__}-f32.onnx"
        if not path.exists():
            _export(model, path)
        if name.endswith("int8-dynamic"):
            path, exported = path.with_stem(path.stem.replace("f32", "int8-dynamic")), path
            if not path.exists():
                _quantise(exported, path)
        self.sessions = {batch: _session(path, threads, batch) for batch in batches}

    def inputs(self, pixels: torch.Tensor) -> np.ndarray:
        """The batch as it is; not timed."""
        return pixels.numpy()

    def vision(self, pixels: np.ndarray) -> torch.Tensor:
        """Pixels to the last hidden state."""
        return torch.from_numpy(self.sessions[len(pixels)].run(None, {"pixels": pixels})[0])


def _export(model: torch.nn.Module, path: Path) -> None:
    """Writes the tower in f32 for every batch size; `scaled_dot_product_attention` becomes the operator `Attention`."""
    patch_attention(model)
    tower, example = Tower(model.vision_model).eval(), (torch.zeros(2, 3, 384, 384),)
    shapes = {"pixels": {0: torch.export.Dim("batch")}}
    torch.onnx.export(
        tower, example, path, dynamo=True, opset_version=OPSET, dynamic_shapes=shapes, input_names=["pixels"], output_names=["states"], external_data=False
    )


def _quantise(source: Path, target: Path) -> None:
    """Weights in 8 bits with a scale for each output channel; the scales of activations are computed in each run.

    Only products with weights: for `Attention`, ONNX Runtime 1.32 writes a model that it refuses to load.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(source, target, op_types_to_quantize=["MatMul"], per_channel=True, weight_type=QuantType.QInt8)


def _session(path: Path, threads: int, batch: int) -> onnxruntime.InferenceSession:
    """The model for one batch size, so that shapes are known when the graph is optimised."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_free_dimension_override_by_name("batch", batch)
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
