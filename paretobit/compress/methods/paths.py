"""Training on a trellis: latent weights move by the gradient, and every few steps the nearest path is searched anew.

Source: the straight-through estimator on a trellis's path; searching again after small moves of all weights together
is what PV-tuning (Malinovskii et al., arXiv 2405.14852) does on a codebook. Between two searches codes stay, and scales
are trained; a path differs from its neighbours in several rows, so most moves change nothing, and what has moved far
enough changes at once. Training starts from a path, whose values are then the latent weights: the nearest path is that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paretobit import native
from paretobit.compress.methods import trellis
from paretobit.qtensor import QTensor
from paretobit.scheme import Grid

KIND = "train"


@dataclass(frozen=True)
class Params:
    """There is nothing to set."""


@dataclass(frozen=True)
class Path:
    """codes: uint8 (out, in); halves: of their levels from zero, which end in one half, int8 (out, in)."""

    codes: np.ndarray
    halves: Tensor


def trains(grid: Grid) -> bool:
    return grid.kind == "trellis"


def begin(w: Tensor, grid: Grid, q: QTensor | None, params: Params) -> tuple[Tensor, Tensor, np.ndarray]:
    """(latent weights (out, in), scales (out, 1), codes to hold) of the path q, or of the one that is nearest to w."""
    q = q or trellis.nearest(w, grid)
    return torch.from_numpy(native.dequant(q)), torch.from_numpy(q.scale.astype(np.float32)), q.codes


def hold(latent: Tensor, scale: Tensor, grid: Grid) -> Path:
    """The path nearest to the latent weights."""
    rows = trellis.half(scale.detach())[:, 0].cpu()
    weight = trellis.shares(rows, None)
    codes = native.trellis_encode(latent.detach().cpu().numpy(), weight, grid, scale=rows.numpy())
    return kept(codes, grid, latent.device)


def kept(codes: np.ndarray, grid: Grid, device: torch.device) -> Path:
    """The path of these codes."""
    return Path(codes, trellis.levels(codes, grid).mul_(2).to(device, torch.int8))


def fake(latent: Tensor, scale: Tensor, grid: Grid, held: Path) -> Tensor:
    """What is stored, float32 (out, in), with gradients to the latent weights (straight through) and scales."""
    made: Tensor = _Fake.apply(latent, scale, held.halves)
    return made


def pack(latent: Tensor, scale: Tensor, grid: Grid, held: Path) -> QTensor:
    return QTensor(held.codes, trellis.half(scale).cpu().numpy().astype(np.float16), None, grid)


class _Fake(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, latent: Tensor, scale: Tensor, halves: Tensor) -> Tensor:
        ctx.save_for_backward(halves)
        return trellis.half(scale) * (halves.float() / 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        (halves,) = ctx.saved_tensors
        by_scale = (gradient * halves).sum(1, keepdim=True) / 2
        return gradient, by_scale / math.sqrt(halves.numel()), None
