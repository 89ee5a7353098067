"""GPTQ against brute force: every step solved anew with an explicit inverse, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from paretobit import native
from paretobit.compress.grid import Affine, nearest
from paretobit.compress.methods import gptq, rtn
from paretobit.compress.stats import TapStats
from paretobit.errors import ParetobitError
from paretobit.scheme import parse

ROWS, WIDTH, TOKENS = 12, 40, 200


def problem(seed: int, width: int = WIDTH) -> tuple[torch.Tensor, TapStats]:
    """A matrix and the statistics of correlated inputs whose channels differ a hundredfold in size, in float64."""
    random = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=random, dtype=torch.float64)
    x = torch.randn(TOKENS, width, generator=random, dtype=torch.float64) @ mix
    x = x * torch.logspace(-1, 1, width, dtype=torch.float64)[torch.randperm(width, generator=random)]
    full = x + 0.3 * torch.randn(TOKENS, width, generator=random, dtype=torch.float64) @ mix
    stats = TapStats(width, TOKENS, hessian=x.T @ x, cross=(full - x).T @ x, paired=TOKENS)
    return torch.randn(ROWS, width, generator=random, dtype=torch.float64), stats


def brute_force(w: torch.Tensor, stats: TapStats, affine: Affine, params: gptq.Params) -> torch.Tensor:
    """Optimal brain surgeon, one column at a time: the columns still free move by the least-squares answer to the error
    (asymmetric: also to what the full-precision inputs miss), with the inverse of their own Hessian each time."""
    h = stats.hessian / stats.n
    h = h + params.damp * h.diagonal().mean() * torch.eye(len(h), dtype=h.dtype)
    shift = stats.cross / stats.paired
    order = torch.argsort(stats.hessian.diagonal(), descending=True) if params.act_order else torch.arange(len(h))
    w, codes = w.clone(), torch.empty_like(w)
    for step, j in enumerate(order.tolist()):
        free = order[step:].tolist()
        inverse = torch.linalg.inv(h[free][:, free])
        scale, zero = affine.of_group(int(affine.group_of[j]))
        column = w[:, j].clone()
        codes[:, j] = nearest(column, scale, zero, affine.grid.levels)
        error = column - scale * (codes[:, j] - zero)
        w[:, free] -= error[:, None] * (inverse[0] / inverse[0, 0])
        later = free[1:]
        if params.asymmetric and later:
            towards = shift[j, later] @ torch.linalg.inv(h[later][:, later])
            w[:, later] += params.asymmetric * column[:, None] * towards
    return codes


@pytest.mark.parametrize("scheme", ["w3g16", "w2g16", "w4", "w3g16s", "w2"])
@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("asymmetric", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("block", [128, 16, 7])
def test_codes_equal_brute_force(scheme: str, act_order: bool, asymmetric: float, block: int) -> None:
    w, stats = problem(seed=block)
    params = gptq.Params(act_order=act_order, asymmetric=asymmetric, block=block)
    affine = Affine.search(w, parse(scheme).weight, stats.hessian.diagonal())
    order, upper, pull = gptq.factor(stats, params)
    codes = gptq.feed_back(w, affine, order, upper, pull, block)
    # Both are exact up to float64 rounding (1e-13 of a step), so no code may differ.
    assert torch.equal(codes.double(), brute_force(w, stats, affine, params))


@pytest.mark.parametrize("isa", native.available())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("asymmetric", [0.0, 0.5])
@pytest.mark.parametrize("scheme", ["w3g16", "w3"])
def test_the_native_loop_equals_the_torch_loop(
    isa: str, dtype: torch.dtype, asymmetric: float, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(native.ISA_VARIABLE, isa)
    w, stats = problem(5)
    grid, params = parse(scheme).weight, gptq.Params(asymmetric=asymmetric)
    order, upper, pull = gptq.factor(stats, params)
    affine = Affine.search(w, grid)
    part = slice(8, 31)
    square = (
        upper[part, part].to(dtype).contiguous(),
        None if pull is None else pull[part, part].to(dtype).contiguous(),
    )
    results = []
    for one_block in (gptq.torch_block, gptq._native_block):
        rest = w[:, order].to(dtype).contiguous()
        codes = torch.zeros(w.shape, dtype=torch.uint8)
        errors, moved = one_block(rest, codes, part, *square, affine, affine.group_of[order[part]])
        results.append((rest, codes, errors, torch.zeros(0) if moved is None else moved))
    # The same operations in the same order, none of them fused: no tolerance.
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)


def test_run_packs_what_feed_back_found() -> None:
    w, stats = problem(1)
    grid, params = parse("w3g16").weight, gptq.Params()
    q = gptq.run(w, stats, grid, params)
    affine = Affine.search(w, grid, stats.hessian.diagonal())
    assert np.array_equal(q.codes, brute_force(w, stats, affine, params).numpy().astype(np.uint8))
    assert q.scale.dtype == np.float16 and q.zero is not None and q.zero.dtype == np.uint8


def test_gptq_loses_less_than_rtn_under_its_own_measure() -> None:
    w, stats = problem(2)
    grid = parse("w2g16").weight

    def loss(q: object) -> float:
        error = torch.from_numpy(q.dequant()).double() - w
        return float((error @ stats.hessian * error).sum())

    nearest_codes = rtn.run(w, None, grid, rtn.Params())
    assert loss(gptq.run(w, stats, grid, gptq.Params(asymmetric=0.0))) < 0.5 * loss(nearest_codes)


def test_a_dead_channel_is_rounded_to_nearest_and_disturbs_nobody() -> None:
    w, stats = problem(3)
    dead = [4, 21]
    alive = [j for j in range(WIDTH) if j not in dead]
    stats.hessian[dead] = stats.hessian[:, dead] = 0
    stats.cross[dead] = stats.cross[:, dead] = 0
    grid = parse("w3").weight
    affine = Affine.search(w, grid)
    params = gptq.Params(damp=0.0)
    codes = gptq.feed_back(w, affine, *gptq.factor(stats, params), 128)
    assert torch.equal(codes[:, dead].double(), affine.round(w)[:, dead])
    live = (stats.hessian[alive][:, alive], stats.cross[alive][:, alive])
    small = TapStats(len(alive), stats.n, hessian=live[0], cross=live[1], paired=stats.paired)
    without = gptq.feed_back(w[:, alive], affine, *gptq.factor(small, params), 128)
    assert torch.equal(codes[:, alive], without)


@pytest.mark.parametrize("act_order", [True, False])
def test_catching_up_is_the_least_squares_answer(act_order: bool) -> None:
    """What the stream lacks, as far as this tap's inputs tell it, is added to the outputs by the weights."""
    w, stats = problem(5)
    random = torch.Generator().manual_seed(5)
    lag = torch.randn(ROWS, WIDTH, generator=random, dtype=torch.float64)
    stats.lag = lag * TOKENS  # over `paired` tokens
    params = gptq.Params(damp=0.01, asymmetric=0, act_order=act_order)
    order, upper, _ = gptq.factor(stats, params)
    h = stats.hessian / stats.n
    h = h + params.damp * h.diagonal().mean() * torch.eye(WIDTH, dtype=h.dtype)
    expected = w + 0.5 * lag @ torch.linalg.inv(h)
    assert torch.allclose(gptq.caught_up(w, stats, order, upper, 0.5), expected, rtol=1e-8, atol=1e-10)
    assert gptq.caught_up(w, stats, order, upper, 0.0) is w
    part = stats.of_rows(slice(3, 7))
    assert torch.allclose(gptq.caught_up(w[3:7], part, order, upper, 0.5), expected[3:7], rtol=1e-8, atol=1e-10)


def test_damping_rises_until_a_singular_hessian_factors(capsys: pytest.CaptureFixture) -> None:
    width = 64
    x = torch.randn(3, width)  # rank 3 of 64
    stats = TapStats(width, 3, hessian=x.T @ x * 1e6)
    gptq.run(torch.randn(4, width), stats, parse("w3").weight, gptq.Params(damp=1e-9))
    assert "raising it tenfold" in capsys.readouterr().err


def test_a_hessian_that_is_not_finite_is_refused() -> None:
    w, stats = problem(4)
    stats.hessian[0, 0] = float("nan")
    with pytest.raises(ParetobitError, match="not finite.*hint:"):
        gptq.run(w, stats, parse("w3").weight, gptq.Params())


def test_statistics_add_up_to_the_gram_matrix_and_merge() -> None:
    width = 600  # wide enough for striping
    random = torch.Generator().manual_seed(0)
    x, full = (torch.randn(50, width, generator=random) for _ in range(2))
    needs, behind = frozenset({"hessian", "cross", "lag", "absmax", "absmean"}), full[:, :24]
    whole, first, second = (TapStats.empty(width, needs, stream=24) for _ in range(3))
    whole.add(x, full, behind=behind)
    first.add(x[:20], full[:20], behind=behind[:20])
    second.add(x[20:], full[20:], behind=behind[20:])
    first.merge(second)
    for stats in (whole.complete(), first.complete()):
        assert stats.n == stats.paired == 50
        # Sums of 50 products in float32: 50 roundings of at most eps each, on values of at most max|x|² each.
        bound = 50 * 50 * torch.finfo(torch.float32).eps * float(x.abs().max() * full.abs().max() * 2)
        assert (stats.hessian - (x.double().T @ x.double())).abs().max() < bound
        assert (stats.cross - ((full - x).double().T @ x.double())).abs().max() < bound
        assert (stats.lag - (behind.double().T @ x.double())).abs().max() < bound
        assert torch.equal(stats.hessian, stats.hessian.T)
        assert torch.equal(stats.absmax, x.abs().amax(0))
    assert torch.allclose(whole.absmean, x.abs().sum(0), rtol=1e-5)


def test_corrections_are_trusted_by_the_text_there_is() -> None:
    stats = TapStats.empty(96, frozenset(), torch.device("cpu"), 32)
    stats.paired = 16 * 32
    found = gptq.as_trusted(gptq.Params(asymmetric=0.6, residual=1.0, trusted=True), stats)
    assert (found.asymmetric, found.residual) == pytest.approx((0.3, 0.2))
