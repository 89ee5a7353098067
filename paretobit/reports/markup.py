"""HTML that cannot be broken out of: whatever is not Markup is text, and text is escaped."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable
from pathlib import Path
from unicodedata import category

SHOWN = "\n\t\u200c\u200d"  # the joiners are part of words in Persian and Hindi, and of emoji
VOID = ("meta", "br", "path", "rect")


class Markup(str):
    """A piece of HTML that `tag` made."""


def clean(text: str) -> str:
    """`text` without what a page would obey instead of show: control characters, changes of direction, lone
    surrogates."""
    return "".join(c if c.isprintable() or c in SHOWN or category(c) == "Zs" else "\ufffd" for c in text)


def escaped(child: object) -> Markup:
    """What stands for `child` in a page: Markup as it is, None as nothing, a list as its parts, all else as text."""
    if isinstance(child, Markup):
        return child
    if child is None:
        return Markup()
    if isinstance(child, Iterable) and not isinstance(child, str):
        return Markup("".join(escaped(part) for part in child))
    return Markup(html.escape(clean(str(child))))


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """<name attributes>children</name>. `class_` is class, `data_x` data-x; attributes that are None or False stay
    away, True has no value."""
    given = []
    for key, value in attributes.items():
        if value is not None and value is not False:
            spelled = key.rstrip("_").replace("_", "-")
            given.append(f" {spelled}" if value is True else f' {spelled}="{html.escape(clean(str(value)))}"')
    opened = f"<{name}{''.join(given)}>"
    return Markup(opened if name in VOID else f"{opened}{escaped(children)}</{name}>")


def script_json(value: object) -> str:
    """JSON that stands in a script element without ending it."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"), sort_keys=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def beside(name: str) -> str:
    """The text of a file of this package."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")
