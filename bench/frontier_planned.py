"""What planning brings: models planned to a size against the frontier of those with all blocks on one scheme.

Of the rows of bench/frontier.py. Between two neighbours of that frontier the logarithm of the divergence is taken to be
linear in bytes: what somebody gives up who can only choose one scheme, if sizes in between could be had.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from bench.frontier_rows import Row, Spot, frontier, paired_kl
from bench.pictures import picture

OURS = ("rtn", "gptq", "trellis")
PLANNED, LLAMA = "planned", "llama.cpp"
IN_THE_MEDIAN = 0.92  # of the interpolated divergence
HEAD = "planned | MB | bits per weight | KL | one scheme, interpolated | ÷ | one scheme of this size | planned less it"
AS_LARGE = 0.01  # a share of the bytes: sizes this close are one


def uniform(rows: Sequence[Row]) -> list[Row]:
    """The frontier of all blocks on one scheme, with any embedding: what needs no plan."""
    return frontier(row for row in rows if row.family in OURS and "--plan" not in row.command)


def interpolated(best: Sequence[Spot], nbytes: int) -> float:
    """The divergence of a frontier at a size; nan beyond its ends."""
    for a, b in itertools.pairwise(best):
        if a.bytes <= nbytes <= b.bytes:
            share = (nbytes - a.bytes) / (b.bytes - a.bytes)
            return math.exp((1 - share) * math.log(a.kl) + share * math.log(b.kl))
    return math.nan


def planned(rows: Sequence[Row]) -> list[Row]:
    return sorted((row for row in rows if row.family == PLANNED), key=lambda row: row.bytes)


def lines(rows: Sequence[Row], beside: Sequence[Spot] = ()) -> list[str]:
    """A table, and what it says on the bars; empty where nothing was planned. beside: rows of a document's."""
    found, best = planned(rows), uniform(rows)
    if not found:
        return []
    head = (
        "planned | MB | bits per weight | KL | one scheme, interpolated | ÷ | one scheme of this size | planned less it"
    )
    table, ratios, above = [f"| {head} |", "|" + "---|" * (head.count("|") + 1)], [], []
    for row in found:
        between = interpolated(best, row.bytes)
        ratios.append(row.kl / between)
        same = [other for other in best if abs(row.bytes / other.bytes - 1) <= AS_LARGE]
        cells = [row.name, f"{row.bytes / 1e6:.2f}", f"{row.bits_per_weight:.3f}", _kl(row), f"{between:.4f}"]
        cells.append(f"{ratios[-1]:.3f}")
        if same:
            nearest = min(same, key=lambda other: abs(other.bytes - row.bytes))
            gap, stderr = paired_kl(row, nearest)
            above += [row.name] * (gap > (stderr or 0))
            cells += [f"{nearest.name} {_kl(nearest)}", f"{gap:+.4f} ± {stderr or 0:.4f}"]
        table.append(f"| {' | '.join([*cells, '', ''][:8])} |")
    known = [ratio for ratio in ratios if not math.isnan(ratio)]
    typical = median(known) if known else math.nan
    lower = _below([*rows, *beside], found)
    return [
        *table,
        "",
        _said(f"planned ≤ interpolated at {len(known)} sizes", not any(ratio > 1 for ratio in known),
              f"{sum(ratio > 1 for ratio in known)} above"),
        _said(f"planned ≤ {IN_THE_MEDIAN} × interpolated in the median", typical <= IN_THE_MEDIAN, f"{typical:.3f}"),
        _said("never above one scheme of this size by more than the paired error", not above, ", ".join(above) or "0"),
        _said("no type of llama.cpp's below the planned curve", not lower, ", ".join(lower) or "0"),
    ]  # fmt: skip


def _kl(row: Row) -> str:
    return f"{row.kl:.4f} ± {row.mean('kl_divergence')[1] or 0:.4f}"


def _said(what: str, met: bool, figure: str) -> str:
    return f"{'met   ' if met else 'MISSED'} {what}: {figure}"


def _below(rows: Sequence[Spot], found: Sequence[Row]) -> list[str]:
    """Types of llama.cpp's with less divergence than the planned curve has at their size."""
    types = [row for row in rows if row.family == LLAMA and row.bytes <= found[-1].bytes]
    return [row.name for row in types if row.kl < interpolated(found, row.bytes)]


def draw(rows: Sequence[Row], beside: Sequence[Spot], title: str, path: Path) -> None:
    """Both curves, and whatever else of about these sizes there is beside them."""
    found, best = planned(rows), uniform(rows)
    inside = [row for row in (*rows, *beside) if row.family != PLANNED and row.bytes <= 1.1 * found[-1].bytes]
    with picture(path, (9, 6)) as axes:
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
