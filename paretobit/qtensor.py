"""The quantized tensor. `dequant()` is the definition of the number: kernels, torch code and exporters obey it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from paretobit import trellis
from paretobit.errors import ParetobitError
from paretobit.scheme import Grid


@dataclass(frozen=True)
class QTensor:
    """A matrix of codes on a grid.

    codes: uint8 (out, in); scale: float16 (out, groups); zero: uint8 (out, groups) or None where the grid has no
    stored zero point.
    """

    codes: np.ndarray
    scale: np.ndarray
    zero: np.ndarray | None
    grid: Grid

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.codes.shape
        return rows, columns

    def rows(self, part: slice) -> QTensor:
        """These rows of the matrix; nothing is copied."""
        return QTensor(self.codes[part], self.scale[part], None if self.zero is None else self.zero[part], self.grid)

    def dequant(self, rows: slice = slice(None)) -> np.ndarray:  # (rows, in) float32
        """float32 (rows, in): scale * (code - zero), each product rounded once; a trellis has levels for codes.

        A trellis reads a row's window from its ring: `rows` must start and end where rings (64 rows) do, or at the end.
        """
        codes = self._numbers(rows).astype(np.float32)
        columns = codes.shape[1]
        scale = spread(self.scale[rows].astype(np.float32), self.grid, columns)
        if self.zero is None:
            return scale * (codes - np.float32(self.grid.offset))
        return scale * (codes - spread(self.zero[rows].astype(np.float32), self.grid, columns))

    def _numbers(self, rows: slice) -> np.ndarray:
        if self.grid.kind != "trellis":
            return self.codes[rows]
        start, stop, _ = rows.indices(len(self.codes))
        if start % trellis.RING or (stop % trellis.RING and stop != len(self.codes)):
            raise ParetobitError(f"rows {start}…{stop} cut rings of {trellis.RING}", hint="take whole rings")
        return trellis.levels(self.codes[rows], self.grid.bits, trellis.of_grid(self.grid))


def spread(per_group: np.ndarray, grid: Grid, columns: int) -> np.ndarray:  # (out, groups) -> (out, columns)
    """Repeat each group's value over its columns; a ragged last group takes what is left of the row."""
    if grid.group is None:
        return np.broadcast_to(per_group, (per_group.shape[0], columns))
    return np.repeat(per_group, min(grid.group, columns), axis=1)[:, :columns]
