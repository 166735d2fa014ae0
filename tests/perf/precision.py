#!/usr/bin/env python3
"""What each number format costs in precision, asked of running servers over HTTP, beside PyTorch's own bf16; README.md says more.

Usage: precision.py --work DIR --bert DIR --photos DIR --server BINARY [--dtypes bf16,int8] [--images 36] [--scenes 200] [--json FILE]
"""

import argparse
import gc
import json
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from perf import answers, demo, machine, pictures, results
from perf.serving import TypedServer
from full import weights
from tokenizers import Tokenizer

PARTS = {
    "retrieval": weights.Checkpoint("retrieval", "varied", "base"), "caption": weights.Checkpoint("caption", "varied", "base"),
    "caption-talkative": weights.Checkpoint("caption", "talkative", "base"), "vqa": weights.Checkpoint("vqa", "varied", "base"),
    "vqa-talkative": weights.Checkpoint("vqa", "talkative", "base"),
}  # fmt: skip
ALL = [*PARTS, "demo"]
AT_MOST = 2.0  # times PyTorch's own bf16


def parse() -> argparse.Namespace:
    """The command line."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--work", type=Path, required=True, help="where the checkpoints are made, and kept")
    arguments.add_argument("--bert", type=Path, required=True, help="directory of bert-base-uncased's vocab.txt and tokenizer.json")
    arguments.add_argument("--photos", type=Path, required=True, help="directory of chelsea.png, coffee.png and rocket.jpg")
    arguments.add_argument("--server", type=Path, required=True, help="the blip-server binary")
    arguments.add_argument("--dtypes", type=lambda v: v.split(","), default=["bf16", "int8"], help="held against f32")
    arguments.add_argument("--parts", type=lambda v: v.split(","), default=ALL, help=f"of {','.join(ALL)}")
    arguments.add_argument("--images", type=int, default=36, help="photographs and crops of them")
    arguments.add_argument("--scenes", type=int, default=200, help="generated scenes for the demo models, beside those of demo/scenes")
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--json", type=Path)
    args = arguments.parse_args()
    if unknown := set(args.parts) - set(ALL):
        arguments.error(f"--parts: {sorted(unknown)} is not among {ALL}")
    args.server = args.server.resolve()
    return args


def command(args: argparse.Namespace) -> str:
    """The command without the paths of this machine."""
    return (
        "precision.py --work DIR --bert DIR --photos DIR --server blip-server "
        f"--dtypes {','.join(args.dtypes)} --parts {','.join(args.parts)} --images {args.images} --scenes {args.scenes} --threads {args.threads}"
    )


def torch_answers(spec: weights.Checkpoint, pixels: torch.Tensor, work: Path) -> dict[str, answers.Answers]:
    """transformers in f32 and in bf16."""
    model, tokenizer = weights.read(spec, work)
    found = {"f32": answers.of_torch(spec.role, model, tokenizer, pixels, "PyTorch f32")}
    found["bf16"] = answers.of_torch(spec.role, model.to(torch.bfloat16), tokenizer, pixels, "PyTorch bf16")
    return found


def random_weights(spec: weights.Checkpoint, args: argparse.Namespace, crops: list) -> dict:
    """One checkpoint: PyTorch in two formats, then a server in each format."""
    weights.make(spec, args.bert, args.work)
    theirs = torch_answers(spec, pictures.pixel_values(crops), args.work)
    gc.collect()  # the model and the server's must not stand in memory together
    files, ours = [pictures.encoded(p) for p in crops], {}
    rolled = None
    for dtype in dict.fromkeys(["f32", *args.dtypes]):
        server = TypedServer(args.server, spec.name, args.work / spec.name, args.threads, dtype=dtype, model=f"{spec.name}={args.work / spec.name}")
        server.start()
        try:
            ours[dtype] = answers.of_server(spec.role, server, files, f"blip-server {dtype}")
            if dtype == "f32" and spec.role == "retrieval":
                rolled = by_one_patch(server, crops)
        finally:
            server.stop()
    tokenizer = Tokenizer.from_file(str(args.work / spec.name / "tokenizer.json"))
    rows = {f"blip-server {dtype}": answers.compare(said, ours["f32"], tokenizer) for dtype, said in ours.items() if dtype != "f32"}
    rows["PyTorch bf16"] = answers.compare(theirs["bf16"], theirs["f32"], tokenizer)
    rows["blip-server f32 against PyTorch f32"] = answers.compare(ours["f32"], theirs["f32"], tokenizer)
    return {"images": len(crops), "rows": rows, "moved_by_one_patch": rolled}


def by_one_patch(server: TypedServer, crops: list) -> dict:
    """1 - cosine between each picture and itself moved by one patch: how large a difference that can be seen is."""
    vectors = []
    for moved in (False, True):
        squares = [pictures.square(p) for p in crops]
        files = [pictures.encoded(pictures.rolled(s) if moved else s) for s in squares]
        vectors.append([server.json("/embeddings", {"image": file})["embedding"] for file in files])
    return answers.spread(answers.cosine_distances(vectors[1], vectors[0]))


def demo_models(args: argparse.Namespace) -> dict:
    """The demo models inside the binary, in each format."""
    asked, said = demo.samples() + demo.generated(args.scenes), {}
    for dtype in dict.fromkeys(["f32", *args.dtypes]):
        server = TypedServer(args.server, "demo", args.work, args.threads, dtype=dtype, model="demo")
        server.start()
        try:
            said[dtype] = demo.ask(server.address, asked, f"blip-server {dtype}")
        finally:
            server.stop()
    return {"rows": {f"blip-server {dtype}": demo.compare(asked, answer, said["f32"]) for dtype, answer in said.items()}}


def tables(found: dict) -> str:
    """Markdown of everything."""
    parts = []
    if "retrieval" in found:
        part = found["retrieval"]
        parts += [f"Image embeddings of {part['images']} pictures, 1 - cosine to f32; match probabilities of {len(answers.MATCH_TEXTS)} texts with each, difference to f32\n", _retrieval(part)]
    if texts := {name: part for name, part in found.items() if name in PARTS and name != "retrieval"}:
        parts += ["Texts of random weights, which magnify every difference: equal to f32's, and tokens before the first difference\n", _texts(texts)]
    if "demo" in found:
        first = next(iter(found["demo"]["rows"].values()))
        parts += [f"The demo models about {first['scenes']} scenes: {first['answers']} answers, {first['matches']} match decisions; equal to f32's, and right\n", _demo(found["demo"])]
    return "\n".join(parts)


def _retrieval(part: dict) -> str:
    torch_mean = part["rows"]["PyTorch bf16"]["embedding"]["mean"]
    rows = []
    for name, row in part["rows"].items():
        e, m = row["embedding"], row["match"]
        ratio = f"{e['mean'] / torch_mean:.2f}" if name.startswith("blip-server") and "against" not in name else ""
        if name == "blip-server bf16":
            ratio += f" (at most {AT_MOST:.0f} wanted: {'yes' if e['mean'] <= AT_MOST * torch_mean else 'no'})"
        rows.append([name, *(f"{e[key]:.1e}" for key in ("min", "mean", "max")), ratio, f"{m['mean']:.1e}", f"{m['max']:.1e}"])
    moved = part["moved_by_one_patch"]
    rows.append(["for scale: the picture moved by one patch", *(f"{moved[key]:.1e}" for key in ("min", "mean", "max")), "", "", ""])
    return results.table(["", "1 - cosine: least", "mean", "most", "mean by PyTorch bf16's", "match: mean difference", "most"], rows)


def _texts(parts: dict) -> str:
    rows = []
    for part_name, part in parts.items():
        for name, row in part["rows"].items():
            rows.append([part_name, name, str(row["texts"]), f"{100 * row['equal']:.1f} %", f"{100 * row['tokens_before_difference']:.1f} %"])
    return results.table(["checkpoint", "", "texts", "equal", "tokens before the first difference"], rows)


def _demo(part: dict) -> str:
    rows = []
    for name, row in part["rows"].items():
        shares = [row[f"{what}_{how}"] for how in ("equal", "right") for what in ("captions", "answers", "decisions")]
        rows.append([name, *(f"{100 * share:.2f} %" for share in shares), f"{row['match']['max']:.1e}", f"{row['embedding']['mean']:.1e}", f"{row['embedding']['max']:.1e}"])
    head = ["", "captions equal", "answers equal", "match decisions equal", "captions right", "answers right", "match decisions right"]
    return results.table([*head, "match: largest difference", "embedding, 1 - cosine: mean", "most"], rows)


def main() -> int:
    """One part after another; the JSON is written after each."""
    args = parse()
    torch.set_grad_enabled(False)
    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    args.work.mkdir(parents=True, exist_ok=True)
    crops, found = pictures.crops(args.photos, args.images), {}
    for name in args.parts:
        print(f"  {name}", flush=True)
        found[name] = demo_models(args) if name == "demo" else random_weights(PARTS[name], args, crops)
        document = {"command": command(args), "machine": machine.describe(args.server, args.threads), "parts": found}
        if args.json:
            args.json.write_text(json.dumps(document, indent=1) + "\n")
    print(f"\n{machine.line(document['machine'])}\n\n{tables(found)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
