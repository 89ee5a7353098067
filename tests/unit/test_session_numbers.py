"""The native decoder against the torch one over the same packed model, for every family, trait and scheme.

Truth is the torch decoder in float64 with keys and values rounded to fp16, as the cache keeps them. Such a rounding
turns a difference of 10⁻⁷ into one of 10⁻³ where a value lies next to a tie, in any float32 decoder. So the yardstick
is truth itself with noise of float32's size: a matrix of n columns adds up n/16 or n rounded products, whose errors
are a few units of 2⁻²⁴ of the whole; 8 units are added to every activation, which no float32 decoder would be proud of.
The worst of four such runs is compared with our worst, which may be twice it: they are maxima of different samples.
What a wrong formula does is orders of magnitude larger: `test_the_tolerance_means_something`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from paretobit.artifact import Artifact
from paretobit.runtime.session import Session
from tests.packed import FAMILIES, Reference, Shelf

EPSILON = 2.0**-23
SCHEMES = ("w1", "w1.58g32", "w2", "w2g32", "w3g32", "w4g32", "w4g16s", "w5", "w6g48", "w8", "bf16", "fp16")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("packed"))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tokens_of(source: Artifact, count: int, length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, source.arch.vocab, (count, length))


def worst(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max())


def yardstick(source: Artifact, tokens: np.ndarray, truth: np.ndarray) -> float:
    noisy = (Reference(source, noise=8.0, seed=seed).logits(tokens) for seed in range(4))
    return max(worst(logits, truth) for logits in noisy)


def assert_float_equal(source: Artifact) -> None:
    tokens = tokens_of(source, 2, 70)  # beyond a chunk, a cache block and every window
    truth = Reference(source).logits(tokens)
    found = Session(source, threads=2, activations="fp32").logits(tokens)
    assert found.dtype == np.float32 and found.shape == truth.shape
    assert worst(found, truth) <= 2 * yardstick(source, tokens, truth)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_with_float_activations(shelf: Shelf, family: str) -> None:
    assert_float_equal(shelf(family, "w4g32"))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("family", ["llama, untied", "gemma3"])
def test_every_scheme_with_float_activations(shelf: Shelf, family: str, scheme: str) -> None:
    assert_float_equal(shelf(family, scheme))


def test_the_tolerance_means_something(shelf: Shelf) -> None:
    """A rotation by frequencies of a base 1 % off is seen."""
    source = shelf("llama", "w4g32")
    tokens = tokens_of(source, 2, 70)
    truth, wrong = Reference(source).logits(tokens), Reference(source)
    wrong.arch = replace(source.arch, ropes=tuple(replace(rope, theta=1.01 * rope.theta) for rope in source.arch.ropes))
    assert worst(wrong.logits(tokens), truth) > 20 * yardstick(source, tokens, truth)


# The trellis, in the model's basis and in rotated ones: all of them, a tied head's and an embedding's own, some taps.
SOME = ["model.layers.0.o_in", "model.layers.1.attn_in", "model.layers.1.down_in"]
BASES: dict[str, tuple[dict[str, str], list[dict]]] = {
    "plain": ({"embed": "w4t", "lm_head": "w4t", "": "w2t"}, []),
    "rotated": ({"embed": "w4t", "lm_head": "w4t", "": "w3t"}, [{"method": "rotate", "seed": 3}]),
    "some taps": ({"o_proj": "w1t", "gate": "w3t"}, [{"method": "rotate", "taps": SOME}]),
    "head alone": ({"embed": "w3t", "v_proj": "w4t"}, [{"method": "rotate", "seed": 1, "taps": ["head_in"]}]),
}


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("family", ["llama, biases", "llama, untied", "qwen2, window", "gemma3"])
def test_trellises_and_rotations(shelf: Shelf, family: str, basis: str) -> None:
    assert_float_equal(shelf.trellis(family, *BASES[basis]))


@pytest.mark.parametrize("basis", ["plain", "rotated"])  # the others mix blocks of activations within a tap
@pytest.mark.parametrize("family", ["llama, biases", "llama, untied", "gemma3"])
def test_rotated_activations_are_rounded_as_documented(shelf: Shelf, family: str, basis: str) -> None:
    assert_rounded(shelf.trellis(family, *BASES[basis]))


# With int8 activations a difference of 10⁻⁷ next to a tie becomes a whole step, and moves all later roundings: two
# correct decoders agree closely on tokens where no value lies next to a tie, and differ by about the rounding error
# itself on the others. Of some 1000 values a token, one in 10⁴ lies so near: sequences of one token keep those apart.
# Close means 32 roundings of the largest: eleven matrices, one after the other, of about three each.


@pytest.mark.parametrize("scheme", [s for s in SCHEMES if s.startswith("w")])
@pytest.mark.parametrize("family", ["llama, biases", "gemma3"])
def test_int8_activations_are_rounded_as_documented(shelf: Shelf, family: str, scheme: str) -> None:
    assert_rounded(shelf(family, scheme))


def assert_rounded(source: Artifact) -> None:
    tokens = np.arange(source.arch.vocab)[:, None]
    exact, truth = Reference(source).logits(tokens), Reference(source, int8=True).logits(tokens)
    rounding, float32 = worst(truth, exact), 32 * EPSILON * np.abs(truth).max()
    errors = np.abs(Session(source, threads=2).logits(tokens) - truth).max(-1)
    assert rounding > 1000 * float32
    assert np.median(errors) <= float32 and errors.max() <= 2 * rounding
