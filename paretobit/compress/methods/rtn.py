"""Round to nearest: the grid with the least squared error, then the nearest code, or path of a trellis.

Needs no data, unless `weighted` asks for scales by the error of the outputs.

Source: the baseline of every paper. The scale search replaces min-max scaling, which wastes a low-bit grid on outliers.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from paretobit.compress.grid import Affine
from paretobit.compress.methods import trellis
from paretobit.compress.stats import HESSIAN, TapStats
from paretobit.errors import ParetobitError
from paretobit.qtensor import QTensor
from paretobit.scheme import Grid

KIND = "round"
GRIDS = ("affine", "trellis")


@dataclass(frozen=True)
class Params:
    """weighted: search the scales with columns weighted by their inputs' mean square (AWQ's clipping)."""

    weighted: bool = False


def needs(params: Params) -> set[str]:
    return {HESSIAN} if params.weighted else set()


def run(w: Tensor, stats: TapStats | None, grid: Grid, params: Params) -> QTensor:
    """w (out, in) float32 -> QTensor on `grid`."""
    if not params.weighted:
        return nearest(w, grid)
    if grid.kind == "trellis":
        raise ParetobitError("rtn.weighted searches scales of affine grids, not of a trellis", hint="leave it out")
    assert stats is not None and stats.hessian is not None
    return nearest(w, grid, stats.hessian.diagonal())


def nearest(w: Tensor, grid: Grid, importance: Tensor | None = None) -> QTensor:
    """w (out, in) float32 -> QTensor on `grid`; columns of an affine one weighted by `importance` (in,)."""
    if grid.kind == "trellis":
        return trellis.nearest(w, grid)
    affine = Affine.search(w, grid, importance)
    return affine.pack(affine.round(w))
