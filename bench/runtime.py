"""The runtime's speed and memory against what it promises: one line a promise, met or missed.

    python -m bench.runtime [--big FOLDER] [--peer PYTHON] [--rounds 5] [--only decode,memory,start,install]
                            [--scheme w2t ...]

Run it from the repository's root, with paretobit[compress] installed and nothing else running. Speed is compared with
llama.cpp and with the read bandwidth, in turns (bench/peers/llama_cpp.py); memory and start-up with a Python process
that imports numpy and loads the tokenizer. --big is the random llama of 1.07 billion parameters that
bench/make_model.py makes, by default in the cache folder.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.install_size import LIMIT, wheels
from bench.peers.llama_cpp import RIVALS, Match, Turns, bandwidths, match, packed, peer_python, table
from paretobit import hardware, open_model
from paretobit.artifact import Artifact
from paretobit.evals.latency import alternate, first_output_s, token_ids
from paretobit.evals.memory import Resident, watch
from paretobit.runtime.session import Session
from paretobit.runtime.tokenizer import Tokenizer
from paretobit.scheme import parse
from paretobit.speed import Spread
from paretobit.verbs.bench import PROMPT, run_command
from paretobit.work import cache_folder

SMALL = "demo:smollm2"
SHARES = {"w8": 0.85, "w4g64": 0.85, "w3g64": 0.75, "w2g64": 0.75, "w2": 0.75, "w1.58": 0.75, "w3t": 0.55, "w2t": 0.6}
DECODE = {"Q8_0": 1.0, "Q4_0": 1.1, "Q2_K": 1.5, "TQ2_0": 1.3}
# What a trellis' decoding is promised against; the last two are our own plain grids.
TRELLIS = {"Q3_K_S": 1.0, "Q2_K": 1.3, "TQ2_0": 1.0, "w2": 0.8, "w3": 0.8}
AVX512_SHARES, AVX512_TRELLIS = {"w2t": 0.65}, {"TQ2_0": 1.5}
SMALL_DECODE, PREFILL = 1.3, 1.2
BESIDE_FILE, OUR_CODE = 110e6, 25e6  # bytes
START, START_ABOVE = 0.5, 0.15  # seconds
PARTS = ("decode", "memory", "start", "install")
# What any Python program that speaks to a model in tokens has to do.
BARE = (
    "import sys, time, numpy; from tokenizers import Tokenizer; Tokenizer.from_file(sys.argv[1]); "
    "print(1, flush=True); time.sleep(float(sys.argv[2]))"
)


@dataclass(frozen=True)
class Line:
    """A promise: `found` against `wanted`, at least or at most; or, without `wanted`, only what was found."""

    what: str
    found: str
    wanted: str = ""
    met: bool = False

    def __str__(self) -> str:
        if not self.wanted:
            return f"found  {self.what}: {self.found}"
        return f"{'met   ' if self.met else 'MISSED'} {self.what}: {self.found}, wanted {self.wanted}"


def at_least(what: str, found: Spread, wanted: float, unit: str = "×") -> Line:
    if unit == "%":
        percent = Spread(*(100 * value for value in (found.median, found.least, found.most)), found.n)
        return Line(what, f"{percent.text(0)} %", f"≥ {100 * wanted:.0f} %", found.median >= wanted)
    return Line(what, f"{found.text(2)} {unit}", f"≥ {wanted:g} {unit}", found.median >= wanted)


def big_lines(found: Match, scheme: str) -> Iterator[Line]:
    """Of the 1.07B model: share of the bandwidth, decoding and prefill against the peer."""
    where = f"{scheme}, {found.threads} threads, {found.model}"
    shares, ratios = SHARES, DECODE
    if is_trellis(scheme):
        ratios = TRELLIS
        if hardware.isa().startswith("avx512"):
            shares, ratios = SHARES | AVX512_SHARES, TRELLIS | AVX512_TRELLIS
    yield at_least(f"share of the read bandwidth, {where}", found.ours.share, shares[scheme], "%")
    for rival in found.theirs:
        if (wanted := ratios.get(kind(rival))) is not None:
            yield at_least(f"decode ÷ {rival.name}, {where}", found.decode_ratio(rival), wanted)
    yield prefill_line(found, where)


def small_lines(found: Match, scheme: str) -> Iterator[Line]:
    """Of SmolLM2: against the peer's best type of the same bits."""
    where, best = f"{scheme}, {found.threads} threads, {found.model}", found.best()
    yield at_least(f"decode ÷ {best.name}, {where}", found.decode_ratio(best), SMALL_DECODE)
    yield prefill_line(found, where)


def prefill_line(found: Match, where: str) -> Line:
    best = max(found.peers, key=lambda turns: turns.prefill.median)
    return at_least(f"prefill {best.prompt} ÷ {best.name}, {where}", found.prefill_ratio(best), PREFILL)


def is_trellis(scheme: str) -> bool:
    return parse(scheme).weight.kind == "trellis"


def kind(turns: Turns) -> str:
    return turns.name.rpartition(" ")[2]


def bare(artifact: Artifact, seconds: float) -> list[str]:
    return [sys.executable, "-c", BARE, str(artifact.folder / "tokenizer.json"), str(seconds)]


def memory_lines(artifact: Artifact, tokens: int) -> Iterator[Line]:
    """Resident memory of `paretobit run` against file, cache and a bare Python process."""
    found, other = watch(run_command(artifact, hardware.cores(), tokens)), watch(bare(artifact, 0.2))
    if found is None or other is None:
        print("this system does not tell how much memory a process holds", file=sys.stderr)
        return
    yield from judge_memory(artifact.name, found, other, artifact.size_bytes, kv_bytes(artifact, tokens))


def judge_memory(name: str, found: Resident, other: Resident, size: int, cache: int) -> Iterator[Line]:
    allowed, adds = size + cache + BESIDE_FILE, found.total - other.total - size - cache
    parts = f"file {size / 1e6:.1f} + cache {cache / 1e6:.1f} + {BESIDE_FILE / 1e6:.0f} MB"
    total = f"{found.total / 1e6:.1f} MB"
    yield Line(f"resident while decoding {name}", total, f"≤ {allowed / 1e6:.1f} MB ({parts})", found.total <= allowed)
    beside = f"{adds / 1e6:.1f} MB above {other.total / 1e6:.1f} of Python, numpy and the tokenizer"
    yield Line(f"what our code adds, {name}", beside, f"≤ {OUR_CODE / 1e6:.0f} MB", adds <= OUR_CODE)


def kv_bytes(artifact: Artifact, tokens: int) -> int:
    """Of the key-value cache of that command at its end."""
    session = Session(artifact, threads=1)
    count = len(Tokenizer(artifact.companions).encode(PROMPT)) + tokens
    session.feed(session.open(), token_ids(artifact.arch.vocab, count))
    return session.kv_bytes


def start_lines(artifact: Artifact, rounds: int) -> Iterator[Line]:
    """Seconds from process start to first token, taking turns with a bare Python process."""
    ours, others = (run_command(artifact, hardware.cores(), 1), bare(artifact, 0))
    found, other = alternate([lambda: first_output_s(ours), lambda: first_output_s(others)], rounds)
    yield judge_start(artifact.name, Spread.of(found), START, "process start to first token")
    above = Spread.of(a - b for a, b in zip(found, other, strict=True))
    yield judge_start(artifact.name, above, START_ABOVE, f"of it above Python, numpy, tokenizer ({median(other)} s)")


def judge_start(name: str, found: Spread, wanted: float, what: str) -> Line:
    return Line(f"{what}, {name}", f"{found.text(3)} s", f"≤ {wanted:g} s", found.median <= wanted)


def median(values: list[float]) -> str:
    return f"{Spread.of(values).median:.3f}"


def install_line() -> Line:
    total = sum(wheels().values())
    return Line("download of a base install", f"{total / 1e6:.1f} MB", f"< {LIMIT / 1e6:.0f} MB", total < LIMIT)


def big_model(given: str | None) -> str:
    """The folder of the random 1.07B llama, made if need be."""
    folder = Path(given) if given else cache_folder() / "random1b"
    if not (folder / "model.safetensors").exists():
        subprocess.run([sys.executable, "-m", "bench.make_model", str(folder)], check=True, stdout=sys.stderr)
    return str(folder)


def speed_lines(given: argparse.Namespace, matches: list[Match]) -> Iterator[Line]:
    python, big = peer_python(given.peer), big_model(given.big)
    schemes = given.scheme or RIVALS
    for scheme in schemes:
        matches.append(match(big, scheme, python, hardware.cores(), rounds=given.rounds))
        yield from big_lines(matches[-1], scheme)
    for scheme in schemes:
        if is_trellis(scheme):  # promised of the large model alone
            continue
        for threads in dict.fromkeys((1, hardware.cores())):
            matches.append(match(SMALL, scheme, python, threads, rounds=given.rounds))
            yield from small_lines(matches[-1], scheme)


def lines(given: argparse.Namespace, matches: list[Match]) -> Iterator[Line]:
    parts = given.only.split(",")
    if "decode" in parts:
        yield from speed_lines(given, matches)
    for scheme in ("w8", "w4g64", "w3g64"):
        if {"memory", "start"} & set(parts):
            artifact = packed(SMALL, open_model(SMALL), scheme)
        if "memory" in parts:
            yield from memory_lines(artifact, 128)
        if "start" in parts:
            yield from start_lines(artifact, 2 * given.rounds)
    if "install" in parts:
        yield install_line()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scheme", action="append", choices=RIVALS, help="of decoding; may be repeated (default: all)")
    parser.add_argument("--big", help="folder of the random 1.07B llama (default: made in the cache folder)")
    parser.add_argument("--peer", help="interpreter that has llama-cpp-python (default: installed into the cache)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    given = parser.parse_args()
    if odd := set(given.only.split(",")) - set(PARTS):
        parser.error(f"--only {','.join(sorted(odd))}: choose from {','.join(PARTS)}")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    print(
        f"{hardware.cpu_name()}, {hardware.cores()} cores, {hardware.isa()}; medians of {given.rounds} rounds (range)"
    )
    matches: list[Match] = []
    found = []
    for line in lines(given, matches):
        found.append(line)
        print(line, flush=True)
    if matches:
        print(f"\n{bandwidths(matches)}\n\n{table(matches)}")
    print(f"\n{sum(line.met for line in found)} of {len(found)} met")


if __name__ == "__main__":
    main()
