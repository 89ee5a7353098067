"""The bytes: how codes lie in a packed row. This is the definition (docs/FORMAT.md); csrc/pack.cpp equals it.

Three levels: five codes to a byte, c0 + 3*c1 + 9*c2 + 27*c3 + 81*c4. All others: a little-endian bit stream
of b-bit codes, the lowest bit first. Every row starts on a byte and ends in zeros.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from paretobit.errors import ParetobitError

CODE_BITS = {2: 1, 4: 2, 8: 3, 16: 4, 32: 5, 64: 6, 255: 8}
TRITS = 5  # codes of three levels to a byte: 3^5 = 243 <= 256
POWERS = np.array([1, 3, 9, 27, 81], np.uint8)
CHUNK = 1 << 20  # codes unpacked at a time; the bits of a chunk take eight times its bytes


def row_bytes(levels: int, columns: int) -> int:
    """Bytes of a packed row. Raises ParetobitError on levels that have no packing and on no columns."""
    if levels != 3 and levels not in CODE_BITS:
        raise ParetobitError(f"{levels} levels have no packing", hint=f"choose from {sorted({3, *CODE_BITS})}")
    if columns < 1:
        raise ParetobitError(f"a row of {columns} columns cannot be packed", hint="give matrices with columns")
    return -(-columns // TRITS) if levels == 3 else (columns * CODE_BITS[levels] + 7) // 8


def pack(codes: np.ndarray, levels: int) -> np.ndarray:  # (out, in) -> (out, row_bytes)
    """uint8 (out, row_bytes) from codes uint8 (out, in), each below `levels`; else raises ParetobitError."""
    rows, columns = matrix(codes, "codes")
    packed = np.empty((rows, row_bytes(levels, columns)), np.uint8)
    for part in _chunks(rows, columns):
        block = codes[part]
        if block.max(initial=0) >= levels:
            raise outside(f"code {block.max()} on a grid of {levels} levels")
        packed[part] = _pack_trits(block) if levels == 3 else _pack_bits(block, CODE_BITS[levels])
    return packed


def unpack(packed: np.ndarray, levels: int, columns: int) -> np.ndarray:  # (out, row_bytes) -> (out, in)
    """codes uint8 (out, in) from packed uint8 (out, row_bytes).

    Raises ParetobitError on bytes that no `pack` writes: a ternary byte above 242, code 255 of 255 levels, a row
    that does not end in zeros, rows of another length.
    """
    rows, width = matrix(packed, "packed rows")
    check_width(width, levels, columns)
    codes = np.empty((rows, columns), np.uint8)
    for part in _chunks(rows, columns):
        block = packed[part]
        codes[part] = _unpack_trits(block, columns) if levels == 3 else _unpack_bits(block, levels, columns)
    return codes


def matrix(array: np.ndarray, what: str) -> tuple[int, int]:
    """Shape of a uint8 matrix; raises ParetobitError on anything else."""
    if array.ndim != 2 or array.dtype != np.uint8:
        raise ParetobitError(f"{what} of shape {array.shape}, {array.dtype}", hint="give a matrix of uint8")
    rows, columns = array.shape
    return rows, columns


def check_width(width: int, levels: int, columns: int) -> None:
    """Raise ParetobitError unless packed rows of `width` bytes hold `columns` codes."""
    if width != row_bytes(levels, columns):
        raise ParetobitError(
            f"packed rows of {width} bytes for {columns} columns of {levels} levels",
            hint=f"they take {row_bytes(levels, columns)} bytes: the file is damaged, or its shape is wrong",
        )


def outside(what: str) -> ParetobitError:
    return ParetobitError(what, hint="clip codes to 0 ... levels - 1 before packing them")


def damaged(what: str) -> ParetobitError:
    return ParetobitError(what, hint="the packed file is damaged: write it again")


def _chunks(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, CHUNK // columns)
    return (slice(start, start + step) for start in range(0, rows, step))


def _pack_bits(codes: np.ndarray, bits: int) -> np.ndarray:
    stream = np.unpackbits(codes[:, :, None], axis=2, count=bits, bitorder="little")
    return np.packbits(stream.reshape(len(codes), -1), axis=1, bitorder="little")


def _unpack_bits(packed: np.ndarray, levels: int, columns: int) -> np.ndarray:
    bits = CODE_BITS[levels]
    stream = np.unpackbits(packed, axis=1, bitorder="little")
    if stream[:, columns * bits :].any():
        raise damaged("a packed row does not end in zero bits")
    words = stream[:, : columns * bits].reshape(len(packed), columns, bits)
    codes = np.packbits(words, axis=2, bitorder="little")[:, :, 0]
    if codes.max(initial=0) >= levels:
        raise damaged(f"code {codes.max()} on a grid of {levels} levels")
    return codes


def _pack_trits(codes: np.ndarray) -> np.ndarray:
    rows, columns = codes.shape
    padded = np.zeros((rows, -(-columns // TRITS) * TRITS), np.uint8)
    padded[:, :columns] = codes
    return (padded.reshape(rows, -1, TRITS) * POWERS).sum(axis=2, dtype=np.uint8)


def _unpack_trits(packed: np.ndarray, columns: int) -> np.ndarray:
    if packed.max(initial=0) >= 3**TRITS:
        raise damaged(f"a ternary byte of {packed.max()}, the largest is 242")
    codes = (packed[:, :, None] // POWERS % np.uint8(3)).reshape(len(packed), -1)
    if codes[:, columns:].any():
        raise damaged("a packed row does not end in zeros")
    return codes[:, :columns]
