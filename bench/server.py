"""The server under load: 8 at once against one alone, guessing ahead, and minutes of clients that come and go.

    python -m bench.server OUT [--against FILE.gguf|URL] [--minutes 10 --clients 64] [--only throughput,guesses,load]

Run it from the repository's root with nothing else running. The server is a process of its own, clients are threads of
this one. --against: a GGUF of as many bits (`paretobit export OUT --to gguf --lossy` makes one), for which llama.cpp's
own server is built once and run with as many slots and threads as ours, or any other OpenAI-compatible server of the
same machine; it takes turns with ours, and both stay loaded. Under load every finished answer is compared with the one
that the same model gives alone, a fifth of the clients leave in the middle, a tenth send nonsense, and memory is
watched.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import random
import re
import socket
import statistics
import subprocess
import sys
import threading
import time
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import accumulate
from tempfile import TemporaryFile
from urllib.parse import urlsplit

import httpx

import paretobit as pb
from bench.peers.llama_tools import SERVER, tools
from paretobit import hardware
from paretobit.evals.memory import resident
from paretobit.runtime.sampler import Sampling

SLOTS, TOKENS, CONTEXT = 8, 128, 1024
EVENT = b"data: {"
PROMPTS = 1000  # different ones under load: each is answered alone too, which takes longer than together
SHARE, RIVAL, FLAT = 0.7, 1.2, 0.05
PARTS = ("throughput", "guesses", "load")
SUBJECTS = (
    "rivers",
    "ships",
    "bread",
    "the moon",
    "old towns",
    "glass",
    "winter",
    "clocks",
    "salt",
    "maps",
    "bees",
    "rope",
)
CODE = "def area(width, height):\n    return width * height\n\n\ndef volume(width, height, depth):\n"


@contextmanager
def serving(out: str, *options: str) -> Iterator[tuple[str, int]]:
    """(address, process) of a server of its own."""
    command = [sys.executable, "-m", "paretobit", "serve", out, "--port", "0", "--parallel", str(SLOTS), *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            for line in process.stderr:
                if found := re.match(r"ready: .* at (\S+)", line):
                    yield found[1], process.pid
                    break
            else:
                raise SystemExit("the server did not start")
        finally:
            process.terminate()
            process.communicate()


@contextmanager
def rival_server(against: str | None) -> Iterator[str | None]:
    """The other server's address. One for a GGUF file runs until the end."""
    if against is None or not against.endswith(".gguf"):
        yield against
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(tools([SERVER])[SERVER]), "--model", against, "--port", str(port), "--parallel", str(SLOTS)]
    command += ["--threads", str(hardware.cores()), "--ctx-size", str(SLOTS * CONTEXT)]
    with TemporaryFile() as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            while process.poll() is None:
                with suppress(httpx.TransportError):
                    if httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                        break
                time.sleep(0.2)
            else:
                log.seek(0)
                raise SystemExit(f"{SERVER} did not start: {log.read()[-500:].decode(errors='replace')}")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


@dataclass
class Spoken:
    """An answer as it came. gaps: seconds between its pieces."""

    text: str = ""
    tokens: int = 0
    first: float = 0.0
    last: float = 0.0
    gaps: list[float] = field(default_factory=list)


def stream(url: str, body: dict[str, object], leave_after: int = 0) -> Spoken:
    """One completion, streamed. leave_after: so many pieces, then the connection is cut.

    Over a bare socket, and taken apart when it is over: what a client does while it listens it takes from the server,
    whose cores it shares.
    """
    asked = {"temperature": 0, "stream": True, "stream_options": {"include_usage": True}, **body}
    where, content = urlsplit(url), json.dumps(asked).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: {where.netloc}\r\ncontent-type: application/json\r\n"
    head += f"connection: close\r\ncontent-length: {len(content)}\r\n\r\n"
    came: list[tuple[float, bytes]] = []
    with socket.create_connection((where.hostname, where.port or 80), timeout=600) as raw:
        raw.sendall(head.encode() + content)
        pieces = 0
        while part := raw.recv(1 << 16):
            came.append((time.perf_counter(), part))
            pieces += part.count(EVENT)
            if leave_after and pieces > leave_after:
                break
    whole = b"".join(part for _, part in came)
    answer = http.client.HTTPResponse(Recorded(whole))  # type: ignore[arg-type]
    answer.begin()
    if answer.status != 200:
        raise Refused(answer.status, answer.read().decode())
    if leave_after:
        return Spoken()
    ends = list(accumulate(len(part) for _, part in came))
    times = [came[bisect_right(ends, found.start())][0] for found in re.finditer(re.escape(EVENT), whole)]
    return spoken_of(answer.read(), times)


class Recorded(io.BytesIO):
    """What a socket gave, for http.client."""

    def makefile(self, mode: str) -> io.BytesIO:
        return self


class Refused(Exception):
    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status = status


def spoken_of(body: bytes, times: Sequence[float]) -> Spoken:
    """What all events of an answer say, each at the time at which it began to come."""
    lines = [line for line in body.decode().splitlines() if line.startswith(EVENT.decode())]
    spoken = Spoken()
    for now, line in zip(times, lines, strict=True):
        chunk = json.loads(line[6:])
        if chunk.get("usage"):
            spoken.tokens = chunk["usage"]["completion_tokens"]
        if chunk["choices"] and chunk["choices"][0].get("text"):
            spoken.text += chunk["choices"][0]["text"]
            if spoken.first:
                spoken.gaps.append(now - spoken.last)
            spoken.first, spoken.last = spoken.first or now, now
    return spoken


def together(url: str, count: int) -> tuple[float, list[float]]:
    """(tokens a second of `count` streams at once, seconds between tokens)."""
    spoken: list[Spoken] = []

    def one(at: int) -> None:
        prompt = f"{at} {SUBJECTS[at % len(SUBJECTS)]}: "
        spoken.append(stream(url, {"prompt": prompt, "max_tokens": TOKENS}))

    threads = [threading.Thread(target=one, args=(at,)) for at in range(count)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - start
    return sum(each.tokens for each in spoken) / seconds, [gap for each in spoken for gap in each.gaps]


def prefill(url: str) -> float:
    """Tokens of a prompt a second, none of which the server knows."""
    text = f"{random.random()} " + " ".join(random.choice(SUBJECTS) for _ in range(600))
    start = time.perf_counter()
    answer = httpx.post(f"{url}/v1/completions", json={"prompt": text, "max_tokens": 1, "temperature": 0}, timeout=600)
    return answer.json()["usage"]["prompt_tokens"] / (time.perf_counter() - start)


def throughput(out: str, rival: str | None, rounds: int) -> None:
    ones, eights, prompts, rivals, gaps = [], [], [], [], []
    with serving(out, "--no-speculate") as (url, _):
        for each in filter(None, (url, rival)):
            together(each, 1)
        for _ in range(rounds):
            ones.append(together(url, 1)[0])
            prompts.append(prefill(url))
            total, between = together(url, SLOTS)
            eights.append(total)
            gaps += between
            if rival is not None:
                rivals.append(together(rival, SLOTS)[0])
    one, eight, prompt = map(statistics.median, (ones, eights, prompts))
    limit = min(SLOTS * one, prompt)
    print(f"one stream {one:.1f} tokens/s, {SLOTS} streams {eight:.1f}, prefill {prompt:.1f}")
    line(f"{SLOTS} streams / min({SLOTS} x one, prefill)", eight / limit, SHARE)
    print(f"p95 between tokens, {SLOTS} streams: {1e3 * quantile(gaps, 0.95):.1f} ms")
    if rivals:
        ratios = [ours / theirs for ours, theirs in zip(eights, rivals, strict=True)]
        print(f"the other server {statistics.median(rivals):.1f}; ratios {', '.join(f'{r:.2f}' for r in ratios)}")
        line(f"{SLOTS} streams / the other server's", statistics.median(ratios), RIVAL)


def guesses(out: str, draft: str | None, rounds: int) -> None:
    """Code, which repeats itself, with and without guesses; the texts are the same."""
    kinds = {"none": ("--no-speculate",), "lookup": ()}
    if draft is not None:
        kinds["draft"] = ("--draft", draft)
    speeds: dict[str, list[float]] = {kind: [] for kind in kinds}
    texts = set()
    for kind, options in kinds.items():
        with serving(out, *options) as (url, _):
            for _ in range(rounds):
                spoken = stream(url, {"prompt": CODE * 3, "max_tokens": TOKENS})
                speeds[kind].append((spoken.tokens - 1) / (spoken.last - spoken.first))
                texts.add(spoken.text)
    assert len(texts) == 1, "guesses changed a text"
    base = statistics.median(speeds["none"])
    for kind, found in speeds.items():
        print(
            f"guesses: {kind:6} {statistics.median(found):.1f} tokens/s, {statistics.median(found) / base:.2f} of none"
        )


def some_prompt(number: int) -> str:
    chance = random.Random(number)
    return " ".join(chance.choices(SUBJECTS, k=chance.randrange(1, 60)))


class Load:
    """Clients that come, go and send nonsense, until the time is over."""

    def __init__(self, out: str, url: str, minutes: float, clients: int) -> None:
        self._model, self._url, self._end = pb.load(out), url, time.monotonic() + 60 * minutes
        self._clients = clients
        self._lock, self._alone = threading.Lock(), {}
        self.answers: list[tuple[str, int, str]] = []
        self.gaps: list[float] = []
        self.counts = dict.fromkeys(("finished", "left", "nonsense", "busy"), 0)

    def run(self) -> None:
        threads = [threading.Thread(target=self._client, args=(seed,)) for seed in range(self._clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def check(self) -> int:
        """How many finished answers are not what the model says alone."""
        wrong = 0
        for prompt, most, text in self.answers:
            if (prompt, most) not in self._alone:
                self._alone[prompt, most] = self._model.stream(prompt, Sampling(), most).read()
            wrong += self._alone[prompt, most] != text
        return wrong

    def _client(self, seed: int) -> None:
        chance = random.Random(seed)
        while time.monotonic() < self._end:
            time.sleep(chance.expovariate(2))
            kind = chance.random()
            prompt = some_prompt(chance.randrange(PROMPTS))
            most = chance.choice((8, 32, 64))
            try:
                if kind < 0.1:
                    body = bytes(chance.choices(b'{}[]":,abc0', k=chance.randrange(200)))
                    kinds = {"content-type": "application/json"}
                    status = httpx.post(f"{self._url}/v1/completions", content=body, headers=kinds).status_code
                    assert status == 400, status
                    self._count("nonsense")
                elif kind < 0.3:
                    stream(self._url, {"prompt": prompt, "max_tokens": 64}, leave_after=chance.randrange(1, 10))
                    self._count("left")
                else:
                    spoken = stream(self._url, {"prompt": prompt, "max_tokens": most})
                    with self._lock:
                        self.answers.append((prompt, most, spoken.text))
                        self.gaps += spoken.gaps
                    self._count("finished")
            except Refused as why:
                assert why.status == 429, why
                self._count("busy")

    def _count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1


def load(out: str, minutes: float, clients: int) -> None:
    with serving(out, "--queue", str(2 * clients), "--cache-mb", "64") as (url, pid):
        Load(out, url, min(minutes / 3, 2), clients).run()  # until caches and pools have their size
        before = resident(pid)
        work = Load(out, url, minutes, clients)
        work.run()
        after = resident(pid)
    print(f"{clients} clients, {minutes:g} minutes: {work.counts}")
    print(f"p95 between tokens: {1e3 * quantile(work.gaps, 0.95):.1f} ms")
    if before is not None and after is not None:
        grown = after.own / before.own - 1
        kept = "met" if grown <= FLAT else "missed"
        print(f"memory {before.own / 1e6:.0f} -> {after.own / 1e6:.0f} MB, {grown:+.1%} {kept}")
    wrong = work.check()
    print(f"answers that differ from those given alone: {wrong} of {len(work.answers)} {'missed' if wrong else 'met'}")


def line(what: str, found: float, wanted: float) -> None:
    print(f"{what}: {found:.2f} (wanted {wanted}) {'met' if found >= wanted else 'missed'}")


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[int(share * (len(values) - 1))] if values else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--against", help="a GGUF file, or the address of another server, without /v1")
    parser.add_argument("--draft", help="a smaller packed model of the same kind")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    given = parser.parse_args()
    print(f"{hardware.cpu_name()}, {hardware.cores()} cores, {hardware.isa()}")
    parts = given.only.split(",")
    if "throughput" in parts:
        with rival_server(given.against) as url:
            throughput(given.out, url, given.rounds)
    if "guesses" in parts:
        guesses(given.out, given.draft, given.rounds)
    if "load" in parts:
        load(given.out, given.minutes, given.clients)


if __name__ == "__main__":
    main()
