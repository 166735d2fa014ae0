"""Runs the programs in docs/clients.md, docs/search.md and docs/scaling.md against a running server, and compares what they
print with the text below them.

    python snippets.py http://127.0.0.1:8080 PICTURE

PICTURE is demo/scenes/two-cats.png of a checkout; the pages are read from the same checkout. A comment before a
block of code says what to do with it:

    <!-- run: python -->          run it; the next block (text) is the expected output, in which ... stands for anything
    <!-- run: python, busy -->    the same, at a server that answers the first two requests with 429 and 504
    <!-- not run: REASON -->      leave it out
    <!-- dependencies: rust -->   a part of Cargo.toml for the programs in Rust

Python programs run with the interpreter that runs this script, programs for Node.js with the packages in `node_modules`
of the current folder. Pages run in Chromium with `browser.mjs`, at the origin in the environment variable ORIGIN, which
the server must allow. Languages whose tools are missing are skipped with a message.
"""

import http.client
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

SERVER = sys.argv[1].rstrip("/")
PICTURE = Path(sys.argv[2]).resolve()
CHECKOUT = PICTURE.parents[2]
PAGES = ["docs/clients.md", "docs/search.md", "docs/scaling.md"]

# Seconds for one program. Only the first build of the Rust program takes long.
TIMEOUT = 60
RUST_TIMEOUT = 1200
# Programs that run at the same time. They wait for the server most of the time.
WORKERS = 3

BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>[^\n]*?) -->\n+)?^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
PROGRAMS = {"sh", "bash", "python", "js", "html", "rust", "go"}
SUFFIXES = {"bash": "sh", "python": "py", "node": "mjs", "browser": "html", "go": "go"}


@dataclass
class Program:
    """A block of code that is run."""

    page: str
    language: str
    busy: bool
    code: str
    line: int
    expected: list[str]

    @property
    def name(self):
        return f"{self.page}:{self.line} ({self.language}{', busy' if self.busy else ''})"


class Broken(Exception):
    """A program failed, or the page cannot be used as it is."""


def read_page(page):
    """Returns the programs of a page, and the dependencies of those in Rust."""
    text = (CHECKOUT / page).read_text()
    blocks = list(BLOCK.finditer(text))
    programs, dependencies = [], ""
    for index, block in enumerate(blocks):
        mark, language = block["mark"] or "", block["language"]
        line = text.count("\n", 0, block.start("code"))
        kind, _, rest = mark.partition(": ")
        if kind == "dependencies":
            dependencies = block["code"]
        elif kind == "not run":
            print(f"SKIPPED: {page}:{line}: {rest}")
        elif kind == "run":
            name, *options = rest.split(", ")
            if options not in ([], ["busy"]):
                raise Broken(f"{page}:{line}: unknown option in: {mark}")
            following = blocks[index + 1] if index + 1 < len(blocks) else None
            if following is None or following["language"] != "text" or text[block.end() : following.start()].strip():
                raise Broken(f"{page}:{line}: no block `text` with the expected output follows")
            expected = following["code"].splitlines()
            programs.append(Program(page, name, bool(options), block["code"], line, expected))
        elif language in PROGRAMS:
            raise Broken(f"{page}:{line}: a program needs a comment `run` or `not run`")
    return programs, dependencies


def prepare(code, server):
    """Puts the address of the server and the path of the picture into a program."""
    code = code.replace("http://127.0.0.1:8080", server).replace("http://localhost:8080", server)
    code = code.replace("localhost:8080", server).replace("demo/scenes", str(PICTURE.parent))
    if "8080" in code:
        raise Broken("the program names a server in a way that cannot be replaced")
    return code


class BusyServer(ThreadingHTTPServer):
    """Answers the first request with 429 and the second with 504; forwards all others to the server."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), BusyHandler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.arrivals = []
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def arrive(self):
        """Counts a request, and returns its number."""
        with self.lock:
            self.arrivals.append(time.monotonic())
            return len(self.arrivals)

    def check(self):
        """Checks that the program repeated its request twice, and waited as long as the first answer said."""
        if len(self.arrivals) < 3:
            raise Broken(f"{len(self.arrivals)} requests instead of at least 3")
        if self.arrivals[1] - self.arrivals[0] < 0.9:
            raise Broken("the program did not wait for the seconds in retry-after")


class BusyHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        number = self.server.arrive()
        problem = b'{"code": "unexpected", "detail": "this answer is to be repeated"}'
        if number == 1:
            self.reply(429, {"content-type": "application/problem+json", "retry-after": "1"}, problem)
        elif number == 2:
            self.reply(504, {"content-type": "application/problem+json"}, problem)
        else:
            connection = http.client.HTTPConnection(urlsplit(SERVER).netloc, timeout=TIMEOUT)
            headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
            connection.request("POST", self.path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
            self.reply(answer.status, {"content-type": answer.headers["content-type"]}, content)

    def reply(self, status, headers, content):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


class Tools:
    """The languages that can be run here, with the command for each."""

    def __init__(self, dependencies, folder):
        self.folder = folder
        self.dependencies = dependencies
        self.commands = {"python": [sys.executable, "-X", "utf8"], "bash": ["bash", "-euo", "pipefail"]}
        self.missing = {}
        modules = Path("node_modules").resolve()
        if not shutil.which("node"):
            self.missing["node"] = "node is not installed"
        elif not (modules / "openai").is_dir():
            self.missing["node"] = "no package `openai` in node_modules (npm install)"
        else:
            self.commands["node"] = ["node"]
            # Modules are looked up from the folder of the program.
            (folder / "node_modules").symlink_to(modules)
        self.prepare_browser(modules)
        if shutil.which("go"):
            self.commands["go"] = ["go", "run"]
        else:
            self.missing["go"] = "go is not installed"
        if not shutil.which("cargo"):
            self.missing["rust"] = "cargo is not installed"
        else:
            self.prepare_cargo()

    def prepare_browser(self, modules):
        """Finds what pages need: Chromium, playwright-core, and an origin that the server allows."""
        if not Path(os.environ.get("CHROMIUM", "/usr/bin/chromium")).exists():
            self.missing["browser"] = "there is no Chromium"
        elif not (modules / "playwright-core").is_dir():
            self.missing["browser"] = "no package `playwright-core` in node_modules (npm install)"
        elif "ORIGIN" not in os.environ:
            self.missing["browser"] = "the environment variable ORIGIN is not set"
        else:
            self.commands["browser"] = ["node", str(Path("browser.mjs").resolve())]

    def prepare_cargo(self):
        """Makes a package of the program's dependencies, and downloads them."""
        package = self.folder / "rust"
        (package / "src").mkdir(parents=True)
        head = '[package]\nname = "snippet"\nedition = "2024"\n\n'
        (package / "Cargo.toml").write_text(head + self.dependencies)
        (package / "src" / "main.rs").write_text("fn main() {}\n")
        shutil.copy(CHECKOUT / "rust-toolchain.toml", package)
        fetched = subprocess.run(
            ["cargo", "fetch", "-q"], cwd=package, env=self.environment(), capture_output=True, text=True
        )
        if fetched.returncode == 0:
            self.commands["rust"] = ["cargo", "run", "-q"]
        else:
            self.missing["rust"] = f"its dependencies cannot be downloaded: {fetched.stderr.strip()[-200:]}"

    def environment(self):
        return os.environ | {
            "CARGO_TARGET_DIR": str(self.folder / "target"),
            "CARGO_PROFILE_DEV_DEBUG": "0",
            "GOCACHE": str(self.folder / "go-cache"),
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }

    def run(self, program, code):
        """Runs a program, and returns its exit status and its output."""
        command = self.commands[program.language]
        folder = self.folder / f"line-{program.line}"
        folder.mkdir()
        if program.language == "rust":
            folder = self.folder / "rust"
            (folder / "src" / "main.rs").write_text(code)
        else:
            file = folder / f"snippet.{SUFFIXES[program.language]}"
            file.write_text(code)
            command = [*command, str(file)]
        if program.language == "browser":
            command += [str(PICTURE), os.environ["ORIGIN"]]
        timeout = RUST_TIMEOUT if program.language == "rust" else TIMEOUT
        done = subprocess.run(
            command,
            cwd=folder,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
        return done.returncode, done.stdout


def matches(expected, output):
    """True if the expected line is part of the output; `...` stands for anything within the line."""
    pattern = ".*".join(re.escape(part) for part in expected.split("..."))
    return re.search(pattern, output) is not None


def check(program, tools):
    """Runs a program and compares its output. Returns how long that took, or raises `Broken`."""
    started = time.monotonic()
    busy = BusyServer() if program.busy else None
    output = ""
    try:
        status, output = tools.run(program, prepare(program.code, busy.url if busy else SERVER))
        if status != 0:
            raise Broken(f"exit status {status}")
        missing = [line for line in program.expected if not matches(line, output)]
        if missing:
            raise Broken("not in the output: " + "\n".join(missing))
        if busy:
            busy.check()
    except subprocess.TimeoutExpired as error:
        raise Broken(f"{program.name}: {error}") from error
    except Broken as error:
        raise Broken(f"{program.name}: {error}\n--- output:\n{output}") from error
    finally:
        if busy:
            busy.shutdown()
            busy.server_close()
    return time.monotonic() - started


def main():
    programs, dependencies = [], ""
    for page in PAGES:
        found, needed = read_page(page)
        if not found:
            raise Broken(f"no program to run in {page}")
        programs += found
        dependencies += needed
    with tempfile.TemporaryDirectory() as name:
        tools = Tools(dependencies, Path(name))
        unknown = {program.language for program in programs} - tools.commands.keys() - tools.missing.keys()
        if unknown:
            raise Broken(f"unknown languages: {unknown}")
        for language, reason in tools.missing.items():
            count = sum(program.language == language for program in programs)
            if count:
                print(f"SKIPPED: {count} programs ({language}): {reason}")
        # The build of the Rust program takes all cores, so it comes last and alone.
        runnable = [program for program in programs if program.language in tools.commands]
        failures = []
        for rust in [False, True]:
            with ThreadPoolExecutor(WORKERS) as pool:
                chosen = [program for program in runnable if (program.language == "rust") == rust]
                tasks = [(program, pool.submit(check, program, tools)) for program in chosen]
                for program, task in tasks:
                    try:
                        print(f"{program.name}: as expected, {task.result():.1f} s", flush=True)
                    except Broken as error:
                        failures.append(program.name)
                        print(f"FAILED: {error}", flush=True)
    if failures:
        raise Broken(f"{len(failures)} of {len(runnable)} programs failed: {', '.join(failures)}")
    print(f"{' and '.join(PAGES)}: {len(runnable)} of {len(programs)} programs run, all print what the pages say")


if __name__ == "__main__":
    try:
        main()
    except Broken as error:
        sys.exit(f"snippets.py: {error}")
