"""What a report knows of one packed model: facts from its folder, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from paretobit.arch.spec import EMBED, HEAD, band
from paretobit.artifact import RESULTS, Artifact
from paretobit.errors import ParetobitError
from paretobit.evals.energy import MEASURED, MODELLED
from paretobit.reports import details, results, training
from paretobit.reports.details import Details
from paretobit.reports.markup import clean
from paretobit.reports.results import Result
from paretobit.reports.training import Training

ROLES = {
    **{f"self_attn.{role}_proj.weight": role for role in ("q", "k", "v", "o")},
    **{f"mlp.{role}_proj.weight": role for role in ("gate", "up", "down")},
}


@dataclass(frozen=True)
class Cell:
    """One matrix. block: None for embedding and head; bits: a weight takes, scales included."""

    block: int | None
    role: str
    bits: float
    scheme: str
    method: str


@dataclass(frozen=True)
class Subject:
    """One packed model. label: tells it from the others; original: its name, original_hash: what it was made from;
    rows: the latest of each metric and command; strangers: rows that speak of other weights and were left out;
    details: None where nobody wrote any, or they speak of other weights; training: None where it was not trained."""

    label: str
    original: str
    original_hash: str
    size_bytes: int
    bytes_16bit: int
    bits_per_weight: float
    blocks: int
    cells: tuple[Cell, ...] = field(repr=False)
    rows: tuple[Result, ...] = field(repr=False)
    strangers: int
    details: Details | None = field(repr=False)
    training: Training | None = field(repr=False)

    @property
    def saved_16bit(self) -> float:
        """Share of the original's bytes in 16 bits that is saved."""
        return 1 - self.size_bytes / self.bytes_16bit

    @property
    def saved_32bit(self) -> float:
        return 1 - self.size_bytes / (2 * self.bytes_16bit)


def how(row: Result) -> str:
    """Whether a row was measured or modelled: a modelled one says so in its metric."""
    return MODELLED if row.metric.endswith("_modelled") else MEASURED


def read_subjects(folders: Sequence[Path]) -> list[Subject]:
    """The models in `folders`, in this order. Raises ParetobitError on a folder that is none, is damaged, or stands
    twice."""
    found: dict[Path, Path] = {}
    for folder in folders:
        real = folder.resolve()
        if real in found:
            raise ParetobitError(f"{folder} is given twice", hint="name every packed model once")
        found[real] = folder
    labels = _labels(list(found))
    return [_read(folder, label) for folder, label in zip(found.values(), labels, strict=True)]


def _labels(folders: list[Path]) -> list[str]:
    """The last names of the paths, as many as tell them apart."""
    for depth in range(1, max(len(folder.parts) for folder in folders) + 1):
        labels = [clean("/".join(folder.parts[-depth:])) for folder in folders]
        if len(set(labels)) == len(labels):
            return labels
    return [f"{label} ({number})" for number, label in enumerate(labels, 1)]


def _read(folder: Path, label: str) -> Subject:
    made = Artifact(folder)
    known = results.read(folder / RESULTS)
    ours = [row for row in known if row.artifact == made.hash]
    latest: dict[tuple[str, str], Result] = {}
    for row in ours:
        latest.pop((row.metric, row.command), None)  # so that the order is that of the latest
        latest[row.metric, row.command] = row
    seen = details.read(folder)
    model = made.manifest["model"]
    return Subject(
        label=label,
        original=clean(model["name"]),
        original_hash=model["hash"],
        size_bytes=made.size_bytes,
        bytes_16bit=model["bytes_16bit"],
        bits_per_weight=made.bits_per_weight,
        blocks=made.arch.layers,
        cells=tuple(_cells(made)),
        rows=tuple(latest.values()),
        strangers=len(known) - len(ours),
        details=seen if seen and seen.artifact == made.hash else None,
        training=training.read(folder),
    )


def _cells(made: Artifact) -> list[Cell]:
    places: dict[str, tuple[int | None, str]] = {EMBED: (None, "embedding"), HEAD: (None, "head")}
    for block in range(made.arch.layers):
        places |= {made.arch.prefix(block) + name: (block, role) for name, role in ROLES.items()}
    cells = []
    for name, layer in made.plan.layers.items():
        whole, rows = band(name)
        where, role = places.get(whole, (None, whole))
        role = role if whole == name else f"{role}, rows {rows.start} … {rows.stop - 1}"
        bits = 8 * made.nbytes(name) / math.prod(made.shape(name))
        cells.append(Cell(where, role, bits, str(layer.scheme), layer.method))
    return sorted(cells, key=lambda cell: -1 if cell.block is None else cell.block)
