"""What bench/frontier.py measures and remembers: rows of numbers, and the original that all are compared with.

A JSONL file holds, a line for some windows of one point, what was measured on each window, under a key of everything
that decides it but the state of our sources and the machine, which each line notes. More windows, or a run that was
interrupted, only cost the windows that are missing; lines are put together only if they are of the same bytes. Of the
original only the last block's output is kept (600 kB a window), and its logits are computed from it again: exact, and
never more than a batch's in memory.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from bench.frontier_points import Calibration, Point, sources
from bench.peers.llama_cpp import kept
from paretobit import hardware
from paretobit.checkpoint.base import Checkpoint
from paretobit.evals.divergence import compare
from paretobit.evals.perplexity import first_position, mean_stderr
from paretobit.progress import progress
from paretobit.work import cache_folder

PER_WINDOW = ("kl_divergence", "nll", "reference_nll", "same_top1")
AT_ONCE = 10  # windows a line: what an interrupted run loses
SAME_SIZE = 1.001


@dataclass(frozen=True)
class Row:
    """One measured point. key: a hash of what decides it. source_grid: 4 bits and more in groups of at most 32, not
    rotated: nearly lossless on a model that was dequantized from such a grid, and so no achievement. seconds: to make
    it, 0 where it lay in the cache. sources: the state of our package that made it. per_window: means of PER_WINDOW."""

    key: str
    model: str
    name: str
    family: str
    command: str
    bytes: int
    bits_per_weight: float
    seconds: float
    source_grid: bool
    note: str
    sources: str
    machine: str
    per_window: dict[str, list[float]]

    def mean(self, what: str) -> tuple[float, float | None]:
        """Over windows, with its standard error."""
        return mean_stderr(np.array(self.per_window[what]))

    @property
    def kl(self) -> float:
        return self.mean("kl_divergence")[0]

    @property
    def perplexity(self) -> float:
        return math.exp(self.mean("nll")[0])

    @property
    def reference_perplexity(self) -> float:
        return math.exp(self.mean("reference_nll")[0])

    def to_json(self) -> dict[str, Any]:
        kl, stderr = self.mean("kl_divergence")
        measured = {"kl": kl, "kl_stderr": stderr, "perplexity": self.perplexity}
        measured |= {"reference_perplexity": self.reference_perplexity, "same_top1": self.mean("same_top1")[0]}
        return vars(self) | measured


def window_id(window: np.ndarray) -> str:
    """Of one window's token ids."""
    return hashlib.sha256(np.ascontiguousarray(window, "<i8").tobytes()).hexdigest()[:16]


class Original:
    """The model that everything is compared with, on windows (n, size) int64."""

    def __init__(self, source: Checkpoint, windows: np.ndarray) -> None:
        from paretobit.compress.model import Decoder

        self._folder = kept(source, "frontier-original")
        self._ids = {window[:-1].tobytes(): window_id(window) for window in windows}
        if missing := [window for window in windows if not self._path(window[:-1]).exists()]:
            decoder = Decoder(source, device="cpu")
            with progress("the original's last states", len(missing)) as advance:
                for window in missing:
                    beside = self._path(window[:-1]).with_suffix(".partial.npy")
                    np.save(beside, last_states(decoder, window[None, :-1])[0])
                    beside.rename(self._path(window[:-1]))
                    advance(1)
        self._decoder = Decoder(source, device="cpu")  # another one: it keeps what it has read, here only the head

    def _path(self, tokens: np.ndarray) -> Path:
        return self._folder / f"{self._ids[tokens.tobytes()]}.npy"

    def logits(self, tokens: np.ndarray, first: int) -> np.ndarray:
        """As `compare` wants them, of those windows alone, from the first scored position on."""
        import torch

        assert first == first_position(tokens.shape[1] + 1)
        states = np.stack([np.load(self._path(row)) for row in tokens])
        with torch.inference_mode():
            return self._decoder.head(torch.from_numpy(states)).numpy()


def last_states(decoder: Any, tokens: np.ndarray) -> np.ndarray:  # (n, t) -> (n, scored, hidden)
    """What the last block of a Decoder gives the head, at the scored positions."""
    import torch

    with torch.inference_mode():
        return decoder.hidden(torch.from_numpy(tokens))[:, first_position(tokens.shape[1] + 1) :].numpy()


class Rows:
    """The JSONL file of everything ever measured. Of a key, what was measured of its latest bytes counts."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or cache_folder() / "frontier" / "rows.jsonl"
        self._known: dict[str, dict[str, Any]] = {}
        for line in self.path.read_text().splitlines() if self.path.exists() else []:
            self._learn(json.loads(line))

    def _learn(self, line: dict[str, Any]) -> None:
        old = self._known.get(line["facts"]["key"])
        if old is not None and old["content"] == line["content"]:
            old["windows"].update(line["windows"])
        else:
            self._known[line["facts"]["key"]] = line

    def add(self, facts: dict[str, Any], content: str, windows: dict[str, list[float]]) -> None:
        """Remember measurements of some windows; on disk at once, in one write, so that two processes may add."""
        line = {"facts": facts, "content": content, "windows": windows}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a") as file:
            file.write(json.dumps(line) + "\n")
        self._learn(line)

    def missing(self, key: str, content: str, ids: Sequence[str]) -> list[int]:
        """Which windows have not been measured on these bytes, as indices into `ids`."""
        known = self._known.get(key)
        measured = known["windows"] if known and known["content"] == content else {}
        return [i for i, name in enumerate(ids) if name not in measured]

    def get(self, key: str, ids: Sequence[str]) -> Row | None:
        """The row over these windows, if all of them have been measured."""
        known = self._known.get(key)
        if known is None or not all(name in known["windows"] for name in ids):
            return None
        columns = zip(*(known["windows"][name] for name in ids), strict=True)
        return Row(**known["facts"], per_window=dict(zip(PER_WINDOW, map(list, columns), strict=True)))


def key_of(point: Point, source: Checkpoint, calibration: Calibration) -> str:
    decides = {"family": point.family, "model": source.hash, **point.key(calibration)}
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:32]


def measure(
    point: Point, name: str, source: Checkpoint, calibration: Calibration, windows: np.ndarray, original: Original,
    rows: Rows, again: bool = False,
) -> None:  # fmt: skip
    """Make one point of the model called `name`; compare it with the original on the windows that `rows` lacks."""
    from paretobit.compress.model import Decoder

    made, key, ids = (
        point.make(name, source, calibration),
        key_of(point, source, calibration),
        list(map(window_id, windows)),
    )
    parameters = sum(math.prod(source.shape(tensor)) for tensor in source.names())
    facts = {
        "key": key, "model": name, "name": point.name, "family": point.family, "command": made.command,
        "bytes": made.nbytes, "bits_per_weight": 8 * made.nbytes / parameters, "seconds": made.seconds,
        "source_grid": point.source_grid, "note": made.note, "sources": sources(),
        "machine": f"{hardware.cpu_name()}, {hardware.isa()}",
    }  # fmt: skip
    content = made.model.hash
    missing, candidate = rows.missing(key, content, ids), Decoder(made.model, device="cpu").logits
    with progress(f"measuring {point.name}", len(missing)) as advance:
        for start in range(0, len(missing), AT_ONCE):
            part = missing[start : start + AT_ONCE]
            found = compare(candidate, windows[part], original.logits, advance=advance)
            values = np.stack([found.per_window[what] for what in PER_WINDOW], axis=1).tolist()
            rows.add(facts, content, dict(zip([ids[i] for i in part], values, strict=True)))


# ---- what follows from rows alone


class Spot(Protocol):
    """What of a row its place in the picture follows from."""

    name: str
    family: str
    bytes: int
    source_grid: bool

    @property
    def kl(self) -> float: ...


S = TypeVar("S", bound=Spot)


def frontier(rows: Iterable[S]) -> list[S]:
    """The rows that no other beats in both bytes and KL, by bytes; source grids neither count nor are counted.

    Sizes within a thousandth are one size: plans and headers differ by some bytes where the weights do not.
    """
    fair = sorted((row for row in rows if not row.source_grid), key=lambda row: (row.bytes, row.kl))
    best: list[S] = []
    for row in fair:
        if best and row.kl >= best[-1].kl:
            continue
        if best and row.bytes <= best[-1].bytes * SAME_SIZE:
            best.pop()
        best.append(row)
    return best


def paired_kl(a: Row, b: Row, factor: float = 1.0) -> tuple[float, float | None]:
    """KL(a) - factor · KL(b), and its standard error over the windows that both were measured on."""
    ours, theirs = (np.array(row.per_window["kl_divergence"]) for row in (a, b))
    return mean_stderr(ours - factor * theirs)
