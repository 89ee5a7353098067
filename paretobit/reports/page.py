"""A report as one HTML page that loads nothing: a pure function of what lies in the models' folders."""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Sequence

from paretobit.reports import charts, compare, headline, texts
from paretobit.reports.charts import Axis, Chart
from paretobit.reports.compare import Headline, Reading
from paretobit.reports.headline import figure, name
from paretobit.reports.markup import Markup, beside, script_json, tag
from paretobit.reports.results import Result
from paretobit.reports.subjects import Subject, how

SIZE = Axis("size, MB", "MB")
SPEED = Axis("decoding, tokens/s", "tokens/s", more_is_better=True)
ENERGY = Axis("energy, J a token", "J a token")


def page(subjects: Sequence[Subject], version: str, grid: str | None = None) -> str:
    """The page of these models, all of it. grid: ISO code of the country whose electricity a joule is counted as.

    Raises ParetobitError where the extra `report` is missing, and on a grid that nobody knows.
    """
    drawn: list[Chart] = []
    heads = compare.headlines(subjects)
    sections = [
        _top(subjects, heads, grid),
        _trade_offs(subjects, heads, drawn),
        _layers(subjects, drawn),
        _training(subjects, drawn),
        _differences(subjects, drawn),
        _writing(subjects),
        _everything(subjects),
    ]
    style, script = beside("page.css"), charts.script()
    allowed = {"default-src": "'none'", "script-src": _hash(script), "style-src": _hash(style)}
    policy = "; ".join(
        f"{kind} {who}" for kind, who in {**allowed, "base-uri": "'none'", "form-action": "'none'"}.items()
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", f"{_title(subjects)} · paretobit"),
        Markup(f"<style>{style}</style>"),
    )
    data = Markup(
        f'<script type="application/json" id="charts">{script_json({c.name: c.spec for c in drawn})}</script>'
    )
    footer = tag("footer", f"Made by paretobit {version} from the models’ own folders. This page loads nothing.")
    body = tag("body", tag("main", sections), footer, data, Markup(f"<script>{script}</script>"))
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _title(subjects: Sequence[Subject]) -> str:
    originals = list(dict.fromkeys(subject.original for subject in subjects))
    made = f"{len(subjects)} packed models" if len(subjects) > 1 else "one packed model"
    return f"{' and '.join(originals[:2])}{' and others' if len(originals) > 2 else ''}: {made}"


def _run(verb: str, subject: Subject, rest: str = "") -> Markup:
    return tag("code", f"paretobit {verb} {shlex.quote(subject.label)}{rest}")


def _eval_command(subject: Subject) -> Markup:
    return _run("eval", subject, f" --against {shlex.quote(subject.original)} --text FILE.txt")


def _ask(what: str, numbers: Sequence[int], subjects: Sequence[Subject], element: str) -> Markup | None:
    """What is missing of these models, and the command that brings it, of the first; None where nothing is."""
    if not numbers:
        return None
    rest = ", and so on." if len(numbers) > 1 else ""
    told = what, headline.names(numbers, subjects), ". ", _eval_command(subjects[numbers[0]]), rest
    return tag(element, *told, class_="todo" if element == "p" else None)


def _section(title: str, *parts: object, lead: object = None) -> Markup:
    told = tag("p", lead, class_="lead") if lead else None
    return tag("section", tag("h2", title), told, *parts)


def _figure(chart: Chart, caption: object, drawn: list[Chart], class_: str | None = None) -> Markup:
    drawn.append(chart)
    place = tag("div", id=chart.name, class_="chart")
    words = tag("noscript", tag("p", chart.words))
    return tag("figure", tag("figcaption", caption), place, words, class_=class_)


def _top(subjects: Sequence[Subject], heads: Sequence[Headline], grid: str | None) -> Markup:
    joules = [head.joules for head in heads]
    grams: list[float | None] = [None] * len(subjects)
    if grid is not None:
        from paretobit.evals.energy import carbon

        grams = [None if reading is None else carbon(1e6 * reading.value, grid) for reading in joules]
    notes = headline.notes(subjects, heads, compare.baseline(subjects, joules))
    unknown = [i for i, head in enumerate(heads) if head.kept is None and head.kl is None]
    missing = _ask("Never measured against the original: ", unknown, subjects, "li")
    header = tag("header", tag("p", "paretobit report", class_="over"), tag("h1", _title(subjects)))
    table = headline.table(subjects, heads, grams, grid)
    listed = tag("ul", notes, missing, class_="notes") if notes or unknown else None
    return tag("section", header, headline.verdict(subjects, heads), table, listed)


def _trade_offs(subjects: Sequence[Subject], heads: Sequence[Headline], drawn: list[Chart]) -> Markup:
    kl = [head.kl for head in heads]
    sizes = [Reading(s.size_bytes / 1e6, None, 1, "measured", "") for s in subjects]
    first = subjects[0]
    plots: list[tuple[str, str, Axis, Sequence[Reading | None], Markup]] = [
        ("size", "Size against quality", SIZE, sizes, _eval_command(first)),
        ("speed", "Speed against quality", SPEED, [head.speed for head in heads], _run("bench", first)),
        ("energy", "Energy against quality", ENERGY, [head.joules for head in heads], _run("bench", first)),
    ]
    figures, todo = [], []
    for key, title, axis, across, command in plots:
        chart = charts.scatter(f"chart-{key}", axis, subjects, across, kl)
        if chart is None:
            if key != "size" and not any(kl):
                command = Markup(f"{_eval_command(first)} and {command}")
            todo.append(tag("p", f"{title}: not measured yet. ", command, " would.", class_="todo"))
            continue
        modelled = key == "energy" and any(reading and reading.how == "modelled" for reading in across)
        figures.append(_figure(chart, [tag("b", title), tag("span", ", modelled") if modelled else None], drawn))
    names = tag("ul", [tag("li", name(i, subject)) for i, subject in enumerate(subjects)], class_="key models")
    lead = (
        "Lower is closer to the original; bars are one standard error. The dashed line is the frontier: filled marks "
        "are on it, no other model here is better in both; hollow ones are behind it, or do not compare."
    )
    shown = [names, tag("div", figures, class_="grid plots")] if figures else []
    return _section("What quality costs", *shown, *todo, lead=lead if figures else None)


def _layers(subjects: Sequence[Subject], drawn: list[Chart]) -> Markup:
    swatches = []
    for label, colour in zip(charts.CLASS_NAMES, charts.RAMP, strict=True):
        patch = tag(
            "svg",
            tag("rect", width=12, height=12, fill=colour),
            class_="patch",
            viewBox="0 0 12 12",
            aria_hidden="true",
        )
        swatches.append(tag("li", patch, label))
    figures = [
        _figure(
            charts.heat_map(f"chart-bits-{i}", subject),
            [name(i, subject), tag("span", " " + charts.mixture(subject))],
            drawn,
            class_=None if charts.is_uniform(subject) else "wide",
        )
        for i, subject in enumerate(subjects)
    ]
    lead = "Bits that a weight of each matrix takes, scales included."
    return _section(
        "Bits, layer by layer", tag("ul", swatches, class_="key"), tag("div", figures, class_="grid"), lead=lead
    )


def _training(subjects: Sequence[Subject], drawn: list[Chart]) -> Markup | None:
    """How those that were trained got there; nothing where none was."""
    trained = [(i, s, s.training) for i, s in enumerate(subjects) if s.training]
    if not trained:
        return None
    key = tag("ul", [tag("li", name(i, subject)) for i, subject, _ in trained], class_="key models")
    figures = [
        _figure(charts.loss("chart-loss", subjects), tag("b", "Loss"), drawn),
        _figure(charts.changes("chart-changes", subjects), tag("b", "Codes that still change"), drawn),
    ]
    by_block = charts.blocks("chart-blocks", subjects)
    figures += [_figure(by_block, tag("b", "Blocks by themselves"), drawn)] if by_block else []
    titles = (
        "model",
        "scheme",
        "steps",
        "tokens",
        "codes that changed at last",
        "ranges moved by",
        "levels, first → last",
    )
    head = tag("tr", [tag("th", title, scope="col") for title in titles])
    rows = []
    for number, subject, training in trained:
        for scheme, looks in training.looks.items():
            first, last = looks[0], looks[-1]
            moved = "–" if last.changed is None else f"{last.changed:.2%} in {last.over_steps} steps"
            levels = ", ".join(f"{a:.1%} → {b:.1%}" for a, b in zip(first.levels, last.levels, strict=False))
            cells = (scheme, training.steps, f"{last.tokens:,}", moved, f"{last.drift:.1%}", levels or "–")
            rows.append(tag("tr", tag("th", name(number, subject), scope="row"), [tag("td", cell) for cell in cells]))
    table = tag("table", tag("thead", head), tag("tbody", rows), class_="figures every")
    shown = key, tag("div", figures, class_="grid plots"), headline.box(table, "Training, scheme by scheme", "box")
    lead = "What each step's loss was, and how many codes still moved: where few do, more steps bring little."
    return _section("Training", *shown, lead=lead)


def _differences(subjects: Sequence[Subject], drawn: list[Chart]) -> Markup:
    chart = charts.histogram("chart-kl", subjects)
    if chart is None:
        told = tag("p", "Not recorded yet. ", _eval_command(subjects[0]), " writes it down.", class_="todo")
        return _section("Where the models differ", told)
    known = [subject for subject in subjects if subject.details]
    key = tag("ul", [tag("li", name(i, s)) for i, s in enumerate(subjects) if s.details], class_="key models")
    figure_ = _figure(chart, tag("b", "KL divergence, token by token"), drawn)
    todo = _ask("Not recorded of ", [i for i, s in enumerate(subjects) if not s.details], subjects, "p")
    lead = "Most tokens hardly change, a few change a lot: below, the text in which each model differs most."
    marked = texts.flips(known) and [
        tag("h3", "Where the likeliest token flips"),
        texts.legend(),
        *texts.flips(subjects),
    ]
    return _section("Where the models differ", key, figure_, todo, *(marked or []), lead=lead)


def _writing(subjects: Sequence[Subject]) -> Markup | None:
    shown, why = texts.continuations(subjects), texts.skipped(subjects)
    if not shown and not why:
        return None
    lead = "Every model takes its likeliest token each time. Italics: where it has left the original’s words."
    return _section("Text, side by side", tag("div", shown, class_="prompts"), *why, lead=lead if shown else None)


def _everything(subjects: Sequence[Subject]) -> Markup:
    titles = ("model", "metric", "value", "unit", "± error", "n", "how", "machine", "command")
    head = tag("tr", [tag("th", title, scope="col") for title in titles])
    rows = [tag("tr", _cells(i, subject, row)) for i, subject in enumerate(subjects) for row in subject.rows]
    if not rows:
        return _section("Every figure", tag("p", "None yet. ", _eval_command(subjects[0]), class_="todo"))
    table = tag("table", tag("thead", head), tag("tbody", rows), class_="figures every")
    lead = "The latest row of every metric and command in the models’ results; THIS is the model’s folder."
    return _section("Every figure", headline.box(table, "Every figure", "box tall"), lead=lead)


def _cells(number: int, subject: Subject, row: Result) -> list[Markup]:
    error = "" if row.stderr is None else figure(row.stderr)
    kind = how(row)
    return [
        tag("th", name(number, subject), scope="row"),
        tag("td", tag("bdi", row.metric)), tag("td", f"{row.value:.6g}"), tag("td", row.unit), tag("td", error),
        tag("td", row.n), tag("td", kind, class_=kind), tag("td", tag("code", row.hardware[:12])),
        tag("td", tag("code", row.command)),
    ]  # fmt: skip
