"""The scale search: C++ against its numpy definition on every ISA, both against the exhaustive optimum."""

import numpy as np
import pytest

from paretobit import native, scales
from paretobit.errors import ParetobitError
from paretobit.qtensor import QTensor, spread
from paretobit.scheme import Grid, parse

SCHEMES = ("w1", "w1.58", "w2", "w3", "w4", "w5", "w6", "w8", "w1g16", "w1.58g32", "w8g48",
           "w2g16", "w3g64", "w4g17", "w5g33z", "w6g16z", "w2g16s", "w3g64s", "w4g32s")  # fmt: skip


def grid_of(text: str) -> Grid:
    return parse(text).weight


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def weights(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Rows of many kinds: Gaussian, heavy tails, zeros, one value, one sign, tiny scales, the largest floats."""
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((rows, columns)) * 0.02
    w[1] = rng.standard_t(2, columns)
    w[2] = 0
    w[3] = -0.25
    w[4] = np.abs(w[4]) + 0.01
    w[5] *= 1e-4
    w[6] *= 1e-30
    w[7] = np.clip(w[7] * 1e40, -3e38, 3e38)
    w[8, : columns // 2] = 0
    return w.astype(np.float32)


def importances(columns: int) -> list[np.ndarray | None]:
    h = np.exp(1.5 * np.random.default_rng(1).standard_normal(columns)).astype(np.float32)
    h[::7] = 0
    return [None, h]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_search_equals_the_definition_on_every_isa(scheme, monkeypatch):
    grid, w = grid_of(scheme), weights(9, 70)
    for h in importances(70):
        scale, zero, error = scales.scale_search_with_error(w, h, grid)
        for isa in native.available():
            monkeypatch.setenv(native.ISA_VARIABLE, isa)
            found = native.scale_search_with_error(w, h, grid)
            assert same_bits(found[0], scale)
            assert same_bits(found[2], error)
            assert (found[1] is None) == (zero is None)
            assert zero is None or same_bits(found[1], zero)


def nearest(w: np.ndarray, q: QTensor) -> np.ndarray:
    """float64 dequantized nearest grid points, found by trying every code."""
    values = np.arange(q.grid.levels)
    zero = np.full(q.scale.shape, q.grid.offset) if q.zero is None else q.zero
    steps = values - zero[..., None].astype(np.float64)
    points = q.scale.astype(np.float64)[..., None] * steps  # (out, groups, levels)
    columns = np.arange(w.shape[1]) // (q.grid.group or w.shape[1])
    points = points[:, columns]
    best = np.abs(points - w[..., None]).argmin(axis=2)
    return np.take_along_axis(points, best[..., None], axis=2)[..., 0]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_reported_error_is_that_of_the_nearest_codes(scheme):
    """To the bit it is the definition's; here: to what n float32 steps may round, u = 2^-24 each.

    The sum of n terms and their products: (n + 8) u relative. A miss w - s q carries u |s q|, so its square
    2 u |miss| |s q| + (u s q)^2. And w * (1 / s) is off by up to 4 u |w / s| steps: a weight that lies so close to
    the middle of two points may go to the other, at 2 s * 4 u |w| more.
    """
    grid, w = grid_of(scheme), weights(9, 70)[[0, 1, 3, 4, 8]]
    for importance in importances(70):
        scale, zero, error = native.scale_search_with_error(w, importance, grid)
        q = QTensor(np.zeros(w.shape, np.uint8), scale, zero, grid)
        h = np.float64(1) if importance is None else importance.astype(np.float64)
        point, step, u = nearest(w, q), np.abs(spread(scale.astype(np.float64), grid, 70)), 2.0**-24
        miss = np.abs(w - point)
        slack = u * h * (2 * miss * np.abs(point) + u * point**2 + 8 * step * np.abs(w))
        starts = np.arange(0, 70, grid.group or 70)
        expected = np.add.reduceat(h * miss**2, starts, axis=1)
        bound = np.add.reduceat(slack, starts, axis=1) + (70 + 8) * u * expected
        if importance is not None:  # groups without importance are searched, and reported, as if all weighed 1
            alive = np.add.reduceat(h, starts) > 0
            expected, error, bound = expected[:, alive], error[:, alive], bound[:, alive]
        assert (np.abs(error - expected) <= bound).all()


def optimum(w: np.ndarray, h: np.ndarray, grid: Grid) -> float:
    """Least weighted error of one group over every zero point and every fp16 scale that could matter."""
    top = grid.levels - 1
    zeros = np.arange(grid.levels) if grid.zero == "stored" else [grid.offset]
    largest = np.float16(np.abs(w).max() * 2 / 0.5)  # beyond it no weight reaches half a step of any grid
    smallest = np.float16(np.abs(w).max() / (40 * top))
    bits = np.arange(smallest.view(np.uint16), largest.view(np.uint16) + 1, dtype=np.uint16)
    scale = bits.view(np.float16).astype(np.float64)
    if grid.zero == "twos":
        scale = np.concatenate([scale, -scale])
    best = np.inf
    for zero in zeros:
        codes = np.clip(np.rint(w[:, None] / scale + zero), 0, top)
        error = h @ (w[:, None] - scale * (codes - zero)) ** 2
        best = min(best, error.min())
    return best


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("scheme", ["w1g16", "w1.58g16", "w2g16", "w3g16", "w4g16", "w2g16s", "w3g16s", "w4g16s"])
def test_search_is_within_a_percent_of_the_exhaustive_optimum(scheme, weighted):
    """The search is built to miss at most 1 % of the error on average; no choice may beat the optimum."""
    rng = np.random.default_rng(3)
    grid, w = grid_of(scheme), (rng.standard_normal((12, 16)) * 0.05).astype(np.float32)
    w[6:] = rng.laplace(size=(6, 16)) * 0.05
    h = np.exp(rng.standard_normal(16)).astype(np.float32) if weighted else None
    error = native.scale_search_with_error(w, h, grid)[2][:, 0]
    ones = np.ones(16, np.float32) if h is None else h
    best = np.array([optimum(row.astype(np.float64), ones.astype(np.float64), grid) for row in w])
    assert (error >= best * (1 - 20 * 2.0**-24)).all()
    assert error.sum() <= 1.01 * best.sum()


def test_an_all_zero_group_is_exactly_zero():
    w = np.zeros((2, 64), np.float32)
    for scheme in SCHEMES:
        scale, zero, error = native.scale_search_with_error(w, None, grid_of(scheme))
        assert scale.tobytes() == bytes(scale.nbytes)  # +0, not -0
        assert zero is None or not zero.any()
        assert not error.any()


def test_a_representable_group_is_found_exactly():
    grid = grid_of("w3g64")
    rng = np.random.default_rng(5)
    codes = rng.integers(0, 8, (4, 64), dtype=np.uint8)
    codes[:, :2] = 0, 7
    scale = np.array([[0.5], [0.125], [2], [0.0625]], np.float16)
    q = QTensor(codes, scale, np.array([[3], [4], [0], [7]], np.uint8), grid)
    found = native.scale_search_with_error(q.dequant(), None, grid)
    assert not found[2].any()
    assert same_bits(found[0], q.scale)
    assert same_bits(found[1], q.zero)


def test_twos_grids_use_the_sign_that_reaches_further():
    w = np.tile(np.arange(-3, 5, dtype=np.float32), (1, 4))  # 4 has no place on -4 ... 3
    scale, _, error = native.scale_search_with_error(w, None, grid_of("w3"))
    assert scale[0, 0] == -1
    assert error[0, 0] == 0


def test_importance_decides_which_weights_are_served():
    w = np.array([[0.1, -0.1] * 8 + [1.0]], np.float32)
    h = np.ones(17, np.float32)
    h[-1] = 0
    scale, _, error = native.scale_search_with_error(w, h, grid_of("w1"))
    assert scale[0, 0] == np.float16(0.2)
    # |0.1 - fp16(0.2) / 2| <= 2^-14 (half a unit of fp16 in [0.125, 0.25)), squared, sixteen times
    assert error[0, 0] <= 16 * 2.0**-28
    assert native.scale_search(w, None, grid_of("w1"))[0][0, 0] > 0.25


def test_a_group_without_importance_is_searched_as_if_all_weighed_the_same():
    w, h = weights(9, 64), np.ones(64, np.float32)
    h[16:32] = 0
    for search in (scales.scale_search_with_error, native.scale_search_with_error):
        weighted, plain = (search(w, importance, grid_of("w3g16")) for importance in (h, None))
        assert all(same_bits(a, b) for a, b in zip(weighted, plain, strict=True))


def test_search_does_not_depend_on_threads():
    w = weights(60, 130)
    one = native.scale_search_with_error(w, None, grid_of("w3g64"), threads=1)
    many = native.scale_search_with_error(w, None, grid_of("w3g64"), threads=6)
    assert all(same_bits(a, b) for a, b in zip(one, many, strict=True))


@pytest.mark.parametrize("search", [scales.scale_search_with_error, native.scale_search], ids=["numpy", "native"])
@pytest.mark.parametrize(
    ("w", "h", "grid"),
    [
        (np.full((2, 4), np.nan, np.float32), None, grid_of("w3")),
        (np.full((2, 4), np.inf, np.float32), None, grid_of("w3")),
        (np.zeros((2, 4)), None, grid_of("w3")),
        (np.zeros(4, np.float32), None, grid_of("w3")),
        (np.zeros((2, 0), np.float32), None, grid_of("w3")),
        (np.zeros((2, 4), np.float32), np.ones(3, np.float32), grid_of("w3")),
        (np.zeros((2, 4), np.float32), np.ones(4), grid_of("w3")),
        (np.zeros((2, 4), np.float32), np.full(4, -1, np.float32), grid_of("w3")),
        (np.zeros((2, 4), np.float32), np.full(4, np.inf, np.float32), grid_of("w3")),
        (np.zeros((2, 4), np.float32), None, grid_of("w2t")),
        (np.zeros((2, 4), np.float32), None, grid_of("bf16")),
    ],
)
def test_search_refuses_what_it_is_not_defined_for(search, w, h, grid):
    with pytest.raises(ParetobitError, match="hint: "):
        search(w, h, grid)
