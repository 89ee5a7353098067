"""The trellis grid: every weight's value is read from a window over its own code and those of the rows before it.

Source: trellis-coded quantization (Marcellin and Fischer 1990) as a bit-shift trellis (Tseng et al., "QTIP", arXiv
2406.11235, section 3), with a window of two nibbles whose values come from two tables of sixteen: what the byte shuffle
of every vector unit looks up.

Rows go in rings of 64 (a tile). The ring's order takes row l of each of its four sets of 16, then row l + 1 of each:
rows 0, 16, 32, 48, 1, 17, …; after row 63 comes row 0 again, so no weight pays for a start. Of `bits` that are no
whole number every other code is a bit wider: 2.5 are 3, 2, 3, 2, …. The window of a weight is the newest eight bits of
the stream of codes up to it, its own code lowest:

    value = scale · (low[window & 15] + high[window >> 4] - 63.5)

Rows past a matrix's end have code 0, and are part of the ring.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from paretobit.errors import ParetobitError
from paretobit.scheme import LEVEL_ZERO, Grid

RING, SETS, LANES = 64, 4, 16
WINDOW_BITS = 8
FORBIDDEN = np.float32(1e30)  # the cost of what may not be
# (bits, window): low, high and how many levels a standard deviation is. Made by scripts/train_tables.py.
TABLES: dict[tuple[float, int], tuple[tuple[int, ...], tuple[int, ...], float]] = {
    (1, 8): ((56, 3, 31, 23, 36, 20, 53, 1, 0, 53, 21, 29, 19, 39, 4, 53),
             (33, 43, 62, 4, 1, 64, 49, 26, 39, 29, 8, 71, 67, 11, 23, 47), 33.314),
    (1.5, 8): ((7, 38, 63, 21, 40, 1, 16, 47, 0, 36, 15, 48, 18, 39, 56, 17),
             (27, 8, 23, 53, 40, 27, 11, 61, 54, 37, 61, 11, 0, 63, 44, 27), 27.243),
    (2, 8): ((0, 54, 22, 38, 33, 56, 33, 13, 40, 23, 50, 18, 67, 11, 31, 46),
             (31, 51, 21, 10, 9, 22, 58, 26, 52, 0, 4, 59, 30, 34, 39, 38), 23.537),
    (2.5, 8): ((26, 50, 37, 72, 38, 22, 52, 10, 36, 0, 23, 50, 63, 45, 14, 31),
             (18, 1, 55, 9, 47, 21, 11, 32, 33, 53, 26, 45, 1, 39, 39, 23), 22.134),
    (3, 8): ((24, 37, 5, 62, 51, 30, 43, 15, 64, 0, 53, 39, 16, 26, 46, 32),
             (20, 29, 36, 13, 49, 34, 43, 0, 8, 15, 62, 41, 23, 52, 30, 24), 20.884),
    (3.5, 8): ((0, 48, 35, 44, 22, 37, 29, 10, 28, 58, 40, 35, 50, 10, 18, 24),
             (37, 27, 40, 68, 52, 20, 34, 33, 27, 44, 48, 8, 22, 13, 60, 0), 19.012),
    (4, 8): ((41, 26, 45, 0, 60, 36, 30, 37, 54, 8, 69, 13, 32, 18, 22, 49),
             (17, 49, 25, 28, 44, 39, 13, 0, 35, 8, 20, 42, 56, 21, 33, 30), 18.875),
    (1, 4): ((90, 40, 85, 33, 63, 0, 89, 38, 37, 91, 33, 84, 126, 63, 34, 88),
             (1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1), 35.608),
    (2, 4): ((28, 0, 61, 89, 54, 106, 36, 73, 70, 44, 90, 126, 99, 73, 19, 48),
             (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0), 29.709),
    (3, 4): ((57, 68, 81, 45, 98, 126, 35, 18, 45, 77, 27, 109, 68, 57, 0, 90),
             (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0), 25.743),
    (4, 4): ((99, 41, 90, 66, 55, 0, 76, 126, 25, 71, 110, 83, 34, 61, 48, 15),
             (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0), 23.415),
}  # fmt: skip


@cache
def table(bits: float, window: int) -> np.ndarray:  # (32,) uint8
    """The low nibble's sixteen entries, then the high one's; no sum of two is above 127."""
    low, high, _ = TABLES[bits, window]
    return np.array([*low, *high], np.uint8)


def of_grid(grid: Grid) -> np.ndarray:  # (32,) uint8
    """`table` of a trellis grid. Raises ParetobitError on another grid."""
    key = (grid.bits, int(grid.levels).bit_length() - 1)
    if grid.kind != "trellis" or key not in TABLES:
        raise ParetobitError(f"the grid '{grid.kind}' of {grid.bits} bits is no trellis", hint="use w1t, w1.5t … w4t")
    return table(*key)


def deviation(grid: Grid) -> float:
    """Levels that a standard deviation of normally distributed weights should take."""
    return TABLES[grid.bits, int(grid.levels).bit_length() - 1][2]


def widths(bits: float) -> tuple[int, ...]:
    """Bits of a code of each of the four sets of rows."""
    return tuple(int(2 * bits + 1 - of_two) // 2 for of_two in (0, 1, 0, 1))


def largest_codes(rows: int, bits: float) -> np.ndarray:  # (rows,) uint8
    """Of every row, from a ring's first on."""
    return np.resize(np.repeat((1 << np.array(widths(bits))) - 1, LANES), rows).astype(np.uint8)


def values(entries: np.ndarray) -> np.ndarray:  # (32,) uint8 -> (256,) float32
    """What each window stands for, in levels from zero."""
    window = np.arange(1 << WINDOW_BITS)
    return (entries[window & 15] + entries[16 + (window >> 4)]).astype(np.float32) - np.float32(LEVEL_ZERO)


def ring(rows: np.ndarray) -> np.ndarray:  # (out, ...) -> (tiles, 64, ...)
    """Rows in the order of their rings, zeros past the end."""
    count = -(-len(rows) // RING)
    padded = np.zeros((count * RING, *rows.shape[1:]), rows.dtype)
    padded[: len(rows)] = rows
    return padded.reshape(count, SETS, LANES, *rows.shape[1:]).swapaxes(1, 2).reshape(count, RING, *rows.shape[1:])


def unring(rings: np.ndarray, rows: int) -> np.ndarray:  # (tiles, 64, ...) -> (rows, ...)
    """The inverse of `ring`."""
    rest = rings.shape[2:]
    return rings.reshape(-1, LANES, SETS, *rest).swapaxes(1, 2).reshape(-1, *rest)[:rows]


def windows(codes: np.ndarray, bits: float) -> np.ndarray:  # (out, in) -> (out, in) uint16
    """The window of every weight, from codes uint8 that fit their `widths`."""
    rings, width = ring(codes).astype(np.uint16), np.tile(widths(bits), LANES).astype(np.uint16)
    window, shift, back = np.zeros_like(rings), np.zeros(RING, np.uint16), 0
    while (shift < WINDOW_BITS).any():
        window |= np.roll(rings, back, axis=1) << shift[:, None]
        shift += np.roll(width, back)
        back += 1
    return unring(window & np.uint16((1 << WINDOW_BITS) - 1), len(codes))


def levels(codes: np.ndarray, bits: float, entries: np.ndarray) -> np.ndarray:  # (out, in) -> (out, in) uint8
    """Levels 0 … 127 of codes uint8 that fit their `widths`; entries: `table`."""
    window = windows(codes, bits)
    return entries[window & 15] + entries[16 + (window >> 4)]


def encode(x: np.ndarray, weight: np.ndarray, bits: float, entries: np.ndarray) -> np.ndarray:  # (out, in) -> (out, in)
    """Codes uint8 whose values are near x: for each ring and column the path of small Σ weight · (x - value)².

    x: float32 (out, in) in levels from zero; weight: float32 (out,), at least 0. A Viterbi search twice around the ring
    from any state decides the state in which the ring closes, a second one round it with that state at both ends the
    codes. This is the definition; `native.trellis_encode` equals it bit for bit.
    """
    rows, columns = x.shape
    rings = ring(x).transpose(0, 2, 1)  # (tiles, in, 64)
    weights = ring(np.broadcast_to(weight[:, None], x.shape)).transpose(0, 2, 1)
    real = ring(np.ones((rows, 1), bool))[:, :, 0]
    real = np.broadcast_to(real[:, None, :], rings.shape)
    flat = rings.reshape(-1, RING)
    search = _Search(flat, weights.reshape(-1, RING), real.reshape(-1, RING), bits, values(entries))
    open_cost = np.zeros((len(flat), search.states), np.float32)
    turn = search.turn(search.turn(open_cost)[0])
    close = search.trace(turn[1], turn[0].argmin(axis=1))[1]
    start = np.full_like(open_cost, FORBIDDEN)
    start[np.arange(len(start)), close] = 0
    found = search.trace(search.turn(start)[1], close)[0]
    return unring(found.reshape(-1, columns, RING).transpose(0, 2, 1), rows)


class _Search:
    """Viterbi over rings (n, 64), all at once. A state is the window less what will be its oldest bits, as many as the
    next code has; states: how many there are where the ring begins."""

    def __init__(self, x: np.ndarray, weight: np.ndarray, real: np.ndarray, bits: float, value: np.ndarray) -> None:
        self.x, self.weight, self.real, self.value = x, weight, real, value
        self.widths = widths(bits) * LANES
        self.states = 1 << (WINDOW_BITS - self.widths[0])

    def _next(self, row: int) -> int:
        return self.widths[(row + 1) % RING]

    def turn(self, cost: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """(cost (n, states) after a turn that starts at `cost`, for each row what left the window on the way to each
        state (n, states))."""
        oldest = []
        for row, width in enumerate(self.widths):
            miss = self.x[:, row, None] - self.value
            total = np.repeat(cost, 1 << width, axis=1) + miss * miss * self.weight[:, row, None]
            total = total.reshape(len(self.x), 1 << self._next(row), -1)
            oldest.append(total.argmin(axis=1))
            cost = total.min(axis=1)
            padding = np.where(np.arange(cost.shape[1]) % (1 << width) == 0, np.float32(0), FORBIDDEN)
            cost = np.where(self.real[:, row, None], cost, cost + padding)
        return cost, oldest

    def trace(self, oldest: list[np.ndarray], state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(codes (n, 64) of the path that ends in `state` (n,), the state in which it starts)."""
        codes = np.empty((len(state), RING), np.uint8)
        each = np.arange(len(state))
        for row in reversed(range(RING)):
            width = self.widths[row]
            codes[:, row] = state & ((1 << width) - 1)
            before = oldest[row][each, state] << (WINDOW_BITS - self._next(row))
            state = (before | state) >> width
        return codes, state
