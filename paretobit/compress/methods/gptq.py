"""GPTQ: round column by column and let the columns not yet rounded make up for the error, under H = sum of x xᵀ.

Source: Frantar et al., "GPTQ" (arXiv 2210.17323), eq. 2-3 and algorithm 1; act-order with static groups as in its
public code; the asymmetric term is GPTAQ (Li et al., arXiv 2504.02692), algorithm 1: it also moves the weights towards
what the full-precision inputs would have given.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from paretobit.compress.grid import Affine, nearest
from paretobit.compress.stats import CROSS, HESSIAN, TapStats
from paretobit.errors import ParetobitError
from paretobit.progress import say
from paretobit.qtensor import QTensor
from paretobit.scheme import Grid

KIND = "round"


@dataclass(frozen=True)
class Params:
    """damp: added to the Hessian's diagonal, as a share of its mean; raised tenfold while the factorization fails.
    act_order: round the columns with the largest Hessian diagonal first. block: columns between two lazy updates.
    asymmetric: strength of the GPTAQ term, 0 = off; it acts where inputs come from already rounded blocks.
    weighted: search the scales with columns weighted by the Hessian's diagonal."""

    damp: float = 0.01
    act_order: bool = True
    block: int = 128
    asymmetric: float = 0.0
    weighted: bool = True


def needs(params: Params) -> set[str]:
    return {HESSIAN, CROSS} if params.asymmetric else {HESSIAN}


def run(w: Tensor, stats: TapStats, grid: Grid, params: Params) -> QTensor:
    """w (out, in) float32, stats.hessian (in, in) -> QTensor on `grid`."""
    order, upper, pull = factor(stats, params)
    assert stats.hessian is not None
    importance = stats.hessian.diagonal() if params.weighted else None
    affine = Affine.search(w, grid, importance)
    codes = feed_back(w, affine, order, upper, pull, params.block)
    return affine.pack(codes)


def factor(stats: TapStats, params: Params) -> tuple[Tensor, Tensor, Tensor | None]:
    """(order, U, P): the columns in rounding order, U upper triangular with UᵀU = (H + damping)⁻¹ in that order, and
    GPTAQ's P or None. Computed once a tap, for all its consumers.

    Raises ParetobitError when the Hessian is not finite or cannot be factored at any damping.
    """
    key = ("gptq", params.damp, params.act_order, params.asymmetric)
    if key not in stats.factors:
        stats.factors[key] = _factor(stats, params)
    return stats.factors[key]


def _factor(stats: TapStats, params: Params) -> tuple[Tensor, Tensor, Tensor | None]:
    assert stats.hessian is not None
    hessian: Tensor = stats.hessian / max(stats.n, 1)
    diagonal = hessian.diagonal()
    if not torch.isfinite(hessian).all():
        raise ParetobitError(
            f"the Hessian of a tap of width {stats.width} is not finite",
            hint="calibrate on other text, or use rtn",
        )
    mean = diagonal.mean()
    # A channel that was never active says nothing: give it a neutral diagonal, so it is rounded to nearest by itself.
    diagonal[diagonal == 0] = mean if mean > 0 else 1.0
    order = torch.argsort(diagonal, descending=True, stable=True) if params.act_order else torch.arange(stats.width)
    hessian = hessian[order][:, order]
    upper = _inverse_factor(hessian, params.damp)
    if not params.asymmetric or stats.cross is None:
        return order, upper, None
    cross = (stats.cross / max(stats.n, 1))[order][:, order]
    pull = params.asymmetric * (cross @ upper.T).triu_(1) @ upper
    return order, upper, pull


def _inverse_factor(hessian: Tensor, damp: float) -> Tensor:
    """Upper U with UᵀU = (H + damp·mean·I)⁻¹: with H = R Rᵀ, R upper (a Cholesky from the last row up), U = R⁻¹."""
    mean = hessian.diagonal().mean()
    eye = torch.eye(hessian.shape[0], device=hessian.device)
    while damp <= 100:
        lower, failed = torch.linalg.cholesky_ex(
            hessian.flip(0, 1).diagonal_scatter(hessian.diagonal().flip(0) + damp * mean)
        )
        if not failed:
            return torch.linalg.solve_triangular(lower.flip(0, 1), eye, upper=True)
        say(f"gptq: Hessian of width {len(hessian)} is not positive definite at damp {damp:g}, raising it tenfold")
        damp *= 10
    raise ParetobitError(
        f"the Hessian of a tap of width {len(hessian)} cannot be factored",
        hint="calibrate on more text, or use rtn",
    )


def feed_back(w: Tensor, affine: Affine, order: Tensor, upper: Tensor, pull: Tensor | None, block: int) -> Tensor:
    """Codes (out, in) of w (out, in), rounded in `order` with error feedback through `upper` (and `pull`).

    Works on wᵀ: a column of the matrix is then contiguous, and a step is one rank-1 update of the block's columns.
    """
    rest = w.T[order].contiguous()
    codes = torch.empty_like(rest)
    width, levels = rest.shape[0], affine.grid.levels
    where = order.tolist()
    for start in range(0, width, block):
        stop = min(start + block, width)
        here, factor_here = rest[start:stop], upper[start:stop, start:stop]
        errors, moved = torch.empty_like(here), torch.empty_like(here)
        for j in range(stop - start):
            scale, zero = affine.column(where[start + j])
            column = here[j]
            code = nearest(column, scale, zero, levels)
            codes[start + j] = code
            errors[j] = (column - scale * (code - zero)) / factor_here[j, j]
            if pull is not None:
                moved[j] = column
                here[j:].addr_(pull[start + j, start + j : stop], moved[j])
            here[j + 1 :].addr_(factor_here[j, j + 1 :], errors[j], alpha=-1)
        rest[stop:].addmm_(upper[start:stop, stop:].T, errors, alpha=-1)
        if pull is not None:
            rest[stop:].addmm_(pull[start:stop, stop:].T, moved)
    out = torch.empty_like(codes)
    out[order] = codes
    return out.T
