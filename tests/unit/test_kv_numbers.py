"""A small key-value cache in whole models: every family that may have one computes what kv.py defines, and rotation is
worth it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from paretobit.arch.resolve import known
from paretobit.artifact import Artifact
from paretobit.kv import parse
from paretobit.runtime.session import Session
from tests.outliers import planted_keys
from tests.packed import FAMILIES, Reference, Shelf

TOKENS = 260  # five blocks: the last tokens read up to three as codes
WIDE = {"sliding_window": 150}  # windows begin inside a block of codes


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("packed"))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tokens_of(source: Artifact, length: int = TOKENS) -> np.ndarray:
    return np.random.default_rng(0).integers(0, source.arch.vocab, (1, length))


def worst(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max())


def family(shelf: Shelf, name: str) -> Artifact:
    return shelf(name, "w4g32", **(WIDE if "sliding_window" in FAMILIES[name][1] else {}))


def assert_defined(source: Artifact, spelled: str) -> None:
    """As tests/unit/test_session_numbers.py: at most twice what noise of float32's size does to the truth."""
    tokens, scheme = tokens_of(source), parse(spelled)
    truth = Reference(source, kv=scheme).logits(tokens)
    noisy = (Reference(source, noise=8.0, seed=seed, kv=scheme).logits(tokens) for seed in range(3))
    found = Session(source, threads=2, activations="fp32", kv=spelled).logits(tokens)
    assert worst(found, truth) <= 2 * max(worst(logits, truth) for logits in noisy)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_computes_what_is_defined(shelf: Shelf, name: str) -> None:
    assert_defined(family(shelf, name), "8w0")


@pytest.mark.parametrize("spelled", ["8", "8c", "8pw0", "4w0", "3cw0", "2pw128"])
@pytest.mark.parametrize("name", ["llama, no groups", "gemma3"])
def test_every_scheme_computes_what_is_defined(shelf: Shelf, name: str, spelled: str) -> None:
    assert_defined(family(shelf, name), spelled)


def test_the_tolerance_means_something(shelf: Shelf) -> None:
    """One step of 8 bits, on the keys of one block of codes, is seen."""
    source, tokens = family(shelf, "llama"), tokens_of(family(shelf, "llama"))
    truth = Reference(source, kv=parse("8w0")).logits(tokens)
    noise = worst(Reference(source, noise=8.0, kv=parse("8w0")).logits(tokens), truth)
    for other in ("8w64", "8cw0", "8pw0"):
        assert worst(Reference(source, kv=parse(other)).logits(tokens), truth) > 4 * noise


def test_families_that_may_have_one_are_those_that_were_proven() -> None:
    proven = {known()[model_type].model_type for model_type, _ in FAMILIES.values()}
    assert {name for name, found in known().items() if found.small_kv and name == found.model_type} == proven


# What it costs


def divergence(source: Artifact, spelled: str, tokens: np.ndarray, first: int = 128) -> np.ndarray:
    """KL of a small cache to one in fp16, nats a token, of every sequence."""
    exact, found = (log_softmax(Session(source, 2, "fp32", kv=kv).logits(tokens, first)) for kv in ("16", spelled))
    return (np.exp(exact) * (exact - found)).sum(-1).mean(-1)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    x = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def test_rotation_spreads_outliers_of_keys(shelf: Shelf, tmp_path: Path) -> None:
    models = planted_keys(tmp_path, 16)
    plain, spoiled = (shelf.quantize(model, model, to="bf16", method="rtn") for model in models)
    tokens = tokens_of(plain, 400)
    same = (Session(source, 2, "fp32").logits(tokens) for source in (plain, spoiled))
    assert next(same).tobytes() == next(same).tobytes()
    for bits in ("4", "3"):
        rotated, unrotated = (divergence(spoiled, bits + how, tokens)[0] for how in ("", "p"))
        assert unrotated > 3 * divergence(plain, bits + "p", tokens)[0]  # it hurts
        assert rotated <= unrotated / 3


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_where_nothing_is_to_spread_rotation_does_no_harm(shelf: Shelf, name: str) -> None:
    """Keys of random weights: the difference is chance, two standard errors of it at most."""
    source = family(shelf, name)
    tokens = np.random.default_rng(1).integers(0, source.arch.vocab, (8, 300))
    worse = divergence(source, "4", tokens) - divergence(source, "4p", tokens)
    assert worse.mean() <= 2 * worse.std(ddof=1) / len(worse) ** 0.5


def test_every_bit_is_worth_it(shelf: Shelf) -> None:
    source = family(shelf, "llama")
    found = [divergence(source, bits, tokens_of(source, 400))[0] for bits in "8432"]
    assert found == sorted(found) and 0 < 20 * found[0] < found[1]
