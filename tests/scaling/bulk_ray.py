"""Runs deploy/examples/bulk_ray.py against two replicas, by a Ray on this machine.

    python tests/scaling/bulk_ray.py BIN

Needs requirements-ray.txt. 200 files, copies of the demo scenes, and a file that is no picture:
1. With the demo models: each file must have exactly one row, each caption must be that of its scene, and the broken file
   must have an error.
2. With mock models that take 0.1 s for an image: one replica is killed (SIGKILL) after it has answered some lines, and each
   file must still have exactly one row.
"""

import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

import pyarrow.parquet

from replicas import HOST, Replica

ROOT = pathlib.Path(__file__).resolve().parents[2]
PICTURES = 200


def make_pictures(folder):
    """Returns the true caption of each file; `None` for the file that is no picture."""
    scenes = json.loads((ROOT / "demo/scenes/scenes.json").read_text())
    folder.mkdir()
    truth = {}
    for number in range(PICTURES):
        scene = scenes[number % len(scenes)]
        name = f"{number:03}-{scene['file']}"
        shutil.copy(ROOT / "demo/scenes" / scene["file"], folder / name)
        truth[name] = scene["caption"]
    (folder / "broken.png").write_text("no picture")
    return {**truth, "broken.png": None}


def answered_lines(replica):
    counts = re.findall(r'^blip_bulk_lines_total\{code="ok"\} (\d+)$', replica.get("/metrics"), re.MULTILINE)
    return sum(map(int, counts))


def run(binary, arguments, pictures, output, block, kill):
    """Runs the example and returns its rows and its output."""
    replicas = [Replica(binary, arguments, {}, output.parent / f"{output.name}-replica{number}.log") for number in (1, 2)]
    try:
        for replica in replicas:
            replica.start()
        for replica in replicas:
            replica.wait_until_ready()
        example = str(ROOT / "deploy/examples/bulk_ray.py")
        command = [sys.executable, example, str(pictures), str(output), "--block", str(block)]
        command += [part for replica in replicas for part in ("--replica", f"http://{HOST}:{replica.port}")]
        began = time.monotonic()
        program = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if kill:
            while program.poll() is None and answered_lines(replicas[0]) < 20:
                time.sleep(0.02)
            replicas[0].kill()
        shown, _ = program.communicate(timeout=300)
        assert program.returncode == 0, shown
        rows = pyarrow.parquet.read_table(output).to_pylist()
        print(f"  {len(rows)} rows in {time.monotonic() - began:.0f} s")
        return rows, shown
    finally:
        for replica in replicas:
            replica.close()


def check_rows(rows, truth):
    names = sorted(pathlib.Path(row["path"]).name for row in rows)
    assert names == sorted(truth), f"{len(names)} rows, {len(set(names))} files, {len(truth)} expected"
    for row in rows:
        is_broken = truth[pathlib.Path(row["path"]).name] is None
        assert bool(row["error"]) == is_broken and bool(row["caption"]) != is_broken, row


def main():
    binary = pathlib.Path(sys.argv[1]).resolve(strict=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        truth = make_pictures(folder / "pictures")
        print("two replicas with the demo models")
        rows, _ = run(binary, [], folder / "pictures", folder / "demo", 64, kill=False)
        check_rows(rows, truth)
        wrong = [row for row in rows if (truth[pathlib.Path(row["path"]).name] or "") != row["caption"]]
        assert not wrong, wrong
        print("two replicas with mock models, one is killed")
        mock = ["mock", "--image-us", "100000"]
        rows, shown = run(binary, mock, folder / "pictures", folder / "mock", 16, kill=True)
        check_rows(rows, truth)
        resent = sum(int(count) for count in re.findall(r"; (\d+) lines are sent again", shown))
        assert resent > 0, f"the kill came too late\n{shown}"
        print(f"  {resent} lines were sent again; each file has one row")


if __name__ == "__main__":
    main()
