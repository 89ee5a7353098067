"""merge: shards of calibration statistics, from as many machines as made them, into one folder."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any

from paretobit.errors import ParetobitError
from paretobit.verbs.verb import Option, Verb


@dataclass(frozen=True)
class Merged:
    path: str
    shards: tuple[int, ...]
    of: int
    tokens: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def merge(
    *stats: str,
    out: Annotated[str, Option("Folder to write.", "-o")],
    overwrite: Annotated[bool, Option("Replace what an earlier command left at -o.")] = False,
) -> Merged:
    """Add up statistics folders (of --shard i/N) into one that quantize --stats takes.

    Raises ParetobitError when they are not shards of one calibration of one model.
    """
    import json
    from pathlib import Path

    from paretobit.arch import resolve
    from paretobit.verbs.needs import torch_or_hint
    from paretobit.work import MANIFEST, Work, write_atomically

    torch_or_hint("merge")
    from paretobit.compress import statsfile

    if not stats:
        raise ParetobitError("no statistics folders given", hint="paretobit merge S0 S1 … -o S")
    folders = [statsfile.StatsFolder(Path(folder)) for folder in stats]
    merged = statsfile.check_shards(folders)
    fingerprint = {key: merged[key] for key in ("model", "calibration", "shards", "of")}
    work = Work(Path(out), statsfile.KIND, fingerprint)
    if not work.finished(overwrite):
        with work.open(overwrite), work.publish() as folder:
            statsfile.merge(folders, resolve(merged["config"]), folder)
            manifest = {**merged, "fingerprint": fingerprint}
            write_atomically(folder / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True).encode())
    return Merged(str(out), tuple(merged["shards"]), merged["of"], merged["tokens"])


def show(merged: Merged) -> str:
    have = f"{len(merged.shards)} of {merged.of} shards"
    return f"{merged.path}: {have}, {merged.tokens} tokens; quantize with --stats {merged.path}"


VERB = Verb("merge", merge, show)
