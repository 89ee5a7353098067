"""ggml's standard types as grids: which of them holds a matrix of steps to the bit, and the bytes of its blocks.

Layouts after ggml-common.h. A type of 32 columns has a scale of its own for each block. The types of 256 multiply one
fp16 scale with small integers for every 16 or 32 columns; ours set these to 1, so that they hold what shares a scale
over 256 columns or more. Q4_1 and Q5_1 add an fp16 minimum, which is scale · zero and rarely an fp16 number: a stored
zero point goes into Q4_K or Q5_0 instead, which hold it always.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from paretobit.exporters.steps import Steps, half_steps, span, width
from paretobit.scheme import Grid

Encode = Callable[[np.ndarray, np.ndarray, np.ndarray, int], list[np.ndarray]]


@dataclass(frozen=True)
class Type:
    """block: columns; least, most: of code - zero, where the type's zero point is fixed; codes: how many there are,
    where it stores a minimum, else 0. encode: the parts of blocks from q (n, block), scale and zero (n, 1), and the
    factor of half steps.
    """

    name: str
    block: int
    least: int
    most: int
    codes: int
    encode: Encode

    def holds(self, grid: Grid, columns: int) -> bool:
        if columns % self.block or width(grid, columns) % self.block:
            return False
        low, high = span(grid)
        return grid.levels <= self.codes if self.codes else self.least <= low and high <= self.most

    def blocks(self, of: Steps, halved: bool) -> np.ndarray:  # (rows, bytes)
        """uint8: the rows' blocks one after the other."""
        held = of.regrouped(self.block)
        scale, zero = held.scale.reshape(-1, 1), held.zero.reshape(-1, 1)
        q = held.codes if self.codes else held.values - np.int16(self.least)
        parts = self.encode(q.astype(np.uint8).reshape(-1, self.block), scale, zero, 2 if halved else 1)
        raw = np.concatenate([np.ascontiguousarray(part).view(np.uint8).reshape(len(scale), -1) for part in parts], 1)
        return raw.reshape(len(of.codes), -1)


def _join(q: np.ndarray, parts: int, fields: int, bits: int) -> np.ndarray:  # (n, block) -> (n, block / fields)
    """Bytes of `fields` fields: within each of `parts` runs of columns, field f holds the f-th share of them."""
    split = q.reshape(len(q), parts, fields, -1) << np.arange(0, fields * bits, bits, dtype=np.uint8)[:, None]
    return np.bitwise_or.reduce(split, axis=2).reshape(len(q), -1)


def _q4_0(q: np.ndarray, scale: np.ndarray, zero: np.ndarray, factor: int) -> list[np.ndarray]:
    return [scale, _join(q, 1, 2, 4)]


def _q5_0(q: np.ndarray, scale: np.ndarray, zero: np.ndarray, factor: int) -> list[np.ndarray]:
    return [scale, _join(q >> 4, 4, 8, 1), _join(q & 15, 1, 2, 4)]


def _q8_0(q: np.ndarray, scale: np.ndarray, zero: np.ndarray, factor: int) -> list[np.ndarray]:
    return [scale, q + np.uint8(128)]  # -128 in two's complement


def _tq2_0(q: np.ndarray, scale: np.ndarray, zero: np.ndarray, factor: int) -> list[np.ndarray]:
    return [_join(q, 2, 4, 2), scale]


def _minimum(q: np.ndarray, scale: np.ndarray, factor: int) -> tuple[np.ndarray, np.ndarray]:
    """(codes, their scale) where half steps of half the scale are told apart from the minimum's steps."""
    return (q >> 1, scale * np.float16(2)) if factor == 2 else (q, scale)


def _q2_k(q: np.ndarray, scale: np.ndarray, zero: np.ndarray, factor: int) -> list[np.ndarray]:
    codes, d = _minimum(q, scale, factor)
    return [np.repeat(1 | zero << 4, 16, axis=1), _join(codes, 2, 4, 2), d, scale]


def _q3_k(q: np.ndarray, scale: np.ndarray, zero: np.ndarray, factor: int) -> list[np.ndarray]:
    one = np.array([0x11] * 8 + [0xAA] * 4, np.uint8)  # 16 scales of 1 + 32, six bits each
    return [_join(q >> 2, 1, 8, 1), _join(q & 3, 2, 4, 2), np.broadcast_to(one, (len(q), 12)), scale]


def _six_bits(zero: np.ndarray) -> np.ndarray:  # (n, 1) -> (n, 12)
    """Eight scales of 1 and eight minima of `zero`, six bits each."""
    parts = (np.ones_like(zero), zero & 63 | zero >> 4 << 6, 1 | zero << 4)
    return np.concatenate([np.repeat(part, 4, axis=1) for part in parts], axis=1)


def _q4_k(q: np.ndarray, scale: np.ndarray, zero: np.ndarray, factor: int) -> list[np.ndarray]:
    codes, d = _minimum(q, scale, factor)
    return [d, scale, _six_bits(zero), _join(codes, 4, 2, 4)]


def _q5_k(q: np.ndarray, scale: np.ndarray, zero: np.ndarray, factor: int) -> list[np.ndarray]:
    codes, d = _minimum(q, scale, factor)
    return [d, scale, _six_bits(zero), _join(codes >> 4, 1, 8, 1), _join(codes & 15, 4, 2, 4)]


def _q6_k(q: np.ndarray, scale: np.ndarray, zero: np.ndarray, factor: int) -> list[np.ndarray]:
    ones = np.ones((len(q), 16), np.int8)
    return [_join(q & 15, 2, 2, 4), _join(q >> 4, 2, 4, 2), ones, scale]


TYPES = (  # the smallest first; of equal ones the simpler
    Type("TQ2_0", 256, -1, 1, 0, _tq2_0),
    Type("Q2_K", 256, 0, 0, 4, _q2_k),
    Type("Q3_K", 256, -4, 3, 0, _q3_k),
    Type("Q4_0", 32, -8, 7, 0, _q4_0),
    Type("Q4_K", 256, 0, 0, 16, _q4_k),
    Type("Q5_0", 32, -16, 15, 0, _q5_0),
    Type("Q5_K", 256, 0, 0, 32, _q5_k),
    Type("Q6_K", 256, -32, 31, 0, _q6_k),
    Type("Q8_0", 32, -128, 127, 0, _q8_0),
)
BY_NAME = {kind.name: kind for kind in TYPES}


def smallest(grid: Grid, columns: int) -> Type | None:
    """The smallest type that holds every matrix on an affine grid, None where there is none."""
    return next((kind for kind in TYPES if kind.holds(grid, columns)), None)


def encoded(kind: str, of: Steps, grid: Grid) -> np.ndarray:  # (rows, bytes)
    """uint8: the blocks, which give back the very weights."""
    return BY_NAME[kind].blocks(of, half_steps(grid))
