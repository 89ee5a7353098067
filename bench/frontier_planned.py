"""What planning brings: models planned to a size against the frontier of those with all blocks on one scheme.

Of the rows of bench/frontier.py. Between two neighbours of that frontier the logarithm of the divergence is taken to be
linear in bytes: what somebody gives up who can only choose one scheme, if sizes in between could be had.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench.frontier_picture import mark_of
from bench.frontier_report import LLAMA, kl_text
from bench.frontier_rows import Row, Spot, frontier, paired_kl
from bench.pictures import picture

OURS = ("rtn", "gptq", "trellis")
PLANNED = "planned"
IN_THE_MEDIAN = 0.92  # of the interpolated divergence
HEAD = "planned | MB | used | KL | one scheme, interpolated | ÷ | one scheme of this size | planned less it"
WISH = re.compile(r"--fit (?P<bits>[0-9.]+)bpw")
USED = 0.98  # of what is afforded, at least
AS_LARGE = 0.01  # a share of the bytes: sizes this close are one


def uniform(rows: Sequence[Row]) -> list[Row]:
    """The frontier of all blocks on one scheme, with any embedding: what needs no plan."""
    return frontier(row for row in rows if row.family in OURS and "--plan" not in row.command)


def interpolated(best: Sequence[Spot], nbytes: int) -> float:
    """The divergence of a frontier at a size; nan beyond its ends. best: by size."""
    for a, b in itertools.pairwise(best):
        if a.bytes <= nbytes <= b.bytes != a.bytes:
            share = (nbytes - a.bytes) / (b.bytes - a.bytes)
            return math.exp((1 - share) * math.log(a.kl) + share * math.log(b.kl))
    return math.nan


def planned(rows: Sequence[Row]) -> list[Row]:
    return sorted((row for row in rows if row.family == PLANNED), key=lambda row: row.bytes)


@dataclass(frozen=True)
class Compared:
    """A planned model beside those with one scheme for all blocks. interpolated: their divergence at its size, nan
    beyond their ends; same: the one of its size, None where there is none."""

    row: Row
    interpolated: float
    same: Row | None

    @property
    def ratio(self) -> float:
        return self.row.kl / self.interpolated

    @property
    def used(self) -> float:
        """Of the size that was asked for, a share."""
        wish = WISH.search(self.row.name)
        return self.row.bits_per_weight / float(wish["bits"]) if wish else math.nan

    @property
    def above(self) -> bool:
        """Whether its divergence exceeds that of the one of its size by more than the paired error."""
        gap, stderr = paired_kl(self.row, self.same) if self.same else (0.0, None)
        return gap > (stderr or 0)

    def line(self) -> str:
        row, cells = self.row, ["", ""]
        if self.same:
            gap, stderr = paired_kl(row, self.same)
            cells = [f"{self.same.name}: {kl_text(self.same)}", f"{gap:+.4f} ± {stderr or 0:.4f}"]
        cells = [f"{self.used:.2%}", kl_text(row), f"{self.interpolated:.4f}", f"{self.ratio:.3f}", *cells]
        return f"| {row.name} | {row.bytes / 1e6:.2f} | {' | '.join(cells)} |"


def compared(rows: Sequence[Row]) -> list[Compared]:
    """Every planned model, by size."""
    best, found = uniform(rows), []
    for row in planned(rows):
        near = sorted(best, key=lambda other: abs(other.bytes - row.bytes))[:1]
        same = near[0] if near and abs(row.bytes / near[0].bytes - 1) <= AS_LARGE else None
        found.append(Compared(row, interpolated(best, row.bytes), same))
    return found


def lines(rows: Sequence[Row], beside: Sequence[Spot] = ()) -> list[str]:
    """A table, and what it says on the bars; empty where nothing was planned. beside: rows of a document's."""
    found = compared(rows)
    if not found:
        return []
    inside = [one for one in found if not math.isnan(one.interpolated)]
    typical = median(one.ratio for one in inside) if inside else math.nan
    over = [one.row.name for one in inside if one.ratio > 1]
    alike = [one for one in found if one.same is not None]
    above = [one.row.name for one in alike if one.above]
    used = [one.used for one in found]
    types = {row.name: row for row in (*beside, *rows) if row.family == LLAMA}
    lower = [name for name, row in types.items() if row.kl < interpolated([one.row for one in found], row.bytes)]
    return [
        f"| {HEAD} |",
        "|" + "---|" * (HEAD.count("|") + 1),
        *(one.line() for one in found),
        "",
        _said(f"planned ≤ interpolated at {len(inside)} sizes", inside, not over, ", ".join(over) or "all"),
        _said(f"planned ≤ {IN_THE_MEDIAN} × interpolated in the median", inside, typical <= IN_THE_MEDIAN,
              f"{typical:.3f}"),
        _said(f"not above one scheme of the same size by more than the paired error, at {len(alike)} sizes", alike,
              not above, ", ".join(above) or "none is"),
        _said(f"never larger than asked, {USED:.0%} of it used", used, all(USED <= share <= 1 for share in used),
              f"{min(used):.2%} to {max(used):.2%}"),
        _said(f"none of {len(types)} types of llama.cpp's below the planned curve", types, not lower,
              ", ".join(lower) or "none is"),
    ]  # fmt: skip


def _said(what: str, of: Sized, met: bool, figure: str) -> str:
    """of: what the bar is about; where there is nothing of it, it is open."""
    return f"{'open  ' if not of else 'met   ' if met else 'MISSED'} {what}{f': {figure}' if of else ''}"


def draw(rows: Sequence[Row], beside: Sequence[Spot], title: str, path: Path) -> None:
    """Both curves, and whatever else of about these sizes there is beside them."""
    found, best = planned(rows), uniform(rows)
    others = {row.name: row for row in (*beside, *rows) if row.family != PLANNED}
    inside = [row for row in others.values() if row.bytes <= 1.1 * found[-1].bytes]
    with picture(path, (9, 6), mark_of(rows)) as axes:
        for curve, colour, label in ((best, "#228833", "one scheme for all blocks"), (found, "#66ccee", PLANNED)):
            x, y = [row.bytes / 1e6 for row in curve], [row.kl for row in curve]
            errors = [row.mean("kl_divergence")[1] or 0 for row in curve]
            axes.errorbar(x, y, errors, color=colour, label=label, marker="o", markersize=4, capsize=2)
        for row in inside:
            spot = (row.bytes / 1e6, row.kl)
            axes.annotate(row.name, spot, (4, 3), textcoords="offset points", fontsize=7)
            if row not in best:
                axes.scatter(*spot, 14, "#cc6633" if row.family == LLAMA else "#999999", zorder=1)
        axes.set(yscale="log", xlabel="MB, embedding included", ylabel="KL divergence to the original, nats a token")
        axes.set_title(title)
        axes.grid(alpha=0.25, which="both")
        axes.legend(fontsize=8)
