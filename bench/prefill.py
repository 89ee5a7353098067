"""A prompt on integer units: packed models with 8-bit activations against llama.cpp's Q8_0, floats, and what the
processor's products of int8 allow.

    python -m bench.prefill [MODEL ...] [--prompt 512] [--threads 2] [--rounds 5] [--peer PYTHON]

Run it from the repository's root with nothing else running. MODEL: demo:smollm2 and the random llama of 1.07 billion
parameters by default. Contestants take turns in rotating order, and the limit is measured before each of our turns: a
plain loop of the kernels' instructions on numbers in registers and the first cache level (`speed.product_speed`).
Products of a prompt are those of its weights: every block's for each token, the head's for the last.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from bench.peers.llama_cpp import PAUSE, Ours, Peer, Theirs, packed, peer_files, peer_python
from bench.runtime import Line, at_least, big_model
from paretobit import hardware, open_model
from paretobit.artifact import Artifact
from paretobit.evals.latency import one_round
from paretobit.planfile import is_embedding
from paretobit.runtime.session import Session
from paretobit.speed import Spread, product_speed

SCHEME, RIVAL = "w8a8", "Q8_0"
FASTER, SHARE = 1.2, 0.5


def products(artifact: Artifact, prompt: int) -> float:
    """Multiplications of a prompt's activations with weights, in 1e9."""
    shapes = {name: shape for name, shape in artifact.arch.shapes().items() if len(shape) == 2}
    blocks = sum(math.prod(shape) for name, shape in shapes.items() if not is_embedding(name))
    head = next(math.prod(shape) for name, shape in shapes.items() if is_embedding(name))
    return (prompt * blocks + head) / 1e9


class Floats:
    """Our packed model, its products in float32."""

    def __init__(self, artifact: Artifact, threads: int, context: int) -> None:
        self.name = f"paretobit {artifact.name}, float32"
        self._session = Session(artifact, threads=threads, context=context, activations="fp32")

    def turn(self, prompt: int, tokens: int) -> tuple[float, float]:
        return one_round(self._session, prompt, 0)[0], 0.0


def measured(model: str, given: argparse.Namespace, python: Path) -> Iterator[Line]:
    """One model's table is printed, and its promises are given."""
    source, threads, prompt = open_model(model), given.threads, given.prompt
    ours, floats = packed(model, source, SCHEME), packed(model, source, "bf16")
    file = peer_files(source, [RIVAL], python)[RIVAL]
    with ExitStack() as peers:
        peer = peers.enter_context(Peer(python))
        contestants = [
            Ours(ours, threads, prompt),
            Theirs(peer, file, threads, prompt, source.arch.vocab),
            Ours(floats, threads, prompt),
            Floats(ours, threads, prompt),
        ]
        seconds: list[list[float]] = [[] for _ in contestants]
        limits = []
        for number in range(given.rounds + 1):
            for i in range(len(contestants)):
                at = (i + number) % len(contestants)
                time.sleep(PAUSE)
                limit = product_speed(threads).median if at == 0 else 0.0
                found = contestants[at].turn(prompt, 1)[0]
                if number:  # the first round warms caches up
                    seconds[at].append(found)
                    limits += [limit] if at == 0 else []
    name, needed = Path(model).name, products(ours, prompt)
    print(f"\n{name}, {prompt} tokens, {threads} threads, {hardware.isa()}; "
          f"limit {Spread.of(limits).text(0)} · 1e9 products a second\n")  # fmt: skip
    print("| engine and type | prefill tokens/s | 1e9 products a second | ours is faster by |\n|---|---|---|---|")
    for contestant, took in zip(contestants, seconds, strict=True):
        speed, rate = (Spread.of(amount / s for s in took) for amount in (prompt, needed))
        ratio = Spread.of(s / mine for s, mine in zip(took, seconds[0], strict=True)).text(2)
        print(f"| {contestant.name} | {speed.text(0)} | {rate.text(0)} | {ratio} |")
    print(flush=True)
    where = f"prompt of {prompt}, {SCHEME}, {name}"
    yield at_least(f"{RIVAL}'s time ÷ ours, {where}", Spread.of(
        s / mine for s, mine in zip(seconds[1], seconds[0], strict=True)), FASTER)  # fmt: skip
    yield at_least(f"share of the products' limit, {where}", Spread.of(
        needed / mine / limit for mine, limit in zip(seconds[0], limits, strict=True)), SHARE, "%")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--threads", type=int, default=hardware.cores())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer", help="interpreter that has llama-cpp-python (default: installed into the cache)")
    given = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    python = peer_python(given.peer)
    lines = [
        line for model in given.models or ["demo:smollm2", big_model(None)] for line in measured(model, given, python)
    ]
    for line in lines:
        print(line)


if __name__ == "__main__":
    main()
