"""How fast a model reads a prompt and writes tokens, and how close that comes to the speed of memory.

Decoding reads every weight once a token, so tokens/s × bytes a token ÷ read bandwidth is the share of the hardware's
limit that is reached. Bandwidth, prompt and decoding take turns in every round: on a shared machine, neighbours slow
all three.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from paretobit.arch.spec import EMBED, Arch
from paretobit.artifact import Artifact
from paretobit.errors import ParetobitError
from paretobit.speed import Spread, read_speed

Clock = Callable[[], float]


class Decoding(Protocol):
    """What is measured: `runtime.session.Session`, or a peer behind the same methods."""

    arch: Arch
    threads: int
    context: int

    def open(self) -> int: ...
    def close(self, slot: int) -> None: ...
    def feed(self, slot: int, tokens: Sequence[int]) -> np.ndarray: ...


@dataclass(frozen=True)
class Round:
    """One turn: seconds for the prompt until its logits are there, seconds for all tokens one by one after it, and the
    GB/s at which as many threads read memory meanwhile."""

    prompt_s: float
    decode_s: float
    read_gb_s: float


@dataclass(frozen=True)
class Latency:
    """Rounds of one model at one number of threads: a prompt of prompt_tokens, then `tokens` tokens one by one.

    bytes_per_token: of weights that a token reads; what the key-value cache adds is left out.
    """

    threads: int
    prompt_tokens: int
    tokens: int
    bytes_per_token: int
    rounds: tuple[Round, ...]

    @property
    def prefill_tokens_per_s(self) -> Spread:
        return Spread.of(self.prompt_tokens / r.prompt_s for r in self.rounds)

    @property
    def decode_tokens_per_s(self) -> Spread:
        return Spread.of(self.tokens / r.decode_s for r in self.rounds)

    @property
    def ms_per_token(self) -> Spread:
        """Milliseconds of wall time a token that comes alone."""
        return Spread.of(1e3 * r.decode_s / self.tokens for r in self.rounds)

    @property
    def first_token_s(self) -> Spread:
        """From the prompt to its first token, the model loaded."""
        return Spread.of(r.prompt_s for r in self.rounds)

    @property
    def read_gb_s(self) -> Spread:
        return Spread.of(r.read_gb_s for r in self.rounds)

    @property
    def bandwidth_gb_s(self) -> Spread:
        """Weights read while decoding."""
        return Spread.of(self._bandwidth(r) for r in self.rounds)

    @property
    def bandwidth_share(self) -> Spread:
        """Of the read bandwidth measured in the same round."""
        return Spread.of(self._bandwidth(r) / r.read_gb_s for r in self.rounds)

    def _bandwidth(self, found: Round) -> float:
        return self.bytes_per_token * self.tokens / found.decode_s / 1e9


def bytes_per_token(packed: Artifact) -> int:
    """Bytes of weights that one decoded token reads: all of them, but of an embedding apart from the head one row."""
    rows = sum(packed.nbytes(name) for name in packed.arch.bands(EMBED))
    lookup = 0 if packed.arch.tied else rows * (1 - 1 / packed.arch.vocab)
    return sum(map(packed.nbytes, packed.names())) - round(lookup)


def measure(
    session: Decoding,
    weight_bytes: int,
    *,
    prompt: int = 256,
    tokens: int = 64,
    rounds: int = 5,
    clock: Clock = time.perf_counter,
    read: Callable[[int], Spread] = read_speed,
    advance: Callable[[float], None] = lambda amount: None,
) -> Latency:
    """`rounds` rounds after a short one that does not count. weight_bytes: see `bytes_per_token`.

    Tokens are decided beforehand: no sampling is timed. Raises ParetobitError where prompt and tokens do not fit the
    session's context.
    """
    if min(prompt, tokens, rounds) < 1:
        raise ParetobitError("there is nothing to measure", hint="prompt, tokens and rounds start at 1")
    if prompt + tokens > session.context:
        raise ParetobitError(
            f"a prompt of {prompt} and {tokens} tokens do not fit a context of {session.context}",
            hint="ask for fewer",
        )
    one_round(session, min(prompt, 8), min(tokens, 4), clock)
    found = []
    for _ in range(rounds):
        bandwidth = read(session.threads).median
        prompt_s, decode_s = one_round(session, prompt, tokens, clock)
        found.append(Round(prompt_s, decode_s, bandwidth))
        advance(1)
    return Latency(session.threads, prompt, tokens, weight_bytes, tuple(found))


def one_round(session: Decoding, prompt: int, tokens: int, clock: Clock = time.perf_counter) -> tuple[float, float]:
    """(seconds for a prompt of so many tokens, seconds for so many tokens after it), in a sequence of its own.

    prompt may be 0: then decoding starts with an empty sequence.
    """
    ids = token_ids(session.arch.vocab, prompt + tokens)
    slot = session.open()
    try:
        start = clock()
        if prompt:
            session.feed(slot, ids[:prompt])
        middle = clock()
        for i in range(prompt, prompt + tokens):
            session.feed(slot, ids[i : i + 1])
        return middle - start, clock() - middle
    finally:
        session.close(slot)


def token_ids(vocab: int, count: int) -> list[int]:
    """`count` ids all over the vocabulary: the prime steps far, so that no row of the embedding comes twice soon."""
    return [i * 7919 % vocab for i in range(1, count + 1)]


def first_output_s(command: Sequence[str], clock: Clock = time.perf_counter) -> float:
    """Seconds from starting a process to the first byte on its standard output, or to its end if there is none.

    Raises ParetobitError with the last line of its standard error where it fails.
    """
    start = clock()
    with started(command, subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        passed = clock() - start
        process.stdout.read()
    return passed


@contextmanager
def started(command: Sequence[str], stdout: int) -> Iterator[subprocess.Popen]:
    """A process, waited for at the end of the block; ParetobitError if it fails, KeyboardInterrupt ends it."""
    with tempfile.TemporaryFile() as told:
        process = subprocess.Popen(list(command), stdin=subprocess.DEVNULL, stdout=stdout, stderr=told)
        try:
            yield process
            process.wait()
        finally:
            process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()
        if process.returncode:
            told.seek(0)
            lines = told.read().decode(errors="replace").strip().splitlines() or ["no word of why"]
            what = " ".join(command)
            raise ParetobitError(f"{what} ended with {process.returncode}: {lines[-1]}", hint="run it by itself")


def alternate(tasks: Sequence[Callable[[], float]], rounds: int) -> list[list[float]]:
    """What each task returns in `rounds` rounds, the tasks taking turns, after one turn each that does not count."""
    for task in tasks:
        task()
    values = [[task() for task in tasks] for _ in range(rounds)]
    return [list(column) for column in zip(*values, strict=True)]
