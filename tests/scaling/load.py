"""Clients: callers that ask questions about pictures, a caller that sends ids, a reader of event streams, and a bulk client
that sends lines again until each has an answer."""

import base64
import collections
import contextlib
import hashlib
import http.client
import itertools
import json
import random
import socket
import struct
import threading
import time
import urllib.parse
import zlib
from typing import NamedTuple

from replicas import HOST

# The proxies connect to the replicas from 127.0.0.1, so a replica that sees this address got it from x-forwarded-for.
CLIENT = "127.0.0.2"
QUESTIONS = ["how many cats are there?", "what is on the left?", "what colour is the dog?", "is it raining?"]
PATIENCE = 60
BULK_HEAD = (
    b"POST /bulk HTTP/1.1\r\nhost: blip\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n"
)


class Picture:
    """A PNG of random pixels, about 90 KB as a JPEG of 640 x 480, and its id."""

    def __init__(self, number, width=200, height=150):
        noise = random.Random(number)
        rows = b"".join(b"\0" + noise.randbytes(3 * width) for _ in range(height))
        header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows, 0)), (b"IEND", b"")]
        self.bytes = b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
        )
        self.id = "sha256:" + hashlib.sha256(self.bytes).hexdigest()


def zipf(count, exponent=0.8):
    """Weights of the pictures: the first is asked for most often."""
    return [1 / rank**exponent for rank in range(1, count + 1)]


def connect(port):
    return http.client.HTTPConnection(HOST, port, timeout=PATIENCE, source_address=(CLIENT, 0))


class Record(NamedTuple):
    """What a client saw of one request."""

    began: float
    took: float
    kind: str
    # `ok`, a status, or what else went wrong.
    outcome: object
    # True if no replica had to encode the picture.
    saved: bool


class Log:
    """The records of all requests, and the answers so far."""

    def __init__(self):
        self.records = []
        self.answers = {}
        self.lock = threading.Lock()

    def add(self, kind, began, outcome, timing=""):
        record = Record(began, time.monotonic() - began, kind, outcome, "vision;dur=0.000" in timing)
        with self.lock:
            self.records.append(record)

    def check(self, key, answer):
        """Remembers the first answer to a question about a picture. Returns `ok` if this one is equal."""
        with self.lock:
            return "ok" if self.answers.setdefault(key, answer) == answer else "another answer"

    def between(self, begin, end):
        return [record for record in self.records if begin <= record.began < end]


class Caller(threading.Thread):
    """Asks one question after the other on one connection, at most one per `pause` seconds."""

    def __init__(self, port, pictures, log, stop, *, affinity=True, pause=0.0, seed=0):
        super().__init__(daemon=True)
        self.port, self.pictures, self.log, self.stop = port, pictures, log, stop
        self.affinity, self.pause, self.chance = affinity, pause, random.Random(seed)
        self.weights = list(itertools.accumulate(zipf(len(pictures))))
        self.connection = None

    def run(self):
        while not self.stop.is_set():
            began = time.monotonic()
            picture = self.chance.choices(self.pictures, cum_weights=self.weights)[0]
            self.act(picture)
            time.sleep(max(self.pause - (time.monotonic() - began), 0))

    def act(self, picture):
        self.ask(picture, self.chance.choice(QUESTIONS))

    def post(self, path, body, headers):
        """Returns status, body and `server-timing`. A broken connection is replaced before the next call, but no call is
        repeated."""
        if self.connection is None:
            self.connection = connect(self.port)
        try:
            self.connection.request("POST", path, body, headers)
            answer = self.connection.getresponse()
            return answer.status, answer.read(), answer.getheader("server-timing", "")
        except (OSError, http.client.HTTPException) as error:
            self.connection.close()
            self.connection = None
            return type(error).__name__, b"", ""

    def headers(self, picture, more):
        # The replica must not believe what a client says about its address.
        route = {"x-image-id": picture.id} if self.affinity else {}
        return {"x-forwarded-for": "6.6.6.6", **route, **more}

    def ask(self, picture, question):
        query = urllib.parse.urlencode({"question": question, "max_new_tokens": 2})
        began = time.monotonic()
        headers = self.headers(picture, {"content-type": "image/png"})
        status, body, timing = self.post(f"/vqa?{query}", picture.bytes, headers)
        self.log.add("bytes", began, self.judge(picture, question, status, body), timing)

    def judge(self, picture, question, status, body):
        if status != 200:
            return status
        answer = json.loads(body)
        if answer["image"]["id"] != picture.id:
            return "another picture"
        return self.log.check((picture.id, question), answer["answers"][0]["answer"])


class IdCaller(Caller):
    """Sends the id of a picture in place of the picture, and the picture if the replica does not know it (404)."""

    def act(self, picture):
        question = self.chance.choice(QUESTIONS)
        body = json.dumps({"image": picture.id, "question": question, "max_new_tokens": 2})
        began = time.monotonic()
        status, answer, timing = self.post("/vqa", body, self.headers(picture, {"content-type": "application/json"}))
        if status == 404 and json.loads(answer)["code"] == "image_not_found":
            self.log.add("unknown id", began, "ok")
            self.ask(picture, question)
        else:
            self.log.add("id", began, self.judge(picture, question, status, answer), timing)


class Streamer(Caller):
    """Reads captions as event streams, and counts those whose events did not arrive one by one."""

    read = bunched = 0

    def act(self, picture):
        began = time.monotonic()
        self.log.add("stream", began, self.read_stream(picture))

    def read_stream(self, picture):
        connection = connect(self.port)
        try:
            headers = self.headers(picture, {"content-type": "image/png"})
            connection.request("POST", "/caption?stream=true", picture.bytes, headers)
            answer = connection.getresponse()
            if answer.status != 200:
                return answer.status
            times, last = [], b""
            while line := answer.readline():
                if line.startswith(b"event:"):
                    times.append(time.monotonic())
                    last = line.split(b":")[1].strip()
            if last != b"done":
                return f"the stream ended with {last.decode() or 'nothing'}"
            # The models write a token every 5 ms.
            apart = sum(later - earlier > 0.002 for earlier, later in itertools.pairwise(times))
            self.read += 1
            self.bunched += apart < len(times) / 3
            return "ok"
        except (OSError, http.client.HTTPException) as error:
            return type(error).__name__
        finally:
            connection.close()


class Bulk(threading.Thread):
    """Keeps one request to /bulk open and sends a dozen caption lines every four seconds, so that there are often lines
    without an answer. If a request ends early, it sends these in another request, as a client should. Ends after `stop` is
    set, once all lines have answers."""

    BURST, PAUSE = 12, 4

    def __init__(self, port, first, pictures, stop):
        super().__init__(daemon=True)
        self.port, self.stop = port, stop
        self.numbers = itertools.count(first)
        self.pictures = pictures
        self.waiting = set()
        self.answers = {}
        self.sent = self.twice = self.failed = self.resent = 0
        self.endings = collections.Counter()
        self.answered_while_sending = False

    def line(self, number):
        picture = self.pictures[number % len(self.pictures)]
        image = base64.b64encode(picture.bytes).decode()
        return json.dumps({"id": number, "task": "caption", "image": image, "max_new_tokens": 2}).encode() + b"\n"

    def run(self):
        again = []
        while not self.stop.is_set() or self.waiting:
            ending = self.exchange(again)
            self.endings[ending] += 1
            again = sorted(self.waiting)
            self.resent += len(again)
            if ending != "complete":
                time.sleep(0.2)

    def exchange(self, again):
        """Makes one request. Returns how it ended."""
        # http.client would close its socket while lines are still to be sent, so only its parser is used here.
        connection = socket.create_connection((HOST, self.port), PATIENCE, (CLIENT, 0))
        ended = threading.Event()
        writer = threading.Thread(target=self.write, args=(connection, again, ended), daemon=True)
        writer.start()
        try:
            answer = http.client.HTTPResponse(connection, method="POST")
            answer.begin()
            if answer.status != 200:
                return f"status {answer.status}"
            while line := answer.readline():
                fields = json.loads(line)
                if "done" in fields:
                    return (fields.get("error") or {}).get("code", "complete")
                self.take(fields)
                self.answered_while_sending |= writer.is_alive()
            return "cut off"
        except (OSError, http.client.HTTPException, ValueError) as error:
            return type(error).__name__
        finally:
            ended.set()
            with contextlib.suppress(OSError):
                # Wakes a writer that waits for the proxy to read.
                connection.shutdown(socket.SHUT_RDWR)
            writer.join()
            connection.close()

    def write(self, connection, again, ended):
        try:
            connection.sendall(BULK_HEAD)
            for number in again:
                self.send(connection, self.line(number))
            while not self.stop.is_set() and not ended.is_set():
                for number in itertools.islice(self.numbers, self.BURST):
                    self.waiting.add(number)
                    self.sent += 1
                    self.send(connection, self.line(number))
                ended.wait(self.PAUSE)
            if not ended.is_set():
                connection.sendall(b"0\r\n\r\n")
        except OSError:
            # The request has ended. The answers tell what is missing.
            pass

    def send(self, connection, data):
        connection.sendall(b"%x\r\n%b\r\n" % (len(data), data))

    def take(self, fields):
        number = fields["id"]
        self.twice += number in self.answers
        self.failed += fields["status"] != 200
        self.answers[number] = fields["status"]
        self.waiting.discard(number)
