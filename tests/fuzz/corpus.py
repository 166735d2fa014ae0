#!/usr/bin/env python3
"""The inputs of the fuzzing programs, for run.sh.

    corpus.py seeds FOLDER             writes valid pictures and checkpoints from tests/fixtures to FOLDER/TARGET
    corpus.py select MERGE CORPUS      replaces the inputs in CORPUS by a selection of those in libFuzzer's merge file
"""

import base64
import hashlib
import heapq
import json
import pathlib
import shutil
import struct
import sys
import zlib

HERE = pathlib.Path(__file__).resolve().parent
FIXTURES = HERE.parent / "fixtures"
# How much a repository should hold for each target.
MAX_FILES, MAX_BYTES, MAX_FILE_BYTES = 150, 300 << 10, 16 << 10
# Never dropped: hand-written inputs, and those of defects that were found.
KEPT = ("seed-", "found-")
SIGNATURES = {
    "decode_jpeg": b"\xff\xd8",
    "decode_png": b"\x89PNG",
    "decode_webp": b"RIFF",
    "decode_gif": b"GIF8",
    "decode_bmp": b"BM",
}


def tensors(path):
    """Yields the bytes of each tensor of a safetensors file: some fixtures keep files as tensors."""
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    for name, tensor in json.loads(content[8 : 8 + size]).items():
        if name != "__metadata__":
            start, end = tensor["data_offsets"]
            yield content[8 + size + start : 8 + size + end]


def pictures():
    for path in sorted((FIXTURES / "images").rglob("*")):
        if path.is_file():
            yield path.read_bytes()
    for case in json.loads((FIXTURES / "images" / "containers.json").read_text())["cases"]:
        if case.get("file"):
            yield base64.b64decode(case["file"])
    for name in ["jpeg/files", "jpeg/lossless", "orientation/files"]:
        yield from tensors(FIXTURES / f"{name}.safetensors")


def heavy():
    """Yields small pictures with much metadata or compressed data, which takes memory that their size does not tell."""
    images = FIXTURES / "images"
    length = 200_000

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    png = (images / "exif-6.png").read_bytes()
    profile = zlib.compress(b"\0" * 1_500_000, 9)
    for name, data in [
        (b"tEXt", b"key\0" + b"\xe9" * length),
        (b"tEXt", b"Raw profile type exif\0" + b"\n" * length),
        (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\n" * 900_000) + b"\0" * length),
        (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b" " * length),
        (b"eXIf", b"\0" * length),
        (b"iCCP", b"name\0\0" + profile),
        (b"iCCP", b"name\0\0" + profile + b"\0" * length),
    ]:
        yield png[:33] + chunk(name, data) + png[33:]
        # Several of a kind, and behind the pixels.
        yield png[:33] + chunk(name, data) * 3 + png[33:-12] + chunk(name, data) + png[-12:]

    for name, tag in [("lossy.webp", b"VP8 "), ("lossless.webp", b"VP8L"), ("exif-6.webp", b"EXIF")]:
        webp = bytearray((images / name).read_bytes())
        start = webp.index(tag) + 4
        (size,) = struct.unpack("<I", webp[start : start + 4])
        end = start + 4 + size
        webp[end:end] = b"\0" * length
        webp[start : start + 4] = struct.pack("<I", size + length)
        webp[4:8] = struct.pack("<I", len(webp) - 8)
        yield bytes(webp)

    jpeg = (images / "exif-6.jpg").read_bytes()
    segment = b"\xff\xe1\xff\xffExif\0\0" + b"\0" * (0xFFFF - 8)
    for kind in [segment, segment.replace(b"Exif", b"http"), b"\xff\xfe" + segment[2:]]:
        yield jpeg[:2] + kind * 4 + jpeg[2:]
    yield jpeg.replace(b"\xff\xda", segment * 4 + b"\xff\xda", 1)

    gif = (images / "still.gif").read_bytes()
    at = gif.index(b"\x2c")
    blocks = (b"\xff" + b"\0" * 255) * (length // 256) + b"\0"
    yield gif[:at] + b"\x21\xfe" + blocks + gif[at:]
    yield gif[:-2] + blocks + gif[-1:]


def checkpoints():
    """Yields inputs of `checkpoint`, whose first byte names the kind of file."""
    for path in sorted(FIXTURES.rglob("*")):
        small = path.is_file() and path.stat().st_size < 64 << 10
        if small and path.suffix == ".safetensors":
            yield b"\0" + path.read_bytes()
        elif small and path.name == "config.json":
            yield b"\2" + path.read_bytes()


def seeds(folder):
    def write(target, content):
        place = folder / target
        place.mkdir(parents=True, exist_ok=True)
        (place / hashlib.sha1(content).hexdigest()).write_bytes(content)

    for picture in [*pictures(), *heavy()]:
        for target, signature in SIGNATURES.items():
            if picture.startswith(signature):
                write(target, picture)
                write("decode_claims", picture)
    for target in SIGNATURES:
        for path in sorted((HERE / "corpus" / target).iterdir()):
            write("decode_claims", path.read_bytes())
    for checkpoint in checkpoints():
        write("checkpoint", checkpoint)


def merged(path):
    """Returns the files of a merge file, each with the features that it reaches."""
    lines = path.read_text().splitlines()
    names = lines[2 : 2 + int(lines[0])]
    features = {}
    for line in lines[2 + len(names) :]:
        kind, index, *rest = line.split()
        if kind == "FT":
            features[int(index)] = frozenset(rest)
    return [(pathlib.Path(names[index]), found) for index, found in features.items()]


def select(merge, corpus):
    """Takes the file that adds most features, again and again, until nothing is added or the limits are reached."""
    files = merged(merge)
    chosen, seen, size = [], set(), 0
    for path, found in files:
        if path.parent == corpus and path.name.startswith(KEPT):
            chosen.append(path)
            seen |= found
            size += path.stat().st_size
    everything = set().union(*(found for _, found in files))
    queue = [
        (-len(found), path.stat().st_size, str(path), found)
        for path, found in files
        if path not in chosen and path.stat().st_size <= MAX_FILE_BYTES
    ]
    heapq.heapify(queue)
    while queue and len(chosen) < MAX_FILES:
        _, bytes_, name, found = heapq.heappop(queue)
        new = len(found - seen)
        if new == 0 or size + bytes_ > MAX_BYTES:
            continue
        if queue and -queue[0][0] > new:
            heapq.heappush(queue, (-new, bytes_, name, found))
            continue
        chosen.append(pathlib.Path(name))
        seen |= found
        size += bytes_
    contents = {}
    for path in chosen:
        content = path.read_bytes()
        kept = path.parent == corpus and path.name.startswith(KEPT)
        contents[path.name if kept else hashlib.sha1(content).hexdigest()[:16]] = content
    shutil.rmtree(corpus)
    corpus.mkdir()
    for name, content in contents.items():
        (corpus / name).write_bytes(content)
    share = f"{len(seen)} of {len(everything)} features"
    print(f"{corpus.name}: {len(contents)} files, {size} bytes, {share}")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["seeds", folder]:
            seeds(pathlib.Path(folder))
        case ["select", merge, corpus]:
            select(pathlib.Path(merge), pathlib.Path(corpus))
        case _:
            sys.exit(__doc__)
