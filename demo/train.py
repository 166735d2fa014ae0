#!/usr/bin/env python3
"""Trains the demo models: two processes of one thread each, fresh scenes for ever, one seed.

    LD_PRELOAD=libjemalloc.so.2 python train.py --work DIR [--steps N]

Writes DIR/state.pt every five minutes and goes on from it when started again; DIR/log.jsonl has a line of figures, all
of them on scenes never seen before, every hundred steps. `export.py` then writes the checkpoints.
"""

import argparse
import json
import math
import os
import random
import time
from collections import Counter
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from make import forward
from make.batches import TEXTS, Batch, Sprites, Writer, make_batch
from make.network import Models

PROCESSES = 2
BATCH = 32
PEAK_RATE = 1e-3
WARM_UP = 800
SAVE_EVERY = 300.0
LOG_EVERY = 100


def losses(models: Models, batch: Batch, counts: Counter) -> torch.Tensor:
    """The sum of all losses of a batch; adds to `counts` what was right."""
    image = forward.vision(models, batch.pixels)
    total = captions(models, batch, image, counts) + answers(models, batch, image, counts)
    total = total + matches(models, batch, image, counts) + contrast(models, batch, image, counts)
    return total + auxiliary(models, batch, image)


def _spoken(decoder, hidden: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, list[bool]]:
    """The loss of the labelled tokens, and which rows are right in all of them."""
    kept = labels != -100
    logits = decoder.cls(hidden[kept]).float()
    wrong = torch.zeros_like(kept)
    wrong[kept] = logits.argmax(-1) != labels[kept]
    return F.cross_entropy(logits, labels[kept]), (~wrong.any(-1)).tolist()


def captions(models: Models, batch: Batch, image: torch.Tensor, counts: Counter) -> torch.Tensor:
    decoder = models.caption.text_decoder
    hidden = forward.text(decoder.bert, batch.caption, causal=True, states=image)
    loss, right = _spoken(decoder, hidden, batch.caption_labels)
    for one in right:
        counts["caption", one] += 1
    return loss


def answers(models: Models, batch: Batch, image: torch.Tensor, counts: Counter) -> torch.Tensor:
    question = forward.text(models.vqa.text_encoder, batch.question, causal=False, states=image)
    decoder = models.vqa.text_decoder
    mask = forward.padding(batch.question, torch.bfloat16)
    hidden = forward.text(decoder.bert, batch.answer, causal=True, states=question, states_mask=mask)
    loss, right = _spoken(decoder, hidden, batch.answer_labels)
    for name, one in zip(batch.question_types, right):
        counts["vqa " + name, one] += 1
    return loss


def matches(models: Models, batch: Batch, image: torch.Tensor, counts: Counter) -> torch.Tensor:
    hidden = forward.text(models.retrieval.text_encoder, batch.match, causal=False, states=image)
    logits = models.retrieval.itm_head(hidden[:, 0]).float()
    right = (logits.argmax(-1) == batch.match_labels).tolist()
    for name, one in zip(batch.match_types, right):
        counts["match " + name, one] += 1
    # One true text against two false ones.
    return F.cross_entropy(logits, batch.match_labels, weight=torch.tensor([1.0, TEXTS - 1.0]))


def contrast(models: Models, batch: Batch, image: torch.Tensor, counts: Counter) -> torch.Tensor:
    hidden = forward.text(models.retrieval.text_encoder, batch.contrast, causal=False)
    texts = F.normalize(models.retrieval.text_proj(hidden[:, 0]).float(), dim=-1)
    images = F.normalize(models.retrieval.vision_proj(image[:, 0]).float(), dim=-1)
    scores = images @ texts.T * models.log_temperature.exp().clamp(max=100)
    others = batch.same & ~torch.eye(len(scores), dtype=torch.bool)
    scores = scores.masked_fill(others, -1e4)
    target = torch.arange(len(scores))
    for one in (scores.argmax(-1) == target).tolist():
        counts["recall", one] += 1
    return 0.25 * (F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target))


def auxiliary(models: Models, batch: Batch, image: torch.Tensor) -> torch.Tensor:
    loss = 0.3 * F.cross_entropy(models.patch_kind(image[:, 1:]).float().transpose(1, 2), batch.patches)
    for name, labels in batch.summary.items():
        loss = loss + 0.1 * F.cross_entropy(models.summary[name](image[:, 0]).float(), labels)
    return loss


def rate(step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine to zero."""
    if step < WARM_UP:
        return PEAK_RATE * (step + 1) / WARM_UP
    return PEAK_RATE * 0.5 * (1 + math.cos(math.pi * (step - WARM_UP) / max(1, steps - WARM_UP)))


def optimiser(models: Models) -> torch.optim.AdamW:
    matrices = [p for p in models.parameters() if p.ndim >= 2]
    others = [p for p in models.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.98), fused=True)


def average_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """Of all processes, clipped at norm 1."""
    for p in parameters:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    flat = torch.cat([p.grad.view(-1) for p in parameters])
    dist.all_reduce(flat)
    flat /= PROCESSES
    flat *= torch.clamp(1.0 / (flat.norm() + 1e-6), max=1.0)
    for p, grad in zip(parameters, flat.split([p.numel() for p in parameters])):
        p.grad = grad.view_as(p)


def save(path: Path, step: int, models: Models, adam: torch.optim.AdamW) -> None:
    partial = path.with_suffix(".partial")
    torch.save({"step": step, "models": models.state_dict(), "adam": adam.state_dict()}, partial)
    os.replace(partial, path)


def shares(counts: Counter) -> dict[str, float]:
    """Of each name, how many were right, in percent."""
    names = sorted({name for name, _ in counts})
    return {name: round(100 * counts[name, True] / (counts[name, True] + counts[name, False]), 1) for name in names}


def worker(rank: int, args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{args.work}/meet-{os.getppid()}", rank=rank, world_size=PROCESSES)
    torch.manual_seed(args.seed)
    models = Models()
    forward.check(models)
    adam = optimiser(models)
    parameters = list(models.parameters())
    state, first = args.work / "state.pt", 0
    if state.exists():
        saved = torch.load(state, weights_only=True)
        models.load_state_dict(saved["models"])
        adam.load_state_dict(saved["adam"])
        first = saved["step"]
    writer, sprites, counts, figures = Writer(), Sprites(), Counter(), []
    began, saved_at = time.monotonic(), time.monotonic()
    for step in range(first, args.steps):
        batch = make_batch(BATCH, random.Random(f"train {args.seed} {rank} {step}"), writer, sprites)
        for group in adam.param_groups:
            group["lr"] = rate(step, args.steps)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = losses(models, batch, counts)
        for p in parameters:
            p.grad = None
        loss.backward()
        average_gradients(parameters)
        adam.step()
        figures.append(loss.item())
        if rank == 0 and (step + 1) % LOG_EVERY == 0:
            speed = PROCESSES * BATCH * (step + 1 - first) / (time.monotonic() - began)
            line = {"step": step + 1, "loss": round(sum(figures) / len(figures), 4), "images_per_s": round(speed, 1)}
            line |= {"left_min": round((args.steps - step - 1) * PROCESSES * BATCH / speed / 60, 1), **shares(counts)}
            print(json.dumps(line), flush=True)
            with (args.work / "log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
            counts.clear()
            figures.clear()
        if rank == 0 and (time.monotonic() - saved_at > SAVE_EVERY or step + 1 == args.steps):
            save(state, step + 1, models, adam)
            saved_at = time.monotonic()
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for state and log")
    parser.add_argument("--steps", type=int, default=12500, help="of 64 images each")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    args.work = args.work.resolve()
    args.work.mkdir(parents=True, exist_ok=True)
    mp.spawn(worker, (args,), nprocs=PROCESSES)


if __name__ == "__main__":
    main()
