"""Training with the quantizer in the loop: elastic binarization at 1 bit, SEQ at 1.58 and 2, LSQ at 3, 4 and more.

Source: ParetoQ (Liu et al., arXiv 2502.02631, equations 4 to 7) and its code, which differ where noted; LSQ (Esser et
al., arXiv 1902.08153). A range α is learned for every row, or group of columns: at up to 2 bits it is where the grid
ends, above it is one step. The grid is the one that the packed model is stored on, scale · (code - offset) with
scale = α · step, rounded to half precision before codes are chosen: what training sees is what is packed, to the bit.

The gradient of a rounded weight is the latent one's, but where x = w / α is clipped, which gets none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paretobit import native
from paretobit.checkpoint.paretoq import LEAST, step
from paretobit.compress.grid import dequant
from paretobit.errors import ParetobitError
from paretobit.pieces import pieces
from paretobit.qtensor import QTensor
from paretobit.scheme import Grid

KIND = "train"
LARGEST = 60000.0  # of a scale: half precision ends at 65504
WITHIN = 0.1  # of a step: how far a latent weight may start from the level it was rounded to. At the edge between two
# levels, where most would be whose error has made up for others', one step of training moves them all across
AT_ONCE = 1 << 18  # weights that go through all steps of a formula together: what a cache holds
SOFT_CLIP = 0.99  # ParetoQ's code at 1.58 and 2 bits; the paper's 1 gives an extra level there


@dataclass(frozen=True)
class Params:
    """start: ranges from "max", as published, or "mean", min(bits · mean|w|, max|w|), which short runs prefer (found by
    torchao), where rounding has not chosen scales already."""

    start: str = "mean"

    def __post_init__(self) -> None:
        if self.start not in ("max", "mean"):
            raise ParetobitError(f"paretoq.start = {self.start} is unknown", hint="choose from max, mean")


def trains(grid: Grid) -> bool:
    """Whether there is a quantizer for the grid: affine ones without stored zero points."""
    return grid.kind == "affine" and grid.zero != "stored"


def begin(w: Tensor, grid: Grid, q: QTensor | None, params: Params) -> tuple[Tensor, Tensor, None]:
    """(latent weights (out, in), ranges (out, groups), codes to hold: none) for the weights w. With q, which another
    method made of them, they round to q, and are as near to w as q's codes allow."""
    if q is None:
        return w, initial(w, grid, params.start), None
    scale = torch.from_numpy(q.scale.astype(np.float32))
    level, reach = dequant(q), WITHIN * spread(scale, grid, w.shape[1]).abs()
    return level + (w - level).clamp(-reach, reach), of_scale(scale, grid), None


def hold(latent: Tensor, alpha: Tensor, grid: Grid) -> None:
    """Codes follow from latent weights and ranges at any time: nothing is held between two steps."""


def clip(grid: Grid) -> tuple[float, float]:
    """Between which x = w / α the gradient passes."""
    if grid.bits <= 2:
        most = 1.0 if grid.bits == 1 else SOFT_CLIP
        return -most, most
    return -grid.offset, grid.levels - 1 - grid.offset


def initial(w: Tensor, grid: Grid, start: str = "mean") -> Tensor:  # (out, in) -> (out, groups)
    """The ranges that training starts with where only the weights are known."""
    groups = grid.groups(w.shape[1])
    size = grid.group or w.shape[1]
    padded = torch.nn.functional.pad(w.abs(), (0, groups * size - w.shape[1])).view(len(w), groups, size)
    counts = torch.full((groups,), size, device=w.device)
    counts[-1] = w.shape[1] - (groups - 1) * size
    mean, most = padded.sum(-1) / counts, padded.amax(-1)
    if grid.bits == 1:
        return mean
    if start == "mean":
        most = torch.minimum(grid.bits * mean, most)
    return most / clip(grid)[1] if grid.bits > 2 else most


def of_scale(scale: Tensor, grid: Grid) -> Tensor:
    """Ranges whose stored scales are these, (out, groups)."""
    return scale / step(grid)


def stored_scale(alpha: Tensor, grid: Grid) -> Tensor:
    """The half-precision scales of these ranges, as float32. A scale may be negative, which turns a lopsided grid."""
    size = (alpha.abs().clamp_min(LEAST) * step(grid)).clamp_max(LARGEST)
    return torch.where(alpha < 0, -size, size).half().float()


def codes(w: Tensor, alpha: Tensor, grid: Grid) -> Tensor:  # (out, in), (out, groups) -> (out, in)
    """The codes, float32, that the latent weights w have."""
    return _code(w / spread(stored_scale(alpha, grid), grid, w.shape[1]), grid)


def pack(w: Tensor, alpha: Tensor, grid: Grid, held: None = None) -> QTensor:
    """The rounded weights as they are stored."""
    scale = stored_scale(alpha, grid).cpu().numpy().astype(np.float16)
    return QTensor(codes(w, alpha, grid).to(torch.uint8).cpu().numpy(), scale, None, grid)


def fake(w: Tensor, alpha: Tensor, grid: Grid, held: None = None) -> Tensor:
    """What the packed weights are, float32 (out, in), with gradients to w (out, in) and alpha (out, groups)."""
    rounded: Tensor = _Fake.apply(w, alpha, grid)
    return rounded


def _code(u: Tensor, grid: Grid) -> Tensor:
    half = grid.offset % 1  # ties as in ParetoQ's code: of the level, not of the code, to even
    return ((u - half).round_() + (half + grid.offset)).clamp_(0, grid.levels - 1)


class _Fake(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor, alpha: Tensor, grid: Grid) -> Tensor:
        scale = stored_scale(alpha, grid)
        ctx.save_for_backward(w, scale)
        ctx.grid = grid
        if w.device.type != "cpu":
            return rounded(w, scale, grid)
        return torch.from_numpy(native.fake(w.detach().numpy(), scale.detach().numpy(), grid))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        w, scale = ctx.saved_tensors
        grid: Grid = ctx.grid
        if w.device.type != "cpu":
            to_w, to_alpha = gradients(w, scale, grid, gradient)
        else:
            latent, scales, upstream = (x.detach().numpy() for x in (w, scale, gradient))
            made = native.fake_gradients(latent, scales, grid, upstream, slopes(grid))
            to_w, to_alpha = map(torch.from_numpy, made)
        return to_w, to_alpha / math.sqrt(w.numel() * _largest(grid)), None


def rounded(w: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    """Each weight's level times its scale, float32 (out, in)."""
    made = torch.empty_like(w)
    for rows in pieces(len(w), AT_ONCE, w.shape[1]):
        wide = spread(scale[rows], grid, w.shape[1])
        torch.mul(_code(w[rows] / wide, grid).sub_(grid.offset), wide, out=made[rows])
    return made


def gradients(w: Tensor, scale: Tensor, grid: Grid, upstream: Tensor) -> tuple[Tensor, Tensor]:
    """(gradient at w (out, in), at α (out, groups), before its share) from `upstream`, that at the rounded weights."""
    low, high, under, over, by_level, by_step = slopes(grid)
    to_w, to_alpha = torch.empty_like(w), torch.empty_like(scale)
    for rows in pieces(len(w), AT_ONCE, w.shape[1]):
        u = w[rows] / spread(scale[rows], grid, w.shape[1])
        below, above = u < low, u > high
        slope = (_code(u, grid) - grid.offset) * by_level - u * by_step
        slope = torch.where(below, under, torch.where(above, over, slope))
        to_alpha[rows] = total(slope.mul_(upstream[rows]), grid)
        torch.mul(upstream[rows], ~(below | above), out=to_w[rows])
    return to_w, to_alpha


def slopes(grid: Grid) -> tuple[float, float, float, float, float, float]:
    """What a gradient takes of a weight that is u steps: (low, high) between which it passes; d rounded / d α under and
    over them; and (a, b), between them that is a · level - b · u."""
    size = step(grid)
    low, high = (edge / size for edge in clip(grid))
    if grid.bits == 1:
        return low, high, -1.0, 1.0, 2.0, 0.0  # the sign
    if grid.bits <= 2:  # where clipped, ParetoQ's code takes ±1 at 1.58 bits, though the outermost level is 2/3
        edge = 1.0 if grid.levels % 2 else 1 - size / 2
        return low, high, -edge, edge, size, size
    return low, high, low, high, 1.0, 1.0


def _largest(grid: Grid) -> float:
    """Qp, what a gradient's share is divided by."""
    return 1.0 if grid.bits <= 2 else grid.levels - 1 - grid.offset


def spread(per_group: Tensor, grid: Grid, columns: int) -> Tensor:  # (out, groups) -> (out, columns) or (out, 1)
    """Each group's value at its columns."""
    if grid.group is None:
        return per_group
    return per_group.repeat_interleave(grid.group, 1)[:, :columns]


def total(values: Tensor, grid: Grid) -> Tensor:  # (out, in) -> (out, groups)
    """Sums over the columns of each group."""
    if grid.group is None:
        return values.sum(1, keepdim=True)
    groups = grid.groups(values.shape[1])
    padded = torch.nn.functional.pad(values, (0, groups * grid.group - values.shape[1]))
    return padded.view(len(values), groups, grid.group).sum(-1)
