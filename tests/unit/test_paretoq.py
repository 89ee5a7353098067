"""ParetoQ's quantizers, against its published formulas in double precision, written here a second time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from paretobit import native
from paretobit.compress.methods import paretoq
from paretobit.scheme import Grid, parse

WIDTHS = ("w1", "w1.58", "w2", "w3", "w4")
ROWS, COLUMNS = 6, 70
Published = tuple[np.ndarray, np.ndarray, np.ndarray]


def published(bits: float, w: np.ndarray, alpha: np.ndarray) -> Published:
    """(rounded weights, d rounded / d w, d rounded / d α before the gradient's share) of w (out, in), α (out, 1)."""
    x = w / alpha
    if bits == 1:
        sign = np.where(w >= 0, 1.0, -1.0)
        return alpha * sign, (np.abs(x) <= 1) * 1.0, sign
    if bits == 1.58:
        q = np.round(1.5 * np.clip(x, -0.99, 0.99)) / 1.5
        inside = np.abs(x) <= 0.99
        return alpha * q, inside * 1.0, np.where(inside, q - x, np.sign(x))
    if bits == 2:
        q = (np.round(2 * np.clip(x, -0.99, 0.99) - 0.5) + 0.5) / 2
        inside = np.abs(x) <= 0.99
        return alpha * q, inside * 1.0, np.where(inside, q - x, 0.75 * np.sign(x))
    low, high = {3: (-4, 3), 4: (-8, 7)}[int(bits)]
    q = np.clip(np.round(x), low, high)
    inside = (low <= x) & (x <= high)
    return alpha * q, inside * 1.0, np.where(inside, np.round(x) - x, q)


def share(bits: float, count: int) -> float:
    return 1 / math.sqrt(count * {1: 1, 1.58: 1, 2: 1, 3: 3, 4: 7}[bits])


def problem(scheme: str, seed: int = 0, width: int = COLUMNS) -> tuple[Grid, torch.Tensor, torch.Tensor]:
    """A grid, weights of which some are clipped, and ranges whose scales half precision holds exactly."""
    grid = parse(scheme).weight
    random = torch.Generator().manual_seed(seed)
    w = torch.randn(ROWS, width, generator=random) * 0.1
    wide = 1 if grid.bits > 2 else 2 ** (grid.bits - 1)
    scale = ((torch.rand(ROWS, grid.groups(width), generator=random) * 0.05 + 0.03) * wide).half().float()
    return grid, w.requires_grad_(), paretoq.of_scale(scale, grid).requires_grad_()


@pytest.mark.parametrize("scheme", WIDTHS)
def test_forward_and_both_gradients_are_the_published_ones(scheme: str) -> None:
    grid, w, alpha = problem(scheme)
    upstream = torch.randn(w.shape, generator=torch.Generator().manual_seed(1))
    made = paretoq.fake(w, alpha, grid)
    made.backward(upstream)
    value, by_w, by_alpha = published(grid.bits, w.detach().double().numpy(), alpha.detach().double().numpy())
    assert 0 < by_w.mean() < 1, "some weights must be clipped, and not all"
    np.testing.assert_allclose(made.detach().numpy(), value, rtol=1e-6)
    np.testing.assert_array_equal(w.grad.numpy(), upstream.numpy() * by_w.astype(np.float32))
    wanted = (by_alpha * upstream.double().numpy()).sum(1, keepdims=True) * share(grid.bits, w.numel())
    np.testing.assert_allclose(alpha.grad.numpy(), wanted, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("scheme", WIDTHS)
def test_where_clipped_the_gradient_of_the_range_is_the_slope(scheme: str) -> None:
    """There a rounded weight is its outermost level, a multiple of α: central differences, whose scales half precision
    holds. Not ternary, whose published slope is 1 where the level is 2/3."""
    grid, w, _ = problem(scheme)
    scale = torch.arange(2, 2 + ROWS)[:, None] / 64
    alpha = paretoq.of_scale(scale, grid).requires_grad_()
    low, high = paretoq.clip(grid)
    far = torch.where(torch.arange(COLUMNS) % 3 == 0, 3 * low, 3 * high) * alpha.detach()
    paretoq.fake(far.requires_grad_(), alpha, grid).sum().backward()
    step = 2.0**-7 * alpha.detach()
    with torch.no_grad():
        above, below = (paretoq.fake(far, alpha + sign * step, grid).double() for sign in (1, -1))
    slope = ((above - below) / (2 * step)).sum(1, keepdim=True)
    found = alpha.grad.double() / share(grid.bits, w.numel())
    torch.testing.assert_close(found, (1.5 if grid.bits == 1.58 else 1.0) * slope, rtol=1e-4, atol=0)
    assert not far.grad.any()


@pytest.mark.parametrize("scheme", [*WIDTHS, "w1g32", "w1.58g32", "w2g32s", "w3g16s", "w4g64s", "w8", "w6"])
def test_what_training_sees_is_what_is_packed(scheme: str) -> None:
    grid, w, alpha = problem(scheme)
    alpha = (alpha * 1.0007).detach()  # no longer what half precision holds
    alpha[0] *= -1  # a lopsided grid turned around
    packed = paretoq.pack(w.detach(), alpha, grid)
    np.testing.assert_array_equal(packed.dequant(), paretoq.fake(w, alpha, grid).detach().numpy())
    assert packed.scale.dtype == np.float16 and packed.scale.shape == (ROWS, grid.groups(COLUMNS))


@pytest.mark.parametrize("isa", native.available())
@pytest.mark.parametrize("scheme", [*WIDTHS, "w8", "w2g32s", "w3g16s"])
def test_the_native_pass_equals_the_torch_operations(isa: str, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit but for the order of sums, on ties, negative scales and what is not a number too."""
    monkeypatch.setenv(native.ISA_VARIABLE, isa)
    grid, w, alpha = problem(scheme, width=77)
    w, scale = w.detach(), paretoq.stored_scale(alpha.detach(), grid)
    scale[0] *= -1
    w[1] = (torch.arange(77) - 38) / 2 * scale[1, 0]
    w[2, 70], w[3, 0] = math.nan, 0.0
    upstream = torch.randn(w.shape, generator=torch.Generator().manual_seed(1))
    arrays = w.numpy(), scale.numpy(), grid
    assert native.fake(*arrays).tobytes() == paretoq.rounded(w, scale, grid).numpy().tobytes()
    wanted = paretoq.gradients(w, scale, grid, upstream)
    to_w, to_scale = native.fake_gradients(*arrays, upstream.numpy(), paretoq.slopes(grid))
    assert np.isnan(to_scale).sum() == 1
    np.testing.assert_array_equal(to_w, wanted[0].numpy())
    np.testing.assert_allclose(to_scale, wanted[1].numpy(), rtol=1e-5, atol=1e-5)
    again = native.fake_gradients(*arrays, upstream.numpy(), paretoq.slopes(grid), threads=3)
    assert again[0].tobytes() == to_w.tobytes() and again[1].tobytes() == to_scale.tobytes()


def test_groups_have_ranges_of_their_own() -> None:
    """A ragged matrix with groups is matrices of one group side by side; only the share counts all weights."""
    grid, w, alpha = problem("w2g32s")
    upstream = torch.randn(w.shape, generator=torch.Generator().manual_seed(1))
    paretoq.fake(w, alpha, grid).backward(upstream)
    for group, start in enumerate(range(0, COLUMNS, 32)):
        part = slice(start, min(start + 32, COLUMNS))
        piece = w.detach()[:, part].clone().requires_grad_()
        own = alpha.detach()[:, group : group + 1].clone().requires_grad_()
        paretoq.fake(piece, own, parse("w2").weight).backward(upstream[:, part])
        assert torch.equal(w.grad[:, part], piece.grad)
        ratio = math.sqrt(piece.numel() / w.numel())
        torch.testing.assert_close(alpha.grad[:, group], own.grad[:, 0] * ratio)


def test_levels() -> None:
    """Two and four levels lie around zero, three on it: no fifth one at 2 bits, and no sign of zero that is zero."""
    w = torch.linspace(-3, 3, 601)[None]
    for scheme, levels in (("w1", (-1, 1)), ("w1.58", (-2 / 3, 0, 2 / 3)), ("w2", (-0.75, -0.25, 0.25, 0.75))):
        made = paretoq.fake(w, torch.ones(1, 1), parse(scheme).weight)
        np.testing.assert_allclose(made.unique().numpy(), np.float32(levels), rtol=1e-3)
    assert set(paretoq.codes(torch.zeros(1, 8), torch.ones(1, 1), parse("w1").weight).flatten().tolist()) == {1.0}
    made = paretoq.fake(w, torch.ones(1, 1), parse("w3").weight)
    assert made.unique().tolist() == [-3, -2, -1, 0, 1, 2, 3]  # -4 needs a weight below -3.5


@pytest.mark.parametrize("scheme", WIDTHS)
def test_initial_ranges(scheme: str) -> None:
    grid, w, _ = problem(scheme)
    w = w.detach()
    mean, most = w.abs().mean(1, keepdim=True), w.abs().amax(1, keepdim=True)
    steps = {3: 3, 4: 7}.get(int(grid.bits), 1)
    official = mean if grid.bits == 1 else most / steps
    torch.testing.assert_close(paretoq.initial(w, grid, "max"), official)
    short = mean if grid.bits == 1 else torch.minimum(grid.bits * mean, most) / steps
    torch.testing.assert_close(paretoq.initial(w, grid), short)
    grouped = parse({"w2": "w2g32s", "w3": "w3g32s", "w4": "w4g32s"}.get(scheme, f"{scheme}g32")).weight
    torch.testing.assert_close(paretoq.initial(w, grouped)[:, -1:], paretoq.initial(w[:, 64:], grid))


@pytest.mark.parametrize("scheme", ("w2", "w3"))
def test_rows_of_zeros_and_of_giants_stay_finite(scheme: str) -> None:
    grid = parse(scheme).weight
    w = torch.stack([torch.zeros(8), torch.full((8,), 1e6)]).requires_grad_()
    alpha = paretoq.initial(w.detach(), grid).requires_grad_()
    made = paretoq.fake(w, alpha, grid)
    made.sum().backward()
    assert all(torch.isfinite(x).all() for x in (made, w.grad, alpha.grad))
    assert np.isfinite(paretoq.pack(w.detach(), alpha.detach(), grid).scale.astype(np.float32)).all()
