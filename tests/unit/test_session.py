"""The session: the same bits however tokens come, memory that grows with them, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest

from paretobit import native
from paretobit.artifact import Artifact
from paretobit.errors import ParetobitError
from paretobit.runtime import session as session_module
from paretobit.runtime.session import Session
from tests.packed import Shelf, one_by_one

CASES = ("llama, biases", "llama, heads of 20", "llama, groups of 6", "qwen2, window", "gemma3")
LENGTH = 150  # more than two chunks, two cache blocks and every window


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("packed"))


@pytest.fixture(scope="module")
def packed(shelf: Shelf) -> Artifact:
    return shelf("gemma3", "w3g32")


def tokens_of(source: Artifact, count: int = LENGTH, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, source.arch.vocab, count).tolist()


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype == np.float32 and a.tobytes() == b.tobytes()


# The same bits


@pytest.mark.parametrize("scheme", ["w4g32", "w1.58", "bf16"])
@pytest.mark.parametrize("family", CASES)
def test_a_token_does_not_depend_on_how_the_others_came(shelf: Shelf, family: str, scheme: str) -> None:
    source = shelf(family, scheme)
    tokens, other = tokens_of(source), tokens_of(source, 67, seed=1)
    session = Session(source, threads=2)
    expected = one_by_one(session, tokens)
    assert same_bits(session.logits(np.array([tokens]))[0], expected)
    slot, beside = session.open(), session.open()
    at = 0
    for step, count in enumerate((1, 2, 3, 5, 64, 10, 40, 1, 24)):  # pieces that end on no border
        at += count
        pieces = {slot: tokens[at - count : at]}
        if step % 2:
            pieces = {beside: other[step : step + 7], **pieces}
        assert same_bits(session.feed_many(pieces)[slot], expected[at - 1])
    assert at == LENGTH


def test_every_sequence_of_a_batch_is_what_it_is_alone(packed: Artifact) -> None:
    session = Session(packed, threads=2)
    sequences = [tokens_of(packed, n, seed=n) for n in (1, 3, 40, 64, 65, 130)]
    alone = [one_by_one(session, tokens)[-1] for tokens in sequences]
    slots = [session.open() for _ in sequences]
    found = session.feed_many(dict(zip(slots, sequences, strict=True)))
    assert list(found) == slots and all(same_bits(found[s], a) for s, a in zip(slots, alone, strict=True))
    assert [session.length(slot) for slot in slots] == [len(tokens) for tokens in sequences]


@pytest.mark.parametrize("activations", ["int8", "fp32"])
@pytest.mark.parametrize("family", CASES)
def test_threads_and_instruction_sets_change_nothing(
    shelf: Shelf, family: str, activations: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = shelf(family, "w4g32")
    tokens = np.array([tokens_of(source)])
    expected = None
    for isa in native.available():
        monkeypatch.setenv(native.ISA_VARIABLE, isa)
        for threads in (1, 2, 3, 7):
            session = Session(source, threads, activations)
            found = session.logits(tokens)
            expected = found if expected is None else expected
            assert same_bits(found, expected), (isa, threads)
            assert same_bits(one_by_one(session, tokens[0, :70].tolist()), expected[0, :70]), (isa, threads)


@pytest.mark.parametrize("activations", ["int8", "fp32"])
@pytest.mark.parametrize("family", ["llama, untied", "gemma3"])
def test_nor_do_they_on_trellises_in_rotated_bases(
    shelf: Shelf, family: str, activations: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    schemes = {"q_proj": "w1t", "gate": "w3t", "embed": "w4t", "lm_head": "w4t", "o_proj": "w2t", "down": "w2t"}
    source = shelf.trellis(family, schemes, [{"method": "rotate"}])
    tokens = np.array([tokens_of(source)])
    expected = None
    for isa in native.available():
        monkeypatch.setenv(native.ISA_VARIABLE, isa)
        for threads in (1, 3):
            session = Session(source, threads, activations)
            found = session.logits(tokens)
            expected = found if expected is None else expected
            assert same_bits(found, expected), (isa, threads)
            assert same_bits(one_by_one(session, tokens[0, :70].tolist()), expected[0, :70]), (isa, threads)


def test_matrices_of_one_stage_may_lie_differently(shelf: Shelf) -> None:
    """q, k and v, gate and up of different groups and grids: each gets activations in its own order."""
    source = shelf.mixed("qwen2", {"q_proj": "w8", "v_proj": "bf16", "gate": "w1.58g16", "o_proj": "fp16"})
    session = Session(source, threads=2)
    tokens = tokens_of(source)
    assert same_bits(session.logits(np.array([tokens]))[0], one_by_one(session, tokens))


def test_rows_of_logits_are_independent_sequences(packed: Artifact) -> None:
    session = Session(packed, threads=2)
    for length in (1, 5, 64, 100):  # several rows a chunk, one, and several chunks a row
        rows = np.array([tokens_of(packed, length, seed) for seed in range(5)])
        expected = np.stack([one_by_one(session, row.tolist()) for row in rows])
        for first in {0, length // 2, length - 1, length}:
            assert same_bits(session.logits(rows, first), expected[:, first:])


def test_what_is_cut_off_is_forgotten(packed: Artifact) -> None:
    session = Session(packed, threads=2)
    tokens = tokens_of(packed)
    expected = one_by_one(session, tokens)
    slot = session.open()
    session.feed(slot, tokens_of(packed, 130, seed=5))
    for length in (130, 129, 65, 64, 63, 8, 1, 0):  # windows of 7 reach back over the cut
        session.truncate(slot, length)
        assert session.length(slot) == length
    session.feed(slot, tokens[:100])
    session.feed(slot, tokens_of(packed, 30, seed=6))
    session.truncate(slot, 100)
    assert same_bits(session.feed(slot, tokens[100:]), expected[-1])


# Memory


def test_the_cache_grows_with_its_tokens_and_goes_with_its_slot(packed: Artifact) -> None:
    session, arch = Session(packed, threads=1), packed.arch
    block = 64 * arch.layers * arch.kv_heads * 2 * arch.head_dim * 2  # positions, keys and values, bytes of a half
    assert session.kv_bytes == 0
    slot, other = session.open(), session.open()
    assert session.kv_bytes == 0
    for length, blocks in ((1, 1), (64, 1), (65, 2), (129, 3)):
        session.feed(slot, tokens_of(packed, length - session.length(slot)))
        assert session.kv_bytes == blocks * block
    session.feed(other, [1])
    assert session.kv_bytes == 4 * block
    session.truncate(slot, 64)
    assert session.kv_bytes == 2 * block
    session.close(slot)
    assert session.kv_bytes == block


def test_weights_are_mapped_not_copied(packed: Artifact) -> None:
    assert not packed.file.map("model.embed_tokens.weight.codes").flags.writeable
    assert np.shares_memory(
        session_module._mapped(packed, "model.embed_tokens.weight.codes", np.uint8),
        packed.file.map("model.embed_tokens.weight.codes"),
    )


# What it refuses


def test_values_that_make_no_session_are_refused(packed: Artifact) -> None:
    for wrong, named in (
        ({"activations": "int4"}, "int8"),
        ({"context": 0}, "512"),
        ({"context": 513}, "512"),
        ({"threads": 0}, "1024"),
        ({"threads": 1025}, "1024"),
    ):
        with pytest.raises(ParetobitError, match=named):
            Session(packed, **wrong)


@pytest.mark.parametrize("wrong", [[], [300], [-1], [1 << 40], [0.5], [[1]], ["a"]])
def test_tokens_that_the_model_does_not_know_are_refused(packed: Artifact, wrong: list) -> None:
    session = Session(packed, threads=1)
    slot = session.open()
    session.feed(slot, [1, 2])
    with pytest.raises(ParetobitError, match="tokens"):
        session.feed(slot, wrong)
    assert session.length(slot) == 2


def test_a_closed_slot_is_refused_everywhere(packed: Artifact) -> None:
    session = Session(packed, threads=1)
    slot = session.open()
    session.close(slot)
    assert session.open() != slot
    for use in (session.close, session.length, lambda s: session.truncate(s, 0), lambda s: session.feed(s, [1])):
        with pytest.raises(ParetobitError, match=f"slot {slot}: .*not open.*hint"):
            use(slot)


def test_the_context_ends_where_it_was_set(packed: Artifact) -> None:
    session = Session(packed, threads=1, context=10)
    slot = session.open()
    session.feed(slot, range(10))
    for more in ([1], range(20)):
        with pytest.raises(ParetobitError, match="context of 10"):
            session.feed(slot, more)
    assert session.length(slot) == 10
    with pytest.raises(ParetobitError, match="context of 10"):
        session.logits(np.zeros((1, 11), np.int64))
    with pytest.raises(ParetobitError, match="it holds 10"):
        session.truncate(slot, 11)


# Interruption, threads, processes


def test_an_interrupted_prompt_leaves_every_slot_as_it_was(packed: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(packed, threads=1)
    slot, tokens = session.open(), tokens_of(packed)
    session.feed(slot, tokens[:5])
    step, calls = session._step, []

    def interrupted(*arguments: object) -> None:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        step(*arguments)

    monkeypatch.setattr(session, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        session.feed(slot, tokens[5:])
    assert len(calls) == 2 and session.length(slot) == 5
    monkeypatch.undo()
    assert same_bits(session.feed(slot, tokens[5:]), one_by_one(session, tokens)[-1])


def test_several_python_threads_may_use_one_session(packed: Artifact) -> None:
    session = Session(packed, threads=2)
    sequences = [tokens_of(packed, 20, seed) for seed in range(4)]
    expected = [one_by_one(session, tokens) for tokens in sequences]
    found: list = [None] * 4

    def work(i: int) -> None:
        found[i] = one_by_one(session, sequences[i])

    team = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in team:
        thread.start()
    for thread in team:
        thread.join()
    assert all(same_bits(a, b) for a, b in zip(found, expected, strict=True))


FORK = """
import os, sys, paretobit.artifact, paretobit.runtime.session as s
from paretobit.errors import ParetobitError
session = s.Session(paretobit.artifact.Artifact(sys.argv[1]), threads=3)
slot = session.open()
session.feed(slot, [1])
child = os.fork()
if child == 0:
    try:
        session.feed(slot, [1])
    except ParetobitError as why:
        del session
        os._exit(7 if "fork" in str(why) else 1)
    os._exit(2)
_, status = os.waitpid(child, 0)
session.feed(slot, [1])
sys.exit(os.waitstatus_to_exitcode(status))
"""


def test_a_forked_child_is_told_and_can_end(packed: Artifact) -> None:
    done = subprocess.run([sys.executable, "-c", FORK, str(packed.folder)], timeout=60, check=False)
    assert done.returncode == 7


# Slots that share memory


def test_a_fork_goes_on_as_if_it_were_alone(packed: Artifact) -> None:
    tokens, other = tokens_of(packed), tokens_of(packed, 40, seed=2)
    session = Session(packed, threads=2)
    first = session.open()
    session.feed(first, tokens)
    before = session.kv_bytes
    for length in (1, 63, 64, 65, 130, LENGTH):
        alone = session.logits(np.array([tokens[:length] + other]), length)[0]
        forked, again = session.fork(first, length), session.fork(first, length)
        (row,) = session.step([(forked, other, 0)])
        assert same_bits(row, alone)
        assert session.length(first) == LENGTH and session.length(forked) == length + len(other)
        (row,) = session.step([(again, other[::-1], len(other) - 1)])
        assert same_bits(row, session.logits(np.array([tokens[:length] + other[::-1]]), length + len(other) - 1)[0])
        session.close(forked)
        session.close(again)
    assert session.kv_bytes == before
    session.truncate(first, 70)  # into a block that a fork holds too, and on with other tokens
    shared = session.fork(first, 70)
    session.feed(first, other)
    (row,) = session.step([(shared, tokens[70:], 0)])
    assert same_bits(row, session.logits(np.array([tokens]), 70)[0])


def test_forks_share_memory(packed: Artifact) -> None:
    session = Session(packed, threads=1)
    slot = session.open()
    session.feed(slot, tokens_of(packed, 128))
    before = session.kv_bytes
    forks = [session.fork(slot, 100) for _ in range(5)]
    assert session.kv_bytes == before
    session.feed(forks[0], [1])
    assert session.kv_bytes == before * 3 // 2  # the block that it wrote into
    session.close(slot)
    for fork in forks:
        session.close(fork)
    assert session.kv_bytes == 0
    with pytest.raises(ParetobitError, match="cannot share 9 tokens; hint: it holds 0"):
        session.fork(session.open(), 9)
    with pytest.raises(ParetobitError, match="not open"):
        session.fork(slot, 1)
