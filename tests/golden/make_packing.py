"""Writes packing.json: stored arrays placed bit by bit with Python's whole numbers, so that no packer checks itself.

    python tests/golden/make_packing.py

Run it only when the format changes, and then raise the format's version.
"""

import json
import math
from pathlib import Path

BITS = {2: 1, 3: 0, 4: 2, 8: 3, 16: 4, 32: 5, 64: 6, 255: 8}
SHAPES = ((18, 37, 16), (33, 6, 6))  # rows, columns, group: parts of a tile, of a unit and of the last group
RINGS = ((70, 37), (33, 6))  # rows, columns of trellises
ZERO_BITS = {2: 2, 3: 2, 4: 2, 8: 4, 16: 4, 32: 8, 64: 8, 255: 8}


def code(levels: int, row: int, column: int) -> int:
    """Spread over the grid, without a pattern of eight; the first row starts with the largest code."""
    return (levels - 1 + 7 * row + 11 * column + column * column) % levels


def places(levels: int, plane: int) -> list[tuple[int, int]]:
    """(vector of the unit, bit of its byte) of each bit of a code of `plane`, the lowest first."""
    s, q = divmod(plane, 4)
    nibble = [(plane // 2, 4 * (plane % 2) + k) for k in range(4)]
    pair = [(s, 2 * q), (s, 2 * q + 1)]
    if levels == 8:
        three = [(plane // 2, 3 * (plane % 2) + k) for k in range(3)]
        return three if plane < 6 else [(plane - 6, 6), (plane - 6, 7), (2, plane)]
    return {
        2: [(0, plane)],
        4: pair,
        16: nibble,
        32: [*nibble, (4, plane)],
        64: [*nibble, *((4 + vector, bit) for vector, bit in pair)],
        255: [(plane, k) for k in range(8)],
    }[levels]


def widths(bits: float) -> list[int]:
    """Bits of the four sets' codes: every other one a bit wider where they are no whole number on average."""
    return [math.ceil(bits), math.floor(bits)] * 2


def ring_places(bits: float, plane: int) -> list[tuple[int, int]]:
    """The same of a trellis: the codes of the four sets are one number of 4 · bits bits, the last set's lowest."""
    s, q = divmod(plane, 4)
    half, odd = divmod(q, 2)

    def six(first: int, bit: int) -> tuple[int, int]:
        return (first + q, bit) if q < 3 else (first + bit // 2, 6 + bit % 2)

    start, found = sum(widths(bits)[s + 1 :]), []
    for bit in range(start, start + widths(bits)[s]):
        low = {1: (half, 4 * odd + bit), 1.5: six(0, bit), 3: (3 * half + odd, bit), 4: (2 * q + 1, bit)}
        high = {
            2.5: (4, 2 * q + bit - 8),
            3: (3 * half + 2, 4 * odd + bit - 8),
            3.5: six(4, bit - 8),
            4: (2 * q, bit - 8),
        }
        found.append(low.get(bits, (q, bit)) if bit < 8 else high[bits])
    return found


def packed_ring(codes: list[list[int]], bits: float) -> bytes:
    rows, columns, vectors = len(codes), len(codes[0]), round(2 * bits)
    units = -(-columns // 16)
    packed = [0] * (-(-rows // 64) * units * vectors * 64)
    for r in range(rows):
        for c in range(columns):
            at = ((r // 64) * units + c // 16) * vectors * 64 + r % 16 * 4 + c % 4
            for k, (vector, bit) in enumerate(ring_places(bits, 4 * (r % 64 // 16) + c % 16 // 4)):
                packed[at + 64 * vector] += (codes[r][c] >> k & 1) << bit
    return bytes(packed)


def packed_codes(codes: list[list[int]], levels: int, group: int) -> bytes:
    rows, columns = len(codes), len(codes[0])
    unit, vectors = (20, 2) if levels == 3 else (16, BITS[levels])
    starts, units = [], 0  # first unit of every group
    for first in range(0, columns, group):
        starts.append(units)
        units += -(-min(group, columns - first) // unit)
    packed = [0] * (-(-rows // 32) * units * vectors * 64)
    for r in range(rows):
        for c in range(columns):
            u, inside = divmod(c % group, unit)
            at = ((r // 32) * units + starts[c // group] + u) * vectors * 64 + r % 16 * 4 + inside % 4
            s, q = r % 32 // 16, inside // 4
            if levels == 3:
                packed[at + 64 * s] += codes[r][c] * 3 ** (4 - q)
                continue
            for k, (vector, bit) in enumerate(places(levels, 4 * s + q)):
                packed[at + 64 * vector] += (codes[r][c] >> k & 1) << bit
    if levels == 3:
        packed = [256 * n // 243 for n in packed]
    return bytes(packed)


def packed_zero(zero: list[list[int]], levels: int) -> bytes:
    rows, groups, bits = len(zero), len(zero[0]), ZERO_BITS[levels]
    packed = [0] * (-(-rows // 32) * groups * 4 * bits)
    for r in range(rows):
        for g in range(groups):
            field, byte = divmod(r % 32, 4 * bits)
            packed[((r // 32) * groups + g) * 4 * bits + byte] += zero[r][g] << bits * field
    return bytes(packed)


def packed_scale(scale: list[list[int]], rows_of_tile: int = 32) -> bytes:
    """From the 16 bits of each half-precision scale."""
    rows, groups = len(scale), len(scale[0])
    return b"".join(
        (scale[r][g] if r < rows else 0).to_bytes(2, "little")
        for tile in range(0, rows, rows_of_tile)
        for g in range(groups)
        for r in range(tile, tile + rows_of_tile)
    )


def ring_cases() -> list[dict]:
    found = []
    for bits in (1, 1.5, 2, 2.5, 3, 3.5, 4):
        for rows, columns in RINGS:
            codes = [[code(1 << widths(bits)[r % 64 // 16], r, c) for c in range(columns)] for r in range(rows)]
            scale = [[0x2E66 + 97 * r] for r in range(rows)]
            found.append(
                {
                    "bits": bits, "shape": [rows, columns], "codes": b"".join(map(bytes, codes)).hex(),
                    "packed_codes": packed_ring(codes, bits).hex(), "scale": scale,
                    "packed_scale": packed_scale(scale, 64).hex(),
                }
            )  # fmt: skip
    return found


def cases() -> list[dict]:
    found = []
    for levels in BITS:
        for rows, columns, group in SHAPES:
            groups = range(-(-columns // group))
            codes = [[code(levels, r, c) for c in range(columns)] for r in range(rows)]
            zero = [[code(levels, r + 3, g) for g in groups] for r in range(rows)]
            packed = packed_codes(codes, levels, group)
            scale = [[0x2E66 + 97 * r + 13 * g for g in groups] for r in range(rows)]
            found.append(
                {
                    "levels": levels, "group": group, "shape": [rows, columns],
                    "codes": b"".join(map(bytes, codes)).hex(), "packed_codes": packed.hex(),
                    "scale": scale, "packed_scale": packed_scale(scale).hex(),
                    "zero": zero, "packed_zero": packed_zero(zero, levels).hex(),
                }
            )  # fmt: skip
    return found


if __name__ == "__main__":
    lines = ",\n".join(json.dumps(case) for case in (*cases(), *ring_cases()))
    Path(__file__).with_name("packing.json").write_text(f"[\n{lines}\n]\n")
