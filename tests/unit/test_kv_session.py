"""Sessions with a small key-value cache: the same bits however tokens come, what can be taken back, and its memory."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from paretobit import kv, native
from paretobit.artifact import Artifact
from paretobit.errors import ParetobitError
from paretobit.runtime.session import Session
from tests.packed import Shelf, one_by_one

CASES = {"llama, groups of 6": {}, "llama, heads of 20": {}, "gemma3": {"sliding_window": 150}}
LENGTH = 300


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("packed"))


@pytest.fixture(scope="module")
def packed(shelf: Shelf) -> Artifact:
    return shelf("gemma3", "w4g32", **CASES["gemma3"])


def tokens_of(source: Artifact, count: int = LENGTH, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, source.arch.vocab, count).tolist()


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.mark.parametrize("activations", ["int8", "fp32"])
@pytest.mark.parametrize("spelled", ["4", "2cw0"])
@pytest.mark.parametrize("family", CASES)
def test_neither_company_nor_threads_nor_instructions_change_a_token(
    shelf: Shelf, family: str, spelled: str, activations: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = shelf(family, "w4g32", **CASES[family])
    tokens, other = tokens_of(source), tokens_of(source, seed=1)
    expected = one_by_one(Session(source, 2, activations, kv=spelled), tokens)
    for isa in native.available():
        monkeypatch.setenv(native.ISA_VARIABLE, isa)
        for threads in (1, 3):
            session = Session(source, threads, activations, kv=spelled)
            assert same_bits(session.logits(np.array([tokens]))[0], expected), (isa, threads)
            slot, beside, at = session.open(), session.open(), 0
            for count in (1, 60, 64, 5, 130, 40):  # pieces that end on no border
                pieces = {beside: other[at : at + 31], slot: tokens[at : at + count]}
                at += count
                assert same_bits(session.feed_many(pieces)[slot], expected[at - 1]), (isa, threads)
            assert at == LENGTH


def test_the_newest_tokens_can_be_taken_back_without_a_trace(packed: Artifact) -> None:
    session, tokens = Session(packed, 2, kv=4), tokens_of(packed)
    expected, slot = one_by_one(session, tokens), session.open()
    session.feed(slot, tokens[:260] + tokens_of(packed, 30, seed=2))
    for length in (280, 260):
        session.truncate(slot, length)
    assert session.length(slot) == 260
    assert same_bits(session.feed(slot, tokens[260:]), expected[-1])
    session.truncate(slot, 0)
    assert same_bits(session.feed(slot, tokens), expected[-1])


@pytest.mark.parametrize("spelled", ["16", "4", "2cw0"])
def test_a_fork_goes_on_alone(packed: Artifact, spelled: str) -> None:
    """It shares what both have in common, and neither notices what the other does."""
    session, tokens, other = Session(packed, 2, kv=spelled), tokens_of(packed), tokens_of(packed, seed=4)
    expected, alone = one_by_one(session, tokens)[-1], one_by_one(session, tokens[:250] + other[250:])[-1]
    before, slot = session.kv_bytes, session.open()
    session.feed(slot, tokens[:270])
    held = session.kv_bytes - before
    fork = session.fork(slot, 250)
    assert (session.length(fork), session.kv_bytes - before) == (250, held)
    found = session.feed_many({fork: other[250:], slot: tokens[270:]})
    assert same_bits(found[fork], alone) and same_bits(found[slot], expected)
    session.truncate(slot, 260)
    again = session.fork(fork, 250)
    session.close(fork)
    assert same_bits(session.feed(again, other[250:]), alone)
    assert same_bits(session.feed(slot, tokens[260:]), expected)
    with pytest.raises(ParetobitError, match="cannot share 301 tokens"):
        session.fork(slot, 301)


def test_a_deep_cut_leaves_a_small_trace_and_the_memory_of_its_length(packed: Artifact) -> None:
    session, tokens = Session(packed, 2, "fp32", kv=8), tokens_of(packed)
    expected, slot = one_by_one(session, tokens), session.open()
    session.feed(slot, tokens + tokens_of(packed, 200, seed=3))
    session.truncate(slot, 150)
    assert session.length(slot) == 150
    found = session.feed(slot, tokens[150:])
    halves = one_by_one(Session(packed, 2, "fp32"), tokens)[-1]
    assert 0 < np.abs(found - expected[-1]).max() <= np.abs(expected[-1] - halves).max()
    assert session.kv_bytes == 2 * kv.cache_bytes(kv.parse(8), *sizes(packed), LENGTH)  # of both slots


def sizes(source: Artifact) -> tuple[int, int, int]:
    return source.arch.layers, source.arch.kv_heads, source.arch.head_dim


@pytest.mark.parametrize("family", CASES)
def test_memory_is_what_the_sizes_say(shelf: Shelf, family: str) -> None:
    source = shelf(family, "w4g32", **CASES[family])
    for spelled in ("16", "8", "4c", "3w0", "2w128"):
        session, slot = (made := Session(source, 1, kv=spelled)), made.open()
        for length in (1, 64, 65, 128, 129, 192, 193, 256, 257, 400):
            session.feed(slot, tokens_of(source, length - session.length(slot)))
            assert session.kv_bytes == kv.cache_bytes(kv.parse(spelled), *sizes(source), length), (spelled, length)
        session.close(slot)
        assert session.kv_bytes == 0


def test_an_interrupted_prompt_leaves_the_slot_as_long_as_it_was(
    packed: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, tokens = Session(packed, 1, kv=4), tokens_of(packed)
    slot, step, calls = session.open(), session._step, []
    session.feed(slot, tokens[:200])

    def interrupted(*arguments: object) -> None:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        step(*arguments)

    monkeypatch.setattr(session, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        session.feed(slot, tokens[200:])
    monkeypatch.undo()
    assert session.length(slot) == 200
    assert same_bits(session.feed(slot, tokens[200:]), one_by_one(session, tokens)[-1])


# What it refuses


def test_an_architecture_that_was_not_proven_is_refused(packed: Artifact) -> None:
    unproven = SimpleNamespace(arch=replace(packed.arch, small_kv=False), name="odd")
    with pytest.raises(ParetobitError, match="gemma3_text: nobody has proven.*hint: leave out --kv"):
        Session(unproven, kv=4)
    wide = SimpleNamespace(arch=replace(packed.arch, head_dim=2048), name="wide")
    with pytest.raises(ParetobitError, match="heads of 2048 channels"):
        Session(wide, kv=4)


def test_schemes_that_are_none_are_refused(packed: Artifact) -> None:
    with pytest.raises(ParetobitError, match="key-value cache of '5'"):
        Session(packed, kv=5)
