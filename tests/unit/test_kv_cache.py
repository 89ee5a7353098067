"""Attention on codes against its numpy definition, to the bit, on every ISA."""

from __future__ import annotations

import numpy as np
import pytest

from paretobit import kv, native
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


def scheme_of(scheme: KV | None) -> object:
    made = MODULE.CacheScheme()
    if scheme is not None:
        made.bits, made.by_channel, made.window = scheme.bits, scheme.by_channel, scheme.window
    return made


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
    MODULE.attend_through_cache(scheme_of(kv.parse(scheme)), int8, window, step, cut, q, *halves, out, isa)
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
