"""Full-size checkpoints in the official layout with seeded random weights.

Shapes are the official files': class defaults, but 12 text heads; the vocabulary is bert-base-uncased with `[DEC]` and
`[ENC]` behind it. Called by compare.py, one checkpoint at a time.
"""

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from make import recipes
from make.checkpoints import CLIP_MEAN, CLIP_STD, write_bin
from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipForImageTextRetrieval, BlipForQuestionAnswering

CLASSES = {"caption": BlipForConditionalGeneration, "vqa": BlipForQuestionAnswering, "retrieval": BlipForImageTextRetrieval}
VISION = {
    "base": {},
    "large": dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096),
}
IDS = dict(pad=0, unk=100, cls=101, sep=102, bos=30522, enc=30523)
TALKATIVE = recipes.Talkative(0.2, 15, 11.0, 14.0)


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint; `recipe` is varied, talkative, or for retrieval (which says nothing) `second`: varied with another seed."""

    role: str
    recipe: str
    size: str

    @property
    def name(self) -> str:
        """The directory, and the model's name in the server."""
        return f"{self.size}-{self.role}-{self.recipe}"

    @property
    def as_bin(self) -> bool:
        """Two of the checkpoints are written as most official repositories have them."""
        return (self.role, self.recipe) in (("caption", "talkative"), ("retrieval", "second"))


def wanted(size: str, roles: list[str], chosen: list[str]) -> list[Checkpoint]:
    """The checkpoints of one run. Large: varied only, and no question answering (the class cannot be built with a wide tower)."""
    if size == "large":
        return [Checkpoint(role, "varied", size) for role in roles if role != "vqa"]
    found = []
    for role in roles:
        own = {"varied": "varied", "talkative": "second"} if role == "retrieval" else {r: r for r in chosen}
        found += [Checkpoint(role, own[recipe], size) for recipe in chosen]
    return found


def make(spec: Checkpoint, bert: Path, root: Path) -> float:
    """Writes `root/name` unless it is there whole; returns the seconds it took."""
    target, began = root / spec.name, time.monotonic()
    if (target / "complete").exists():
        return 0.0
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    text = dict(num_attention_heads=12)
    config = BlipConfig(text_config=text, vision_config=VISION[spec.size])
    assert config.text_config.vocab_size == 30524 and config.text_config.sep_token_id == IDS["sep"]
    model = CLASSES[spec.role](config).eval()
    recipes.varied(model, vision_seed=f"{spec.size}/{spec.recipe}", seed=spec.name)
    if spec.recipe == "talkative":
        vocabulary = (bert / "vocab.txt").read_text(encoding="utf-8").splitlines()
        words = [i for i, t in enumerate(vocabulary) if t.isascii() and t.isalpha() and len(t) > 2]
        recipes.talkative(model, TALKATIVE, seed=spec.name, words=words, stop_id=IDS["sep"])
    model.save_pretrained(target, max_shard_size="10GB")
    (target / "generation_config.json").unlink(missing_ok=True)  # no official repository has one
    if spec.as_bin:
        (target / "model.safetensors").unlink()
        write_bin(model, target / "pytorch_model.bin")
    _write_text_files(bert, target)
    _write_preprocessor(spec, target)
    (target / "complete").touch()
    return time.monotonic() - began


def read(spec: Checkpoint, root: Path) -> tuple[torch.nn.Module, BertTokenizer]:
    """The model as the reference reads it from the files, and the tokenizer."""
    directory = root / spec.name
    model, report = CLASSES[spec.role].from_pretrained(directory, local_files_only=True, output_loading_info=True)
    unexpected = [k for k in report["unexpected_keys"] if not k.endswith("position_ids")]
    assert not report["missing_keys"] and not unexpected and not report["mismatched_keys"], report
    return model.eval(), BertTokenizer.from_pretrained(directory, local_files_only=True)


def _write_text_files(bert: Path, target: Path) -> None:
    for name in ("vocab.txt", "tokenizer.json"):
        shutil.copyfile(bert / name, target / name)
    document = {
        "cls_token": "[CLS]", "do_lower_case": True, "mask_token": "[MASK]", "model_max_length": 512, "pad_token": "[PAD]",
        "sep_token": "[SEP]", "strip_accents": None, "tokenize_chinese_chars": True, "tokenizer_class": "BertTokenizer", "unk_token": "[UNK]",
    }  # fmt: skip
    (target / "tokenizer_config.json").write_text(json.dumps(document, indent=2) + "\n")


def _write_preprocessor(spec: Checkpoint, target: Path) -> None:
    document = {
        "do_normalize": True, "do_resize": True, "image_mean": CLIP_MEAN, "image_processor_type": "BlipImageProcessor", "image_std": CLIP_STD,
        "processor_class": "BlipProcessor", "resample": 3, "size": {"height": 384, "width": 384},
    }  # fmt: skip
    if spec.role != "caption":  # captioning-base has no rescale keys
        document |= {"do_convert_rgb": True, "do_pad": True, "do_rescale": True, "rescale_factor": 0.00392156862745098}
    (target / "preprocessor_config.json").write_text(json.dumps(document, indent=2) + "\n")


def remove(spec: Checkpoint, root: Path) -> None:
    """Frees the disk."""
    shutil.rmtree(root / spec.name, ignore_errors=True)
