#!/usr/bin/env python3
"""Writes the trained state as three checkpoints in the official layout, f16, what they share stored once.

    python export.py --work DIR [--out demo/models]

`shared/` holds the vision tower (of all three) and the text encoder (of question answering and retrieval); each
checkpoint's index names them as shards, and links lead there.
"""

import argparse
import json
import os
from pathlib import Path

import torch
from safetensors.torch import save_file

from make.batches import MEAN, STD
from make.network import IMAGE_SIZE, Models, write_tokenizer

SHARED = {"vision_model.": "vision.safetensors", "text_encoder.": "text-encoder.safetensors"}
# The output layer of a decoder is its word embeddings, and its bias is stored under another name.
TIED = ("cls.predictions.decoder.weight", "cls.predictions.decoder.bias")


def shard_of(name: str, role: str) -> str:
    return next((shard for prefix, shard in SHARED.items() if name.startswith(prefix)), f"{role}.safetensors")


def tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What a checkpoint stores, as f16."""
    kept = {}
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not name.endswith(TIED):
            kept[name] = tensor.detach().to(torch.float16).contiguous()
            assert kept[name].isfinite().all(), name
    return kept


def write_documents(model: torch.nn.Module, directory: Path) -> None:
    """config.json, preprocessor_config.json and the tokenizer."""
    document = json.loads(model.config.to_json_string())
    document["architectures"] = [type(model).__name__]
    document["dtype"] = "float16"
    (directory / "config.json").write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    preprocessor = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        # As the official files have them, not as f32 reads them.
        "image_mean": [float(str(value)) for value in MEAN],
        "image_std": [float(str(value)) for value in STD],
        "image_processor_type": "BlipImageProcessor",
        "processor_class": "BlipProcessor",
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
    }
    (directory / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2) + "\n", encoding="utf-8")
    write_tokenizer(directory)


def main() -> None:
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="the trainer's folder")
    parser.add_argument("--out", type=Path, default=here / "models")
    args = parser.parse_args()
    models = Models()
    state = torch.load(args.work / "state.pt", weights_only=True)
    models.load_state_dict(state["models"])
    shards: dict[Path, dict[str, torch.Tensor]] = {}
    for role, model in models.named_models().items():
        directory = args.out / role
        directory.mkdir(parents=True, exist_ok=True)
        stored = tensors(model)
        places = {name: shard_of(name, role) for name in sorted(stored)}
        for name, shard in places.items():
            folder = args.out / "shared" if shard in SHARED.values() else directory
            shards.setdefault(folder / shard, {})[name] = stored[name]
        for shard in sorted(set(places.values()) & set(SHARED.values())):
            link = directory / shard
            link.unlink(missing_ok=True)
            os.symlink(Path("..") / "shared" / shard, link)
        size = sum(tensor.numel() * tensor.element_size() for tensor in stored.values())
        index = {"metadata": {"total_size": size}, "weight_map": places}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        write_documents(model, directory)
    total = 0
    for path, content in shards.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(content, path, metadata={"format": "pt"})
        total += path.stat().st_size
        print(f"{path.stat().st_size:>10} {path}")
    print(f"{total:>10} after {state['step']} steps")


if __name__ == "__main__":
    main()
