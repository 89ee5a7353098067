"""The picture of what can be had of a model before anything is quantized: divergence expected at every size, and which
schemes the weights of each size are on. Vega-Lite by altair, written by vl-convert without a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paretobit.errors import ParetobitError
from paretobit.reports.charts import RAMP, SHORT_NUMBER, altair_or_hint, decades

ENDINGS = (".svg", ".png")
WIDTH, TALL, LOW = 640, 320, 150  # pixels
SCALE = 2  # of a .png, for screens that have two pixels for one


@dataclass(frozen=True)
class Size:
    """One plan: megabytes, expected divergence in nats with its standard error, and weights by scheme, as shares."""

    megabytes: float
    kl: float
    stderr: float
    weights: Mapping[str, float]


def check_ending(path: Path) -> None:
    if path.suffix.lower() not in ENDINGS or path.is_dir():
        raise ParetobitError(f"{path} is not the name of a picture", hint="name one, such as --draw frontier.svg")
    if not path.absolute().parent.is_dir():
        raise ParetobitError(f"{path}: no such folder", hint="make it first")


def picture(title: str, sizes: Sequence[Size], path: Path) -> bytes:
    """The picture of plans, by size, as a file with the path's ending holds it."""
    altair_or_hint()
    import vl_convert

    spec = _spec(title, sizes)
    if path.suffix.lower() == ".svg":
        return vl_convert.vegalite_to_svg(spec).encode()
    return vl_convert.vegalite_to_png(spec, scale=SCALE)


def _spec(title: str, sizes: Sequence[Size]) -> dict[str, Any]:
    alt = altair_or_hint()
    schemes = list(dict.fromkeys(scheme for size in sizes for scheme in size.weights))
    rows = [
        {"mb": s.megabytes, "kl": s.kl, "low": max(s.kl - s.stderr, s.kl / 10), "high": s.kl + s.stderr} for s in sizes
    ]
    across = alt.Scale(domain=[sizes[0].megabytes, sizes[-1].megabytes], nice=False)
    x = alt.X("mb:Q", title=None, scale=across, axis=alt.Axis(tickCount=8))
    y = alt.Y("kl:Q", title="KL divergence expected, nats a token (log)", scale=alt.Scale(type="log", nice=False),
              axis=alt.Axis(values=decades(rows), labelExpr=SHORT_NUMBER))  # fmt: skip
    base = alt.Chart(alt.Data(values=rows))
    band = base.mark_area(opacity=0.2).encode(x=x, y=alt.Y("low:Q"), y2="high:Q")
    line = base.mark_line(point=True).encode(x=x, y=y)
    shares = [{"mb": s.megabytes, "scheme": name, "share": s.weights.get(name, 0.0), "order": schemes.index(name)}
              for s in sizes for name in schemes]  # fmt: skip
    colours = [RAMP[round(i * (len(RAMP) - 1) / max(len(schemes) - 1, 1))] for i in range(len(schemes))]
    mix = (
        alt.Chart(alt.Data(values=shares))
        .mark_area()
        .encode(
            x=alt.X("mb:Q", title="MB, embedding included", scale=across, axis=alt.Axis(tickCount=8)),
            y=alt.Y("share:Q", stack="normalize", title="weights", axis=alt.Axis(format="~%", tickCount=4)),
            color=alt.Color("scheme:N", title=None, scale=alt.Scale(domain=schemes, range=colours)),
            order=alt.Order("order:Q"),
        )
        .properties(width=WIDTH, height=LOW)
    )
    upper = alt.layer(band, line).properties(width=WIDTH, height=TALL)
    made = alt.vconcat(upper, mix).properties(title=title, background="white").to_dict()
    made.pop("config", None)
    return made
