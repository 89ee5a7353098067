"""Progress on stderr: what runs, how far, and how long it will still take."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Advance(Protocol):
    """Takes the amount of work just done, and what to show beside it from now on."""

    def __call__(self, amount: float, beside: str = "") -> None: ...


@contextmanager
def progress(what: str, total: float) -> Iterator[Advance]:
    """Show `what` until the block ends; call the yielded function with the amount of work just done.

    A terminal gets a bar with the time left; anything else gets one line at every tenth of the way.
    """
    if not leads():
        yield lambda amount, beside="": None
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"),
                   TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
                   TextColumn("{task.fields[beside]}"))  # fmt: skip
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(what, total=total, beside="")
            yield lambda amount, beside="": bar.update(task, advance=amount, beside=beside)
    else:
        yield _lines(what, total)


def _lines(what: str, total: float) -> Advance:
    import time

    start, done, shown = time.monotonic(), 0.0, 0

    def advance(amount: float, beside: str = "") -> None:
        nonlocal done, shown
        done += amount
        tenth = int(10 * done / total) if total else 10
        if tenth > shown:
            shown = tenth
            left = (time.monotonic() - start) * (total - done) / done
            told = f"{beside}, " if beside else ""
            print(f"{what}: {10 * tenth} %, {told}about {left:.0f} s left", file=sys.stderr, flush=True)

    return advance


def leads() -> bool:
    """Of several processes that torchrun started, one speaks."""
    return os.environ.get("RANK", "0") == "0"


def say(line: str) -> None:
    """One line of log on stderr."""
    if leads():
        print(line, file=sys.stderr, flush=True)


def write(text: str) -> bool:
    """Data on stdout, at once. False when its reader has gone: `paretobit run … | head`; then nothing more gets out."""
    try:
        print(plain(text) if sys.stdout.isatty() else text, end="", flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


def plain(text: str) -> str:
    """What a model or a file says, without the control characters that move a terminal's cursor or worse."""
    return "".join(c if c.isprintable() or c in "\n\t" else "" if c == "\r" else "\ufffd" for c in text)
