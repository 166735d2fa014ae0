"""Load on /bulk: many lines by plain `requests`, with interactive calls beside them, and a SIGTERM in the middle.

    python tests/perf/bulk.py target/release/blip-server [--lines 20000]
    python tests/perf/bulk.py target/release/blip-server --model DIR --pictures DIR

Starts the server itself, three times: with mock models (`blip-server mock`) for captions of distinct images, with the demo
models for embeddings of texts, and with mock models again for the SIGTERM. Prints the rates, and how long interactive
calls took with and without bulk work. Fails if a line is refused or lost, or an interactive call is refused. Times are
printed, not checked. `requests` sends the whole body before it reads the answer.

The second form compares the captions a second of `/bulk` with those of the engine alone (`bench`), in turns. `--model` is a
caption checkpoint, for example one of `peers.py`; `--pictures` holds JPEGs, for example those of `images.py`.
"""

import argparse
import base64
import json
import pathlib
import re
import signal
import struct
import subprocess
import threading
import time
import urllib.request
import zlib

import requests

PATIENCE = 1800


def png(number):
    """A PNG of 8 x 8 pixels whose colour is the number."""
    row = b"\0" + bytes([number >> 16 & 255, number >> 8 & 255, number & 255]) * 8
    header = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(row * 8)), (b"IEND", b"")]
    parts = [struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def image(number):
    return base64.b64encode(png(number)).decode()


def start(arguments):
    """Starts a server on a free port. Returns the process and its URL."""
    server = subprocess.Popen(
        [*arguments, "--listen", "127.0.0.1:0", "--log-format", "json"], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    for line in server.stderr:
        found = re.search(r'"server.url":"([^"]*)"', line)
        if found:
            threading.Thread(target=lambda: [None for _ in server.stderr], daemon=True).start()
            break
    url = found.group(1)
    for _ in range(600):
        try:
            urllib.request.urlopen(f"{url}/health/ready").close()
            return server, url
        except OSError:
            time.sleep(0.1)
    raise SystemExit("the server does not become ready")


def stop(server, ended=False):
    if not ended:
        server.send_signal(signal.SIGTERM)
    assert server.wait(60) == 0


def interactive(url, path, request, calls, until=None):
    """Makes calls one after the other. Returns their times in milliseconds, sorted."""
    times = []
    with requests.Session() as session:
        while len(times) < calls if until is None else not until.is_set():
            began = time.monotonic()
            answer = session.post(f"{url}{path}", json=request(len(times)), timeout=PATIENCE)
            assert answer.status_code == 200, answer.text
            times.append((time.monotonic() - began) * 1000)
    return sorted(times)


def percentiles(times):
    at = lambda share: times[min(int(len(times) * share), len(times) - 1)]
    return f"p50 {at(0.5):.1f} ms, p99 {at(0.99):.1f} ms of {len(times)} calls"


def send(url, body):
    """Sends the lines and returns those of the answer, and its summary."""
    answer = requests.post(f"{url}/bulk", data=body, timeout=PATIENCE)
    assert answer.status_code == 200, answer.text
    *lines, summary = (json.loads(line) for line in answer.text.splitlines())
    assert summary["done"] == len(lines), summary
    return lines, summary


def load(name, arguments, line, call, count):
    """Measures interactive calls alone, then beside bulk work."""
    server, url = start(arguments)
    path, request = call
    idle = interactive(url, path, request, 300)
    body = "".join(json.dumps(line(number)) + "\n" for number in range(count)).encode()
    ended, beside = threading.Event(), []
    caller = threading.Thread(target=lambda: beside.extend(interactive(url, path, request, 0, ended)))
    caller.start()
    began = time.monotonic()
    lines, summary = send(url, body)
    took = time.monotonic() - began
    ended.set()
    caller.join()
    assert summary == {"done": count, "failed": 0}, summary
    assert len({answer["id"] for answer in lines}) == count
    print(f"{name}: {count} lines in {took:.1f} s, {count / took:.0f}/s, none refused, none lost")
    print(f"  interactive alone: {percentiles(idle)}")
    print(f"  beside bulk work:  {percentiles(sorted(beside))}")
    stop(server)


def shut_down(arguments, line, count):
    """Ends a server in the middle, and sends the lines without an answer to another."""
    missing, rounds, answered = list(range(count)), 0, set()
    while missing:
        server, url = start(arguments)
        body = "".join(json.dumps(line(number)) + "\n" for number in missing).encode()
        signals = []
        timer = threading.Timer(1.0 + rounds, lambda ending=server, sent=signals: sent.append(ending.send_signal(signal.SIGTERM)))
        if rounds < 3:
            timer.start()
        rounds += 1
        answer = requests.post(f"{url}/bulk", data=body, stream=True, timeout=PATIENCE)
        lines = [json.loads(text) for text in answer.iter_lines()]
        summary = lines.pop()
        assert summary["done"] == len(lines) and summary["failed"] == 0, summary
        assert (summary.get("error") or {}).get("code") in (None, "shutting_down"), summary
        ids = {answer["id"] for answer in lines}
        assert len(ids) == len(lines) and not ids & answered, "a line was answered twice"
        print(f"  round {rounds}: {len(ids)} answers{', then SIGTERM' if summary.get('error') else ''}")
        answered |= ids
        missing = [number for number in missing if number not in answered]
        if rounds <= 3:
            timer.cancel()
            timer.join()
        stop(server, ended=bool(signals))
    assert len(answered) == count
    print(f"SIGTERM in the middle, three times: {count} lines, each answered once")


def engine_alone(binary, model):
    """Captions a second of the engine alone, in batches of 16."""
    options = ["--task", "caption", "--batch", "16", "--runs", "2", "--json", "-"]
    output = subprocess.run([binary, "bench", "--model", model, *options], check=True, capture_output=True, text=True).stdout
    (measured,) = json.loads(output)["results"]
    return 1 / measured["per_item_s"]


def worker_seconds(url):
    """Seconds for which the models ran so far."""
    with urllib.request.urlopen(f"{url}/metrics") as answer:
        metrics = answer.read().decode()
    return sum(float(value) for value in re.findall(r'stage_duration_seconds_sum\{stage="(?:text|vision)"\} (\S+)', metrics))


def against_engine(binary, model, pictures, rounds=2):
    """Compares `/bulk` with the engine alone, in turns."""
    files = sorted(pathlib.Path(pictures).glob("*.jp*g"))
    lines = [{"id": file.name, "task": "caption", "image": base64.b64encode(file.read_bytes()).decode()} for file in files]
    body = "".join(json.dumps(line) + "\n" for line in lines).encode()
    print(f"engine alone: {engine_alone(binary, model):.3f} captions a second")
    for _ in range(rounds):
        server, url = start([binary, "--model", model])
        began, worked = time.monotonic(), worker_seconds(url)
        _, summary = send(url, body)
        took, worked = time.monotonic() - began, worker_seconds(url) - worked
        assert summary == {"done": len(files), "failed": 0}, summary
        print(f"/bulk: {len(files) / took:.3f} captions a second; the models ran {100 * worked / took:.2f} % of the time")
        stop(server)
        print(f"engine alone: {engine_alone(binary, model):.3f} captions a second")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("server")
    parser.add_argument("--lines", type=int, default=20_000)
    parser.add_argument("--model")
    parser.add_argument("--pictures")
    options = parser.parse_args()
    if options.model and options.pictures:
        return against_engine(options.server, options.model, options.pictures)
    mock = [options.server, "mock"]
    caption = lambda number: {"id": number, "task": "caption", "image": image(number)}
    call = lambda number: {"image": image(1_000_000 + number)}
    load("captions, mock models", mock, caption, ("/caption", call), options.lines)
    text = lambda number: {"text": f"a picture of {number} cats"}
    embed = lambda number: {"id": number, "task": "embeddings", **text(number)}
    load("embeddings, demo models", [options.server], embed, ("/embeddings", text), options.lines)
    shut_down(mock, caption, min(options.lines, 10_000))


if __name__ == "__main__":
    main()
