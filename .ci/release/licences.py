#!/usr/bin/env python3
"""Writes the licences of all packages that are compiled into the binary: their names, their licence expressions, and the
texts and notices that the packages contain. Equal texts are written once.

    .ci/release/licences.py x86_64-unknown-linux-gnu THIRD-PARTY-LICENCES

The packages must have been downloaded (`cargo fetch --locked`). Exit code 1 if a package states no licence.
"""

import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Beginnings of the names of files that hold a licence or a notice, in upper case.
NAMES = ("LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE", "UNLICENSE")

HEAD = """\
blip-server contains the packages below. Each is followed by its licence in the terms of SPDX. The texts that the packages
contain are at the end, each with the names of its packages. A package without a text is under the licence that it
states; https://spdx.org/licenses has the texts.

The demo models were trained on images with glyphs of Noto Color Emoji, Copyright Google, SIL Open Font License 1.1.
"""


def cargo(*arguments: str) -> str:
    """The output of a cargo command in the root of the repository."""
    return subprocess.run(["cargo", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def packages(target: str) -> dict[tuple[str, str], dict]:
    """The packages that the release binary is made of, by name and version. Without what only builds or tests use."""
    metadata = json.loads(cargo("metadata", "--locked", "--format-version", "1", "--filter-platform", target))
    known = {(package["name"], package["version"]): package for package in metadata["packages"]}
    tree = cargo("tree", "--locked", "--target", target, "--edges", "normal", "--prefix", "none", "--format", "{p}")
    names = {tuple(line.split()[:2]) for line in tree.splitlines() if line}
    return {(name, version[1:]): known[name, version[1:]] for name, version in names if name != "blip-server"}


def main(target: str, output: str) -> int:
    lines, missing = [HEAD], []
    holders: dict[str, list[str]] = defaultdict(list)
    for (name, version), package in sorted(packages(target).items()):
        licence = package["license"] or (package["license_file"] and "see the text") or ""
        if not licence:
            missing.append(f"{name} {version}")
        lines.append(f"{name} {version}: {licence}")
        folder = Path(package["manifest_path"]).parent
        for file in sorted(folder.iterdir()):
            if file.is_file() and file.name.upper().startswith(NAMES):
                holders[file.read_text(errors="replace").strip()].append(f"{name} {version} ({file.name})")
    for text, names in sorted(holders.items(), key=lambda item: item[1]):
        lines.append(f"\n{'-' * 78}\n{', '.join(names)}\n\n{text}")
    Path(output).write_text("\n".join(lines) + "\n")
    for name in missing:
        print(f"{name} states no licence", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
