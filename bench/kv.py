"""The small key-value cache against the one in fp16: divergence, memory, speed of decoding. One line a promise.

    python -m bench.kv [MODEL ...] [--to w8] [--kv 8 --kv 4p ...] [--contexts 512,2048,8192] [--windows 8]
                       [--text FILE] [--activations int8] [--rounds 5] [--only divergence,memory,speed,outliers]

MODEL: demo:smollm2 and demo:gemma3 by default, packed on --to once, or a packed folder. A window is as long as the
context, and its last 255 tokens count: KL of the next token's distribution to the one that the same packed model has
with all keys and values in fp16, mean ± standard error over windows. Text: by default the demo's held-out one. Decoding
is timed at the largest context, in turns, with each cache filled once. Nothing else may be running then.

"outliers" measures no MODEL but a tiny one of its own with random weights, whose keys get two channels of every head 16
times as large, and queries so much smaller there (tests/outliers.py).
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from bench.peers.llama_cpp import packed
from bench.runtime import Line
from paretobit import hardware, open_model, quantize
from paretobit.artifact import Artifact
from paretobit.checkpoint.demo_text import held_out_text
from paretobit.evals.latency import token_ids
from paretobit.evals.text import encode_windows, read_text
from paretobit.kv import cache_bytes, parse
from paretobit.runtime.session import Session
from paretobit.runtime.tokenizer import Tokenizer
from paretobit.speed import Spread
from tests.outliers import planted_keys

MODELS = ("demo:smollm2", "demo:gemma3")
SCHEMES = ("8", "4", "4p", "4c", "3", "2", "2p")
MODEL_PARTS = ("divergence", "memory", "speed")
PARTS = (*MODEL_PARTS, "outliers")
SCORED = 255
LONG = 8192  # tokens, for which memory is promised
TOKENS = 32  # decoded in a round, and taken back
ROWS = 16  # distributions worked out at once
TIMES, PLANTED = 16, 8  # as large are outliers; windows they are measured on
TABLE = "| model | tokens | cache | KL to fp16 | same top-1 |\n|---|---|---|---|---|"


def divergence(exact: np.ndarray, found: np.ndarray) -> tuple[float, float]:  # (t, vocab) each
    """(mean KL in nats, share of tokens with the same likeliest next) of logits to those of the exact cache."""
    total = 0.0
    for at in range(0, len(exact), ROWS):
        p, q = (log_softmax(logits[at : at + ROWS]) for logits in (exact, found))
        total += float((np.exp(p) * (p - q)).sum())
    return total / len(exact), float((exact.argmax(-1) == found.argmax(-1)).mean())


def log_softmax(logits: np.ndarray) -> np.ndarray:  # (t, vocab)
    x = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def measured(
    sessions: dict[str, Session], windows: np.ndarray
) -> dict[str, np.ndarray]:  # (windows, context) -> (windows, 2) each
    """By cache: divergence to the first one's and agreement with it, window by window."""
    first = windows.shape[1] - SCORED
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in list(sessions)[1:]}
    for row in windows:
        exact, *others = (session.logits(row[None], first)[0] for session in sessions.values())
        for name, logits in zip(found, others, strict=True):
            found[name].append(divergence(exact, logits))
    return {name: np.array(values) for name, values in found.items()}


def divergence_lines(artifact: Artifact, given: argparse.Namespace) -> Iterator[str]:
    tokenizer, text = Tokenizer(artifact.companions), read_text(given.text or held_out_text())
    sessions = {kv: Session(artifact, None, given.activations, kv=kv) for kv in ("16", *given.kv)}
    for context in contexts(artifact, given.contexts):
        found = measured(sessions, encode_windows(tokenizer, text, context, given.windows))
        for name, values in found.items():
            yield row(artifact.name, context, name, values)
        for bits in ("4", "2"):
            if {bits, f"{bits}p"} <= set(found):
                yield str(judge_rotation(artifact.name, context, found, bits))


def row(model: str, context: int, kv: str, values: np.ndarray) -> str:  # (windows, 2)
    error = values[:, 0].std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    kl, same = values.mean(0)
    return f"| {model} | {context} | {kv} | {kl:.5f} ± {error:.5f} | {same:.1%} |"


def judge_rotation(model: str, context: int, found: Mapping[str, np.ndarray], bits: str, most: float = 1) -> Line:
    rotated, plain = (float(found[bits + how][:, 0].mean()) for how in ("", "p"))
    what = f"KL {bits} bits rotated ÷ not, {model}, {context} tokens"
    return Line(what, f"{rotated / plain:.2f} ×", f"≤ {most:.2g} ×", rotated <= most * plain)


def contexts(artifact: Artifact, asked: Sequence[int]) -> list[int]:
    return [context for context in asked if context <= artifact.arch.max_positions]


def memory_lines(artifact: Artifact, schemes: Sequence[str]) -> Iterator[Line]:
    arch = artifact.arch
    sizes = (arch.layers, arch.kv_heads, arch.head_dim, LONG)
    half = cache_bytes(None, *sizes)
    for name in schemes:
        found = cache_bytes(parse(name), *sizes)
        most = {8: 0.56, 4: 0.30, 3: 0.24, 2: 0.18}[int(name[0])]
        shown = f"{found / 1e6:.1f} of {half / 1e6:.1f} MB, {found / half:.4f}"
        yield Line(f"cache {name}, {artifact.name}, {LONG} tokens", shown, f"≤ {most:g}", found <= most * half)


def speed_lines(artifact: Artifact, schemes: Sequence[str], context: int, rounds: int) -> Iterator[Line]:
    """Decoding with caches of so many tokens, taking turns."""
    import time

    ids = token_ids(artifact.arch.vocab, context)
    start = context - TOKENS
    sessions = {kv: Session(artifact, kv=kv, context=context) for kv in ("16", *schemes)}
    slots = {kv: session.open() for kv, session in sessions.items()}
    for kv, session in sessions.items():
        session.feed(slots[kv], ids[:start])
    seconds: dict[str, list[float]] = {kv: [] for kv in sessions}
    for _ in range(rounds + 1):  # the first does not count
        for kv, session in sessions.items():
            begun = time.perf_counter()
            for token in ids[start:]:
                session.feed(slots[kv], [token])
            seconds[kv].append((time.perf_counter() - begun) / TOKENS)
            session.truncate(slots[kv], start)
    half = seconds["16"][1:]
    for kv in schemes:
        ratio = Spread.of(a / b for a, b in zip(half, seconds[kv][1:], strict=True))
        tokens = Spread.of(1 / s for s in seconds[kv][1:])
        wanted = 1.05 if kv[0] == "8" else 1.0
        what = f"decoding with {kv} ÷ fp16, {artifact.name}, {context} tokens, {hardware.isa()}"
        yield Line(what, f"{ratio.text(2)} × at {tokens.text()} tokens/s", f"≥ {wanted:g} ×", ratio.median >= wanted)


def outlier_lines(folder: Path) -> Iterator[str]:
    """What rotation makes of planted outliers of keys."""
    plain, spoiled = planted_keys(folder, TIMES)
    without, found = cache_alone(plain), cache_alone(spoiled)
    for model, figures in ((plain, without), (spoiled, found)):
        for name, values in figures.items():
            yield row(model.name, 2 * SCORED, name, values)
    for bits in ("4", "3"):
        yield str(judge_rotation(spoiled.name, 2 * SCORED, found, bits, 1 / 3))


def cache_alone(model: Path) -> dict[str, np.ndarray]:  # (windows, 2) each
    """`measured` of random tokens, where nothing but the cache is rounded."""
    artifact = Artifact(quantize(str(model), to="bf16", method="rtn", out=str(model / "packed")).path)
    windows = np.random.default_rng(0).integers(0, artifact.arch.vocab, (PLANTED, 2 * SCORED))
    return measured({kv: Session(artifact, None, "fp32", kv=kv) for kv in ("16", "4", "4p", "3", "3p")}, windows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS, metavar="MODEL")
    parser.add_argument("--to", default="w8", help="the scheme of the weights")
    parser.add_argument("--kv", action="append", help=f"may be repeated (default: {' '.join(SCHEMES)})")
    parser.add_argument("--contexts", default="512,2048,8192")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--activations", default="int8")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    given = parser.parse_args()
    given.kv, given.contexts = given.kv or SCHEMES, [int(n) for n in given.contexts.split(",")]
    parts = given.only.split(",")
    for model in given.models if set(parts) & set(MODEL_PARTS) else ():
        source = Path(model)
        found = Artifact(source) if (source / "plan.json").exists() else packed(model, open_model(model), given.to)
        if "divergence" in parts:
            print(TABLE)
            for line in divergence_lines(found, given):
                print(line, flush=True)
        if "memory" in parts:
            print(*memory_lines(found, given.kv), sep="\n", flush=True)
        if "speed" in parts:
            for shown in speed_lines(found, given.kv, contexts(found, given.contexts)[-1], given.rounds):
                print(shown, flush=True)
    if "outliers" in parts:
        print(TABLE)
        with tempfile.TemporaryDirectory() as folder:
            for line in outlier_lines(Path(folder)):
                print(line, flush=True)


if __name__ == "__main__":
    main()
