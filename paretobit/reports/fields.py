"""Values out of JSON that nobody vouches for, each checked and named where it is bad."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paretobit.errors import ParetobitError
from paretobit.work import parse_json, read_bytes


@dataclass(frozen=True)
class Fields:
    """Takes fields out of objects that come from the file at `path`; hint: what to do where they are bad."""

    path: str
    hint: str

    def content(self, most: int) -> bytes | None:
        """All of the file, at most so many bytes; None where there is none."""
        path = Path(self.path)
        if not path.exists() and not path.is_symlink():
            return None
        if not path.is_file():
            raise ParetobitError(f"{path} is not a file", hint=self.hint)
        with self._hinted():
            return read_bytes(path, most)

    def parsed(self, text: bytes | str, where: str = "") -> dict:
        """A JSON object; where: in the file, for people."""
        with self._hinted():
            return parse_json(text, self.path + where)

    @contextmanager
    def _hinted(self) -> Iterator[None]:
        try:
            yield
        except ParetobitError as why:
            raise ParetobitError(why.message, hint=self.hint) from None

    def bad(self, what: str) -> ParetobitError:
        return ParetobitError(f"{self.path}: {what}", hint=self.hint)

    def field(self, facts: object, name: str) -> Any:
        if not isinstance(facts, Mapping) or name not in facts:
            raise self.bad(f"{name} is missing")
        return facts[name]

    def text(self, facts: object, name: str, most: int) -> str:
        value = self.field(facts, name)
        if type(value) is not str or len(value) > most:
            raise self.bad(f"{name} is not a text of at most {most} characters")
        return value

    def number(self, facts: object, name: str, least: float, most: float) -> float:
        return self.checked(self.field(facts, name), name, least, most)

    def checked(self, value: object, name: str, least: float, most: float) -> float:
        # NaN compares as false, infinity lies outside, and huge whole numbers never become floats.
        if type(value) not in (int, float) or not least <= value <= most:  # type: ignore[operator]
            raise self.bad(f"{name} is {reprlib.repr(value)}, not a number from {least:g} to {most:g}")
        return float(value)  # type: ignore[arg-type]

    def count(self, value: object, name: str) -> int:
        if type(value) is not int or not 0 <= value < 1 << 53:
            raise self.bad(f"{name} is {reprlib.repr(value)}, not a count")
        return value

    def items(self, facts: object, name: str, most: int) -> list[Any]:
        value = self.field(facts, name)
        if type(value) is not list or len(value) > most:
            raise self.bad(f"{name} is not a list of at most {most} entries")
        return value
