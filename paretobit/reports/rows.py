"""Result rows of several models as one file for other programs: JSONL or CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path

from paretobit.errors import ParetobitError
from paretobit.reports.results import Result
from paretobit.reports.subjects import Subject, how
from paretobit.work import write_atomically

COLUMNS = ("model", *(field.name for field in fields(Result)), "how")
FORMULAS = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet would compute instead of show
ENDINGS = (".jsonl", ".csv")


def check_ending(path: Path) -> None:
    """Raise ParetobitError unless the file's ending says what it shall be."""
    if path.suffix.lower() not in ENDINGS:
        raise ParetobitError(
            f"--rows {path}: the ending does not say what to write", hint=f"end it with {' or '.join(ENDINGS)}"
        )


def rows(subjects: Sequence[Subject]) -> Iterator[dict[str, object]]:
    """The latest row of each metric and command, with `model`, the label, and `how`: measured or modelled."""
    for subject in subjects:
        for row in subject.rows:
            yield {"model": subject.label, **asdict(row), "how": how(row)}


def write_rows(path: Path, subjects: Sequence[Subject]) -> int:
    """Write them to `path`, in one rename; how many there are. In CSV a text that a spreadsheet would take for a
    formula gets an apostrophe in front. Raises ParetobitError where that fails."""
    check_ending(path)
    found = list(rows(subjects))
    if path.suffix.lower() == ".jsonl":
        text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in found)
    else:
        written = io.StringIO(newline="")
        writer = csv.DictWriter(written, COLUMNS, lineterminator="\r\n")
        writer.writeheader()
        writer.writerows({key: _shown(value) for key, value in row.items()} for row in found)
        text = written.getvalue()
    write_atomically(path, text.encode("utf-8", "replace"))
    return len(found)


def _shown(value: object) -> object:
    return "'" + value if isinstance(value, str) and value.startswith(FORMULAS) else value
