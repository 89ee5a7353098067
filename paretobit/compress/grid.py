"""A grid's arithmetic in torch: the same numbers as QTensor.dequant(), on tensors that methods work with."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from paretobit import native
from paretobit.qtensor import QTensor
from paretobit.scheme import Grid


class Affine:
    """The scales and zero points of one matrix (out, in), and rounding onto them column by column.

    scale, zero: (groups, out) float32, transposed so that a column's values lie together.
    """

    def __init__(self, grid: Grid, columns: int, scale: Tensor, zero: Tensor | None) -> None:
        self.grid, self.columns = grid, columns
        self.scale, self.zero = scale, zero
        self.group_of = torch.arange(columns, device=scale.device) // (grid.group or columns)

    @classmethod
    def search(cls, w: Tensor, grid: Grid, importance: Tensor | None = None) -> Affine:
        """The scales (and zero points) with the least squared error, columns weighted by `importance` (in,)."""
        weight = None if importance is None else importance.float().cpu().numpy()
        scale, zero = native.scale_search(w.float().cpu().numpy(), weight, grid)
        as_tensor = lambda a: torch.from_numpy(np.ascontiguousarray(a.T, np.float32)).to(w.device)  # noqa: E731
        return cls(grid, w.shape[1], as_tensor(scale), None if zero is None else as_tensor(zero))

    def of_group(self, group: int) -> tuple[Tensor, Tensor | float]:
        """(scale, zero) of one group of columns, (out,) each."""
        return self.scale[group], self.grid.offset if self.zero is None else self.zero[group]

    def round(self, w: Tensor) -> Tensor:
        """Nearest codes of a whole matrix (out, in), float32."""
        scale, zero = self.spread()
        return nearest(w, scale, zero, self.grid.levels)

    def spread(self) -> tuple[Tensor, Tensor | float]:
        """(scale, zero) of every weight, (out, in)."""
        scale = self.scale[self.group_of].T
        return scale, self.grid.offset if self.zero is None else self.zero[self.group_of].T

    def pack(self, codes: Tensor) -> QTensor:
        """The QTensor with these codes (out, in)."""
        zero = None if self.zero is None else _numpy(self.zero.T, torch.uint8)
        return QTensor(_numpy(codes, torch.uint8), _numpy(self.scale.T, torch.float16), zero, self.grid)


def nearest(w: Tensor, scale: Tensor, zero: Tensor | float, levels: int) -> Tensor:
    """clamp(round(w / scale + zero), 0, levels - 1); where the scale is 0 every code means 0."""
    return (w / torch.where(scale == 0, 1.0, scale) + zero).round_().clamp_(0, levels - 1)


def dequant(q: QTensor, device: torch.device | str = "cpu") -> Tensor:
    """float32 (out, in): exactly `q.dequant()`."""
    return torch.from_numpy(native.dequant(q)).to(device)


def _numpy(values: Tensor, dtype: torch.dtype) -> np.ndarray:
    return np.ascontiguousarray(values.to(dtype).cpu().numpy())
