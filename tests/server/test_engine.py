"""The engine: what each says is what it says alone, however many there are; slots, queue, cancelling, guesses."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import paretobit as pb
from paretobit.runtime.generate import Model
from paretobit.runtime.sampler import Sampling
from paretobit.server.drafts import DraftModel, PromptLookup, Speculation
from paretobit.server.engine import BESIDE, Engine
from paretobit.server.job import Busy, Job, Wish
from tests.served import Asked, alone, greedy, packed


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return pb.load(str(packed(tmp_path_factory.mktemp("packed"))), threads=2)


@pytest.fixture
def engine(model: Model) -> Iterator[Engine]:
    running = Engine(model, parallel=4)
    yield running
    running.close()


@pytest.fixture
def steps(model: Model, monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[int, int]]]:
    """[(slot, tokens)] of every step."""
    done: list[list[tuple[int, int]]] = []
    step = model.session.step

    def watched(work: list) -> list:
        if len(work) != 1 or threading.current_thread().name == "engine":
            done.append([(slot, len(tokens)) for slot, tokens, _ in work])
        return step(work)

    monkeypatch.setattr(model.session, "step", watched)
    return done


def prompts(count: int, seed: int = 0, longest: int = 200) -> list[list[int]]:
    """Some share a beginning."""
    rng = np.random.default_rng(seed)
    start = rng.integers(3, 300, 70).tolist()
    rest = [rng.integers(3, 300, rng.integers(1, longest)).tolist() for _ in range(count)]
    return [start[: rng.integers(0, 70)] + tail for tail in rest]


def wait_until(holds: object, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_each_answer_is_what_it_is_alone(model: Model, engine: Engine) -> None:
    asked = [(prompt, Asked(engine, prompt, greedy(20))) for prompt in prompts(16)]
    again = [(prompt, Asked(engine, prompt, greedy(20))) for prompt, _ in asked]
    for prompt, answer in asked + again:
        assert answer.read()[0] == alone(model, prompt, 20)
    assert sum(answer.job.cached for _, answer in again) > 0


def test_sampled_answers_too(model: Model, engine: Engine) -> None:
    sampling = Sampling(1.1, top_k=40, repetition_penalty=1.2, frequency_penalty=0.3, seed=7)
    asked = [(prompt, Asked(engine, prompt, Wish(sampling, 20))) for prompt in prompts(8, 1)]
    for prompt, answer in asked:
        assert answer.read()[0] == alone(model, prompt, 20, sampling)


def test_a_long_prompt_does_not_hold_up_others(
    model: Model, engine: Engine, steps: list[list[tuple[int, int]]]
) -> None:
    short, long = prompts(1, 2, 10)[0], np.random.default_rng(3).integers(3, 300, 450).tolist()
    endless = Sampling(logit_bias={0: -1e3, 2: -1e3})
    first = Asked(engine, short, Wish(endless, 400))
    begun = first.next().text
    late = Asked(engine, long, greedy(1))
    assert (late.read()[0], begun + first.read()[0]) == (alone(model, long, 1), alone(model, short, 400, endless))
    pieces = [dict(step) for step in steps if late.job.slot in dict(step)]
    assert len(pieces) >= 450 // BESIDE and all(piece[late.job.slot] <= BESIDE for piece in pieces)
    assert all(piece[first.job.slot] == 1 for piece in pieces)  # every step says one of the other's tokens


def test_a_short_prompt_does_not_wait_for_a_long_one(model: Model, steps: list[list[tuple[int, int]]]) -> None:
    turn = threading.Lock()
    engine = Engine(model, turn=turn)
    try:
        long = np.random.default_rng(4).integers(3, 300, 480).tolist()
        with turn:  # both are there before the first step
            late, early = Asked(engine, long, greedy(1)), Asked(engine, long[:8][::-1], greedy(1))
        slots = [wait_until(lambda one=one: one.job.slot >= 0) or one.job.slot for one in (early, late)]
        early.read()
        late.read()
    finally:
        engine.close()
    done = [max(i for i, step in enumerate(steps) if slot in dict(step)) for slot in slots]
    assert done[0] <= 1 and done[1] >= 7


def test_the_queue_is_bounded_and_in_order(model: Model) -> None:
    engine = Engine(model, parallel=1, queue=2)
    try:
        first = Asked(engine, [5, 6, 7], greedy(300))
        first.next()
        waiting = [Asked(engine, [8, 9], greedy(3)), Asked(engine, [9, 10], greedy(3))]
        with pytest.raises(Busy) as why:
            Asked(engine, [1, 2], greedy(1))
        assert why.value.seconds >= 1
        waiting[1].job.cancel()
        first.job.cancel()
        assert waiting[0].read()[0] == alone(model, [8, 9], 3)
        wait_until(lambda: engine.load == (0, 0))
        assert waiting[1].events.empty()
    finally:
        engine.close()


def test_who_leaves_frees_the_slot_within_a_token(model: Model, engine: Engine) -> None:
    asked = [Asked(engine, prompt, greedy(300)) for prompt in prompts(4, 5, 20)]
    for answer in asked:
        answer.next()
        answer.job.cancel()
    said = [len(answer.job.words.tokens) for answer in asked]
    wait_until(lambda: engine.load == (0, 0))
    assert all(len(a.job.words.tokens) <= before + 1 for a, before in zip(asked, said, strict=True))


def test_what_is_large_goes_with_the_answer(engine: Engine) -> None:
    answer = Asked(engine, [5, 6, 7], greedy(300))
    sampler = weakref.ref(answer.job.sampler)  # which holds a number or two for every token of the vocabulary
    answer.read()
    wait_until(lambda: sampler() is None)


def test_caches_are_bounded(model: Model) -> None:
    engine = Engine(model, cache_bytes=1 << 20)
    try:
        for prompt in prompts(30, 6, 150):
            Asked(engine, prompt, greedy(2)).read()
        wait_until(lambda: engine.load == (0, 0))
        assert 0 < model.session.kv_bytes <= 1 << 20 and len(engine.prefixes) > 2
    finally:
        engine.close()
    assert model.session.kv_bytes == 0


@pytest.mark.parametrize("drafter", ["lookup", "model"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_guesses_change_nothing(
    model: Model, drafter: str, temperature: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Speculation, "_length", lambda self, job, jobs: 4)
    guesser = PromptLookup() if drafter == "lookup" else DraftModel(pb.load(str(packed(tmp_path, "w3g32"))), model)
    engine = Engine(model, parallel=3, drafter=guesser)
    few = dict.fromkeys(range(20, 24), 30.0)  # so that texts repeat themselves
    sampling = Sampling(temperature, seed=3, logit_bias=few)
    try:
        start = list(range(20, 32)) * 4
        wanted = [start + prompt for prompt in prompts(5, 8, 40)]
        asked = [Asked(engine, prompt, Wish(sampling, 60)) for prompt in wanted]
        for prompt, answer in zip(wanted, asked, strict=True):
            assert answer.read()[0] == alone(model, prompt, 60, sampling)
        assert engine.speculation.proposed > 50
        assert 5 < engine.speculation.accepted <= engine.speculation.proposed
        if temperature:  # without it, how many guesses are wrong hangs on when requests come together: maybe none
            assert engine.speculation.accepted < engine.speculation.proposed
    finally:
        engine.close()


def test_guesses_stop_where_they_do_not_pay(model: Model) -> None:
    job = Job(model, [1, 2, 3], greedy(100), print)
    speculation = Speculation(PromptLookup())
    for count in range(1, 9):
        speculation.took(count, 0.010 + 0.004 * (count - 1))  # a guess costs a good part of a step
    for _ in range(30):
        speculation.learn(job, 4, 0)
    assert speculation._length(job, 1) == 0
    for _ in range(60):
        speculation.learn(job, 4, 4)
    assert speculation._length(job, 1) >= 4
