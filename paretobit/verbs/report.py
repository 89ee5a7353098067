"""report: packed models side by side, as one page to look at. Needs neither torch nor the original."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from paretobit.errors import ParetobitError
from paretobit.verbs.verb import Option, Verb


@dataclass(frozen=True)
class Report:
    """What was written. models: their labels; smallest: the label of the smallest that keeps 95 % of the original's
    next-token accuracy, None where none does; results: how many figures; rows: the file of --rows, None without."""

    path: str
    size_bytes: int
    models: tuple[str, ...]
    smallest: str | None
    results: int
    rows: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def report(
    *outs: str,
    out: Annotated[str, Option("The page to write.", "-o")] = "report.html",
    rows: Annotated[str | None, Option("Write all figures to this file too: FILE.jsonl or FILE.csv.")] = None,
    grid: Annotated[str | None, Option("Count energy as CO2e of this country's grid: IND, DEU, USA, …")] = None,
) -> Report:
    """Show packed models side by side on one page: figures, frontiers, bits by layer, where and how they differ.

    A pure function of what eval and bench left in the folders. Raises ParetobitError on bad input.
    """
    from importlib.metadata import version

    from paretobit.artifact import RESULTS
    from paretobit.evals.energy import carbon
    from paretobit.reports.charts import altair_or_hint
    from paretobit.reports.compare import headlines, smallest
    from paretobit.reports.page import page
    from paretobit.reports.rows import check_ending, write_rows
    from paretobit.reports.subjects import read_subjects
    from paretobit.work import write_atomically

    if not outs:
        raise ParetobitError("no packed model is named", hint="paretobit report OUT1 OUT2 -o report.html")
    if rows is not None:
        check_ending(Path(rows))
        if Path(rows).resolve() == Path(out).resolve():
            raise ParetobitError(f"--rows and -o are both {out}", hint="give two files")
    if Path(out).suffix.lower() not in (".html", ".htm") or Path(out).is_dir():
        raise ParetobitError(f"{out} is not the name of a page", hint="name one, such as -o report.html")
    altair_or_hint()
    if grid is not None:
        carbon(0.0, grid)
    subjects = read_subjects([Path(folder) for folder in outs])
    if rows is not None and Path(rows).resolve() in {(Path(folder) / RESULTS).resolve() for folder in outs}:
        raise ParetobitError(f"{rows} holds a model's own results", hint="choose another file for --rows")
    made = page(subjects, version("paretobit"), grid).encode()
    write_atomically(Path(out), made)
    if rows is not None:
        write_rows(Path(rows), subjects)
    best = smallest(subjects, [head.kept for head in headlines(subjects)])
    labels = tuple(subject.label for subject in subjects)
    name = None if best is None else labels[best]
    return Report(out, len(made), labels, name, sum(len(subject.rows) for subject in subjects), rows)


def show(result: Report) -> str:
    from paretobit.sizes import human

    models = f"{len(result.models)} models" if len(result.models) > 1 else "one model"
    lines = [f"{result.path}: {human(result.size_bytes)}, {models}, {result.results} figures"]
    if result.smallest is not None:
        lines.append(f"{result.smallest} is the smallest that keeps 95 % of the original's next-token accuracy")
    if result.rows is not None:
        lines.append(f"figures in {result.rows}")
    return "\n".join(lines)


VERB = Verb("report", report, show)
