"""A matrix as other formats hold it: integer codes, integer zero points and a scale for every few columns of a row.

Half steps (1 and 2 bits) become whole ones of half the scale, which fp16 holds exactly; a whole row, or a group that a
format does not know, becomes smaller groups that repeat a scale. So every affine grid is one of these, to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from paretobit import native
from paretobit.artifact import Artifact
from paretobit.errors import ParetobitError
from paretobit.exporters.joined import Joined
from paretobit.pieces import pieces
from paretobit.qtensor import QTensor, spread
from paretobit.scheme import FLOATS, Grid, Scheme, parse

ROWS = 4096  # worked on at a time; whole rings of a trellis


@dataclass(frozen=True)
class Steps:
    """w = scale · (code - zero).

    codes: uint8 (out, in); scale: float16 (out, groups); zero: uint8 (out, groups); group: columns that share them, the
    last group of a row may be ragged.
    """

    codes: np.ndarray
    scale: np.ndarray
    zero: np.ndarray
    group: int

    @property
    def values(self) -> np.ndarray:  # (out, in)
        """int16: code - zero."""
        return self.codes.astype(np.int16) - self.spread(self.zero.astype(np.int16))

    def spread(self, per_group: np.ndarray) -> np.ndarray:  # (out, groups) -> (out, in)
        return np.repeat(per_group, self.group, axis=1)[:, : self.codes.shape[1]]

    def regrouped(self, group: int) -> Steps:
        """The same weights in groups of `group` columns, a divisor of these unless these are whole rows."""
        columns = self.codes.shape[1]
        of = np.arange(0, columns, group) // self.group
        return Steps(self.codes, self.scale[:, of], self.zero[:, of], group)

    def rows(self, order: np.ndarray | slice) -> Steps:
        return Steps(self.codes[order], self.scale[order], self.zero[order], self.group)


def unfit(packed: Artifact, name: str) -> str:
    """Why a tensor is no matrix of steps in the model's basis; empty where it is one."""
    grid = packed.schemes[name].weight
    if isinstance(packed, Joined) and name in packed.ends:
        return "it lies in bands of rows, each with a scheme of its own"
    if grid.kind == "trellis":
        return "a trellis has no scale and integer code a weight"
    if grid.kind not in FLOATS and packed.rotation(name) is not None:
        return "it is stored rotated, and what is turned back lies on no grid"
    return ""


def span(grid: Grid) -> tuple[int, int]:
    """The least and the largest code - zero of a grid's steps."""
    if grid.zero == "stored":
        return 1 - grid.levels, grid.levels - 1
    step = 2 if half_steps(grid) else 1
    zero = round(step * grid.offset)
    return -zero, step * (grid.levels - 1) - zero


def nearest(grid: Grid, least: int, widths: tuple[int, ...]) -> int:
    """Bits that a matrix is rounded to which cannot be held: no fewer than it has, nor than asked for."""
    return next(bits for bits in widths if max(grid.bits, least) <= bits)


def half_steps(grid: Grid) -> bool:
    return grid.zero == "mid" and grid.levels % 2 == 0


def width(grid: Grid, columns: int) -> int:
    """The most columns that share a scale and divide a row evenly."""
    return columns if grid.group is None else math.gcd(grid.group, columns) if grid.group < columns else columns


def steps(q: QTensor, name: str) -> Steps:
    """The steps of a quantized matrix. Raises ParetobitError where a scale is too small to be halved in fp16."""
    grid, scale, codes = q.grid, q.scale, q.codes
    factor = 2 if half_steps(grid) else 1
    if factor == 2:
        codes, scale = codes * np.uint8(2), scale / np.float16(2)
        if not np.array_equal(scale * np.float16(2), q.scale):
            raise ParetobitError(
                f"{name}: half of a scale of {np.abs(q.scale[q.scale != 0]).min():g} is no fp16 number",
                hint="quantize it on another scheme, or export to hf",
            )
    zero = np.full(scale.shape, round(factor * grid.offset), np.uint8) if q.zero is None else q.zero
    return Steps(codes, scale, zero, q.codes.shape[1] if grid.group is None else min(grid.group, q.codes.shape[1]))


def rounded(w: np.ndarray, scheme: Scheme, name: str) -> Steps:  # (out, in) float32
    """Another rounding, to nearest, at the scales with the least squared error."""
    grid = scheme.weight
    scale, zero = native.scale_search(np.ascontiguousarray(w), None, grid)
    zeros = np.full(scale.shape, np.float32(grid.offset)) if zero is None else zero.astype(np.float32)
    wide = [spread(x.astype(np.float32), grid, w.shape[1]) for x in (scale, zeros)]
    codes = np.rint(w / np.where(wide[0] == 0, 1, wide[0]) + wide[1])
    return steps(QTensor(np.clip(codes, 0, grid.levels - 1).astype(np.uint8), scale, zero, grid), name)


def read(packed: Artifact, name: str, instead: str = "", rows: slice = slice(None)) -> Steps:
    """Rows of a matrix as they are, or rounded once more onto the scheme `instead`."""
    if instead:
        return rounded(packed.read(name, rows), parse(instead), name)
    return steps(packed.qtensor(name, rows), name)


def row_pieces(packed: Artifact, name: str) -> Iterator[slice]:
    """All rows of a matrix, some at a time."""
    return pieces(packed.shape(name)[0], ROWS)
