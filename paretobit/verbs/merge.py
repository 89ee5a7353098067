"""merge: shards of calibration statistics or of costs, from as many machines as made them, into one folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from paretobit.errors import ParetobitError
from paretobit.verbs.verb import Option, Verb


@dataclass(frozen=True)
class Merged:
    """kind: "statistics" or "costs"; shards, of: of statistics; tokens: that were measured on."""

    path: str
    shards: tuple[int, ...]
    of: int
    tokens: int
    kind: str = "statistics"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def merge(
    *folders: str,
    out: Annotated[str, Option("Folder to write.", "-o")],
    overwrite: Annotated[bool, Option("Replace what an earlier command left at -o.")] = False,
) -> Merged:
    """Put shards (of quantize --shard i/N or plan --shard i/N) together into one folder for --stats or --costs.

    Raises ParetobitError when they are not shards of one calibration of one model.
    """
    from paretobit import costs
    from paretobit.work import MANIFEST, read_json

    if not folders:
        raise ParetobitError("no folders given", hint="paretobit merge S0 S1 … -o S")
    paths = [Path(folder) for folder in folders]
    kinds = {read_json(path / MANIFEST).get("kind") for path in paths if (path / MANIFEST).is_file()}
    return (_costs if kinds == {costs.KIND} else _statistics)(paths, Path(out), overwrite)


def _statistics(paths: Sequence[Path], out: Path, overwrite: bool) -> Merged:
    import json

    from paretobit.arch import resolve
    from paretobit.verbs.needs import torch_or_hint
    from paretobit.work import MANIFEST, Work, write_atomically

    torch_or_hint("merge")
    from paretobit.compress import statsfile

    folders = [statsfile.StatsFolder(path) for path in paths]
    merged = statsfile.check_shards(folders)
    fingerprint = {key: merged[key] for key in ("model", "calibration", "shards", "of")}
    work = Work(out, statsfile.KIND, fingerprint)
    if not work.finished(overwrite):
        with work.open(overwrite), work.publish() as folder:
            statsfile.merge(folders, resolve(merged["config"]), folder)
            manifest = {**merged, "fingerprint": fingerprint}
            write_atomically(folder / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True).encode())
    return Merged(str(out), tuple(merged["shards"]), merged["of"], merged["tokens"])


def _costs(paths: Sequence[Path], out: Path, overwrite: bool) -> Merged:
    """Windows of all tables side by side, in an order that hangs on their values alone."""
    from paretobit import costs
    from paretobit.evals.text import WINDOW
    from paretobit.work import Work

    made = costs.merge([costs.read(path) for path in paths])
    work = Work(out, costs.KIND, {"model": made.model, "schemes": list(made.schemes), "costs": made.hash})
    if not work.finished(overwrite):
        with work.open(overwrite), work.publish() as folder:
            made.write(folder, work.fingerprint)
    return Merged(str(out), (), len(paths), WINDOW * len(made.per_window), costs.KIND)


def show(merged: Merged) -> str:
    if merged.kind != "statistics":
        return f"{merged.path}: costs of {merged.of} tables, {merged.tokens} tokens; plan with --costs {merged.path}"
    have = f"{len(merged.shards)} of {merged.of} shards"
    return f"{merged.path}: {have}, {merged.tokens} tokens; quantize with --stats {merged.path}"


VERB = Verb("merge", merge, show)
