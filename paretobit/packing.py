"""The bytes: how a quantized matrix lies in the file. This is the definition (docs/FORMAT.md); csrc/pack.cpp equals it.

Rows go in tiles of 32, the columns of a group in units of 16 (20 for three levels). A unit of a tile is a few vectors
of 64 bytes. They hold planes, each the codes of 16 rows and 4 columns, as many to a vector as fit: a kernel loads
it, parts it by shifts and masks, and has four neighbouring codes of each of 16 rows. A trellis has tiles of 64 rows,
its rings, and the codes of rows l, 16 + l, 32 + l and 48 + l side by side: what the window of a weight slides over.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from paretobit.errors import ParetobitError
from paretobit.pieces import pieces
from paretobit.scheme import TRELLIS_BITS, Grid
from paretobit.trellis import RING, largest_codes, widths

TILE, SET, QUAD, VECTOR = 32, 16, 4, 64  # rows of a tile and of its sets; columns of a plane; bytes of a vector
# Bits of a code, low to high, in the pieces that planes are packed by; eight bits' worth of planes share a vector.
PIECES = {2: (1,), 4: (2,), 16: (4,), 32: (4, 1), 64: (4, 2), 255: (8,)}
LEVELS = (2, 3, 4, 8, 16, 32, 64, 255)
POWERS = np.array([81, 27, 9, 3, 1], np.uint8)[:, None]  # a ternary byte's five digits, quad 0 first
TERNARY = 243  # 3^5 numbers in a byte
CHUNK = 1 << 20  # padded codes worked on at a time


@dataclass(frozen=True)
class Layout:
    """The numbers that follow from grid and shape; csrc/matrix.h computes the same ones under the same names.

    levels: codes of the grid, on a trellis the most of any row; rows, columns: of the matrix; group: columns that share
    a scale, at most `columns`; ring: bits a code of a trellis, whose codes go in rings; else 0.
    """

    levels: int
    rows: int
    columns: int
    group: int
    ring: float = 0

    @classmethod
    def of(cls, grid: Grid, shape: tuple[int, ...]) -> Layout:
        """Raises ParetobitError on grids that have no packing and on shapes that are no matrix with columns."""
        ring = grid.bits if grid.kind == "trellis" and grid.bits in TRELLIS_BITS and grid.group is None else 0
        if not ring and (grid.kind != "affine" or grid.levels not in LEVELS):
            what = f"{grid.levels} levels" if grid.kind == "affine" else f"the grid '{grid.kind}'"
            raise ParetobitError(f"{what} have no packing", hint=f"choose from {LEVELS} levels")
        if len(shape) != 2 or shape[0] < 0 or shape[1] < 1:
            raise ParetobitError(f"the shape {shape} cannot be packed", hint="give matrices with columns")
        group = shape[1] if grid.group is None else min(grid.group, shape[1])
        if group < 1:
            raise ParetobitError(f"groups of {group} columns", hint="give the columns that share a scale")
        return cls(1 << widths(ring)[0] if ring else grid.levels, *shape, group, ring)

    @property
    def tile(self) -> int:
        """Rows of a tile."""
        return RING if self.ring else TILE

    @property
    def tiles(self) -> int:
        return -(-self.rows // self.tile)

    @property
    def groups(self) -> int:
        return -(-self.columns // self.group)

    @property
    def unit(self) -> int:
        """Columns of a unit."""
        return 20 if self.levels == 3 else 16

    @property
    def unit_vectors(self) -> int:
        if self.ring:
            return int(2 * self.ring)
        return 2 if self.levels == 3 else (self.levels - 1).bit_length()

    @property
    def group_units(self) -> int:
        """Units of a full group."""
        return -(-self.group // self.unit)

    @property
    def units(self) -> int:
        """Units of a row: the last group may have fewer."""
        before = self.groups - 1
        return before * self.group_units - (before * self.group - self.columns) // self.unit

    @property
    def padded(self) -> int:
        """Columns with padding."""
        return self.units * self.unit

    @property
    def tile_bytes(self) -> int:
        """Bytes of a tile's codes."""
        return self.units * self.unit_vectors * VECTOR

    @property
    def positions(self) -> np.ndarray:
        """int64 (columns,): where each column lies among the padded ones."""
        columns = np.arange(self.columns)
        return columns + columns // self.group * (self.group_units * self.unit - self.group)

    def chunks(self) -> Iterator[slice]:
        """The tiles, a bounded number of codes at a time."""
        return pieces(self.tiles, CHUNK, self.tile * self.padded)


def pack(codes: np.ndarray, grid: Grid) -> np.ndarray:  # (out, in) -> (tiles, tile_bytes)
    """uint8 (tiles, tile_bytes) from codes uint8 (out, in), each below grid.levels; else raises ParetobitError."""
    at = Layout.of(grid, matrix(codes, "codes"))
    packed = np.empty((at.tiles, at.tile_bytes), np.uint8)
    for tiles in at.chunks():
        block = codes[at.tile * tiles.start : at.tile * tiles.stop]
        _check_codes(block, at)
        wide = np.zeros((at.tile * (tiles.stop - tiles.start), at.padded), np.uint8)
        wide[: len(block), at.positions] = block
        planes = wide.reshape(-1, at.tile // SET, SET, at.units, at.unit // QUAD, QUAD).transpose(0, 3, 1, 4, 2, 5)
        planes = planes.reshape(*planes.shape[:4], VECTOR)
        vectors = _encode_ring(planes, at.ring) if at.ring else _encode(planes, at.levels)
        packed[tiles] = vectors.reshape(-1, at.tile_bytes)
    return packed


def unpack(packed: np.ndarray, grid: Grid, shape: tuple[int, int]) -> np.ndarray:  # (tiles, tile_bytes) -> (out, in)
    """codes uint8 of `shape` (out, in) from packed uint8 (tiles, tile_bytes).

    Raises ParetobitError on bytes that no `pack` writes: a ternary byte that stands for no five digits, code 255 of
    255 levels, a code other than 0 in the padding, tiles of another size or number.
    """
    at = Layout.of(grid, shape)
    check_packed(packed, (at.tiles, at.tile_bytes))
    codes = np.empty(shape, np.uint8)
    for tiles in at.chunks():
        vectors = packed[tiles].reshape(-1, at.units, at.unit_vectors, VECTOR)
        planes = _decode_ring(vectors, at.ring) if at.ring else _decode(vectors, at.levels)
        wide = planes.reshape(-1, at.units, at.tile // SET, at.unit // QUAD, SET, QUAD).transpose(0, 2, 4, 1, 3, 5)
        wide = wide.reshape(-1, at.padded)
        block = codes[at.tile * tiles.start : at.tile * tiles.stop]
        block[...] = wide[: len(block), at.positions]
        # Padding counts as codes that are not there: whatever is beside the codes must add nothing.
        if np.count_nonzero(wide) != np.count_nonzero(block):
            raise damaged("the padding of packed codes is not 0")
        if block.max(initial=0) >= at.levels:
            raise damaged(f"code {block.max()} on a grid of {at.levels} levels")
    return codes


def zero_bits(levels: int) -> int:
    """Bits of a stored zero point: the fewest of 2, 4 and 8 that hold a code."""
    return 2 if levels <= 4 else 4 if levels <= 16 else 8


def pack_zero(zero: np.ndarray, levels: int) -> np.ndarray:  # (out, groups) -> (tiles, groups, 4 * zero_bits)
    """uint8 (tiles, groups, 4 * zero_bits(levels)) from zero points uint8 (out, groups), each below `levels`."""
    matrix(zero, "zero points")
    if zero.max(initial=0) >= levels:
        raise outside(f"zero point {zero.max()} on a grid of {levels} levels")
    bits, tiled = zero_bits(levels), _tiled(zero, TILE)
    return _join(tiled.reshape(*tiled.shape[:2], 8 // bits, 4 * bits), bits)


def unpack_zero(packed: np.ndarray, levels: int, shape: tuple[int, int]) -> np.ndarray:
    """zero points uint8 of `shape` (out, groups); raises ParetobitError on bytes that no `pack_zero` writes."""
    bits = zero_bits(levels)
    check_packed(packed, (-(-shape[0] // TILE), shape[1], 4 * bits))
    zero = _untiled(_split(packed, bits).reshape(*packed.shape[:2], TILE), shape[0], "zero points")
    if zero.max(initial=0) >= levels:
        raise damaged(f"zero point {zero.max()} on a grid of {levels} levels")
    return zero


def pack_scale(scale: np.ndarray, tile: int = TILE) -> np.ndarray:  # (out, groups) -> (tiles, groups, tile)
    """float16 (tiles, groups, tile) from scales float16 (out, groups)."""
    matrix(scale, "scales", np.float16)
    return _tiled(scale.view(np.uint16), tile).view(np.float16)


def unpack_scale(tiled: np.ndarray, shape: tuple[int, int], tile: int = TILE) -> np.ndarray:
    """scales float16 of `shape` (out, groups); raises ParetobitError where the padding is not +0."""
    check_packed(tiled, (-(-shape[0] // tile), shape[1], tile), np.float16)
    return _untiled(tiled.view(np.uint16), shape[0], "scales").view(np.float16)


def matrix(array: np.ndarray, what: str, dtype: type = np.uint8) -> tuple[int, int]:
    """Shape of a matrix of `dtype`; raises ParetobitError on anything else."""
    if array.ndim != 2 or array.dtype != dtype:
        raise ParetobitError(
            f"{what} of shape {array.shape}, {array.dtype}", hint=f"give a matrix of {np.dtype(dtype)}"
        )
    rows, columns = array.shape
    return rows, columns


def check_packed(packed: np.ndarray, shape: tuple[int, ...], dtype: type = np.uint8) -> None:
    """Raise ParetobitError unless `packed` has the shape that its matrix takes."""
    if packed.shape != shape or packed.dtype != dtype:
        raise ParetobitError(
            f"packed bytes of shape {packed.shape}, {packed.dtype}",
            hint=f"this matrix takes {shape}, {np.dtype(dtype)}: the file is damaged, or its shape is wrong",
        )


def outside(what: str) -> ParetobitError:
    return ParetobitError(what, hint="clip codes to 0 ... levels - 1 before packing them")


def damaged(what: str) -> ParetobitError:
    return ParetobitError(what, hint="the packed file is damaged: write it again")


def _tiled(values: np.ndarray, tile: int) -> np.ndarray:  # (out, groups) -> (tiles, groups, tile)
    rows, groups = values.shape
    padded = np.zeros((-(-rows // tile), tile, groups), values.dtype)
    padded.reshape(-1, groups)[:rows] = values
    return np.ascontiguousarray(padded.transpose(0, 2, 1))


def _untiled(tiled: np.ndarray, rows: int, what: str) -> np.ndarray:  # (tiles, groups, tile) -> (out, groups)
    values = np.ascontiguousarray(tiled.transpose(0, 2, 1)).reshape(-1, tiled.shape[1])
    if values[rows:].any():
        raise damaged(f"the padding of packed {what} is not 0")
    return values[:rows]


def _check_codes(block: np.ndarray, at: Layout) -> None:
    """Raises where a code is none of its row's; block: rows from a tile's first on."""
    allowed = largest_codes(len(block), at.ring) if at.ring else np.full(len(block), at.levels - 1, np.uint8)
    most = block.max(axis=1, initial=0)
    if (wrong := most > allowed).any():
        raise outside(f"code {most[wrong][0]} on a grid of {int(allowed[wrong][0]) + 1} levels")


def _join(fields: np.ndarray, bits: int) -> np.ndarray:  # (..., 8 // bits, n) -> (..., n)
    """Bytes of `bits` bits side by side in one, the first lowest."""
    return np.bitwise_or.reduce(fields << _shifts(bits), axis=-2)


def _split(packed: np.ndarray, bits: int) -> np.ndarray:  # (..., n) -> (..., 8 // bits, n)
    return packed[..., None, :] >> _shifts(bits) & np.uint8((1 << bits) - 1)


def _shifts(bits: int) -> np.ndarray:
    return np.arange(0, 8, bits, dtype=np.uint8)[:, None]


def _encode(planes: np.ndarray, levels: int) -> np.ndarray:
    """Vectors (tiles, units, unit_vectors, 64) from planes (tiles, units, 2, quads, 64)."""
    if levels == 3:
        number = (planes * POWERS).sum(axis=3, dtype=np.uint16)
        return (256 * number // TERNARY).astype(np.uint8)
    tiles, units = planes.shape[:2]
    planes = planes.reshape(tiles, units, 8, VECTOR)
    if levels == 8:
        return _encode_three(planes)
    vectors, done = [], 0
    for bits in PIECES[levels]:
        piece = planes >> np.uint8(done) & np.uint8((1 << bits) - 1)
        vectors.append(_join(piece.reshape(tiles, units, bits, 8 // bits, VECTOR), bits))
        done += bits
    return np.concatenate(vectors, axis=2)


def _decode(vectors: np.ndarray, levels: int) -> np.ndarray:
    """Planes (tiles, units, 8 or 10, 64) from vectors (tiles, units, unit_vectors, 64)."""
    if levels == 3:
        return _decode_ternary(vectors)
    if levels == 8:
        return _decode_three(vectors)
    planes = np.zeros((*vectors.shape[:2], 8, VECTOR), np.uint8)
    start = done = 0
    for bits in PIECES[levels]:
        piece = _split(vectors[:, :, start : start + bits], bits)
        planes |= piece.reshape(planes.shape) << np.uint8(done)
        start, done = start + bits, done + bits
    return planes


def _encode_three(planes: np.ndarray) -> np.ndarray:
    """Two planes a vector leave two bits of each: planes 6 and 7 take those, their third bits those of the last."""
    vectors, six = planes[:, :, 0:6:2] | planes[:, :, 1:6:2] << np.uint8(3), planes[:, :, 6:]
    vectors[:, :, :2] |= six << np.uint8(6)  # the third bits fall off
    third = six >> np.uint8(2)
    vectors[:, :, 2] |= third[:, :, 0] << np.uint8(6) | third[:, :, 1] << np.uint8(7)
    return vectors


def _decode_three(vectors: np.ndarray) -> np.ndarray:
    planes = np.empty((*vectors.shape[:2], 8, VECTOR), np.uint8)
    planes[:, :, 0:6:2] = vectors & np.uint8(7)
    planes[:, :, 1:6:2] = vectors >> np.uint8(3) & np.uint8(7)
    planes[:, :, 6:] = vectors[:, :, :2] >> np.uint8(6)
    planes[:, :, 6] |= vectors[:, :, 2] >> np.uint8(4) & np.uint8(4)
    planes[:, :, 7] |= vectors[:, :, 2] >> np.uint8(5) & np.uint8(4)
    return planes


def _decode_ternary(vectors: np.ndarray) -> np.ndarray:
    planes: list[np.ndarray] = []
    rest: np.ndarray = vectors.astype(np.uint16)
    for _ in POWERS:
        planes.append((3 * (rest + 1) >> 8).astype(np.uint8))
        rest = 3 * rest + 2 & 255
    # One more than floor(256 n / 243) leaves 243 times itself less 256 n, at most 243; the other 13 bytes leave more.
    if rest.max(initial=0) >= TERNARY:
        raise damaged("a ternary byte stands for no five digits")
    return np.stack(planes, axis=3).reshape(*vectors.shape[:2], 2 * len(planes), VECTOR)


def _encode_ring(planes: np.ndarray, bits: float) -> np.ndarray:
    """Vectors (tiles, units, unit_vectors, 64) of a trellis from planes (tiles, units, 4, 4, 64)."""
    words = np.bitwise_or.reduce(planes.astype(np.uint16) << _ring_shifts(bits), axis=2)  # 4 * bits bits, by quad
    low, high = words.astype(np.uint8), (words >> np.uint16(8)).astype(np.uint8)
    if bits < 2:
        return _side_by_side(low, int(4 * bits))
    if bits == 2:
        return low
    if bits == 3:
        return _interleave(low[:, :, ::2], low[:, :, 1::2], _side_by_side(high, 4))
    if bits == 4:
        return _interleave(high, low)
    return np.concatenate([low, _side_by_side(high, int(4 * bits - 8))], axis=2)


def _decode_ring(vectors: np.ndarray, bits: float) -> np.ndarray:
    """Planes (tiles, units, 16, 64) from vectors (tiles, units, unit_vectors, 64) of a trellis."""
    wide = vectors.astype(np.uint16)
    if bits < 2:
        words = _parted(wide, int(4 * bits))
    elif bits == 2:
        words = wide
    elif bits == 3:
        words = _interleave(wide[:, :, ::3], wide[:, :, 1::3]) | _parted(wide[:, :, 2::3], 4) << 8
    elif bits == 4:
        words = wide[:, :, ::2] << 8 | wide[:, :, 1::2]
    else:
        words = wide[:, :, :4] | _parted(wide[:, :, 4:], int(4 * bits - 8)) << 8
    mask = (1 << np.array(widths(bits), np.uint16))[:, None, None] - 1
    planes = (words[:, :, None] >> _ring_shifts(bits) & mask).astype(np.uint8)
    return planes.reshape(*vectors.shape[:2], -1, VECTOR)


def _ring_shifts(bits: float) -> np.ndarray:  # (4, 1, 1): set 3, the newest, lies lowest
    return (int(4 * bits) - np.cumsum(widths(bits), dtype=np.uint16))[:, None, None]


def _side_by_side(fields: np.ndarray, bits: int) -> np.ndarray:  # (tiles, units, 4, 64) -> (tiles, units, bits / 2, 64)
    """Four quads' fields of 2, 4 or 6 bits; of 6, three leave two bits of each byte, which the fourth's take."""
    if bits == 6:
        return fields[:, :, :3] | (fields[:, :, 3:] >> _shifts(2)[:3]) << np.uint8(6)
    return _join(fields.reshape(*fields.shape[:2], bits // 2, 8 // bits, VECTOR), bits)


def _parted(vectors: np.ndarray, bits: int) -> np.ndarray:  # the inverse, uint16
    if bits == 6:
        fourth = np.bitwise_or.reduce(vectors >> 6 << _shifts(2)[:3], axis=2, keepdims=True)
        return np.concatenate([vectors & 63, fourth], axis=2)
    return _split(vectors, bits).reshape(*vectors.shape[:2], 4, VECTOR)


def _interleave(*parts: np.ndarray) -> np.ndarray:  # (tiles, units, n, 64) each -> (tiles, units, parts * n, 64)
    return np.stack(parts, axis=3).reshape(*parts[0].shape[:2], -1, VECTOR)
