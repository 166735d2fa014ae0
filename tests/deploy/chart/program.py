"""Starts the real program with the settings and the environment of a rendered Deployment: every setting must be accepted
and take effect, the probes and metrics must answer where the objects expect them, and the memory limit must be enough."""

import contextlib
import json
import re
import subprocess
import tempfile
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import consistency
import helm
import queries

# Bytes that the weights of an official checkpoint take in f32 (docs/performance.md): 1.1 GB for 224 M parameters.
BASE_WEIGHTS, LARGE_WEIGHTS = 1_200_000_000, 2_400_000_000
# A tiny checkpoint, where a set serves directories.
CHECKPOINT = helm.ROOT / "tests" / "fixtures" / "vqa-varied"
UNITS = {"Mi": 2**20, "Gi": 2**30}


def prepare(objects: list[dict], folder: Path) -> tuple[Path, dict[str, str]]:
    """Writes the settings file, with paths of the container replaced by files in `folder`, and returns the environment."""
    text = next(o["data"]["settings.toml"] for o in objects if "settings.toml" in o.get("data", {}))
    if "/keys/keys" in text:
        (folder / "keys").mkdir()
        (folder / "keys" / "keys").write_text("test:0123456789abcdef0123\n")
    if "/tls/tls.crt" in text:
        (folder / "tls").mkdir()
        make = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout tls/tls.key -out tls/tls.crt"
        subprocess.run(["openssl", *make.split()], cwd=folder, check=True, capture_output=True)
    file = folder / "settings.toml"
    for name in ("keys", "tls"):
        text = text.replace(f"/etc/blip-server/{name}/", f"{folder}/{name}/")
    text = text.replace('source = "/', f'source = "{folder}/')
    for model in tomllib.loads(text).get("models", []):
        if model["source"].startswith("/"):
            Path(model["source"]).parent.mkdir(parents=True, exist_ok=True)
            Path(model["source"]).symlink_to(CHECKPOINT)
    file.write_text(text)
    (container,) = consistency.one(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    variables = {v["name"]: v.get("value", "from-a-field") for v in container.get("env", [])}
    return file, {"PATH": "/usr/bin", "HOME": str(folder), **variables}


def check_effective(binary: Path, file: Path, environment: dict[str, str]) -> list[str]:
    """`blip-server config` prints the effective settings: those of the file, and of the environment over it."""
    run = subprocess.run([binary, "config", "--config", file], env=environment, capture_output=True, text=True)
    if run.returncode or run.stderr:
        return [f"blip-server config: exit code {run.returncode}: {run.stderr}"]
    effective = tomllib.loads(run.stdout)
    wanted = tomllib.loads(file.read_text())
    models = wanted.pop("models", [])
    for name, text in environment.items():
        if match := re.fullmatch(r"BLIP__([A-Z]+)__([A-Z_]+)", name):
            wanted.setdefault(match[1].lower(), {})[match[2].lower()] = text
    problems = [
        f"{section}.{key} is {effective[section].get(key)!r}, expected {value!r}"
        for section, keys in wanted.items()
        for key, value in keys.items()
        if effective[section].get(key) != value
    ]
    sources = [(model["source"], model.get("image_size")) for model in models]
    served = [(model["source"], model.get("image_size")) for model in effective["models"]]
    if sources != served:
        problems.append(f"models are {served}, expected {sources}")
    return problems


def check_download(binary: Path, objects: list[dict]) -> list[str]:
    """The container that downloads must get a valid command and valid settings. Without the hub, it ends with a message
    about the first model."""
    problems = []
    for kind, pod in consistency.pods(objects):
        containers = pod["spec"].get("initContainers", []) if kind == "Deployment" else pod["spec"]["containers"]
        for container in (one for one in containers if one["name"] == "download"):
            given = {v["name"]: v.get("value", "secret") for v in container.get("env", [])}
            with tempfile.TemporaryDirectory() as home:
                environment = {"HF_HOME": home, "HF_HUB_OFFLINE": "1", **given}
                command = [binary, *container["args"]]
                run = subprocess.run(command, env=environment, capture_output=True, text=True)
            model = container["args"][1].split("@")[0]
            if run.returncode in (0, 2, 78) or model not in run.stderr:
                problems.append(f"{' '.join(container['args'])}: exit code {run.returncode}: {run.stderr}")
    return problems


def memory_needed(line: str, spec: dict, gpu: bool) -> int:
    """Bytes that the settings allow, with an estimate for weights that are not here."""
    parts = {name: int(size) * 2**20 for name, size in re.findall(r"([a-zA-Z ]+) (\d+) MiB[,)]", line)}
    if gpu:
        return sum(parts.values()) - parts["weights"] - parts[" feature cache"] - parts[" KV cache"]
    sources = {model["source"].split("@")[0] for model in spec.get("models", []) if model["source"] != "demo"}
    return sum(parts.values()) + sum(LARGE_WEIGHTS if "large" in s else BASE_WEIGHTS for s in sources)


@contextlib.contextmanager
def started(binary: Path, command: str, folder: Path, environment: dict[str, str]) -> Iterator[Callable]:
    """Starts the program on free ports. Yields a function that waits for a line of its log."""
    own = {"BLIP__SERVER__OPERATIONS_LISTEN": "127.0.0.1:0", "BLIP__COMPUTE__DEVICE": "cpu", "BLIP__LOG__FORMAT": "json"}
    log = folder / f"{command}.log"
    flags = ["--config", folder / "settings.toml", "--listen", "127.0.0.1:0"]
    with log.open("wb") as stream:
        process = subprocess.Popen([binary, command, *flags], env={**environment, **own}, stderr=stream, stdout=stream)

    def wait_for(wanted: Callable[[dict], bool]) -> dict:
        for _ in range(600):
            ended = process.poll() is not None
            lines = [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")]
            if found := next(filter(wanted, lines), None):
                return found
            if ended:
                break
            time.sleep(0.1)
        raise RuntimeError(f"blip-server {command} does not start: {log.read_text()[-2000:]}")

    try:
        yield wait_for
    finally:
        process.kill()
        process.wait()


def check_memory(binary: Path, objects: list[dict], folder: Path, environment: dict[str, str]) -> list[str]:
    """The program tells what its settings allow before it loads models. It gets the demo models, as no others are here."""
    settings = folder / "settings.toml"
    spec = tomllib.loads(settings.read_text())
    settings.write_text(settings.read_text().split("[[models]]")[0])
    with started(binary, "serve", folder, environment) as wait_for:
        line = wait_for(lambda line: "memory.bound_bytes" in line)["message"]
    needed = memory_needed(line, spec, spec.get("compute", {}).get("device") == "cuda")
    (container,) = consistency.one(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    limit = container["resources"]["limits"]["memory"]
    if needed > int(limit[:-2]) * UNITS[limit[-2:]]:
        return [f"the memory limit is {limit}, but the settings allow {needed >> 20} MiB: {line}"]
    return []


def check_probes(binary: Path, objects: list[dict], folder: Path, environment: dict[str, str]) -> list[str]:
    """Probes, and the metrics that autoscaling uses. Mock models suffice, and they are ready at once."""
    problems = []
    (container,) = consistency.one(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    with started(binary, "mock", folder, environment) as wait_for:
        url = wait_for(lambda line: "server.operations_url" in line)["server.operations_url"]
        wait_for(lambda line: line["message"] == "ready")
        for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
            path = container[kind]["httpGet"]["path"]
            try:
                urllib.request.urlopen(url + path).close()
            except urllib.error.HTTPError as error:
                problems.append(f"{kind} {path}: {error}")
        metrics = urllib.request.urlopen(url + "/metrics").read().decode()
    if any(o["kind"] == "ScaledObject" for o in objects):
        names = {name.removesuffix("_bucket") for name in queries.metric_names(objects)}
        problems += [f"no metric {name}" for name in sorted(names) if f"# TYPE {name} " not in metrics]
    return problems


def check(binary: Path, objects: list[dict]) -> list[str]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file, environment = prepare(objects, folder)
        problems = check_effective(binary, file, environment) + check_download(binary, objects)
        if not problems:
            try:
                problems += check_memory(binary, objects, folder, environment)
                problems += check_probes(binary, objects, folder, environment)
            except RuntimeError as error:
                problems.append(str(error))
        return problems
