"""The charts of a report as Vega-Lite, by altair, and the one script that draws them all, by vl-convert.

Specifications hold data and no colours: the page's script takes those from its style sheet, light or dark.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from paretobit.errors import ParetobitError
from paretobit.reports.compare import Reading, frontier
from paretobit.reports.markup import beside
from paretobit.reports.subjects import Cell, Subject

SHAPES = ("circle", "square", "diamond", "triangle-up", "cross", "triangle-down", "triangle-right")
COLOURS = 8  # --series-0 … in page.css
LEAST_KL = 1e-6  # where a logarithmic axis ends: the measurement is good to 1e-7
CLASSES = (1.3, 1.8, 2.5, 3.5, 4.5, 5.5, 9.0)  # bits at which the heat map's next colour begins
CLASS_NAMES = ("1", "1.6", "2", "3", "4", "5", "6 to 8", "16 and more")
RAMP = ("#440154", "#46327e", "#365c8d", "#277f8e", "#1fa187", "#4ac16d", "#a0da39", "#fde725")  # viridis
DARK_CLASSES = 4  # of them that want light text
ROLES = ("q", "k", "v", "o", "gate", "up", "down")
SHORT_NUMBER = "datum.value < 0.001 ? format(datum.value, '.0e') : format(datum.value, '~g')"
CELL_PIXELS = 26  # of width that a cell needs for a figure


# Names beside marks, in pixels: letters' height, a mark's reach, and a small plot's room between its outermost marks
# and around them. Spots: where a name starts (or ends, left of its mark), and how far its middle is from the mark's.
LETTERS, MARK, ROOM, MARGIN = 11, 6, (210.0, 220.0), 26
SPOTS = ((11, -9), (-11, -9), (11, 10), (-11, 10), (13, 0), (-13, 0))


@dataclass(frozen=True)
class Axis:
    """What a scatter plot's horizontal axis shows: `field` names it in the data, better says which way is better."""

    title: str
    unit: str
    more_is_better: bool = False


@dataclass(frozen=True)
class Chart:
    """One chart: its id in the page, Vega-Lite specification, and what it shows in words."""

    name: str
    spec: dict[str, Any] = field(repr=False)
    words: str


def altair_or_hint() -> Any:
    """altair; raises ParetobitError where the extra is missing."""
    try:
        import altair
        import vl_convert  # noqa: F401  (the script needs it in the end)
    except ImportError as why:
        raise ParetobitError(f"pictures need {why.name}", hint="pip install 'paretobit[report]'") from None
    return altair


def script() -> str:
    """Vega, Vega-Lite, Vega-Embed and the page's own few lines as one script without imports."""
    altair = altair_or_hint()
    import vl_convert

    version = ".".join(altair.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    made = vl_convert.javascript_bundle(beside("page.js"), vl_version=version)
    # What would end a script element, or start a comment in it; both only ever stand in strings there.
    return made.replace("\r", "").replace("</script", "<\\/script").replace("<!--", "<\\!--")


def scatter(
    name: str,
    axis: Axis,
    subjects: Sequence[Subject],
    across: Sequence[Reading | None],
    kl: Sequence[Reading | None],
) -> Chart | None:
    """KL divergence (log axis) against `across`, with standard errors, and the frontier of the models that were
    measured alike, each original's apart. None where no model has both."""
    rows = points(axis, subjects, across, kl)
    if not rows:
        return None
    alt = altair_or_hint()
    x = alt.X(
        "x:Q",
        title=axis.title,
        scale=alt.Scale(zero=False, nice=True, padding=28),
        axis=alt.Axis(tickCount=5, labelSeparation=8),
    )
    y = alt.Y(
        "kl:Q", title="KL divergence, nats (log)", scale=alt.Scale(type="log", padding=18),
        axis=alt.Axis(values=decades(rows), labelExpr=SHORT_NUMBER),
    )  # fmt: skip
    labels = [subject.label for subject in subjects]
    colour = alt.Color("model:N", scale=alt.Scale(domain=labels), legend=None)
    shapes = [SHAPES[i % len(SHAPES)] for i in range(len(labels))]
    shape = alt.Shape("model:N", scale=alt.Scale(domain=labels, range=shapes), legend=None)
    base = alt.Chart(alt.Data(values=rows))
    tooltip = [
        alt.Tooltip("model:N"),
        alt.Tooltip("x:Q", title=axis.unit, format=".4~g"),
        alt.Tooltip("kl:Q", title="KL, nats", format=".3~g"),
        alt.Tooltip("note:N", title="frontier"),
    ]
    edge = (
        base.transform_filter("datum.best")
        .mark_line(interpolate="step-before" if axis.more_is_better else "step-after", strokeDash=[5, 4])
        .encode(x=x, y=y, detail="original:N", order="x:Q")
    )
    bars = base.mark_rule(strokeWidth=1.5).encode(x=x, y=alt.Y("low:Q"), y2="high:Q", color=colour)
    marks = base.mark_point(size=110, filled=True, strokeWidth=2, opacity=1).encode(
        x=x, y=y, color=colour, stroke=colour, shape=shape, tooltip=tooltip,
        fillOpacity=alt.condition("datum.best", alt.value(1), alt.value(0)),
    )  # fmt: skip
    names = [
        base.transform_filter(f"datum.spot === {i}")
        .mark_text(align="left" if dx > 0 else "right", dx=dx, dy=dy, fontSize=LETTERS)
        .encode(x=x, y=y, text="short:N")
        for i, (dx, dy) in enumerate(SPOTS)
        if any(row["spot"] == i for row in rows)
    ]
    words = f"{axis.title} against KL divergence to the original. " + "; ".join(
        f"{row['model']}: {row['x']:.4g} {axis.unit}, KL {row['kl']:.3g}" + (", on the frontier" if row["best"] else "")
        for row in rows
    )
    return Chart(name, _spec(alt.layer(edge, bars, marks, *names), words, 300), words)


def points(
    axis: Axis, subjects: Sequence[Subject], across: Sequence[Reading | None], kl: Sequence[Reading | None]
) -> list[dict[str, Any]]:
    """The data of a scatter plot, one row a model that has both figures. best: on the frontier of those of the same
    original that were measured alike."""
    rows: list[dict[str, Any]] = []
    for subject, x, y in zip(subjects, across, kl, strict=True):
        if x is None or y is None:
            continue
        value, error = max(y.value, LEAST_KL), y.stderr or 0.0
        rows.append(
            {
                "model": subject.label,
                "short": _short(subject.label),
                "original": subject.original_hash,
                "x": x.value,
                "kl": value,
                "low": max(value - error, value / 10),
                "high": value + error,
                "alike": x.alike and y.alike,
                "best": False,
                "note": "behind",
            }
        )
    for original in {row["original"] for row in rows}:
        group = [row for row in rows if row["original"] == original and row["alike"]]
        sign = -1 if axis.more_is_better else 1
        for row, best in zip(group, frontier([(sign * row["x"], row["kl"]) for row in group]), strict=True):
            row["best"], row["note"] = best, "on it" if best else "behind"
    for row in rows:
        if not row["alike"]:
            row["note"] = "measured otherwise"
    _place(rows)
    return rows


def _place(rows: list[dict[str, Any]]) -> None:
    """Give every row the number of a spot for its name where it covers no mark and no name, in a plot as small as a
    phone's; None where there is no such spot: the key above the plots tells the marks apart too."""
    if not rows:
        return
    xs, ys = [row["x"] for row in rows], [math.log(row["kl"]) for row in rows]
    width, height = max(xs) - min(xs) or 1.0, max(ys) - min(ys) or 1.0
    at = [((x - min(xs)) / width * ROOM[0], (max(ys) - y) / height * ROOM[1]) for x, y in zip(xs, ys, strict=True)]
    taken = [(x - MARK, x + MARK, y - MARK, y + MARK) for x, y in at]
    for row, (x, y) in zip(rows, at, strict=True):
        row["spot"] = None
        long = 0.6 * LETTERS * len(row["short"])
        for i, (dx, dy) in enumerate(SPOTS):
            start = x + dx if dx > 0 else x + dx - long
            box = (start, start + long, y + dy - LETTERS / 2, y + dy + LETTERS / 2)
            inside = box[0] > -MARGIN and box[1] < ROOM[0] + MARGIN
            if inside and not any(_touch(box, other) for other in taken):
                row["spot"] = i
                taken.append(box)
                break


def _touch(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    """Whether two boxes (left, right, top, bottom) have a part in common."""
    return a[0] < b[1] and b[0] < a[1] and a[2] < b[3] and b[2] < a[3]


def decades(rows: Sequence[dict[str, Any]]) -> list[float]:
    """1, 2 and 5 in every power of ten around the data: what a logarithmic axis is labelled with."""
    low, high = min(row["low"] for row in rows), max(row["high"] for row in rows)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if len(powers) < 4 else (1,)
    return [float(f"{step}e{power}") for power in powers for step in steps]


def _short(label: str) -> str:
    return label if len(label) <= 18 else "…" + label[-17:]


def heat_map(name: str, subject: Subject) -> Chart:
    """Bits per weight of every matrix: a column a block, a row a role; embedding and head run across."""
    alt = altair_or_hint()
    count = max(subject.blocks, 1)
    rows = [_tile(cell, count) for cell in subject.cells]
    known = [role for role in ROLES if any(row["role"] == role for row in rows)]
    others = [role for role in dict.fromkeys(row["role"] for row in rows) if role not in (*ROLES, "embedding", "head")]
    order = [role for role in ("embedding", *known, *others, "head") if any(row["role"] == role for row in rows)]
    base = alt.Chart(alt.Data(values=rows))
    x = alt.X(
        "x0:Q", title="block", scale=alt.Scale(domain=[0, count], nice=False),
        axis=alt.Axis(values=[i + 0.5 for i in _ticks(count)], labelExpr="floor(datum.value)", grid=False, ticks=False),
    )  # fmt: skip
    y = alt.Y("role:N", title=None, sort=order, axis=alt.Axis(grid=False, ticks=False))
    colour = alt.Color("bits:Q", legend=None, scale=alt.Scale(type="threshold", domain=list(CLASSES), range=list(RAMP)))
    tooltip = [alt.Tooltip("where:N", title="matrix"), alt.Tooltip("bits:Q", title="bits per weight", format=".3f")]
    tooltip += [alt.Tooltip("scheme:N"), alt.Tooltip("method:N")]
    cells = base.mark_rect(strokeWidth=1.5).encode(x=x, x2="x1:Q", y=y, color=colour, tooltip=tooltip)
    figures = (
        base.transform_calculate(middle="(datum.x0 + datum.x1) / 2")
        .mark_text(fontSize=10, opacity=alt.ExprRef(f"width / {count} < {CELL_PIXELS} ? 0 : 1"))
        .encode(
            x=alt.X("middle:Q"), y=y, text=alt.Text("bits:Q", format=".1f"),
            color=alt.condition(f"datum.bits < {CLASSES[DARK_CLASSES - 1]}", alt.value("#fff"), alt.value("#111")),
        )
    )  # fmt: skip
    words = f"Bits per weight of {subject.label}, block by block. {mixture(subject)}"
    return Chart(name, _spec(alt.layer(cells, figures), words, (14 if is_uniform(subject) else 23) * len(order)), words)


def _tile(cell: Cell, count: int) -> dict[str, Any]:
    whole = cell.block is None
    start = 0 if cell.block is None else cell.block
    return {
        "x0": start, "x1": count if whole else start + 1, "role": cell.role, "bits": round(cell.bits, 4),
        "scheme": cell.scheme, "method": cell.method,
        "where": cell.role if whole else f"block {start}, {cell.role}",
    }  # fmt: skip


def _ticks(count: int) -> list[int]:
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 1000) if count / step <= 10 or step == 1000)
    return list(range(0, count, step))


def is_uniform(subject: Subject) -> bool:
    """Whether all blocks' matrices are on one scheme."""
    return len({cell.scheme for cell in subject.cells if cell.block is not None}) < 2


def mixture(subject: Subject) -> str:
    """How many matrices are on which scheme, in words."""
    counts: dict[str, int] = {}
    for cell in subject.cells:
        if cell.block is not None:
            counts[cell.scheme] = counts.get(cell.scheme, 0) + 1
    blocks = ", ".join(f"{counts[scheme]} × {scheme}" for scheme in sorted(counts, key=lambda s: (-counts[s], s)))
    ends = ", ".join(f"{cell.role} {cell.scheme}" for cell in subject.cells if cell.block is None)
    return f"{blocks}; {ends}." if ends else f"{blocks}."


def histogram(name: str, subjects: Sequence[Subject]) -> Chart | None:
    """Share of tokens by KL divergence (log axis), a line a model; None where no model has details."""
    rows = []
    for subject in subjects:
        if subject.details is None:
            continue
        spread = subject.details.spread
        total = sum(spread.counts) or 1
        used = [i for i, n in enumerate(spread.counts) if n]
        for i in range(max(min(used) - 1, 0), min(max(used) + 2, len(spread.counts))) if used else ():
            kl = 10 ** (spread.first + spread.step * (i + 0.5))
            if 0 < kl < 1e12:
                rows.append({"model": subject.label, "kl": kl, "share": spread.counts[i] / total})
    if not rows:
        return None
    alt = altair_or_hint()
    labels = [subject.label for subject in subjects]
    dashes = [[1, 0], [6, 3], [2, 2], [8, 3, 2, 3]]
    spread_axis = alt.Axis(labelExpr=SHORT_NUMBER, tickCount=6, labelSeparation=8)
    lines = alt.Chart(alt.Data(values=rows)).mark_line(interpolate="monotone", strokeWidth=2).encode(
        x=alt.X("kl:Q", title="KL divergence of a token, nats (log)", scale=alt.Scale(type="log"), axis=spread_axis),
        y=alt.Y("share:Q", title="share of tokens", axis=alt.Axis(format="~%", tickCount=5)),
        color=alt.Color("model:N", scale=alt.Scale(domain=labels), legend=None),
        strokeDash=alt.StrokeDash(
            "model:N", legend=None, scale=alt.Scale(domain=labels, range=[dashes[i % 4] for i in range(len(labels))])
        ),
        tooltip=[alt.Tooltip("model:N"), alt.Tooltip("kl:Q", title="KL, nats", format=".2~g"),
                 alt.Tooltip("share:Q", title="of tokens", format=".1%")],
    )  # fmt: skip
    words = "How KL divergence is spread over tokens. " + "; ".join(
        f"{subject.label}: " + ", ".join(f"{share:.0%} of tokens below {nats:.2g}" for share, nats in quantiles)
        for subject, quantiles in ((s, s.details.spread.quantiles) for s in subjects if s.details is not None)
    )
    return Chart(name, _spec(lines, words, 240), words)


def loss(name: str, subjects: Sequence[Subject]) -> Chart:
    """Loss over the tokens that training has read, a line a trained model."""
    rows, told = [], []
    for subject in subjects:
        curve = subject.training.curve if subject.training else ()
        rows += [{"model": subject.label, "tokens": at.tokens, "y": at.loss, "scheme": ""} for at in curve]
        if curve:
            told.append(f"{subject.label}: from {curve[0].loss:.3g} to {curve[-1].loss:.3g}")
    return _over_tokens(name, subjects, rows, "loss, nats a token", "Loss in training. " + "; ".join(told), ".4~g")


def changes(name: str, subjects: Sequence[Subject]) -> Chart:
    """Share of codes that changed between two looks, over tokens, a line a trained model and scheme."""
    rows, told = [], []
    for subject in subjects:
        for scheme, looks in subject.training.looks.items() if subject.training else ():
            moved = [(look.tokens, look.changed) for look in looks if look.changed is not None]
            rows += [{"model": subject.label, "tokens": at, "y": share, "scheme": scheme} for at, share in moved]
            if moved:
                told.append(f"{subject.label}, {scheme}: {moved[0][1]:.2%} at first, {moved[-1][1]:.2%} at last")
    words = "Share of codes that changed between two looks. " + "; ".join(told)
    return _over_tokens(name, subjects, rows, "codes that changed", words, ".2~%")


def blocks(name: str, subjects: Sequence[Subject]) -> Chart | None:
    """Error of each block that was trained by itself, before and after, a line each; None where none was."""
    rows, told = [], []
    for subject in subjects:
        found = subject.training.blocks if subject.training else ()
        for block in found:
            ends = (("before", block.before), ("after", block.after))
            rows += [{"model": subject.label, "block": block.number, "when": when, "y": error} for when, error in ends]
        if found:
            before, after = (sum(getattr(block, end) for block in found) for end in ("before", "after"))
            told.append(f"{subject.label}: {after / max(before, 1e-12):.0%} of it left")
    if not rows:
        return None
    alt = altair_or_hint()
    colours = alt.Scale(domain=[subject.label for subject in subjects])
    line = alt.Chart(alt.Data(values=rows)).mark_line(strokeWidth=2, point={"size": 12}).encode(
        x=alt.X("block:Q", title="block", axis=alt.Axis(format="d", tickCount=6)),
        y=alt.Y("y:Q", title="relative squared error", axis=alt.Axis(format=".2~g", tickCount=5)),
        color=alt.Color("model:N", scale=colours, legend=None),
        strokeDash=alt.StrokeDash("when:N", scale=alt.Scale(domain=["after", "before"], range=[[1, 0], [4, 3]])),
        tooltip=[alt.Tooltip("model:N"), alt.Tooltip("block:Q"), alt.Tooltip("when:N"),
                 alt.Tooltip("y:Q", format=".3~g")],
    )  # fmt: skip
    words = "Each block's error, by itself, before its training and after. " + "; ".join(told)
    return Chart(name, _spec(line, words, 240), words)


def _over_tokens(
    name: str, subjects: Sequence[Subject], rows: list[dict[str, Any]], title: str, words: str, form: str
) -> Chart:
    """A line of y a model and scheme, over the tokens of its training."""
    alt = altair_or_hint()
    colours = alt.Scale(domain=[subject.label for subject in subjects])
    line = alt.Chart(alt.Data(values=rows)).mark_line(strokeWidth=2, point={"size": 12}).encode(
        x=alt.X("tokens:Q", title="tokens read", axis=alt.Axis(format="~s", tickCount=5, labelSeparation=8)),
        y=alt.Y("y:Q", title=title, scale=alt.Scale(zero=False), axis=alt.Axis(format=form, tickCount=5)),
        color=alt.Color("model:N", scale=colours, legend=None),
        detail="scheme:N",
        tooltip=[alt.Tooltip("model:N"), alt.Tooltip("scheme:N"), alt.Tooltip("tokens:Q", format=",d"),
                 alt.Tooltip("y:Q", title=title, format=form)],
    )  # fmt: skip
    return Chart(name, _spec(line, words, 240), words)


def _spec(chart: Any, words: str, height: int) -> dict[str, Any]:
    """The chart as a specification as wide as its place in the page, without altair's own look."""
    made = chart.properties(width="container", height=height, description=words).to_dict()
    made.pop("config", None)
    return made | {"autosize": {"type": "fit-x", "contains": "padding"}}
