"""GPTQ: round column by column and let the columns not yet rounded make up for the error, under H = sum of x xᵀ.

Source: Frantar et al., "GPTQ" (arXiv 2210.17323), eq. 2-3 and algorithm 1; act-order with static groups as in its
public code; the asymmetric term is GPTAQ (Li et al., arXiv 2504.02692), algorithm 1: it also moves the weights towards
what the full-precision inputs would have given. Catching up with the residual stream is LoaQ's sub-layer target (Lin
and Wan, arXiv 2509.06297), solved once before rounding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from paretobit import native
from paretobit.compress.grid import Affine, nearest
from paretobit.compress.stats import CROSS, HESSIAN, LAG, TapStats
from paretobit.errors import ParetobitError
from paretobit.progress import say
from paretobit.qtensor import QTensor
from paretobit.scheme import Grid

KIND = "round"
HALF_CROSS, HALF_LAG = 16, 64  # tokens for each channel of the stream at which a correction has half its strength


@dataclass(frozen=True)
class Params:
    """damp: added to the Hessian's diagonal, as a share of its mean; raised tenfold while the factorization fails.
    act_order: round the columns with the largest Hessian diagonal first. block: columns between two lazy updates.
    asymmetric: strength of the GPTAQ term, 0 = off; it acts where inputs come from already rounded blocks.
    residual: how much of what the residual stream lacks so far the outputs make up for, 0 = nothing; where it acts, so
    does a weight on tokens, the inverse of the stream's mean square. trusted: whether these two are strengths for text
    without end, and less text has less (HALF_CROSS, HALF_LAG).
    weighted: search the scales with columns weighted by the Hessian's diagonal."""

    damp: float = 0.01
    act_order: bool = True
    block: int = 128
    asymmetric: float = 0.25
    residual: float = 0.0
    trusted: bool = False
    weighted: bool = True

    def __post_init__(self) -> None:
        for name, least in (("damp", 0), ("block", 1), ("asymmetric", 0), ("residual", 0)):
            value = getattr(self, name)
            if not least <= value < math.inf:
                raise ParetobitError(f"gptq.{name} = {value} is out of range", hint=f"give a number from {least} up")


class Feedback(Protocol):
    """What error feedback must be told; see Params."""

    @property
    def damp(self) -> float: ...
    @property
    def act_order(self) -> bool: ...
    @property
    def asymmetric(self) -> float: ...
    @property
    def residual(self) -> float: ...


F = TypeVar("F", bound=Any)  # a method's Params, with asymmetric and residual


def needs(params: Feedback) -> set[str]:
    return {HESSIAN} | ({CROSS} if params.asymmetric else set()) | ({LAG} if params.residual else set())


def run(w: Tensor, stats: TapStats, grid: Grid, params: Params) -> QTensor:
    """w (out, in) float32, stats.hessian (in, in) -> QTensor on `grid`."""
    params = as_trusted(params, stats) if params.trusted else params
    order, upper, pull = factor(stats, params)
    w = caught_up(w, stats, order, upper, params.residual)
    assert stats.hessian is not None
    importance = stats.hessian.diagonal() if params.weighted else None
    affine = Affine.search(w, grid, importance)
    codes = feed_back(w, affine, order, upper, pull, params.block)
    return affine.pack(codes)


def as_trusted(params: F, stats: TapStats) -> F:
    """The corrections' strengths for the text there is: what is fitted to few tokens a channel is mostly noise."""
    tokens = stats.paired / (stats.stream or stats.width)
    return replace(
        params,
        asymmetric=params.asymmetric * tokens / (tokens + HALF_CROSS),
        residual=params.residual * tokens / (tokens + HALF_LAG),
    )


def factor(stats: TapStats, params: Feedback) -> tuple[Tensor, Tensor, Tensor | None]:
    """(order, U, P): the columns in rounding order, U upper triangular with UᵀU = (H + damping)⁻¹ in that order, and
    GPTAQ's P or None. Computed once a tap, for all its consumers.

    Raises ParetobitError when the Hessian is not finite or cannot be factored at any damping.
    """
    key = ("gptq", params.damp, params.act_order, params.asymmetric)
    if key not in stats.factors:
        stats.factors[key] = _factor(stats, params)
    return stats.factors[key]


def _factor(stats: TapStats, params: Feedback) -> tuple[Tensor, Tensor, Tensor | None]:
    """Frees what it no longer needs: a wide tap's matrices are the most that quantization holds at any time."""
    assert stats.hessian is not None
    if not torch.isfinite(stats.hessian).all():
        raise ParetobitError(
            f"the Hessian of a tap of width {stats.width} is not finite", hint="calibrate on other text, or use rtn"
        )
    diagonal = stats.hessian.diagonal()
    order = torch.arange(stats.width, device=diagonal.device)
    if params.act_order:
        # A channel that was never active counts as an average one, here and in the factorization.
        order = torch.argsort(_neutral(diagonal), descending=True, stable=True)
    upper = _inverse_factor(stats.hessian, order, max(stats.n, 1), params.damp)
    if not params.asymmetric or stats.cross is None:
        return order, upper, None
    towards = stats.cross[order[:, None], order].mul_(params.asymmetric / max(stats.paired, 1)) @ upper.T
    return order, upper, towards.triu_(1) @ upper


def caught_up(w: Tensor, stats: TapStats, order: Tensor, upper: Tensor, residual: float) -> Tensor:
    """w (out, in) + residual · L H⁻¹: its outputs also give what the least squares of the tap's inputs tell of the
    residual stream's lag. order, upper: from `factor`."""
    if not residual or stats.lag is None or not stats.paired:
        return w
    missing = torch.empty_like(w)
    missing[:, order] = (stats.lag[:, order] @ upper.T) @ upper
    return w + missing * (residual / stats.paired)


def _neutral(diagonal: Tensor) -> Tensor:
    """The diagonal with its mean (1 if that is 0) in place of zeros, so that a dead channel can be factored."""
    mean = diagonal.mean()
    return torch.where(diagonal == 0, torch.where(mean > 0, mean, 1.0), diagonal)


def _inverse_factor(hessian: Tensor, order: Tensor, tokens: int, damp: float) -> Tensor:
    """Upper U with UᵀU = (H + damp·mean·I)⁻¹, H the mean over tokens in `order`.

    With H = R Rᵀ, R upper (a Cholesky from the last row up), U = R⁻¹.
    """
    back = order.flip(0)
    flipped = hessian[back[:, None], back].div_(tokens)
    diagonal = _neutral(flipped.diagonal())
    mean = diagonal.mean()
    while damp <= 100:
        flipped.diagonal().copy_(diagonal + damp * mean)
        lower, failed = torch.linalg.cholesky_ex(flipped)
        if not failed:
            del flipped
            eye = torch.eye(len(order), dtype=lower.dtype, device=lower.device)
            return torch.linalg.solve_triangular(lower.flip(0, 1), eye, upper=True)
        say(f"gptq: a Hessian of width {len(order)} is not positive definite at damp {damp:g}, raising it tenfold")
        damp = max(10 * damp, 1e-6)  # from none at all it must get somewhere
    raise ParetobitError(
        f"the Hessian of a tap of width {len(order)} cannot be factored", hint="calibrate on more text, or use rtn"
    )


def feed_back(w: Tensor, affine: Affine, order: Tensor, upper: Tensor, pull: Tensor | None, block: int) -> Tensor:
    """Codes (out, in) of w (out, in), rounded in `order` with error feedback through `upper` (and `pull`)."""
    rest = w[:, order].contiguous()
    codes = torch.empty(rest.shape, dtype=torch.uint8, device=w.device)
    one_block = _native_block if w.device.type == "cpu" else torch_block
    for start in range(0, rest.shape[1], block):
        here = slice(start, min(start + block, rest.shape[1]))
        tail = slice(here.stop, None)
        square = (upper[here, here].contiguous(), None if pull is None else pull[here, here].contiguous())
        errors, moved = one_block(rest, codes, here, *square, affine, affine.group_of[order[here]])
        rest[:, tail].addmm_(errors, upper[here, tail], alpha=-1)
        if pull is not None and moved is not None:
            rest[:, tail].addmm_(moved, pull[here, tail])
    out = torch.empty_like(codes)
    out[:, order] = codes
    return out


Errors = tuple[Tensor, Tensor | None]


def torch_block(
    rest: Tensor, codes: Tensor, here: slice, upper: Tensor, pull: Tensor | None, affine: Affine, group_of: Tensor
) -> Errors:
    """Round the columns `here` of rest (out, in) one after another; each moves the block's later ones.

    Returns the errors and, with `pull`, the columns as they were rounded, (out, block) each.
    """
    columns = rest[:, here]
    errors, moved = torch.empty_like(columns), None if pull is None else torch.empty_like(columns)
    for j, group in enumerate(group_of.tolist()):
        scale, zero = affine.of_group(group)
        column = columns[:, j].clone()
        code = nearest(column, scale, zero, affine.grid.levels)
        codes[:, here.start + j] = code.to(torch.uint8)
        errors[:, j] = (column - scale * (code - zero)) / upper[j, j]
        if pull is not None and moved is not None:
            moved[:, j] = column
            columns[:, j + 1 :] += column[:, None] * pull[j, j + 1 :]
        columns[:, j + 1 :] -= errors[:, j, None] * upper[j, j + 1 :]
    return errors, moved


def _native_block(
    rest: Tensor, codes: Tensor, here: slice, upper: Tensor, pull: Tensor | None, affine: Affine, group_of: Tensor
) -> Errors:
    """`torch_block` in C++, on the CPU."""
    scale = affine.scale.T.to(rest.dtype).contiguous().numpy()
    zero = affine.grid.offset if affine.zero is None else affine.zero.T.to(rest.dtype).contiguous().numpy()
    pulled = None if pull is None else pull.numpy()
    at = (upper.numpy(), pulled, scale, zero, group_of.numpy(), affine.grid.levels, codes.numpy())
    errors, moved = native.feed_back(rest.numpy(), here.start, *at)
    return torch.from_numpy(errors), None if moved is None else torch.from_numpy(moved)
