"""Trellis rounding in GPTQ's order: each column goes onto the trellis by a Viterbi search over its rows, and the
columns not yet rounded make up for the error.

Source: LDLQ with trellis-coded quantization, Tseng et al., "QTIP" (arXiv 2406.11235), section 3 and algorithm 1; the
column loop and the asymmetric term are GPTQ's and GPTAQ's (see gptq.py); row weights by the end loss are GuidedQuant's
(Kim et al., arXiv 2505.07004), with one weight a row. Wants Gaussian weights: rotate the tap.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from paretobit import native, trellis
from paretobit.compress.methods import gptq
from paretobit.compress.stats import GUIDE, TapStats
from paretobit.errors import ParetobitError
from paretobit.qtensor import QTensor
from paretobit.scales import HALF_MAX
from paretobit.scheme import Grid

KIND = "round"
GRIDS = ("trellis",)


@dataclass(frozen=True)
class Params:
    """damp: added to the Hessian's diagonal, as a share of its mean; raised tenfold while the factorization fails.
    asymmetric, residual: as gptq's, but with text without end; less on less (gptq.as_trusted). act_order, block:
    as gptq's; rotated columns are alike, so their order is left. gain: the row scale, over the one that suits the
    row's standard deviation. refits: how often scales are fitted to the codes under the Hessian and codes searched
    anew. fit: whether scales are fitted to the codes at the end. guided: weigh tokens and rows by the gradient of the
    end loss."""

    damp: float = 0.01
    asymmetric: float = 0.65
    residual: float = 1.1
    gain: float = 1.0
    refits: int = 0
    fit: bool = True
    guided: bool = False
    act_order: bool = False
    block: int = 128

    def __post_init__(self) -> None:
        for name, least in (("damp", 0), ("asymmetric", 0), ("residual", 0), ("gain", 0.1), ("refits", 0)):
            value = getattr(self, name)
            if not least <= value < math.inf:
                raise ParetobitError(f"trellis.{name} = {value} is out of range", hint=f"give a number from {least} up")
        if not 1 <= self.block <= native.TRELLIS_BLOCK:
            raise ParetobitError(f"trellis.block = {self.block} is out of range", hint="give 1 to 128")


def needs(params: Params) -> set[str]:
    return gptq.needs(params) | ({GUIDE} if params.guided else set())


def run(w: Tensor, stats: TapStats, grid: Grid, params: Params) -> QTensor:
    """w (out, in) float32, stats.hessian (in, in) -> QTensor on a trellis `grid`.

    Rings of 64 rows start at row 0: pieces of a matrix are whole rings, but for the last.
    """
    if grid.kind != "trellis":
        raise ParetobitError(f"trellis rounds onto trellis grids, not '{grid.kind}'", hint="use --method gptq")
    params = gptq.as_trusted(params, stats)
    order, upper, pull = gptq.factor(stats, params)
    w = gptq.caught_up(w, stats, order, upper, params.residual)
    row_weight = stats.row_weight if params.guided else None
    scale = half(w.square().mean(1).sqrt() * (params.gain / trellis.deviation(grid))).cpu()
    codes = feed_back(w, scale, row_weight, grid, order, upper, pull, params.block)
    for _ in range(params.refits):
        scale = refit(w, codes, grid, stats, params.asymmetric)
        codes = feed_back(w, scale, row_weight, grid, order, upper, pull, params.block)
    if params.fit:
        scale = refit(w, codes, grid, stats, params.asymmetric)
    return QTensor(codes, scale.numpy().astype(np.float16)[:, None], None, grid)


def nearest(w: Tensor, grid: Grid) -> QTensor:
    """w (out, in) float32 -> the QTensor whose path through the trellis is nearest, all columns alike."""
    scale = half(w.square().mean(1).sqrt() / trellis.deviation(grid)).cpu()
    codes = native.trellis_encode(w.cpu().numpy(), shares(scale, None), grid, scale=scale.numpy())
    q = levels(codes, grid)
    scale = _fitted((q * w.cpu()).sum(1), q.square().sum(1))
    return QTensor(codes, scale.numpy().astype(np.float16)[:, None], None, grid)


def shares(scale: Tensor, row_weight: Tensor | None) -> np.ndarray:
    """What a row's squared error in levels counts, 1 on average."""
    share = scale.square() if row_weight is None else scale.square() * row_weight.cpu()
    return (share / share.mean().clamp(min=1e-38)).numpy()


def _fitted(up: Tensor, down: Tensor) -> Tensor:
    """Scales (out,) of a least-squares fit; 0 for a row that lost its codes to far larger ones of its ring."""
    return half(torch.where(down > 0, up / down.clamp(min=1e-38), 0.0)).cpu()


def half(scale: Tensor) -> Tensor:
    """Scales as they are stored."""
    return scale.clamp(0, float(HALF_MAX)).half().float()


def feed_back(
    w: Tensor, scale: Tensor, row_weight: Tensor | None, grid: Grid, order: Tensor, upper: Tensor, pull: Tensor | None,
    block: int,
) -> np.ndarray:  # fmt: skip
    """Codes uint8 (out, in) of w (out, in), rounded in `order` with error feedback through `upper` (and `pull`).

    scale: (out,); row_weight: (out,) importance of a row's error, or None for all alike.
    """
    rest = w[:, order].cpu().contiguous()
    upper, pull = upper.cpu(), None if pull is None else pull.cpu()
    weight = shares(scale, row_weight)
    codes = np.empty(tuple(rest.shape), np.uint8)
    for start in range(0, rest.shape[1], block):
        here = slice(start, min(start + block, rest.shape[1]))
        tail = slice(here.stop, None)
        square = upper[here, here].contiguous().numpy(), None if pull is None else pull[here, here].contiguous().numpy()
        errors, moved = native.trellis_feed_back(rest.numpy(), start, *square, scale.numpy(), weight, grid, codes)
        assert errors is not None
        rest[:, tail].addmm_(torch.from_numpy(errors), upper[here, tail], alpha=-1)
        if pull is not None and moved is not None:
            rest[:, tail].addmm_(torch.from_numpy(moved), pull[here, tail])
    out = np.empty_like(codes)
    out[:, order.cpu().numpy()] = codes
    return out


def refit(w: Tensor, codes: np.ndarray, grid: Grid, stats: TapStats, asymmetric: float) -> Tensor:
    """Row scales (out,) that minimize the error of the outputs, given the codes: s = q (H + αC) wᵀ / q H qᵀ a row, with
    GPTAQ's α and C as in the column loop."""
    assert stats.hessian is not None
    q = levels(codes, grid).to(w.device)
    through = (q @ stats.hessian) / max(stats.n, 1)
    down, up = (through * q).sum(1), (through * w).sum(1)
    if asymmetric and stats.cross is not None:
        up += asymmetric / max(stats.paired, 1) * ((q @ stats.cross.T) * w).sum(1)
    return _fitted(up, down)


def levels(codes: np.ndarray, grid: Grid) -> Tensor:  # (out, in)
    """float32 levels from zero of codes uint8 (out, in)."""
    ones = np.ones((len(codes), 1), np.float16)
    return torch.from_numpy(native.dequant(QTensor(codes, ones, None, grid)))
