"""Result rows: an append-only JSONL file, one measurement a line."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from paretobit.errors import ParetobitError


@dataclass(frozen=True)
class Result:
    """One measurement.

    metric: what was measured ("kl_divergence"); value in `unit` ("nats", "" for shares and counts); n: how
    many samples `stderr` is over; stderr: standard error, None where there is none. artifact, hardware:
    hashes of what was measured and where. command: what measures it again. Raises ParetobitError for a value
    that is not a finite number.
    """

    metric: str
    value: float
    unit: str
    n: int
    stderr: float | None
    artifact: str
    hardware: str
    command: str

    def __post_init__(self) -> None:
        for name, kind in KINDS.items():
            value: Any = getattr(self, name)
            if name == "stderr" and value is None:
                continue
            if not isinstance(value, kind) or isinstance(value, bool):
                wanted = "a text" if kind is str else "a whole number" if kind is int else "a number"
                raise ParetobitError(f"result '{self.metric}': {name} is {value!r}", hint=f"give {wanted}")
            if isinstance(value, float) and not math.isfinite(value):
                raise ParetobitError(f"result '{self.metric}': {name} is {value}", hint="give a finite number")
        if self.n < 0 or (self.stderr or 0) < 0:
            raise ParetobitError(f"result '{self.metric}': n or stderr is negative", hint="both count up from 0")


NUMBER = (int, float)
KINDS: dict[str, type | tuple[type, ...]] = {
    "metric": str, "value": NUMBER, "unit": str, "n": int, "stderr": NUMBER,
    "artifact": str, "hardware": str, "command": str,
}  # fmt: skip


def append(path: str | Path, results: Sequence[Result]) -> None:
    """Add rows at the end of the file, made if need be, in one write that reaches the disk before it returns.

    A torn last line, left by a crash, is cut off first, so that it never ends up in the middle. One writer at
    a time.
    """
    lines = "".join(json.dumps(asdict(result), allow_nan=False) + "\n" for result in results)
    try:
        with open(path, "a+b") as file:
            file.seek(0)
            old = file.read()
            rows, tail = _split(old)
            if tail:
                if _parses(tail):
                    lines = "\n" + lines  # whole, only its newline is missing
                else:
                    file.truncate(len(rows))
            file.write(lines.encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ParetobitError(
            f"cannot write '{path}': {error.strerror or error}", hint="check the folder and its free space"
        ) from error


def read(path: str | Path) -> list[Result]:
    """All rows; none where there is no file yet.

    A torn last line (no newline, not JSON) is left out; any other bad line raises ParetobitError.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ParetobitError(
            f"cannot read '{path}': {error.strerror or error}",
            hint="name a results file that eval or bench wrote",
        ) from error
    rows, tail = _split(data)
    lines = rows.split(b"\n")[:-1] + ([tail] if tail and _parses(tail) else [])
    return [_parse(path, number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def _split(data: bytes) -> tuple[bytes, bytes]:
    """The finished lines, and what stands after the last newline."""
    end = data.rfind(b"\n") + 1
    return data[:end], data[end:]


def _parses(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _parse(path: str | Path, number: int, line: bytes) -> Result:
    where = f"'{path}', line {number}"
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ParetobitError(
            f"{where}: not JSON ({error})", hint="remove the line; only a torn last one is passed over"
        ) from None
    names = {field.name for field in fields(Result)}
    if not isinstance(row, dict) or set(row) != names:
        raise ParetobitError(f"{where}: not a result row", hint=f"its fields are {', '.join(sorted(names))}")
    try:
        return Result(**row)
    except ParetobitError as error:
        raise ParetobitError(f"{where}: {error.message}", hint=error.hint) from None
