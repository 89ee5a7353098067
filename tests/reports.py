"""What the tests of reports share: packed models with made-up results, and a page taken apart as a browser would."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import paretobit as pb
from paretobit.reports import details, results
from paretobit.reports.details import Continuation, Details, Guess, Spread, Token, Window
from paretobit.reports.results import Result

VOID = ("meta", "br", "path", "rect")
EVAL = "paretobit eval THIS --against tiny --text held-out.txt"


def pack(model: Path, out: Path, to: str = "w4g16") -> Path:
    pb.quantize(str(model), to=to, method="rtn", out=str(out))
    return out


def measure(out: Path, metric: str, value: float, stderr: float | None = None, **changes: object) -> None:
    """Append one row to the model's results."""
    given = {"unit": "", "n": 80, "hardware": "abcd", "command": EVAL, "artifact": pb.Artifact(out).hash, **changes}
    results.append(out / "results.jsonl", [Result(metric=metric, value=value, stderr=stderr, **given)])  # type: ignore[arg-type]


def some_details(out: Path, word: str = " word", **changes: object) -> Details:
    """Details of the model in `out` with every kind of flip; `word` stands wherever a file's text can."""
    flips = [
        Token(word, 0.5, Guess(word, 0.75), Guess(word + "x", 0.25), right) for right in ("original", "quantized", None)
    ]
    facts = {
        "artifact": pb.Artifact(out).hash, "original": "tiny", "command": EVAL,
        "spread": Spread(-7.0, 0.5, (1, 0, 3, 4, 2), ((0.5, 1e-5), (0.99, 0.25))),
        "windows": (Window(7, f"before {word}", (Token(word, 0.001), *flips)),),
        "continuations": (Continuation(f"prompt {word}", f" one two {word}", f" one three {word}"),),
    }  # fmt: skip
    return Details(**{**facts, **changes})  # type: ignore[arg-type]


def write_details(out: Path, word: str = " word", **changes: object) -> None:
    details.write(out, some_details(out, word, **changes))


@dataclass
class Element:
    name: str
    attributes: dict[str, str | None]
    children: list[Element | str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text for child in self.children)

    def all(self, name: str, **attributes: str) -> list[Element]:
        """Every element below of this name and these attributes, in order."""
        wanted = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()}
        found = []
        for child in self.children:
            if isinstance(child, Element):
                given = {key: child.attributes.get(key) for key in wanted}
                found += [child] if child.name == name and given == wanted else []
                found += child.all(name, **attributes)
        return found


class Parser(HTMLParser):
    """Builds a tree, and complains where elements do not close each other in order."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element("", {})
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({key for key, _ in attrs}) == len(attrs), attrs
        made = Element(tag, dict(attrs))
        self.open[-1].children.append(made)
        if tag not in VOID:
            self.open.append(made)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().name == tag

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def parse(html: str) -> Element:
    parser = Parser()
    parser.feed(html)
    parser.close()
    assert parser.open == [parser.root]
    return parser.root


def charts(page: Element) -> dict[str, dict]:
    """The specifications of the page's charts by name."""
    (data,) = page.all("script", type="application/json")
    return json.loads(data.text)


def table(element: Element) -> list[list[str]]:
    """The texts of a table's cells, the head's row first."""
    return [
        [cell.text for cell in row.children if isinstance(cell, Element) and cell.name in ("td", "th")]
        for row in element.all("tr")
    ]
