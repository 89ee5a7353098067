"""Speeds from a clock that the test turns, and processes that really start."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest

import paretobit as pb
from paretobit.errors import ParetobitError
from paretobit.evals.latency import (
    Latency,
    Round,
    alternate,
    bytes_per_token,
    first_output_s,
    measure,
    one_round,
    started,
    token_ids,
)
from paretobit.speed import Spread
from tests.checkpoints import tiny_llama_folder

PER_PROMPT_TOKEN, PER_TOKEN = 0.001, 0.01


@dataclass
class Fake:
    """A session that takes a known time: 1 ms a prompt token, 10 ms a token that comes alone, ever slower."""

    threads: int = 2
    context: int = 512
    now: float = 100.0
    slow: float = 1.0
    slots: dict[int, list[int]] = field(default_factory=dict)
    fed: list[tuple[int, ...]] = field(default_factory=list)
    arch: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(vocab=300))

    def clock(self) -> float:
        return self.now

    def open(self) -> int:
        self.slots[len(self.fed)] = []
        return len(self.fed)

    def close(self, slot: int) -> None:
        del self.slots[slot]

    def feed(self, slot: int, tokens: list[int]) -> np.ndarray:
        assert all(0 <= token < 300 for token in tokens)
        self.slots[slot] += tokens
        self.fed.append(tuple(tokens))
        self.now += self.slow * (PER_TOKEN if len(tokens) == 1 else PER_PROMPT_TOKEN * len(tokens))
        return np.zeros(300, np.float32)


class Approx:
    """Equal to a spread of three values: sums of decimal seconds are off by a few last places."""

    def __init__(self, *values: float) -> None:
        self.values = values

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, Spread) and other.n == 3
        return (other.median, other.least, other.most) == pytest.approx(self.values, rel=1e-9)


def test_measure() -> None:
    session, done = Fake(), []
    bandwidths = iter([10.0, 20.0, 40.0])

    def read(threads: int) -> Spread:
        assert threads == 2
        session.slow = 10 / (bandwidth := next(bandwidths))  # twice the bandwidth, twice as fast
        return Spread.of([bandwidth])

    found = measure(session, 50_000_000, prompt=100, tokens=20, rounds=3, clock=session.clock, read=read,
                    advance=done.append)  # fmt: skip
    assert (found.threads, found.prompt_tokens, found.tokens, found.bytes_per_token) == (2, 100, 20, 50_000_000)
    assert found.prefill_tokens_per_s == Approx(2000, 1000, 4000)
    assert found.decode_tokens_per_s == Approx(200, 100, 400)
    assert found.first_token_s == Approx(0.05, 0.025, 0.1)
    assert found.read_gb_s == Approx(20, 10, 40)
    assert found.bandwidth_gb_s == Approx(10, 5, 20)
    assert found.bandwidth_share == Approx(0.5, 0.5, 0.5)  # of its own round's bandwidth: no range at all
    assert done == [1, 1, 1] and not session.slots
    assert sum(map(len, session.fed)) == 3 * 120 + 12  # and a short round before


@pytest.mark.parametrize(("prompt", "tokens", "rounds"), [(0, 1, 1), (1, 0, 1), (1, 1, 0), (500, 13, 1)])
def test_nothing_to_measure_and_too_much(prompt: int, tokens: int, rounds: int) -> None:
    with pytest.raises(ParetobitError):
        measure(Fake(), 1, prompt=prompt, tokens=tokens, rounds=rounds)


def test_a_sequence_is_closed_when_it_fails() -> None:
    session = Fake()
    session.feed = lambda slot, tokens: 1 / 0
    with pytest.raises(ZeroDivisionError):
        one_round(session, 4, 4)
    assert not session.slots


def test_tokens_are_spread_over_the_vocabulary() -> None:
    assert len(set(token_ids(49152, 4000))) == 4000
    assert set(token_ids(5, 100)) == set(range(5))


def test_an_embedding_apart_from_the_head_is_not_read(tmp_path) -> None:
    for tied in (True, False):
        source = tiny_llama_folder(tmp_path / f"model{tied}", tied=tied)
        out = tmp_path / f"out{tied}"
        pb.quantize(str(source), to="w4", method="rtn", out=str(out))
        made = pb.Artifact(out)
        everything = sum(made.nbytes(name) for name in made.names())
        embedding = made.nbytes("model.embed_tokens.weight")
        assert bytes_per_token(made) == everything - (0 if tied else round(embedding * 299 / 300))


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_first_output_does_not_wait_for_the_rest() -> None:
    """A process that says a word, then much on both outputs, then lives on a while."""
    code = (
        "import sys, time; print('a', flush=True); time.sleep(0.4); sys.stderr.write('x' * 10**6); print('y' * 10**6)"
    )
    ticks = iter(range(10))
    assert first_output_s(python(code), clock=lambda: next(ticks)) == 1
    before = time.monotonic()
    passed = first_output_s(python(code))
    assert passed < time.monotonic() - before - 0.4  # what it waited for afterwards is not in it


def test_a_silent_process_counts_until_its_end() -> None:
    assert first_output_s(python("pass")) > 0


def test_a_process_that_fails_is_an_error_with_its_last_words() -> None:
    with pytest.raises(ParetobitError, match="ended with 3: the reason"):
        first_output_s(
            python("import sys; print('no', file=sys.stderr); sys.stderr.write('the reason\\n'); sys.exit(3)")
        )
    with pytest.raises(ParetobitError, match="ended with 1: no word of why"):
        first_output_s(python("import os; os._exit(1)"))


def test_a_process_is_ended_with_its_block() -> None:
    with pytest.raises(KeyboardInterrupt), started(python("import time; time.sleep(600)"), -1) as process:
        raise KeyboardInterrupt
    assert process.returncode is not None


def test_tasks_take_turns() -> None:
    calls: list[str] = []

    def task(name: str):
        def run() -> float:
            calls.append(name)
            return float(len(calls))

        return run

    assert alternate([task("a"), task("b")], 2) == [[3.0, 5.0], [4.0, 6.0]]
    assert calls == ["a", "b"] * 3


def test_of_a_single_round() -> None:
    found = Latency(1, 10, 5, 100, (Round(2.0, 1.0, 1.0),))
    assert found.decode_tokens_per_s == Spread(5.0, 5.0, 5.0, 1)
