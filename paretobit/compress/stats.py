"""TapStats: what calibration remembers of an activation. Sums over tokens (absmax: a maximum), so statistics merge."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

HESSIAN, CROSS, LAG, ABSMAX, ABSMEAN = "hessian", "cross", "lag", "absmax", "absmean"
SAMPLE = "sample"  # not a sum: some of the activations themselves
SAMPLED = 64  # of a batch's tokens
GUIDE = "guide"  # not a sum: tokens weighted in the others, and `row_weight` (compress/guide.py)
MERGEABLE = (HESSIAN, ABSMAX, ABSMEAN)
BESIDE = frozenset({CROSS, LAG})  # what takes the full-precision model, run beside the rounded one


@dataclass
class TapStats:
    """Statistics of one tap over `n` tokens, `cross` over `paired` of them; what nobody asked for stays None.

    absmax, absmean: (width,) largest |x| and sum of |x| of each channel
    hessian: (width, width) sum of x xᵀ, float32
    cross:   (width, width) sum of (x_full - x) xᵀ, where x_full is what the full-precision model has at this tap
    lag:     (hidden, width) sum of (s_full - s) xᵀ, where s is the residual stream that the outputs are added to; None
             at taps whose outputs go elsewhere
    sample: (tokens, width) some of the activations, evenly taken
    row_weight: (out,) importance of the consumers' rows to the end loss, or None for all alike
    stream: channels of the residual stream, 0 where nobody said
    factors: scratch for methods that factor the Hessian, shared by all consumers of the tap
    """

    width: int
    n: int = 0
    absmax: Tensor | None = None
    absmean: Tensor | None = None
    hessian: Tensor | None = None
    cross: Tensor | None = None
    lag: Tensor | None = None
    sample: Tensor | None = None
    paired: int = 0
    row_weight: Tensor | None = None
    stream: int = 0
    factors: dict[object, Any] = field(default_factory=dict)

    @classmethod
    def empty(cls, width: int, needs: frozenset[str], device: torch.device | str = "cpu", stream: int = 0) -> TapStats:
        """Zeros for the statistics named in `needs`."""
        square, line, wide = (width, width), (width,), (stream, width)
        made: dict[str, Any] = {
            name: torch.zeros(shape, device=device) if name in needs else None
            for name, shape in ((ABSMAX, line), (ABSMEAN, line), (HESSIAN, square), (CROSS, square), (LAG, wide))
        }
        made[SAMPLE] = torch.zeros((0, width), device=device) if SAMPLE in needs else None
        return cls(width, 0, **made, stream=stream)

    def add(
        self, x: Tensor, full: Tensor | None = None, weight: Tensor | None = None, behind: Tensor | None = None
    ) -> None:
        """Account for activations x (…, width); where known, `full` are the full-precision model's, for `cross`, and
        behind (…, hidden) is what the residual stream lacks of the full-precision model's, for `lag`.

        weight: (…,) how much each token counts in `hessian`, `cross` and `lag`; None: all alike.
        """
        x = x.reshape(-1, self.width)
        self.n += x.shape[0]
        root = None if weight is None else weight.reshape(-1, 1).sqrt()
        y = x if root is None else x * root
        if self.hessian is not None:
            add_gram(self.hessian, y)
        if full is not None and (self.cross is not None or self.lag is not None):
            self.paired += x.shape[0]
        if self.cross is not None and full is not None:
            apart = full.reshape(-1, self.width) - x
            self.cross.addmm_((apart if root is None else apart * root).T, y)
        if self.lag is not None and behind is not None:
            behind = behind.reshape(x.shape[0], -1)
            self.lag.addmm_((behind if root is None else behind * root).T, y)
        if self.sample is not None:
            self.sample = torch.cat([self.sample, x[:: max(1, len(x) // SAMPLED)]])
        if self.absmax is not None:
            torch.maximum(self.absmax, x.abs().amax(0), out=self.absmax)
        if self.absmean is not None:
            self.absmean += x.abs().sum(0)

    def of_rows(self, part: slice) -> TapStats:
        """The same statistics with what belongs to these rows of the consumers."""
        row_weight, lag = (None if value is None else value[part] for value in (self.row_weight, self.lag))
        return dataclasses.replace(self, row_weight=row_weight, lag=lag)

    def complete(self) -> TapStats:
        """Mirror the upper triangle that `add` keeps into the lower; call once, when all tokens are in."""
        if self.hessian is not None:
            self.hessian.copy_(self.hessian.triu() + self.hessian.triu(1).T)
        return self

    def merge(self, other: TapStats) -> None:
        """Add the statistics of other tokens."""
        self.n += other.n
        self.paired += other.paired
        for name in (HESSIAN, CROSS, LAG, ABSMEAN):
            if getattr(self, name) is not None:
                getattr(self, name).add_(getattr(other, name))
        if self.absmax is not None and other.absmax is not None:
            torch.maximum(self.absmax, other.absmax, out=self.absmax)


def add_gram(gram: Tensor, x: Tensor, stripes: int = 4) -> None:
    """gram += xᵀ x, upper triangle of stripes only: the rest is its mirror and would cost the same again.

    gram (width, width), x (tokens, width). Work: (stripes + 1) / (2 * stripes) of the full product.
    """
    width = gram.shape[0]
    step = -(-width // stripes) if width >= 512 else width
    for start in range(0, width, step):
        rows = slice(start, min(start + step, width))
        gram[rows, start:].addmm_(x[:, rows].T, x[:, start:])
