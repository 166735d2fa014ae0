"""Three replicas behind a real proxy: what routing by image id is worth, and a rolling restart without a failed request.

    python tests/scaling/measure.py BIN [--proxies nginx,haproxy,envoy] [--envoy FILE] [--seconds 20] [--crash] [--json FILE]

BIN is started three times as `blip-server mock`. Its models sleep for the times that a base model in bf16 takes on two
cores (docs/performance.md): 130 ms to encode an image, 5 ms for a text step. So three replicas on one machine behave as on
three machines, and everything but the models is real. Equal questions get equal answers from every replica, and each
answer names its picture, so a wrong answer is noticed. The caches of a replica hold 46 % of the pictures.

For each proxy, each time with new replicas, after one question about each picture:
1. Affinity: 24 callers ask about pictures by a Zipf distribution, without and with `x-image-id`. Hit ratio of the feature
   cache (from /metrics) and answers per second.
2. Rolling restart: 8 callers at a steady rate, one that sends ids, one that reads event streams, and two requests to /bulk
   that stay open. Each replica in turn gets SIGTERM, ends, and is started again. The hit ratio is that of the callers (from
   the header `server-timing`), because the counts of a replica end with it.
3. Keys: which of 2,000 ids move to another replica when one leaves, and come back with it.
4. With --crash: SIGKILL of one replica under the load of 2. Reported, not checked.

Fails if a request failed, a line was lost or answered twice, a stream or /bulk was buffered, affinity does not raise the hit
ratio by a tenth, ids of the remaining replicas moved, or a replica did not see the client's address. Times are reported,
not checked.
"""

import argparse
import collections
import json
import os
import pathlib
import random
import tempfile
import threading
import time

from load import CLIENT, Bulk, Caller, IdCaller, Log, Picture, Streamer, connect
from proxies import Proxy, find, version
from replicas import Replica, cache_counts, hit_ratio

# Share of the pictures that the caches of a replica hold: more than a third, less than a half.
CACHED = 0.46
FEATURE_BYTES = 100
PIXEL_BYTES = 64 * 64 * 3 + 512
MOCK = ["mock", "--image-us", "130000", "--unit-us", "5000", "--token-us", "0", "--text-length", "20"]
SETTINGS = {
    "BLIP__SERVER__DRAIN_DELAY_MS": "5000",
    "BLIP__SERVER__TRUSTED_PROXIES": "127.0.0.1/32",
    "BLIP__LOG__CLIENT_IP": "true",
}
# Of 2,000 ids. Envoy's hashing (Maglev) may move a few ids of replicas that stay, the other proxies none.
ALLOWED_MOVES = 20
# nginx has no active health checks, so nothing uses the time before the listener closes.
WITHOUT_DELAY = {"BLIP__SERVER__DRAIN_DELAY_MS": "0"}


class Site:
    """Three replicas and a proxy in front of them."""

    def __init__(self, binary, name, program, folder, pictures):
        folder.mkdir(parents=True)
        caches = {
            "BLIP__ENGINE__FEATURE_CACHE_BYTES": str(int(pictures * CACHED) * FEATURE_BYTES),
            "BLIP__IMAGES__PIXEL_CACHE_BYTES": str(int(pictures * CACHED) * PIXEL_BYTES),
        }
        settings = {**SETTINGS, **caches, **(WITHOUT_DELAY if name == "nginx" else {})}
        self.replicas = [Replica(binary, MOCK, settings, folder / f"replica{number}.log") for number in (1, 2, 3)]
        self.proxy = Proxy(name, program, self.replicas, folder / "proxy")

    def __enter__(self):
        try:
            for replica in self.replicas:
                replica.start()
            for replica in self.replicas:
                replica.wait_until_ready()
            self.proxy.start()
            # The first checks of the proxy.
            time.sleep(2.5)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.proxy.close()
        for replica in self.replicas:
            replica.close()


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] * 1000 if ordered else float("nan")


def affinity(make_site, pictures, seconds):
    """Measures callers without and with the header, each with new replicas."""
    result = {}
    for name, with_header in (("without", False), ("with", True)):
        with make_site(f"affinity-{name}") as site:
            warm_up(site.proxy.port, pictures, with_header)
            log, stop = Log(), threading.Event()
            callers = [
                Caller(site.proxy.port, pictures, log, stop, affinity=with_header, seed=number) for number in range(24)
            ]
            for caller in callers:
                caller.start()
            time.sleep(seconds)
            began, before = time.monotonic(), cache_counts(site.replicas, "features")
            time.sleep(seconds)
            ended, after = time.monotonic(), cache_counts(site.replicas, "features")
            stop.set()
            for caller in callers:
                caller.join()
            done = log.between(began, ended)
            result[name] = {
                "hit_ratio": hit_ratio(before, after),
                "per_second": len(done) / (ended - began),
                "p50_ms": percentile([record.took for record in done], 0.5),
                "p99_ms": percentile([record.took for record in done], 0.99),
                "requests": len(log.records),
                "failures": failures(log.records),
            }
    return result


def failures(records):
    """Counts what went wrong, by what it was."""
    return dict(collections.Counter(f"{record.kind}: {record.outcome}" for record in records if record.outcome != "ok"))


def warm_up(port, pictures, with_header=True):
    """Asks once about each picture."""
    log, stop = Log(), threading.Event()
    callers = [Caller(port, pictures, log, stop, affinity=with_header) for _ in range(12)]
    share = lambda caller, number: [caller.act(picture) for picture in pictures[number :: len(callers)]]
    threads = [threading.Thread(target=share, args=pair) for pair in zip(callers, range(len(callers)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures(log.records), failures(log.records)


def start_load(port, pictures, others, stop):
    log = Log()
    callers = [Caller(port, pictures, log, stop, pause=0.2, seed=number) for number in range(8)]
    callers.append(IdCaller(port, pictures, log, stop, pause=0.2, seed=100))
    streamer = Streamer(port, pictures, log, stop, pause=0.5, seed=200)
    callers.append(streamer)
    bulks = [Bulk(port, first, others, stop) for first in (0, 1_000_000)]
    for thread in (*callers, *bulks):
        thread.start()
    return log, callers, bulks, streamer


def rolling(site, pictures, others, seconds):
    """Restarts each replica in turn under load."""
    stop = threading.Event()
    warm_up(site.proxy.port, pictures)
    log, callers, bulks, streamer = start_load(site.proxy.port, pictures, others, stop)
    time.sleep(seconds)
    begin = time.monotonic()
    time.sleep(seconds)
    roll = time.monotonic()
    exits, drains = [], []
    for replica in site.replicas:
        code, took = replica.drain()
        exits.append(code)
        drains.append(took)
        time.sleep(1)
        replica.start()
        replica.wait_until_ready()
        # The proxy must have noticed before the next replica leaves.
        time.sleep(3)
    rolled = time.monotonic()
    time.sleep(seconds)
    end = time.monotonic()
    stop.set()
    for thread in (*callers, *bulks):
        thread.join(60)
    phases = {"before": (begin, roll), "during": (roll, rolled), "after": (rolled, end)}
    return {
        "requests": len(log.records),
        "failures": failures(log.records),
        "kinds": dict(collections.Counter(record.kind for record in log.records)),
        "exit_codes": exits,
        "drain_seconds": drains,
        "roll_seconds": rolled - roll,
        "phases": {name: phase(log, *times) for name, times in phases.items()},
        "bunched_streams": streamer.bunched / max(streamer.read, 1),
        "bulk": bulk_result(bulks),
    }


def phase(log, begin, end):
    records = log.between(begin, end)
    calls = [record for record in records if record.kind in ("bytes", "id")]
    times = [record.took for record in calls if record.kind == "bytes"]
    ids = [record.kind for record in records if record.kind in ("id", "unknown id")]
    return {
        "requests": len(records),
        "failed": sum(record.outcome != "ok" for record in records),
        "p50_ms": percentile(times, 0.5),
        "p99_ms": percentile(times, 0.99),
        "hit_ratio": sum(record.saved for record in calls) / max(len(calls), 1),
        "unknown_ids": ids.count("unknown id") / max(len(ids), 1),
    }


def bulk_result(bulks):
    return {
        "lines": sum(bulk.sent for bulk in bulks),
        "answered": sum(len(bulk.answers) for bulk in bulks),
        "lost": sum(bulk.sent - len(bulk.answers) for bulk in bulks),
        "twice": sum(bulk.twice for bulk in bulks),
        "failed": sum(bulk.failed for bulk in bulks),
        "sent_again": sum(bulk.resent for bulk in bulks),
        "endings": dict(sum((bulk.endings for bulk in bulks), collections.Counter())),
        "answered_while_sending": all(bulk.answered_while_sending for bulk in bulks),
    }


def owners(site, ids, name):
    """Asks once with each id, and finds in the logs which replica answered."""
    connection = connect(site.proxy.port)
    for number, image in enumerate(ids):
        connection.request("GET", "/info", headers={"x-image-id": image, "x-request-id": f"{name}-{number}"})
        connection.getresponse().read()
    connection.close()
    time.sleep(0.5)
    found = {}
    for index, replica in enumerate(site.replicas):
        for request in replica.requests():
            if request["request_id"].startswith(f"{name}-"):
                found[int(request["request_id"].rsplit("-", 1)[1])] = index
    assert len(found) == len(ids), f"{len(ids) - len(found)} requests are in no log"
    return [found[number] for number in range(len(ids))]


def moved_keys(site, count=2000):
    """Finds which ids move when the second replica leaves, and when it is back."""
    chance = random.Random(1)
    ids = [f"sha256:{chance.randbytes(32).hex()}" for _ in range(count)]
    leaving = 1
    before = owners(site, ids, "before")
    put_back = site.proxy.take_out(site.replicas[leaving])
    site.replicas[leaving].drain()
    time.sleep(1)
    without = owners(site, ids, "without")
    site.replicas[leaving].start()
    site.replicas[leaving].wait_until_ready()
    put_back()
    time.sleep(3)
    back = owners(site, ids, "back")
    pairs = list(zip(before, without))
    return {
        "share_of_each": [before.count(index) / count for index in range(len(site.replicas))],
        "moved_from_leaving": sum(old == leaving and new != leaving for old, new in pairs) / count,
        "moved_from_others": sum(old != leaving and new != old for old, new in pairs),
        "not_back": sum(old != new for old, new in zip(before, back)),
    }


def crash(site, pictures, others, seconds):
    """Kills a replica under load, and starts it again."""
    stop = threading.Event()
    log, callers, bulks, _ = start_load(site.proxy.port, pictures, others, stop)
    time.sleep(seconds)
    site.replicas[0].kill()
    time.sleep(seconds)
    site.replicas[0].start()
    site.replicas[0].wait_until_ready()
    time.sleep(seconds)
    stop.set()
    for thread in (*callers, *bulks):
        thread.join(60)
    return {"requests": len(log.records), "failures": failures(log.records), "bulk": bulk_result(bulks)}


def client_addresses(site):
    """Returns the addresses that the replicas logged for calls about pictures."""
    requests = (request for replica in site.replicas for request in replica.requests())
    return sorted({request.get("client_ip") for request in requests if request.get("route") == "/vqa"})


def faults(result):
    """Lists what must not be."""
    found = []
    for name in ("without", "with"):
        if result["affinity"][name]["failures"]:
            found.append(f"requests {name} the header failed: {result['affinity'][name]['failures']}")
    gain = result["affinity"]["with"]["hit_ratio"] - result["affinity"]["without"]["hit_ratio"]
    if gain < 0.1:
        found.append(f"affinity raises the hit ratio by {gain:.2f} only")
    roll, bulk, keys = result["rolling"], result["rolling"]["bulk"], result["keys"]
    if roll["failures"]:
        found.append(f"requests failed in the rolling restart: {roll['failures']}")
    if any(roll["exit_codes"]):
        found.append(f"replicas ended with {roll['exit_codes']}")
    if bulk["lost"] or bulk["twice"] or bulk["failed"]:
        found.append(f"lines of /bulk: {bulk['lost']} lost, {bulk['twice']} answered twice, {bulk['failed']} failed")
    if not bulk["answered_while_sending"]:
        found.append("/bulk was buffered: no answer came while lines were sent")
    # On a machine that is busy with other things, the client itself may read some streams late.
    if roll["bunched_streams"] > 0.9:
        found.append(f"the events of {roll['bunched_streams']:.2f} of the streams came all at once")
    if keys["moved_from_others"] > ALLOWED_MOVES or keys["not_back"]:
        found.append(f"{keys['moved_from_others']} ids of other replicas moved, {keys['not_back']} did not come back")
    if result["client_addresses"] != [CLIENT]:
        found.append(f"the replicas saw clients at {result['client_addresses']}")
    return found


def show(result):
    """Prints the results of one proxy."""
    print(f"\n{result['version']}, load average {result['load_average'][0]:.1f} to {result['load_average'][1]:.1f}")
    for name in ("without", "with"):
        row = result["affinity"][name]
        print(
            f"  {name + ' x-image-id':<20} hit ratio {row['hit_ratio']:.3f}, {row['per_second']:.1f} answers/s, "
            f"p50 {row['p50_ms']:.0f} ms, p99 {row['p99_ms']:.0f} ms, "
            f"failed {sum(row['failures'].values())} of {row['requests']}"
        )
    roll = result["rolling"]
    for name, row in roll["phases"].items():
        print(
            f"  rolling, {name:<11} requests {row['requests']}, failed {row['failed']}, p50 {row['p50_ms']:.0f} ms, "
            f"p99 {row['p99_ms']:.0f} ms, hit ratio {row['hit_ratio']:.3f}, unknown ids {row['unknown_ids']:.3f}"
        )
    drains = ", ".join(f"{took:.1f}" for took in roll["drain_seconds"])
    print(f"  rolling, all         {roll['kinds']}, SIGTERM to exit {drains} s, exit codes {roll['exit_codes']}")
    print(f"  /bulk                {roll['bulk']}")
    keys = result["keys"]
    shares = ", ".join(f"{share:.3f}" for share in keys["share_of_each"])
    print(
        f"  keys                 shares {shares}; one replica leaves: moved {keys['moved_from_leaving']:.3f} of all, "
        f"{keys['moved_from_others']} of other replicas; not back {keys['not_back']}"
    )
    if "crash" in result:
        print(f"  SIGKILL              {result['crash']}")
    for fault in result["faults"]:
        print(f"  FAULT: {fault}")


def measure(binary, name, program, folder, options):
    pictures = [Picture(number) for number in range(options.pictures)]
    others = [Picture(1_000_000 + number) for number in range(options.pictures)]
    make_site = lambda part: Site(binary, name, program, folder / part, options.pictures)
    loads = [os.getloadavg()[0]]
    result = {"version": version(name, program), "affinity": affinity(make_site, pictures, options.seconds)}
    with make_site("rolling") as site:
        result["rolling"] = rolling(site, pictures, others, options.seconds)
        result["keys"] = moved_keys(site)
        result["client_addresses"] = client_addresses(site)
    if options.crash:
        with make_site("crash") as site:
            result["crash"] = crash(site, pictures, others, options.seconds)
    loads.append(os.getloadavg()[0])
    result["load_average"] = loads
    result["faults"] = faults(result)
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", type=lambda path: pathlib.Path(path).resolve(strict=True))
    parser.add_argument("--proxies", default="nginx,haproxy,envoy")
    parser.add_argument("--envoy", help="the program of Envoy")
    parser.add_argument("--seconds", type=float, default=20, help="length of each measurement, and of the load before it")
    parser.add_argument("--pictures", type=int, default=240)
    parser.add_argument("--crash", action="store_true")
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--keep", type=pathlib.Path, help="keep logs and configurations in this new folder")
    options = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or pathlib.Path(temporary)
        folder.mkdir(exist_ok=True)
        for name in options.proxies.split(","):
            program = find(name, options.envoy)
            if program is None:
                print(f"skipped: {name} is not installed")
                continue
            result = measure(options.binary, name, program, folder / name, options)
            show(result)
            results[name] = result
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    if any(result["faults"] for result in results.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
