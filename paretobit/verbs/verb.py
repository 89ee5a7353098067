"""What a verb is: one function, its name on the command line, and how its result reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Option:
    """How a keyword parameter looks on the command line: `Annotated[str, Option("help", "-o")]`."""

    help: str
    short: str = ""
    name: str = ""


@dataclass(frozen=True)
class Verb:
    """command: its name on the command line; function: the same in Python; show: the result as people read it.

    The result has `to_json()`; `--json` prints that instead.
    """

    command: str
    function: Callable[..., Any]
    show: Callable[[Any], object]
