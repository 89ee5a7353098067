"""How fast this machine reads memory and multiplies packed matrices: what decoding a token is measured against.

Machines are noisy and one-sidedly so: each figure is the median of several runs, beside the best and the worst.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from paretobit import hardware, native
from paretobit.errors import ParetobitError
from paretobit.scheme import parse
from paretobit.sizes import parts

READ_BYTES = 256 << 20  # in memory: most caches hold far less; where one holds more, twice what it holds
MOST_READ_BYTES = 1 << 30
MATRIX_BYTES = 192 << 20  # of codes; scales and zero points come on top
COLUMNS = 2048
SPARE = 4  # take at most one part in so many of the memory that is free
MOST_RUNS = 1 << 20
SCHEMES = tuple(f"w{bits}{group}" for bits in ("1", "1.58", "2", "3", "4", "5", "6", "8") for group in ("", "g64"))
SCHEMES += ("bf16",)


@dataclass(frozen=True)
class Spread:
    """Several measurements of one quantity, in its unit."""

    median: float
    least: float
    most: float
    n: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Of at least one value."""
        found = sorted(values)
        return cls(statistics.median(found), found[0], found[-1], len(found))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def text(self, digits: int = 1) -> str:
        """ "27.1 (25.0–27.9)": the median and the range."""
        return f"{self.median:.{digits}f} ({self.least:.{digits}f}–{self.most:.{digits}f})"


def read_bytes() -> int:
    """Bytes to read for the speed of memory: far more than caches hold, little of what is free."""
    largest = max((cache.bytes for cache in hardware.caches()), default=0)
    wanted = min(max(READ_BYTES, 2 * largest), MOST_READ_BYTES)
    return max(1 << 20, min(wanted, hardware.memory_available() // SPARE))


def core_cache_bytes() -> int:
    """What the largest cache below the last level holds for one core; 256 KiB where the system does not tell."""
    known = hardware.caches()
    own = [cache.bytes // cache.shared_by for cache in known if cache.level < known[-1].level or len(known) == 1]
    return max(own, default=256 << 10)


def read_speed(threads: int, seconds: float = 0.25) -> Spread:
    """GB/s that `threads` threads together read from memory in order, in runs that take about `seconds` in all.

    With the widest loads of this machine, whatever kernels are in use: what no reader can beat by much.
    """
    nbytes = read_bytes()
    return _read(nbytes, threads, seconds, 1)


def cached_read_speed(threads: int, seconds: float = 0.05) -> Spread:
    """The same from each core's own cache: every thread reads half of what that holds, over and over."""
    nbytes = threads * max(4096, core_cache_bytes() // 2)
    sweeps = max(1, (256 << 20) // nbytes)
    return _read(nbytes, threads, seconds, sweeps)


def _read(nbytes: int, threads: int, seconds: float, sweeps: int) -> Spread:
    per_thread = nbytes // threads // 4096 * 4096
    if per_thread == 0:
        raise ParetobitError(f"{threads} threads have nothing to read", hint="ask for fewer threads")
    read = native.read_seconds
    (once,) = read(nbytes, threads, sweeps, 1)
    runs = _repeats(once, seconds)
    return Spread.of(per_thread * threads * sweeps / second / 1e9 for second in read(nbytes, threads, sweeps, runs))


def _repeats(once: float, seconds: float) -> int:
    """How often to repeat what takes `once` seconds: at least five times."""
    return int(min(max(5, math.ceil(seconds / max(once, 1e-9))), MOST_RUNS))
