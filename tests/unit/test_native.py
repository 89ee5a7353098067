"""The compiled part: the number, the checks, the choice of ISA, and what it refuses."""

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from packed import trellis_codes

from paretobit import native
from paretobit.errors import ParetobitError
from paretobit.qtensor import QTensor
from paretobit.scheme import TRELLIS_BITS, Grid, parse

SCHEMES = ("w1", "w1.58", "w2", "w3", "w4", "w5", "w6", "w8", "w1g16", "w1.58g32", "w8g48",
           "w2g16", "w3g64", "w4g17", "w5g33z", "w6g16z", "w2g16s", "w3g64s", "w4g32s")  # fmt: skip
ISAS = native.available()


def grid_of(text: str) -> Grid:
    return parse(text).weight


def random_tensor(grid: Grid, rows: int, columns: int, seed: int = 0) -> QTensor:
    """Codes, scales and zero points of every kind: negative, subnormal, zero and the largest scales too."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, grid.levels, (rows, columns), dtype=np.uint8)
    shape = (rows, grid.groups(columns))
    words = rng.integers(0, 0x7C00, shape, dtype=np.uint16) | rng.integers(0, 2, shape, dtype=np.uint16) << 15
    zero = rng.integers(0, grid.levels, shape, dtype=np.uint8) if grid.zero == "stored" else None
    return QTensor(codes, words.view(np.float16), zero, grid)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


# The number


@given(st.sampled_from(SCHEMES), st.integers(0, 3), st.integers(1, 150), st.integers(0, 2**32))
def test_dequant_is_the_definition_bit_for_bit(scheme, rows, columns, seed):
    q = random_tensor(grid_of(scheme), rows, columns, seed)
    assert same_bits(native.dequant(q), q.dequant())


def test_every_half_precision_scale_is_widened_exactly():
    words = np.arange(1 << 16, dtype=np.uint16)
    scale = words[(words & 0x7C00) != 0x7C00].view(np.float16)[:, None]
    q = QTensor(np.full(scale.shape, 2, np.uint8), scale, None, Grid("affine", 1.58, 3, None, "mid"))
    assert same_bits(native.dequant(q), scale.astype(np.float32))


def test_dequant_does_not_depend_on_threads():
    q = random_tensor(grid_of("w3g64"), 300, 1030)
    expected = q.dequant()
    for threads in (1, 2, 7):
        assert same_bits(native.dequant(q, threads=threads), expected)


def test_dequant_refuses_what_does_not_fit():
    q = random_tensor(grid_of("w3g16"), 2, 37)
    for bad in (
        QTensor(q.codes, q.scale[:, :2], q.zero, q.grid),
        QTensor(q.codes, q.scale.astype(np.float32), q.zero, q.grid),
        QTensor(q.codes, q.scale, q.zero[:1], q.grid),
        QTensor(q.codes.astype(np.int64), q.scale, q.zero, q.grid),
        QTensor(q.codes[0], q.scale, q.zero, q.grid),
    ):
        with pytest.raises(ParetobitError):
            native.dequant(bad)


@given(
    st.sampled_from([f"w{bits}t" for bits in TRELLIS_BITS]),
    st.integers(1, 140),
    st.integers(1, 600),
    st.integers(0, 2**32),
)
def test_dequant_of_a_trellis_is_the_definition_bit_for_bit(scheme, rows, columns, seed):
    grid, rng = grid_of(scheme), np.random.default_rng(seed)
    words = rng.integers(0, 0x7C00, (rows, 1), np.uint16) | rng.integers(0, 2, (rows, 1), np.uint16) << 15
    q = QTensor(trellis_codes(rng, (rows, columns), grid.bits), words.view(np.float16), None, grid)
    for threads in (1, 3):
        assert same_bits(native.dequant(q, threads=threads), q.dequant())


# The extension itself: its checks hold without the Python in front of it.


def test_the_extension_checks_sizes_before_it_reads():
    from paretobit import _native

    u8 = lambda *shape: np.zeros(shape, np.uint8)  # noqa: E731
    f32 = lambda *shape: np.zeros(shape, np.float32)  # noqa: E731
    u16 = lambda *shape: np.zeros(shape, np.uint16)  # noqa: E731
    _native.pack(u8(2, 8), 3, 8, u8(1, 192), 1)
    _native.unpack(u8(1, 192), 3, 8, u8(2, 8), 1)
    _native.pack(u8(2, 8), 13, 8, u8(1, 256), 1)
    _native.unpack(u8(1, 256), 13, 8, u8(2, 8), 1)
    _native.dequant_trellis(u8(2, 8), u16(2, 1), 4, f32(256), f32(2, 8), 1)
    for call in (
        lambda: _native.pack(u8(2, 8), 3, 8, u8(1, 191), 1),
        lambda: _native.pack(u8(2, 8), 3, 4, u8(1, 192), 1),
        lambda: _native.pack(u8(2, 8), 3, 0, u8(1, 192), 1),
        lambda: _native.pack(u8(2, 8), 8, 8, u8(1, 192), 1),
        lambda: _native.pack(u8(33, 8), 3, 8, u8(1, 192), 1),
        lambda: _native.pack(u8(2, 0), 3, 8, u8(1, 0), 1),
        lambda: _native.pack(u8(0, 2**41), 3, 2**41, u8(0, 2**41 * 12), 1),
        lambda: _native.unpack(u8(1, 191), 3, 8, u8(2, 8), 1),
        lambda: _native.unpack(u8(1, 192), 3, 4, u8(2, 8), 1),
        lambda: _native.unpack(u8(1, 192), 3, 0, u8(2, 8), 1),
        lambda: _native.unpack(u8(1, 192), 18, 8, u8(2, 8), 1),
        lambda: _native.unpack(u8(1, 192), 3, 8, u8(33, 8), 1),
        lambda: _native.unpack(u8(1, 0), 3, 8, u8(2, 0), 1),
        lambda: _native.dequant(u8(2, 8), u16(2, 1), None, 4, 0.0, f32(2, 8), 1),
        lambda: _native.dequant(u8(2, 8), u16(2, 1), None, 0, 0.0, f32(2, 8), 1),
        lambda: _native.dequant(u8(2, 8), u16(2, 2), u8(2, 1), 4, 0.0, f32(2, 8), 1),
        lambda: _native.pack(u8(2, 8), 13, 4, u8(1, 256), 1),
        lambda: _native.pack(u8(2, 8), 13, 8, u8(1, 192), 1),
        lambda: _native.unpack(u8(2, 256), 13, 8, u8(2, 8), 1),
        lambda: _native.unpack(u8(1, 256), -1, 8, u8(2, 8), 1),
        lambda: _native.dequant_trellis(u8(2, 8), u16(2, 2), 4, f32(256), f32(2, 8), 1),
        lambda: _native.dequant_trellis(u8(2, 8), u16(2, 1), 4, f32(255), f32(2, 8), 1),
        lambda: _native.dequant_trellis(u8(2, 8), u16(2, 1), 1, f32(256), f32(2, 8), 1),
        lambda: _native.dequant_trellis(u8(2, 8), u16(2, 1), 9, f32(256), f32(2, 8), 1),
        lambda: _native.dequant_trellis(u8(2, 0), u16(2, 1), 4, f32(256), f32(2, 0), 1),
    ):
        with pytest.raises(ValueError):
            call()
    for call in (  # wrong type or layout: nothing is converted on the way in
        lambda: _native.pack(f32(2, 8), 3, 8, u8(1, 192), 1),
        lambda: _native.pack(u8(2, 16)[:, ::2], 3, 8, u8(1, 192), 1),
        lambda: _native.pack(u8(2, 8), 3, -8, u8(1, 192), 1),
        lambda: _native.unpack(u8(192), 3, 8, u8(2, 8), 1),
        lambda: _native.dequant(u8(2, 8), u16(2, 2), None, -4, 0.0, f32(2, 8), 1),
    ):
        with pytest.raises(TypeError):
            call()
    read_only = u8(1, 192)
    read_only.flags.writeable = False
    with pytest.raises(TypeError):
        _native.pack(u8(2, 8), 3, 8, read_only, 1)


@pytest.mark.parametrize(
    "change",
    [
        {"importance": np.ones(7, np.float32)},
        {"levels": 1},
        {"levels": 257},
        {"group": 0},
        {"group": 3},
        {"kind": 3},
        {"kind": -1},
        {"kind": 1},
        {"zero": None},
        {"zero": np.zeros((2, 3), np.uint8)},
        {"coarse": np.ones(8, np.float32)},
        {"coarse": np.ones(0, np.float32)},
        {"fine": np.ones(17, np.float32)},
        {"scale": np.zeros((2, 1), np.uint16)},
        {"error": np.zeros((1, 2), np.float32)},
        {"isa": "sse9"},
    ],
    ids=lambda change: "-".join(f"{k}={getattr(v, 'shape', v)}" for k, v in change.items()),
)
def test_the_extension_checks_the_search(change):
    from paretobit import _native

    good = {
        "w": np.ones((2, 8), np.float32), "importance": None, "levels": 8, "group": 4, "kind": 0, "offset": 0.0,
        "coarse": np.ones(16, np.float32), "fine": np.ones(16, np.float32),
        "scale": np.zeros((2, 2), np.uint16), "zero": np.zeros((2, 2), np.uint8),
        "error": np.zeros((2, 2), np.float32), "isa": "scalar", "threads": 1,
    }  # fmt: skip
    _native.scale_search(**good)
    with pytest.raises(ValueError):
        _native.scale_search(**(good | change))


# The ISA, and the extension that is not there


def test_the_best_isa_is_the_default_and_scalar_is_always_there(monkeypatch):
    monkeypatch.delenv(native.ISA_VARIABLE, raising=False)
    assert native.isa() == ISAS[0]
    assert ISAS[-1] == "scalar"
    for name in ISAS:
        monkeypatch.setenv(native.ISA_VARIABLE, name)
        assert native.isa() == name


def test_an_isa_that_is_not_here_is_refused(monkeypatch):
    monkeypatch.setenv(native.ISA_VARIABLE, "avx1024")
    with pytest.raises(ParetobitError, match=r"PARETOBIT_ISA=avx1024.*hint: choose from .*scalar"):
        native.isa()
    with pytest.raises(ParetobitError, match="avx1024"):
        native.scale_search(np.ones((1, 4), np.float32), None, grid_of("w3"))


def test_a_missing_extension_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "paretobit._native", None)
    monkeypatch.delattr("paretobit._native", raising=False)
    with pytest.raises(ParetobitError, match=r"cannot be loaded.*hint: .*pip install"):
        native.pack(np.zeros((1, 8), np.uint8), grid_of("w3"))
