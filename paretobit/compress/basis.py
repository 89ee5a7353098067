"""The basis in which a tap's consumers are rounded and stored: the model's own, or a rotated one (`rotation.Rotation`).

A layer y = W x is the same function as y = (W Rᵀ)(R x); statistics of x turn along. In torch the rotation is two or
three matrix products; its float32 rounding differs from `Rotation.forward` in the last bits, which here decide nothing.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from paretobit.arch import Tap
from paretobit.compress.grid import dequant
from paretobit.compress.stats import TapStats
from paretobit.planfile import Plan, rotation
from paretobit.qtensor import QTensor
from paretobit.rotation import Rotation


class Basis:
    """A rotation in torch."""

    def __init__(self, rotation: Rotation, device: torch.device | str = "cpu") -> None:
        self.width, self.order, self.block = rotation.width, rotation.order, rotation.block
        self.signs = torch.from_numpy(rotation.signs).to(device, torch.float32)
        self.dense = torch.from_numpy(rotation.matrix()).to(device)
        exponent = self.block.bit_length() - 1
        self.factors = [_sylvester(part, device) for part in (exponent - exponent // 2, exponent // 2)]

    def forward(self, x: Tensor) -> Tensor:  # (..., width) -> (..., width)
        """R x of every vector: weights of a row likewise."""
        return self._product(x * self.signs, self.dense)

    def inverse(self, y: Tensor) -> Tensor:  # (..., width) -> (..., width)
        """Rᵀ y of every vector."""
        return self._product(y, self.dense.T) * self.signs

    def _product(self, x: Tensor, dense: Tensor) -> Tensor:
        first, second = self.factors
        blocks = x.reshape(-1, first.shape[0], second.shape[0])
        y = (first @ blocks) @ second
        if self.order > 1:
            y = dense @ y.reshape(-1, self.order, self.block)
        return y.reshape(x.shape)

    def stats(self, stats: TapStats) -> TapStats:
        """The statistics of R x, as far as they follow from those of x."""
        turned = dataclasses.replace(stats, absmax=None, absmean=None, factors={})
        if stats.hessian is not None:
            turned.hessian = self.forward(self.forward(stats.hessian).T)
            turned.hessian = (turned.hessian + turned.hessian.T) / 2
        if stats.cross is not None:
            turned.cross = self.forward(self.forward(stats.cross).T).T.contiguous()
        return turned


def basis_of(plan: Plan, tap: Tap, device: torch.device | str) -> Basis | None:
    """In which basis a tap's consumers are rounded; None for the model's own."""
    found = rotation(plan, tap.name, tap.width)
    return None if found is None else Basis(found, device)


def restored(q: QTensor, basis: Basis | None, device: torch.device | str) -> Tensor:
    """What a rounded matrix is in the model's basis, float32 (out, in)."""
    w = dequant(q, device)
    return w if basis is None else basis.inverse(w)


def _sylvester(exponent: int, device: torch.device | str) -> Tensor:  # (2^exponent, 2^exponent), orthonormal
    h = torch.ones(1, 1, device=device)
    for _ in range(exponent):
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)], 0)
    return h / math.sqrt(len(h))
