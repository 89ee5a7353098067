"""A tap as a transform sees it: what multiplies its activation, and what rounding would leave of that."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from paretobit.compress import methods
from paretobit.compress.basis import Basis, restored
from paretobit.compress.methods import rtn
from paretobit.compress.stats import TapStats
from paretobit.planfile import Layer
from paretobit.qtensor import QTensor
from paretobit.scheme import Grid
from paretobit.trellis import RING

ROWS = 256  # of each matrix that a search tries: whole rings of a trellis, from all over
TINY = 1e-5  # as published for SmoothQuant: what is smaller counts as so much


@dataclass(frozen=True)
class Site:
    """weights: name -> (out, width) float32, some rows of the tap's consumers, and layers: what is planned for each.

    largest: (width,) magnitude of what multiplies a channel, over all rows of all consumers;
    shared: (width,) int64, which of the producer's channels each channel is; factors belong to those. activation: the
    grid that the activation is rounded to, None for floats; basis: in which consumers and activation are rounded.
    """

    weights: Mapping[str, Tensor]
    layers: Mapping[str, Layer]
    largest: Tensor
    shared: Tensor
    activation: Grid | None
    basis: Basis | None

    @classmethod
    def of(
        cls, weights: Mapping[str, Tensor], layers: Mapping[str, Layer], shared: Tensor, activation: Grid | None = None,
        basis: Basis | None = None,
    ) -> Site:  # fmt: skip
        """The site of whole matrices, of which ROWS rows are kept."""
        largest = torch.stack([w.abs().amax(0) for w in weights.values()]).amax(0)
        kept = {name: some(w, ROWS) for name, w in weights.items()}
        return cls(kept, layers, largest, shared, activation, basis)

    def pooled(self, x: Tensor, how: str) -> Tensor:  # (width,) -> (producer's channels,)
        """x of each of the producer's channels: over those of the tap that share it, "amax" or "mean"."""
        count = int(self.shared.max()) + 1
        return x.new_zeros(count).scatter_reduce(0, self.shared, x, how, include_self=False)

    def stacked(self) -> Tensor:  # (out of all, width)
        return torch.cat(list(self.weights.values()))

    def rounded(self, factors: Tensor) -> Tensor:  # (producer's channels,) -> (out of all, width)
        """The consumers as they are after factors, rounding to nearest, and the factors taken out again."""
        return self._with(factors, lambda w, layer: rtn.nearest(w, layer.scheme.weight))

    def as_planned(self, factors: Tensor, stats: TapStats) -> Tensor:  # (producer's channels,) -> (out of all, width)
        """The same, but rounded by the methods that are planned, after `stats`, the activation's before the factors."""
        s = factors[self.shared]
        assert stats.hessian is not None
        seen = TapStats(stats.width, stats.n, hessian=stats.hessian / s[:, None] / s, stream=stats.stream)
        if self.basis is not None:
            seen = self.basis.stats(seen)

        def round_(w: Tensor, layer: Layer) -> QTensor:
            params = methods.make_params(layer.method, layer.params)
            found: QTensor = methods.load(layer.method).run(w, seen, layer.scheme.weight, params)
            return found

        return self._with(factors, round_)

    def _with(self, factors: Tensor, round_: Callable[[Tensor, Layer], QTensor]) -> Tensor:
        s, found = factors[self.shared], []
        for name, w in self.weights.items():
            turned = w * s if self.basis is None else self.basis.forward(w * s)
            found.append(restored(round_(turned, self.layers[name]), self.basis, w.device) / s)
        return torch.cat(found)


def some(w: Tensor, rows: int) -> Tensor:  # (out, width) -> (fewer, width)
    """About so many rows, in evenly spaced rings of 64."""
    rings, wanted = -(-len(w) // RING), -(-rows // RING)
    if rings <= wanted:
        return w
    picked = torch.linspace(0, rings - 1, wanted).round().long()
    return torch.cat([w[ring * RING : (ring + 1) * RING] for ring in picked.tolist()])


def balanced(log_factors: Tensor, live: Tensor) -> Tensor:  # (n,), (n,) bool -> (n,)
    """Factors whose geometric mean is 1 over the channels that live; the others keep 1."""
    if not live.any():
        return torch.ones_like(log_factors)
    return torch.where(live, log_factors - log_factors[live].mean(), 0.0).exp()


def cheapest(choices: Mapping[str, Tensor], error: Callable[[Tensor], float]) -> tuple[Tensor, str]:
    """(the factors with the least error, what they are called), the first of equals."""
    errors = {name: error(factors) for name, factors in choices.items()}
    best = min(errors, key=errors.__getitem__)
    return choices[best], best
