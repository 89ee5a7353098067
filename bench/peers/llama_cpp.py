"""paretobit beside llama.cpp: the same weights, decoding and prefill taking turns in one run.

    python -m bench.peers.llama_cpp [--model demo:smollm2 ...] [--scheme w4g64 ...] [--type Q4_0 ...] [--threads 1,2]
                                    [--rounds 5] [--tokens 64] [--prompt 256] [--peer PYTHON] [--json]

Run it from the repository's root, with paretobit[compress] installed. Ours are packed models rounded to nearest; theirs
are GGUF files that llama.cpp quantizes from the same weights, exported in fp16; an exported file must give the logits
of the original. Both are kept in the cache folder. The peer is PyPI's llama-cpp-python, driven through its low-level
API, a process for each file; without --peer it is installed into a virtual environment in the cache folder, once (pip
compiles it: some 7 minutes on 2 cores).

Every round measures, for each contestant in turn and in rotating order: the read bandwidth of as many threads, a prompt
of --prompt tokens, and --tokens tokens one by one after a prompt of 8. Ratios are of turns in the same round. "share"
is bytes of weights a token times tokens/s over the read bandwidth. MB and bits per weight are of files without a
tokenizer.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import venv
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bench.peers.gguf_export import export
from paretobit import hardware, open_model, quantize
from paretobit.artifact import Artifact
from paretobit.checkpoint.base import Checkpoint
from paretobit.evals.latency import bytes_per_token, one_round, token_ids
from paretobit.runtime.session import Session
from paretobit.speed import Spread, read_speed
from paretobit.verbs.bench import parse_threads
from paretobit.work import cache_folder

VERSION = "0.3.36"
RIVALS = {  # llama.cpp's types, and plain grids of our own
    "w8": ("Q8_0",),
    "w4g64": ("Q4_0", "Q4_K_M"),
    "w3g64": ("Q3_K_M", "Q3_K_S"),
    "w2g64": ("Q2_K",),
    "w2": ("Q2_K",),
    "w1.58": ("TQ2_0", "TQ1_0"),
    "w3t": ("Q3_K_S", "w3"),
    "w2t": ("Q2_K", "TQ2_0", "w2"),
}
SHORT = 8  # tokens before the ones that are decoded: an answer's first words
PAUSE = 0.02  # seconds, for the last contestant's threads to go to sleep
SAME_LOGITS = 0.02  # relative: llama.cpp multiplies fp16 weights with activations rounded to fp16


class Contestant(Protocol):
    """One model of one engine, loaded. nbytes: of its file; read_bytes: of weights, a token."""

    name: str
    nbytes: int
    read_bytes: int

    def turn(self, prompt: int, tokens: int) -> tuple[float, float]:
        """Seconds for a prompt of so many tokens, and for so many tokens after a SHORT prompt."""
        ...


class Ours:
    def __init__(self, packed: Artifact, threads: int, context: int) -> None:
        self.name, self.nbytes, self.read_bytes = f"paretobit {packed.name}", packed.size_bytes, bytes_per_token(packed)
        self._session = Session(packed, threads=threads, context=context)

    def turn(self, prompt: int, tokens: int) -> tuple[float, float]:
        return one_round(self._session, prompt, 0)[0], one_round(self._session, SHORT, tokens)[1]


class Peer:
    """llama-cpp-python in a process of its own."""

    def __init__(self, python: Path) -> None:
        child = Path(__file__).with_name("llama_cpp_child.py")
        pipe = subprocess.PIPE  # -P: this folder's llama_cpp.py is not the peer's package
        self._process = subprocess.Popen([python, "-P", child], stdin=pipe, stdout=pipe, text=True)

    def call(self, name: str, *arguments: object) -> Any:
        """The child's answer; ends the program where it reports an error or dies."""
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        with suppress(BrokenPipeError):
            process.stdin.write(json.dumps([name, arguments]) + "\n")
            process.stdin.flush()
        answer = json.loads(process.stdout.readline() or '{"error": "the peer ended"}')
        if "error" in answer:
            raise SystemExit(answer["error"])
        return answer["result"]

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *why: object) -> None:
        self._process.kill()
        self._process.communicate()


class Theirs:
    def __init__(self, peer: Peer, path: Path, threads: int, context: int, vocab: int) -> None:
        self.name, self.nbytes, self.read_bytes = f"llama.cpp {path.stem}", path.stat().st_size, file_reads(path)
        self._peer, self._vocab = peer, vocab
        peer.call("load", str(path), threads, context)

    def turn(self, prompt: int, tokens: int) -> tuple[float, float]:
        ids = token_ids(self._vocab, max(prompt, SHORT + tokens))
        return (
            self._peer.call("round", ids[:prompt], [])[0],
            self._peer.call("round", ids[:SHORT], ids[SHORT : SHORT + tokens])[1],
        )


def file_reads(path: Path) -> int:
    """Bytes of weights in a GGUF file that a token reads: an embedding apart from the head is only looked up."""
    import gguf

    sizes = {tensor.name: int(tensor.n_bytes) for tensor in gguf.GGUFReader(path).tensors}
    return sum(sizes.values()) - (sizes["token_embd.weight"] if "output.weight" in sizes else 0)


# ---- what is compared


def peer_python(given: str | None) -> Path:
    """The interpreter that has llama-cpp-python: the one given, or that of an environment in the cache."""
    if given:
        return Path(given)
    folder = cache_folder() / "peers" / f"llama-cpp-python-{VERSION}"
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        print(f"installing llama-cpp-python {VERSION} into {folder}: it is compiled", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        command = [python, "-m", "pip", "install", "--quiet", "--no-cache-dir"]  # a kept wheel may be of another CPU
        subprocess.run([*command, f"llama-cpp-python=={VERSION}"], check=True, env=compiling())
        (folder / "ready").touch()
    return python


def compiling() -> dict[str, str]:
    """The environment to compile llama.cpp in.

    GCC 12 takes `ldtilecfg` to read 8 bytes of its 64 and drops the stores of the others as dead, so that the first
    product on a CPU with AMX faults. Without that pass llama.cpp keeps AMX.
    """
    return os.environ | {"CXXFLAGS": f"{os.environ.get('CXXFLAGS', '')} -fno-tree-dse -fno-dse".strip()}


def kept(source: Checkpoint, kind: str) -> Path:
    """The folder of this model's files of one kind in the cache."""
    folder = cache_folder() / "bench" / source.hash[:12] / kind
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def packed(model: str, source: Checkpoint, scheme: str) -> Artifact:
    """Our packed model, rounded to nearest, made once."""
    out = kept(source, "packed") / scheme
    quantize(model, to=scheme, method="rtn", out=str(out), overwrite=True)
    return Artifact(out)


def peer_files(source: Checkpoint, types: Sequence[str], python: Path) -> dict[str, Path]:
    """The GGUF files of those types, made once by llama.cpp from the original's weights in fp16."""
    folder = kept(source, "gguf")
    files = {kind: folder / f"{kind}.gguf" for kind in types}
    if missing := [kind for kind in types if not files[kind].exists()]:
        whole, partial = folder / "original.partial", folder / "quantized.partial"
        print(f"exporting {source.name} for llama.cpp", file=sys.stderr)
        export(source, whole)
        with Peer(python) as peer:
            check_logits(source, peer, whole)
            for kind in missing:
                print(f"llama.cpp quantizes {source.name} to {kind}", file=sys.stderr)
                peer.call("quantize", str(whole), str(partial), kind)
                partial.rename(files[kind])
        whole.unlink()
    return files


def check_logits(source: Checkpoint, peer: Peer, path: Path) -> None:
    """End the program unless llama.cpp computes from the exported file what our decoder does from the original."""
    import torch

    from paretobit.compress.model import Decoder

    ids = token_ids(source.arch.vocab, 16)
    peer.call("load", str(path), 1, 64)
    theirs = np.array(peer.call("logits", ids), np.float32)
    with torch.inference_mode():
        exact = Decoder(source, device="cpu").logits(np.array([ids]), len(ids) - 1)[0, -1]
    gap = float(np.linalg.norm(theirs - exact) / np.linalg.norm(exact))
    print(f"{source.name}: logits of the exported file differ by {gap:.1e} of their norm", file=sys.stderr)
    if not gap < SAME_LOGITS:
        raise SystemExit("the exported file computes something else")


# ---- the contest


@dataclass(frozen=True)
class Turns:
    """All rounds of one contestant; one entry a round in each list."""

    name: str
    nbytes: int
    read_bytes: int
    prompt: int
    tokens: int
    prompt_s: tuple[float, ...]
    decode_s: tuple[float, ...]
    read_gb_s: tuple[float, ...]

    @property
    def prefill(self) -> Spread:
        return Spread.of(self.prompt / s for s in self.prompt_s)

    @property
    def decode(self) -> Spread:
        return Spread.of(self.tokens / s for s in self.decode_s)

    @property
    def share(self) -> Spread:
        """Of the read bandwidth measured just before."""
        rates = (self.read_bytes * self.tokens / s / 1e9 for s in self.decode_s)
        return Spread.of(rate / read for rate, read in zip(rates, self.read_gb_s, strict=True))


@dataclass(frozen=True)
class Match:
    """One model at one number of threads: ours, and rivals of the same bits."""

    model: str
    parameters: int
    threads: int
    ours: Turns
    theirs: tuple[Turns, ...]

    def decode_ratio(self, rival: Turns) -> Spread:
        """Our speed over theirs, round by round."""
        return Spread.of(b / a for a, b in zip(self.ours.decode_s, rival.decode_s, strict=True))

    def prefill_ratio(self, rival: Turns) -> Spread:
        return Spread.of(b / a for a, b in zip(self.ours.prompt_s, rival.prompt_s, strict=True))

    @property
    def peers(self) -> list[Turns]:
        """Those of llama.cpp's."""
        return [turns for turns in self.theirs if not turns.name.startswith("paretobit")]

    def best(self) -> Turns:
        """The fastest of llama.cpp's at decoding."""
        return max(self.peers, key=lambda turns: turns.decode.median)

    def bits(self, turns: Turns) -> float:
        return 8 * turns.nbytes / self.parameters

    def to_json(self) -> dict[str, Any]:
        rows = []
        for turns in (self.ours, *self.theirs):
            row: dict[str, Any] = {"name": turns.name, "bytes": turns.nbytes, "bits_per_weight": self.bits(turns)}
            spreads = {"decode_tokens_per_s": turns.decode, "prefill_tokens_per_s": turns.prefill}
            spreads |= {"bandwidth_share": turns.share, "read_gb_s": Spread.of(turns.read_gb_s)}
            if turns is not self.ours:
                spreads |= {"decode_ratio": self.decode_ratio(turns), "prefill_ratio": self.prefill_ratio(turns)}
            rows.append(row | {name: spread.to_json() for name, spread in spreads.items()})
        return {"model": self.model, "threads": self.threads, "isa": hardware.isa(), "rows": rows}


def play(contestants: Sequence[Contestant], threads: int, prompt: int, tokens: int, rounds: int) -> list[Turns]:
    """`rounds` rounds in rotating order, after a short one that does not count."""
    for contestant in contestants:
        contestant.turn(min(prompt, SHORT), 2)
    found: list[list[tuple[float, float, float]]] = [[] for _ in contestants]
    for number in range(rounds):
        for i in range(len(contestants)):
            at = (i + number) % len(contestants)
            time.sleep(PAUSE)
            bandwidth = read_speed(threads).median
            found[at].append((*contestants[at].turn(prompt, tokens), bandwidth))
    return [
        Turns(c.name, c.nbytes, c.read_bytes, prompt, tokens, *zip(*rows, strict=True))
        for c, rows in zip(contestants, found, strict=True)
    ]


def match(
    model: str, scheme: str, python: Path, threads: int, *, prompt: int = 256, tokens: int = 64, rounds: int = 5,
    types: Sequence[str] | None = None,
) -> Match:  # fmt: skip
    """Our packed model of `scheme` against its rivals, or llama.cpp's files of `types`."""
    source, rivals = open_model(model), RIVALS[scheme] if types is None else types
    ours, plain = packed(model, source, scheme), [packed(model, source, name) for name in rivals if name[0] == "w"]
    files = peer_files(source, [name for name in rivals if name[0] != "w"], python)
    context = max(prompt, SHORT + tokens)
    with ExitStack() as peers:
        contestants: list[Contestant] = [Ours(artifact, threads, context) for artifact in (ours, *plain)]
        for file in files.values():
            peer = peers.enter_context(Peer(python))
            contestants.append(Theirs(peer, file, threads, context, source.arch.vocab))
        turns = play(contestants, threads, prompt, tokens, rounds)
    return Match(Path(model).name, ours.parameters, threads, turns[0], tuple(turns[1:]))


def table(matches: Iterable[Match]) -> str:
    """A Markdown table; a ratio is our speed over that row's."""
    header = "model | threads | engine and type | MB | bits per weight | decode tokens/s | share | prefill tokens/s | "
    header += "ours ÷ theirs, decode | prefill"
    lines = [f"| {header} |", "|" + "---|" * (header.count("|") + 1)]
    for found in matches:
        for turns in (found.ours, *found.theirs):
            ours = turns is found.ours
            cells = [
                found.model,
                str(found.threads),
                turns.name,
                f"{turns.nbytes / 1e6:.1f}",
                f"{found.bits(turns):.2f}",
                turns.decode.text(),
                f"{turns.share.median:.0%}",
                turns.prefill.text(0),
                "" if ours else found.decode_ratio(turns).text(2),
                "" if ours else found.prefill_ratio(turns).text(2),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def bandwidths(matches: Iterable[Match]) -> str:
    """The read bandwidth that was measured in between, by number of threads."""
    by_threads: dict[int, list[float]] = {}
    for found in matches:
        for turns in (found.ours, *found.theirs):
            by_threads.setdefault(found.threads, []).extend(turns.read_gb_s)
    spreads = (f"{n} threads {Spread.of(values).text()} GB/s" for n, values in sorted(by_threads.items()))
    return "read bandwidth in between: " + ", ".join(spreads)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help="may be repeated (default: demo:smollm2)")
    parser.add_argument("--scheme", action="append", choices=RIVALS, help="may be repeated (default: all)")
    parser.add_argument("--type", action="append", help="llama.cpp's type; may be repeated (default: of the same bits)")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--peer", help="interpreter that has llama-cpp-python (default: installed into the cache)")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    python = peer_python(given.peer)
    with Peer(python) as peer:
        built = peer.call("about")
    sizes = {"prompt": given.prompt, "tokens": given.tokens, "rounds": given.rounds, "types": given.type}
    matches = []
    for model in given.model or ["demo:smollm2"]:
        for scheme in given.scheme or RIVALS:
            for threads in parse_threads(given.threads, hardware.cores()):
                matches.append(match(model, scheme, python, threads, **sizes))
                print(table(matches[-1:]), file=sys.stderr, flush=True)
    if given.json:
        print(json.dumps({"llama.cpp": built, "matches": [found.to_json() for found in matches]}, indent=1))
        return
    print(f"{hardware.cpu_name()}, ours on {hardware.isa()}; medians of {given.rounds} rounds (range); decode "
          f"{given.tokens} tokens after {SHORT}, prefill {given.prompt} tokens\n{bandwidths(matches)}\n"
          f"llama-cpp-python {VERSION}: {built}\n\n{table(matches)}")  # fmt: skip


if __name__ == "__main__":
    main()
