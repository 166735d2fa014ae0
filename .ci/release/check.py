#!/usr/bin/env python3
"""Checks that a tag, Cargo.toml, Cargo.lock, the Dockerfile, the Helm chart and the changelog name the same version, and
writes the notes of the release, which are the section of the changelog.

    .ci/release/check.py v0.1.0 --notes notes.md

Exit code 1, with one line per disagreement. Needs Python 3.11 or later and nothing else.
"""

import argparse
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]

# https://semver.org: three numbers and an optional pre-release. Build metadata cannot be part of an image's tag.
TAG = re.compile(r"v(\d+\.\d+\.\d+(?:-[0-9A-Za-z.-]+)?)")


def chart_field(text: str, field: str) -> str | None:
    """A field at the top level of Chart.yaml. All of its values that are compared are plain or quoted words."""
    match = re.search(rf"^{field}:\s*[\"']?([^\s\"'#]+)", text, re.MULTILINE)
    return match and match[1]


def section(changelog: str, version: str) -> str | None:
    """The text below the heading `## [VERSION] - DATE`, up to the next heading of that level."""
    heading = rf"^## \[{re.escape(version)}\] - \d{{4}}-\d{{2}}-\d{{2}}$"
    match = re.search(heading + r"\n(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL)
    return match and match[1].strip()


def disagreements(root: Path, tag: str) -> tuple[list[str], str]:
    """What does not fit the tag, and the notes of the release."""
    match = TAG.fullmatch(tag)
    if not match:
        return [f"{tag} is not a version tag such as v1.2.3 or v1.2.3-rc.1"], ""
    version = match[1]

    def read(path: str) -> str:
        file = root / path
        return file.read_text() if file.is_file() else ""

    cargo = tomllib.loads(read("Cargo.toml"))["package"]["version"]
    locked = [
        package["version"]
        for package in tomllib.loads(read("Cargo.lock")).get("package", [])
        if package["name"] == "blip-server"
    ]
    image = re.search(r"^ARG VERSION=(\S+)", read("Dockerfile"), re.MULTILINE)
    chart = read("deploy/chart/Chart.yaml")
    found = {
        "Cargo.toml": cargo,
        "Cargo.lock": locked[0] if locked else None,
        "Dockerfile (ARG VERSION)": image and image[1],
        "deploy/chart/Chart.yaml (appVersion)": chart_field(chart, "appVersion"),
    }
    faults = [f"{place} has {value or 'no version'}, not {version}" for place, value in found.items() if value != version]
    notes = section(read("CHANGELOG.md"), version)
    if not notes:
        faults.append(f"CHANGELOG.md has no section `## [{version}] - YYYY-MM-DD` with text")
    return faults, notes or ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tag", help="tag of the release, such as v1.2.3")
    parser.add_argument("--notes", type=Path, help="file to write the notes to")
    arguments = parser.parse_args()
    faults, notes = disagreements(ROOT, arguments.tag)
    for fault in faults:
        print(fault, file=sys.stderr)
    if faults:
        return 1
    if arguments.notes:
        arguments.notes.write_text(notes + "\n")
    print(f"{arguments.tag}: all versions agree")
    return 0


if __name__ == "__main__":
    sys.exit(main())
