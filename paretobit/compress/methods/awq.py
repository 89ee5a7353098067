"""AWQ: columns that large activations meet are enlarged before rounding, so that they lose less.

Source: Lin et al., "AWQ" (arXiv 2306.00978), eq. 4-5: s = mean|X|^α, α by a grid search on the error of the outputs.
That error is tr(ΔW H ΔWᵀ) with H = sum of x xᵀ, over all calibration tokens and from sums that merge. ΔW is what the
planned method leaves: gptq makes up for much of what the paper's rounding to nearest loses, and wants other exponents.
The paper's clipping, a range for every group by the same error, is the search of scales that the rounding itself makes:
weighted by H's diagonal in gptq, and in rtn with `rtn.weighted`, which comes with this transform.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from paretobit.compress.sites import TINY, Site, balanced, cheapest
from paretobit.compress.stats import ABSMEAN, HESSIAN, TapStats
from paretobit.errors import ParetobitError

KIND = "transform"


@dataclass(frozen=True)
class Params:
    """steps: how many equal steps from 0 to 1 the search of the exponent tries."""

    steps: int = 10

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= 1000:
            raise ParetobitError(f"awq.steps = {self.steps} is out of range", hint="give a number from 1 to 1000")


def needs(params: Params) -> set[str]:
    return {ABSMEAN, HESSIAN}


def run(site: Site, stats: TapStats, params: Params) -> tuple[Tensor, str]:
    """(factors (producer's channels,), α as people read it) for a tap with these statistics."""
    assert stats.absmean is not None and stats.hessian is not None
    x = site.pooled(stats.absmean / max(stats.n, 1), "mean")
    live, wanted = x > TINY * x.max(), site.stacked()
    choices = {
        f"{step / params.steps:.2f}": balanced(x.clamp(min=1e-30).log() * (step / params.steps), live)
        for step in range(params.steps + 1)
    }

    def error(factors: Tensor) -> float:
        assert stats.hessian is not None
        apart = site.as_planned(factors, stats) - wanted
        return float(torch.sum(apart @ stats.hessian * apart))

    return cheapest(choices, error)
