"""Captions of a folder: by the command `caption`, by /bulk, and by a Python loop over transformers in bf16, in one run.

    python tests/perf/files.py target/release/blip-server --model DIR --pictures DIR [--dtype bf16] [--rounds 2] [--tokens 20]

`--model` is a caption checkpoint of random weights that never stops, for example one of `peers.py`, so that each caption has
`--tokens` tokens; `--pictures` holds distinct JPEGs, for example those of `images.py`. The three take turns. Each starts its
own process; the time to load the models is not counted: the command's from its first answer, with one picture fewer.

The loop is what a Python programmer writes: open a picture, preprocess it, generate, decode; in batches of one and of eight.
Needs torch, transformers, pillow and requests.
"""

import argparse
import base64
import json
import pathlib
import subprocess
import sys
import time

import requests
from bulk import start, stop

LOOP = """
import sys, time, pathlib, torch
from PIL import Image
from transformers import BlipForConditionalGeneration, BlipProcessor
model_path, pictures, tokens, batch = sys.argv[1], pathlib.Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
torch.set_num_threads(int(sys.argv[5]))
processor = BlipProcessor.from_pretrained(model_path)
model = BlipForConditionalGeneration.from_pretrained(model_path, dtype=torch.bfloat16).eval()
paths = sorted(pictures.glob("*.jpg"))
def caption(paths):
    images = [Image.open(path).convert("RGB") for path in paths]
    inputs = processor(images=images, return_tensors="pt").to(torch.bfloat16)
    with torch.inference_mode():
        ids = model.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens)
    return processor.batch_decode(ids, skip_special_tokens=True)
caption(paths[:batch])
begin = time.perf_counter()
for first in range(0, len(paths), batch):
    caption(paths[first:first + batch])
print(len(paths) / (time.perf_counter() - begin))
"""


def by_command(binary, model, pictures, tokens, dtype):
    """Pictures a second of `blip-server caption`, from its first row to its last."""
    options = ["--model", model, "--dtype", dtype, "--max-new-tokens", str(tokens), "--min-new-tokens", str(tokens)]
    process = subprocess.Popen([binary, "caption", pictures, *options], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    times = [time.perf_counter() for line in process.stdout if "captions" in json.loads(line)]
    assert process.wait() == 0
    return (len(times) - 1) / (times[-1] - times[0])


def by_bulk(binary, model, pictures, tokens, dtype):
    """Pictures a second of one request to /bulk by a thread that sends and one that reads, from the first answer to the last."""
    server, url = start([binary, "--model", model, "--dtype", dtype])

    def lines():
        for path in sorted(pathlib.Path(pictures).glob("*.jpg")):
            image = base64.b64encode(path.read_bytes()).decode()
            line = {"task": "caption", "image": image, "max_new_tokens": tokens, "min_new_tokens": tokens}
            yield json.dumps(line).encode() + b"\n"

    answer = requests.post(f"{url}/bulk", data=lines(), headers={"content-type": "application/x-ndjson"}, stream=True, timeout=3600)
    times = [time.perf_counter() for line in answer.iter_lines() if "result" in json.loads(line)]
    stop(server)
    return (len(times) - 1) / (times[-1] - times[0])


def by_loop(model, pictures, tokens, batch, threads):
    """Pictures a second of the loop over transformers."""
    arguments = [model, pictures, str(tokens), str(batch), str(threads)]
    return float(subprocess.run([sys.executable, "-c", LOOP, *arguments], check=True, capture_output=True, text=True).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("--model", required=True)
    parser.add_argument("--pictures", required=True)
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    cases = {
        "blip-server caption": lambda: by_command(args.binary, args.model, args.pictures, args.tokens, args.dtype),
        "/bulk": lambda: by_bulk(args.binary, args.model, args.pictures, args.tokens, args.dtype),
        "transformers bf16, batch 1": lambda: by_loop(args.model, args.pictures, args.tokens, 1, args.threads),
        "transformers bf16, batch 8": lambda: by_loop(args.model, args.pictures, args.tokens, 8, args.threads),
    }
    rates = {name: [] for name in cases}
    for round in range(args.rounds):
        for name, measure in cases.items():
            rates[name].append(measure())
            print(f"round {round + 1}: {name}: {rates[name][-1]:.3f} pictures/s", flush=True)
    own = max(rates["blip-server caption"])
    for name, measured in rates.items():
        print(f"{name}: {', '.join(f'{rate:.3f}' for rate in measured)} pictures/s; the command is {own / max(measured):.2f} times as fast")


if __name__ == "__main__":
    main()
