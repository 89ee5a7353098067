"""What is multiplied, rounded to 8 bits as a scheme's `a8` says, and computed on in float32: what integers would give.

A product of integers is exact, so rounding the inputs and multiplying in float32 differs from it by float32's own
rounding alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from paretobit.artifact import Artifact
from paretobit.compress.basis import Basis, basis_of
from paretobit.compress.model import Source
from paretobit.planfile import activation, taps
from paretobit.scheme import STATIC, Grid


def rounded(x: Tensor, grid: Grid, largest: float | Tensor = 0.0) -> Tensor:  # (…, width) -> (…, width)
    """Each x as the nearest whole multiple of its scale, largest ÷ 127, ties to even (docs/FORMAT.md, the product).

    largest: of a static grid, whose values beyond it are cut; others take that of their token, or group of channels.
    """
    if grid.kind == STATIC:
        top = x.new_tensor(largest) if isinstance(largest, float) else largest
        return _on_scale(x, top, grid.offset)
    if grid.group is None:
        return _on_scale(x, x.abs().amax(-1, keepdim=True), grid.offset)
    width = x.shape[-1]
    parts = F.pad(x, (0, -width % grid.group)).unflatten(-1, (-1, grid.group))
    return _on_scale(parts, parts.abs().amax(-1, keepdim=True), grid.offset).flatten(-2)[..., :width]


def _on_scale(x: Tensor, top: Tensor, most: float) -> Tensor:
    scale = (top / most).clamp(min=1e-30)
    return (x / scale).round_().clamp_(-most, most).mul_(scale)


@dataclass(frozen=True)
class At:
    """How the activation of one tap is rounded. largest: of a static grid; basis: in which it is multiplied."""

    grid: Grid
    largest: float = 0.0
    basis: Basis | None = None


class Rounding:
    """Rounds activations at the taps named in `at`; those of others stay as they are."""

    def __init__(self, at: Mapping[str, At]) -> None:
        self.at = at

    def __call__(self, tap: str, x: Tensor) -> Tensor:  # (…, width) -> (…, width)
        how = self.at.get(tap)
        if how is None:
            return x
        if how.basis is None:
            return rounded(x, how.grid, how.largest)
        return how.basis.inverse(rounded(how.basis.forward(x), how.grid, how.largest))


def rounding(source: Source) -> Rounding | None:
    """What a packed model's plan says of its activations; None where they stay floats, as in a model not packed."""
    if not isinstance(source, Artifact):
        return None
    at = {}
    for tap in taps(source.arch):
        grid = activation(source.plan, tap)
        if grid is not None:
            at[tap.name] = At(grid, source.ranges.get(tap.name, 0.0), basis_of(source.plan, tap))
    return Rounding(at) if at else None
