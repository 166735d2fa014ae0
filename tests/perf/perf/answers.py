"""The same questions to a server and to PyTorch, the answers in one form, and how far apart two of them are. Called by precision.py."""

from dataclasses import dataclass, field

import numpy as np
import torch
from full import weights
from full.server import Server
from tokenizers import Tokenizer

TOKENS = 20
MATCH_TEXTS = ["a photo of a cat", "a red cup of coffee on a wooden table", "a rocket at night", "dog", "is it a very small bird?", "a tower at night"]
QUESTIONS = ["what is in the picture?", "what color is it?"]


@dataclass
class Answers:
    """What one engine says about all pictures; a role leaves the rest empty."""

    embeddings: list[list[float]] = field(default_factory=list)
    match: list[list[float]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)


def of_server(role: str, server: Server, pictures: list[bytes], label: str) -> Answers:
    """One picture after another over HTTP."""
    said = Answers()
    for done, image in enumerate(pictures, 1):
        if role == "retrieval":
            said.embeddings.append(server.json("/embeddings", {"image": image})["embedding"])
            scores = server.json("/similarity", {"image": image, "texts": MATCH_TEXTS, "scores": ["match"]})["scores"][0]
            said.match.append([score["match"] for score in scores])
        elif role == "caption":
            said.texts.append(server.json("/caption", {"image": image, "max_new_tokens": TOKENS})["captions"][0]["text"])
        else:
            answers = server.json("/vqa", {"image": image, "questions": QUESTIONS, "max_new_tokens": TOKENS})["answers"]
            said.texts += [answer["answer"] for answer in answers]
        _progress(label, done, len(pictures))
    return said


def of_torch(role: str, model: torch.nn.Module, tokenizer: object, pixels: torch.Tensor, label: str) -> Answers:
    """The same of transformers, in the format that the model has."""
    said = Answers()
    for done, picture in enumerate(pixels.to(model.dtype).split(1), 1):
        if role == "retrieval":
            _matching(model, tokenizer, picture, said)
        else:
            said.texts += _texts(role, model, tokenizer, picture)
        _progress(label, done, len(pixels))
    return said


def _ids(tokenizer: object, text: str) -> dict[str, torch.Tensor]:
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _matching(model: torch.nn.Module, tokenizer: object, picture: torch.Tensor, said: Answers) -> None:
    states = model.vision_model(picture).last_hidden_state
    said.embeddings.append(model.vision_proj(states[0, 0]).double().tolist())
    seen = {"encoder_hidden_states": states, "encoder_attention_mask": torch.ones(states.shape[:-1], dtype=torch.long)}
    found = []
    for text in MATCH_TEXTS:
        pooled = model.text_encoder(**_ids(tokenizer, text), **seen).last_hidden_state[:, 0]
        found.append(model.itm_head(pooled)[0].double().softmax(-1)[1].item())
    said.match.append(found)


def _texts(role: str, model: torch.nn.Module, tokenizer: object, picture: torch.Tensor) -> list[str]:
    asked = [{}] if role == "caption" else [_ids(tokenizer, question) for question in QUESTIONS]
    found = []
    for inputs in asked:
        ids = model.generate(pixel_values=picture, **inputs, max_new_tokens=TOKENS, do_sample=False)[0].tolist()
        found.append(tokenizer.decode([i for i in ids if i != weights.IDS["bos"]], skip_special_tokens=True))
    return found


def cosine_distances(ours: list[list[float]], reference: list[list[float]]) -> np.ndarray:
    """1 - cosine of each pair of vectors, never below 0."""
    a, b = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
    return np.maximum(0.0, 1 - (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))


def spread(values: np.ndarray) -> dict[str, float]:
    """Least, mean and most."""
    return {"min": float(values.min()), "mean": float(values.mean()), "max": float(values.max())}


def compare(ours: Answers, reference: Answers, tokenizer: Tokenizer | None) -> dict:
    """How far two engines' answers are apart; only what both have."""
    found: dict = {}
    if reference.embeddings:
        found["embedding"] = spread(cosine_distances(ours.embeddings, reference.embeddings))
    if reference.match:
        found["match"] = spread(np.abs(np.asarray(ours.match) - np.asarray(reference.match)).ravel())
    if reference.texts:
        found["texts"] = len(reference.texts)
        found["equal"] = sum(a == b for a, b in zip(ours.texts, reference.texts, strict=True)) / len(reference.texts)
        if tokenizer:
            found["tokens_before_difference"] = _common(ours.texts, reference.texts, tokenizer)
    return found


def _common(ours: list[str], reference: list[str], tokenizer: Tokenizer) -> float:
    """Of the reference's tokens the share that stands before the first difference; the texts are tokenised again for that."""
    same = total = 0
    for a, b in zip(ours, reference):
        mine, theirs = (tokenizer.encode(text, add_special_tokens=False).tokens for text in (a, b))
        differing = (n for n, token in enumerate(theirs) if mine[n : n + 1] != [token])
        same, total = same + next(differing, len(theirs)), total + len(theirs)
    return same / max(1, total)


def _progress(label: str, done: int, total: int) -> None:
    if done % 12 == 0 or done == total:
        print(f"    {label}: {done}/{total}", flush=True)
