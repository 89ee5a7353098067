"""How fast this machine reads memory and multiplies packed matrices: what decoding a token is measured against.

Machines are noisy, and one-sidedly so: a figure is the median of several runs, shown beside the worst and the best.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from paretobit import hardware, native
from paretobit.scheme import TRELLIS_BITS, Scheme, parse
from paretobit.sizes import parts

READ_BYTES, MOST_READ_BYTES = 256 << 20, 1 << 30
MATRIX_BYTES = 192 << 20
SPARE = 4  # one part in so many of the free memory is taken at most
PAGE = 4096
COLUMNS, TILE = 2048, 64  # of the matrices that are timed; whole tiles of every scheme
SLOW = 0.2  # seconds that one product may take
SCHEMES = tuple(f"w{bits}{group}" for bits in ("1", "1.58", "2", "3", "4", "5", "6", "8") for group in ("", "g64"))
SCHEMES = (*SCHEMES, *(f"w{bits}t" for bits in TRELLIS_BITS), "bf16")
WITNESSES = ("w2", "w4", "w8")  # by which it is told how far away bytes lie: schemes that wait for memory
OF_CACHE = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0)  # sizes at which it is told, in largest caches


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
        """The median and the range: "27.1 (25.0–27.9)"."""
        return f"{self.median:.{digits}f} ({self.least:.{digits}f}–{self.most:.{digits}f})"


def memory_bytes() -> int:
    """Bytes to read for the speed of memory: 256 MiB, or twice what the largest cache holds; little of what is free."""
    wanted = min(max(READ_BYTES, 2 * largest_cache()), MOST_READ_BYTES)
    return max(1 << 20, min(wanted, hardware.memory_available() // SPARE))


def largest_cache() -> int:
    """Bytes of the largest cache, 0 where the system does not tell."""
    return max((cache.bytes for cache in hardware.caches()), default=0)


def core_cache_bytes() -> int:
    """A core's share of the second cache level, or of the first; 256 KiB where the system does not tell."""
    near = (cache for cache in hardware.caches() if cache.level <= 2)
    return max((cache.bytes // cache.shared_by for cache in near), default=256 << 10)


def read_speed(threads: int, limit: float = 0.25) -> Spread:
    """GB/s that `threads` threads together read from memory in order, measured for `limit` seconds.

    Raises ParetobitError where there are not so many threads to be had.
    """
    return _speed(memory_bytes(), threads, limit)


def cached_read_speed(threads: int, limit: float = 0.05) -> Spread:
    """The same where every thread reads half of what its core's own cache holds, over and over."""
    return _speed(threads * max(PAGE, core_cache_bytes() // 2), threads, limit)


def product_speed(threads: int, limit: float = 0.25) -> Spread:
    """Products of int8 a second, each added to a sum, in 1e9, that `threads` threads together make of numbers at hand:
    the limit of a prompt."""
    found, each = native.product_seconds(threads, limit)
    return Spread.of(threads * each / seconds / 1e9 for seconds in found)


def _speed(nbytes: int, threads: int, limit: float) -> Spread:
    whole = nbytes // threads // PAGE * PAGE * threads
    return Spread.of(whole / seconds / 1e9 for seconds in native.read_seconds(whole, threads, limit))


Table = dict[str, dict[int, float]]
Pick = Callable[[Sequence[float]], float]


class Matrices:
    """Random packed bytes, enough for a matrix of any scheme that fills MATRIX_BYTES or what memory allows.

    One buffer serves all schemes: how long a product takes does not depend on the codes. Floats are ordinary numbers:
    subnormal ones would take ten times as long. threads: the most that will share a product; there is at least a tile
    of the widest scheme for each. pick: the one value that stands for several measured.
    """

    def __init__(self, threads: int, pick: Pick = statistics.median) -> None:
        self.pick = pick
        least = max(1 << 20, threads * parts(parse("bf16"), (TILE, COLUMNS))[0].nbytes)
        self.nbytes = max(least, min(MATRIX_BYTES, hardware.memory_available() // (2 * SPARE)))
        block = np.random.default_rng(0).integers(0, 256, 1 << 20, np.uint8)
        block[1::2] = 0x3C  # the exponents of bfloat16 from 0.008 to 0.03, of halves from 1 to 2
        self._bytes = np.resize(block, self.nbytes)
        self._halves = np.full(self.nbytes // 8, 0.01, np.float16)  # a quarter of the bytes

    def ns_per_weight(self, scheme: str, threads: int, limit: float = 0.25) -> tuple[float, float]:
        """Nanoseconds of wall time a weight takes in a matrix times one vector: read from memory, and from the
        cores' own caches. Measured for about `limit` seconds each.

        A product that would take longer than SLOW is made on fewer rows: it is not memory that it waits for.
        """
        made, step = parse(scheme), TILE * threads
        cached = self._time(made, self._rows(made, threads, threads * core_cache_bytes() // 2), threads, limit)
        quick = max(step, int(SLOW / (1e-9 * cached * COLUMNS)) // step * step)
        return self._time(made, min(self._rows(made, threads), quick), threads, limit), cached

    def tables(
        self, teams: Iterable[int], schemes: Iterable[str], limit: float, advance: Callable[[float], None]
    ) -> tuple[Table, Table, dict[int, dict[int, float]]]:
        """(ns a weight from memory by scheme and number of threads, from the cores' own caches, `distance` by bytes and
        number of threads): what a profile says of matrices. advance: told of every scheme."""
        memory: Table = {scheme: {} for scheme in schemes}
        near: Table = {scheme: {} for scheme in memory}
        distance: dict[int, dict[int, float]] = {}
        for threads in teams:
            for scheme in memory:
                memory[scheme][threads], near[scheme][threads] = self.ns_per_weight(scheme, threads, limit)
                advance(1)
            for nbytes, share in self.distance(threads, 0.4 * limit).items():
                distance.setdefault(nbytes, {})[threads] = share
        return memory, near, distance

    def distance(self, threads: int, limit: float = 0.08) -> dict[int, float]:
        """By bytes that are read again and again, how far from the cores' own caches towards memory they seem to lie,
        0 to 1: the median of what the times of WITNESSES say, each measured for about `limit` seconds at every size.

        All sizes of one scheme are measured in a row, both ends among them: a neighbour's load then falls on all.
        """
        near, most = threads * core_cache_bytes() // 2, self.nbytes
        between = [int(share * largest_cache()) for share in OF_CACHE]
        sizes = [near, *(size for size in between if 2 * near <= size <= most / 1.5), most]
        shares = []
        for scheme in map(parse, WITNESSES):
            ns = np.array([self._time(scheme, self._rows(scheme, threads, size), threads, limit) for size in sizes])
            shares.append((ns - ns[0]) / max(ns[-1] - ns[0], 1e-9))
        found = np.maximum.accumulate(np.clip(np.median(shares, axis=0), 0, 1))
        return dict(zip(sizes, map(float, found), strict=True))

    def _rows(self, scheme: Scheme, threads: int, nbytes: int | None = None) -> int:
        """Rows of a matrix of about `nbytes`, at least a tile a thread, at most what the buffers hold."""
        step = TILE * threads
        found = parts(scheme, (step, COLUMNS))
        steps = self.nbytes // max(part.nbytes * (4 if part.suffix == ".scale" else 1) for part in found)
        if nbytes is not None:
            steps = min(steps, nbytes // sum(part.nbytes for part in found))
        return step * max(1, steps)

    def _time(self, scheme: Scheme, rows: int, threads: int, limit: float) -> float:
        arrays = {}
        for part in parts(scheme, (rows, COLUMNS)):
            halves = part.suffix == ".scale"
            arrays[part.suffix] = self._halves[: part.nbytes // 2] if halves else self._bytes[: part.nbytes]
        shape = (rows, COLUMNS)
        found = native.multiply_seconds(scheme.weight, shape, arrays, threads=threads, limit=limit)
        return 1e9 * self.pick(found) / (rows * COLUMNS)
