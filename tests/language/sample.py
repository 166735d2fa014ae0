#!/usr/bin/env python3
"""Draws a random sample of comments from src/, for a reader who has not seen them.

    tests/language/sample.py [--seed 2026] [--count 150] > sample.md

The reader answers for each: understood at the first reading, or not. verdicts.md holds the last result.
"""

import argparse
import pathlib
import random
import re

COMMENT = re.compile(r"^\s*//[/!]?( |$)")
CONTEXT_LINES = 3


def comments(path):
    """Blocks of consecutive comment lines: the line where each starts, its text, and the code that follows."""
    lines = path.read_text().splitlines()
    start = None
    for number, line in enumerate([*lines, ""]):
        if COMMENT.match(line):
            start = number if start is None else start
        elif start is not None:
            yield start + 1, lines[start:number], lines[number : number + CONTEXT_LINES]
            start = None


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--count", type=int, default=150)
    options = parser.parse_args()
    root = pathlib.Path(__file__).parents[2]
    blocks = [
        (path.relative_to(root), *block)
        for path in sorted((root / "src").rglob("*.rs"))
        for block in comments(path)
    ]
    sample = random.Random(options.seed).sample(blocks, options.count)
    for index, (path, line, text, code) in enumerate(sample, 1):
        print(f"## {index}. {path}:{line}\n\n```rust")
        print("\n".join([*text, *code]))
        print("```\n")


if __name__ == "__main__":
    main()
