"""SmoothQuant: what is hard to round moves from activations into weights, channel by channel.

Source: Xiao et al., "SmoothQuant" (arXiv 2211.10438), eq. 4: s_j = max|X_j|^α / max|W_j|^(1-α). The paper fixes one α
for a model; here each tap's is searched, with no smoothing at all among the candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from paretobit.compress.activations import rounded
from paretobit.compress.sites import TINY, Site, balanced, cheapest
from paretobit.compress.stats import ABSMAX, SAMPLE, TapStats
from paretobit.errors import ParetobitError

KIND = "transform"
SEARCH = "search"


@dataclass(frozen=True)
class Params:
    """alpha: "search", or one from 0 (all in the activations) to 1 (all in the weights) for every tap; steps: how many
    equal steps from 0 to 1 the search tries."""

    alpha: str = SEARCH
    steps: int = 10

    def __post_init__(self) -> None:
        try:
            good = self.alpha == SEARCH or 0 <= float(self.alpha) <= 1
        except ValueError:
            good = False
        if not good or not 1 <= self.steps <= 1000:
            raise ParetobitError(
                f"smoothquant.alpha = {self.alpha}, steps = {self.steps}",
                hint=f"alpha is {SEARCH} or a number from 0 to 1 (published: 0.5 to 0.85), steps from 1 to 1000",
            )


def needs(params: Params) -> set[str]:
    return {ABSMAX} | ({SAMPLE} if params.alpha == SEARCH else set())


def run(site: Site, stats: TapStats, params: Params) -> tuple[Tensor, str]:
    """(factors (producer's channels,), α as people read it) for a tap with these statistics."""
    assert stats.absmax is not None
    x, w = site.pooled(stats.absmax, "amax"), site.pooled(site.largest, "amax")
    if site.activation is None:
        return torch.ones_like(x), "-"
    live = (x > TINY) & (w > TINY)

    def factors(alpha: float) -> Tensor:
        return balanced(alpha * x.clamp(min=TINY).log() - (1 - alpha) * w.clamp(min=TINY).log(), live)

    if params.alpha != SEARCH:
        return factors(float(params.alpha)), f"{float(params.alpha):.2f}"
    choices = {"-": torch.ones_like(x)}
    choices |= {f"{step / params.steps:.2f}": factors(step / params.steps) for step in range(params.steps + 1)}
    assert stats.sample is not None
    wanted = stats.sample @ site.stacked().T
    return cheapest(choices, lambda choice: error(site, stats, choice, wanted))


def error(site: Site, stats: TapStats, factors: Tensor, wanted: Tensor) -> float:
    """What rounding activations and weights does to the `wanted` outputs (tokens, out of all): each token's squared
    error to its outputs' square.

    Relative to the outputs, because norms divide by them: a few tokens are hundreds of times as large as the others.
    """
    assert stats.sample is not None and stats.absmax is not None and site.activation is not None
    s, x = factors[site.shared], stats.sample
    turned = x / s if site.basis is None else site.basis.forward(x / s)
    seen = rounded(turned, site.activation, (stats.absmax / s).max())
    back = (seen if site.basis is None else site.basis.inverse(seen)) * s
    apart = back @ site.rounded(factors).T - wanted
    return float((apart.square().sum(-1) / wanted.square().sum(-1).clamp(min=1e-30)).mean())
