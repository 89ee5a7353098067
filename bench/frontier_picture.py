"""The picture of size against KL divergence: of rows just measured, or of tables that stand in a document.

    python -m bench.frontier_picture docs/frontier.md docs

The table after each line `<!-- picture: NAME -->` gives its rows to frontier-NAME.svg, so that picture and text say the
same, whatever a cache has lost. Needs matplotlib.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.frontier_rows import Spot, frontier
from bench.pictures import picture

COLOURS = {"rtn": "#9a9a9a", "gptq": "#4477aa", "llama.cpp": "#cc6633", "trellis": "#228833", "planned": "#66ccee"}
COLOURS |= {"llm-compressor": "#882255", "AutoRound": "#ddaa33"}
MARK = re.compile(r"<!-- picture: (?P<name>[a-z0-9-]+) -->")
HOLLOW = "○"


@dataclass(frozen=True)
class Written:
    """A line of a table, as a Spot."""

    name: str
    family: str
    bytes: int
    kl: float
    source_grid: bool


def written(document: str) -> dict[str, list[Written]]:
    """What a document's tables say, by the name of the picture that they belong to. Ends the program on a table that
    lacks a column."""
    found: dict[str, list[Written]] = {}
    for mark, after in zip(*[iter(MARK.split(document)[1:])] * 2, strict=True):
        lines = re.search(r"(?:^\|.*\n?)+", after, re.MULTILINE)
        head, _, *rows = [_cells(line) for line in (lines[0] if lines else "").splitlines()] or [[], []]
        if missing := {"point", "family", "MB", "KL"} - set(head):
            raise SystemExit(f"the table of picture {mark} has no column {', '.join(sorted(missing))}")
        for row in (dict(zip(head, cells, strict=True)) for cells in rows):
            name, hollow, _ = row["point"].partition(f" {HOLLOW}")
            kl = float(row["KL"].split()[0])
            found.setdefault(mark, []).append(
                Written(name.strip("`"), row["family"], round(1e6 * float(row["MB"])), kl, bool(hollow))
            )
    return found


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def mark_of(rows: Sequence[Spot]) -> str:
    """What a picture of these rows carries, and no picture of others."""
    facts = sorted((row.name, row.family, row.bytes, row.kl, row.source_grid) for row in rows)
    return f"rows {hashlib.sha256(repr(facts).encode()).hexdigest()[:16]}"


def draw(rows: Sequence[Spot], title: str, path: Path) -> None:
    """Size against KL; hollow: source grids; the line is the frontier."""
    with picture(path, (9, 6), mark_of(rows)) as axes:
        best = frontier(rows)
        axes.plot([row.bytes / 1e6 for row in best], [row.kl for row in best], color="#bbbbbb", zorder=1)
        for family in sorted({row.family for row in rows}):
            for hollow in (False, True):
                group = [row for row in rows if row.family == family and row.source_grid == hollow]
                colour = COLOURS.get(family, "#aa3377")
                label = f"{family}, on the source's own kind of grid" if hollow else family
                x, y = [row.bytes / 1e6 for row in group], [row.kl for row in group]
                if group:
                    axes.scatter(
                        x, y, s=28, color=colour, facecolors="none" if hollow else colour, label=label, zorder=2
                    )
        for row in rows:
            axes.annotate(row.name, (row.bytes / 1e6, row.kl), (4, 3), textcoords="offset points", fontsize=7)
        axes.set(yscale="log", xlabel="MB, embedding included", ylabel="KL divergence to the original, nats a token")
        axes.set_title(f"{title}; the original is dequantized from 4 bits")
        axes.grid(alpha=0.25, which="both")
        axes.legend(fontsize=8)


def main() -> None:
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    for name, rows in written(Path(sys.argv[1]).read_text()).items():
        path = Path(sys.argv[2]) / f"frontier-{name}.svg"
        draw(rows, name, path)
        print(f"{path}: {len(rows)} rows")


if __name__ == "__main__":
    main()
