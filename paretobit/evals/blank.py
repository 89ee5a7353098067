"""Packed models whose codes are random: as fast as real ones, made in a second, and good for nothing else.

How long a token takes does not depend on what the weights say, so a plan's speed can be measured before anything is
quantized. All floats are ordinary numbers: subnormal ones would take ten times as long, and infinite ones would spread.
"""

from __future__ import annotations

import itertools
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from paretobit import __version__
from paretobit.arch import resolve
from paretobit.artifact import FORMAT, METADATA, TENSORS, Artifact, documents, file_order
from paretobit.bands import under
from paretobit.checkpoint.base import Checkpoint
from paretobit.evals.latency import Clock, token_ids
from paretobit.planfile import Plan
from paretobit.runtime.session import Session
from paretobit.scheme import parse
from paretobit.sizes import Part, parts
from paretobit.speed import Pick, Spread
from paretobit.tensorfile import CHUNK, DTYPES, header
from paretobit.work import cache_folder, disk_errors

LEFTOVER = "blank-"
LEFTOVER_AGE = 24 * 3600  # seconds
PROMPT, TOKENS, ROUNDS = 64, 32, 7
VALUE = {"F16": 0.01, "BF16": 0x3C24, "F32": 0.01}  # 0.01 in bf16's words, too


class Shapes(Checkpoint):
    """A model that has a config.json and no weights: what a blank one is made of where there is no model."""

    def __init__(self, config: dict) -> None:
        self.name, self.config, self.arch = "blank", config, resolve(config)

    @property
    def hash(self) -> str:
        return "blank"

    @property
    def companions(self) -> dict[str, bytes]:
        return {}

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        raise KeyError(name)


@contextmanager
def blank(source: Checkpoint, plan: Plan) -> Iterator[Artifact]:
    """The packed model that `plan` makes of `source`, in the cache folder until the block ends. Only shapes and schemes
    are the plan's: it runs, but its codes are none that a packer writes.

    Raises ParetobitError where the disk has no room for it.
    """
    with disk_errors(cache_folder()):
        cache_folder().mkdir(parents=True, exist_ok=True)
        _sweep()
        place = tempfile.TemporaryDirectory(prefix=LEFTOVER, dir=cache_folder(), ignore_cleanup_errors=True)
    with place as name:
        folder = Path(name)
        with disk_errors(folder):
            _write(folder, under(source, plan), plan)
        yield Artifact(folder)


def measured_ms(
    source: Checkpoint, plan: Plan, threads: int, *, prompt: int = PROMPT, tokens: int = TOKENS, rounds: int = ROUNDS
) -> Spread:
    """Milliseconds of wall time a token of what `plan` makes of `source` takes here, decoded one by one after a prompt
    of so many tokens; measured on a blank model, before anything is quantized.

    Raises ParetobitError where the disk has no room for it, or prompt and tokens exceed the model's context.
    """
    with blank(source, plan) as packed:
        return decode_ms(packed, threads, prompt=prompt, tokens=tokens, rounds=rounds)


def decode_ms(
    packed: Artifact, threads: int, *, prompt: int = PROMPT, tokens: int = TOKENS, rounds: int = ROUNDS,
    clock: Clock = time.perf_counter, pick: Pick = statistics.median,
) -> Spread:  # fmt: skip
    """The same of a packed model. A value is what `pick` takes from a round's tokens: by the median, one that a
    neighbour holds up does not count. A first round is left out."""
    session = Session(packed, threads=threads, context=min(prompt + tokens, packed.arch.max_positions))
    found = [1e3 * pick(_token_s(session, prompt, tokens, clock)) for _ in range(rounds + 1)]
    return Spread.of(found[1:])


def _token_s(session: Session, prompt: int, tokens: int, clock: Clock) -> list[float]:
    """Seconds of each of so many tokens after a prompt."""
    ids, slot = token_ids(session.arch.vocab, prompt + tokens), session.open()
    try:
        if prompt:
            session.feed(slot, ids[:prompt])
        times = [clock()]
        for token in ids[prompt:]:
            session.feed(slot, [token])
            times.append(clock())
        return [after - before for before, after in itertools.pairwise(times)]
    finally:
        session.close(slot)


def _sweep() -> None:
    """Remove what killed processes left long ago."""
    for folder in cache_folder().glob(f"{LEFTOVER}*"):
        with suppress(OSError):  # another process may be sweeping, too
            if time.time() - folder.stat().st_mtime > LEFTOVER_AGE:
                shutil.rmtree(folder, ignore_errors=True)


def _write(folder: Path, source: Checkpoint, plan: Plan) -> None:
    found: dict[str, Part] = {}
    for name in source.names():
        layer = plan.layers.get(name)
        scheme = layer.scheme if layer else parse("fp32")
        found |= {name + part.suffix: part for part in parts(scheme, source.shape(name))}
    entries = file_order({name: (part.dtype, part.shape) for name, part in found.items()})
    block = np.random.default_rng(0).bytes(CHUNK)
    with open(folder / TENSORS, "wb") as file:  # nobody needs it after a crash: no fsync, no rename
        file.write(header(entries, METADATA))
        for name in entries:
            part = found[name]
            codes = part.dtype == "U8"
            piece = block if codes else np.full(CHUNK // 4, VALUE[part.dtype], DTYPES[part.dtype]).tobytes()
            for at in range(0, part.nbytes, len(piece)):
                file.write(memoryview(piece)[: part.nbytes - at])
    for name, content in documents(source, plan, _manifest(source, plan)).items():
        (folder / name).write_bytes(content)


def _manifest(source: Checkpoint, plan: Plan) -> dict[str, object]:
    return {
        "kind": "model",
        "format": FORMAT,
        "fingerprint": {"inputs": "none", "version": __version__},
        "model": {"name": source.name, "hash": plan.model, "bytes_16bit": source.bits16},
        "calibration": {"source": "none"},
        "fallbacks": [],
    }
