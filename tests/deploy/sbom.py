#!/usr/bin/env python3
"""Checks the two lists of packages that the Dockerfile makes: the SBOM against the JSON schema of CycloneDX and against
cargo's own list, and the list in the binary against the SBOM.

    pip install 'cyclonedx-python-lib[validation]==11.12.0'
    cargo auditable build --release --locked --bin blip-server        # versions: Dockerfile
    cargo cyclonedx --format json --spec-version 1.5 --override-filename blip-server.cdx
    python tests/deploy/sbom.py target/release/blip-server blip-server.cdx.json

Exit code 1 if a package is missing in either list.
"""

import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

ROOT = Path(__file__).parents[2]


def from_cargo() -> set[str]:
    """Packages of the release build on this machine, with what only build scripts and macros use."""
    tree = ["cargo", "tree", "--locked", "--edges", "normal,build", "--prefix", "none", "--format", "{p}"]
    lines = subprocess.run(tree, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    return {" ".join(line.split()[:2]).replace(" v", " ") for line in lines if line}


def from_sbom(path: Path) -> set[str]:
    """Packages of the SBOM, after a check against the schema of the version that it names."""
    text = path.read_text()
    document = json.loads(text)
    error = JsonStrictValidator(SchemaVersion.from_version(document["specVersion"])).validate_str(text)
    if error is not None:
        sys.exit(f"{path} violates the schema of CycloneDX: {error}")
    components = [document["metadata"]["component"], *document["components"]]
    without_licence = [part["name"] for part in components if not part.get("licenses")]
    print(f"{path}: valid CycloneDX {document['specVersion']}, {len(components)} packages")
    if without_licence:
        sys.exit(f"packages without a licence: {without_licence}")
    return {f"{part['name']} {part['version']}" for part in components}


def from_binary(path: Path) -> set[str]:
    """Packages that cargo-auditable embedded: compressed JSON in the section `.dep-v0` of the 64-bit ELF file."""
    data = path.read_bytes()
    (table,) = struct.unpack_from("<Q", data, 0x28)
    size, count, names = struct.unpack_from("<HHH", data, 0x3A)
    # Of each section: the offset of its name, its offset in the file, its length.
    sections = [struct.unpack_from("<I20xQQ", data, table + size * at) for at in range(count)]
    start = sections[names][1]
    for name, offset, length in sections:
        if data[start + name :].startswith(b".dep-v0\0"):
            packages = json.loads(zlib.decompress(data[offset : offset + length]))["packages"]
            print(f"{path}: {len(packages)} packages in {length} bytes")
            return {f"{package['name']} {package['version']}" for package in packages}
    sys.exit(f"{path} contains no list of packages")


def main() -> None:
    binary, sbom = (Path(argument) for argument in sys.argv[1:])
    cargo, listed, embedded = from_cargo(), from_sbom(sbom), from_binary(binary)
    print(f"cargo tree: {len(cargo)} packages")
    for name, found in [("SBOM", listed), ("binary", embedded)]:
        # The tools also count what only the tests' features of a package add.
        print(f"in the {name} but not in cargo tree: {sorted(found - cargo)}")
    missing = {"SBOM": sorted(cargo - listed), "binary": sorted(cargo - embedded)}
    if any(missing.values()):
        sys.exit(f"missing: {missing}")


if __name__ == "__main__":
    main()
