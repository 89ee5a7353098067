"""Round to nearest: the grid with the least squared error, then the nearest code. Needs no data.

Source: the baseline of every paper. The scale search replaces min-max scaling, which wastes a low-bit grid on outliers.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from paretobit.compress.grid import Affine
from paretobit.compress.stats import TapStats
from paretobit.qtensor import QTensor
from paretobit.scheme import Grid

KIND = "round"


@dataclass(frozen=True)
class Params:
    """RTN has nothing to set."""


def run(w: Tensor, stats: TapStats | None, grid: Grid, params: Params) -> QTensor:
    """w (out, in) float32 -> QTensor on `grid`."""
    affine = Affine.search(w, grid)
    return affine.pack(affine.round(w))
