"""Rows, some at a time: what is done to all of them then needs a bounded amount of memory."""

from __future__ import annotations

from collections.abc import Iterator


def pieces(rows: int, most: int, width: int = 1) -> Iterator[slice]:
    """All rows in order, so many at a time that they have at most `most` elements, `width` each; at least one row."""
    step = max(1, most // width)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))
