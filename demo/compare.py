#!/usr/bin/env python3
"""Holds a running server's answers about fresh scenes against transformers on the same checkpoints, in f32.

    blip-server --listen 127.0.0.1:8080 --dtype f32 &
    python compare.py --url http://127.0.0.1:8080 [--scenes 100] [--models demo/models] [--out figures/compare.json]

Exit code 1 unless every text is equal and every probability within 1e-3.
"""

import argparse
import json
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import PIL
import torch
import transformers
from evaluate import scene_of
from make import language
from make.client import Server, png
from make.language import Content
from transformers import (
    BertTokenizerFast,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
    BlipImageProcessorPil,
)

TOLERANCE = 1e-3


class Reference:
    """The three checkpoints in transformers."""

    def __init__(self, models: Path) -> None:
        load = lambda kind, role: kind.from_pretrained(models / role, dtype=torch.float32).eval()
        self.caption = load(BlipForConditionalGeneration, "caption")
        self.vqa = load(BlipForQuestionAnswering, "vqa")
        self.retrieval = load(BlipForImageTextRetrieval, "retrieval")
        self.processor = BlipImageProcessorPil.from_pretrained(models / "caption")
        self.tokenizer = BertTokenizerFast.from_pretrained(models / "caption")

    def pixels(self, picture) -> torch.Tensor:
        return self.processor(picture, return_tensors="pt")["pixel_values"]

    def say(self, ids: torch.Tensor) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True).removeprefix("[DEC]").strip()

    def caption_of(self, pixels: torch.Tensor) -> str:
        return self.say(self.caption.generate(pixels, max_new_tokens=20, num_beams=1, do_sample=False)[0])

    def answer(self, pixels: torch.Tensor, question: str) -> str:
        ids = self.tokenizer(question, return_tensors="pt")["input_ids"]
        return self.say(self.vqa.generate(ids, pixels, max_new_tokens=10, num_beams=1, do_sample=False)[0])

    def scores(self, pixels: torch.Tensor, text: str) -> tuple[float, float]:
        """Probability of a match, and cosine."""
        ids = self.tokenizer(text, return_tensors="pt")
        ids = {"input_ids": ids["input_ids"], "attention_mask": ids["attention_mask"]}
        match = self.retrieval(pixel_values=pixels, **ids, use_itm_head=True)[0].softmax(-1)[0, 1].item()
        return match, self.retrieval(pixel_values=pixels, **ids, use_itm_head=False)[0].item()


def compare(server: Server, reference: Reference, scenes: int) -> dict:
    figures = {"captions": 0, "answers": 0, "matches": 0, "different": [], "largest_match": 0.0, "largest_cosine": 0.0}
    for index in range(scenes):
        scene, picture, rng = scene_of(index)
        content, pixels, image = Content.of(scene), reference.pixels(picture), png(picture)
        ours, theirs = server.ask("/caption", {"image": image})["captions"][0]["text"], reference.caption_of(pixels)
        figures["captions"] += 1
        if ours != theirs:
            figures["different"].append(["caption", index, ours, theirs])
        questions = [question for _, question, _ in language.questions(content, rng)]
        for got in server.ask("/vqa", {"image": image, "questions": questions})["answers"]:
            theirs = reference.answer(pixels, got["question"])
            figures["answers"] += 1
            if got["answer"] != theirs:
                figures["different"].append(["answer", index, got["question"], got["answer"], theirs])
        texts = [text for _, text, _ in language.matching(content, rng)]
        for text, score in zip(texts, server.ask("/similarity", {"image": image, "texts": texts})["scores"][0]):
            match, cosine = reference.scores(pixels, text)
            figures["matches"] += 1
            figures["largest_match"] = max(figures["largest_match"], abs(match - score["match"]))
            figures["largest_cosine"] = max(figures["largest_cosine"], abs(cosine - score["cosine"]))
        print(f"\r{index + 1}/{scenes}, {len(figures['different'])} different", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--models", type=Path, default=Path(__file__).resolve().parent / "models")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    transformers.logging.set_verbosity_error()
    figures = compare(Server(args.url), Reference(args.models), args.scenes)
    figures["versions"] = {"torch": torch.__version__, "transformers": transformers.__version__, "pillow": PIL.__version__}
    print(json.dumps(figures, indent=1))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    equal = not figures["different"] and max(figures["largest_match"], figures["largest_cosine"]) <= TOLERANCE
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
