"""The trellis grid: what a code means, the search for codes, and error feedback around it."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from packed import trellis_codes

from paretobit import native, trellis
from paretobit.errors import ParetobitError
from paretobit.qtensor import QTensor
from paretobit.scheme import TRELLIS_BITS, Grid, parse

SCHEMES = [f"w{bits}t{window}" for bits, window in trellis.TABLES]
# Mean squared error of unit Gaussian numbers at most; the bound is 4^-bits.
ERRORS = {
    "w1t": 0.2935, "w1.5t": 0.1597, "w2t": 0.0803, "w2.5t": 0.0441, "w3t": 0.0220, "w3.5t": 0.0130, "w4t": 0.00605,
}  # fmt: skip


def grid_of(scheme: str) -> Grid:
    return parse(scheme).weight


def gaussian(rows: int, columns: int, grid: Grid, seed: int = 0) -> np.ndarray:
    """float32 (rows, columns) in levels."""
    x = np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)
    return x * np.float32(trellis.deviation(grid))


@pytest.fixture(params=native.available())
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(native.ISA_VARIABLE, request.param)
    return request.param


@pytest.mark.parametrize("key", trellis.TABLES)
def test_tables_fit_seven_bits(key: tuple[float, int]) -> None:
    low, high, deviation = trellis.TABLES[key]
    assert len(low) == len(high) == 16 and min(*low, *high) >= 0 and max(low) + max(high) <= 127
    assert 10 < deviation < 64
    assert trellis.table(*key).dtype == np.uint8
    if key[1] == 4:
        assert len(set(high)) == 1, "a window of four bits has no second table"


@pytest.mark.parametrize("rows", [1, 2, 63, 64, 65, 200])
def test_the_ring_visits_every_row_once(rows: int) -> None:
    numbers = np.arange(1, rows + 1)[:, None]
    rings = trellis.ring(numbers)
    assert rings.shape == (-(-rows // 64), 64, 1)
    assert sorted(rings[rings > 0].tolist()) == list(range(1, rows + 1))
    assert np.array_equal(trellis.unring(rings, rows), numbers)
    if rows >= 64:
        assert rings[0, :6, 0].tolist() == [1, 17, 33, 49, 2, 18]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("rows", [1, 5, 64, 130])
def test_levels_by_their_definition(scheme: str, rows: int) -> None:
    """The window of a row, bit by bit out of the stream of its ring."""
    grid = grid_of(scheme)
    bits, entries = grid.bits, trellis.of_grid(grid)
    codes = trellis_codes(np.random.default_rng(1), (rows, 3), bits)
    found = trellis.levels(codes, bits, entries)
    for row, column in itertools.product(range(rows), range(3)):
        tile, place = row // 64, row % 16 * 4 + row % 64 // 16
        stream = ""
        for back in reversed(range(8)):
            at = (place - back) % 64
            other = 64 * tile + at % 4 * 16 + at // 4
            stream += format(int(codes[other, column]) if other < rows else 0, f"0{trellis.widths(bits)[at % 4]}b")
        window = int(stream[-8:], 2)
        assert found[row, column] == entries[window % 16] + entries[16 + window // 16]


def test_rows_are_taken_in_whole_rings() -> None:
    grid = grid_of("w2t")
    codes = np.random.default_rng(2).integers(0, 4, (150, 5), np.uint8)
    q = QTensor(codes, np.full((150, 1), 0.5, np.float16), None, grid)
    whole = q.dequant()
    assert np.array_equal(q.dequant(slice(64, 128)), whole[64:128])
    assert np.array_equal(q.dequant(slice(128, 150)), whole[128:])
    assert np.array_equal(native.dequant(q), whole)
    with pytest.raises(ParetobitError, match="cut rings of 64; hint: take whole rings"):
        q.dequant(slice(10, 64))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("rows", [1, 3, 61, 63, 64, 200])
def test_native_search_equals_its_definition(scheme: str, rows: int, isa: str) -> None:
    grid = grid_of(scheme)
    x = gaussian(rows, 7, grid)
    x[:, 0] = 0  # all paths that mirror each other cost the same: ties
    x[:, 1] *= 100
    weight = np.random.default_rng(3).uniform(0, 2, rows).astype(np.float32)
    weight[rows // 2] = 0
    expected = trellis.encode(x, weight, grid.bits, trellis.of_grid(grid))
    assert np.array_equal(native.trellis_encode(x, weight, grid), expected)
    assert np.array_equal(native.trellis_encode(x, weight, grid, threads=1), expected)


@pytest.mark.parametrize("scheme", ["w2t", "w2.5t", "w4t"])
def test_the_search_finds_the_best_path_of_its_closing_state(scheme: str) -> None:
    """On two rows all codes can be tried; the zeros of the other 62 fix where the ring closes."""
    grid = grid_of(scheme)
    bits, entries = grid.bits, trellis.of_grid(grid)
    x = gaussian(2, 9, grid, seed=4)
    found = trellis.encode(x, np.ones(2, np.float32), bits, entries)
    tried = list(itertools.product(range(1 << trellis.widths(bits)[0]), repeat=2))  # both are of the first set
    every = np.array(tried, np.uint8).T  # (2, tries)
    value = trellis.levels(every, bits, entries).astype(np.float64) - 63.5
    for column in range(9):
        cost = ((x[:, column, None] - value) ** 2).sum(0)
        assert cost[tried.index(tuple(found[:, column].tolist()))] == cost.min()


@pytest.mark.parametrize("scheme", ERRORS)
def test_the_measured_error(scheme: str) -> None:
    grid = grid_of(scheme)
    rng, deviation, total = np.random.default_rng(5), np.float32(trellis.deviation(grid)), 0.0
    for _ in range(4):
        x = rng.standard_normal((8192, 500)).astype(np.float32)
        codes = native.trellis_encode(x * deviation, np.ones(8192, np.float32), grid)
        q = QTensor(codes, np.ones((8192, 1), np.float16), None, grid)
        total += float(np.mean((x - native.dequant(q) / deviation) ** 2, dtype=np.float64)) / 4
    assert 4.0**-grid.bits < total <= ERRORS[scheme], total


@pytest.mark.parametrize("scheme", [f"w{bits}t" for bits in TRELLIS_BITS])
@pytest.mark.parametrize("pulled", [False, True])
def test_feedback_equals_a_loop_over_columns(scheme: str, pulled: bool, isa: str) -> None:
    grid = grid_of(scheme)
    rng, rows, start, count = np.random.default_rng(6), 150, 3, 11
    rest = rng.standard_normal((rows, 17)).astype(np.float32)
    upper = np.triu(rng.standard_normal((count, count)).astype(np.float32)) + 2 * np.eye(count, dtype=np.float32)
    pull = np.triu(0.1 * rng.standard_normal((count, count)).astype(np.float32), 1) if pulled else None
    scale = rng.uniform(0.02, 0.08, rows).astype(np.float16).astype(np.float32)
    scale[7] = 0
    weight = rng.uniform(0, 2, rows).astype(np.float32)
    codes = np.full((rows, 17), 99, np.uint8)
    errors, moved = native.trellis_feed_back(rest, start, upper, pull, scale, weight, grid, codes)
    columns = rest[:, start : start + count].copy()
    for j in range(count):
        here = columns[:, j].copy()
        x = here / np.where(scale == 0, np.float32(1), scale)
        code = trellis.encode(x[:, None], weight, grid.bits, trellis.of_grid(grid))
        value = trellis.levels(code, grid.bits, trellis.of_grid(grid))[:, 0].astype(np.float32) - np.float32(63.5)
        error = (here - scale * value) / upper[j, j]
        assert np.array_equal(codes[:, start + j], code[:, 0])
        assert np.array_equal(errors[:, j], error)
        for k in range(j + 1, count):
            moving = columns[:, k] if pull is None else columns[:, k] + pull[j, k] * here
            columns[:, k] = moving - upper[j, k] * error
        if pull is not None:
            assert moved is not None and np.array_equal(moved[:, j], here)
    assert (np.delete(codes, range(start, start + count), 1) == 99).all()


def test_what_the_search_refuses() -> None:
    grid, x = grid_of("w2t"), np.zeros((64, 4), np.float32)
    ones, codes = np.ones(64, np.float32), np.zeros((64, 4), np.uint8)
    good = (x, 0, None, None, ones, ones, grid, codes)
    native.trellis_feed_back(*good)
    for at, bad in ((4, ones[:5]), (5, ones[:5]), (4, -ones), (5, ones * np.nan), (4, ones * np.inf), (7, codes[:5])):
        given = list(good)
        given[at] = bad
        with pytest.raises(ParetobitError, match="; hint: "):
            native.trellis_feed_back(*given)  # type: ignore[arg-type]
    with pytest.raises(ParetobitError, match="is no trellis; hint: "):
        trellis.of_grid(grid_of("w3g64"))


@pytest.mark.parametrize("scheme", ["w1t", "w1.5t", "w2t", "w2.5t", "w3t", "w3.5t", "w4t", "w2t4"])
def test_the_nearest_path_is_what_the_definition_finds(scheme: str) -> None:
    """Rounding without data: the search by numpy on w ÷ scale, then the scale with the least squared error."""
    import torch

    from paretobit.compress.methods import rtn

    grid = parse(scheme).weight
    w = torch.randn(70, 150, generator=torch.Generator().manual_seed(3)) * torch.logspace(-1, 0, 70)[:, None]
    w[5] = 0
    q = rtn.run(w, None, grid, rtn.Params())
    assert not np.isnan(q.scale).any() and not q.dequant()[5].any()
    scale = (w.square().mean(1).sqrt() / trellis.deviation(grid)).half().float().numpy()
    share = scale**2 / (scale**2).mean()
    x = np.divide(w.numpy(), scale[:, None], out=np.zeros(w.shape, np.float32), where=scale[:, None] > 0)
    assert np.array_equal(q.codes, trellis.encode(x, share.astype(np.float32), grid.bits, trellis.of_grid(grid)))
    loss = ((q.dequant() - w.numpy()) ** 2).sum(1)
    for factor in (0.98, 1.02):  # apart from 1 by far more than a half's rounding
        other = dataclasses.replace(q, scale=(q.scale.astype(np.float32) * factor).astype(np.float16))
        assert (((other.dequant() - w.numpy()) ** 2).sum(1) >= loss).all()


def test_a_row_that_lost_its_codes_to_its_ring_is_none() -> None:
    import torch

    from paretobit.compress.methods import trellis as method

    w = torch.randn(64, 96, generator=torch.Generator().manual_seed(4))
    w[1] *= 1e-4
    found = method.nearest(w, parse("w1t").weight).dequant()
    assert (found[1] ** 2).sum() <= (w[1] ** 2).sum() and (found[0] ** 2).sum() > 0.5 * (w[0] ** 2).sum()
