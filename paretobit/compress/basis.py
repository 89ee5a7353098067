"""The basis in which a tap's consumers are rounded and stored: the model's own, or a rotated one (`rotation.Rotation`).

A layer y = W x is the same function as y = (W Rᵀ)(R x); statistics of x turn along.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from paretobit import native
from paretobit.arch import Tap
from paretobit.compress.grid import dequant
from paretobit.compress.stats import TapStats
from paretobit.planfile import Plan, rotation
from paretobit.qtensor import QTensor
from paretobit.rotation import Rotation


class Basis:
    """A rotation of torch tensors, wherever they are."""

    def __init__(self, rotation: Rotation) -> None:
        self.rotation = rotation

    def forward(self, x: Tensor) -> Tensor:  # (..., width) -> (..., width)
        """R x of every vector: weights of a row likewise."""
        return torch.from_numpy(native.rotate_inputs(self.rotation, x.contiguous().cpu().numpy())).to(x.device)

    def inverse(self, y: Tensor) -> Tensor:  # (..., width) -> (..., width)
        """Rᵀ y of every vector."""
        return torch.from_numpy(native.unrotate_inputs(self.rotation, y.contiguous().cpu().numpy())).to(y.device)

    def restored(self, y: Tensor) -> Tensor:  # (..., width) -> (..., width)
        """Rᵀ y, with a gradient."""
        made: Tensor = _Restored.apply(y, self)
        return made

    def stats(self, stats: TapStats) -> TapStats:
        """The statistics of R x, as far as they follow from those of x, which gives its matrices up."""
        turned = dataclasses.replace(stats, absmax=None, absmean=None, sample=None, factors={})
        stats.hessian = stats.cross = stats.lag = None  # wide ones are the most that is held at any time
        if turned.hessian is not None:
            turned.hessian = self.forward(self.forward(turned.hessian).T)
            turned.hessian = (turned.hessian + turned.hessian.T) / 2
        if turned.cross is not None:
            turned.cross = self.forward(self.forward(turned.cross).T).T.contiguous()
        if turned.lag is not None:
            turned.lag = self.forward(turned.lag)
        return turned


class _Restored(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, basis: Basis) -> Tensor:
        ctx.basis = basis
        return basis.inverse(y)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return ctx.basis.forward(gradient), None


def basis_of(plan: Plan, tap: Tap) -> Basis | None:
    """In which basis a tap's consumers are rounded; None for the model's own."""
    found = rotation(plan, tap.name, tap.width)
    return None if found is None else Basis(found)


def restored(q: QTensor, basis: Basis | None, device: torch.device | str) -> Tensor:
    """What a rounded matrix is in the model's basis, float32 (out, in)."""
    w = dequant(q, device)
    return w if basis is None else basis.inverse(w)
