"""What bench/frontier.py measures and remembers: rows of numbers, and the original that all are compared with.

Rows lie in a JSONL file, under a key of everything that decides them but the state of our sources and the machine,
which each row notes. Of the original only the last block's output is kept (some 50 MB for 80 windows), and its logits
are computed from it again: exact, and never more than a batch's in memory.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import paretobit
from bench.frontier_points import Calibration, Point
from bench.peers.llama_cpp import kept
from paretobit import hardware
from paretobit.checkpoint.base import Checkpoint
from paretobit.evals.divergence import compare
from paretobit.evals.perplexity import first_position, mean_stderr
from paretobit.progress import progress
from paretobit.work import cache_folder

if TYPE_CHECKING:
    from paretobit.compress.model import Decoder

PER_WINDOW = ("kl_divergence", "nll", "same_top1")


@dataclass(frozen=True)
class Row:
    """One measured point. key: a hash of what decides it. source_grid: 4 bits and more in groups of at most 32, not
    rotated: nearly lossless on a model that was dequantized from such a grid, and so no achievement. seconds: to make
    it, 0 where it lay in the cache. sources: the state of our package that made and measured it. per_window: means."""

    key: str
    model: str
    name: str
    family: str
    command: str
    bytes: int
    bits_per_weight: float
    kl: float
    kl_stderr: float | None
    perplexity: float
    reference_perplexity: float
    same_top1: float
    seconds: float
    source_grid: bool
    note: str
    sources: str
    machine: str
    per_window: dict[str, list[float]]


class Original:
    """The model that everything is compared with, on fixed windows (n, size) int64."""

    def __init__(self, source: Checkpoint, windows: np.ndarray) -> None:
        from paretobit.compress.model import Decoder

        self.sha256 = hashlib.sha256(np.ascontiguousarray(windows, "<i8").tobytes()).hexdigest()
        self._at = {row.tobytes(): i for i, row in enumerate(windows[:, :-1])}
        path = kept(source, "frontier") / f"hidden-{self.sha256[:16]}.npy"
        if not path.exists():
            beside = path.with_suffix(".partial.npy")
            np.save(beside, last_states(Decoder(source, device="cpu"), windows[:, :-1]))
            beside.rename(path)
        self._states = np.load(path, mmap_mode="r")
        self._decoder = Decoder(source, device="cpu")  # another one: it keeps what it has read, here only the head

    def logits(self, tokens: np.ndarray, first: int) -> np.ndarray:
        """As `compare` wants them, of those windows alone, from the first scored position on."""
        import torch

        states = np.stack([self._states[self._at[row.tobytes()]] for row in tokens])
        assert first == first_position(tokens.shape[1] + 1)
        with torch.inference_mode():
            return self._decoder.head(torch.from_numpy(states)).numpy()


def last_states(decoder: Decoder, tokens: np.ndarray) -> np.ndarray:  # (n, t) -> (n, scored, hidden)
    """What the last block gives the head, at the scored positions."""
    import torch

    first, found = first_position(tokens.shape[1] + 1), []
    with torch.inference_mode(), progress("the original's last states", len(tokens)) as advance:
        for row in tokens:
            found.append(decoder.hidden(torch.from_numpy(row[None]))[:, first:].numpy())
            advance(1)
    return np.concatenate(found)


class Rows:
    """The JSONL file of all rows ever measured; the last one of a key counts."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or cache_folder() / "frontier" / "rows.jsonl"
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        self._known = {row.key: row for row in (Row(**json.loads(line)) for line in lines)}

    def get(self, key: str) -> Row | None:
        return self._known.get(key)

    def add(self, row: Row) -> None:
        """Remember it, on disk at once: one write, so that two processes may add."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a") as file:
            file.write(json.dumps(asdict(row)) + "\n")
        self._known[row.key] = row


def key_of(point: Point, source: Checkpoint, calibration: Calibration, windows_sha256: str) -> str:
    decides = {"family": point.family, "model": source.hash, "windows": windows_sha256, **point.key(calibration)}
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:32]


@cache
def sources() -> str:
    """A hash of the package's Python files: what a row was made by."""
    digest, folder = hashlib.sha256(), Path(paretobit.__file__).parent
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def measure(
    point: Point, name: str, source: Checkpoint, calibration: Calibration, windows: np.ndarray, bos_id: int | None,
    original: Original,
) -> Row:  # fmt: skip
    """Make one point of the model called `name` and compare it with the original, window by window."""
    from paretobit.compress.model import Decoder

    made = point.make(name, source, calibration)
    started = time.monotonic()
    with progress(f"measuring {point.name}", len(windows)) as advance:
        candidate = Decoder(made.model, device="cpu").logits
        found = compare(candidate, windows, original.logits, bos_id=bos_id, advance=advance)
    kl, kl_stderr = found.share("kl_divergence")
    parameters = sum(math.prod(source.shape(tensor)) for tensor in source.names())
    return Row(
        key=key_of(point, source, calibration, original.sha256),
        model=name,
        name=point.name,
        family=point.family,
        command=made.command,
        bytes=made.nbytes,
        bits_per_weight=8 * made.nbytes / parameters,
        kl=kl or 0.0,
        kl_stderr=kl_stderr,
        perplexity=found.perplexity,
        reference_perplexity=found.reference_perplexity or 0.0,
        same_top1=found.share("same_top1")[0] or 0.0,
        seconds=made.seconds,
        source_grid=point.source_grid,
        note=made.note,
        sources=sources(),
        machine=f"{hardware.cpu_name()}, {hardware.isa()}, evaluated in {time.monotonic() - started:.0f} s",
        per_window={key: found.per_window[key].tolist() for key in PER_WINDOW},
    )


# ---- what follows from rows alone


def frontier(rows: Iterable[Row]) -> list[Row]:
    """The rows that no other one beats in both bytes and KL, by rising size. Source-grid rows do not take part."""
    best: list[Row] = []
    for row in sorted((row for row in rows if not row.source_grid), key=lambda row: (row.bytes, row.kl)):
        if not best or row.kl < best[-1].kl:
            best.append(row)
    return best


def paired_kl(a: Row, b: Row, factor: float = 1.0) -> tuple[float, float | None]:
    """KL(a) - factor · KL(b), and its standard error over the windows that both were measured on."""
    ours, theirs = (np.array(row.per_window["kl_divergence"]) for row in (a, b))
    return mean_stderr(ours - factor * theirs)
