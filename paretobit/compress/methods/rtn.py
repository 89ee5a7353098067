"""Round to nearest: the grid with the least squared error, then the nearest code, or path of a trellis. Needs no data.

Source: the baseline of every paper. The scale search replaces min-max scaling, which wastes a low-bit grid on outliers.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from paretobit.compress.grid import Affine
from paretobit.compress.methods import trellis
from paretobit.compress.stats import TapStats
from paretobit.qtensor import QTensor
from paretobit.scheme import Grid

KIND = "round"
GRIDS = ("affine", "trellis")


@dataclass(frozen=True)
class Params:
    """RTN has nothing to set."""


def run(w: Tensor, stats: TapStats | None, grid: Grid, params: Params) -> QTensor:
    """w (out, in) float32 -> QTensor on `grid`."""
    if grid.kind == "trellis":
        return trellis.nearest(w, grid)
    affine = Affine.search(w, grid)
    return affine.pack(affine.round(w))
