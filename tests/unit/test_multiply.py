"""The matrix kernels against their numpy definition: bit for bit, every grid, every ISA, whatever the shape."""

from __future__ import annotations

import numpy as np
import products
import pytest
from packed import trellis_codes

from paretobit import _native, native
from paretobit.qtensor import QTensor
from paretobit.scheme import TRELLIS_BITS, parse

GRIDS = [
    "w1",
    "w1g16",
    "w1.58",
    "w1.58g64",
    "w2",
    "w2g64",
    "w3",
    "w3g32s",
    "w3g64",
    "w4",
    "w4g48",
    "w4g64",
    "w5",
    "w5g64z",
    "w6g16",
    "w6g64z",
    "w8",
    "w8g64",
    *(f"w{bits}t" for bits in TRELLIS_BITS),
    "w2t4",
]
SHAPES = [(32, 64), (33, 100), (70, 330), (1, 5), (193, 80)]
TOKENS = (*range(1, 9), 17)  # each number that a kernel takes together, and one that is cut into unequal parts


def random_tensor(scheme: str, shape: tuple[int, int], extreme: bool = False) -> QTensor:
    grid, rng = parse(scheme).weight, np.random.default_rng([*shape, len(scheme)])
    groups = grid.groups(shape[1])
    if grid.kind == "trellis":
        codes = trellis_codes(rng, shape, grid.bits)
    else:
        codes = rng.integers(0, grid.levels, shape).astype(np.uint8)
    zero = rng.integers(0, grid.levels, (shape[0], groups)).astype(np.uint8) if grid.zero == "stored" else None
    if extreme:  # every sum as large as it can be
        codes[:] = grid.levels - 1
        zero = None if zero is None else np.zeros_like(zero)
    return QTensor(codes, rng.normal(size=(shape[0], groups)).astype(np.float16), zero, grid)


def activations(shape: tuple[int, int]) -> np.ndarray:
    x = np.random.default_rng(7).normal(size=(max(TOKENS), shape[1])).astype(np.float32)
    x[1, : shape[1] // 2] = 0  # blocks without a scale
    x[2] *= np.float32(1e-33)  # counts as zero
    x[3] *= np.float32(1e-28)
    return x


def same_bits(found: np.ndarray, wanted: np.ndarray) -> bool:
    return found.dtype == wanted.dtype and found.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("scheme", GRIDS)
def test_products(scheme: str, shape: tuple[int, int]) -> None:
    q, x = random_tensor(scheme, shape), activations(shape)
    wanted = {
        False: np.stack([products.product_int8(q, row) for row in x]),
        True: np.stack([products.product_float(q, row) for row in x]),
    }
    for isa in native.available():
        for count in TOKENS:
            for fp32 in (False, True):
                found = products.multiply(q, x[:count], fp32, isa, threads=1 + count % 3)
                assert same_bits(found, wanted[fp32][:count]), f"{isa}, {count} tokens, fp32 {fp32}"


@pytest.mark.parametrize("scheme", [scheme for scheme in GRIDS if "t" not in scheme])
def test_no_sum_saturates(scheme: str) -> None:
    """Largest codes times largest activations of one sign: what overflows 16 bits where pairs are added in 16."""
    q = random_tensor(scheme, (32, 192), extreme=True)
    x = np.full((3, 192), 3.0, np.float32) * np.array([[1], [-1], [1]], np.float32)
    wanted = np.stack([products.product_int8(q, row) for row in x])
    if q.zero is not None:  # codes · 127 · columns, whole: what saturation would cut
        exact = (q.grid.levels - 1) * 3.0 * q.scale.astype(np.float64) @ np.diff(group_edges(q))
        assert np.allclose(wanted[0], exact, rtol=1e-6)
    for isa in native.available():
        for count in (1, 3):
            assert same_bits(products.multiply(q, x[:count], False, isa), wanted[:count]), isa


@pytest.mark.parametrize("scheme", [f"w{bits}t" for bits in TRELLIS_BITS])
def test_no_sum_of_the_largest_levels_saturates(scheme: str) -> None:
    q, entries = random_tensor(scheme, (64, 192)), np.array([100] * 16 + [27] * 16, np.uint8)
    x = np.full((3, 192), 3.0, np.float32) * np.array([[1], [-1], [1]], np.float32)
    scale = q.scale[:, 0].astype(np.float32)
    wanted = np.zeros((3, 64), np.float32)
    for _ in range(3):  # blocks: 64 times 127 times the doubled 63.5 of the highest level
        wanted += np.sign(x[:, :1]) * np.float32(64 * 127 * 127) * (scale * (np.float32(0.5) * np.float32(3 / 127)))
    for isa in native.available():
        for count in (1, 3):
            found = products.multiply(q, x[:count], False, isa, entries=entries)
            assert same_bits(found, wanted[:count]), isa


def group_edges(q: QTensor) -> np.ndarray:
    columns = q.codes.shape[1]
    return np.array([*range(0, columns, q.grid.group or columns), columns], np.float64)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("scheme", GRIDS)
def test_a_row_is_the_dequantized_row(scheme: str, shape: tuple[int, int]) -> None:
    q = random_tensor(scheme, shape)
    wanted = q.dequant()
    for isa in native.available():
        for index in {0, shape[0] // 2, shape[0] - 1}:
            assert same_bits(products.row(q, index, isa), wanted[index]), isa


@pytest.mark.parametrize("kind", products.FLOATS)
def test_float_matrices(kind: str) -> None:
    rng = np.random.default_rng(3)
    for shape in SHAPES:
        w = rng.normal(size=shape).astype(np.float32)
        if kind == "bf16":
            raw = (w.view(np.uint32) >> 16).astype(np.uint16)
            w = (raw.astype(np.uint32) << 16).view(np.float32)
        else:
            raw = w.astype(np.float16 if kind == "fp16" else np.float32)
            w = raw.astype(np.float32)
        x = activations(shape)
        wanted = np.stack([products.product_rows(w, row) for row in x])
        flat = raw.view(np.uint8).reshape(-1)
        for isa in native.available():
            out, one = np.empty_like(wanted), np.empty(shape[1], np.float32)
            _native.multiply(products.FLOATS[kind], shape[1], shape[1], 0, flat, None, None, x, out, False, isa, 2)
            assert same_bits(out, wanted), isa
            _native.row(products.FLOATS[kind], shape[0], shape[1], 0, flat, None, None, shape[0] - 1, one, isa)
            assert same_bits(one, w[-1]), isa


def test_halves_of_every_kind() -> None:
    """All 65,536 halves, subnormal, infinite and NaN, become the floats that numpy makes of them."""
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).reshape(64, 1024)
    wanted = halves.astype(np.float32)
    for isa in native.available():
        for i in range(0, 64, 7):
            one = np.empty(1024, np.float32)
            _native.row(8, 64, 1024, 0, halves.view(np.uint8).reshape(-1), None, None, i, one, isa)
            assert ((one == wanted[i]) | (np.isnan(one) & np.isnan(wanted[i]))).all(), isa


def test_what_is_not_a_number_comes_out_again() -> None:
    q = random_tensor("w4g64", (32, 128))
    for bad in (np.nan, np.inf):
        x = np.ones((1, 128), np.float32)
        x[0, 100] = bad
        for isa in native.available():
            assert np.isnan(products.multiply(q, x, False, isa)).all(), isa


WRONG = {
    "an unknown format": {0: 18},
    "a trellis without a table": {0: 12},
    "a table without a trellis": {12: np.zeros(32, np.uint8)},
    "no columns": {1: 0},
    "no group": {2: 0},
    "a zero point too large": {3: 256},
    "codes cut short": {4: np.zeros(100, np.uint8)},
    "scales cut short": {5: np.zeros(31, np.uint16)},
    "no scales": {5: None},
    "zero points of another size": {6: np.zeros(15, np.uint8)},
    "activations of another width": {7: np.zeros((1, 63), np.float32)},
    "an output for more tokens": {8: np.zeros((2, 32), np.float32)},
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_sizes_are_refused(what: str) -> None:
    kind, group, twice, *arrays = products.arguments(random_tensor("w4g64", (32, 64)))
    call = [
        kind,
        64,
        group,
        twice,
        *arrays,
        np.zeros((1, 64), np.float32),
        np.zeros((1, 32), np.float32),
        False,
        "scalar",
        1,
        None,
    ]
    _native.multiply(*call)
    for place, value in WRONG[what].items():
        call[place] = value
    with pytest.raises(ValueError):
        _native.multiply(*call)


WRONG_RINGS = {
    "no table": {12: None},
    "a table cut short": {12: np.zeros(31, np.uint8)},
    "levels above 127": {12: np.array([0] * 15 + [100] + [28] + [0] * 15, np.uint8)},
    "groups": {2: 32},
    "zero points": {6: np.zeros(16, np.uint8)},
    "codes of another width": {4: np.zeros(512, np.uint8)},
    "scales of tiles of 32": {5: np.zeros(32, np.uint16)},
}


@pytest.mark.parametrize("what", WRONG_RINGS)
def test_wrong_trellises_are_refused(what: str) -> None:
    q, x, out = random_tensor("w2t", (32, 64)), np.zeros((1, 64), np.float32), np.zeros((1, 32), np.float32)
    kind, group, twice, *arrays = products.arguments(q)
    call = [kind, 64, group, twice, *arrays, x, out, False, "scalar", 1, products.table(q)]
    _native.multiply(*call)
    for place, value in WRONG_RINGS[what].items():
        call[place] = value
    with pytest.raises(ValueError):
        _native.multiply(*call)
