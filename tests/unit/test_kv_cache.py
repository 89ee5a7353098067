"""Attention on codes against its numpy definition, to the bit, on every ISA."""

from __future__ import annotations

import numpy as np
import pytest

from paretobit import kv, native
from paretobit.errors import ParetobitError
from paretobit.kv import KV
from tests.small_cache import Cache

MODULE = native._module()
TOKENS = 330
# (scheme, head_dim, query heads that share a key-value head, int8, positions a token attends to)
CASES = [
    ("8", 64, 3, True, 1 << 20),
    ("4", 64, 1, True, 1 << 20),
    ("4", 64, 3, False, 1 << 20),
    ("4c", 32, 2, True, 1 << 20),
    ("4c", 32, 2, False, 100),
    ("3", 96, 1, True, 1 << 20),
    ("3c", 20, 5, True, 170),
    ("2", 128, 2, True, 140),
    ("2w0", 16, 4, True, 1 << 20),
    ("8cw0", 16, 1, False, 1 << 20),
    ("4w128", 256, 1, True, 1 << 20),
]


def scheme_of(scheme: KV | None) -> tuple[int, bool, int]:
    return (16, False, 0) if scheme is None else (scheme.bits, scheme.by_channel, scheme.window)


def inputs(head_dim: int, group: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Queries, keys with a mean and an outlier channel, values with a row of zeros."""
    rng = np.random.default_rng(seed)
    q = rng.standard_normal((TOKENS, group * head_dim)).astype(np.float32) * np.float32(head_dim**-0.5)
    keys = rng.standard_normal((TOKENS, head_dim)) + rng.standard_normal(head_dim)
    keys[:, 1] *= 8
    values = rng.standard_normal((TOKENS, head_dim))
    values[70] = 0
    return q, keys.astype(np.float16), values.astype(np.float16)


def attended(
    scheme: str, int8: bool, window: int, arrays: tuple[np.ndarray, ...], isa: str, step: int = 1, cut: int = TOKENS
) -> np.ndarray:
    q, keys, values = arrays
    out = np.full(q.shape, np.nan, np.float32)
    halves = (keys.view(np.uint16), values.view(np.uint16))
    MODULE.attend_through_cache(*scheme_of(kv.parse(scheme)), int8, window, step, cut, q, *halves, out, isa)
    return out


def expected(scheme: str, int8: bool, window: int, arrays: tuple[np.ndarray, ...], cut: int = TOKENS) -> np.ndarray:
    q, keys, values = arrays
    made, out = Cache(kv.parse(scheme), keys.shape[1], int8, window), np.empty_like(q)
    for tokens in (range(TOKENS), range(cut, TOKENS)):
        for t in tokens:
            out[t] = made.attend(t, q[t].reshape(-1, keys.shape[1]), keys[t], values[t]).reshape(-1)
        made.truncate(cut)
    return out


@pytest.mark.parametrize(("scheme", "head_dim", "group", "int8", "window"), CASES)
def test_attention_is_its_definition_bit_for_bit(
    scheme: str, head_dim: int, group: int, int8: bool, window: int
) -> None:
    arrays = inputs(head_dim, group)
    truth = expected(scheme, int8, window, arrays)
    for isa in native.available():
        for step in (1, 7, 64):  # alone, and several tokens at once that read a block differently
            found = attended(scheme, int8, window, arrays, isa, step)
            assert found.tobytes() == truth.tobytes(), (isa, step)


@pytest.mark.parametrize("cut", [0, 1, 64, 65, 130, 192, 200, 258])
def test_what_is_cut_off_comes_back_as_codes_say(cut: int) -> None:
    arrays = inputs(32, 2)
    for scheme in ("4", "3cw0"):
        truth = expected(scheme, True, 1 << 20, arrays, cut)
        for step in (1, 64):
            assert attended(scheme, True, 1 << 20, arrays, native.isa(), step, cut).tobytes() == truth.tobytes()


def test_the_newest_can_be_taken_back_without_a_trace() -> None:
    arrays = inputs(32, 2)
    for scheme in ("4", "2w0", "8cw128"):
        never = attended(scheme, True, 1 << 20, arrays, native.isa(), 7)
        for cut in (TOKENS - 1, TOKENS - 40, TOKENS - 64):
            assert attended(scheme, True, 1 << 20, arrays, native.isa(), 7, cut).tobytes() == never.tobytes()
        assert attended(scheme, True, 1 << 20, arrays, native.isa(), 7, 129).tobytes() != never.tobytes()


@pytest.mark.parametrize("bits", kv.LEVELS)
def test_codes_approach_attention_in_fp16(bits: int) -> None:
    """The error of every output falls as steps do: it is at most some multiple of the largest value's step."""
    arrays = inputs(64, 2)
    exact, found = (attended(s, False, 1 << 20, arrays, native.isa()) for s in ("16", str(bits)))
    step = 2 * np.abs(arrays[2].astype(np.float32)).max() / (kv.LEVELS[bits] - 1)
    assert 0 < np.abs(found - exact).max() <= 2 * step


# The rounding of a row


@pytest.mark.parametrize("bits", kv.LEVELS)
def test_a_row_gets_the_best_of_sixteen_scales(bits: int) -> None:
    levels, rng = kv.LEVELS[bits], np.random.default_rng(bits)
    x = rng.standard_t(3, (40, 64)).astype(np.float32)
    x[0], x[1], x[2] = 0, 60000, 1e-7
    codes, scale = kv.rounded(x, levels)
    assert codes.dtype == np.uint8 and codes.max() < levels and scale.dtype == np.float16
    points = np.arange(levels) - (levels - 1) / 2
    for row, code, chosen in zip(x.astype(np.float64), codes, scale, strict=True):
        found = ((row - float(chosen) * points[code]) ** 2).sum()
        trials = np.abs(row).max() / points[-1] * kv.STEPS
        grids = np.minimum(trials, 65504).astype(np.float16).astype(np.float64)[:, None] * points
        best = (np.abs(row[:, None, None] - grids).min(-1) ** 2).sum(0).min()
        assert found <= best * (1 + 1e-4) + 1e-12


# What is said of it


@pytest.mark.parametrize("spelled", ["8", "4", "3c", "2p", "4cp", "4w0", "8cpw128"])
def test_a_scheme_is_spelled_as_it_is_read(spelled: str) -> None:
    assert kv.spell(kv.parse(spelled)) == spelled and kv.parse(str(kv.parse(spelled))) == kv.parse(spelled)


def test_sixteen_bits_are_no_small_cache() -> None:
    assert kv.parse(None) is kv.parse(16) is kv.parse("16") is None and kv.spell(None) == "16"
    assert kv.parse(4) == KV(4) == KV(4, by_channel=False, rotate=True, window=64)


@pytest.mark.parametrize("wrong", ["", "5", "0", "-4", "4x", "4w63", "16c", "4pc", "w64", "4w", "9" * 5000, 4.5, "٤"])
def test_other_schemes_are_refused(wrong: object) -> None:
    with pytest.raises(ParetobitError, match="key-value cache.*hint: 16, 8, 4, 3 or 2"):
        kv.parse(wrong)


@pytest.mark.parametrize(("bits", "window"), [(5, 64), (0, 64), (-8, 64), (4, 63)])
def test_the_native_part_refuses_them_too(bits: int, window: int) -> None:
    q, keys, values = inputs(16, 1)
    halves = (keys.view(np.uint16), values.view(np.uint16))
    with pytest.raises(ValueError, match="bits|window"):
        MODULE.attend_through_cache(bits, False, window, True, 9, 1, TOKENS, q, *halves, np.empty_like(q), "scalar")


@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize("tokens", [8000, 8192, 8193])
def test_four_bits_take_three_tenths_of_sixteen(head_dim: int, tokens: int) -> None:
    for spelled, most in (("8", 0.55), ("4", 0.30), ("4c", 0.30), ("3", 0.24), ("2", 0.18)):
        small, half = (kv.cache_bytes(kv.parse(s), 30, 3, head_dim, tokens) for s in (spelled, "16"))
        assert small <= most * half
