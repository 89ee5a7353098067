"""The top of a report: who is the smallest that keeps enough, and the figures of every model in one table."""

from __future__ import annotations

import math
from collections.abc import Sequence

from paretobit.evals.energy import MODELLED
from paretobit.reports.charts import COLOURS, SHAPES
from paretobit.reports.compare import BAR, Headline, Reading, smallest
from paretobit.reports.markup import Markup, tag
from paretobit.reports.subjects import Subject
from paretobit.sizes import human

PATHS = {
    "circle": "M5 1a4 4 0 1 0 0 8a4 4 0 1 0 0-8z",
    "square": "M1.5 1.5h7v7h-7z",
    "diamond": "M5 0.5l4 4.5l-4 4.5l-4-4.5z",
    "triangle-up": "M5 1l4.5 8h-9z",
    "cross": "M3.5 1h3v2.5h2.5v3h-2.5v2.5h-3v-2.5h-2.5v-3h2.5z",
    "triangle-down": "M5 9l4.5-8h-9z",
    "triangle-right": "M9 5l-8 4.5v-9z",
}
MISSING = "–"
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def badge(number: int) -> Markup:
    """The shape and colour of the model of this number, as in the charts."""
    shape = PATHS[SHAPES[number % len(SHAPES)]]
    drawn = tag("path", d=shape)
    return tag("svg", drawn, class_=f"badge s{number % COLOURS}", viewBox="0 0 10 10", aria_hidden="true")


def name(number: int, subject: Subject) -> Markup:
    return tag("span", badge(number), tag("bdi", subject.label), class_="name")


def share(value: float) -> str:
    return f"{100 * value:.1f}\u202f%".replace("-0.0", "0.0").replace("-", "−")


def figure(value: float, like: float | None = None) -> str:
    """About three significant digits, with a power of ten only below 0.001 and from a million on; or written as `like`
    is."""
    size = abs(value if like is None else like)
    if size and not 1e-3 <= size < 1e6:
        power = math.floor(math.log10(size))
        return f"{value / 10.0**power:.2f}·10{str(power).translate(RAISED)}".replace("-", "−")
    digits = next(digits for least, digits in ((100, 0), (10, 1), (1, 3), (0, 4)) if size >= least)
    return f"{value:,.{digits}f}".replace(",", "\u202f").replace("-", "−")


def verdict(subjects: Sequence[Subject], heads: Sequence[Headline]) -> Markup:
    """Which is the smallest that keeps BAR, or why none can be named."""
    kept = [head.kept for head in heads]
    bar = f"{BAR:.0%}".replace("%", "\u202f%")
    if (best := smallest(subjects, kept)) is not None:
        subject, reading = subjects[best], kept[best]
        assert reading is not None
        return tag(
            "p", name(best, subject), f" is the smallest here that keeps {bar} of the original’s next-token accuracy: ",
            tag("strong", human(subject.size_bytes)), f", {share(subject.saved_16bit)} less than in 16 bits, keeping ",
            tag("strong", spread(reading)), ".", class_="verdict",
        )  # fmt: skip
    known = [(reading.value, i) for i, reading in enumerate(kept) if reading is not None]
    if not known:
        return tag("p", "How much accuracy these models keep has not been measured yet.", class_="verdict")
    value, nearest = max(known)
    reading = kept[nearest]
    assert reading is not None
    if value >= BAR:
        sure, told = "surely ", f" keeps {spread(reading)}, but {reading.n} windows of text are too few to be sure."
    else:
        sure, told = "", f" comes nearest with {spread(reading)}."
    start = f"None of these {sure}keeps {bar} of the original’s next-token accuracy; "
    return tag("p", start, name(nearest, subjects[nearest]), told, class_="verdict")


def spread(reading: Reading) -> str:
    error = "" if reading.stderr is None else f" ± {100 * reading.stderr:.1f}"
    return f"{100 * reading.value:.1f}{error}\u202f%"


def table(
    subjects: Sequence[Subject], heads: Sequence[Headline], grams: Sequence[float | None], grid: str | None
) -> Markup:
    """One row a model; columns that nobody has measured are left out. grams: CO2e of a million tokens, from `grid`."""
    columns: list[tuple[str, list[Markup]]] = [
        ("size", [cell(human(s.size_bytes)) for s in subjects]),
        ("saved of 16 bits", [cell(share(s.saved_16bit)) for s in subjects]),
        ("saved of 32 bits", [cell(share(s.saved_32bit)) for s in subjects]),
        ("bits a weight", [cell(f"{s.bits_per_weight:.3f}") for s in subjects]),
    ]
    columns += [
        ("next token kept", [percent(head.kept) for head in heads]),
        ("same top\u20111", [percent(head.same) for head in heads]),
        ("tasks kept", [percent(head.tasks, counted=True) for head in heads]),
        ("KL, nats", [number(head.kl) for head in heads]),
        ("perplexity ratio", [number(head.ratio) for head in heads]),
        ("tokens/s", [number(head.speed) for head in heads]),
        ("J a token", [number(head.joules) for head in heads]),
        ("J saved", [cell(MISSING if h.saved_joules is None else share(h.saved_joules)) for h in heads]),
    ]
    if grid is not None:
        columns.append((f"g CO₂e a million tokens, {grid}", [cell(MISSING if g is None else figure(g)) for g in grams]))
    nothing = cell(MISSING)
    shown = [(title, cells) for title, cells in columns if any(found != nothing for found in cells)]
    # On a phone rows become blocks, which takes a table's meaning away from it unless roles say it.
    titles = [tag("th", title, scope="col", role="columnheader") for title, _ in shown]
    head = tag("tr", tag("th", "model", scope="col", role="columnheader"), titles, role="row")
    rows = [
        tag(
            "tr", tag("th", name(i, subject), scope="row", role="rowheader"),
            [
                tag("td", cells[i], data_label=title, role="cell", class_="missing" if cells[i] == nothing else None)
                for title, cells in shown
            ],
            role="row",
        )
        for i, subject in enumerate(subjects)
    ]  # fmt: skip
    parts = tag("thead", head, role="rowgroup"), tag("tbody", rows, role="rowgroup")
    made = tag("table", parts, class_="heads", role="table", aria_label="The models side by side")
    return box(made, "The models side by side")


def box(content: Markup, label: str, class_: str = "box") -> Markup:
    """Where something wider or longer than the page scrolls, by keyboard too."""
    return tag("div", content, class_=class_, tabindex=0, role="region", aria_label=label)


def cell(*parts: object) -> Markup:
    return tag("span", *parts)


def percent(reading: Reading | None, counted: bool = False) -> Markup:
    if reading is None:
        return cell(MISSING)
    error = None if reading.stderr is None else tag("small", f" ± {100 * reading.stderr:.1f}")
    many = tag("small", f" {reading.n} tasks") if counted and reading.n > 1 else None
    return cell(share(reading.value), dagger(reading), error, many)


def number(reading: Reading | None) -> Markup:
    if reading is None:
        return cell(MISSING)
    error = None if reading.stderr is None else tag("small", f" ± {figure(reading.stderr, reading.value)}")
    modelled = tag("small", " modelled", class_="modelled") if reading.how == MODELLED else None
    return cell(figure(reading.value), dagger(reading), error, modelled)


def dagger(reading: Reading) -> Markup | None:
    return None if reading.alike else tag("sup", "†", title=f"measured otherwise: {reading.command}")


def names(numbers: Sequence[int], subjects: Sequence[Subject]) -> list[Markup]:
    """Several models in a row."""
    return [Markup((", " if i else "") + name(number, subjects[number])) for i, number in enumerate(numbers)]


def notes(subjects: Sequence[Subject], heads: Sequence[Headline], base: int | None) -> list[Markup]:
    """What the figures leave unsaid."""
    found = []
    readings = [r for h in heads for r in (h.kept, h.same, h.tasks, h.kl, h.ratio, h.speed, h.joules) if r]
    if any(not reading.alike for reading in readings):
        found.append(
            tag("li", "† measured on other text, settings or another machine than the rest: it does not compare.")
        )
    if base is not None:
        found.append(
            tag("li", "Energy saved is counted from ", name(base, subjects[base]), ", the largest measured alike.")
        )
    if any(reading.how == MODELLED for reading in readings):
        found.append(
            tag("li", "Energy called modelled is computed from seconds, busy cores and bytes read; no meter was there.")
        )
    if len({subject.original_hash for subject in subjects}) > 1:
        found.append(
            tag("li", "These models come from several originals: only those of one original have a frontier together.")
        )
    for number, subject in enumerate(subjects):
        if subject.strangers:
            told = f": {subject.strangers} of its results are of other weights, and left out."
            found.append(tag("li", name(number, subject), told))
    return found
