"""The parts of a report that show text: where the arg-max flips, and what the models write."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from paretobit.reports.details import Guess, Token, Window
from paretobit.reports.headline import box, figure, name, share
from paretobit.reports.markup import Markup, tag
from paretobit.reports.subjects import Subject

SHOWN_WINDOWS = 1  # of each model, the one with the most flips
MOST_FLIPS = 200  # listed under a window
KINDS = {"original": "lost", "quantized": "won", None: "moved"}
LEGEND = {
    "lost": "the original was right, the packed model is not",
    "won": "the packed model is right, the original was not",
    "moved": "they differ, and neither is right",
}


def flips(subjects: Sequence[Subject]) -> list[Markup]:
    """For every model with details, the windows of held-out text in which it differs most, marked and listed."""
    parts: list[Markup] = []
    for number, subject in enumerate(subjects):
        windows = subject.details.windows[:SHOWN_WINDOWS] if subject.details else ()
        for window in windows:
            scored = len(window.tokens)
            told = f": window {window.window}, {window.flips} of {scored} predictions differ"
            summary = tag("summary", name(number, subject), told)
            opened = not parts
            parts.append(tag("details", summary, passage(window), listing(window), open=opened, class_="flips"))
    return parts


def passage(window: Window) -> Markup:
    """The text, the tokens that were predicted otherwise marked and numbered."""
    pieces: list[Markup] = []
    count = 0
    for token in window.tokens:
        if token.original is None or token.quantized is None:
            pieces.append(tag("span", token.text))
            continue
        count += 1
        bare = token.text.strip()  # spaces and line ends around a word are not marked with it
        before, _, after = token.text.partition(bare) if bare else ("", "", token.text)
        title = f"original {_said(token.original)}, packed {_said(token.quantized)}, KL {token.kl:.3g}"
        number = tag("sup", count, aria_hidden="true")
        mark = tag("mark", bare or spelled(token.text), number, class_=_kind(token), title=title, tabindex=0)
        pieces.append(tag("span", before, mark, after))
    start = tag("span", "… ", window.before.lstrip(), class_="before")
    return tag("p", start, pieces, class_="passage", dir="auto")


def listing(window: Window) -> Markup:
    """The same flips as a table: what can be read without a pointer."""
    found = [token for token in window.tokens if token.original is not None]
    rows = []
    for count, token in enumerate(found[:MOST_FLIPS], 1):
        assert token.original is not None and token.quantized is not None
        rows.append(
            tag(
                "tr", tag("td", count), tag("td", word(token.text), class_=_kind(token)),
                [(tag("td", word(g.text)), tag("td", share(g.p))) for g in (token.original, token.quantized)],
                tag("td", figure(token.kl)),
            )
        )  # fmt: skip
    titles = ("#", "text", "original", "p", "packed", "p", "KL, nats")
    head = tag("tr", [tag("th", title, scope="col") for title in titles])
    more = f" (the first {MOST_FLIPS} of {len(found)})" if len(found) > MOST_FLIPS else ""
    table = tag("table", tag("thead", head), tag("tbody", rows), class_="figures")
    summary = tag("summary", f"These flips in figures{more}")
    return tag("details", summary, box(table, "Flips in figures", "box tall"), class_="inner")


def legend() -> Markup:
    return tag(
        "ul", [tag("li", tag("mark", "word", class_=kind), " ", told) for kind, told in LEGEND.items()], class_="key"
    )


def word(text: str) -> Markup:
    """A token, with what would not be seen spelled out."""
    return tag("bdi", spelled(text).strip(" "), class_="word")


def spelled(text: str) -> str:
    """With signs for line ends and tabs, and for spaces where there is nothing else."""
    shown = text.replace("\n", "⏎").replace("\t", "⇥")
    return shown if shown.strip() else shown.replace(" ", "␣") or "∅"


def _said(guess: Guess) -> str:
    return f"“{guess.text.strip(' ')}” {guess.p:.0%}"


def _kind(token: Token) -> str:
    return KINDS[token.right]


def continuations(subjects: Sequence[Subject]) -> list[Markup]:
    """Every prompt with what the original and each model write after it. Where a model leaves the original's words, its
    own are set apart."""
    found: dict[str, list[tuple[int, str, str]]] = {}
    for number, subject in enumerate(subjects):
        for each in subject.details.continuations if subject.details else ():
            found.setdefault(each.prompt, []).append((number, each.original, each.quantized))
    parts = []
    for prompt, rows in found.items():
        lines = []
        for text in dict.fromkeys(original for _, original, _ in rows):
            sources = {subjects[number].original for number, original, _ in rows if original == text}
            lines.append((tag("dt", "original, ", sorted(sources)[0]), tag("dd", _tidy(text))))
        for number, *texts in rows:
            original, own = map(_tidy, texts)
            same = _alike(original, own)
            shown = tag("dd", own[:same], tag("em", own[same:]) if own[same:] else None)
            lines.append((tag("dt", name(number, subjects[number])), shown))
        parts.append(tag("article", tag("h3", prompt.replace("\n", " ⏎ ").strip()), tag("dl", lines)))
    return parts


def _tidy(text: str) -> str:
    """Without blank lines, which would part what belongs side by side."""
    return "\n".join(line for line in text.split("\n") if line.strip()).strip()


def _alike(a: str, b: str) -> int:
    """Characters of `b` up to the last word that it begins with like `a`."""
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))
    whole = same == len(b) and (same == len(a) or a[same].isspace())
    return same if whole else b.rfind(" ", 0, same) + 1


def skipped(subjects: Sequence[Subject]) -> list[Markup]:
    """Why some have no continuations."""
    known = [(i, s, s.details.skipped) for i, s in enumerate(subjects) if s.details and s.details.skipped]
    return [tag("p", name(i, subject), ": ", why, class_="todo") for i, subject, why in known]
